"""Memorisation: what the untrained encoders have memorised of a dataset (docs/interpretability.md)."""


localrules:
    probe_table,


MEMORY = f"{RESULTS}/{{dataset}}/memorisation"
PROBE = stage("probe", by="{dataset}-{encoder}")
PROBE_TABLE = stage("probe_table", by="{dataset}")


rule probe:
    input:
        **tables("items", "sessions", "evaluation"),
        encoder_in=lambda w: PROJECT.paths.model_folder(w.encoder),
    output:
        answers_out=f"{MEMORY}/{{encoder}}.parquet",
    log:
        PROBE.log,
    benchmark:
        PROBE.benchmark
    conda:
        ENVIRONMENT
    threads: PROBE.threads
    resources:
        **PROBE.resources,
    params:
        **PROBE.params,
    shell:
        'python "$LANGPTUNE/scripts/probe.py" --spec {params.spec:q} --log {log:q}'


rule probe_table:
    input:
        answers_in=lambda w: [
            f"{RESULTS}/{w.dataset}/memorisation/{name}.parquet" for name in PROJECT.workflow.local_encoders
        ],
        gains_in=f"{COMPARISON}/gains.parquet",
    output:
        known_out=f"{MEMORY}/known.csv",
        gains_out=f"{MEMORY}/gains.csv",
        page_out=f"{MEMORY}/table.md",
    log:
        PROBE_TABLE.log,
    benchmark:
        PROBE_TABLE.benchmark
    conda:
        ENVIRONMENT
    resources:
        **PROBE_TABLE.resources,
    params:
        **PROBE_TABLE.params,
    shell:
        'python "$LANGPTUNE/scripts/probe_table.py" --spec {params.spec:q} --log {log:q}'
