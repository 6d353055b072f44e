"""Comparison: per-session metrics of every run, then one table, tests and figures per dataset."""

TABLES = {
    "table_csv": "table.csv",
    "table_long": "table_long.csv",
    "table_md": "table.md",
    "table_tex": "table.tex",
    "comparisons": "comparisons.csv",
    "gains": "gains.parquet",
}
FIGURES = ["means", "gains", "ranks", "curves"]


def rules_of(kind):
    """The final files of one kind, `tables` or `figures`, for all datasets of the config."""
    names = (
        TABLES.values()
        if kind == "tables"
        else [f"{figure}.{end}" for figure in FIGURES for end in ("png", "pdf")]
    )
    return expand(f"{RESULTS}/{{dataset}}/comparison/{{name}}", dataset=CONFIG.datasets, name=names)


def metrics_of(run):
    """The per-session metrics of one run."""
    return f"{RESULTS}/{run.folder}/metrics.parquet"


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
        "trials": len(method.grid()) if getattr(method, "tune", None) else 0,
        "metrics_path": metrics_of(run),
    }


def facts(dataset):
    """The sentences above a table that say what was compared, and how."""
    entry, sample = DATASETS[dataset], CONFIG.sample
    who = (
        "all test sessions"
        if sample.test is None
        else f"at most {sample.test} test sessions, drawn with seed {sample.seed}"
    )
    return [
        f"Protocol {entry.protocol.name}; full-catalogue ranking, items that the user has already seen left out; {who}.",
        "Hyperparameters and epochs were selected on validation with seed "
        f"{CONFIG.seeds[0]}; 'trials' is the number of points tried. Methods that draw nothing run one seed.",
    ]


def comparison_spec(dataset, output, **extra):
    """The spec of compare.py."""
    return spec(
        dataset=dataset,
        title=DATASETS[dataset].title,
        facts=facts(dataset),
        runs=[run_entry(run) for run in WORKFLOW.runs(dataset)],
        reference=CONFIG.comparison.reference,
        metrics=CONFIG.comparison.metrics,
        main_metric=CONFIG.comparison.main_metric,
        bootstrap=CONFIG.comparison.bootstrap,
        confidence=CONFIG.comparison.confidence,
        seed=CONFIG.comparison.seed,
        **{f"{key}_out": getattr(output, key) for key in TABLES},
        **extra,
    )


def curves(dataset):
    """The learning curves of the runs that have one."""
    return {
        f"{RESULTS}/{run.folder}/curve.jsonl": METHODS[run.method].title
        for run in WORKFLOW.runs(dataset)
        if isinstance(METHODS[run.method], kinds.RecBoleMethod)
    }


rule evaluate:
    input:
        **data_files("items", "sessions", "evaluation"),
        ranks=f"{RESULTS}/{{dataset}}/{{method}}/{{models}}/seed{{seed}}/ranks.parquet",
    output:
        metrics=f"{RESULTS}/{{dataset}}/{{method}}/{{models}}/seed{{seed}}/metrics.parquet",
    log:
        f"{LOGS}/evaluate/{{dataset}}-{{method}}-{{models}}-seed{{seed}}.log",
    resources:
        mem_mb=500,
    params:
        spec=lambda w, input, output: spec(
            ranks_in=input.ranks,
            evaluation_in=input.evaluation_file,
            sessions_in=input.sessions_file,
            items_in=input.items_file,
            metrics=CONFIG.comparison.metrics,
            metrics_out=output.metrics,
        ),
        code=code("evaluate"),
    shell:
        "{PYTHON} {SCRIPTS}/evaluate.py --spec {params.spec:q} --log {log:q}"


rule compare:
    input:
        metrics=lambda w: [metrics_of(run) for run in WORKFLOW.runs(w.dataset)],
    output:
        table_md=report(
            f"{RESULTS}/{{dataset}}/comparison/table.md", caption="../report/table.rst", category="{dataset}"
        ),
        table_csv=report(
            f"{RESULTS}/{{dataset}}/comparison/table.csv",
            caption="../report/table.rst",
            category="{dataset}",
        ),
        comparisons=report(
            f"{RESULTS}/{{dataset}}/comparison/comparisons.csv",
            caption="../report/comparisons.rst",
            category="{dataset}",
        ),
        table_tex=f"{RESULTS}/{{dataset}}/comparison/table.tex",
        table_long=f"{RESULTS}/{{dataset}}/comparison/table_long.csv",
        gains=f"{RESULTS}/{{dataset}}/comparison/gains.parquet",
    log:
        f"{LOGS}/compare/{{dataset}}.log",
    resources:
        mem_mb=1000,
    params:
        spec=lambda w, output: comparison_spec(w.dataset, output),
        code=code("compare"),
    shell:
        "{PYTHON} {SCRIPTS}/compare.py --spec {params.spec:q} --log {log:q}"


rule plot:
    input:
        **data_files("items"),
        table=f"{RESULTS}/{{dataset}}/comparison/table_long.csv",
        gains=f"{RESULTS}/{{dataset}}/comparison/gains.parquet",
        metrics=lambda w: [metrics_of(run) for run in WORKFLOW.runs(w.dataset)],
        curves=lambda w: list(curves(w.dataset)),
    output:
        means=report(
            f"{RESULTS}/{{dataset}}/comparison/means.png",
            caption="../report/means.rst",
            category="{dataset}",
        ),
        gains=report(
            f"{RESULTS}/{{dataset}}/comparison/gains.png",
            caption="../report/gains.rst",
            category="{dataset}",
        ),
        ranks=report(
            f"{RESULTS}/{{dataset}}/comparison/ranks.png",
            caption="../report/ranks.rst",
            category="{dataset}",
        ),
        curves=report(
            f"{RESULTS}/{{dataset}}/comparison/curves.png",
            caption="../report/curves.rst",
            category="{dataset}",
        ),
        pdf=expand(f"{RESULTS}/{{dataset}}/comparison/{{name}}.pdf", name=FIGURES, allow_missing=True),
    log:
        f"{LOGS}/plot/{{dataset}}.log",
    resources:
        mem_mb=1000,
    params:
        spec=lambda w, input, output: spec(
            table_in=input.table,
            gains_in=input.gains,
            items_in=input.items_file,
            runs=[run_entry(run) for run in WORKFLOW.runs(w.dataset)],
            curves=[{"title": title, "path": path} for path, title in curves(w.dataset).items()],
            reference=CONFIG.comparison.reference,
            main_metric=CONFIG.comparison.main_metric,
            **{
                f"{name}_out": [getattr(output, name), getattr(output, name).replace(".png", ".pdf")]
                for name in FIGURES
            },
        ),
        code=code("plot"),
    shell:
        "{PYTHON} {SCRIPTS}/plot.py --spec {params.spec:q} --log {log:q}"


rule compare_partial:
    # No inputs, and outputs of its own: it takes what there is, now, and never passes for the whole.
    output:
        **{name: f"{RESULTS}/{{dataset}}/partial/{file}" for name, file in TABLES.items()},
    log:
        f"{LOGS}/compare_partial/{{dataset}}.log",
    resources:
        mem_mb=1000,
    params:
        spec=lambda w, output: comparison_spec(w.dataset, output, allow_missing=True),
        code=code("compare"),
    shell:
        "{PYTHON} {SCRIPTS}/compare.py --spec {params.spec:q} --log {log:q}"
