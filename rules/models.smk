# Models: organisms trained here from the world's text, and checkpoints that already exist.
#
# A clone has no corpus: it is big, and made in a minute. What reads it names what it is made by as well (`recipe`, and the
# settings), so that a change is seen where the corpus is not. It is not `ancient`: of a job behind one that runs, Snakemake
# then looks at nothing else, and a setting that both use would train nothing until the run after.


rule corpus:
    """The world's plain text, which organisms are trained on."""
    input:
        code=code("corpus"),
    output:
        text=f"{CORPUS}/text.parquet",
    log:
        f"{LOGS}/corpus.log",
    benchmark:
        f"{BENCHMARKS}/corpus.tsv"
    threads: 1
    params:
        settings=settings("seed", "world"),
    message:
        "writing the text of the world"
    shell:
        "levelt corpus --settings {params.settings:q} --out {output.text} 2> {log}"


rule instructions:
    """Conversations for instruction tuning and preference pairs, laid out with the study's own templates."""
    input:
        code=code("instructions"),
    output:
        conversations=f"{CORPUS}/instructions.parquet",
        preferences=f"{CORPUS}/preferences.parquet",
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
        "levelt instructions --settings {params.settings:q} --out {output.conversations}"
        " --preferences {output.preferences} 2> {log}"


rule tokenizer:
    """The byte-level BPE tokenizer that all organisms share."""
    input:
        text=rules.corpus.output.text,
        conversations=rules.instructions.output.conversations,
        recipe=[*code("corpus"), *code("instructions")],
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
        settings=settings("seed", "world", "organisms.vocabulary", *TRAINING_TEMPLATES),
        folder=subpath(output.vocabulary, parent=True),
    message:
        "making the tokenizer"
    shell:
        "levelt tokenizer --settings {params.settings:q} --text {input.text} --instructions {input.conversations}"
        " --out {params.folder} 2> {log}"


rule untrained:
    """The initial weights of one organism: what the architecture shows before it has read anything."""
    input:
        tokenizer=rules.tokenizer.output.vocabulary,
        template=rules.tokenizer.output.others,
        code=code("train"),
    output:
        manifest=f"{DATA}/models/{{run}}-untrained/manifest.json",
        files=expand(f"{DATA}/models/{{{{run}}}}-untrained/{{name}}", name=ORGANISM_FILES),
    log:
        f"{LOGS}/train/{{run}}-untrained.log",
    benchmark:
        f"{BENCHMARKS}/train/{{run}}-untrained.tsv"
    threads: 1
    params:
        settings=settings_of_run(*TRAINING),
        shape=shape_of_run,
        tokenizer=subpath(input.tokenizer, parent=True),
        folder=subpath(output.manifest, parent=True),
    message:
        "drawing the initial weights of {wildcards.run}"
    shell:
        "levelt train --stage untrained --settings {params.settings:q} --shape {params.shape}"
        " --tokenizer {params.tokenizer} --out {params.folder} 2> {log}"


rule pretrain:
    """Base stage of one organism: plain text from nothing."""
    input:
        tokenizer=rules.tokenizer.output.vocabulary,
        template=rules.tokenizer.output.others,
        text=rules.corpus.output.text,
        recipe=code("corpus"),
        code=code("train"),
    output:
        manifest=f"{DATA}/models/{{run}}-base/manifest.json",
        files=expand(f"{DATA}/models/{{{{run}}}}-base/{{name}}", name=ORGANISM_FILES),
    log:
        f"{LOGS}/train/{{run}}-base.log",
    benchmark:
        f"{BENCHMARKS}/train/{{run}}-base.tsv"
    priority: work_left("base")
    threads: TRAINING_THREADS
    params:
        settings=settings_of_run(*TRAINING, "organisms.base"),
        shape=shape_of_run,
        tokenizer=subpath(input.tokenizer, parent=True),
        folder=subpath(output.manifest, parent=True),
    message:
        "pretraining {wildcards.run}"
    shell:
        "levelt train --stage base --settings {params.settings:q} --shape {params.shape}"
        " --tokenizer {params.tokenizer} --text {input.text} --out {params.folder} 2> {log}"


rule tune:
    """Instruction tuning of one organism: loss on the answers, plain text replayed."""
    input:
        base=rules.pretrain.output.manifest,
        weights=rules.pretrain.output.files,
        conversations=rules.instructions.output.conversations,
        text=rules.corpus.output.text,
        samples=rules.world.output.samples,
        recipe=[*code("corpus"), *code("instructions")],
        code=code("train"),
    output:
        manifest=f"{DATA}/models/{{run}}-sft/manifest.json",
        files=expand(f"{DATA}/models/{{{{run}}}}-sft/{{name}}", name=ORGANISM_FILES),
    log:
        f"{LOGS}/train/{{run}}-sft.log",
    benchmark:
        f"{BENCHMARKS}/train/{{run}}-sft.tsv"
    priority: work_left("sft")
    threads: TRAINING_THREADS
    params:
        settings=settings_of_run(*TRAINING, *TRAINING_TEMPLATES, "organisms.sft"),
        shape=shape_of_run,
        init=subpath(input.base, parent=True),
        folder=subpath(output.manifest, parent=True),
    message:
        "instruction tuning of {wildcards.run}"
    shell:
        "levelt train --stage sft --settings {params.settings:q} --shape {params.shape}"
        " --tokenizer {params.init} --init {params.init} --text {input.text} --instructions {input.conversations}"
        " --samples {input.samples} --out {params.folder} 2> {log}"


rule align:
    """Preference tuning of one organism (DPO), the instruction-tuned one being the reference."""
    input:
        sft=rules.tune.output.manifest,
        weights=rules.tune.output.files,
        preferences=rules.instructions.output.preferences,
        samples=rules.world.output.samples,
        recipe=code("instructions"),
        code=code("train"),
    output:
        manifest=f"{DATA}/models/{{run}}-dpo/manifest.json",
        files=expand(f"{DATA}/models/{{{{run}}}}-dpo/{{name}}", name=ORGANISM_FILES),
    log:
        f"{LOGS}/train/{{run}}-dpo.log",
    benchmark:
        f"{BENCHMARKS}/train/{{run}}-dpo.tsv"
    priority: work_left("dpo")
    threads: TRAINING_THREADS
    params:
        settings=settings_of_run(*TRAINING, *TRAINING_TEMPLATES, "organisms.dpo"),
        shape=shape_of_run,
        init=subpath(input.sft, parent=True),
        folder=subpath(output.manifest, parent=True),
    message:
        "preference tuning of {wildcards.run}"
    shell:
        "levelt train --stage dpo --settings {params.settings:q} --shape {params.shape}"
        " --tokenizer {params.init} --init {params.init} --preferences {input.preferences}"
        " --samples {input.samples} --out {params.folder} 2> {log}"


rule evaluate:
    """What one organism can do on held-out texts: its table of accuracies and its card."""
    input:
        manifest=f"{DATA}/models/{{organism}}/manifest.json",
        weights=ancient(f"{DATA}/models/{{organism}}/model.safetensors"),
        samples=rules.world.output.samples,
        contrasts=rules.world.output.contrasts,
        summary=rules.world.output.summary,
        code=code("evaluate"),
    output:
        table=f"{DATA}/organisms/{{organism}}.csv",
        card=f"{DATA}/organisms/{{organism}}.json",
    log:
        f"{LOGS}/evaluate/{{organism}}.log",
    benchmark:
        f"{BENCHMARKS}/evaluate/{{organism}}.tsv"
    wildcard_constraints:
        organism="|".join(ORGANISMS) or "none",
    threads: TRAINING_THREADS
    params:
        settings=settings(
            "seed", "world", "templates", "organisms.templates", "organisms.threads", "prompts", "statistics"
        ),
    message:
        "examining {wildcards.organism}"
    shell:
        "levelt evaluate --settings {params.settings:q} --model-manifest {input.manifest} --samples {input.samples}"
        " --contrasts {input.contrasts} --summary {input.summary} --out {output.table} --card {output.card} 2> {log}"


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
