# Models: organisms trained here from the world's text, and checkpoints that already exist.


rule instructions:
    """Conversations for instruction tuning, laid out with the study's own templates."""
    input:
        code=code("instructions"),
    output:
        conversations=f"{WORLD}/instructions.parquet",
    log:
        f"{LOGS}/instructions.log",
    benchmark:
        f"{BENCHMARKS}/instructions.tsv"
    threads: 1
    params:
        settings=settings("seed", "world", *TRAINING_TEMPLATES),
    message:
        "writing the conversations of instruction tuning"
    shell:
        "levelt instructions --settings {params.settings:q} --out {output.conversations} 2> {log}"


rule tokenizer:
    """The byte-level BPE tokenizer that all organisms share."""
    input:
        text=rules.world.output.text,
        conversations=rules.instructions.output.conversations,
        code=code("tokenizer"),
    output:
        vocabulary=f"{DATA}/models/tokenizer/tokenizer.json",
        others=expand(f"{DATA}/models/tokenizer/{{name}}", name=TOKENIZER_FILES[1:]),
    log:
        f"{LOGS}/tokenizer.log",
    benchmark:
        f"{BENCHMARKS}/tokenizer.tsv"
    threads: 1
    params:
        settings=settings("organisms.vocabulary"),
        folder=subpath(output.vocabulary, parent=True),
    message:
        "making the tokenizer"
    shell:
        "levelt tokenizer --settings {params.settings:q} --text {input.text} --instructions {input.conversations}"
        " --out {params.folder} 2> {log}"


rule pretrain:
    """Base stage of one organism: plain text from nothing."""
    input:
        tokenizer=rules.tokenizer.output.vocabulary,
        template=rules.tokenizer.output.others,
        text=rules.world.output.text,
        code=code("train"),
    output:
        manifest=f"{DATA}/models/{{shape}}-base/manifest.json",
        files=expand(f"{DATA}/models/{{{{shape}}}}-base/{{name}}", name=ORGANISM_FILES),
    log:
        f"{LOGS}/train/{{shape}}-base.log",
    benchmark:
        f"{BENCHMARKS}/train/{{shape}}-base.tsv"
    threads: TRAINING_THREADS
    params:
        settings=settings(*TRAINING, "organisms.base"),
        tokenizer=subpath(input.tokenizer, parent=True),
        folder=subpath(output.manifest, parent=True),
    message:
        "pretraining {wildcards.shape}"
    shell:
        "levelt train --stage base --settings {params.settings:q} --shape {wildcards.shape}"
        " --tokenizer {params.tokenizer} --text {input.text} --out {params.folder} 2> {log}"


rule tune:
    """Instruction tuning of one organism: loss on the answers, plain text replayed."""
    input:
        base=rules.pretrain.output.manifest,
        weights=rules.pretrain.output.files,
        conversations=rules.instructions.output.conversations,
        text=rules.world.output.text,
        samples=rules.world.output.samples,
        code=code("train"),
    output:
        manifest=f"{DATA}/models/{{shape}}-sft/manifest.json",
        files=expand(f"{DATA}/models/{{{{shape}}}}-sft/{{name}}", name=ORGANISM_FILES),
    log:
        f"{LOGS}/train/{{shape}}-sft.log",
    benchmark:
        f"{BENCHMARKS}/train/{{shape}}-sft.tsv"
    threads: TRAINING_THREADS
    params:
        settings=settings(*TRAINING, *TRAINING_TEMPLATES, "organisms.sft"),
        init=subpath(input.base, parent=True),
        folder=subpath(output.manifest, parent=True),
    message:
        "instruction tuning of {wildcards.shape}"
    shell:
        "levelt train --stage sft --settings {params.settings:q} --shape {wildcards.shape}"
        " --tokenizer {params.init} --init {params.init} --text {input.text} --instructions {input.conversations}"
        " --samples {input.samples} --out {params.folder} 2> {log}"


rule checkpoint:
    """A checkpoint that already exists: checked, and its files hashed. Weights are not copied."""
    input:
        code=code("checkpoint"),
    output:
        manifest=f"{DATA}/models/{{checkpoint}}/manifest.json",
    log:
        f"{LOGS}/checkpoint/{{checkpoint}}.log",
    benchmark:
        f"{BENCHMARKS}/checkpoint/{{checkpoint}}.tsv"
    wildcard_constraints:
        checkpoint="|".join(STUDY.checkpoints) or "none",
    threads: 1
    params:
        settings=settings("seed", "checkpoints.{checkpoint}"),
    message:
        "checking checkpoint {wildcards.checkpoint}"
    shell:
        "levelt checkpoint --settings {params.settings:q} --id {wildcards.checkpoint} --out {output.manifest} 2> {log}"
