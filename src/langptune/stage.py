"""The frame of every script: it validates a typed spec, writes manifests, and prints one clear line on failure.

A script declares a ``StageSpec`` and a function and passes both to ``run``. Snakemake passes the spec as JSON.
A user may run the script alone with ``--spec spec.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from langptune import gpus, processes
from langptune.config.base import Strict, validate
from langptune.errors import EXIT_AGAIN, Interrupted, UserError, printable
from langptune.files import Held, fresh, hold
from langptune.provenance import Record, write_json
from langptune.reading import read_json

HOLD = 900.0
"""Seconds that a preempted job waits for SLURM to end it; more than any grace time."""


class StageSpec(Strict):
    """Base of all specs. Fields that end in ``_in`` are input paths; fields that end in ``_out`` are output paths."""

    def paths(self, suffix: str) -> list[Path]:
        """Every path in the fields with this suffix (a field may hold one path, a list, a mapping or null)."""
        out: list[Path] = []
        for name in type(self).model_fields:
            if name.endswith(suffix):
                value = getattr(self, name)
                values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
                out += [Path(path) for path in values if path is not None]
        return out

    def needs_gpu(self) -> bool:
        """Whether the job computes on a GPU where there is one."""
        return False

    def secrets(self) -> tuple[str, ...]:
        """Environment variables with secrets that the job needs; other secrets are removed from its environment."""
        return ()

    def unreached(self) -> tuple[str, ...]:
        """Imported modules that the script does not use with this spec (``without`` of ``provenance.code_files``)."""
        return ()

    def loads(self) -> tuple[str, ...]:
        """Modules that the script imports by name with this spec (``loads`` of ``provenance.code_files``)."""
        return ()


S = TypeVar("S", bound=StageSpec)


class Log:
    """Progress messages: each line goes to standard error and, where ``path`` is given, to a log file."""

    def __init__(self, path: Path | None, quiet: bool = False):
        self._file, self._quiet = None, quiet
        if path is not None:
            # A log that cannot be written (full disk, read-only folder) must not hide the cause of a failure.
            with contextlib.suppress(OSError, UserError):
                self._file = fresh(path)

    def __call__(self, line: str, quiet: bool = False) -> None:
        """Write one line, or a stack trace; with ``quiet`` to the log file only."""
        line = printable(line, "\n\t")
        if not quiet and not self._quiet:
            print(line, file=sys.stderr, flush=True)
        if self._file:
            with contextlib.suppress(OSError):
                print(f"{time.strftime('%H:%M:%S')} {line}", file=self._file, flush=True)


def run(spec_type: type[S], work: Callable[[S, Record, Log], Callable[[], None] | None], script: str) -> None:
    """Parse the command line, run ``work``, write manifests; exit 0.

    Exit 2 after one line on what the user must correct. Exit 75 after a SIGTERM, so that the job is run again.

    Args:
        spec_type: the script's spec; its docstring and field descriptions become ``--help``.
        work: does the job; reports facts to the record and progress to the log. It may return a function, which is
            called after the manifests are written: there a script removes its checkpoints.
        script: the script's ``__file__``.
    """
    path = Path(script).resolve()
    parser = argparse.ArgumentParser(
        prog=path.name,
        description=(spec_type.__doc__ or "").strip(),
        epilog=_fields(spec_type),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--spec", required=True, help="the spec as JSON, or a file that holds it ('-': standard input)")
    parser.add_argument("--log", type=Path, default=None, help="also write progress and any stack trace here")
    args = parser.parse_args()
    # Only the first process of an `accelerate launch` logs, locks and writes manifests.
    first = os.environ.get("RANK", "0") == "0"
    log = Log(args.log if first else None, quiet=not first)
    outputs: list[Path] = []
    refusal = None
    signal.signal(signal.SIGTERM, _stop)  # training installs its own handler, which saves a checkpoint
    try:
        spec = validate(spec_type, read_spec(args.spec), f"{path.name} --spec")
        processes.forget(spec.secrets())
        outputs = spec.paths("_out")
        record = Record(path, spec.model_dump(mode="json"), spec.unreached(), spec.loads())
        refusal = _Refusal(outputs if first else [], record)
        for source in spec.paths("_in"):
            if not source.exists():
                raise UserError(f"{path.name}: input {source} does not exist; run the rule that makes it")
            if not (source.is_file() or source.is_dir()):
                raise UserError(f"{path.name}: input {source} is neither a file nor a folder; remove it and run again")
        with _sole_writer(outputs if first else []):
            refusal.check()
            if spec.needs_gpu() and "RANK" not in os.environ:  # the launcher chooses the GPUs of several processes
                gpus.claim(1, log, path.name)
            finish = work(spec, record, log)
            if first:
                record.write(spec.paths("_in"), [output for output in outputs if output.exists()])
                if finish:
                    finish()
    except UserError as error:
        if refusal is not None:
            refusal.keep(error)
        _error_log(log, first)(f"error: {error}")
        sys.exit(2)
    except (Interrupted, _Stopped) as stop:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # when one of several processes exits, the others get SIGTERM
        log(f"{path.name}: {stop}")
        if preempted():
            # A job that exits by itself counts as failed and uses up an attempt. SLURM requeues a job that it ends.
            log(f"{path.name}: preempted; waiting for SLURM to put the job back in the queue")
            time.sleep(HOLD)
        sys.exit(EXIT_AGAIN)
    except KeyboardInterrupt:
        log(f"{path.name}: interrupted; finished outputs are kept, run again to go on")
        sys.exit(130)
    except Exception as error:
        log = _error_log(log, first)
        if line := _full_disk(error, outputs):
            # No stack trace: the line that met the full disk is chance, and Snakemake prints the log of a failed job.
            log(f"error: {path.name}: {line}")
            sys.exit(1)
        has_file = args.log is not None and first
        log(f"error: {path.name}: {_cause(error)}" + (f"; details in {args.log}" if has_file else ""))
        log(traceback.format_exc(), quiet=has_file)
        sys.exit(1)


def refused(output: Path | str) -> bool:
    """Whether a script of this run (``LANGPTUNE_RUN``) ended with exit status 2 instead of making an output."""
    run = os.environ.get("LANGPTUNE_RUN")
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return run is not None and read_json(_refusal_of(Path(output)))["run"] == run
    return False


def _refusal_of(output: Path) -> Path:
    return output.with_name(f".{output.name}.refused")


class _Refusal:
    """A file with an error that the user must correct, kept for the rest of the run: a retry would fail the same way.

    Snakemake retries a job whatever its exit status. Its driver reads this file first (workflow/rules/common.smk).
    Where the driver cannot, the next attempt reads it and fails at once with the same line. ``LANGPTUNE_RUN``
    identifies the run; the driver sets it and jobs inherit it. Another run tries again, because the user may have
    corrected the input. Without the variable, as when a script runs alone, nothing is kept.
    """

    def __init__(self, outputs: list[Path], record: Record):
        self._run = os.environ.get("LANGPTUNE_RUN")
        self._path = _refusal_of(outputs[0]) if outputs and self._run else None
        self._key = json.dumps([record.code, record.spec], sort_keys=True)

    def check(self) -> None:
        """Fail as an earlier attempt of this run with the same spec and code did; delete any other refusal.

        Raises:
            UserError: the error of that attempt.
        """
        if self._path is None:
            return
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            refusal = read_json(self._path)
            if (refusal["run"], refusal["key"]) == (self._run, self._key):
                raise UserError(refusal["line"])
        self._path.unlink(missing_ok=True)

    def keep(self, error: UserError) -> None:
        """Write a refusal."""
        if self._path is not None:
            with contextlib.suppress(OSError, UserError):  # a full disk: the next attempt meets the error by itself
                write_json(self._path, {"run": self._run, "key": self._key, "line": str(error)})


def preempted() -> bool:
    """Whether this process runs in a job that SLURM is preempting and will requeue."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return False
    try:
        done = processes.run(["scontrol", "--oneliner", "show", "job", job], capture_output=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return bool(re.search(r"\bPreemptTime=\d", done.stdout)) and "Requeue=1" in done.stdout


class _Stopped(KeyboardInterrupt):
    """SIGTERM was received. It is no ``Exception``, so that no `except Exception` catches it."""


def _stop(*_: object) -> None:
    raise _Stopped("stopped by SIGTERM; the same command goes on from what is kept")


def _error_log(log: Log, first: bool) -> Log:
    """The log for an error of one of several processes.

    Where all processes meet the same error, only the first one reports it: the launcher ends the others while they wait
    here.
    """
    if first:
        return log
    time.sleep(5)
    return Log(None)


@contextlib.contextmanager
def _sole_writer(outputs: list[Path]) -> Iterator[None]:
    """Hold a lock on the outputs while they are made.

    The jobs of a killed driver go on running; without the lock, the next driver would start the same job again.
    """
    if not outputs:
        yield
        return
    path = outputs[0].with_name(f".{outputs[0].name}.lock")
    try:
        held = hold(path)
    except Held as other:
        raise UserError(
            f"{outputs[0]}: process {other.by or '(unknown)'} is still writing it, left over from a run that was "
            "killed or started twice; wait for it or stop it, then run again"
        ) from None
    with held:
        yield


def read_spec(text: str) -> object:
    """The content of ``--spec``: JSON text, a file with JSON, or ``-`` for standard input.

    Raises:
        UserError: there is no such file, or it is not JSON.
    """
    if text == "-":
        text = sys.stdin.read()
    elif not text.lstrip().startswith("{"):
        try:
            text = Path(text).read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"--spec {text}: {error.strerror}; give a JSON file or a JSON object") from None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"--spec: not valid JSON: {error}") from None


def _full_disk(error: Exception, outputs: list[Path]) -> str | None:
    """The message for an error that a full disk caused; None for any other error."""
    folder = next((p for out in outputs for p in [out.parent, *out.parent.parents] if p.exists()), Path.cwd())
    free = shutil.disk_usage(folder).free // 2**20
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    # polars and torch have errors of their own for a full disk. Torch reports only a short file or a broken stream, and
    # its partial file may be deleted by now, so some space may be free again.
    words = ["No space left on device", "os error 28"]
    words += ["unexpected pos", "PytorchStreamWriter failed", "iostream error"] if free < 1024 else []
    if full or any(word in str(error) for word in words) or (free == 0 and isinstance(error, OSError | RuntimeError)):
        return (
            f"the disk is full ({free} MiB free at {folder}); free some space and run again, finished outputs are kept"
        )
    return None


def _cause(error: Exception) -> str:
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return f"out of memory ({error}); lower generation.batch_size or run fewer jobs at once (--cores)"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def _fields(spec_type: type[StageSpec]) -> str:
    lines = ["spec fields:"]
    for name, field in spec_type.model_fields.items():
        default = "required" if field.is_required() else f"default {field.default!r}"
        lines.append(f"  {name:<18} {field.description or ''} ({default})")
    return "\n".join(lines)


def set_threads(threads: int) -> None:
    """Set the number of CPU threads of torch and other numeric libraries; call before they are imported.

    The number comes from the config and not from the scheduler, because it affects rounding.
    """
    for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[key] = str(threads)
