# Linear probes on the activations: what can be decoded, where, and in which condition.


rule probe:
    """Probe one model on one task: every condition, role, target and layer, out of fold, with certificates; and their controls."""
    input:
        prompts=prompts_of_model,
        manifest=f"{ACTIVATIONS}/manifest.json",
        activations=ancient(
            expand(f"{ACTIVATIONS}/{{condition}}.safetensors", condition=CONDITIONS, allow_missing=True)
        ),
        code=code("probe"),
    output:
        probes=f"{DATA}/probes/{{model}}/{{task}}.parquet",
        hits=f"{DATA}/hits/{{model}}/{{task}}.parquet",
        controls=f"{DATA}/probes/{{model}}/{{task}}.controls.parquet",
    log:
        f"{LOGS}/probe/{{model}}/{{task}}.log",
    benchmark:
        f"{BENCHMARKS}/probe/{{model}}/{{task}}.tsv"
    threads: 1
    params:
        settings=settings("seed", "probes", "statistics"),
    message:
        "probing {wildcards.model} on {wildcards.task}"
    shell:
        "levelt probe --settings {params.settings:q} --model {wildcards.model} --task {wildcards.task}"
        " --prompts {input.prompts} --activations {input.activations} --probes {output.probes}"
        " --hits {output.hits} --controls {output.controls} 2> {log}"


rule controls:
    """The controls of all probes, beside the probes themselves."""
    input:
        controls=expand(rules.probe.output.controls, model=MODELS, task=TASKS),
        probes=f"{DATA}/tables/probes.csv",
        code=code("controls"),
    output:
        table=f"{DATA}/tables/controls.csv",
    log:
        f"{LOGS}/controls.log",
    benchmark:
        f"{BENCHMARKS}/controls.tsv"
    threads: 1
    params:
        settings=settings("statistics"),
    message:
        "tabulating the controls of the probes"
    shell:
        "levelt controls --settings {params.settings:q} --controls {input.controls} --probes {input.probes}"
        " --out {output.table} 2> {log}"
