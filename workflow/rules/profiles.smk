"""Profiles: written by the encoder of a phase in shards, each resumable batch by batch, then gathered."""


localrules:
    gather_profiles,


rule write_profiles:
    input:
        **data_files("items", "sessions", "users"),
        sample=lambda w: data_file(w.dataset, "evaluation" if DRAWS[w.draw].split == "test" else "training"),
        encoder=lambda w: model_folder(encoder_of(w.models)),
        adapter=by_phase(adapter_of),
    output:
        profiles=f"{PHASE}/profiles/{{draw}}/shards/{{shard}}-of-{{shards}}.parquet",
    log:
        f"{LOGS}/write_profiles/{{dataset}}-{{models}}-seed{{seed}}-{{phase}}-{{draw}}-{{shard}}-of-{{shards}}.log",
    benchmark:
        f"{BENCHMARKS}/write_profiles/{{dataset}}-{{models}}-seed{{seed}}-{{phase}}-{{draw}}-{{shard}}-of-{{shards}}.jsonl"
    wildcard_constraints:
        shard=r"\d+",
        shards=r"\d+",
    # What training waits for comes first; see training.smk.
    priority: 20
    conda:
        ENVIRONMENT
    threads: CONFIG.generation.threads
    resources:
        **needs(memory=4500, minutes=30, model=lambda w: encoder_of(w.models), per_million=3, per_billion=100, gpus=1),
    params:
        **specified(
            lambda w, input, output: spec(
                encoder=usage(encoder_of(w.models)),
                encoder_in=input.encoder,
                adapter_in=str(input.adapter) if input.adapter else None,
                prompt=PHASES[w.phase].prompt,
                prompt_entry=WORKFLOW.prompts[PHASES[w.phase].prompt],
                history_items=PHASES[w.phase].history_items,
                max_tokens=PHASES[w.phase].max_tokens,
                temperature=DRAWS[w.draw].temperature,
                samples=DRAWS[w.draw].samples,
                split=DRAWS[w.draw].split,
                seed=int(w.seed),
                number=DRAWS[w.draw].number,
                batch_size=CONFIG.generation.batch_size,
                dtype=CONFIG.generation.dtype,
                shard=int(w.shard),
                shards=int(w.shards),
                items_in=input.items_file,
                sessions_in=input.sessions_file,
                users_in=input.users_file,
                evaluation_in=input.sample,
                threads=CONFIG.generation.threads,
                journal=output.profiles.removesuffix(".parquet") + ".journal",
                **answers_kept(encoder_of(w.models)),
                profiles_out=output.profiles,
            )
        ),
        code=lambda w: code("write_profiles", unasked(encoder_of(w.models))),
    shell:
        'python "$LANGPTUNE/scripts/write_profiles.py" --spec {params.spec:q} --log {log:q}'


rule gather_profiles:
    input:
        sample=lambda w: data_file(w.dataset, "evaluation" if DRAWS[w.draw].split == "test" else "training"),
        shards=expand(
            f"{PHASE}/profiles/{{draw}}/shards/{{shard}}-of-{{shards}}.parquet",
            shard=range(1, LISTED_SHARDS + 1),
            shards=CONFIG.generation.shards,
            allow_missing=True,
        ),
    output:
        profiles=f"{PHASE}/profiles/{{draw}}.parquet",
    log:
        f"{LOGS}/gather_profiles/{{dataset}}-{{models}}-seed{{seed}}-{{phase}}-{{draw}}.log",
    benchmark:
        f"{BENCHMARKS}/gather_profiles/{{dataset}}-{{models}}-seed{{seed}}-{{phase}}-{{draw}}.jsonl"
    priority: 50
    conda:
        ENVIRONMENT
    resources:
        **needs(memory=500, minutes=10),
    params:
        **specified(
            lambda w, input, output: spec(
                shards_in=shards_of(output.profiles),
                evaluation_in=input.sample,
                split=DRAWS[w.draw].split,
                samples=DRAWS[w.draw].samples,
                profiles_out=output.profiles,
            )
        ),
        code=code("gather_profiles"),
    shell:
        'python "$LANGPTUNE/scripts/gather_profiles.py" --spec {params.spec:q} --log {log:q}'
