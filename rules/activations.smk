# One pass through a model per task: activations of every condition, and the answers.


rule read:
    """Run one model on the prompts of one task: keep the activations of the token roles, and the greedy answers."""
    input:
        prompts=rules.prompts.output.prompts,
        manifest=f"{DATA}/models/{{model}}/manifest.json",
        weights=ancient(weights_of_model),
        code=code("read"),
    output:
        activations=expand(
            f"{DATA}/activations/{{{{model}}}}/{{{{task}}}}/{{condition}}.safetensors", condition=CONDITIONS
        ),
        manifest=f"{DATA}/activations/{{model}}/{{task}}/manifest.json",
        behaviour=f"{DATA}/behaviour/{{model}}/{{task}}.parquet",
    log:
        f"{LOGS}/read/{{model}}/{{task}}.log",
    benchmark:
        f"{BENCHMARKS}/read/{{model}}/{{task}}.tsv"
    threads: STUDY.engine.threads
    params:
        settings=settings("engine", "probes.roles"),
        folder=subpath(output.manifest, parent=True),
    message:
        "reading {wildcards.model} on {wildcards.task}"
    shell:
        "levelt read --settings {params.settings:q} --task {wildcards.task} --model-manifest {input.manifest}"
        " --prompts {input.prompts} --activations {params.folder} --behaviour {output.behaviour}"
        " --manifest {output.manifest} 2> {log}"
