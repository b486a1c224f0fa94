# The methods audit: what each defect of the released code does to the numbers that conclusions rest on.


AUDIT = f"{DATA}/audit/{{model}}/{{task}}.parquet"
AUDIT_HITS = f"{DATA}/audit/{{model}}/{{task}}.hits.parquet"


for number, group in enumerate(groups_of(TASKS, STUDY.engine.tasks_per_job), start=1):

    rule:
        """One model on some tasks, their prompts read and probed right and with each defect alone."""
        name:
            of_group("audit", number)
        input:
            prompts=prompts_of_tasks(group),
            manifest=f"{DATA}/models/{{model}}/manifest.json",
            weights=ancient(weights_of_model),
            code=code("audit"),
        output:
            rows=expand(AUDIT, task=group, allow_missing=True),
            hits=expand(AUDIT_HITS, task=group, allow_missing=True),
        log:
            f"{LOGS}/audit/{{model}}/{group[0]}.log",
        benchmark:
            f"{BENCHMARKS}/audit/{{model}}/{group[0]}.tsv"
        threads: STUDY.engine.threads
        resources:
            gpu=GPUS,
        params:
            settings=settings("seed", "engine", "probes", "statistics"),
            tasks=group,
            folder=lambda wildcards: f"{DATA}/audit/{wildcards.model}",
        message:
            "auditing the released methods on {wildcards.model}, {params.tasks}"
        shell:
            "levelt audit --settings {params.settings:q} --model-manifest {input.manifest} --tasks {params.tasks}"
            " --prompts {input.prompts} --out {params.folder} 2> {log}"


rule audit_table:
    """All rows of the audit, and their means over tasks; the correlations right and with each defect."""
    input:
        manifests=expand(f"{DATA}/models/{{model}}/manifest.json", model=AUDITED),
        behaviour=expand(BEHAVIOUR, model=AUDITED, task=TASKS),
        rows=expand(AUDIT, model=AUDITED, task=TASKS),
        hits=expand(AUDIT_HITS, model=AUDITED, task=TASKS),
        code=code("audit_table"),
    output:
        table=f"{DATA}/tables/audit.csv",
        correlations=f"{DATA}/tables/audit_correlations.csv",
    log:
        f"{LOGS}/audit_table.log",
    benchmark:
        f"{BENCHMARKS}/audit_table.tsv"
    threads: 1
    params:
        settings=settings("seed", "statistics"),
    message:
        "tabulating the audit"
    shell:
        "levelt audit_table --settings {params.settings:q} --manifests {input.manifests} --behaviour {input.behaviour}"
        " --rows {input.rows} --hits {input.hits} --out {output.table} --correlations {output.correlations} 2> {log}"
