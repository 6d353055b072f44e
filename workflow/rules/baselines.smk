"""Baselines: methods that rank without texts (langptune.baselines). Each point of a validation grid is a trial; the best
point is fitted for every seed."""


localrules:
    select_baseline,


BASELINES = either(PROJECT.ranked_by("fit_baseline"))
TRY_BASELINE = stage("try_baseline", by="{dataset}-{method}-{models}-trial{trial}", script="fit_baseline", mode="trial")
SELECT_BASELINE = stage("select_baseline", by="{dataset}-{method}-{models}")
FIT_BASELINE = stage("fit_baseline", by=BY_RUN, mode="final")
FIT_FUSED_BASELINE = stage("fit_fused_baseline", by=BY_RUN, script="fit_baseline", mode="final")


# In no group: selection comes between trials and fits, and jobs of one group must not depend on each other through a job
# outside it.
rule try_baseline:
    input:
        **tables("items", "sessions"),
    output:
        trial_out=f"{TUNED}/trial{{trial}}.json",
        curve_out=f"{TUNED}/trial{{trial}}.curve.jsonl",
    log:
        TRY_BASELINE.log,
    benchmark:
        TRY_BASELINE.benchmark
    wildcard_constraints:
        method=BASELINES,
    conda:
        ENVIRONMENT
    resources:
        **TRY_BASELINE.resources,
    params:
        **TRY_BASELINE.params,
    shell:
        'python "$LANGPTUNE/scripts/fit_baseline.py" --spec {params.spec:q} --log {log:q}'


rule select_baseline:
    input:
        trials_in=lambda w: expand(
            f"{TUNED}/trial{{trial}}.json", trial=range(len(PROJECT.workflow.points(w.method))), **w
        ),
    output:
        best_out=f"{TUNED}/best.json",
    log:
        SELECT_BASELINE.log,
    benchmark:
        SELECT_BASELINE.benchmark
    wildcard_constraints:
        method=BASELINES,
    conda:
        ENVIRONMENT
    resources:
        **SELECT_BASELINE.resources,
    params:
        **SELECT_BASELINE.params,
    shell:
        'python "$LANGPTUNE/scripts/select_baseline.py" --spec {params.spec:q} --log {log:q}'


rule fit_baseline:
    input:
        **tables("items", "sessions"),
        best_in=best_point,
    output:
        ranks_out=f"{RUN}/ranks.parquet",
        curve_out=f"{RUN}/curve.jsonl",
    log:
        FIT_BASELINE.log,
    benchmark:
        FIT_BASELINE.benchmark
    wildcard_constraints:
        method=either(PROJECT.ranked_by("fit_baseline", fused=False)),
    group:
        cheap
    conda:
        ENVIRONMENT
    resources:
        **FIT_BASELINE.resources,
    params:
        **FIT_BASELINE.params,
    shell:
        'python "$LANGPTUNE/scripts/fit_baseline.py" --spec {params.spec:q} --log {log:q}'


# For methods that a fusion adds: their scores are kept beside their ranks. In no group, because the fusion has none.
rule fit_fused_baseline:
    input:
        **tables("items", "sessions", "evaluation", "training"),
        best_in=best_point,
    output:
        ranks_out=f"{RUN}/ranks.parquet",
        curve_out=f"{RUN}/curve.jsonl",
        scores_out=f"{RUN}/scores.parquet",
        val_scores_out=f"{RUN}/val_scores.parquet",
    log:
        FIT_FUSED_BASELINE.log,
    benchmark:
        FIT_FUSED_BASELINE.benchmark
    wildcard_constraints:
        method=either(PROJECT.ranked_by("fit_baseline", fused=True)),
    conda:
        ENVIRONMENT
    resources:
        **FIT_FUSED_BASELINE.resources,
    params:
        **FIT_FUSED_BASELINE.params,
    shell:
        'python "$LANGPTUNE/scripts/fit_baseline.py" --spec {params.spec:q} --log {log:q}'
