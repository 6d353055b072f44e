"""Ranks: texts (profiles, histories, and what controls change of them) through the decoder."""


rule embed_items:
    input:
        **data_files("items"),
        decoder=lambda w: model_folder(w.decoder),
    output:
        vectors=f"{RESULTS}/{{dataset}}/data/vectors/{{decoder}}.safetensors",
    log:
        f"{LOGS}/embed_items/{{dataset}}-{{decoder}}.log",
    benchmark:
        f"{BENCHMARKS}/embed_items/{{dataset}}-{{decoder}}.jsonl"
    conda:
        ENVIRONMENT
    resources:
        **decodes(lambda w: w.decoder),
    params:
        **specified(
            lambda w, input, output: spec(
                decoder=usage(w.decoder),
                decoder_in=input.decoder,
                items_in=input.items_file,
                vectors_out=output.vectors,
            )
        ),
        code=code("embed_items"),
    shell:
        'python "$LANGPTUNE/scripts/embed_items.py" --spec {params.spec:q} --log {log:q}'


# Right after the phase that trained a decoder (or none did), by the validation texts that its training selected by: whatever
# ranks or rewards by that decoder takes the same weight.
rule choose_popularity:
    input:
        **data_files("items", "sessions", "training"),
        decoder=by_phase(decoder_folder),
        vectors=by_phase(vectors_of),
        profiles=lambda w: weighing_profiles(w),
    output:
        weight=f"{PHASE}/popularity.json",
    log:
        f"{LOGS}/choose_popularity/{{dataset}}-{{models}}-seed{{seed}}-{{phase}}.log",
    benchmark:
        f"{BENCHMARKS}/choose_popularity/{{dataset}}-{{models}}-seed{{seed}}-{{phase}}.jsonl"
    priority: 50
    conda:
        ENVIRONMENT
    resources:
        **decodes(lambda w: decoder_of(w.models)),
    params:
        **specified(
            lambda w, input, output: spec(
                text=PHASES[w.phase].weighed_by,
                history_items=weighing_history(PHASES[w.phase]),
                weights=CONFIG.training.popularity_weights,
                decoder=usage(decoder_of(w.models)),
                decoder_in=input.decoder,
                vectors_in=input.vectors,
                items_in=input.items_file,
                sessions_in=input.sessions_file,
                training_in=input.training_file,
                profiles_in=str(input.profiles) if input.profiles else None,
                weight_out=output.weight,
            )
        ),
        code=code("choose_popularity"),
    shell:
        'python "$LANGPTUNE/scripts/choose_popularity.py" --spec {params.spec:q} --log {log:q}'


rule rank_profiles:
    input:
        **decoder_inputs(),
        profiles=profiles_in,
    output:
        ranks=f"{RESULTS}/{{dataset}}/{{method}}/{{encoder}}+{{decoder}}/seed{{seed}}/ranks.parquet",
    log:
        f"{LOGS}/rank_profiles/{{dataset}}-{{method}}-{{encoder}}+{{decoder}}-seed{{seed}}.log",
    benchmark:
        f"{BENCHMARKS}/rank_profiles/{{dataset}}-{{method}}-{{encoder}}+{{decoder}}-seed{{seed}}.jsonl"
    wildcard_constraints:
        method=ranked_texts(profiles=True),
    conda:
        ENVIRONMENT
    resources:
        **decodes(lambda w: w.decoder),
    params:
        **specified(
            lambda w, input, output: rank_spec(
                w,
                input,
                output,
                "profiles",
                input.profiles,
                history_items=METHODS[source_of(w.method)].history_items,
                **changed(w),
            )
        ),
        code=code("rank_texts"),
    shell:
        'python "$LANGPTUNE/scripts/rank_texts.py" --spec {params.spec:q} --log {log:q}'


rule rank_history_text:
    input:
        **decoder_inputs(),
    output:
        ranks=f"{RESULTS}/{{dataset}}/{{method}}/{{decoder}}/seed{{seed}}/ranks.parquet",
    log:
        f"{LOGS}/rank_history_text/{{dataset}}-{{method}}-{{decoder}}-seed{{seed}}.log",
    benchmark:
        f"{BENCHMARKS}/rank_history_text/{{dataset}}-{{method}}-{{decoder}}-seed{{seed}}.jsonl"
    wildcard_constraints:
        method=ranked_texts(profiles=False),
    conda:
        ENVIRONMENT
    resources:
        **decodes(lambda w: w.decoder),
    params:
        **specified(
            lambda w, input, output: rank_spec(
                w,
                input,
                output,
                METHODS[source_of(w.method)].view,
                history_items=METHODS[source_of(w.method)].history_items,
                **changed(w),
            )
        ),
        code=code("rank_texts"),
    shell:
        'python "$LANGPTUNE/scripts/rank_texts.py" --spec {params.spec:q} --log {log:q}'
