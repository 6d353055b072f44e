"""Survey: a questionnaire for people that compares a trained encoder's profiles with those of the reference."""


localrules:
    make_survey,
    survey,


SURVEY = f"{RESULTS}/{{dataset}}/{{method}}/{{encoder}}+{{decoder}}/seed{{seed}}/survey"


rule make_survey:
    input:
        **data_files("items", "sessions", "evaluation"),
        reference=reference_in,
        trained=profiles_in,
    output:
        questionnaire=f"{SURVEY}/questionnaire.html",
        # It holds the survey's secret salt, which the script reads again: Snakemake must not delete it before.
        codebook=update(f"{SURVEY}/codebook.json"),
        codebook_md=f"{SURVEY}/codebook.md",
    log:
        f"{LOGS}/make_survey/{{dataset}}-{{method}}-{{encoder}}+{{decoder}}-seed{{seed}}.log",
    benchmark:
        f"{BENCHMARKS}/make_survey/{{dataset}}-{{method}}-{{encoder}}+{{decoder}}-seed{{seed}}.jsonl"
    wildcard_constraints:
        method=either({run.method: None for run in surveyed(WORKFLOW)}),
    conda:
        ENVIRONMENT
    resources:
        **needs(memory=500, minutes=10),
    params:
        **specified(
            lambda w, input, output: spec(
                title="Which text describes a person's taste?",
                reference_title=METHODS[CONFIG.interpretability.reference].title,
                reference_in=input.reference,
                trained_title=METHODS[w.method].title,
                trained_in=input.trained,
                items_in=input.items_file,
                sessions_in=input.sessions_file,
                evaluation_in=input.evaluation_file,
                questions=CONFIG.interpretability.survey_questions,
                history_items=METHODS[w.method].history_items,
                seed=CONFIG.interpretability.seed,
                questionnaire_out=output.questionnaire,
                codebook_out=output.codebook,
                codebook_md_out=output.codebook_md,
            )
        ),
        code=code("make_survey"),
    shell:
        'python "$LANGPTUNE/scripts/make_survey.py" --spec {params.spec:q} --log {log:q}'


rule survey:
    """A questionnaire and its codebook for every method that trains the encoder (docs/survey.md)."""
    input:
        surveys(WORKFLOW),
