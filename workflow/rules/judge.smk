"""Judges: a language model compares the profiles of a method with those of a reference (docs/judge.md)."""


rule judge:
    input:
        **data_files("items", "sessions", "evaluation"),
        profiles=profiles_in,
        reference=reference_in,
        model=lambda w: model_folder(judge_model(w)),
    output:
        verdicts=f"{RESULTS}/{{dataset}}/{{method}}/{{encoder}}+{{decoder}}/seed{{seed}}/judge/{{judge}}.parquet",
    log:
        f"{LOGS}/judge/{{dataset}}-{{method}}-{{encoder}}-{{decoder}}-seed{{seed}}-{{judge}}.log",
    benchmark:
        f"{BENCHMARKS}/judge/{{dataset}}-{{method}}-{{encoder}}-{{decoder}}-seed{{seed}}-{{judge}}.jsonl"
    wildcard_constraints:
        method=READABLE,
        judge=either(JUDGES),
    conda:
        ENVIRONMENT
    threads: judge_threads
    resources:
        # One server a job; its memory is that of the model in float32 twice over, while it is loaded.
        **needs(memory=3000, minutes=30, model=judge_model, per_million=8, per_billion=100, gpus=1),
    params:
        **specified(
            lambda w, input, output: spec(
                judge=w.judge,
                judge_entry=JUDGES[w.judge].model_copy(update={"title": ""}),
                model=usage(judge_model(w)),
                model_in=input.model,
                method=METHODS[w.method].title,
                profiles_in=input.profiles,
                shuffle=shuffle_of(w),
                reference=METHODS[CONFIG.interpretability.reference].title,
                reference_in=input.reference,
                items_in=input.items_file,
                sessions_in=input.sessions_file,
                evaluation_in=input.evaluation_file,
                sessions=CONFIG.interpretability.judge_sessions,
                seed=CONFIG.interpretability.seed,
                max_usd=CONFIG.interpretability.judge_max_usd,
                threads=CONFIG.generation.threads,
                dtype=CONFIG.generation.dtype,
                cache=ANSWERS,
                verdicts_out=output.verdicts,
            )
        ),
        code=code("judge"),
    shell:
        'python "$LANGPTUNE/scripts/judge.py" --spec {params.spec:q} --log {log:q}'
