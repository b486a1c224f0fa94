# The methods audit: what each defect of the released code does to the numbers that conclusions rest on.


rule audit:
    """One model on one task, its prompts read and probed right and with each defect alone."""
    input:
        prompts=prompts_of_tasks(["{task}"]),
        manifest=f"{DATA}/models/{{model}}/manifest.json",
        weights=ancient(weights_of_model),
        code=code("audit"),
    output:
        rows=f"{DATA}/audit/{{model}}/{{task}}.parquet",
        hits=f"{DATA}/audit/{{model}}/{{task}}.hits.parquet",
    log:
        f"{LOGS}/audit/{{model}}/{{task}}.log",
    benchmark:
        f"{BENCHMARKS}/audit/{{model}}/{{task}}.tsv"
    threads: STUDY.engine.threads
    resources:
        gpu=GPUS,
    params:
        settings=settings("seed", "engine", "probes", "statistics"),
    message:
        "auditing the released methods on {wildcards.model}, {wildcards.task}"
    shell:
        "levelt audit --settings {params.settings:q} --task {wildcards.task} --model-manifest {input.manifest}"
        " --prompts {input.prompts} --out {output.rows} --hits {output.hits} 2> {log}"


rule audit_table:
    """All rows of the audit, and their means over tasks; the correlations right and with each defect."""
    input:
        manifests=expand(f"{DATA}/models/{{model}}/manifest.json", model=AUDITED),
        behaviour=expand(BEHAVIOUR, model=AUDITED, task=TASKS),
        rows=expand(rules.audit.output.rows, model=AUDITED, task=TASKS),
        hits=expand(rules.audit.output.hits, model=AUDITED, task=TASKS),
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
