"""LangPTune benchmark: table of contents. What a person asks for by name stands at the end."""

from snakemake.utils import min_version

min_version("9.27")

# A config file given on the command line replaces the default one; it is not laid over it.
if not workflow.overwrite_configfiles:

    configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


# Used with `--sdm apptainer` only; envs/ has the recipe that agrees with the lock.
container: "docker://python:3.11-slim-bookworm"


include: "workflow/rules/common.smk"
include: "workflow/rules/models.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/profiles.smk"
include: "workflow/rules/training.smk"
include: "workflow/rules/ranks.smk"
include: "workflow/rules/baselines.smk"
include: "workflow/rules/comparison.smk"
include: "workflow/rules/cost.smk"
include: "workflow/rules/judge.smk"
include: "workflow/rules/interpretability.smk"
include: "workflow/rules/survey.smk"


localrules:
    all,
    prefetch,
    data,
    baselines,
    zeroshot,
    langptune,
    studies,
    interpretability,
    tables,
    figures,
    partial,


onstart:
    try:
        # Snakemake and SLURM follow links when they write there.
        for folder in (BENCHMARKS, *(["results/slurm_logs"] if ON_CLUSTER else [])):
            own_folder(folder)
        # On a cluster only, and only in the process that submits: see slurm.py.
        if workflow.executor_plugin.name == "slurm":
            guard(Path(workflow.workdir_init), lambda line: print(f"cluster: {line}", file=sys.stderr))
    except UserError as error:
        raise WorkflowError(str(error)) from None


rule all:
    default_target: True
    input:
        rules_of("tables"),
        rules_of("figures"),
        COSTS,
        # Named although the tables need them anyway: Snakemake does not miss what it only passed through, and a deleted
        # method would stay deleted.
        [file for run in WORKFLOW.runs() for file in (ranks_of(run), metrics_of(run))],
        list({curve: None for dataset in CONFIG.datasets for curve in phase_curves(dataset)}),


rule prefetch:
    """Bring all models and raw data of the config to local folders (the only step that may need the network)."""
    input:
        [model_folder(name) for name in CONFIG.encoders + CONFIG.decoders],
        [folder for name in CONFIG.datasets for folder in raw_folder(name)],
        [folder for name in CONFIG.datasets for folder in limit_models(name).values()],
        [model_folder(name) for name in WORKFLOW.interpreters],


rule data:
    """Items and sessions of all datasets of the config."""
    input:
        expand(
            f"{RESULTS}/{{dataset}}/data/{{file}}",
            dataset=CONFIG.datasets,
            file=["sessions.parquet", "card.md", "funnel.png"],
        ),


rule baselines:
    """Ranks of every baseline."""
    input:
        [ranks_of(run) for run in WORKFLOW.runs() if METHODS[run.method].group == "baselines"],


rule zeroshot:
    """Ranks of zero-shot profiles and of the text controls."""
    input:
        [
            ranks_of(run)
            for run in WORKFLOW.runs()
            if not getattr(METHODS[source_of(run.method)], "phases", [])
            and METHODS[run.method].group in ("profiles", "text controls")
        ],


rule langptune:
    """Every trained phase of the config, with its curve."""
    input:
        list({curve: None for dataset in CONFIG.datasets for curve in phase_curves(dataset)}),


rule studies:
    """The studies of the config: a table and a figure each."""
    input:
        expand(
            f"{RESULTS}/{{dataset}}/studies/{{study}}.{{end}}",
            dataset=CONFIG.datasets,
            study=CONFIG.studies,
            end=["csv", "png", "pdf"],
        ),


rule interpretability:
    """What profiles are like: table, figures and examples of all datasets."""
    input:
        lambda w: interpretations(),
        # Named as in `all`: what is only passed through would stay deleted.
        lambda w: [file for dataset in CONFIG.datasets for run in readable_runs(dataset) for file in measures_of(run)],


rule tables:
    """Tables of all datasets."""
    input:
        rules_of("tables"),
        [metrics_of(run) for run in WORKFLOW.runs()],


rule figures:
    """Figures of all datasets, and what everything took."""
    input:
        rules_of("figures"),
        COSTS,


rule partial:
    """Tables of what exists so far; what is missing is marked."""
    input:
        expand(f"{RESULTS}/{{dataset}}/partial/table.md", dataset=CONFIG.datasets),
