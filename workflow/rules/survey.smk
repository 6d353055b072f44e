"""Survey: a questionnaire for people that compares a trained encoder's profiles with those of the reference."""


localrules:
    make_survey,
    survey,


SURVEY = f"{PROFILED}/survey"
MAKE_SURVEY = stage("make_survey", by=BY_PROFILED)


rule make_survey:
    input:
        **tables("items", "sessions", "evaluation"),
        reference_in=lambda w: job(w).reference_profiles,
        trained_in=lambda w: job(w).profiles,
    output:
        questionnaire_out=f"{SURVEY}/questionnaire.html",
        # It has the survey's secret salt, which the script reads again: Snakemake must not delete it before the job.
        codebook_out=update(f"{SURVEY}/codebook.json"),
        codebook_md_out=f"{SURVEY}/codebook.md",
    log:
        MAKE_SURVEY.log,
    benchmark:
        MAKE_SURVEY.benchmark
    wildcard_constraints:
        method=either({run.method: None for run in surveyed(PROJECT.workflow)}),
    conda:
        ENVIRONMENT
    resources:
        **MAKE_SURVEY.resources,
    params:
        **MAKE_SURVEY.params,
    shell:
        'python "$LANGPTUNE/scripts/make_survey.py" --spec {params.spec:q} --log {log:q}'


rule survey:
    """A questionnaire and its codebook for every method that trains the encoder (docs/survey.md)."""
    input:
        surveys(PROJECT.workflow),
