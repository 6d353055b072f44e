"""The project of this run, wildcard constraints, and functions for rules; all else is in src/langptune/workflow/."""

import os
import re
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.jobs import Job
from snakemake.logging import logger
from snakemake.settings.types import DeploymentMethod
from snakemake.sourcecache import HostingProviderFile
from snakemake.utils import update_config


def checkout():
    """The folder of this repository, from the path of this file: in a module, workflow.basedir is the folder of the
    outer workflow. If Snakemake reads the module from a git host, no scripts are on disk: they are checked out from the
    clone that Snakemake keeps.
    """
    here = workflow.current_basedir
    if not isinstance(here, HostingProviderFile):
        return Path(here).parents[1]
    repository = here.hosted_repo.repo
    folder = Path(".snakemake", "langptune", repository.commit(here.ref).hexsha).absolute()
    if not folder.is_dir():
        repository.git.worktree("add", "--force", "--detach", str(folder), here.ref)
    return folder


ROOT = checkout()
sys.path.insert(0, str(ROOT / "src"))
from langptune.errors import UserError

try:
    from langptune.config.base import read_yaml, retype
    from langptune.files import own_folder
    from langptune.gpus import visible
    from langptune.provenance import file_hash
    from langptune.report import first_page  # workflow/report/workflow.rst calls it
    from langptune.slurm import guard
    from langptune.survey.runs import surveyed, surveys
    from langptune.workflow import comparison, driver, load, targets
    from langptune.workflow.bind import Binding
    from langptune.workflow.stages import digest
except ImportError as error:
    raise WorkflowError(
        f"{error.name} is not installed: `pip install pydantic Jinja2 PyYAML numpy` is what Snakemake needs to read this "
        "workflow, `make env` what its jobs need"
    ) from None
except UserError as error:  # a file among the baselines is not valid: they are imported with the config
    raise WorkflowError(str(error)) from None

# As a module, this workflow ignores the command line and config files, which are the outer workflow's. The outer
# workflow passes the whole config.
MAIN = workflow.modifier.is_main_snakefile()
CONFIG_FILES = workflow.configfiles if MAIN else []
DEPLOYED = workflow.deployment_settings.deployment_method
# A profile for a cluster sets --jobs; remote_exec is true for a job inside an allocation.
ON_CLUSTER = workflow.resource_settings.nodes is not None or workflow.remote_exec

try:
    for path in CONFIG_FILES:
        read_yaml(Path(path))  # refuses duplicate keys, which Snakemake's own reader accepts
    for key, value in workflow.config_settings.config.items() if MAIN else ():
        update_config(config, {key: retype(value)})
    if not MAIN and not config:
        raise UserError(
            "module langptune: no config; give it one, with the keys of config/README.md: `config: config[...]`"
        )
    PROJECT = load.load(config, ROOT, ", ".join(map(str, CONFIG_FILES)) or "config")
    CLUSTER = load.cluster(ROOT)
    # A local run assigns the GPUs of this machine to jobs, one each (langptune.gpus). On a cluster SLURM assigns them.
    LOCAL_GPUS = [] if ON_CLUSTER else visible()
    FIGURES = targets.drawn(PROJECT)
    ENVIRONMENT, IMAGE = driver.environments(ROOT, bool(DEPLOYED), DeploymentMethod.APPTAINER in DEPLOYED)
    BINDING = Binding(PROJECT, load.shapes(PROJECT), CLUSTER if ON_CLUSTER else None, bool(LOCAL_GPUS))
except UserError as error:
    raise WorkflowError(str(error)) from None

if LOCAL_GPUS and workflow.global_resources.get("gpu").value is None:
    workflow.global_resources["gpu"] = len(LOCAL_GPUS)
driver.prepare_environment()
shell.prefix(driver.shell_prefix(ROOT, bool(DEPLOYED)))
Job.restart_times = driver.restart_times(workflow.remote_exec, logger.info)

CONFIG, RESULTS = PROJECT.config, PROJECT.results
job, stage = BINDING.job, BINDING.stage
# A retry by the Snakemake in a job's allocation would have no more memory or time; the driver retries with more.
RETRIES = 0 if workflow.remote_exec else CONFIG.training.retries
# Folders of rules' outputs, and patterns of the names of their logs.
PHASE = PROJECT.paths.phase
RUN = f"{RESULTS}/{{dataset}}/{{method}}/{{models}}/seed{{seed}}"
TUNED = f"{RESULTS}/{{dataset}}/{{method}}/{{models}}/tune"
PROFILED = f"{RESULTS}/{{dataset}}/{{method}}/{{encoder}}+{{decoder}}/seed{{seed}}"
BY_PHASE = "{dataset}-{models}-seed{seed}-{phase}"
BY_RUN = "{dataset}-{method}-{models}-seed{seed}"
BY_PROFILED = "{dataset}-{method}-{encoder}+{decoder}-seed{seed}"


def either(names):
    """A regular expression that matches exactly these names; without names it matches nothing."""
    return "|".join(re.escape(name) for name in names) or "(?!)"


def tables(*names):
    """Prepared files of the rule's dataset, as inputs `<name>_in`."""
    return {f"{name}_in": f"{RESULTS}/{{dataset}}/data/{name}.parquet" for name in names}


def best_point(w):
    """The best point of a baseline's grid. Without a grid there is no selection, and fitting starts at once."""
    return f"{TUNED}/best.json".format(**w) if PROJECT.workflow.points(w.method) else []


def cheap(w):
    """The group of a job that takes seconds and depends only on the data: on a cluster several share an allocation
    (`group-components` of slurm/profile.yaml). None for other jobs: if one job of a group fails, the outputs of all are
    deleted.
    """
    return "cheap" if ON_CLUSTER and PROJECT.methods[w.method].cheap else None


def files_of(target):
    """The files of a target that not every config has; an input function calls this only if the target is requested."""
    try:
        return target(PROJECT)
    except UserError as error:
        raise WorkflowError(str(error)) from None


wildcard_constraints:
    dataset=either(PROJECT.datasets),
    method=either(PROJECT.methods),
    encoder=either(name for name, model in PROJECT.models.items() if model.role == "encoder"),
    decoder=either(name for name, model in PROJECT.models.items() if model.role == "decoder"),
    models=r"[A-Za-z0-9._-]+(\+[A-Za-z0-9._-]+)?",
    seed=r"\d+",
    phase=either(PROJECT.phases),
    draw=either(PROJECT.draws),
    trial=r"\d+",
