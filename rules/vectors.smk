# Instruction vectors: contrastive tasks, one job per model, and the tables of all models.


rule contrasts:
    """Queries with their answers, and instructions with their wordings, as two tables."""
    input:
        world=world_contrasts,
        files=contrast_files,
        code=code("contrasts"),
    output:
        queries=f"{DATA}/contrasts/queries.parquet",
        instructions=f"{DATA}/contrasts/instructions.parquet",
        report=f"{DATA}/contrasts/report.json",
    log:
        f"{LOGS}/contrasts.log",
    benchmark:
        f"{BENCHMARKS}/contrasts.tsv"
    threads: 1
    params:
        settings=settings("vectors.tasks"),
    message:
        "collecting the contrastive tasks of study {STUDY.study}"
    shell:
        "levelt contrasts --settings {params.settings:q} --world {input.world} --queries {output.queries}"
        " --instructions {output.instructions} --report {output.report} 2> {log}"


rule vectors:
    """Instruction vectors of one model: behaviour, patching grid, separability and traced paths."""
    input:
        queries=rules.contrasts.output.queries,
        instructions=rules.contrasts.output.instructions,
        manifest=f"{DATA}/models/{{model}}/manifest.json",
        weights=ancient(weights_of_model),
        code=code("vectors"),
    output:
        behaviour=f"{DATA}/vectors/{{model}}/behaviour.parquet",
        others=expand(f"{DATA}/vectors/{{{{model}}}}/{{name}}.parquet", name=VECTOR_FILES),
    log:
        f"{LOGS}/vectors/{{model}}.log",
    benchmark:
        f"{BENCHMARKS}/vectors/{{model}}.tsv"
    threads: STUDY.engine.threads
    resources:
        gpu=GPUS,
    params:
        settings=settings("seed", "vectors", "engine", "statistics"),
        folder=subpath(output.behaviour, parent=True),
    message:
        "instruction vectors of {wildcards.model}"
    shell:
        "levelt vectors --settings {params.settings:q} --model-manifest {input.manifest} --queries {input.queries}"
        " --instructions {input.instructions} --out {params.folder} 2> {log}"


rule vectors_tables:
    """The tables of the instruction vectors of all models."""
    input:
        manifests=expand(f"{DATA}/models/{{model}}/manifest.json", model=STUDY.vector_models),
        results=expand(rules.vectors.output.behaviour, model=STUDY.vector_models),
        others=expand(rules.vectors.output.others, model=STUDY.vector_models),
        code=code("vectors_tables"),
    output:
        **{name: f"{DATA}/tables/{name}.csv" for name in VECTOR_TABLES},
    log:
        f"{LOGS}/vectors_tables.log",
    benchmark:
        f"{BENCHMARKS}/vectors_tables.tsv"
    threads: 1
    params:
        settings=settings("seed", "vectors", "statistics"),
        folders=[f"{DATA}/vectors/{model}" for model in STUDY.vector_models],
        folder=subpath(output.patching, parent=True),
    message:
        "tabulating the instruction vectors of study {STUDY.study}"
    shell:
        "levelt vectors_tables --settings {params.settings:q} --manifests {input.manifests} --folders {params.folders}"
        " --out {params.folder} 2> {log}"
