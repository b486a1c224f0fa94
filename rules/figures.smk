# Figures: each is drawn from tables alone, and the table it was drawn from stands beside it.


rule figure:
    """One figure: PDF for print, PNG for screens, CSV with exactly the numbers drawn."""
    input:
        tables=tables_of_figure,
        code=code_of_figure,
    output:
        multiext(f"{FIGURE}/{{figure}}", pdf=".pdf", png=".png", csv=".csv"),
    log:
        f"{LOGS}/figures/{{figure}}.log",
    benchmark:
        f"{BENCHMARKS}/figures/{{figure}}.tsv"
    threads: 1
    message:
        "drawing figure {wildcards.figure}"
    shell:
        "levelt figure {wildcards.figure} --tables {input.tables} --pdf {output.pdf} --png {output.png}"
        " --csv {output.csv} 2> {log}"
