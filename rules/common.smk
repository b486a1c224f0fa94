# What the rules share: the validated study, its names, and the two helpers that make a rule's contract exact.
import json
import os
import shutil
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from levelt.config import WorldSource, settings_json, validate
from levelt.files import InputError
from levelt.ledger.code import code_files


envvars:
    "PATH",


# jobs call the `levelt` of the environment that runs snakemake, activated or not
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])

try:
    STUDY = validate(config)
except InputError as error:
    raise WorkflowError(str(error)) from None

MODELS = STUDY.model_ids
ORGANISMS = STUDY.organism_ids
RUNS = {run: (shape, seed) for run, shape, seed in STUDY.organism_runs}
TASKS = list(STUDY.tasks)
CONDITIONS = STUDY.conditions
FIGURE_TABLES = {
    "claims": ["claims"],
    "behaviour": ["behaviour"],
    "information": ["depth"],
    "selection": ["selection_layers", "codebook"],
    "correlations": ["information", "correlations"],
    "blocking": ["blocking", "unrelated"],
    "training_effects": ["information", "stage_layers"],
    "controls": ["controls"],
}
CLAIM_TABLES = ["behaviour", "agreement", "spread", "correlations", "blocking", "unrelated"]
CLAIM_TABLES += ["selection", "codebook", "scale", "stages"]
REPORT_TABLES = ["behaviour", "agreement", "probes", "information", "spread", "correlations", "blocking", "unrelated"]
REPORT_TABLES += ["selection", "selection_layers", "codebook", "scale", "stages", "controls"]
REPORT_PARTS = []
AUDITED = STUDY.audit.models if STUDY.audit else []
if AUDITED:
    FIGURE_TABLES["audit"] = ["audit"]
    FIGURE_TABLES["audit_correlations"] = ["audit_correlations"]
    REPORT_TABLES += ["audit", "audit_correlations"]
VECTOR_FILES = ["effects", "separability", "projection", "tokens", "heads", "sums"]
VECTOR_TABLES = ["contrastive", "patching", "vectors", "interaction", "separability", "projection"]
VECTOR_TABLES += ["paths", "path_sums", "activity", "circuits", "circuit_keys", "vectors_stages"]
if STUDY.vectors:
    CLAIM_TABLES.append("vectors_stages")
    REPORT_TABLES += ["contrastive", "interaction", "separability", "path_sums", "circuit_keys", "vectors_stages"]
    REPORT_PARTS.append("vectors")
    FIGURE_TABLES |= {
        "vectors_claims": ["claims"],
        "vectors_patching": ["patching", "interaction"],
        "vectors_tokens": ["patching"],
        "vectors_separability": ["separability", "projection"],
        "vectors_paths": ["paths"],
        "vectors_circuits": ["circuits"],
    }
RECALL_TABLES = ["lens", "knockout", "tracing", "heads", "recall", "recall_audit", "recall_lists"]
if STUDY.recall:
    CLAIM_TABLES.append("recall")
    REPORT_TABLES += ["recall", "recall_lists", "recall_audit"]
    REPORT_PARTS.append("recall")
    FIGURE_TABLES["recall_claims"] = ["claims"]
    FIGURE_TABLES["recall_decode"] = ["lens"]
    FIGURE_TABLES["recall_lens"] = ["lens", "knockout"]
    FIGURE_TABLES["recall_heads"] = ["heads"]
    FIGURE_TABLES["recall_joint"] = ["lens", "probes", "selection_layers"]
    FIGURE_TABLES["recall_joint"] += ["patching", "circuits"] if STUDY.vectors else []
    if STUDY.recall.tracing.subjects:
        FIGURE_TABLES["recall_tracing"] = ["tracing"]
FIGURES = [*FIGURE_TABLES, *(["training"] if ORGANISMS else [])]

TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
ORGANISM_FILES = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    *TOKENIZER_FILES,
    "training.csv",
]
TRAINING = ["seed", "world", "organisms.threads", "organisms.shapes.{shape}"]  # see settings_of_run
TRAINING_TEMPLATES = (
    ["organisms.templates", *(f"templates.{name}" for name in STUDY.organisms.templates)] if STUDY.organisms else []
)
TRAINING_THREADS = STUDY.organisms.threads if STUDY.organisms else 1

GPUS = 1 if STUDY.engine.device == "cuda" else 0  # of a job that runs models; on `auto` it takes what is there

DATA = f"data/{STUDY.study}"
WORLD = f"{DATA}/world"
CORPUS = f"{DATA}/corpus"
FIGURE = f"figures/{STUDY.study}"
PAPER = f"paper/{STUDY.study}"
ACTIVATIONS = f"{DATA}/activations/{{model}}/{{task}}"
BEHAVIOUR = f"{DATA}/behaviour/{{model}}/{{task}}.parquet"
PROBES = f"{DATA}/probes/{{model}}/{{task}}.parquet"
PROBE_CONTROLS = f"{DATA}/probes/{{model}}/{{task}}.controls.parquet"
HITS = f"{DATA}/hits/{{model}}/{{task}}.parquet"
LOGS = f"logs/{STUDY.study}"
BENCHMARKS = f"benchmarks/results/{STUDY.study}"


def groups_of(tasks, size):
    """Tasks in groups of this size, one job each. A group has a rule of its own (read, read_2, ...), since one job has
    one list of outputs; groups of one share a rule, whose wildcard is the task."""
    return [["{task}"]] if size == 1 else [tasks[first : first + size] for first in range(0, len(tasks), size)]


def of_group(name, number):
    """The name of a rule for the group with this number, from 1."""
    return name if number == 1 else f"{name}_{number}"


def code(command, *modules):
    """The code files a command runs, transitively, as inputs: an edit is seen by content.

    config.py is left out: it reaches a job only through the values in `settings`, which are tracked as parameters,
    so that a new config section does not retrain the models.
    """
    files = code_files(f"levelt.commands.{command}", *modules)
    return [f"src/{path}" for path in files if path.name != "config.py" or path.parent.name != "levelt"]


def settings(*keys):
    """The config keys a command may use, as the one parameter it gets: only a change of these reruns the rule.

    A key may contain wildcards: `settings("seed", "tasks.{task}")`.
    """

    def of_job(wildcards):
        return settings_json(STUDY, *(key.format(**dict(wildcards.items())) for key in keys))

    return of_job


def sample_source(wildcards):
    """Where the samples of a task come from: the world, or the user's file."""
    source = STUDY.tasks[wildcards.task].source
    if isinstance(source, WorldSource):
        return f"{WORLD}/samples/{source.name}.parquet"
    return source.path


def prompts_of(model):
    """Whose prompts a model reads: all organisms share one tokenizer, so theirs are made once."""
    return "organisms" if model in ORGANISMS else model


def prompts_of_tasks(tasks):
    """The prompts a model reads for some tasks, by name or as the wildcard: a function of the job's wildcards."""
    return lambda wildcards: [
        f"{DATA}/prompts/{prompts_of(wildcards.model)}/{task.format(**dict(wildcards.items()))}.parquet"
        for task in tasks
    ]


def tokenizer_of_prompts(wildcards):
    """What prompts are rendered with: the organisms' tokenizer, or the manifest of a checkpoint, which hashes its own."""
    if wildcards.tokenizer == "organisms":
        return [f"{DATA}/models/tokenizer/{name}" for name in TOKENIZER_FILES]
    return [f"{DATA}/models/{wildcards.tokenizer}/manifest.json"]


def weights_of_model(wildcards):
    """The weights of a model trained here; the manifest, not their file time, says whether they changed."""
    return [f"{DATA}/models/{wildcards.model}/model.safetensors"] if wildcards.model in ORGANISMS else []


def tables_of_figure(wildcards):
    """The tables a figure is drawn from."""
    if wildcards.figure == "training":
        return [f"{DATA}/models/{model}/training.csv" for model in ORGANISMS if not model.endswith("-untrained")]
    return [f"{DATA}/tables/{name}.csv" for name in FIGURE_TABLES[wildcards.figure]]


def code_of_figure(wildcards):
    """The code of `levelt figure` and of the figure's own module."""
    return code("figure", f"levelt.figures.{wildcards.figure}")


def shape_of_run(wildcards):
    """The shape that a training run has; several runs (seeds) may share one."""
    return RUNS[wildcards.run][0]


def settings_of_run(*keys):
    """`settings` for a training run: of the seeds of its shape it gets its own, so that a new seed retrains nothing."""

    def of_job(wildcards):
        shape, seed = RUNS[wildcards.run]
        values = json.loads(settings_json(STUDY, *(key.format(shape=shape) for key in keys)))
        values[f"organisms.shapes.{shape}"]["seeds"] = [seed]
        return json.dumps(values, ensure_ascii=False, sort_keys=True)

    return of_job


WORK_LEFT = {"base": 1.0, "sft": 0.5, "dpo": 0.1}  # from a stage on, of a model's whole training; as measured


def work_left(stage):
    """The priority of a training: how long its model still takes, from this stage on.

    A model's stages wait for each other. Were the longest not begun first, it would train alone at the end. Its time
    goes with steps, layers and width.
    """

    def of_job(wildcards):
        shape = STUDY.organisms.shapes[RUNS[wildcards.run][0]]
        return round(WORK_LEFT[stage] * shape.patience * shape.layers * shape.hidden_size)

    return of_job


def recall_sources(_):
    """The files that subjects and answers come from; the world's facts are code."""
    source = STUDY.recall.source
    return [source.path] if source.kind == "file" else getattr(source, "paths", [])


def world_contrasts(wildcards):
    """The world's contrastive samples, if a task of the study is one of the world's."""
    sources = [contrast.source.kind for contrast in STUDY.vectors.tasks.values()] if STUDY.vectors else []
    return [rules.world.output.contrasts] if "world" in sources else []


def contrast_files(wildcards):
    """The users' CSV files with queries, and with other wordings."""
    sources = [contrast.source for contrast in STUDY.vectors.tasks.values()] if STUDY.vectors else []
    files = [source for source in sources if source.kind == "file"]
    return list(dict.fromkeys(path for source in files for path in (source.path, *source.rephrasings.values())))


onstart:
    typesets = any(job.rule.name == "report" for job in workflow.dag.needrun_jobs())  # nothing else needs LaTeX
    if typesets and not (shutil.which("latexmk") and shutil.which("pdflatex")):
        raise WorkflowError(
            "LaTeX is missing, so the report could not be built at the end: run `levelt latex --install` "
            "(as root on Debian or Ubuntu), or install a TeX distribution with latexmk and pdflatex."
        )
    # Snakemake 9 looks for new jobs again a second after every look, once for each job that ever finished, to keep to
    # its limit of 100 job starts a second; each look asks for the size of every input of every ready job. After 17 of 64
    # jobs of the default study that took 40 % of a core. Jobs that run here start no faster than they finish.
    if workflow.local_exec:
        workflow.scheduler.job_rate_limiter = None
