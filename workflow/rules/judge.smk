"""Judges: a language model compares the profiles of a method with those of a reference (docs/judge.md)."""

JUDGE = stage("judge", by="{dataset}-{method}-{encoder}-{decoder}-seed{seed}-{judge}")


rule judge:
    input:
        **tables("items", "sessions", "evaluation"),
        profiles_in=lambda w: job(w).profiles,
        reference_in=lambda w: job(w).reference_profiles,
        model_in=lambda w: PROJECT.paths.model_folder(PROJECT.judges[w.judge].model),
    output:
        verdicts_out=f"{PROFILED}/judge/{{judge}}.parquet",
    log:
        JUDGE.log,
    benchmark:
        JUDGE.benchmark
    wildcard_constraints:
        method=either(PROJECT.workflow.readable),
        judge=either(PROJECT.judges),
    conda:
        ENVIRONMENT
    threads: JUDGE.threads
    resources:
        **JUDGE.resources,
    params:
        **JUDGE.params,
    shell:
        'python "$LANGPTUNE/scripts/judge.py" --spec {params.spec:q} --log {log:q}'
