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
            sample={"test": CONFIG.sample.test, "seed": CONFIG.sample.seed},
            sessions_in=input.sessions_file,
            sample_out=output.evaluation_file,
        ),
        code=code("draw_sample"),
    shell:
        'python "$LANGPTUNE/scripts/draw_sample.py" --spec {params.spec:q} --log {log:q}'


# A file of its own, so that more train sessions rank no test session again.
rule draw_training_sample:
    input:
        **data_files("sessions"),
    output:
        **data_files("training"),
    log:
        f"{LOGS}/draw_training_sample/{{dataset}}.log",
    resources:
        mem_mb=500,
    params:
        spec=lambda w, input, output: spec(
            sample={"train": CONFIG.sample.train, "val": CONFIG.sample.val, "seed": CONFIG.sample.seed},
            splits=["train", "val"],
            sessions_in=input.sessions_file,
            sample_out=output.training_file,
        ),
        code=code("draw_sample"),
    shell:
        'python "$LANGPTUNE/scripts/draw_sample.py" --spec {params.spec:q} --log {log:q}'
