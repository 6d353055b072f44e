"""Cost: what all jobs of a dataset took, from their benchmark files, beside what a plan would have said before."""


localrules:
    cost,


COST = stage("cost", by="{dataset}")


# A fact about the machine that the run was made on: nothing depends on it, and it is never compared.
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
        # Found by the script itself: the place of the checkout does not invalidate it.
        rates=file_hash(ROOT / "config" / "rates.yaml")[:16],
        amounts=lambda w: digest(ROOT / "scripts", "amount"),
    shell:
        'python "$LANGPTUNE/scripts/cost.py" --spec {params.spec:q} --log {log:q}'
