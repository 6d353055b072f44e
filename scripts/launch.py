"""Start a training script in several processes, on one machine or on the nodes of a SLURM allocation."""

from langptune.launch import main

if __name__ == "__main__":
    main()
