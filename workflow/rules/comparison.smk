"""Comparison: per-session metrics of every run, then one table, tests and figures per dataset."""


localrules:
    compare,
    plot,
    show_profiles,
    study,
    compare_partial,


rule evaluate:
    input:
        **data_files("items", "sessions", "evaluation"),
        ranks=f"{RESULTS}/{{dataset}}/{{method}}/{{models}}/seed{{seed}}/ranks.parquet",
    output:
        metrics=f"{RESULTS}/{{dataset}}/{{method}}/{{models}}/seed{{seed}}/metrics.parquet",
    log:
        f"{LOGS}/evaluate/{{dataset}}-{{method}}-{{models}}-seed{{seed}}.log",
    benchmark:
        f"{BENCHMARKS}/evaluate/{{dataset}}-{{method}}-{{models}}-seed{{seed}}.jsonl"
    group:
        cheap
    conda:
        ENVIRONMENT
    resources:
        **needs(memory=500, minutes=10),
    params:
        **specified(
            lambda w, input, output: spec(
                ranks_in=input.ranks,
                evaluation_in=input.evaluation_file,
                sessions_in=input.sessions_file,
                items_in=input.items_file,
                metrics=CONFIG.comparison.metrics,
                metrics_out=output.metrics,
            )
        ),
        code=code("evaluate", loads=METRIC_FILES),
    shell:
        'python "$LANGPTUNE/scripts/evaluate.py" --spec {params.spec:q} --log {log:q}'


rule compare:
    input:
        **data_files("sessions"),
        metrics=lambda w: [metrics_of(run) for run in WORKFLOW.runs(w.dataset)],
    output:
        table_html=report(
            f"{RESULTS}/{{dataset}}/comparison/table.html", caption="../report/table.rst", category="{dataset}"
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
        contrasts=report(
            f"{RESULTS}/{{dataset}}/comparison/contrasts.csv",
            caption="../report/contrast_tests.rst",
            category="{dataset}",
        ),
        table_md=f"{RESULTS}/{{dataset}}/comparison/table.md",
        table_tex=f"{RESULTS}/{{dataset}}/comparison/table.tex",
        table_long=f"{RESULTS}/{{dataset}}/comparison/table_long.csv",
        gains=f"{RESULTS}/{{dataset}}/comparison/gains.parquet",
    log:
        f"{LOGS}/compare/{{dataset}}.log",
    benchmark:
        f"{BENCHMARKS}/compare/{{dataset}}.jsonl"
    conda:
        ENVIRONMENT
    resources:
        **needs(memory=1000, minutes=30),
    params:
        **specified(lambda w, output: comparison_spec(w.dataset, output)),
        code=code("compare"),
    shell:
        'python "$LANGPTUNE/scripts/compare.py" --spec {params.spec:q} --log {log:q}'


rule plot:
    input:
        unpack(figure_inputs),
    output:
        figure=report(
            f"{RESULTS}/{{dataset}}/comparison/{{figure}}.png", caption="../report/figure.rst", category="{dataset}"
        ),
        pdf=f"{RESULTS}/{{dataset}}/comparison/{{figure}}.pdf",
    log:
        f"{LOGS}/plot/{{dataset}}-{{figure}}.log",
    benchmark:
        f"{BENCHMARKS}/plot/{{dataset}}-{{figure}}.jsonl"
    wildcard_constraints:
        figure=either(FIGURES),
    conda:
        ENVIRONMENT
    resources:
        **needs(memory=1000, minutes=30),
    params:
        **specified(plot_spec),
        caption=lambda w: FIGURES[w.figure].caption.format(dataset=w.dataset),
        code=lambda w: code("plot", loads=[FIGURES[w.figure].module]),
    shell:
        'python "$LANGPTUNE/scripts/plot.py" --spec {params.spec:q} --log {log:q}'


rule show_profiles:
    input:
        **data_files("items", "sessions", "evaluation"),
        files=lambda w: [
            file for column in profile_columns(w.dataset) for file in (column["profiles"], column["ranks"])
        ],
    output:
        page=report(
            f"{RESULTS}/{{dataset}}/comparison/profiles.html", caption="../report/profiles.rst", category="{dataset}"
        ),
    log:
        f"{LOGS}/show_profiles/{{dataset}}.log",
    benchmark:
        f"{BENCHMARKS}/show_profiles/{{dataset}}.jsonl"
    conda:
        ENVIRONMENT
    resources:
        **needs(memory=500, minutes=10),
    params:
        **specified(
            lambda w, input, output: spec(
                title=f"Profiles before and after training: {DATASETS[w.dataset].title}",
                columns=profile_columns(w.dataset),
                items_in=input.items_file,
                sessions_in=input.sessions_file,
                evaluation_in=input.evaluation_file,
                page_out=output.page,
            )
        ),
        code=code("show_profiles"),
    shell:
        'python "$LANGPTUNE/scripts/show_profiles.py" --spec {params.spec:q} --log {log:q}'


rule study:
    input:
        metrics=lambda w: [metrics_of(run) for run in WORKFLOW.runs(w.dataset, w.study)],
        curves=lambda w: [curve["path"] for run in WORKFLOW.runs(w.dataset, w.study) for curve in encoder_curves(run)],
    output:
        table=f"{RESULTS}/{{dataset}}/studies/{{study}}.csv",
        figure=report(
            f"{RESULTS}/{{dataset}}/studies/{{study}}.png", caption="../report/study.rst", category="{dataset}"
        ),
        pdf=f"{RESULTS}/{{dataset}}/studies/{{study}}.pdf",
    log:
        f"{LOGS}/study/{{dataset}}-{{study}}.log",
    benchmark:
        f"{BENCHMARKS}/study/{{dataset}}-{{study}}.jsonl"
    wildcard_constraints:
        study=either(CONFIG.studies),
    conda:
        ENVIRONMENT
    resources:
        **needs(memory=500, minutes=10),
    params:
        **specified(lambda w, output: study_spec(w.dataset, w.study, output)),
        code=code("study"),
    shell:
        'python "$LANGPTUNE/scripts/study.py" --spec {params.spec:q} --log {log:q}'


rule compare_partial:
    # No runs among its inputs, and outputs of its own: it takes what there is, now, and never passes for the whole.
    input:
        **data_files("sessions"),
    output:
        **{name: f"{RESULTS}/{{dataset}}/partial/{file}" for name, file in TABLES.items()},
    log:
        f"{LOGS}/compare_partial/{{dataset}}.log",
    benchmark:
        f"{BENCHMARKS}/compare_partial/{{dataset}}.jsonl"
    conda:
        ENVIRONMENT
    resources:
        **needs(memory=1000, minutes=30),
    params:
        **specified(lambda w, output: comparison_spec(w.dataset, output, allow_missing=True)),
        code=code("compare"),
    shell:
        'python "$LANGPTUNE/scripts/compare.py" --spec {params.spec:q} --log {log:q}'
