"""Runs Snakemake as ``python -m snakemake`` does, but looks at the queue at a constant interval.

The SLURM plugin adds ten seconds to its interval after every look at which no job has ended. That suits jobs that take
hours. The end of a job that takes seconds would be noticed long after it.
"""

from __future__ import annotations

from snakemake.cli import main
from snakemake_executor_plugin_slurm import Executor

SECONDS = 3.0

if __name__ == "__main__":
    Executor.next_seconds_between_status_checks = property(lambda self: SECONDS, lambda self, value: None)
    main()
