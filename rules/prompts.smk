# The world, its samples (or those of a file), and the prompts made of them.


rule world:
    """The synthetic world: held-out samples, and a summary of it."""
    input:
        code=code("world"),
    output:
        samples=expand(f"{WORLD}/samples/{{name}}.parquet", name=STUDY.world.tasks if STUDY.world else []),
        contrasts=f"{WORLD}/contrasts.parquet",
        summary=f"{WORLD}/summary.json",
    log:
        f"{LOGS}/world.log",
    benchmark:
        f"{BENCHMARKS}/world.tsv"
    threads: 1
    params:
        settings=settings("seed", "world"),
        folder=subpath(output.summary, parent=True),
    message:
        "making the world of study {STUDY.study}"
    shell:
        "levelt world --settings {params.settings:q} --out {params.folder} 2> {log}"


rule samples:
    """The samples of one task, from the world or from a file, checked row by row."""
    input:
        source=sample_source,
        code=code("samples"),
    output:
        samples=f"{DATA}/samples/{{task}}.parquet",
        report=f"{DATA}/samples/{{task}}.json",
    log:
        f"{LOGS}/samples/{{task}}.log",
    benchmark:
        f"{BENCHMARKS}/samples/{{task}}.tsv"
    threads: 1
    params:
        settings=settings("tasks.{task}"),
    message:
        "reading the samples of {wildcards.task}"
    shell:
        "levelt samples --settings {params.settings:q} --task {wildcards.task} --source {input.source:q}"
        " --out {output.samples} --report {output.report} 2> {log}"


rule prompts:
    """The prompts of one task for one tokenizer, rendered with its chat template, with exact token groups."""
    input:
        samples=rules.samples.output.samples,
        tokenizer=tokenizer_of_prompts,
        code=code("prompts"),
    output:
        prompts=f"{DATA}/prompts/{{tokenizer}}/{{task}}.parquet",
    log:
        f"{LOGS}/prompts/{{tokenizer}}/{{task}}.log",
    benchmark:
        f"{BENCHMARKS}/prompts/{{tokenizer}}/{{task}}.tsv"
    wildcard_constraints:
        tokenizer="|".join(dict.fromkeys(map(prompts_of, MODELS))),
    threads: 1
    params:
        settings=settings("seed", "prompts", f"templates.{STUDY.prompts.template}", "tasks.{task}"),
        tokenizer=lambda wildcards, input: (
            Path(input.tokenizer[0]).parent if wildcards.tokenizer == "organisms" else input.tokenizer[0]
        ),
    message:
        "rendering the prompts of {wildcards.task} for {wildcards.tokenizer}"
    shell:
        "levelt prompts --settings {params.settings:q} --task {wildcards.task} --tokenizer {params.tokenizer}"
        " --samples {input.samples} --out {output.prompts} 2> {log}"
