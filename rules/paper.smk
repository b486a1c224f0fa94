# The report: every number in it is generated, every figure is included by name.


rule numbers:
    """Every number and table of the report, as LaTeX macros."""
    input:
        tables=[f"{DATA}/tables/{name}.csv" for name in REPORT_TABLES],
        claims=rules.claims.output.json,
        manifests=rules.tables.input.manifests,
        samples=expand(rules.samples.output.report, task=TASKS),
        example=expand(rules.prompts.output.prompts, tokenizer=prompts_of(MODELS[-1]), task=TASKS[0]),
        cards=expand(rules.evaluate.output.card, organism=ORGANISMS),
        code=code("numbers"),
    output:
        numbers=f"{PAPER}/numbers.tex",
    log:
        f"{LOGS}/numbers.log",
    benchmark:
        f"{BENCHMARKS}/numbers.tsv"
    threads: 1
    params:
        settings=settings("study", "title", "seed", "prompts", "probes", "statistics"),
    message:
        "writing the numbers of the report"
    shell:
        "levelt numbers --settings {params.settings:q} --tables {input.tables} --claims {input.claims}"
        " --manifests {input.manifests} --samples {input.samples} --example {input.example} --cards {input.cards}"
        " --out {output.numbers} 2> {log}"


rule report:
    """The report as PDF."""
    input:
        source="paper/report.tex",
        parts=[f"paper/{name}.tex" for name in REPORT_PARTS],
        bibliography="paper/references.bib",
        numbers=rules.numbers.output.numbers,
        figures=collect(f"{FIGURE}/{{figure}}.pdf", figure=FIGURES),
        code=code("report"),
    output:
        pdf=f"{PAPER}/report.pdf",
    log:
        f"{LOGS}/report.log",
    benchmark:
        f"{BENCHMARKS}/report.tsv"
    threads: 1
    message:
        "typesetting {output.pdf}"
    shell:
        "levelt report --source {input.source} --parts {input.parts} --bibliography {input.bibliography} --numbers {input.numbers}"
        " --figures {input.figures} --out {output.pdf} 2> {log}"
