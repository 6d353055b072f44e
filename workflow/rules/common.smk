"""Registries, validation, wildcard constraints, and the functions that name files."""

import json
import re
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

ROOT = Path(workflow.basedir)
sys.path.insert(0, str(ROOT / "src"))

from langptune.config import methods as kinds
from langptune.config.base import read_yaml
from langptune.config.workflow import load
from langptune.errors import UserError
from langptune.provenance import code_hash

try:
    for path in workflow.configfiles:
        read_yaml(Path(path))  # finds keys that stand twice, which Snakemake's own reader passes over
    WORKFLOW = load(config, ROOT, ", ".join(str(path) for path in workflow.configfiles) or "config")
except UserError as error:
    raise WorkflowError(str(error)) from None

CONFIG, DATASETS, MODELS, METHODS = WORKFLOW.config, WORKFLOW.datasets, WORKFLOW.models, WORKFLOW.methods
RESULTS, LOGS = CONFIG.results, f"{CONFIG.results}/logs"
# The interpreter that runs Snakemake has the locked environment; containers and conda bring their own.
PYTHON = "python" if workflow.deployment_settings.deployment_method else sys.executable


def either(names):
    """A regular expression of exactly these names; of nothing where there are none."""
    return "|".join(re.escape(name) for name in names) or "(?!)"


def methods_of(kind):
    """A regular expression of the methods of one kind (a class of langptune.config.methods)."""
    return either(name for name, method in METHODS.items() if isinstance(method, kind))


wildcard_constraints:
    dataset=either(DATASETS),
    method=either(METHODS),
    encoder=either(name for name, model in MODELS.items() if model.role == "encoder"),
    decoder=either(name for name, model in MODELS.items() if model.role == "decoder"),
    models=r"[A-Za-z0-9._-]+(\+[A-Za-z0-9._-]+)?",
    seed=r"\d+",
    trial=r"\d+",


# Not a param: where the repository lies is no reason to run anything again.
SCRIPTS = ROOT / "scripts"


def code(name):
    """The content hash of a script and of all library modules that it imports: a param of its rule, so that editing
    either reruns the rule and nothing else."""
    return code_hash(SCRIPTS / f"{name}.py")


def spec(**fields):
    """A script's typed spec as JSON; files come as plain strings or lists."""
    plain = lambda value: value.model_dump(mode="json") if hasattr(value, "model_dump") else str(value)
    return json.dumps(fields, default=plain, sort_keys=True)


def model_folder(name):
    """Where a materialised model lies."""
    return f"{CONFIG.models_dir}/{name}"


def data_files(*names):
    """Prepared files of the rule's dataset, as keywords `<name>_file` (plain `items` is reserved by Snakemake)."""
    return {f"{name}_file": f"{RESULTS}/{{dataset}}/data/{name}.parquet" for name in names}


def ranks_of(run):
    """The ranks of one run."""
    return f"{RESULTS}/{run.folder}/ranks.parquet"
