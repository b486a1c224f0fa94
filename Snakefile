# Table of contents of the workflow: settings, rules, targets. `snakemake --cores` makes everything.
# Another study: `snakemake --cores --configfile config/smoke.yaml`.
from snakemake.utils import min_version

min_version("9.19")

if "study" not in config:  # with --configfile the study named there replaces this one instead of being merged into it

    configfile: "config/organisms.yaml"


include: "rules/common.smk"
include: "rules/prompts.smk"
include: "rules/models.smk"
include: "rules/activations.smk"
include: "rules/probes.smk"
include: "rules/correlations.smk"
include: "rules/vectors.smk"
include: "rules/claims.smk"
include: "rules/audit.smk"
include: "rules/recall.smk"
include: "rules/figures.smk"
include: "rules/paper.smk"


wildcard_constraints:
    model="|".join(MODELS),
    run="|".join(RUNS) or "none",
    task="|".join(TASKS),
    condition="|".join(CONDITIONS),
    figure="|".join(FIGURES),


rule all:
    default_target: True
    input:
        report=rules.report.output.pdf,
        figures=collect(rules.figure.output, figure=FIGURES),
        tables=rules.tables.output,
        vectors=rules.vectors_tables.output if STUDY.vectors else [],
        cards=collect(rules.evaluate.output, organism=ORGANISMS),
