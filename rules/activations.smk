# One pass through a model for a group of tasks: activations of every condition, and the answers.
#
# Starting torch costs seconds, so a job covers `engine.tasks_per_job` tasks. Each group of tasks has a rule of its own
# (read, read_2, ...), since one job has one list of outputs.


for number, group in enumerate(TASK_GROUPS, start=1):

    rule:
        name:
            "read" if number == 1 else f"read_{number}"
        input:
            prompts=lambda wildcards, group=group: expand(
                f"{DATA}/prompts/{prompts_of(wildcards.model)}/{{task}}.parquet", task=group
            ),
            manifest=f"{DATA}/models/{{model}}/manifest.json",
            weights=ancient(weights_of_model),
            code=code("read"),
        output:
            activations=expand(
                f"{ACTIVATIONS}/{{condition}}.safetensors", task=group, condition=CONDITIONS, allow_missing=True
            ),
            manifests=expand(f"{ACTIVATIONS}/manifest.json", task=group, allow_missing=True),
            behaviour=expand(BEHAVIOUR, task=group, allow_missing=True),
        log:
            f"{LOGS}/read/{{model}}/{group[0]}.log",
        benchmark:
            f"{BENCHMARKS}/read/{{model}}/{group[0]}.tsv"
        threads: STUDY.engine.threads
        resources:
            gpu=GPUS,
        params:
            settings=settings("engine", "probes.roles"),
            tasks=group,
            activations=lambda wildcards: f"{DATA}/activations/{wildcards.model}",
            behaviour=lambda wildcards: f"{DATA}/behaviour/{wildcards.model}",
        message:
            "reading {wildcards.model} on {params.tasks}"
        shell:
            "levelt read --settings {params.settings:q} --model-manifest {input.manifest} --tasks {params.tasks}"
            " --prompts {input.prompts} --activations {params.activations} --behaviour {params.behaviour} 2> {log}"
