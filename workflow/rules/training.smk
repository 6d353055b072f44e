"""Training: one rule per kind of phase. A phase starts from the one before it in its method's chain of recipes.

A job that is killed or asked to stop (SIGTERM, exit 75) leaves checkpoints in the phase's folder, outside its declared
outputs. Its retry resumes from the newest one.
"""

TRAIN_DECODER = stage("train_decoder", by=BY_PHASE)
EMBED_PHASE_ITEMS = stage("embed_phase_items", by=BY_PHASE, script="embed_items")
TRAIN_ENCODER = stage("train_encoder", by=BY_PHASE)


# Priorities: CL, then RLSO, is the longest chain of a run. So its jobs start before all others that are ready, and the
# short jobs that it waits for start first.
rule train_decoder:
    input:
        **tables("items", "sessions", "training"),
        decoder_in=lambda w: job(w).before.decoder_folder,
        train_profiles_in=lambda w: job(w).read_profiles("train") or [],
        val_profiles_in=lambda w: job(w).read_profiles("val") or [],
    output:
        decoder_out=directory(f"{PHASE}/decoder"),
        curve_out=f"{PHASE}/curve.jsonl",
    log:
        TRAIN_DECODER.log,
    benchmark:
        TRAIN_DECODER.benchmark
    wildcard_constraints:
        phase=either(PROJECT.trained("decoder")),
    priority: 30
    retries: RETRIES
    conda:
        ENVIRONMENT
    threads: TRAIN_DECODER.threads
    resources:
        **TRAIN_DECODER.resources,
    params:
        **TRAIN_DECODER.params,
        launch=TRAIN_DECODER.launcher,
    shell:
        '{params.launch} "$LANGPTUNE/scripts/train_decoder.py" --spec {params.spec:q} --log {log:q}'


rule embed_phase_items:
    input:
        **tables("items"),
        decoder_in=f"{PHASE}/decoder",
    output:
        vectors_out=f"{PHASE}/vectors.safetensors",
    log:
        EMBED_PHASE_ITEMS.log,
    benchmark:
        EMBED_PHASE_ITEMS.benchmark
    wildcard_constraints:
        phase=either(PROJECT.trained("decoder")),
    priority: 50
    conda:
        ENVIRONMENT
    resources:
        **EMBED_PHASE_ITEMS.resources,
    params:
        **EMBED_PHASE_ITEMS.params,
    shell:
        'python "$LANGPTUNE/scripts/embed_items.py" --spec {params.spec:q} --log {log:q}'


rule train_encoder:
    input:
        **tables("items", "sessions", "users", "training"),
        encoder_in=lambda w: job(w).encoder_folder,
        start_in=lambda w: job(w).before.adapter or [],
        decoder_in=lambda w: job(w).decoder_folder,
        vectors_in=lambda w: job(w).vectors,
        popularity_in=lambda w: job(w).popularity or [],
        denials_in=lambda w: job(w).denials_file or [],
    output:
        encoder_out=directory(f"{PHASE}/encoder"),
        curve_out=f"{PHASE}/curve.jsonl",
    log:
        TRAIN_ENCODER.log,
    benchmark:
        TRAIN_ENCODER.benchmark
    wildcard_constraints:
        phase=either(PROJECT.trained("encoder")),
    priority: 40
    retries: RETRIES
    conda:
        ENVIRONMENT
    threads: TRAIN_ENCODER.threads
    resources:
        **TRAIN_ENCODER.resources,
    params:
        **TRAIN_ENCODER.params,
        launch=TRAIN_ENCODER.launcher,
    shell:
        '{params.launch} "$LANGPTUNE/scripts/train_encoder.py" --spec {params.spec:q} --log {log:q}'
