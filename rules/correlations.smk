# The tables of the asymmetry study: behaviour, information, and every comparison made of them.


rule tables:
    """The tables with one number for a model, task and condition, from behaviour and probe results of all of them."""
    input:
        manifests=expand(f"{DATA}/models/{{model}}/manifest.json", model=MODELS),
        behaviour=expand(BEHAVIOUR, model=MODELS, task=TASKS),
        hits=expand(HITS, model=MODELS, task=TASKS),
        code=code("tables"),
    output:
        behaviour=f"{DATA}/tables/behaviour.csv",
        agreement=f"{DATA}/tables/agreement.csv",
        information=f"{DATA}/tables/information.csv",
        spread=f"{DATA}/tables/spread.csv",
        correlations=f"{DATA}/tables/correlations.csv",
        blocking=f"{DATA}/tables/blocking.csv",
        unrelated=f"{DATA}/tables/unrelated.csv",
        selection=f"{DATA}/tables/selection.csv",
        codebook=f"{DATA}/tables/codebook.csv",
        scale=f"{DATA}/tables/scale.csv",
        stages=f"{DATA}/tables/stages.csv",
    log:
        f"{LOGS}/tables.log",
    benchmark:
        f"{BENCHMARKS}/tables.tsv"
    threads: 1
    params:
        settings=settings("seed", "statistics"),
        folder=subpath(output.behaviour, parent=True),
    message:
        "tabulating behaviour, information and comparisons of study {STUDY.study}"
    shell:
        "levelt tables --settings {params.settings:q} --manifests {input.manifests} --behaviour {input.behaviour}"
        " --hits {input.hits} --out {params.folder} 2> {log}"


rule layer_tables:
    """The tables with a row for each layer, which take as long as all others."""
    input:
        manifests=rules.tables.input.manifests,
        behaviour=rules.tables.input.behaviour,
        probes=expand(PROBES, model=MODELS, task=TASKS),
        hits=rules.tables.input.hits,
        code=code("layer_tables"),
    output:
        probes=f"{DATA}/tables/probes.csv",
        best_layers=f"{DATA}/tables/best_layers.csv",
        depth=f"{DATA}/tables/depth.csv",
        blocking_layers=f"{DATA}/tables/blocking_layers.csv",
        selection_layers=f"{DATA}/tables/selection_layers.csv",
        stage_layers=f"{DATA}/tables/stage_layers.csv",
    log:
        f"{LOGS}/layer_tables.log",
    benchmark:
        f"{BENCHMARKS}/layer_tables.tsv"
    threads: 1
    params:
        settings=settings("seed", "statistics"),
        folder=subpath(output.probes, parent=True),
    message:
        "tabulating the layers of study {STUDY.study}"
    shell:
        "levelt layer_tables --settings {params.settings:q} --manifests {input.manifests} --behaviour {input.behaviour}"
        " --probes {input.probes} --hits {input.hits} --out {params.folder} 2> {log}"
