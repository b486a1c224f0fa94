# The claims of the three papers, each tested on the tables: what the report says of results is generated from here.


rule claims:
    """Every claim with its estimate, interval and verdict, and the published value beside it."""
    input:
        tables=[f"{DATA}/tables/{name}.csv" for name in CLAIM_TABLES],
        code=code("claims"),
    output:
        json=f"{DATA}/tables/claims.json",
        csv=f"{DATA}/tables/claims.csv",
    log:
        f"{LOGS}/claims.log",
    benchmark:
        f"{BENCHMARKS}/claims.tsv"
    threads: 1
    message:
        "judging the published claims on study {STUDY.study}"
    shell:
        "levelt claims --tables {input.tables} --json {output.json} --csv {output.csv} 2> {log}"
