"""Watches the queue for a driver (the Snakemake process that submits jobs), beyond its executor plugin.

No setting of the plugin avoids two problems (docs/cluster.md): a killed driver leaves its jobs in the queue, and the
next one would submit the same jobs again; and a driver waits silently for jobs that will never start or that SLURM has
dropped. ``guard`` is called once at the start of a run, and handles both.
"""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from langptune import processes
from langptune.errors import UserError
from langptune.files import Held, hold
from langptune.provenance import ROOT

WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"}
AT_WORK = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
DROPPED = {"PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "REVOKED"}
"""SLURM requeues such jobs, and the plugin waits for that; forever if the site forbids it."""
HELD = ("held", "Held")
NEVER = {
    "PartitionTimeLimit": "it asks for more time than the partition allows: lower limits.hours in cluster.yaml",
    "PartitionNodeLimit": "it asks for more nodes than the partition has: use a recipe with fewer machines",
    "BadConstraints": "no node satisfies them: see constraint, gpus.type and limits.memory_mb in cluster.yaml",
    "QOSMaxWallDurationPerJobLimit": "it asks for more time than the QoS allows: lower limits.hours in cluster.yaml",
    "QOSMaxMemoryPerJob": "it asks for more memory than the QoS allows: lower limits.memory_mb in cluster.yaml",
    "QOSMaxGRESPerJob": "it asks for more GPUs than the QoS allows",
    "InvalidAccount": "set account in cluster.yaml",
    "InvalidQOS": "set qos in cluster.yaml",
    "DependencyNeverSatisfied": "what it depends on failed",
}
"""Reasons of pending jobs that will never start -> how to fix them."""
FORMAT = "%A|%T|%r|%M|%N|%j|%Z|%k"
LOCK = ".run.lock"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Entry:
    """One job in the queue. elapsed: as printed by squeue; rule: its Snakemake rule (or group)."""

    id: str
    state: str
    reason: str
    elapsed: str
    nodes: str
    run: str
    workdir: str
    rule: str

    @property
    def active(self) -> bool:
        """Whether it runs, or may still run."""
        return self.state in WAITING or self.state in AT_WORK


def parse(text: str) -> list[Entry]:
    """Entries of ``squeue --format FORMAT`` that a driver submitted: those whose comment names a rule."""
    out = []
    for line in text.splitlines():
        fields = line.split("|", 7)
        if len(fields) == 8 and fields[7].startswith("rule_"):
            rule = fields[7].removeprefix("rule_").split("_wildcards_")[0]
            out.append(Entry(*(field.strip() for field in fields[:7]), rule))
    return out


def queue(workdir: Path) -> list[Entry] | None:
    """This user's jobs of drivers in one folder, including recently finished ones; None if SLURM does not answer."""
    command = ["squeue", "--noheader", "--states=all", "--user", getpass.getuser(), "--format", FORMAT]
    try:
        done = processes.run(command, capture_output=True, timeout=60)
    except FileNotFoundError:
        raise UserError("squeue: no such command; run this where SLURM jobs are submitted (docs/cluster.md)") from None
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        return None
    here = os.path.realpath(workdir)
    return [entry for entry in parse(done.stdout) if os.path.realpath(entry.workdir) == here]


_held: list[IO[str]] = []
"""Open lock files; closing one would release its lock."""


def sole_driver(folder: Path) -> None:
    """Hold the folder's lock while this process lives; the kernel releases it afterwards, so it is never stale.

    Raises:
        UserError: another driver holds it.
    """
    try:
        _held.append(hold(folder / LOCK))
    except Held:
        raise UserError(
            f"{folder}: another run is at work in this folder; wait for it, or stop it (pgrep -af snakemake)"
        ) from None


def wait_for_orphans(workdir: Path, say: Say, every: float = 30.0) -> bool:
    """Wait until no job of an earlier driver is in the queue, and return whether there was one.

    Raises:
        UserError: SLURM does not answer, so running jobs are unknown.
    """
    reported: set[str] = set()
    while True:
        entries = queue(workdir)
        if entries is None and not reported:
            raise UserError("squeue: SLURM does not answer; nothing was submitted, run again once it does")
        orphans = [entry for entry in entries or [] if entry.active]
        if entries is not None and not orphans:
            return bool(reported)
        if ids := {entry.id for entry in orphans} - reported:
            reported |= ids
            rules = ", ".join(f"{count} {rule}" for rule, count in Counter(e.rule for e in orphans).most_common())
            say(
                f"{len(orphans)} jobs of an earlier run in this folder are still in the queue ({rules}). Waiting for "
                "them; what they finish is kept. To go on at once (they resume from their last checkpoint): "
                f"scancel {' '.join(sorted(entry.id for entry in orphans))}"
            )
        time.sleep(every)


class Watch(threading.Thread):
    """Reports what a driver waits for, and requeues jobs that SLURM dropped.

    Args:
        every: seconds between calls of squeue.
        summary: seconds between summaries if nothing changed.
        patience: seconds that a job may be in a state of ``DROPPED`` before it is requeued.
    """

    def __init__(self, workdir: Path, say: Say, every: float = 120.0, summary: float = 1800.0, patience: float = 240.0):
        super().__init__(name="watch", daemon=True)
        self._workdir, self._say = workdir, say
        self._every, self._summary, self._patience = every, summary, patience
        self._reported: set[tuple[str, str]] = set()
        self._since: dict[str, float] = {}
        self._last: tuple[float, Counter] = (0.0, Counter())
        self._silent: float | None = None
        self._known: set[str] = set()

    def run(self) -> None:
        """Watch the queue while the driver lives."""
        while True:
            time.sleep(self._every)
            try:
                self.look(queue(self._workdir), time.monotonic())
            except Exception as error:  # a failing watch must not end the run
                self._once("watch", type(error).__name__, f"the queue cannot be read: {error}")

    def look(self, entries: list[Entry] | None, now: float) -> None:
        """Report on one reading of the queue."""
        if entries is None:
            if self._silent is None:
                self._silent = now
                self._say("SLURM does not answer; jobs go on, and this run waits until it does")
            return
        if self._silent is not None:
            self._say(f"SLURM answers again, after {(now - self._silent) / 60:.0f} minutes")
            self._silent = None
        self._vanished(entries)
        for entry in entries:
            self._stuck(entry, now)
        self._summarise(entries, now)

    def _vanished(self, entries: Iterable[Entry]) -> None:
        ids = {entry.id for entry in entries}
        for gone in sorted(self._known - ids):
            self._once(
                gone,
                "gone",
                f"job {gone} vanished from the queue while it was waiting or running; if nothing else happens, stop "
                "this run (Ctrl-C) and start it again: it goes on from the last checkpoint",
            )
        self._known = {entry.id for entry in entries if entry.active}

    def _stuck(self, entry: Entry, now: float) -> None:
        name = f"job {entry.id} ({entry.rule})"
        if entry.state in DROPPED:
            since = self._since.setdefault(entry.id, now)
            if now - since >= self._patience:
                self._since[entry.id] = now
                done = processes.run(["scontrol", "requeue", entry.id], capture_output=True)
                self._say(
                    f"{name} ended as {entry.state} and was not put back in the queue: "
                    + (
                        f"cannot do it either ({done.stderr.strip()}); stop this run (Ctrl-C) and start it again"
                        if done.returncode
                        else "done now; it goes on from its last checkpoint"
                    ),
                )
            return
        self._since.pop(entry.id, None)
        if entry.state in WAITING and any(word in entry.reason for word in HELD):
            self._once(
                entry.id, "held", f"{name} is held ({entry.reason}); to let it start: scontrol release {entry.id}"
            )
        elif entry.state in WAITING and entry.reason in NEVER:
            self._once(
                entry.id,
                entry.reason,
                f"{name} will never start ({entry.reason}): {NEVER[entry.reason]}; then scancel {entry.id}, and it is "
                "submitted anew when the run is started again",
            )

    def _once(self, job: str, what: str, line: str) -> None:
        if (job, what) not in self._reported:
            self._reported.add((job, what))
            self._say(line)

    def _summarise(self, entries: list[Entry], now: float) -> None:
        active = [entry for entry in entries if entry.active]
        states = Counter("running" if entry.state in AT_WORK else f"waiting: {entry.reason}" for entry in active)
        last, before = self._last
        if not active or (states == before and now - last < self._summary) or now - last < self._summary / 6:
            return
        self._last = (now, states)
        rules = Counter(entry.rule for entry in active)
        say = [f"{count} {state}" for state, count in states.most_common()]
        longest = max((e for e in active if e.state in AT_WORK), key=lambda e: _seconds(e.elapsed), default=None)
        if longest:
            say.append(f"longest: job {longest.id} ({longest.rule}) on {longest.nodes} for {longest.elapsed}")
        self._say(
            f"in the queue: {'; '.join(say)}; by rule: {', '.join(f'{n} {rule}' for rule, n in rules.most_common())}"
        )


def _seconds(elapsed: str) -> int:
    """Seconds of squeue's ``[days-][[hours:]minutes:]seconds``."""
    days, _, clock = elapsed.rpartition("-")
    out = 0
    for part in clock.split(":"):
        out = out * 60 + (int(part) if part.isdecimal() else 0)
    return out + (int(days) * 86400 if days.isdecimal() else 0)


def guard(workdir: Path, say: Say) -> None:
    """Make sure that this driver is the only one, wait for the jobs of a killed one, and start the watch.

    From here on, driver and jobs wait if SLURM's controller is unavailable (slurm/bin).

    If there were jobs of a killed driver, the job graph of this process is out of date: the process restarts itself to
    find their results.

    Raises:
        UserError: another driver runs in this folder, or there is no SLURM.
    """
    sole_driver(workdir)
    os.environ["PATH"] = f"{ROOT / 'slurm' / 'bin'}:{os.environ['PATH']}"
    every = float(os.environ.get("LANGPTUNE_WATCH_SECONDS", "120"))
    if wait_for_orphans(workdir, say, min(every, 30.0)):
        say("the jobs of the earlier run are gone from the queue: reading what they finished")
        sys.stdout.flush()
        sys.stderr.flush()
        os.chdir(workdir)
        processes.become(processes.python("-m", "snakemake", *sys.argv[1:]), os.environ)  # jobs may need its keys
    Watch(workdir, say, every=every, summary=15 * every, patience=2 * every).start()
