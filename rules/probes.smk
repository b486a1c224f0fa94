# Linear probes on the activations: what can be decoded, where, and in which condition.
#
# Starting Python costs a second, as much as probing a small model on one task: a job covers `probes.tasks_per_job` tasks.


for number, group in enumerate(groups_of(TASKS, STUDY.probes.tasks_per_job), start=1):

    rule:
        """Probe one model on some tasks: every condition, role, target and layer, out of fold, with certificates; and their controls."""
        name:
            of_group("probe", number)
        input:
            prompts=prompts_of_tasks(group),
            manifests=expand(f"{ACTIVATIONS}/manifest.json", task=group, allow_missing=True),
            activations=ancient(
                expand(
                    f"{ACTIVATIONS}/{{condition}}.safetensors", task=group, condition=CONDITIONS, allow_missing=True
                )
            ),
            code=code("probe"),
        output:
            probes=expand(PROBES, task=group, allow_missing=True),
            hits=expand(HITS, task=group, allow_missing=True),
            controls=expand(PROBE_CONTROLS, task=group, allow_missing=True),
        log:
            f"{LOGS}/probe/{{model}}/{group[0]}.log",
        benchmark:
            f"{BENCHMARKS}/probe/{{model}}/{group[0]}.tsv"
        threads: 1
        params:
            settings=settings("seed", "probes", "statistics"),
            tasks=group,
            conditions=CONDITIONS,
            activations=lambda wildcards: f"{DATA}/activations/{wildcards.model}",
            probes=lambda wildcards: f"{DATA}/probes/{wildcards.model}",
            hits=lambda wildcards: f"{DATA}/hits/{wildcards.model}",
        message:
            "probing {wildcards.model} on {params.tasks}"
        shell:
            "levelt probe --settings {params.settings:q} --model {wildcards.model} --tasks {params.tasks}"
            " --conditions {params.conditions} --prompts {input.prompts} --activations {params.activations}"
            " --probes {params.probes} --hits {params.hits} 2> {log}"


rule controls:
    """The controls of all probes, beside the probes themselves."""
    input:
        controls=expand(PROBE_CONTROLS, model=MODELS, task=TASKS),
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
