"""Cost: time and memory of all jobs of a dataset, from their benchmark files, beside a plan's prediction."""


localrules:
    cost,


COST = stage("cost", by="{dataset}")


# The cost describes the machine of the run: no rule depends on it, and it is not compared between machines.
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
        # The script finds this file by itself. The params have its hash, so that a moved checkout invalidates nothing.
        rates=file_hash(ROOT / "config" / "rates.yaml")[:16],
        amounts=lambda w: digest(ROOT / "scripts", "amount"),
    shell:
        'python "$LANGPTUNE/scripts/cost.py" --spec {params.spec:q} --log {log:q}'
