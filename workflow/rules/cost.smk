"""Cost and checklist, from what all jobs of a dataset recorded: time and memory beside a plan's prediction; variables that
a paper should report. Both describe the machine of the run, so that no rule of a table or figure depends on them."""


localrules:
    cost,
    fill_checklist,


COST = stage("cost", by="{dataset}")
FILL_CHECKLIST = stage("fill_checklist", by="{dataset}")


rule cost:
    input:
        results=lambda w: targets.results(PROJECT, w.dataset),
    output:
        table_out=report(f"{COMPARISON}/cost.csv", caption="../report/cost.rst", category="{dataset}"),
        figure_out=[
            report(f"{COMPARISON}/cost.png", caption="../report/cost.rst", category="{dataset}"),
            f"{COMPARISON}/cost.pdf",
        ],
        page_out=f"{COMPARISON}/cost.md",
        inference_out=f"{COMPARISON}/inference.csv",
    log:
        COST.log,
    benchmark:
        COST.benchmark
    conda:
        ENVIRONMENT
    resources:
        **COST.resources,
    params:
        **COST.params,
        # The script finds this file by itself. Its hash is in the params, so that a moved checkout reruns nothing.
        rates=file_hash(ROOT / "config" / "rates.yaml")[:16],
        amounts=lambda w: digest(ROOT / "scripts", "amount"),
    shell:
        'python "$LANGPTUNE/scripts/cost.py" --spec {params.spec:q} --log {log:q}'


rule fill_checklist:
    input:
        results=lambda w: targets.results(PROJECT, w.dataset),
        tuning_in=f"{COMPARISON}/tuning.csv",
        costs_in=f"{COMPARISON}/cost.csv",
        users_in=f"{COMPARISON}/inference.csv",
        tests_in=f"{COMPARISON}/comparisons.csv",
    output:
        checklist_out=f"{COMPARISON}/checklist.md",
        page_out=report(f"{COMPARISON}/checklist.html", caption="../report/checklist.rst", category="{dataset}"),
    log:
        FILL_CHECKLIST.log,
    benchmark:
        FILL_CHECKLIST.benchmark
    conda:
        ENVIRONMENT
    resources:
        **FILL_CHECKLIST.resources,
    params:
        **FILL_CHECKLIST.params,
    shell:
        'python "$LANGPTUNE/scripts/fill_checklist.py" --spec {params.spec:q} --log {log:q}'
