"""Baselines: what ranks without a text (langptune.baselines). A validation grid fans out into trials; the best point is
fitted for every seed."""


localrules:
    select_baseline,


# What a job of a baseline needs; and the code that it runs, of which that of other baselines is no part.
BASELINE_NEEDS = needs(
    memory=lambda w: METHODS[w.method].memory,
    minutes=lambda w: METHODS[w.method].minutes,
    gpus=lambda w: METHODS[w.method].gpus,
)
BASELINE_CODE = {kind: code("fit_baseline", loads=[BASELINES.module(kind)]) for kind in BASELINES.names()}


rule try_baseline:
    input:
        **data_files("items", "sessions"),
    output:
        trial=f"{RESULTS}/{{dataset}}/{{method}}/{{models}}/tune/trial{{trial}}.json",
        curve=f"{RESULTS}/{{dataset}}/{{method}}/{{models}}/tune/trial{{trial}}.curve.jsonl",
    log:
        f"{LOGS}/try_baseline/{{dataset}}-{{method}}-{{models}}-trial{{trial}}.log",
    benchmark:
        f"{BENCHMARKS}/try_baseline/{{dataset}}-{{method}}-{{models}}-trial{{trial}}.jsonl"
    wildcard_constraints:
        method=methods_of("fit_baseline"),
    group:
        cheap
    conda:
        ENVIRONMENT
    resources:
        **BASELINE_NEEDS,
    params:
        **specified(
            lambda w, input, output: baseline_spec(
                w,
                input,
                output,
                "trial",
                CONFIG.seeds[0],
                point=METHODS[w.method].grid()[int(w.trial)],
                trial_out=output.trial,
            )
        ),
        code=lambda w: BASELINE_CODE[METHODS[w.method].kind],
    shell:
        'python "$LANGPTUNE/scripts/fit_baseline.py" --spec {params.spec:q} --log {log:q}'


rule select_baseline:
    input:
        trials=lambda w: [
            f"{RESULTS}/{w.dataset}/{w.method}/{w.models}/tune/trial{trial}.json"
            for trial in range(len(METHODS[w.method].grid()))
        ],
    output:
        best=f"{RESULTS}/{{dataset}}/{{method}}/{{models}}/tune/best.json",
    log:
        f"{LOGS}/select_baseline/{{dataset}}-{{method}}-{{models}}.log",
    benchmark:
        f"{BENCHMARKS}/select_baseline/{{dataset}}-{{method}}-{{models}}.jsonl"
    wildcard_constraints:
        method=methods_of("fit_baseline"),
    conda:
        ENVIRONMENT
    resources:
        **needs(memory=500, minutes=10),
    params:
        **specified(lambda w, input, output: spec(trials_in=list(input.trials), best_out=output.best)),
        code=code("select_baseline"),
    shell:
        'python "$LANGPTUNE/scripts/select_baseline.py" --spec {params.spec:q} --log {log:q}'


rule fit_baseline:
    input:
        **data_files("items", "sessions"),
        # Without a grid there is nothing to select, and fitting starts at once.
        best=lambda w: f"{RESULTS}/{w.dataset}/{w.method}/{w.models}/tune/best.json" if METHODS[w.method].trials else [],
    output:
        ranks=f"{RESULTS}/{{dataset}}/{{method}}/{{models}}/seed{{seed}}/ranks.parquet",
        curve=f"{RESULTS}/{{dataset}}/{{method}}/{{models}}/seed{{seed}}/curve.jsonl",
    log:
        f"{LOGS}/fit_baseline/{{dataset}}-{{method}}-{{models}}-seed{{seed}}.log",
    benchmark:
        f"{BENCHMARKS}/fit_baseline/{{dataset}}-{{method}}-{{models}}-seed{{seed}}.jsonl"
    wildcard_constraints:
        method=methods_of("fit_baseline"),
    group:
        cheap
    conda:
        ENVIRONMENT
    resources:
        **BASELINE_NEEDS,
    params:
        **specified(
            lambda w, input, output: baseline_spec(
                w, input, output, "final", int(w.seed), best_in=input.best or None, ranks_out=output.ranks
            )
        ),
        code=lambda w: BASELINE_CODE[METHODS[w.method].kind],
    shell:
        'python "$LANGPTUNE/scripts/fit_baseline.py" --spec {params.spec:q} --log {log:q}'
