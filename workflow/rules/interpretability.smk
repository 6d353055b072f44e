"""Interpretability: what profiles are like, run by run, and one table, figures and examples per dataset."""


localrules:
    interpret,
    show_examples,


rule measure_profiles:
    input:
        **data_files("items", "sessions", "users", "evaluation"),
        profiles=profiles_in,
        encoder=lambda w: model_folder(w.encoder),
        verifier=model_folder(WORKFLOW.verifier) if WORKFLOW.verifier else [],
    output:
        measures=f"{MEASURED}/measures.parquet",
        claims=f"{MEASURED}/claims.parquet",
    log:
        f"{LOGS}/measure_profiles/{{dataset}}-{{method}}-{{encoder}}+{{decoder}}-seed{{seed}}.log",
    benchmark:
        f"{BENCHMARKS}/measure_profiles/{{dataset}}-{{method}}-{{encoder}}+{{decoder}}-seed{{seed}}.jsonl"
    wildcard_constraints:
        method=READABLE,
    conda:
        ENVIRONMENT
    threads: CONFIG.generation.threads
    resources:
        **needs(memory=3000, minutes=30, model=lambda w: w.encoder, per_million=3, per_billion=60, gpus=1),
    params:
        **specified(
            lambda w, input, output: profile_spec(
                w,
                input,
                users_in=input.users_file,
                encoder=usage(w.encoder),
                encoder_in=None if MODELS[w.encoder].source.endpoint else input.encoder,
                prompt=WORKFLOW.prompt_of(w.dataset, source_of(w.method)),
                prompt_entry=WORKFLOW.prompts[WORKFLOW.prompt_of(w.dataset, source_of(w.method))],
                max_tokens=METHODS[source_of(w.method)].max_tokens,
                verifier=usage(WORKFLOW.verifier),
                verifier_in=input.verifier,
                strangers=CONFIG.interpretability.strangers,
                threads=CONFIG.generation.threads,
                dtype=CONFIG.generation.dtype,
                measures_out=output.measures,
                claims_out=output.claims,
            )
        ),
        code=code("measure_profiles"),
    shell:
        'python "$LANGPTUNE/scripts/measure_profiles.py" --spec {params.spec:q} --log {log:q}'


rule simulate:
    input:
        **data_files("items", "sessions", "evaluation"),
        profiles=profiles_in,
        reader=model_folder(WORKFLOW.reader) if WORKFLOW.reader else [],
    output:
        simulation=f"{MEASURED}/simulation.parquet",
    log:
        f"{LOGS}/simulate/{{dataset}}-{{method}}-{{encoder}}+{{decoder}}-seed{{seed}}.log",
    benchmark:
        f"{BENCHMARKS}/simulate/{{dataset}}-{{method}}-{{encoder}}+{{decoder}}-seed{{seed}}.jsonl"
    wildcard_constraints:
        method=READABLE,
    conda:
        ENVIRONMENT
    threads: CONFIG.generation.threads
    resources:
        **needs(memory=3000, minutes=30, model=lambda w: WORKFLOW.reader, per_million=3, per_billion=60, gpus=1),
    params:
        **specified(
            lambda w, input, output: profile_spec(
                w,
                input,
                reader=usage(WORKFLOW.reader),
                reader_in=input.reader,
                candidates=CONFIG.interpretability.candidates,
                threads=CONFIG.generation.threads,
                dtype=CONFIG.generation.dtype,
                simulation_out=output.simulation,
            )
        ),
        code=code("simulate"),
    shell:
        'python "$LANGPTUNE/scripts/simulate.py" --spec {params.spec:q} --log {log:q}'


rule steer:
    input:
        **decoder_inputs(),
        profiles=profiles_in,
    output:
        steering=f"{MEASURED}/steering.parquet",
    log:
        f"{LOGS}/steer/{{dataset}}-{{method}}-{{encoder}}+{{decoder}}-seed{{seed}}.log",
    benchmark:
        f"{BENCHMARKS}/steer/{{dataset}}-{{method}}-{{encoder}}+{{decoder}}-seed{{seed}}.jsonl"
    wildcard_constraints:
        method=READABLE,
    conda:
        ENVIRONMENT
    resources:
        **decodes(lambda w: w.decoder),
    params:
        **specified(
            lambda w, input, output: profile_spec(
                w,
                input,
                decoder=usage(w.decoder),
                decoder_in=input.decoder,
                vectors_in=input.vectors,
                **weight_spec(LAYOUT.run_weight(run_in(w)), input),
                tastes=CONFIG.interpretability.tastes,
                steering_out=output.steering,
            )
        ),
        code=code("steer"),
    shell:
        'python "$LANGPTUNE/scripts/steer.py" --spec {params.spec:q} --log {log:q}'


rule interpret:
    input:
        metrics=lambda w: [metrics_of(run) for run in readable_runs(w.dataset)],
        measures=lambda w: [measured(run, name) for run in readable_runs(w.dataset) for name in MEASURES],
        verdicts=lambda w: [path for run in readable_runs(w.dataset) for path in judged(run).values()],
    output:
        **{name: f"{RESULTS}/{{dataset}}/interpretability/{file}" for name, file in INTERPRETED.items()},
        table_html=report(
            f"{RESULTS}/{{dataset}}/interpretability/table.html",
            caption="../report/interpretability.rst",
            category="{dataset}",
        ),
        tradeoff=report(
            f"{RESULTS}/{{dataset}}/interpretability/tradeoff.png",
            caption="../report/tradeoff.rst",
            category="{dataset}",
        ),
        steering=report(
            f"{RESULTS}/{{dataset}}/interpretability/steering.png",
            caption="../report/steering.rst",
            category="{dataset}",
        ),
    log:
        f"{LOGS}/interpret/{{dataset}}.log",
    benchmark:
        f"{BENCHMARKS}/interpret/{{dataset}}.jsonl"
    conda:
        ENVIRONMENT
    resources:
        **needs(memory=1000, minutes=20),
    params:
        **specified(
            lambda w, input, output: spec(
                title=f"Interpretability: {DATASETS[w.dataset].title}",
                facts=interpretability_facts(),
                runs=[
                    {
                        **run_entry(run),
                        **{name: measured(run, name) for name in MEASURES},
                        "verdicts": [
                            {"judge": judge, "title": WORKFLOW.judges[judge].title, "path": path}
                            for judge, path in judged(run).items()
                        ],
                    }
                    for run in readable_runs(w.dataset)
                ],
                reference=CONFIG.interpretability.reference,
                main_metric=CONFIG.comparison.main_metric,
                candidates=CONFIG.interpretability.candidates,
                bootstrap=CONFIG.comparison.bootstrap,
                confidence=CONFIG.comparison.confidence,
                seed=CONFIG.comparison.seed,
                table_csv_out=output.table_csv,
                table_md_out=output.table_md,
                table_html_out=output.table_html,
                judges_out=output.judges,
                tradeoff_out=[output.tradeoff, output.tradeoff_pdf],
                steering_out=[output.steering, output.steering_pdf],
            )
        ),
        code=code("interpret"),
    shell:
        'python "$LANGPTUNE/scripts/interpret.py" --spec {params.spec:q} --log {log:q}'


rule show_examples:
    input:
        **data_files("items", "sessions", "evaluation"),
        files=lambda w: [
            file
            for run in example_runs(w.dataset)
            for file in (ranks_of(run), *(measured(run, name) for name in ("measures", "claims", "simulation")))
        ],
    output:
        page=report(
            f"{RESULTS}/{{dataset}}/interpretability/examples.html",
            caption="../report/examples.rst",
            category="{dataset}",
        ),
    log:
        f"{LOGS}/show_examples/{{dataset}}.log",
    benchmark:
        f"{BENCHMARKS}/show_examples/{{dataset}}.jsonl"
    conda:
        ENVIRONMENT
    resources:
        **needs(memory=500, minutes=10),
    params:
        **specified(
            lambda w, input, output: spec(
                title=f"Examples: {DATASETS[w.dataset].title}",
                columns=[
                    {
                        "title": METHODS[run.method].title,
                        "ranks": ranks_of(run),
                        **{name: measured(run, name) for name in ("measures", "claims", "simulation")},
                    }
                    for run in example_runs(w.dataset)
                ],
                items_in=input.items_file,
                sessions_in=input.sessions_file,
                evaluation_in=input.evaluation_file,
                history_items=max(METHODS[source_of(name)].history_items for name in WORKFLOW.readable),
                candidates=CONFIG.interpretability.candidates,
                measured=CONFIG.interpretability.sessions,
                examples=CONFIG.interpretability.examples,
                seed=CONFIG.interpretability.seed,
                page_out=output.page,
            )
        ),
        code=code("show_examples"),
    shell:
        'python "$LANGPTUNE/scripts/show_examples.py" --spec {params.spec:q} --log {log:q}'
