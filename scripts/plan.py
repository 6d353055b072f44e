"""Print the jobs that a config still has to run, with their work, hours and disk, before anything is queued."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shutil
from pathlib import Path

from langptune import benchmarks, plan
from langptune.cli import finish
from langptune.config.base import read_yaml
from langptune.config.identity import identity
from langptune.config.load import load
from langptune.config.workflow import Workflow
from langptune.errors import UserError
from langptune.provenance import ROOT
from langptune.stage import read_spec


def waiting(config: Path, targets: list[str]) -> list[plan.Job]:
    """The jobs that Snakemake would run for a config, in the order of the rules.

    Raises:
        UserError: Snakemake refuses the config or a target, or a file is missing.
    """
    # langptune.workflow.project reads this variable, and then lists one shard instead of all.
    os.environ["LANGPTUNE_PLAN"] = "1"
    from snakemake.api import SnakemakeApi
    from snakemake.settings.enums import Quietness, RerunTrigger
    from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, ResourceSettings

    profile = read_yaml(ROOT / "profiles" / "default" / "profile.yaml")
    # One shard is another set of inputs than all shards. All else that changes inputs also changes params.
    triggers = RerunTrigger.parse_choices_set([t for t in profile["rerun-triggers"] if t != "input"])
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        try:
            workflow = api.workflow(
                resource_settings=ResourceSettings(cores=1),
                config_settings=ConfigSettings(configfiles=[config]),
                snakefile=ROOT / "Snakefile",
                workdir=ROOT,
            )
            dag = workflow.dag(DAGSettings(targets=set(targets), rerun_triggers=triggers, force_incomplete=True))
            # This builds the graph of jobs and runs none of them. A dry run would do the same, and print each job.
            with contextlib.redirect_stdout(io.StringIO()):
                dag.printrulegraph()
        except Exception as error:
            raise UserError(f"{config}: {' '.join(str(error).split()) or type(error).__name__}") from None
        # The API has no function that returns the jobs; a unit test fails if this private attribute is removed.
        return _jobs(workflow._workflow)


def _jobs(workflow) -> list[plan.Job]:
    """The jobs that a Snakemake workflow with a built graph would run; shards that are not listed are counted."""
    dag, order = workflow.dag, {rule.name: at for at, rule in enumerate(workflow.rules)}
    ahead = set(dag.needrun_jobs())
    coming = {str(output) for job in ahead for output in job.output}
    writers = {str(job.output[0]): job for job in dag.jobs if job.rule.name == "write_profiles"}
    out = []
    for job in sorted(ahead, key=lambda job: (order[job.rule.name], *map(str, job.output))):
        script = re.search(r"scripts/(\w+)\.py", job.rule.shellcmd or "")
        if script is None or job.rule.name == "write_profiles":
            continue
        spec, dataset = read_spec(job.params.spec), getattr(job.wildcards, "dataset", "")
        out.append(plan.Job(job.rule.name, dataset, script[1], spec, requested=_memory(job)))
        if job.rule.name == "gather_profiles":
            shards = spec["shards_in"]
            first = writers[shards[0]]
            # Shards share their inputs. If these are still to be made, or the listed shard is out of date, all shards
            # are to be written. Otherwise only the missing ones are.
            stale = first in ahead and (Path(shards[0]).exists() or not coming.isdisjoint(map(str, first.input)))
            todo = len(shards) if stale else sum(not Path(shard).exists() for shard in shards)
            if todo:
                shard = read_spec(first.params.spec)
                out.append(plan.Job(first.rule.name, dataset, "write_profiles", shard, todo, _memory(first)))
    return sorted(out, key=lambda job: order[job.rule])


def _memory(job) -> float | None:
    """The memory in MB that a Snakemake job requests; None where it is not known before the job runs."""
    memory = job.resources.get("mem_mb")
    return memory if isinstance(memory, int | float) else None


def _planned(workflow: Workflow, args: argparse.Namespace) -> str:
    sizes = plan.Sizes(workflow.datasets, workflow.config.sample)
    rates = plan.stated(args.rates, [path.stem for path in (ROOT / "scripts").glob("*.py")])
    jobs = waiting(args.config, args.targets)
    if not jobs:
        return "nothing to do"
    folders = [Path(workflow.config.results), Path(workflow.config.models_dir)]
    seen = plan.measured(plan.manifests(folders), sizes, benchmarks.gather(benchmarks.files(folders)))
    # Entries may share their files; the names in the config take precedence over others.
    mine = workflow.config.encoders + workflow.config.decoders
    by_use = sorted(workflow.models, key=lambda name: name in mine)
    names = {identity(workflow.models[name].model_dump(mode="json")): name for name in by_use}
    device = args.device if args.device != "auto" else "gpu" if shutil.which("nvidia-smi") else "cpu"
    return plan.table(plan.lines(jobs, sizes, seen, rates, device, names))


def main() -> int:
    """Print the plan; exit status 2 after one line on an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=ROOT / "config" / "config.yaml")
    parser.add_argument(
        "--device", choices=["auto", "cpu", "gpu"], default="auto", help="what jobs with a model run on"
    )
    parser.add_argument("--rates", type=Path, default=ROOT / "config" / "rates.yaml", help="speeds that are stated")
    parser.add_argument("targets", nargs="*", help="as for snakemake: files or rules; default: all")
    args = parser.parse_args()
    workflow = load(read_yaml(args.config), ROOT, str(args.config))
    args.config, args.rates = args.config.resolve(), args.rates.resolve()
    with contextlib.chdir(ROOT):  # paths in specs are relative to it
        print(_planned(workflow, args))
    return 0


if __name__ == "__main__":
    finish(main)
