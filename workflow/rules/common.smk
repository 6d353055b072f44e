"""Registries, validation, wildcard constraints, and the functions that name files."""

import functools
import hashlib
import inspect
import json
import math
import os
import re
import shlex
import sys
import uuid
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.jobs import Job
from snakemake.logging import logger
from snakemake.settings.types import DeploymentMethod
from snakemake.sourcecache import HostingProviderFile
from snakemake.utils import update_config


def checkout():
    """The folder of this repository, by the place of this file: workflow.basedir is another repository's where this is
    its module. Where Snakemake reads that module from a host of git repositories, there are no scripts on disk yet:
    the clone that it keeps gives them.
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

try:
    from langptune import metrics
    from langptune.allowed import check as check_endpoint
    from langptune.config.base import read_yaml, retype, validate
    from langptune.config.cluster import KEYS, Cluster, Demand
    from langptune.config.cluster import resources as cluster_resources
    from langptune.config.identity import identity
    from langptune.config.layout import Layout, decoder_of, encoder_of
    from langptune.config.methods import BASELINES
    from langptune.config.phases import VALIDATION, Phase
    from langptune.config.recipes import ALGORITHMS, NEUTRAL
    from langptune.config.workflow import Run, load
    from langptune.endpoint import CLIENT
    from langptune.errors import UserError, printable
    from langptune.figures import comparison as comparison_figures
    from langptune.files import own_folder, whole
    from langptune.gpus import visible
    from langptune.launch import shape as shape_of
    from langptune.processes import places
    from langptune.provenance import code_hash
    from langptune.report import first_page  # workflow/report/workflow.rst calls it
    from langptune.slurm import guard
    from langptune.stage import refused
    from langptune.survey.runs import surveyed, surveys
except ImportError as error:
    raise WorkflowError(
        f"{error.name} is not installed: `pip install pydantic Jinja2 PyYAML numpy` is what Snakemake needs to read this "
        "workflow, `make env` what its jobs need"
    ) from None

# Command line and config files are those of the outer workflow where this is its module, which is given its config whole.
MAIN = workflow.modifier.is_main_snakefile()
CONFIG_FILES = workflow.configfiles if MAIN else []

try:
    for path in CONFIG_FILES:
        read_yaml(Path(path))  # finds keys that stand twice, which Snakemake's own reader passes over
    for key, value in workflow.config_settings.config.items() if MAIN else ():
        update_config(config, {key: retype(value)})
    if not MAIN and not config:
        raise UserError(
            "module langptune: no config; give it one, with the keys of config/README.md: `config: config[...]`"
        )
    WORKFLOW = load(config, ROOT, ", ".join(map(str, CONFIG_FILES)) or "config")
    judges = [WORKFLOW.judges[judge].model for judge in WORKFLOW.config.interpretability.judges]
    for name in dict.fromkeys([*WORKFLOW.config.encoders, *judges]):
        entry = WORKFLOW.models[name].source
        check_endpoint(entry.endpoint, entry.key, f"models.yaml: {name}")
    # Where RecBole is missing (a dry run, a lint), its names cannot be checked; training says so.
    for name in WORKFLOW.config.methods:
        WORKFLOW.methods[name].check_names()
    # A site's own file may lie anywhere, so that a checkout stays clean.
    CLUSTER_FILE = Path(os.environ.get("LANGPTUNE_CLUSTER", ROOT / "slurm" / "cluster.yaml"))
    CLUSTER = validate(Cluster, read_yaml(CLUSTER_FILE), str(CLUSTER_FILE))
    # Recipe's launch file -> how many machines and processes it starts.
    LAUNCHES = {
        name: shape_of(ROOT / "config" / "accelerate" / name)
        for recipe in WORKFLOW.recipes.values()
        if (name := getattr(recipe, "launch", None))
    }
except UserError as error:
    raise WorkflowError(str(error)) from None

CONFIG, DATASETS, MODELS, METHODS = WORKFLOW.config, WORKFLOW.datasets, WORKFLOW.models, WORKFLOW.methods
METRIC_FILES = [metrics.module(name) for name in CONFIG.comparison.metrics]
RESULTS, LOGS = CONFIG.results, f"{CONFIG.results}/logs"
LAYOUT = Layout(WORKFLOW)
model_folder, data_file = LAYOUT.model_folder, LAYOUT.data_file
ranks_of, metrics_of, source_of = LAYOUT.ranks_of, LAYOUT.metrics_of, LAYOUT.source_of
phase_folder, profiles_of, adapter_of = LAYOUT.phase_folder, LAYOUT.profiles_of, LAYOUT.adapter_of
decoder_folder, vectors_of = LAYOUT.decoder_folder, LAYOUT.vectors_of
reward_weight = LAYOUT.reward_weight
# What each job took: Snakemake writes one line of JSON a job, scripts/cost.py gathers them.
BENCHMARKS = f"{RESULTS}/benchmarks"


def either(names):
    """A regular expression of exactly these names; of nothing where there are none."""
    return "|".join(re.escape(name) for name in names) or "(?!)"


def methods_of(rule):
    """A regular expression of the methods that a rule ranks."""
    return either(name for name, method in METHODS.items() if method.ranked_by == rule)


def ranked_texts(profiles):
    """A regular expression of the methods run here that rank by texts, and of the controls that take their texts.

    profiles: those of an encoder; else those of histories.
    """
    named = [*CONFIG.methods, *(one.name for study in CONFIG.studies for one in WORKFLOW.variants(study))]
    sources = {name: METHODS[source_of(name)] for name in named if METHODS[name].ranked_by == "rank_texts"}
    return either(name for name, source in sources.items() if source.writes_profiles == profiles)


# Every run that anything is computed for, and the phases behind them, by their folder names.
RUNS = {run: None for run in WORKFLOW.runs()}
RUNS |= {run: None for study in CONFIG.studies for run in WORKFLOW.runs(study=study)}
PHASES, DRAWS = {}, {}
for run in RUNS:
    name = source_of(run.method)
    if METHODS[name].ranked_by == "rank_texts":
        last = WORKFLOW.phase_of(run.dataset, name, run.models)
        for phase in (*last.all(), *(phase.weighed for phase in last.all())):
            PHASES[phase.id] = phase
            DRAWS |= {draw.name: draw for draw in (VALIDATION, *phase.draws())}
        if METHODS[name].writes_profiles:
            draw = METHODS[name].draw()
            DRAWS[draw.name] = draw


def phases_of(role):
    """A regular expression of the phases that train a model of this role."""
    return either(name for name, phase in PHASES.items() if phase.chain and phase.recipe.trains == role)


wildcard_constraints:
    dataset=either(DATASETS),
    method=either(METHODS),
    encoder=either(name for name, model in MODELS.items() if model.role == "encoder"),
    decoder=either(name for name, model in MODELS.items() if model.role == "decoder"),
    models=r"[A-Za-z0-9._-]+(\+[A-Za-z0-9._-]+)?",
    seed=r"\d+",
    phase=either(PHASES),
    draw=either(DRAWS),
    trial=r"\d+",


# Jobs find scripts and interpreter by environment, not by params: where the repository lies is no reason to run anything
# again. The library is that of this checkout, whichever one the environment was made for. The interpreter that runs
# Snakemake has the locked environment; containers and conda bring their own.
SCRIPTS = ROOT / "scripts"


def deployed(path):
    """The name of an environment; none where its path has braces, which Snakemake would take for wildcards."""
    if not re.search(r"[{}]", path):
        return path
    if workflow.deployment_settings.deployment_method:
        raise WorkflowError(f"--sdm: {path}: Snakemake takes braces for wildcards; move the checkout to a path without")
    return None


# `--sdm conda` makes the one, `--sdm apptainer` takes the other (envs/Containerfile); without them they are not looked at.
ENVIRONMENT = deployed(str(ROOT / "envs" / "jobs.yaml"))
IMAGE = deployed(os.environ.get("LANGPTUNE_IMAGE", str(ROOT / "envs" / "langptune.sif")))
if DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method:
    if "://" not in IMAGE and not Path(IMAGE).is_file():
        raise WorkflowError(f"{IMAGE}: no such image; build it (docs/ecosystem.md), or `export LANGPTUNE_IMAGE=file`")
PATHS = f"export LANGPTUNE={shlex.quote(str(ROOT))} PYTHONPATH={shlex.quote(str(ROOT / 'src'))} PYTHONSAFEPATH=1; "
if not workflow.deployment_settings.deployment_method:
    PATHS += f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; "
# Jobs may run where there is no network: only the prefetch rules may ask the hub, and only if the user lets them.
PATHS += 'export LANGPTUNE_HUB_OFFLINE="${HF_HUB_OFFLINE:-0}" HF_HUB_OFFLINE=1; '
# Snakemake formats the prefix: braces in a path are doubled, so that they come out as they are.
shell.prefix(PATHS.replace("{", "{{").replace("}", "}}"))


# Jobs, and Snakemake where it starts itself for them (on a cluster for all), find nothing in the working directory.
os.environ.update(places())

# All jobs of this run know it by this name, wherever they run: what the user must correct is tried once a run (stage.py).
os.environ.setdefault("LANGPTUNE_RUN", uuid.uuid4().hex)

# A job's own retries happen inside its allocation, which has no more memory or time than the attempt that failed: there
# the driver retries, with more of both.
RETRIES = 0 if workflow.remote_exec else CONFIG.training.retries


def restart_times(job):
    """How often a job that failed is started again: not at all where the user must correct something first.

    Snakemake asks this where a job has failed, and knows no exit status.
    """
    times = job.rule.restart_times
    if not times or workflow.remote_exec:
        return times
    name = f"{job.rule.name} (job {job.jobid}), attempt {job.attempt} of {times + 1}"
    if any(refused(file) for file in job.output):
        logger.info(f"{name}: ended with status 2, for its user to correct: it is not tried again")
        return 0
    if job.attempt <= times:
        logger.info(f"{name}: crashed or was stopped: it is tried again")
    return times


Job.restart_times = property(restart_times)
# --jobs, which a profile for a cluster sets; or a job inside an allocation.
ON_CLUSTER = workflow.resource_settings.nodes is not None or workflow.remote_exec
# A local run shares out the GPUs of this machine, one to a job (langptune.gpus); on a cluster SLURM does.
try:
    LOCAL_GPUS = [] if ON_CLUSTER else visible()
except UserError as error:
    raise WorkflowError(str(error)) from None
if LOCAL_GPUS and workflow.global_resources.get("gpu").value is None:
    workflow.global_resources["gpu"] = len(LOCAL_GPUS)


def cheap(w):
    """The group of a job that takes seconds and waits for the data alone: on a cluster several share an allocation
    (`group-components` of slurm/profile.yaml). None for others: were one of a group to fail, the outputs of all would go.
    """
    return "cheap" if ON_CLUSTER and METHODS[w.method].cheap else None


def needs(memory, minutes, model=None, per_million=0, per_billion=0, gpus=0, launch=None):
    """A rule's resources, by the size of its model, growing with the attempt; what a cluster makes of them stands in
    slurm/cluster.yaml.

    memory (MB) and minutes are those of a first attempt, for a model without weights; they and gpus may be functions of
    the wildcards. model: its name, a function of the wildcards. per_million, per_billion: MB and minutes more for so many
    weights. gpus: how many, of a job of one process. launch: the recipe's launch file, a function of the wildcards.
    """
    told = lambda value, w: value(w) if callable(value) else value

    def demand(w):
        weights = MODELS[model(w)].parameters if model else 0
        remote = model is not None and MODELS[model(w)].source.endpoint is not None
        shape = LAUNCHES[launch(w)] if launch and launch(w) else None
        machines, processes = (shape.machines, shape.processes) if shape else (1, 1)
        return Demand(
            memory=(told(memory, w) + per_million * weights / 1e6) * (processes // machines),
            minutes=told(minutes, w) + per_billion * weights / 1e9,
            weights=weights,
            gpus=0 if remote or (shape and shape.cpu) else told(gpus, w) * processes,
            machines=machines,
        )

    if not ON_CLUSTER:
        held = lambda w: math.ceil(demand(w).memory)
        return {"mem_mb": held, "gpu": lambda w: demand(w).gpus} if LOCAL_GPUS else {"mem_mb": held}

    def of(key):
        return lambda w, attempt: cluster_resources(CLUSTER, demand(w), attempt).get(key)

    return {key: of(key) for key in ("mem_mb", *KEYS)}


def decodes(model):
    """What jobs need whose decoder embeds texts; model: its name, a function of the wildcards."""
    return needs(memory=2000, minutes=20, model=model, per_million=6, per_billion=100, gpus=1)


def code(name, without=(), loads=()):
    """The content hash of a script and of all library modules that it imports, but those that it does not reach here, and
    of those that it loads by name: a param of its rule, so that editing either reruns the rule and nothing else."""
    return code_hash(SCRIPTS / f"{name}.py", without, loads)


def spec(**fields):
    """A script's typed spec as JSON; files come as plain strings or lists.

    Snakemake writes params into a script of its HTML report as they are: no title in them may end that script.
    """
    plain = lambda value: value.model_dump(mode="json") if hasattr(value, "model_dump") else str(value)
    return json.dumps(fields, default=plain, sort_keys=True).replace("<", "\\u003c")


class Names:
    """Stands for a job's input or output where only the settings of its spec are asked for: files by their keywords."""

    def __getattr__(self, name):
        return name


def settings(text):
    """A spec without what changes no result beyond rounding (docs/numerics.md): a digest."""
    neutral = ("threads", "batch_size", "cache", "max_usd")
    told = {key: value for key, value in json.loads(text).items() if key not in neutral}
    for entry in (told.get("encoder"), told.get("model")):
        if isinstance(entry, dict) and "endpoint" in entry.get("source", {}):
            kept = ("endpoint", "model", "limit_key", "prefill")
            entry["source"] = {key: value for key, value in entry["source"].items() if key in kept}
    if "recipe" in told:
        told["recipe"] = {key: value for key, value in told["recipe"].items() if key not in NEUTRAL}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


# A command line of a large grid, with a file for each run, would be refused by Linux (128 KiB an argument).
LONGEST_SPEC = 60_000


def specified(make):
    """The params of a rule whose script takes a spec, made by a function of wildcards and of input or output.

    Snakemake does not compare a param that comes from input or output with that of the last run: a changed setting would
    rerun nothing. So the settings are a param of their own, a function of the wildcards alone.
    """
    files = [name for name in inspect.signature(make).parameters if name != "w"]

    @functools.wraps(make)
    def fitting(*args, **kwargs):
        text = make(*args, **kwargs)
        if len(text) < LONGEST_SPEC:
            return text
        file = Path(".snakemake") / "specs" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
        if not file.exists():
            with whole(file) as part:
                part.write_text(text)
        return str(file)

    return {"spec": fitting, "settings": lambda w: settings(make(w, **dict.fromkeys(files, Names())))}


def bare(entry):
    """A registry entry without what only people read: correcting a title or an address is no reason to compute."""
    neutral = {"title": "", "url": "", "prompt": "", "published": {}}
    return entry.model_copy(update={key: value for key, value in neutral.items() if hasattr(entry, key)})


def weights(name):
    """What materialising a model depends on: neither limits nor prefixes, which apply when it is used."""
    limits = {"context": 1, "max_prompt_tokens": 1, "max_tokens": 1}
    neutral = {**limits, "query_prefix": "", "item_prefix": "", "padding": "right"}
    entry = bare(MODELS[name])
    neutral["source"] = entry.source.terms_left_out
    return entry.model_copy(update={key: value for key, value in neutral.items() if hasattr(entry, key)})


# Answers of endpoints and judges: what was paid for stays, whatever else is removed (docs/judge.md).
ANSWERS = f"{RESULTS}/answers"


def usage(name):
    """What using a materialised model depends on, beside its folder."""
    return bare(MODELS[name]).model_copy(update={"sha256": {}, "licence": ""})


def raw_folder(dataset):
    """Where the downloaded files of a dataset lie; nothing where it needs no download."""
    source = DATASETS[dataset].source
    return [f"{CONFIG.raw_dir}/{source.slug}"] if source.remote else []


# Downloads by folder name, each with one dataset that needs it: several protocols may share the files.
DOWNLOADS = {DATASETS[name].source.slug: name for name in CONFIG.datasets if DATASETS[name].source.remote}


def source_alone(dataset):
    """What a download depends on: not the protocol, nor how the files are read."""
    entry = DATASETS[dataset]
    protocol = {"name": "leave-one-out"}
    return type(entry).model_validate(
        {
            **{key: getattr(entry, key) for key in ("reader", "licence", "sha256")},
            "title": "",
            "source": entry.source.model_dump(),
            "item_text": "",
            "prompt": "",
            "protocol": protocol,
        }
    )


def limits_of(dataset):
    """The token limits of a dataset's protocol, or None."""
    return getattr(DATASETS[dataset].protocol, "limits", None)


def limit_models(dataset):
    """The models whose tokenizers count a dataset's texts, as inputs by role."""
    limits = limits_of(dataset)
    return {role: model_folder(getattr(limits, role)) for role in ("encoder", "decoder") if limits}


def limit_spec(dataset):
    """What counting tokens depends on."""
    if not (limits := limits_of(dataset)):
        return {}
    return {
        "encoder": usage(limits.encoder),
        "encoder_in": model_folder(limits.encoder),
        "decoder": usage(limits.decoder),
        "decoder_in": model_folder(limits.decoder),
        "prompt": WORKFLOW.prompts[DATASETS[dataset].prompt],
    }


def unreached(dataset):
    """What preparing a dataset imports but does not run: without limits no text is counted."""
    return () if limits_of(dataset) else ("langptune.prompts", "langptune.models.load")


def raw_files(dataset):
    """Name, size and time of the raw files where a dataset lies in a folder of the user's, so that a change is seen."""
    source = DATASETS[dataset].source
    folder = ROOT / str(source.folder) / source.path
    if source.folder is None or not folder.is_dir():
        return []
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sorted([str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns] for p in files)


def data_files(*names):
    """Prepared files of the rule's dataset, as keywords `<name>_file` (plain `items` is reserved by Snakemake)."""
    return {f"{name}_file": f"{RESULTS}/{{dataset}}/data/{name}.parquet" for name in names}


# Phases: training, profiles, ranks

PHASE = LAYOUT.phase


# A plan (scripts/plan.py) lists one shard in place of all, which differ in a number alone: a large grid has tens of
# thousands of them, and Snakemake spends milliseconds on each.
LISTED_SHARDS = 1 if "LANGPTUNE_PLAN" in os.environ else CONFIG.generation.shards


def shards_of(profiles):
    """The shards of a file of profiles."""
    shards = CONFIG.generation.shards
    return [f"{profiles.removesuffix('.parquet')}/shards/{at}-of-{shards}.parquet" for at in range(1, shards + 1)]


def taste_field(dataset):
    """The item field that lists genres or categories, where a dataset has one."""
    return next(iter(DATASETS[dataset].lists), None)


def by_phase(function, of=lambda phase: phase):
    """A file function of this section as an input function of a rule whose output names the phase."""
    return lambda w: function(w.dataset, w.models, w.seed, of(PHASES[w.phase]))


def by_method(function):
    """A file function of this section as an input function of a rule whose output names the method."""
    return lambda w: function(
        w.dataset, models_in(w), w.seed, WORKFLOW.phase_of(w.dataset, source_of(w.method), models_in(w))
    )


def models_in(w):
    """The {models} segment of a rule that has encoder and decoder apart."""
    return f"{w.encoder}+{w.decoder}" if hasattr(w, "encoder") else w.decoder


def profiles_in(w):
    """The test profiles that a method is ranked by."""
    return LAYOUT.run_profiles(run_in(w))


def reference_in(w):
    """The test profiles that a method's are set against."""
    return LAYOUT.run_profiles(LAYOUT.reference_of(run_in(w)))


def run_in(w):
    """The run of a rule whose output names method, models and seed."""
    return Run(w.dataset, w.method, models_in(w), int(w.seed))


def answers_kept(encoder):
    """Where an endpoint's answers are kept; nothing for a model with files."""
    remote = MODELS[encoder].source.endpoint is not None
    return {"cache": ANSWERS, "max_usd": CONFIG.generation.max_usd} if remote else {}


def unasked(encoder):
    """What writing profiles imports but does not run: a model with files needs no client."""
    return CLIENT if MODELS[encoder].source.endpoint is None else ()


def training_profiles(w, split):
    """The profiles of one split that a contrastive phase reads; nothing where it reads histories."""
    phase = PHASES[w.phase]
    return [profiles_of(w.dataset, w.models, w.seed, phase, draw) for draw in phase.draws() if draw.split == split]


def card_facts(w, role):
    """What a model card says of data and base model."""
    model = MODELS[encoder_of(w.models) if role == "encoder" else decoder_of(w.models)]
    entry, source = DATASETS[w.dataset], model.source
    return {
        "base": source.hub or source.package or source.folder,
        "licence": model.licence,
        "phase": w.phase,
        "dataset": f"{entry.title} ({entry.licence})",
    }


def accelerate(recipe):
    """How a training script is started: by Python, or in several processes by a file of config/accelerate."""
    if recipe.launch is None:
        return "python"
    file = f'"$LANGPTUNE"/config/accelerate/{shlex.quote(recipe.launch)}'
    return f'python "$LANGPTUNE/scripts/launch.py" --config-file {file}'


def rank_spec(w, input, output, source, profiles=None, **extra):
    """The spec of rank_texts.py; the parts that all its rules share."""
    return spec(
        source=source,
        decoder=usage(w.decoder),
        decoder_in=input.decoder,
        vectors_in=input.vectors,
        **weight_spec(LAYOUT.run_weight(run_in(w)), input),
        items_in=input.items_file,
        sessions_in=input.sessions_file,
        evaluation_in=input.evaluation_file,
        profiles_in=profiles,
        ranks_out=output.ranks,
        **extra,
    )


def changed(w):
    """What a control changes of the texts of the method that it names; nothing for other methods."""
    if not (change := METHODS[w.method].changes()):
        return {}
    return {"change": change, **({"seed": int(w.seed)} if WORKFLOW.shuffled(w.method) else {})}


def shuffle_of(w):
    """The seed by which a method's profiles are dealt to other users; None where they are not."""
    return int(w.seed) if WORKFLOW.shuffled(w.method) else None


def decoder_inputs():
    """What every text is ranked with: the method's decoder, the catalogue as it embeds it, sessions and sample."""
    return {
        **data_files("items", "sessions", "evaluation"),
        "decoder": by_method(decoder_folder),
        "vectors": by_method(vectors_of),
        "popularity": lambda w: weight_file(LAYOUT.run_weight(run_in(w))),
    }


def weighing_profiles(w):
    """The validation profiles by which a decoder's weight of popularity is chosen; nothing where histories are."""
    phase = PHASES[w.phase]
    return profiles_of(w.dataset, w.models, w.seed, phase, VALIDATION) if phase.weighed_by == "profiles" else []


def weighing_history(phase):
    """How many items of a history a decoder's weight of popularity is chosen by: as many as it was trained on."""
    return (phase.recipe.history_items if phase.chain else None) or phase.history_items


def weight_file(told):
    """The file of a weight of popularity as an input; nothing where it is a number of the config."""
    return told if isinstance(told, str) else []


def weight_spec(told, input):
    """The fields of a spec that say how much popularity weighs in scores."""
    return {"popularity_in": input.popularity} if isinstance(told, str) else {"weight": told}


def baseline_spec(w, input, output, mode, seed, **extra):
    """The spec of fit_baseline.py; the parts that trials and final runs share."""
    return spec(
        mode=mode,
        baseline=METHODS[w.method].kind,
        keys=METHODS[w.method].keys(),
        seed=seed,
        items_in=input.items_file,
        sessions_in=input.sessions_file,
        curve_out=output.curve,
        **extra,
    )


# Comparison

TABLES = {
    "table_csv": "table.csv",
    "table_long": "table_long.csv",
    "table_md": "table.md",
    "table_html": "table.html",
    "table_tex": "table.tex",
    "comparisons": "comparisons.csv",
    "contrasts": "contrasts.csv",
    "gains": "gains.parquet",
}
try:
    FIGURES = comparison_figures.drawn(
        {
            "published": any(WORKFLOW.published_of(dataset) for dataset in CONFIG.datasets),
            "contrasts": bool(CONFIG.comparison.contrasts),
        }
    )
except UserError as error:
    raise WorkflowError(str(error)) from None


def rules_of(kind):
    """The final files of one kind, `tables` or `figures`, for all datasets of the config."""
    if kind == "tables":
        return expand(f"{RESULTS}/{{dataset}}/comparison/{{name}}", dataset=CONFIG.datasets, name=TABLES.values())
    names = [f"comparison/{figure}.{end}" for figure in FIGURES for end in ("png", "pdf")]
    names += ["data/card.md", "data/funnel.png", "data/funnel.pdf"]
    names += [f"studies/{study}.{end}" for study in CONFIG.studies for end in ("csv", "png", "pdf")]
    if any(METHODS[name].writes_profiles for name in CONFIG.methods):
        names.append("comparison/profiles.html")
    return expand(f"{RESULTS}/{{dataset}}/{{name}}", dataset=CONFIG.datasets, name=names)


def run_entry(run):
    """What the comparison must know of a run."""
    method = METHODS[run.method]
    return {
        "method": run.method,
        "models": run.models,
        "seed": run.seed,
        "title": method.title,
        "group": method.group,
        "note": method.note,
        "trials": method.trials,
        **table_weight(run),
        "metrics_path": metrics_of(run),
    }


def table_weight(run):
    """What a table says of the weight of popularity in a run's scores; nothing where it ranks by no text."""
    if METHODS[run.method].ranked_by != "rank_texts":
        return {}
    told = LAYOUT.run_weight(run)
    return {"weight_path": told} if isinstance(told, str) else {"weight": told}


def facts(dataset):
    """The sentences above a table that say what was compared, and how."""
    return [
        f"Protocol {DATASETS[dataset].protocol.name}; full-catalogue ranking, items that the user has already seen left "
        f"out; test sessions drawn with seed {CONFIG.sample.seed} where not all are compared.",
        f"Selected on validation: hyperparameters with seed {CONFIG.seeds[0]}, epochs with each run's own seed.",
        *training_facts(dataset),
        *published_facts(dataset),
    ]


def published_facts(dataset):
    """Where published numbers beside ours come from, where the config asks for them."""
    if CONFIG.comparison.published is None:
        return []
    numbers = WORKFLOW.published_of(dataset).values()
    if not numbers:
        return [f"{CONFIG.comparison.published} has no number for this dataset and these methods, models and metrics."]
    sources = "; ".join(sorted({number.source for number in numbers}))
    return [f"Published: {sources}, on {next(iter(numbers)).dataset} as it was prepared and drawn there."]


def training_facts(dataset):
    """What trained methods saw, where a comparison has some."""
    if not phase_curves(dataset):
        return []
    train, val = (f"{size} sampled" if size else "all" for size in (CONFIG.sample.train, CONFIG.sample.val))
    drawn = {}
    for recipe in trained_recipes(dataset):
        texts = getattr(recipe, "texts", None)
        if texts == "mixed" and recipe.sessions == "all" and train != "all":
            drawn.setdefault(f"all (histories) and {train} (profiles)", []).append(recipe.title)
        else:
            drawn.setdefault("all" if recipe.sessions == "all" else train, []).append(recipe.title)
    told = "; ".join(f"{sessions} for {', '.join(dict.fromkeys(titles))}" for sessions, titles in drawn.items())
    return [
        f"Train sessions that phases draw from: {told}. They select by NDCG on {val} validation sessions. The RecBole "
        "baselines see all sessions of both."
    ]


def trained_recipes(dataset):
    """The recipes that methods of a comparison train by, as they use them."""
    runs = [run for run in WORKFLOW.runs(dataset) if has_phases(run)]
    return [recipe for run in runs for _, recipe in LAYOUT.run_phase(run).chain]


def has_phases(run):
    """Whether a run has phases of its own, which a control has not."""
    return METHODS[run.method].ranked_by == "rank_texts" and not METHODS[run.method].changes()


def comparison_spec(dataset, output, **extra):
    """The spec of compare.py."""
    return spec(
        dataset=dataset,
        title=DATASETS[dataset].title,
        facts=facts(dataset),
        runs=[run_entry(run) for run in WORKFLOW.runs(dataset)],
        published=[
            {"method": method, "models": models, "metric": metric, "value": number.value}
            for (method, models, metric), number in WORKFLOW.published_of(dataset).items()
        ],
        reference=WORKFLOW.reference,
        contrasts=[{"name": name, **told.model_dump()} for name, told in CONFIG.comparison.contrasts.items()],
        metrics=CONFIG.comparison.metrics,
        main_metric=CONFIG.comparison.main_metric,
        sessions_in=data_file(dataset, "sessions"),
        bootstrap=CONFIG.comparison.bootstrap,
        confidence=CONFIG.comparison.confidence,
        seed=CONFIG.comparison.seed,
        **{f"{key}_out": getattr(output, key) for key in TABLES},
        **extra,
    )


TEXTS = {"profiles": "profiles", "history": "histories", "mixed": "histories and profiles"}


def phase_curves(dataset):
    """The curve of every trained phase of the comparison: its key, the same for all seeds, and the figure's title."""
    out = {}
    for run in WORKFLOW.runs(dataset):
        if not has_phases(run):
            continue
        for phase in WORKFLOW.phase_of(dataset, run.method, run.models).all()[1:]:
            titles = [recipe.title for _, recipe in phase.chain]
            # Five iterations of two recipes would fill the page with their names.
            title = ", then ".join(titles if len(titles) <= 4 else dict.fromkeys(titles))
            title += f", phase {len(titles)}" if len(titles) > 4 else ""
            texts = getattr(phase.recipe, "texts", "profiles")
            title += "" if f" on {TEXTS[texts]}" in titles[-1] else f" on {TEXTS[texts]}"
            models = run.models if phase.prompt is not None else decoder_of(run.models)
            several = len(CONFIG.decoders) * (1 if phase.prompt is None else len(CONFIG.encoders)) > 1
            title += f" ({models})" if several else ""
            path = f"{phase_folder(dataset, models, run.seed, phase)}/curve.jsonl"
            out[path] = {"key": f"{models}/{phase.id}", "title": title}
    phases = {named["key"]: named["title"] for named in out.values()}
    for named in out.values():
        # Phases of the same recipes may differ in what their profiles are (length, history).
        if list(phases.values()).count(named["title"]) > 1:
            named["title"] += f", {named['key'].rpartition('/')[2]}"
    return out


def figure_inputs(w):
    """The files that a figure of the comparison reads, by what its entry calls them, with `_in` behind it."""
    comparison = f"{RESULTS}/{w.dataset}/comparison"
    files = {
        "table": f"{comparison}/table_long.csv",
        "gains": f"{comparison}/gains.parquet",
        "contrasts": f"{comparison}/contrasts.csv",
        "items": data_file(w.dataset, "items"),
        "metrics": [metrics_of(run) for run in WORKFLOW.runs(w.dataset)],
        "curves": list(curves(w.dataset)),
        "phases": list(phase_curves(w.dataset)),
    }
    return {f"{name}_in": files[name] for name in FIGURES[w.figure].reads}


def plot_spec(w, input, output):
    """The spec of plot.py, with what the figure reads and nothing else."""
    reads = FIGURES[w.figure].reads
    curves_of = {"curves": curves, "phases": phase_curves}
    return spec(
        **{f"{name}_in": getattr(input, f"{name}_in") for name in reads if name not in ("metrics", *curves_of)},
        **{
            name: [{"path": path, **named} for path, named in curves_of[name](w.dataset).items()]
            for name in reads
            if name in curves_of
        },
        runs=[run_entry(run) for run in WORKFLOW.runs(w.dataset)],
        reference=WORKFLOW.reference,
        main_metric=CONFIG.comparison.main_metric,
        confidence=CONFIG.comparison.confidence,
        second_metric="recall@10" if "recall@10" in CONFIG.comparison.metrics else None,
        figures_out=[output.figure, output.pdf],
    )


def profile_columns(dataset):
    """Of every profile method's first seed: title, profiles and ranks, to be laid side by side."""
    out = []
    for run in WORKFLOW.runs(dataset):
        method = METHODS[run.method]
        if method.writes_profiles and method.best_of == 1 and run.seed == CONFIG.seeds[0]:
            several = len(CONFIG.encoders) * len(CONFIG.decoders) > 1
            out.append(
                {
                    "title": f"{method.title} ({run.models})" if several else method.title,
                    "profiles": LAYOUT.run_profiles(run),
                    "ranks": ranks_of(run),
                }
            )
    return out


def encoder_curves(run):
    """The curves of the phases that trained a run's encoder, and how many profiles a batch of each wrote."""
    if not METHODS[source_of(run.method)].writes_profiles:
        return []
    trained = [phase for phase in LAYOUT.run_phase(run).all()[1:] if phase.recipe.trains == "encoder"]
    return [
        {
            "path": f"{phase_folder(run.dataset, run.models, run.seed, phase)}/curve.jsonl",
            "profiles": phase.recipe.sessions_per_batch * phase.recipe.samples,
        }
        for phase in trained
    ]


def study_spec(dataset, study, output):
    """The spec of study.py."""
    told = CONFIG.studies[study]
    by_name = {one.name: one for one in WORKFLOW.variants(study)}
    return spec(
        title=told.title,
        key=told.key,
        runs=[
            {
                **run_entry(run),
                "of": by_name[run.method].of,
                "label": METHODS[by_name[run.method].of].title,
                "value": by_name[run.method].value,
                "setting": by_name[run.method].setting,
                "curves": encoder_curves(run),
            }
            for run in WORKFLOW.runs(dataset, study)
        ],
        metric=CONFIG.comparison.main_metric,
        bootstrap=CONFIG.comparison.bootstrap,
        confidence=CONFIG.comparison.confidence,
        seed=CONFIG.comparison.seed,
        table_out=output.table,
        figure_out=[output.figure, output.pdf],
    )


def curves(dataset):
    """The learning curves of the runs that have one: their key, the same for all seeds, and the figure's title."""
    return {
        f"{RESULTS}/{run.folder}/curve.jsonl": {"key": run.method, "title": METHODS[run.method].title}
        for run in WORKFLOW.runs(dataset)
        if METHODS[run.method].curve
    }


# Interpretability

MEASURED = f"{RESULTS}/{{dataset}}/{{method}}/{{encoder}}+{{decoder}}/seed{{seed}}/interpretability"
READABLE = either(WORKFLOW.readable)
MEASURES = ["measures", "simulation", "steering"]
INTERPRETED = {
    "table_csv": "table.csv",
    "table_md": "table.md",
    "judges": "judges.csv",
    "tradeoff_pdf": "tradeoff.pdf",
    "steering_pdf": "steering.pdf",
}


def profile_spec(w, input, **extra):
    """The fields that every spec over profiles shares; also the rules' inputs come by these names."""
    told = CONFIG.interpretability
    return spec(
        items_in=input.items_file,
        sessions_in=input.sessions_file,
        evaluation_in=input.evaluation_file,
        profiles_in=input.profiles,
        history_items=METHODS[source_of(w.method)].history_items,
        shuffle=shuffle_of(w),
        sessions=told.sessions,
        seed=told.seed,
        taste_field=taste_field(w.dataset),
        **extra,
    )


def readable_runs(dataset):
    """The runs of a dataset whose profiles are measured, the reference's first."""
    order = {name: at for at, name in enumerate(WORKFLOW.readable)}
    runs = [run for run in WORKFLOW.runs(dataset) if run.method in order]
    return sorted(runs, key=lambda run: order[run.method])


def measured(run, name):
    """A file of measures of one run."""
    return f"{RESULTS}/{run.folder}/interpretability/{name}.parquet"


def measures_of(run):
    """All files of measures of one run, the verdicts on it included."""
    return [*(measured(run, name) for name in (*MEASURES, "claims")), *judged(run).values()]


def judged(run):
    """The verdicts on a run by judge; none where its profiles are those of the reference itself."""
    if not WORKFLOW.shuffled(run.method) and LAYOUT.run_profiles(run) == LAYOUT.run_profiles(LAYOUT.reference_of(run)):
        return {}
    return {judge: f"{RESULTS}/{run.folder}/judge/{judge}.parquet" for judge in CONFIG.interpretability.judges}


def interpretability_facts():
    """Which models measured, in a sentence."""
    verifier, reader = MODELS[WORKFLOW.verifier], MODELS[WORKFLOW.reader]
    return [
        f"Claims about persons and themes are verified by {verifier.title}; the reader of the forward simulation is "
        f"{reader.title}, untrained."
    ]


def example_runs(dataset):
    """The runs on the page of examples: of every method the first seed, with the first models."""
    return list({run.method: run for run in reversed(readable_runs(dataset))}.values())[::-1]


def interpretations():
    """The final files of all datasets; asked for only where somebody wants them, for not every run has profiles."""
    if CONFIG.interpretability.reference not in WORKFLOW.readable:
        told = f"interpretability.reference: '{CONFIG.interpretability.reference}' is not run here; name one of "
        raise WorkflowError(printable(told + (", ".join(WORKFLOW.readable) or "(this run has no profiles)")))
    names = [*INTERPRETED.values(), "table.html", "tradeoff.png", "steering.png", "examples.html"]
    return expand(f"{RESULTS}/{{dataset}}/interpretability/{{name}}", dataset=CONFIG.datasets, name=names)


# Judges

JUDGES = WORKFLOW.judges


def judge_model(w):
    """The model behind a judge."""
    return JUDGES[w.judge].model


def judge_threads(w):
    """A local model computes, an endpoint is waited for."""
    return 1 if MODELS[judge_model(w)].source.endpoint is not None else CONFIG.generation.threads


# Cost


def results_of(dataset):
    """Every final file of a dataset: what all of its jobs were for."""
    final = [file for kind in ("tables", "figures") for file in rules_of(kind)]
    return [file for file in final if file.startswith(f"{RESULTS}/{dataset}/")]


def model_names(dataset):
    """Where each model comes from -> its name: specs hold the one, tables the other."""
    names = [*CONFIG.encoders, *CONFIG.decoders]
    if limits := limits_of(dataset):
        names = [limits.encoder, limits.decoder, *names]
    return {identity(MODELS[name].model_dump(mode="json")): name for name in names}
