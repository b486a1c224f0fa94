# One pass through a model for a group of tasks: activations of every condition, and the answers.
#
# Starting torch costs seconds, so a job covers `engine.tasks_per_job` tasks.


for number, group in enumerate(groups_of(TASKS, STUDY.engine.tasks_per_job), start=1):

    rule:
        name:
            of_group("read", number)
        input:
            prompts=prompts_of_tasks(group),
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
