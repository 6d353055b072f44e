"""The parts of a rule, made from the declarations of its script."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from langptune.config.cluster import Cluster
from langptune.launch import Shape
from langptune.provenance import code_hash
from langptune.workflow import settings, stages
from langptune.workflow.job import Job
from langptune.workflow.needs import Needs
from langptune.workflow.project import Project
from langptune.workflow.resources import launcher, resources


class Binding:
    """The rules of one project, as Snakemake runs it here.

    Args:
        shapes: launch file -> the numbers of machines and processes that it starts.
        cluster: the site; None for a local run.
        local_gpus: for a local run: whether GPUs of this machine are assigned to jobs.
    """

    def __init__(self, project: Project, shapes: Mapping[str, Shape], cluster: Cluster | None, local_gpus: bool):
        self.project, self.shapes, self.cluster, self.local_gpus = project, shapes, cluster, local_gpus
        self._jobs: dict[tuple[str, ...], Job] = {}

    def job(self, wildcards: Any) -> Job:
        """The job with these wildcards; the same object for equal wildcards."""
        key = (*wildcards.keys(), *wildcards)
        if key not in self._jobs:
            self._jobs[key] = Job(self.project, dict(wildcards.items()))
        return self._jobs[key]

    def stage(self, rule: str, by: str, script: str | None = None, **variant: Any) -> Stage:
        """The parts of a rule.

        Args:
            by: pattern of its wildcards, for the names of its log and benchmark files.
            script: the name of its script; None: the name of the rule.
            variant: arguments of the script's ``spec``, where several rules share the script.
        """
        return Stage(self, rule, by, self.project.root / "scripts" / f"{script or rule}.py", variant)


class Stage:
    """Log, benchmark, threads, resources and params of one rule."""

    def __init__(self, binding: Binding, rule: str, by: str, script: Path, variant: Mapping[str, Any]):
        self._binding, self._script, self._variant = binding, script, variant
        self.log = f"{binding.project.logs}/{rule}/{by}.log"
        self.benchmark = f"{binding.project.benchmarks}/{rule}/{by}.jsonl"
        self._fields: dict[Job, dict[str, Any]] = {}
        self._needed: dict[Job, Needs] = {}
        self._hashes: dict[tuple[Any, ...], str] = {}

    @cached_property
    def _declared(self) -> Any:
        return stages.stage(self._script)

    def needs(self, wildcards: Any) -> Needs:
        """The needs of the job with these wildcards."""
        job = self._binding.job(wildcards)
        if job not in self._needed:
            self._needed[job] = self._declared.needs(job.project, job)
        return self._needed[job]

    def threads(self, wildcards: Any) -> int:
        """CPU threads of the job with these wildcards."""
        return self.needs(wildcards).threads

    @property
    def resources(self) -> dict[str, Callable[..., Any]]:
        """Resources by name."""
        binding = self._binding
        return resources(self.needs, binding.shapes, binding.cluster, binding.local_gpus)

    @property
    def params(self) -> dict[str, Callable[..., Any]]:
        """``spec``: the job's spec. ``settings``, ``code``: digests that Snakemake compares with those of the last run.

        Snakemake does not compare ``spec``, because its function takes input and output. So a changed setting reruns a
        job only through ``settings``.
        """
        return {"spec": self._spec, "settings": self._settings, "code": self._code}

    def launcher(self, wildcards: Any) -> str:
        """The start of the job's command."""
        return launcher(self.needs(wildcards).launch)

    def _settings_of(self, wildcards: Any) -> dict[str, Any]:
        job = self._binding.job(wildcards)
        if job not in self._fields:
            self._fields[job] = self._declared.spec(job.project, job, **self._variant)
        return self._fields[job]

    def _spec(self, wildcards: Any, input: Any, output: Any) -> str:
        files = {**files_of(input, "_in"), **files_of(output, "_out")}
        return settings.fitting(settings.as_text({**self._settings_of(wildcards), **files}))

    def _settings(self, wildcards: Any) -> str:
        return settings.digest(self._settings_of(wildcards))

    def _code(self, wildcards: Any) -> str:
        job, hooks = self._binding.job(wildcards), self._declared
        key = tuple(
            tuple(getattr(hooks, name)(job.project, job)) if hasattr(hooks, name) else ()
            for name in ("unreached", "loads")
        )
        if key not in self._hashes:
            self._hashes[key] = code_hash(self._script, *key)
        return self._hashes[key]


def files_of(named: Any, end: str) -> dict[str, Any]:
    """The inputs or outputs of a rule whose names end in ``end``: a path, a list of paths, or None for no file."""
    files = {name: value for name, value in named.items() if name.endswith(end)}
    return {name: value if isinstance(value, str) else _listed(value) for name, value in files.items()}


def _listed(value: Iterable[Any]) -> list[str] | None:
    return [str(path) for path in value] or None
