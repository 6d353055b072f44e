"""Profiles: the encoder of a phase writes them in shards, which resume batch by batch and are then gathered."""


localrules:
    gather_profiles,


SHARD = f"{PHASE}/profiles/{{draw}}/shards/{{shard}}-of-{{shards}}.parquet"
WRITE_PROFILES = stage("write_profiles", by=f"{BY_PHASE}-{{draw}}-{{shard}}-of-{{shards}}")
GATHER_PROFILES = stage("gather_profiles", by=f"{BY_PHASE}-{{draw}}")


rule write_profiles:
    input:
        **tables("items", "sessions", "users"),
        evaluation_in=lambda w: job(w).sample,
        encoder_in=lambda w: job(w).encoder_folder,
        adapter_in=lambda w: job(w).adapter or [],
    output:
        profiles_out=SHARD,
    log:
        WRITE_PROFILES.log,
    benchmark:
        WRITE_PROFILES.benchmark
    wildcard_constraints:
        shard=r"\d+",
        shards=r"\d+",
    # Jobs that training waits for go first; see training.smk.
    priority: 20
    conda:
        ENVIRONMENT
    threads: WRITE_PROFILES.threads
    resources:
        **WRITE_PROFILES.resources,
    params:
        **WRITE_PROFILES.params,
    shell:
        'python "$LANGPTUNE/scripts/write_profiles.py" --spec {params.spec:q} --log {log:q}'


rule gather_profiles:
    input:
        evaluation_in=lambda w: job(w).sample,
        shards=expand(
            SHARD, shard=range(1, PROJECT.listed_shards + 1), shards=CONFIG.generation.shards, allow_missing=True
        ),
    output:
        profiles_out=f"{PHASE}/profiles/{{draw}}.parquet",
    log:
        GATHER_PROFILES.log,
    benchmark:
        GATHER_PROFILES.benchmark
    priority: 50
    conda:
        ENVIRONMENT
    resources:
        **GATHER_PROFILES.resources,
    params:
        **GATHER_PROFILES.params,
    shell:
        'python "$LANGPTUNE/scripts/gather_profiles.py" --spec {params.spec:q} --log {log:q}'
