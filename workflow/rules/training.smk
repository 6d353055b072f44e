"""Training: one rule per kind of phase. A phase starts from the one before it in its method's chain of recipes.

A job that is killed or asked to stop (SIGTERM, exit 75) leaves checkpoints in the phase's folder, outside its declared
outputs, and its retry goes on from the newest one.
"""


# Priorities: CL, then RLSO, is the longest chain of a run, so whatever stands in it goes before anything else that is
# ready, and the short jobs that it waits for go first of all.
rule train_decoder:
    input:
        **data_files("items", "sessions", "training"),
        decoder=by_phase(decoder_folder, lambda phase: phase.parent),
        train=lambda w: training_profiles(w, "train"),
        val=lambda w: training_profiles(w, "val"),
    output:
        decoder=directory(f"{PHASE}/decoder"),
        curve=f"{PHASE}/curve.jsonl",
    log:
        f"{LOGS}/train_decoder/{{dataset}}-{{models}}-seed{{seed}}-{{phase}}.log",
    benchmark:
        f"{BENCHMARKS}/train_decoder/{{dataset}}-{{models}}-seed{{seed}}-{{phase}}.jsonl"
    wildcard_constraints:
        phase=phases_of("decoder"),
    priority: 30
    retries: RETRIES
    conda:
        ENVIRONMENT
    threads: CONFIG.training.threads
    resources:
        **needs(
            memory=3000,
            minutes=60,
            model=lambda w: decoder_of(w.models),
            per_million=24,
            per_billion=1000,
            gpus=1,
            launch=lambda w: PHASES[w.phase].recipe.launch,
        ),
    params:
        **specified(
            lambda w, input, output: spec(
                decoder=usage(decoder_of(w.models)),
                decoder_in=input.decoder,
                recipe=PHASES[w.phase].recipe,
                train_fraction=PHASES[w.phase].train_fraction,
                seed=int(w.seed),
                stream=PHASES[w.phase].stream,
                threads=CONFIG.training.threads,
                items_in=input.items_file,
                sessions_in=input.sessions_file,
                training_in=input.training_file,
                train_profiles_in=str(input.train) if input.train else None,
                val_profiles_in=str(input.val) if input.val else None,
                checkpoints=str(Path(output.decoder).parent / ".checkpoints"),
                decoder_out=output.decoder,
                curve_out=output.curve,
                **card_facts(w, "decoder"),
            )
        ),
        launch=lambda w: accelerate(PHASES[w.phase].recipe),
        code=code("train_decoder"),
    shell:
        '{params.launch} "$LANGPTUNE/scripts/train_decoder.py" --spec {params.spec:q} --log {log:q}'


rule embed_phase_items:
    input:
        **data_files("items"),
        decoder=f"{PHASE}/decoder",
    output:
        vectors=f"{PHASE}/vectors.safetensors",
    log:
        f"{LOGS}/embed_phase_items/{{dataset}}-{{models}}-seed{{seed}}-{{phase}}.log",
    benchmark:
        f"{BENCHMARKS}/embed_phase_items/{{dataset}}-{{models}}-seed{{seed}}-{{phase}}.jsonl"
    wildcard_constraints:
        phase=phases_of("decoder"),
    priority: 50
    conda:
        ENVIRONMENT
    resources:
        **decodes(lambda w: decoder_of(w.models)),
    params:
        **specified(
            lambda w, input, output: spec(
                decoder=usage(decoder_of(w.models)),
                decoder_in=input.decoder,
                items_in=input.items_file,
                vectors_out=output.vectors,
            )
        ),
        code=code("embed_items"),
    shell:
        'python "$LANGPTUNE/scripts/embed_items.py" --spec {params.spec:q} --log {log:q}'


rule train_encoder:
    input:
        **data_files("items", "sessions", "users", "training"),
        encoder=lambda w: model_folder(encoder_of(w.models)),
        start=by_phase(adapter_of, lambda phase: phase.parent),
        decoder=by_phase(decoder_folder),
        vectors=by_phase(vectors_of),
        popularity=lambda w: weight_file(reward_weight(w.dataset, w.models, w.seed, PHASES[w.phase])),
    output:
        encoder=directory(f"{PHASE}/encoder"),
        curve=f"{PHASE}/curve.jsonl",
    log:
        f"{LOGS}/train_encoder/{{dataset}}-{{models}}-seed{{seed}}-{{phase}}.log",
    benchmark:
        f"{BENCHMARKS}/train_encoder/{{dataset}}-{{models}}-seed{{seed}}-{{phase}}.jsonl"
    wildcard_constraints:
        phase=phases_of("encoder"),
    priority: 40
    retries: RETRIES
    conda:
        ENVIRONMENT
    threads: CONFIG.training.threads
    resources:
        **needs(
            memory=6000,
            minutes=60,
            model=lambda w: encoder_of(w.models),
            per_million=8,
            per_billion=240,
            gpus=1,
            launch=lambda w: PHASES[w.phase].recipe.launch,
        ),
    params:
        **specified(
            lambda w, input, output: spec(
                encoder=usage(encoder_of(w.models)),
                encoder_in=input.encoder,
                start_in=str(input.start) if input.start else None,
                decoder=usage(decoder_of(w.models)),
                decoder_in=input.decoder,
                vectors_in=input.vectors,
                **weight_spec(reward_weight(w.dataset, w.models, w.seed, PHASES[w.phase]), input),
                recipe=PHASES[w.phase].recipe,
                prompt=PHASES[w.phase].prompt,
                prompt_entry=WORKFLOW.prompts[PHASES[w.phase].prompt],
                history_items=PHASES[w.phase].history_items,
                max_tokens=PHASES[w.phase].max_tokens,
                train_fraction=PHASES[w.phase].train_fraction,
                seed=int(w.seed),
                stream=PHASES[w.phase].stream,
                threads=CONFIG.training.threads,
                batch_size=CONFIG.generation.batch_size,
                items_in=input.items_file,
                sessions_in=input.sessions_file,
                users_in=input.users_file,
                training_in=input.training_file,
                taste_field=taste_field(w.dataset),
                checkpoints=str(Path(output.encoder).parent / ".checkpoints"),
                encoder_out=output.encoder,
                curve_out=output.curve,
                **card_facts(w, "encoder"),
            )
        ),
        launch=lambda w: accelerate(PHASES[w.phase].recipe),
        code=lambda w: code("train_encoder", loads=[ALGORITHMS.module(PHASES[w.phase].recipe.algorithm)]),
    shell:
        '{params.launch} "$LANGPTUNE/scripts/train_encoder.py" --spec {params.spec:q} --log {log:q}'
