"""Baselines: RecBole models, of which a validation grid fans out into trials and the best one trains for every seed; and
NMF, which takes seconds and chooses for itself."""


localrules:
    select_recbole,


rule try_recbole:
    input:
        **data_files("items", "sessions"),
    output:
        trial=f"{RESULTS}/{{dataset}}/{{method}}/{{models}}/tune/trial{{trial}}.json",
        curve=f"{RESULTS}/{{dataset}}/{{method}}/{{models}}/tune/trial{{trial}}.curve.jsonl",
    log:
        f"{LOGS}/try_recbole/{{dataset}}-{{method}}-{{models}}-trial{{trial}}.log",
    benchmark:
        f"{BENCHMARKS}/try_recbole/{{dataset}}-{{method}}-{{models}}-trial{{trial}}.jsonl"
    wildcard_constraints:
        method=methods_of("train_recbole"),
    conda:
        ENVIRONMENT
    resources:
        **needs(memory=2000, minutes=240, gpus=1),
    params:
        **specified(
            lambda w, input, output: recbole_spec(
                w,
                input,
                output,
                "trial",
                METHODS[w.method].grid()[int(w.trial)],
                CONFIG.seeds[0],
                trial_out=output.trial,
                curve_out=output.curve,
            )
        ),
        code=code("train_recbole"),
    shell:
        'python "$LANGPTUNE/scripts/train_recbole.py" --spec {params.spec:q} --log {log:q}'


rule select_recbole:
    input:
        trials=lambda w: [
            f"{RESULTS}/{w.dataset}/{w.method}/{w.models}/tune/trial{trial}.json"
            for trial in range(len(METHODS[w.method].grid()))
        ],
    output:
        best=f"{RESULTS}/{{dataset}}/{{method}}/{{models}}/tune/best.json",
    log:
        f"{LOGS}/select_recbole/{{dataset}}-{{method}}-{{models}}.log",
    benchmark:
        f"{BENCHMARKS}/select_recbole/{{dataset}}-{{method}}-{{models}}.jsonl"
    wildcard_constraints:
        method=methods_of("train_recbole"),
    conda:
        ENVIRONMENT
    resources:
        **needs(memory=500, minutes=10),
    params:
        **specified(lambda w, input, output: spec(trials_in=list(input.trials), best_out=output.best)),
        code=code("select_trial"),
    shell:
        'python "$LANGPTUNE/scripts/select_trial.py" --spec {params.spec:q} --log {log:q}'


rule train_recbole:
    input:
        **data_files("items", "sessions"),
        # Without a grid there is nothing to select, and training starts at once.
        best=lambda w: (f"{RESULTS}/{w.dataset}/{w.method}/{w.models}/tune/best.json" if METHODS[w.method].tune else []),
    output:
        ranks=f"{RESULTS}/{{dataset}}/{{method}}/{{models}}/seed{{seed}}/ranks.parquet",
        curve=f"{RESULTS}/{{dataset}}/{{method}}/{{models}}/seed{{seed}}/curve.jsonl",
    log:
        f"{LOGS}/train_recbole/{{dataset}}-{{method}}-{{models}}-seed{{seed}}.log",
    benchmark:
        f"{BENCHMARKS}/train_recbole/{{dataset}}-{{method}}-{{models}}-seed{{seed}}.jsonl"
    wildcard_constraints:
        method=methods_of("train_recbole"),
    conda:
        ENVIRONMENT
    resources:
        **needs(memory=2000, minutes=240, gpus=1),
    params:
        **specified(
            lambda w, input, output: recbole_spec(
                w,
                input,
                output,
                "final",
                METHODS[w.method].settings,
                int(w.seed),
                best_in=input.best or None,
                ranks_out=output.ranks,
                curve_out=output.curve,
            )
        ),
        code=code("train_recbole"),
    shell:
        'python "$LANGPTUNE/scripts/train_recbole.py" --spec {params.spec:q} --log {log:q}'


rule rank_nmf:
    input:
        **data_files("items", "sessions"),
    output:
        ranks=f"{RESULTS}/{{dataset}}/{{method}}/{{models}}/seed{{seed}}/ranks.parquet",
    log:
        f"{LOGS}/rank_nmf/{{dataset}}-{{method}}-{{models}}-seed{{seed}}.log",
    benchmark:
        f"{BENCHMARKS}/rank_nmf/{{dataset}}-{{method}}-{{models}}-seed{{seed}}.jsonl"
    wildcard_constraints:
        method=methods_of("rank_nmf"),
    group:
        cheap
    conda:
        ENVIRONMENT
    resources:
        **needs(memory=2000, minutes=120),
    params:
        **specified(
            lambda w, input, output: spec(
                components=METHODS[w.method].grid(),
                max_iterations=METHODS[w.method].max_iterations,
                tune_seed=CONFIG.seeds[0],
                seed=int(w.seed),
                items_in=input.items_file,
                sessions_in=input.sessions_file,
                ranks_out=output.ranks,
            )
        ),
        code=code("rank_nmf"),
    shell:
        'python "$LANGPTUNE/scripts/rank_nmf.py" --spec {params.spec:q} --log {log:q}'
