"""Data: raw files to items and sessions under a named protocol, and the sample that methods are compared on."""


rule prepare_data:
    output:
        **data_files("items", "sessions", "users"),
    log:
        f"{LOGS}/prepare_data/{{dataset}}.log",
    resources:
        mem_mb=1000,
    params:
        spec=lambda w, output: spec(
            name=w.dataset,
            dataset=bare(DATASETS[w.dataset]),
            items_out=output.items_file,
            sessions_out=output.sessions_file,
            users_out=output.users_file,
        ),
        code=code("prepare_data"),
        raw=lambda w: raw_files(w.dataset),
    shell:
        'python "$LANGPTUNE/scripts/prepare_data.py" --spec {params.spec:q} --log {log:q}'


rule draw_sample:
    input:
        **data_files("sessions"),
    output:
        **data_files("evaluation"),
    log:
        f"{LOGS}/draw_sample/{{dataset}}.log",
    resources:
        mem_mb=500,
    params:
        spec=lambda w, input, output: spec(
            sample=CONFIG.sample, sessions_in=input.sessions_file, evaluation_out=output.evaluation_file
        ),
        code=code("draw_sample"),
    shell:
        'python "$LANGPTUNE/scripts/draw_sample.py" --spec {params.spec:q} --log {log:q}'
