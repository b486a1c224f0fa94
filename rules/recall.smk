# One-to-many recall: how a list of answers is produced without repetition. Only where the study has a `recall` section.


rule recall:
    """One model: its own lists as prompts, the last token taken apart at every step, knockouts, causal traces."""
    input:
        manifest=f"{DATA}/models/{{model}}/manifest.json",
        weights=ancient(weights_of_model),
        sources=recall_sources,
        code=code("recall"),
    output:
        prompts=f"{DATA}/recall/{{model}}/prompts.parquet",
        decode=f"{DATA}/recall/{{model}}/decode.safetensors",
        traces=f"{DATA}/recall/{{model}}/traces.parquet",
        summary=f"{DATA}/recall/{{model}}/summary.json",
    log:
        f"{LOGS}/recall/{{model}}.log",
    benchmark:
        f"{BENCHMARKS}/recall/{{model}}.tsv"
    threads: STUDY.engine.threads
    resources:
        gpu=GPUS,
    params:
        settings=settings(
            "seed",
            "recall",
            *(f"engine.{name}" for name in ["dtype", "device", "attention", "threads", "batch_tokens"]),
            *(["world.subjects"] if STUDY.world else []),
        ),
    message:
        "recall in {wildcards.model}: lists, last token, knockouts, traces"
    shell:
        "levelt recall --settings {params.settings:q} --model-manifest {input.manifest} --prompts {output.prompts}"
        " --decode {output.decode} --traces {output.traces} --summary {output.summary} 2> {log}"


rule recall_tables:
    """The tables of the recall study over its models."""
    input:
        manifests=expand(f"{DATA}/models/{{model}}/manifest.json", model=STUDY.recall_ids),
        results=expand(rules.recall.output, model=STUDY.recall_ids),
        code=code("recall_tables"),
    output:
        **{name: f"{DATA}/tables/{name}.csv" for name in RECALL_TABLES},
    log:
        f"{LOGS}/recall_tables.log",
    benchmark:
        f"{BENCHMARKS}/recall_tables.tsv"
    threads: 1
    params:
        settings=settings("seed", "statistics"),
        results=[f"{DATA}/recall/{model}" for model in STUDY.recall_ids],
        folder=subpath(output.lens, parent=True),
    message:
        "tabulating the recall study"
    shell:
        "levelt recall_tables --settings {params.settings:q} --manifests {input.manifests} --results {params.results}"
        " --out {params.folder} 2> {log}"
