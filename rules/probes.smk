# Linear probes on the activations: what can be decoded, where, and in which condition.


rule probe:
    """Probe one model on one task: every condition, role, target and layer, out of fold, with certificates."""
    input:
        prompts=prompts_of_model,
        manifest=f"{ACTIVATIONS}/manifest.json",
        activations=ancient(
            expand(f"{ACTIVATIONS}/{{condition}}.safetensors", condition=CONDITIONS, allow_missing=True)
        ),
        code=code("probe"),
    output:
        probes=f"{DATA}/probes/{{model}}/{{task}}.parquet",
        hits=f"{DATA}/probes/{{model}}/{{task}}.hits.parquet",
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
        " --hits {output.hits} 2> {log}"
