"""Cost: what all jobs of a dataset took, from their benchmark files, beside what a plan would have said before."""


localrules:
    cost,


COSTS = expand(
    f"{RESULTS}/{{dataset}}/comparison/cost.{{end}}", dataset=CONFIG.datasets, end=["csv", "md", "png", "pdf"]
)
"""The cost of every dataset. Not among `rules_of`: it comes after all of those."""


# A fact about the machine that the run was made on: nothing depends on it, and it is never compared.
rule cost:
    input:
        results=lambda w: results_of(w.dataset),
    output:
        table=report(f"{RESULTS}/{{dataset}}/comparison/cost.csv", caption="../report/cost.rst", category="{dataset}"),
        figure=report(f"{RESULTS}/{{dataset}}/comparison/cost.png", caption="../report/cost.rst", category="{dataset}"),
        page=f"{RESULTS}/{{dataset}}/comparison/cost.md",
        pdf=f"{RESULTS}/{{dataset}}/comparison/cost.pdf",
    log:
        f"{LOGS}/cost/{{dataset}}.log",
    benchmark:
        f"{BENCHMARKS}/cost/{{dataset}}.jsonl"
    conda:
        ENVIRONMENT
    resources:
        **needs(memory=1000, minutes=10),
    params:
        **specified(
            lambda w, output: spec(
                name=w.dataset,
                dataset=DATASETS[w.dataset],
                sample=CONFIG.sample,
                targets=results_of(w.dataset),
                folder=f"{RESULTS}/{w.dataset}",
                benchmarks=[BENCHMARKS],
                models=model_names(w.dataset),
                table_out=output.table,
                page_out=output.page,
                figure_out=[output.figure, output.pdf],
            )
        ),
        code=code("cost"),
        # Found by the script itself: where the repository lies is no reason to run it again.
        rates=hashlib.sha256((ROOT / "config" / "rates.yaml").read_bytes()).hexdigest()[:16],
    shell:
        'python "$LANGPTUNE/scripts/cost.py" --spec {params.spec:q} --log {log:q}'
