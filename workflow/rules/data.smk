"""Data: raw files to items and sessions under a named protocol, and the sample that methods are compared on."""


localrules:
    prefetch_data,
    describe_data,


rule prefetch_data:
    output:
        folder=directory(f"{CONFIG.raw_dir}/{{slug}}"),
    log:
        f"{LOGS}/prefetch_data/{{slug}}.log",
    benchmark:
        f"{BENCHMARKS}/prefetch_data/{{slug}}.jsonl"
    wildcard_constraints:
        slug=either(DOWNLOADS),
    conda:
        ENVIRONMENT
    resources:
        **needs(memory=500, minutes=30),
    params:
        **specified(
            lambda w, output: spec(
                name=DOWNLOADS[w.slug],
                dataset=source_alone(DOWNLOADS[w.slug]),
                folder_out=output.folder,
            )
        ),
        code=code("prefetch_data"),
    shell:
        'HF_HUB_OFFLINE="$LANGPTUNE_HUB_OFFLINE" python "$LANGPTUNE/scripts/prefetch_data.py" --spec {params.spec:q} --log {log:q}'


rule prepare_data:
    input:
        raw=lambda w: raw_folder(w.dataset),
        tokenizers=lambda w: list(limit_models(w.dataset).values()),
    output:
        **data_files("items", "sessions", "users"),
        funnel=f"{RESULTS}/{{dataset}}/data/funnel.csv",
    log:
        f"{LOGS}/prepare_data/{{dataset}}.log",
    benchmark:
        f"{BENCHMARKS}/prepare_data/{{dataset}}.jsonl"
    conda:
        ENVIRONMENT
    resources:
        **needs(
            memory=lambda w: 8000 if DATASETS[w.dataset].reader == "amazon-2023" else 1000,
            minutes=lambda w: 360 if DATASETS[w.dataset].reader == "amazon-2023" else 30,
        ),
    params:
        **specified(
            lambda w, input, output: spec(
                name=w.dataset,
                dataset=bare(DATASETS[w.dataset]),
                folder=input.raw[0] if raw_folder(w.dataset) else None,
                items_out=output.items_file,
                sessions_out=output.sessions_file,
                users_out=output.users_file,
                funnel_out=output.funnel,
                **limit_spec(w.dataset),
            )
        ),
        code=lambda w: code("prepare_data", unreached(w.dataset)),
        raw=lambda w: raw_files(w.dataset),
    shell:
        'python "$LANGPTUNE/scripts/prepare_data.py" --spec {params.spec:q} --log {log:q}'


rule describe_data:
    input:
        **data_files("items", "sessions"),
        funnel=f"{RESULTS}/{{dataset}}/data/funnel.csv",
    output:
        card=f"{RESULTS}/{{dataset}}/data/card.md",
        statistics=f"{RESULTS}/{{dataset}}/data/statistics.csv",
        figure=report(
            f"{RESULTS}/{{dataset}}/data/funnel.png",
            caption="../report/funnel.rst",
            category="Data",
            labels={"dataset": "{dataset}", "figure": "What the protocol leaves"},
        ),
        pdf=f"{RESULTS}/{{dataset}}/data/funnel.pdf",
    log:
        f"{LOGS}/describe_data/{{dataset}}.log",
    benchmark:
        f"{BENCHMARKS}/describe_data/{{dataset}}.jsonl"
    conda:
        ENVIRONMENT
    resources:
        **needs(memory=2000, minutes=30),
    params:
        **specified(
            lambda w, input, output: spec(
                name=w.dataset,
                dataset=DATASETS[w.dataset],
                items_in=input.items_file,
                sessions_in=input.sessions_file,
                funnel_in=input.funnel,
                manifest_in=f"{input.sessions_file}.manifest.json",
                card_out=output.card,
                statistics_out=output.statistics,
                figure_out=[output.figure, output.pdf],
            )
        ),
        code=code("describe_data"),
    shell:
        'python "$LANGPTUNE/scripts/describe_data.py" --spec {params.spec:q} --log {log:q}'


rule draw_sample:
    input:
        **data_files("sessions"),
    output:
        **data_files("evaluation"),
    log:
        f"{LOGS}/draw_sample/{{dataset}}.log",
    benchmark:
        f"{BENCHMARKS}/draw_sample/{{dataset}}.jsonl"
    conda:
        ENVIRONMENT
    resources:
        **needs(memory=500, minutes=30),
    params:
        **specified(
            lambda w, input, output: spec(
                sample={"test": CONFIG.sample.test, "seed": CONFIG.sample.seed},
                sessions_in=input.sessions_file,
                sample_out=output.evaluation_file,
            )
        ),
        code=code("draw_sample"),
    shell:
        'python "$LANGPTUNE/scripts/draw_sample.py" --spec {params.spec:q} --log {log:q}'


# A file of its own, so that more train sessions rank no test session again.
rule draw_training_sample:
    input:
        **data_files("sessions"),
    output:
        **data_files("training"),
    log:
        f"{LOGS}/draw_training_sample/{{dataset}}.log",
    benchmark:
        f"{BENCHMARKS}/draw_training_sample/{{dataset}}.jsonl"
    conda:
        ENVIRONMENT
    resources:
        **needs(memory=500, minutes=30),
    params:
        **specified(
            lambda w, input, output: spec(
                sample={"train": CONFIG.sample.train, "val": CONFIG.sample.val, "seed": CONFIG.sample.seed},
                splits=["train", "val"],
                sessions_in=input.sessions_file,
                sample_out=output.training_file,
            )
        ),
        code=code("draw_sample"),
    shell:
        'python "$LANGPTUNE/scripts/draw_sample.py" --spec {params.spec:q} --log {log:q}'
