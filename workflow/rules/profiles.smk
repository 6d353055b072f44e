"""Profiles: written by the encoder in shards, each resumable batch by batch, then gathered."""


rule write_profiles:
    input:
        **data_files("items", "sessions", "users", "evaluation"),
        encoder=lambda w: model_folder(w.encoder),
    output:
        profiles=profile_file("shards/{shard}-of-{shards}"),
    log:
        f"{LOGS}/write_profiles/{{dataset}}-{{method}}-{{encoder}}-seed{{seed}}-{{shard}}-of-{{shards}}.log",
    wildcard_constraints:
        method=methods_of(kinds.ProfileMethod),
        shard=r"\d+",
        shards=r"\d+",
    threads: CONFIG.generation.threads
    resources:
        mem_mb=lambda w: 3000 + 3 * MODELS[w.encoder].parameters // 10**6,
    params:
        spec=lambda w, input, output: spec(
            encoder=usage(w.encoder),
            encoder_in=input.encoder,
            prompt=WORKFLOW.prompt_of(w.dataset, w.method),
            template=WORKFLOW.prompts[WORKFLOW.prompt_of(w.dataset, w.method)].template,
            history_items=METHODS[w.method].history_items,
            max_tokens=METHODS[w.method].max_tokens,
            temperature=METHODS[w.method].temperature,
            seed=int(w.seed),
            batch_size=CONFIG.generation.batch_size,
            dtype=CONFIG.generation.dtype,
            shard=int(w.shard),
            shards=int(w.shards),
            items_in=input.items_file,
            sessions_in=input.sessions_file,
            users_in=input.users_file,
            evaluation_in=input.evaluation_file,
            threads=CONFIG.generation.threads,
            journal=output.profiles.removesuffix(".parquet") + ".journal",
            profiles_out=output.profiles,
        ),
        code=code("write_profiles"),
    shell:
        'python "$LANGPTUNE/scripts/write_profiles.py" --spec {params.spec:q} --log {log:q}'


rule gather_profiles:
    input:
        **data_files("evaluation"),
        shards=expand(
            profile_file("shards/{shard}-of-{shards}"),
            shard=range(1, CONFIG.generation.shards + 1),
            shards=CONFIG.generation.shards,
            allow_missing=True,
        ),
    output:
        profiles=profile_file("profiles"),
    log:
        f"{LOGS}/gather_profiles/{{dataset}}-{{method}}-{{encoder}}-seed{{seed}}.log",
    wildcard_constraints:
        method=methods_of(kinds.ProfileMethod),
    resources:
        mem_mb=500,
    params:
        spec=lambda w, input, output: spec(
            shards_in=list(input.shards), evaluation_in=input.evaluation_file, profiles_out=output.profiles
        ),
        code=code("gather_profiles"),
    shell:
        'python "$LANGPTUNE/scripts/gather_profiles.py" --spec {params.spec:q} --log {log:q}'
