"""Comparison: per-session metrics of every run, then one table, tests and figures per dataset."""


localrules:
    compare,
    slice_metrics,
    list_metrics,
    report_tuning,
    plot,
    show_profiles,
    study,
    compare_partial,


COMPARISON = f"{RESULTS}/{{dataset}}/comparison"
EVALUATE = stage("evaluate", by=BY_RUN)
COMPARE = stage("compare", by="{dataset}")
COMPARE_PARTIAL = stage("compare_partial", by="{dataset}", script="compare", allow_missing=True)
SLICE_METRICS = stage("slice_metrics", by="{dataset}")
LIST_METRICS = stage("list_metrics", by="{dataset}")
REPORT_TUNING = stage("report_tuning", by="{dataset}")
PLOT = stage("plot", by="{dataset}-{figure}")
SHOW_PROFILES = stage("show_profiles", by="{dataset}")
STUDY = stage("study", by="{dataset}-{study}")


rule evaluate:
    input:
        **tables("items", "sessions", "evaluation"),
        ranks_in=f"{RUN}/ranks.parquet",
    output:
        metrics_out=f"{RUN}/metrics.parquet",
    log:
        EVALUATE.log,
    benchmark:
        EVALUATE.benchmark
    group:
        cheap
    conda:
        ENVIRONMENT
    resources:
        **EVALUATE.resources,
    params:
        **EVALUATE.params,
    shell:
        'python "$LANGPTUNE/scripts/evaluate.py" --spec {params.spec:q} --log {log:q}'


rule compare:
    input:
        **tables("sessions"),
        metrics=lambda w: [PROJECT.paths.metrics_of(run) for run in PROJECT.runs(w.dataset)],
    output:
        table_html_out=report(f"{COMPARISON}/table.html", caption="../report/table.rst", category="{dataset}"),
        table_csv_out=report(f"{COMPARISON}/table.csv", caption="../report/table.rst", category="{dataset}"),
        comparisons_out=report(
            f"{COMPARISON}/comparisons.csv", caption="../report/comparisons.rst", category="{dataset}"
        ),
        contrasts_out=report(
            f"{COMPARISON}/contrasts.csv", caption="../report/contrast_tests.rst", category="{dataset}"
        ),
        table_md_out=f"{COMPARISON}/table.md",
        table_tex_out=f"{COMPARISON}/table.tex",
        table_long_out=f"{COMPARISON}/table_long.csv",
        gains_out=f"{COMPARISON}/gains.parquet",
    log:
        COMPARE.log,
    benchmark:
        COMPARE.benchmark
    conda:
        ENVIRONMENT
    resources:
        **COMPARE.resources,
    params:
        **COMPARE.params,
    shell:
        'python "$LANGPTUNE/scripts/compare.py" --spec {params.spec:q} --log {log:q}'


rule slice_metrics:
    input:
        **tables("sessions", "items"),
        metrics=lambda w: [PROJECT.paths.metrics_of(run) for run in PROJECT.runs(w.dataset)],
    output:
        slices_out=report(f"{COMPARISON}/slices.csv", caption="../report/slices.rst", category="{dataset}"),
    log:
        SLICE_METRICS.log,
    benchmark:
        SLICE_METRICS.benchmark
    conda:
        ENVIRONMENT
    resources:
        **SLICE_METRICS.resources,
    params:
        **SLICE_METRICS.params,
    shell:
        'python "$LANGPTUNE/scripts/slice_metrics.py" --spec {params.spec:q} --log {log:q}'


rule list_metrics:
    input:
        **tables("items", "sessions", "evaluation"),
        ranks=lambda w: [PROJECT.paths.ranks_of(run) for run in PROJECT.runs(w.dataset)],
    output:
        lists_out=report(f"{COMPARISON}/lists.csv", caption="../report/lists.rst", category="{dataset}"),
    log:
        LIST_METRICS.log,
    benchmark:
        LIST_METRICS.benchmark
    conda:
        ENVIRONMENT
    resources:
        **LIST_METRICS.resources,
    params:
        **LIST_METRICS.params,
    shell:
        'python "$LANGPTUNE/scripts/list_metrics.py" --spec {params.spec:q} --log {log:q}'


# No other table depends on this one, because its times differ between machines.
rule report_tuning:
    input:
        lambda w: comparison.chosen_files(PROJECT, w.dataset),
    output:
        tuning_out=f"{COMPARISON}/tuning.csv",
        page_out=report(f"{COMPARISON}/tuning.html", caption="../report/tuning.rst", category="{dataset}"),
    log:
        REPORT_TUNING.log,
    benchmark:
        REPORT_TUNING.benchmark
    conda:
        ENVIRONMENT
    resources:
        **REPORT_TUNING.resources,
    params:
        **REPORT_TUNING.params,
    shell:
        'python "$LANGPTUNE/scripts/report_tuning.py" --spec {params.spec:q} --log {log:q}'


rule plot:
    input:
        unpack(lambda w: comparison.figure_inputs(PROJECT, w.dataset, FIGURES[w.figure].reads)),
    output:
        figures_out=[
            report(f"{COMPARISON}/{{figure}}.png", caption="../report/figure.rst", category="{dataset}"),
            f"{COMPARISON}/{{figure}}.pdf",
        ],
    log:
        PLOT.log,
    benchmark:
        PLOT.benchmark
    wildcard_constraints:
        figure=either(FIGURES),
    conda:
        ENVIRONMENT
    resources:
        **PLOT.resources,
    params:
        **PLOT.params,
        caption=lambda w: FIGURES[w.figure].caption.format(dataset=w.dataset),
    shell:
        'python "$LANGPTUNE/scripts/plot.py" --spec {params.spec:q} --log {log:q}'


rule show_profiles:
    input:
        **tables("items", "sessions", "evaluation"),
        files=lambda w: [
            column[file] for column in comparison.profile_columns(PROJECT, w.dataset) for file in ("profiles", "ranks")
        ],
    output:
        page_out=report(f"{COMPARISON}/profiles.html", caption="../report/profiles.rst", category="{dataset}"),
    log:
        SHOW_PROFILES.log,
    benchmark:
        SHOW_PROFILES.benchmark
    conda:
        ENVIRONMENT
    resources:
        **SHOW_PROFILES.resources,
    params:
        **SHOW_PROFILES.params,
    shell:
        'python "$LANGPTUNE/scripts/show_profiles.py" --spec {params.spec:q} --log {log:q}'


rule study:
    input:
        metrics=lambda w: [PROJECT.paths.metrics_of(run) for run in PROJECT.runs(w.dataset, w.study)],
        curves=lambda w: [
            curve["path"]
            for run in PROJECT.runs(w.dataset, w.study)
            for curve in comparison.encoder_curves(PROJECT, run)
        ],
    output:
        table_out=f"{RESULTS}/{{dataset}}/studies/{{study}}.csv",
        figure_out=[
            report(
                f"{RESULTS}/{{dataset}}/studies/{{study}}.png", caption="../report/study.rst", category="{dataset}"
            ),
            f"{RESULTS}/{{dataset}}/studies/{{study}}.pdf",
        ],
    log:
        STUDY.log,
    benchmark:
        STUDY.benchmark
    wildcard_constraints:
        study=either(CONFIG.studies),
    conda:
        ENVIRONMENT
    resources:
        **STUDY.resources,
    params:
        **STUDY.params,
    shell:
        'python "$LANGPTUNE/scripts/study.py" --spec {params.spec:q} --log {log:q}'


rule compare_partial:
    input:
        # Runs are not inputs: this rule uses those that are finished now. Its outputs have a separate folder, so that
        # they are not mistaken for the whole comparison.
        **tables("sessions"),
    output:
        **{field: f"{RESULTS}/{{dataset}}/partial/{file}" for field, file in targets.TABLES.items()},
    log:
        COMPARE_PARTIAL.log,
    benchmark:
        COMPARE_PARTIAL.benchmark
    conda:
        ENVIRONMENT
    resources:
        **COMPARE_PARTIAL.resources,
    params:
        **COMPARE_PARTIAL.params,
    shell:
        'python "$LANGPTUNE/scripts/compare.py" --spec {params.spec:q} --log {log:q}'
