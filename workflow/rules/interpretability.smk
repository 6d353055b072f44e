"""Interpretability: measures of the profiles of each run, and one table, figures and examples per dataset."""


localrules:
    interpret,
    show_examples,


MEASURED = f"{PROFILED}/interpretability"
INTERPRETED = f"{RESULTS}/{{dataset}}/interpretability"
READABLE = either(PROJECT.workflow.readable)
MEASURE_PROFILES = stage("measure_profiles", by=BY_PROFILED)
SIMULATE = stage("simulate", by=BY_PROFILED)
STEER = stage("steer", by=BY_PROFILED)
INTERPRET = stage("interpret", by="{dataset}")
SHOW_EXAMPLES = stage("show_examples", by="{dataset}")


rule measure_profiles:
    input:
        **tables("items", "sessions", "users", "evaluation"),
        profiles_in=lambda w: job(w).profiles,
        encoder=lambda w: job(w).encoder_folder,
        verifier_in=lambda w: PROJECT.paths.model_folder(PROJECT.workflow.verifier),
    output:
        measures_out=f"{MEASURED}/measures.parquet",
        claims_out=f"{MEASURED}/claims.parquet",
    log:
        MEASURE_PROFILES.log,
    benchmark:
        MEASURE_PROFILES.benchmark
    wildcard_constraints:
        method=READABLE,
    conda:
        ENVIRONMENT
    threads: MEASURE_PROFILES.threads
    resources:
        **MEASURE_PROFILES.resources,
    params:
        **MEASURE_PROFILES.params,
    shell:
        'python "$LANGPTUNE/scripts/measure_profiles.py" --spec {params.spec:q} --log {log:q}'


rule simulate:
    input:
        **tables("items", "sessions", "evaluation"),
        profiles_in=lambda w: job(w).profiles,
        reader_in=lambda w: PROJECT.paths.model_folder(PROJECT.workflow.reader),
    output:
        simulation_out=f"{MEASURED}/simulation.parquet",
    log:
        SIMULATE.log,
    benchmark:
        SIMULATE.benchmark
    wildcard_constraints:
        method=READABLE,
    conda:
        ENVIRONMENT
    threads: SIMULATE.threads
    resources:
        **SIMULATE.resources,
    params:
        **SIMULATE.params,
    shell:
        'python "$LANGPTUNE/scripts/simulate.py" --spec {params.spec:q} --log {log:q}'


rule steer:
    input:
        **tables("items", "sessions", "evaluation"),
        decoder_in=lambda w: job(w).decoder_folder,
        vectors_in=lambda w: job(w).vectors,
        popularity_in=lambda w: job(w).popularity or [],
        denials_in=lambda w: job(w).denials_file or [],
        untrained_in=lambda w: job(w).untrained_folder or [],
        untrained_vectors_in=lambda w: job(w).untrained_vectors or [],
        profiles_in=lambda w: job(w).profiles,
    output:
        steering_out=f"{MEASURED}/steering.parquet",
        steering_weights_out=f"{MEASURED}/steering_weights.parquet",
    log:
        STEER.log,
    benchmark:
        STEER.benchmark
    wildcard_constraints:
        method=READABLE,
    conda:
        ENVIRONMENT
    resources:
        **STEER.resources,
    params:
        **STEER.params,
    shell:
        'python "$LANGPTUNE/scripts/steer.py" --spec {params.spec:q} --log {log:q}'


rule interpret:
    input:
        metrics=lambda w: [PROJECT.paths.metrics_of(run) for run in PROJECT.readable_runs(w.dataset)],
        measures=lambda w: [
            PROJECT.measured(run, name) for run in PROJECT.readable_runs(w.dataset) for name in targets.MEASURES
        ],
        weights=lambda w: [
            path for run in PROJECT.readable_runs(w.dataset) if isinstance(path := PROJECT.paths.run_weight(run), str)
        ],
        verdicts=lambda w: [path for run in PROJECT.readable_runs(w.dataset) for path in PROJECT.judged(run).values()],
    output:
        table_csv_out=f"{INTERPRETED}/table.csv",
        table_md_out=f"{INTERPRETED}/table.md",
        judges_out=f"{INTERPRETED}/judges.csv",
        frontier_csv_out=f"{INTERPRETED}/frontier.csv",
        weights_csv_out=f"{INTERPRETED}/steering_weights.csv",
        table_html_out=report(
            f"{INTERPRETED}/table.html", caption="../report/interpretability.rst", category="{dataset}"
        ),
        tradeoff_out=[
            report(f"{INTERPRETED}/tradeoff.png", caption="../report/tradeoff.rst", category="{dataset}"),
            f"{INTERPRETED}/tradeoff.pdf",
        ],
        steering_out=[
            report(f"{INTERPRETED}/steering.png", caption="../report/steering.rst", category="{dataset}"),
            f"{INTERPRETED}/steering.pdf",
        ],
        frontier_out=[
            report(f"{INTERPRETED}/frontier.png", caption="../report/frontier.rst", category="{dataset}"),
            f"{INTERPRETED}/frontier.pdf",
        ],
        weights_out=[
            report(f"{INTERPRETED}/weights.png", caption="../report/weights.rst", category="{dataset}"),
            f"{INTERPRETED}/weights.pdf",
        ],
    log:
        INTERPRET.log,
    benchmark:
        INTERPRET.benchmark
    conda:
        ENVIRONMENT
    resources:
        **INTERPRET.resources,
    params:
        **INTERPRET.params,
    shell:
        'python "$LANGPTUNE/scripts/interpret.py" --spec {params.spec:q} --log {log:q}'


rule show_examples:
    input:
        **tables("items", "sessions", "evaluation"),
        files=lambda w: [
            column[file]
            for column in comparison.example_columns(PROJECT, w.dataset)
            for file in ("ranks", "measures", "claims", "simulation")
        ],
    output:
        page_out=report(f"{INTERPRETED}/examples.html", caption="../report/examples.rst", category="{dataset}"),
    log:
        SHOW_EXAMPLES.log,
    benchmark:
        SHOW_EXAMPLES.benchmark
    conda:
        ENVIRONMENT
    resources:
        **SHOW_EXAMPLES.resources,
    params:
        **SHOW_EXAMPLES.params,
    shell:
        'python "$LANGPTUNE/scripts/show_examples.py" --spec {params.spec:q} --log {log:q}'
