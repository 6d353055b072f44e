"""Data: raw files to items and sessions under a named protocol, and the samples for comparison and training."""


localrules:
    prefetch_data,
    describe_data,


DATA = f"{RESULTS}/{{dataset}}/data"
PREFETCH_DATA = stage("prefetch_data", by="{slug}")
PREPARE_DATA = stage("prepare_data", by="{dataset}")
DESCRIBE_DATA = stage("describe_data", by="{dataset}")
DRAW_SAMPLE = stage("draw_sample", by="{dataset}")
DRAW_TRAINING_SAMPLE = stage("draw_training_sample", by="{dataset}", script="draw_sample", splits=("train", "val"))


rule prefetch_data:
    output:
        folder_out=directory(f"{CONFIG.raw_dir}/{{slug}}"),
    log:
        PREFETCH_DATA.log,
    benchmark:
        PREFETCH_DATA.benchmark
    wildcard_constraints:
        slug=either(PROJECT.downloads),
    conda:
        ENVIRONMENT
    resources:
        **PREFETCH_DATA.resources,
    params:
        **PREFETCH_DATA.params,
    shell:
        'HF_HUB_OFFLINE="$LANGPTUNE_HUB_OFFLINE" python "$LANGPTUNE/scripts/prefetch_data.py" --spec {params.spec:q} --log {log:q}'


rule prepare_data:
    input:
        raw=lambda w: PROJECT.raw_folder(w.dataset) or [],
        encoder_in=lambda w: job(w).limit_folder("encoder") or [],
        decoder_in=lambda w: job(w).limit_folder("decoder") or [],
    output:
        items_out=f"{DATA}/items.parquet",
        sessions_out=f"{DATA}/sessions.parquet",
        users_out=f"{DATA}/users.parquet",
        funnel_out=f"{DATA}/funnel.csv",
    log:
        PREPARE_DATA.log,
    benchmark:
        PREPARE_DATA.benchmark
    conda:
        ENVIRONMENT
    resources:
        **PREPARE_DATA.resources,
    params:
        **PREPARE_DATA.params,
        raw=lambda w: PROJECT.raw_files(w.dataset),
    shell:
        'python "$LANGPTUNE/scripts/prepare_data.py" --spec {params.spec:q} --log {log:q}'


rule describe_data:
    input:
        **tables("items", "sessions"),
        funnel_in=f"{DATA}/funnel.csv",
    output:
        card_out=f"{DATA}/card.md",
        statistics_out=f"{DATA}/statistics.csv",
        figure_out=[
            report(
                f"{DATA}/funnel.png",
                caption="../report/funnel.rst",
                category="Data",
                labels={"dataset": "{dataset}", "figure": "What the protocol leaves"},
            ),
            f"{DATA}/funnel.pdf",
        ],
    log:
        DESCRIBE_DATA.log,
    benchmark:
        DESCRIBE_DATA.benchmark
    conda:
        ENVIRONMENT
    resources:
        **DESCRIBE_DATA.resources,
    params:
        **DESCRIBE_DATA.params,
    shell:
        'python "$LANGPTUNE/scripts/describe_data.py" --spec {params.spec:q} --log {log:q}'


rule draw_sample:
    input:
        **tables("sessions"),
    output:
        sample_out=f"{DATA}/evaluation.parquet",
    log:
        DRAW_SAMPLE.log,
    benchmark:
        DRAW_SAMPLE.benchmark
    conda:
        ENVIRONMENT
    resources:
        **DRAW_SAMPLE.resources,
    params:
        **DRAW_SAMPLE.params,
    shell:
        'python "$LANGPTUNE/scripts/draw_sample.py" --spec {params.spec:q} --log {log:q}'


# A separate file, so that a larger training sample does not rerun the ranks of test sessions.
rule draw_training_sample:
    input:
        **tables("sessions"),
    output:
        sample_out=f"{DATA}/training.parquet",
    log:
        DRAW_TRAINING_SAMPLE.log,
    benchmark:
        DRAW_TRAINING_SAMPLE.benchmark
    conda:
        ENVIRONMENT
    resources:
        **DRAW_TRAINING_SAMPLE.resources,
    params:
        **DRAW_TRAINING_SAMPLE.params,
    shell:
        'python "$LANGPTUNE/scripts/draw_sample.py" --spec {params.spec:q} --log {log:q}'
