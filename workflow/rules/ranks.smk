"""Ranks: the decoder ranks items by texts (profiles, histories, and the changed texts of controls); fusions."""

EMBED_ITEMS = stage("embed_items", by="{dataset}-{decoder}")
CHOOSE_POPULARITY = stage("choose_popularity", by=BY_PHASE)
RANK_PROFILES = stage("rank_profiles", by=BY_PROFILED, script="rank_texts")
RANK_HISTORY_TEXT = stage("rank_history_text", by="{dataset}-{method}-{decoder}-seed{seed}", script="rank_texts")
RANK_FUSED_TEXTS = stage("rank_fused_texts", by=BY_RUN, script="rank_texts")
FUSE = stage("fuse", by=BY_RUN)


rule embed_items:
    input:
        **tables("items"),
        decoder_in=lambda w: PROJECT.paths.model_folder(w.decoder),
    output:
        vectors_out=f"{RESULTS}/{{dataset}}/data/vectors/{{decoder}}.safetensors",
    log:
        EMBED_ITEMS.log,
    benchmark:
        EMBED_ITEMS.benchmark
    conda:
        ENVIRONMENT
    resources:
        **EMBED_ITEMS.resources,
    params:
        **EMBED_ITEMS.params,
    shell:
        'python "$LANGPTUNE/scripts/embed_items.py" --spec {params.spec:q} --log {log:q}'


# Chosen once per phase, on the validation texts on which the decoder's training selected its best state. All ranks and
# rewards by that decoder use the same weight.
rule choose_popularity:
    input:
        **tables("items", "sessions", "training"),
        decoder_in=lambda w: job(w).decoder_folder,
        vectors_in=lambda w: job(w).vectors,
        profiles_in=lambda w: job(w).weighing_profiles or [],
    output:
        weight_out=f"{PHASE}/popularity.json",
    log:
        CHOOSE_POPULARITY.log,
    benchmark:
        CHOOSE_POPULARITY.benchmark
    priority: 50
    conda:
        ENVIRONMENT
    resources:
        **CHOOSE_POPULARITY.resources,
    params:
        **CHOOSE_POPULARITY.params,
    shell:
        'python "$LANGPTUNE/scripts/choose_popularity.py" --spec {params.spec:q} --log {log:q}'


rule rank_profiles:
    input:
        **tables("items", "sessions", "evaluation"),
        decoder_in=lambda w: job(w).decoder_folder,
        vectors_in=lambda w: job(w).vectors,
        popularity_in=lambda w: job(w).popularity or [],
        denials_in=lambda w: job(w).denials_file or [],
        profiles_in=lambda w: job(w).profiles,
    output:
        ranks_out=f"{PROFILED}/ranks.parquet",
    log:
        RANK_PROFILES.log,
    benchmark:
        RANK_PROFILES.benchmark
    wildcard_constraints:
        method=either(PROJECT.ranked_texts(profiles=True)),
    conda:
        ENVIRONMENT
    resources:
        **RANK_PROFILES.resources,
    params:
        **RANK_PROFILES.params,
    shell:
        'python "$LANGPTUNE/scripts/rank_texts.py" --spec {params.spec:q} --log {log:q}'


rule rank_history_text:
    input:
        **tables("items", "sessions", "evaluation"),
        decoder_in=lambda w: job(w).decoder_folder,
        vectors_in=lambda w: job(w).vectors,
        popularity_in=lambda w: job(w).popularity or [],
        denials_in=lambda w: job(w).denials_file or [],
    output:
        ranks_out=f"{RESULTS}/{{dataset}}/{{method}}/{{decoder}}/seed{{seed}}/ranks.parquet",
    log:
        RANK_HISTORY_TEXT.log,
    benchmark:
        RANK_HISTORY_TEXT.benchmark
    wildcard_constraints:
        method=either(PROJECT.ranked_texts(profiles=False)),
    conda:
        ENVIRONMENT
    resources:
        **RANK_HISTORY_TEXT.resources,
    params:
        **RANK_HISTORY_TEXT.params,
    shell:
        'python "$LANGPTUNE/scripts/rank_texts.py" --spec {params.spec:q} --log {log:q}'


# For methods that a fusion adds, whether they rank profiles or histories: their scores are kept beside their ranks.
rule rank_fused_texts:
    input:
        **tables("items", "sessions", "evaluation", "training"),
        decoder_in=lambda w: job(w).decoder_folder,
        vectors_in=lambda w: job(w).vectors,
        popularity_in=lambda w: job(w).popularity or [],
        denials_in=lambda w: job(w).denials_file or [],
        profiles_in=lambda w: job(w).profiles if PROJECT.has_profiles(w.method) else [],
        val_profiles_in=lambda w: job(w).val_profiles or [],
    output:
        ranks_out=f"{RUN}/ranks.parquet",
        scores_out=f"{RUN}/scores.parquet",
        val_scores_out=f"{RUN}/val_scores.parquet",
    log:
        RANK_FUSED_TEXTS.log,
    benchmark:
        RANK_FUSED_TEXTS.benchmark
    wildcard_constraints:
        method=either(PROJECT.ranked_by("rank_texts", fused=True)),
    conda:
        ENVIRONMENT
    resources:
        **RANK_FUSED_TEXTS.resources,
    params:
        **RANK_FUSED_TEXTS.params,
    shell:
        'python "$LANGPTUNE/scripts/rank_texts.py" --spec {params.spec:q} --log {log:q}'


rule fuse:
    input:
        **tables("items", "sessions", "evaluation", "training"),
        scores_in=lambda w: job(w).part_scores("test"),
        val_scores_in=lambda w: job(w).part_scores("val"),
        parts_in=lambda w: job(w).part_ranks,
    output:
        ranks_out=f"{RUN}/ranks.parquet",
        choice_out=f"{RUN}/choice.json",
    log:
        FUSE.log,
    benchmark:
        FUSE.benchmark
    wildcard_constraints:
        method=either(PROJECT.ranked_by("fuse")),
    conda:
        ENVIRONMENT
    resources:
        **FUSE.resources,
    params:
        **FUSE.params,
    shell:
        'python "$LANGPTUNE/scripts/fuse.py" --spec {params.spec:q} --log {log:q}'
