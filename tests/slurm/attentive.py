"""Runs Snakemake as ``python -m snakemake`` does, but looks at the queue at a constant interval.

The SLURM plugin waits ten seconds longer after every look at which no job has ended. That suits jobs of hours. Jobs of
seconds would wait longer to be noticed than they run.
"""

from __future__ import annotations

from snakemake.cli import main
from snakemake_executor_plugin_slurm import Executor

SECONDS = 3.0

if __name__ == "__main__":
    Executor.next_seconds_between_status_checks = property(lambda self: SECONDS, lambda self, value: None)
    main()
