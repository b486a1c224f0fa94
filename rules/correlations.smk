# The tables of the asymmetry study: behaviour, information, and how they go together.


rule tables:
    """All tables of the study, from the behaviour and probe results of every model and task."""
    input:
        manifests=expand(f"{DATA}/models/{{model}}/manifest.json", model=MODELS),
        behaviour=expand(BEHAVIOUR, model=MODELS, task=TASKS),
        probes=expand(rules.probe.output.probes, model=MODELS, task=TASKS),
        hits=expand(rules.probe.output.hits, model=MODELS, task=TASKS),
        code=code("tables"),
    output:
        behaviour=f"{DATA}/tables/behaviour.csv",
        agreement=f"{DATA}/tables/agreement.csv",
        probes=f"{DATA}/tables/probes.csv",
        correlations=f"{DATA}/tables/correlations.csv",
        blocking=f"{DATA}/tables/blocking.csv",
    log:
        f"{LOGS}/tables.log",
    benchmark:
        f"{BENCHMARKS}/tables.tsv"
    threads: 1
    params:
        settings=settings("seed", "statistics"),
        folder=subpath(output.behaviour, parent=True),
    message:
        "tabulating behaviour, information and correlations of study {STUDY.study}"
    shell:
        "levelt tables --settings {params.settings:q} --manifests {input.manifests} --behaviour {input.behaviour}"
        " --probes {input.probes} --hits {input.hits} --out {params.folder} 2> {log}"
