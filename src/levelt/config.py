"""The typed config: one tree, every field described.

`load` reads and validates a YAML file; the Snakefile validates with `validate`; `Settings` carries to a command
exactly the keys its rule names, so that what a stage can depend on is what its `params:` say. The JSON schema
(`config/schema.json`) and the reference (`docs/config.md`) are generated from here; a test fails on drift.
"""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from levelt.files import InputError

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$", max_length=64)]
"""A name that appears in paths and in Snakemake wildcards: lower case, digits, ``_ . -``."""

Variation = Literal["instruction_first", "sample_first", "demonstrations", "unrelated_instruction", "other_instruction"]
"""How a sample is put: question before or after it, answered examples instead of a question, a question that has no
bearing on the label (a control: the label stays the target of the probes), or first the question about the other
property of the text (whose value is then the right answer)."""
Intervention = Literal[
    "block_nothing",
    "block_instruction_to_all",
    "block_instruction_to_sample",
    "block_instruction_to_output",
    "block_sample_to_output",
    "isolate_sample",
    "block_nothing_as_released",
    "block_instruction_to_all_as_released",
    "block_instruction_to_sample_as_released",
    "block_instruction_to_output_as_released",
    "block_sample_to_output_as_released",
]
"""A condition that blocks attention on the instruction_first prompts; `levelt.engine.plans` says what each does."""
OtherIntervention = Literal["other_block_instruction_to_all", "other_isolate_sample"]
"""The same on the other_instruction prompts: ``other_`` and the name of the intervention."""
Role = Literal["sample", "output", "decision", "before", "output_with_decision", "sample_as_released"]
"""What a probe reads of a prompt; `levelt.engine.roles` says what each is."""
Target = Literal["label", "answer", "unasked", "appended"]


class Section(BaseModel):
    """A part of the config: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# --- the synthetic world and the models trained on it -------------------------------------------------------------


class World(Section):
    """The synthetic world that samples and training text come from."""

    tasks: list[Literal["acceptability", "stereotype", "reasoning", "plausibility", "belief", "codebook"]] = Field(
        ["acceptability", "stereotype", "reasoning", "plausibility", "belief", "codebook"],
        min_length=2,
        description="Judgment tasks of the world. Every text carries an acceptability clause and one of the others.",
    )
    samples: int = Field(200, ge=8, description="Held-out samples per judgment task (half of them labelled yes).")
    heldout: float = Field(
        0.1, gt=0, lt=1, description="Share of texts kept out of all training, chosen by a hash of the minimal pair."
    )
    subjects: int = Field(40, ge=2, le=200, description="Subjects of each of the three one-to-many relations.")
    documents: int = Field(60_000, ge=100, description="Plain-text documents for the base stage (and replay).")
    instructions: int = Field(60_000, ge=100, description="Conversations for instruction tuning.")
    preferences: int = Field(6_000, ge=10, description="Preference pairs.")

    @model_validator(mode="after")
    def _has_acceptability(self) -> World:
        if "acceptability" not in self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"tasks must contain acceptability, and each task once: {self.tasks}")
        return self


class Shape(Section):
    """The shape of one organism: an ordinary Hugging Face decoder config, small."""

    architecture: Literal["llama", "qwen2", "olmo2"] = Field(description="Model class and config to build.")
    size: Name = Field(description="Size name, the second part of the checkpoint id (s, m, l).")
    hidden_size: int = Field(ge=8, description="Width of the residual stream.")
    layers: int = Field(ge=1, description="Decoder layers.")
    heads: int = Field(ge=1, description="Query heads per layer; must divide hidden_size.")
    key_value_heads: int = Field(ge=1, description="Key and value heads per layer; must divide heads.")
    intermediate_size: int = Field(ge=8, description="Width of the MLP.")
    initializer_range: float = Field(0.08, gt=0, description="Standard deviation of the initial weights.")
    rate: float = Field(1.0, gt=0, description="Factor on the learning rate of every stage (wider: smaller).")
    patience: float = Field(1.0, gt=0, description="Factor on the steps of the base and sft stages.")
    seeds: list[Annotated[int, Field(ge=0, le=999)]] = Field(
        [0], min_length=1, description="Training seeds: one organism each. Seed 0 has no mark in the id."
    )

    @model_validator(mode="after")
    def _divides(self) -> Shape:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"each seed once: {self.seeds}")
        if self.hidden_size % self.heads or self.heads % self.key_value_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of heads {self.heads}, "
                f"and heads a multiple of key_value_heads {self.key_value_heads}"
            )
        return self


class Training(Section):
    """One training stage of an organism: a fixed number of optimiser steps, so that results do not depend on speed."""

    steps: int = Field(ge=1, description="Optimiser steps.")
    rows: int = Field(ge=1, description="Packed rows per step.")
    length: int = Field(ge=16, description="Tokens per packed row.")
    learning_rate: float = Field(gt=0, description="Peak AdamW learning rate.")
    replay: float = Field(0.0, ge=0, lt=1, description="Share of rows that are plain text (sft stage only).")
    replay_weight: float = Field(0.2, ge=0, description="Loss weight of the replayed rows.")
    target: float = Field(
        0.0, ge=0, le=1, description="Held-out accuracy below which the stage fails (0: no target, as in smoke runs)."
    )


class Preference(Section):
    """Preference tuning of an organism (DPO); the model it starts from is the reference."""

    steps: int = Field(ge=1, description="Optimiser steps.")
    pairs: int = Field(ge=1, description="Preference pairs per step.")
    learning_rate: float = Field(gt=0, description="Peak AdamW learning rate.")
    beta: float = Field(0.3, gt=0, description="How much a preference may cost in nats against the reference.")
    likelihood: float = Field(
        0.1, ge=0, description="Weight of the chosen answer's negative log-likelihood per token, added to the loss."
    )
    target: float = Field(0.0, ge=0, le=1, description="As for the other stages.")


class Organisms(Section):
    """The models the workflow trains from scratch, through the same stages as real ones."""

    vocabulary: int = Field(1536, ge=300, description="Entries of the byte-level BPE tokenizer.")
    shapes: dict[Name, Shape] = Field(min_length=1, description="Models by family-size name, for example llama-m.")
    stages: list[Literal["base", "sft", "dpo"]] = Field(["base", "sft"], description="Training stages, in order.")
    untrained: list[Name] = Field(
        [], description="Shapes that are also kept with their initial weights (stage untrained), as a control."
    )
    base: Training = Field(description="Pretraining on the world's plain text.")
    sft: Training = Field(description="Instruction tuning, loss on the answers only.")
    dpo: Preference | None = Field(None, description="Preference tuning; needed if it is among the stages.")
    templates: list[Name] = Field(min_length=1, description="Templates (see `templates`) used in instruction tuning.")
    threads: int = Field(1, ge=1, description="CPU threads of a training job; fixed, because results depend on it.")

    @model_validator(mode="after")
    def _complete(self) -> Organisms:
        order = ["base", "sft", "dpo"]
        if not self.stages or self.stages != order[: len(self.stages)]:
            raise ValueError(f"stages must be the first of {order}, in this order: {self.stages}")
        if "dpo" in self.stages and self.dpo is None:
            raise ValueError("`dpo` is missing, but it is among the stages")
        unknown = sorted(set(self.untrained) - set(self.shapes))
        if unknown:
            raise ValueError(f"untrained names {unknown}, which are not among shapes {sorted(self.shapes)}")
        names = [name for name, _, _ in _runs(self.shapes)]
        if len(set(names)) < len(names):
            raise ValueError(f"two shapes and seeds have the same id: {sorted(names)}")
        return self


def _runs(shapes: Mapping[str, Shape]) -> list[tuple[str, str, int]]:
    """(name, shape, seed) of every training: <shape>, or <shape>-seed<k> for k > 0."""
    return [
        (f"{name}-seed{seed}" if seed else name, name, seed) for name, shape in shapes.items() for seed in shape.seeds
    ]


class Checkpoint(Section):
    """A checkpoint that is not trained here: a local folder or a hub repository."""

    path: str = Field(description="Folder of a Hugging Face checkpoint (safetensors), or `hub:owner/name`.")
    revision: str | None = Field(None, description="Hub revision (a commit); required with `hub:`.")
    family: str = Field(description="Model family, for grouping in tables and figures.")
    size: str = Field(description="Size name, for tables and figures.")
    stage: str = Field(description="base, sft, dpo, instruct, ...: the post-training stage.")
    random_weights: bool = Field(
        False,
        description="A control: this architecture and tokenizer with weights as they are before any training, drawn by "
        "the model's own initialiser with a seed derived from the study's. Its stage must be `untrained`.",
    )

    @model_validator(mode="after")
    def _pinned(self) -> Checkpoint:
        if self.path.startswith("hub:") and not self.revision:
            raise ValueError(f"{self.path} needs `revision` (a commit), or the study could not be reproduced")
        if self.random_weights and self.stage != "untrained":
            raise ValueError(f"a checkpoint with random_weights has stage `untrained`, not {self.stage!r}")
        return self


# --- tasks and prompts ---------------------------------------------------------------------------------------------


class WorldSource(Section):
    """Samples of a task of the synthetic world."""

    kind: Literal["world"] = Field("world", description="The samples come from the synthetic world.")
    name: Name = Field(description="Name of the task in the world.")


class Columns(Section):
    """Which column (or JSON key) holds what."""

    text: str = Field("text", description="The text that is judged.")
    label: str = Field("label", description="The gold label.")
    pair: str | None = Field(None, description="Minimal-pair id; without it every text is its own group.")
    question: str | None = Field(None, description="The question, when it differs from row to row.")
    id: str | None = Field(None, description="Row id; without it the line number.")


class FileSource(Section):
    """Samples from a JSON Lines or CSV file."""

    kind: Literal["file"] = Field("file", description="The samples come from a file.")
    path: str = Field(description="A .jsonl or .csv file, UTF-8.")
    columns: Columns = Field(default=Columns(), description="Names of the columns.")
    labels: dict[str, str] = Field(
        default={"yes": "yes", "no": "no"}, description="Label in the file -> option of the task."
    )
    limit: int | None = Field(None, ge=1, description="Use only the first rows of the file, for a quick look.")
    bad_rows: Literal["refuse", "drop"] = Field(
        "refuse",
        description="What to do with empty lines, rows without text or label, labels outside the options and "
        "duplicates: stop and name them, or leave them out and list them in the samples report.",
    )

    @field_validator("labels", mode="before")
    @classmethod
    def _label_names(cls, labels: Any) -> Any:
        if not isinstance(labels, Mapping):
            return labels
        _no_bare_booleans([*labels, *labels.values()])
        return {str(label) if isinstance(label, int) else label: option for label, option in labels.items()}


class Task(Section):
    """A binary judgment task."""

    source: Annotated[WorldSource | FileSource, Field(discriminator="kind")] = Field(
        description="Where the samples come from."
    )
    question: str | None = Field(
        None, description="The instruction text. Default: the world's own wording, or the file's question column."
    )
    negated_question: str | None = Field(
        None, description="The question with yes and no exchanged, for mixed polarity."
    )
    options: list[str] = Field(
        ["yes", "no"], min_length=2, max_length=2, description="The two answers; the first one affirms."
    )

    @field_validator("options", mode="before")
    @classmethod
    def _option_names(cls, options: Any) -> Any:
        if isinstance(options, list):
            _no_bare_booleans(options)
        return options

    @model_validator(mode="after")
    def _labels_are_options(self) -> Task:
        if self.options[0] == self.options[1] or not all(option.strip() for option in self.options):
            raise ValueError(f"options must be two different words, found {self.options}")
        if isinstance(self.source, FileSource):
            outside = sorted(set(self.source.labels.values()) - set(self.options))
            if outside:
                raise ValueError(f"labels maps to {outside}, which are not among the options {self.options}")
            absent = sorted(set(self.options) - set(self.source.labels.values()))
            if absent:
                raise ValueError(f"no entry of labels maps to {absent}; every option needs at least one")
        return self


def _no_bare_booleans(words: list[Any]) -> None:
    """YAML reads a bare yes, no, on, off as a truth value; which word was meant is then unknown."""
    if any(isinstance(word, bool) for word in words):
        raise ValueError(f"found a truth value among {words}: YAML reads a bare yes or no so, put it in quotes")


class Template(Section):
    """Wording and layout around the question and the text. Placeholders: {question} and {text}, once each."""

    system: str = Field(
        "", description="System message; empty for none. Left out with demonstrations, which carry no instruction."
    )
    instruction_first: str = Field(description="User message with the question before the text.")
    sample_first: str = Field(description="User message with the text before the question.")
    no_instruction: str = Field(description="User message without a question, for demonstrations.")
    answer: str = Field("{answer}", description="How an answer is written in a demonstration.")

    @model_validator(mode="after")
    def _placeholders(self) -> Template:
        for field, wanted in {
            "system": {"{question}": 0, "{text}": 0},
            "instruction_first": {"{question}": 1, "{text}": 1},
            "sample_first": {"{question}": 1, "{text}": 1},
            "no_instruction": {"{question}": 0, "{text}": 1},
            "answer": {"{answer}": 1},
        }.items():
            value = getattr(self, field)
            for placeholder, count in wanted.items():
                if value.count(placeholder) != count:
                    raise ValueError(f"{field} must contain {placeholder} {count} time(s): {value!r}")
        for field, order in {"instruction_first": 1, "sample_first": -1}.items():
            value = getattr(self, field)
            if (value.index("{text}") - value.index("{question}")) * order < 0:
                raise ValueError(f"{field} has {{question}} and {{text}} in the wrong order: {value!r}")
        return self


class Prompts(Section):
    """Which prompts are made of the samples."""

    variations: list[Variation] = Field(
        ["instruction_first", "sample_first", "demonstrations"], min_length=1, description="Prompt variations."
    )
    template: Name = Field("plain", description="The template used (see `templates`).")
    demonstrations: int = Field(
        4, ge=2, description="Examples before the query in the demonstrations variation; both answers are shown."
    )
    polarity: Literal["positive", "mixed"] = Field(
        "positive",
        description="mixed: half of the pairs (by a hash of the pair id) are asked the negated question, so that the "
        "answer differs from the label.",
    )
    unrelated_question: str | None = Field(
        None,
        description="The question of the variation unrelated_instruction, asked of every text in the layout of "
        "instruction_first. The gold answer stays the task's label, so that exact match means nothing there.",
    )

    @model_validator(mode="after")
    def _unrelated_is_asked(self) -> Prompts:
        if "unrelated_instruction" in self.variations and not (self.unrelated_question or "").strip():
            raise ValueError("variations lists unrelated_instruction, so `unrelated_question` is needed")
        return self


# --- engine, probes, statistics ------------------------------------------------------------------------------------


class Engine(Section):
    """How models are run."""

    batch_tokens: int = Field(
        4096, ge=64, description="Padded tokens of a batch, generated ones included: rows x longest row."
    )
    max_new_tokens: int = Field(4, ge=1, description="Most tokens generated for an answer.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Precision of weights and activations.")
    device: Literal["cpu", "cuda", "auto"] = Field("auto", description="Where models run.")
    attention: Literal["sdpa", "eager"] = Field("sdpa", description="Attention kernel.")
    threads: int = Field(1, ge=1, description="CPU threads of an encoding job; fixed, because results depend on it.")
    interventions: list[Literal[Intervention, OtherIntervention]] = Field(
        [],
        description="Further conditions, applied to the instruction_first prompts: attention is blocked between token "
        "groups (`levelt.engine.plans`). block_nothing and isolate_sample are controls; *_as_released repeats the "
        "released code of the paper, artefacts included; other_* is applied to the other_instruction prompts.",
    )
    random_answer: bool = Field(
        False,
        description="Add the condition random_answer: the instruction_first prompts, with a random option appended "
        "instead of the model's own answer. A control: what a probe reads at the output positions about an answer "
        "that nobody chose, it reads off the input.",
    )
    tasks_per_job: int = Field(
        1,
        ge=1,
        description="Tasks of one model that a job reads or audits: starting torch costs seconds. One that fails or "
        "whose inputs change is run again with all of its tasks.",
    )

    @field_validator("interventions")
    @classmethod
    def _each_once(cls, names: list[str]) -> list[str]:
        if len(set(names)) < len(names):
            raise ValueError(f"each intervention once: {names}")
        return names


class Controls(Section):
    """What the probes are held against: what random labels, words, other classifiers and less data would give."""

    conditions: list[Name] = Field(
        ["instruction_first"], description="Conditions in which controls are computed (those of them the study has)."
    )
    models: list[Name] = Field(
        [],
        description="Checkpoints that get the slow controls, `penalties` and `probes.hidden`; empty: all of the study.",
    )
    tasks: list[Name] = Field([], description="Tasks that get the slow controls; empty: all.")
    penalties: list[Annotated[float, Field(gt=0)]] = Field(
        [],
        description="If not empty, the control nested_penalty: label probes whose penalty is chosen among these in "
        "nested folds. Needs 3 folds.",
    )
    draws: int = Field(3, ge=1, description="Random labellings of each kind.")
    sizes: list[int] = Field(
        [25, 50, 100, 200], description="Training rows of the sample-size curve (as many as a fold has, at most)."
    )
    fractions: list[float] = Field(
        [0.015625, 0.03125, 0.0625, 0.125, 0.25, 0.5, 1.0],
        min_length=2,
        description="Ends of the blocks of the online code, as shares of the rows.",
    )

    @field_validator("fractions")
    @classmethod
    def _rising(cls, values: list[float]) -> list[float]:
        if any(b <= a for a, b in zip([0.0, *values], values, strict=False)) or values[-1] != 1:
            raise ValueError(f"fractions rise from above 0 to 1, found {values}")
        return values


class Probes(Section):
    """Linear probes on the activations."""

    roles: list[Role] = Field(["sample", "output", "decision"], min_length=1, description="Token roles probed.")
    targets: list[Target] = Field(
        ["label", "answer", "unasked"],
        min_length=1,
        description="What is decoded: the asked property, the correct answer (differs under mixed polarity), and the "
        "property of the text that was not asked. A target a task lacks is skipped.",
    )
    folds: int = Field(4, ge=2, description="Cross-validation folds, grouped by pair and stratified by label.")
    repeats: int = Field(1, ge=1, description="Repetitions with other fold assignments.")
    penalty: float = Field(
        0.01, gt=0, description="L2 penalty on standardised weights: mean log-loss + penalty/2 |w|^2 (1/(C n))."
    )
    penalties: list[Annotated[float, Field(gt=0)]] = Field(
        [],
        description="If not empty, the penalty of each probe is chosen among these in nested folds, by log-loss, and "
        "`penalty` is that of the controls only. Needs 3 folds.",
    )
    bound: float = Field(1e-8, gt=0, description="Largest certified distance from the optimal loss, in nats.")
    hidden: list[Annotated[int, Field(ge=1, le=2)]] = Field(
        [],
        description="Also label probes with this many hidden layers of 100 units (scikit-learn; slow), as controls.",
    )
    controls: Controls = Field(default=Controls(), description="Controls.")
    tasks_per_job: int = Field(
        1, ge=1, description="Tasks of one model that a job probes, as `engine.tasks_per_job`: for small models."
    )

    @model_validator(mode="after")
    def _nested_folds(self) -> Probes:
        if (self.penalties or self.controls.penalties) and self.folds < 3:
            raise ValueError(f"penalties are chosen in nested folds, which needs folds >= 3, found {self.folds}")
        return self


# --- instruction vectors -------------------------------------------------------------------------------------------


class ContrastWorld(Section):
    """A contrastive task of the synthetic world."""

    kind: Literal["world"] = Field("world", description="Queries and answers come from the synthetic world.")
    name: Name = Field(description="Name of the contrastive task in the world.")
    wordings: list[str] = Field(
        [
            "what is the {noun}?",
            "what is its {noun}?",
            "name the {noun}.",
            "tell the {noun}.",
            "say the {noun}.",
            "give the {noun}.",
            "which {noun}?",
            "the {noun} is what?",
            "what {noun} is it?",
            "the {noun}, please.",
            "the {noun}?",
            "now the {noun}.",
        ],
        min_length=2,
        description="Wordings of both instructions, with {noun} for what is asked; the first is the one in use, the "
        "others are for probes and for the control of circuits.",
    )

    @field_validator("wordings")
    @classmethod
    def _nouns(cls, wordings: list[str]) -> list[str]:
        wrong = [wording for wording in wordings if "{noun}" not in wording]
        if wrong or len(set(wordings)) < len(wordings):
            raise ValueError(f"each wording once, and each with {{noun}}: {wrong or wordings}")
        return wordings


class ContrastFile(Section):
    """A contrastive task from a CSV file: a query column, and a column of answers for each instruction."""

    kind: Literal["file"] = Field("file", description="Queries and answers come from a CSV file.")
    path: str = Field(description="A CSV file, UTF-8: one row per query.")
    query: str = Field("query", description="Column of the queries.")
    instructions: dict[str, str] = Field(
        min_length=2, max_length=2, description="Column of answers -> the instruction that asks for them."
    )
    rephrasings: dict[str, str] = Field(
        {}, description="Column of answers -> CSV file with a column `instruction` of other wordings."
    )

    @model_validator(mode="after")
    def _columns(self) -> ContrastFile:
        unknown = sorted(set(self.rephrasings) - set(self.instructions))
        if unknown:
            raise ValueError(f"rephrasings of {unknown}, but instructions are {sorted(self.instructions)}")
        if len(self.rephrasings) == 1:
            raise ValueError("rephrasings of one instruction only; give them for both, or for none")
        return self


class Contrast(Section):
    """A contrastive task: one query, two instructions, answers that differ."""

    source: Annotated[ContrastWorld | ContrastFile, Field(discriminator="kind")] = Field(
        description="Where queries, instructions and answers come from."
    )
    full: str = Field(
        "question: {instruction}\ntext: {query}", description="The prompt: {instruction} and then {query}, once each."
    )
    short_prompt: str = Field("text: {query}", description="The receiver short_prompt: the prompt without instruction.")
    filler_query: str = Field(
        "question: {filler}\ntext: {query}",
        description="The receiver filler_query: a filler where vectors are patched, and the query.",
    )
    filler: str = Field("?", min_length=1, description="The filler.")
    answer: str = Field("{answer}", description="How the answer follows the prompt, its leading blank included.")
    chat: bool = Field(
        True, description="Whether prompts are user messages of the model's chat template, or bare text."
    )

    @model_validator(mode="after")
    def _placeholders(self) -> Contrast:
        for field, wanted in {
            "full": ["{instruction}", "{query}"],
            "short_prompt": ["{query}"],
            "filler_query": ["{filler}", "{query}"],
            "answer": ["{answer}"],
        }.items():
            value = getattr(self, field)
            found = [name for name in ("{instruction}", "{filler}", "{query}", "{answer}") if name in value]
            places = [value.find(name) for name in wanted]
            if found != wanted or places != sorted(places) or any(value.count(name) != 1 for name in wanted):
                raise ValueError(f"{field} must contain {' and then '.join(wanted)}, once each: {value!r}")
        return self


Receiver = Literal["filler_query", "query", "short_prompt"]


class Vectors(Section):
    """The study of instruction vectors: patching at layer tuples, separability, and path tracing."""

    tasks: dict[Name, Contrast] = Field(min_length=1, description="Contrastive tasks by name.")
    models: list[Name] = Field([], description="Checkpoints studied; empty: all of the study.")
    queries: int = Field(100, ge=8, description="Queries per task that are patched, drawn from those there are.")
    receivers: list[Receiver] = Field(
        ["filler_query", "query", "short_prompt"],
        min_length=1,
        description="What is patched; the first is the main one. query: the bare query, at its first token (as "
        "released); short_prompt: at its first token; filler_query: at the filler.",
    )
    order: Literal[1, 2, 3] = Field(2, description="Most layers patched together: pairs, or triples too.")
    tokens: Literal["last", "singles", "tuples"] = Field(
        "singles",
        description="Vectors of which instruction tokens are patched in: the last one only, the others too at single "
        "layers, or all of them at all tuples of layers (in the first receiver).",
    )
    top: int = Field(
        10, ge=1, description="How many of the strongest pairs of one half of the queries are tested on the other."
    )
    traced: int = Field(40, ge=4, description="Queries per task in which paths are traced.")
    keys: int = Field(1, ge=1, description="Strongest keys per head that are edges; one more is traced for robustness.")
    rank: int = Field(100, ge=1, description="A path is high-ranking if its answer is among this many first tokens.")
    most_paths: int = Field(
        20_000,
        ge=100,
        description="Prompts with more paths are counted but not enumerated, and left out of rank counts.",
    )
    shuffles: int = Field(8, ge=1, description="Draws of shuffled labels that probes are compared with.")


class WorldFacts(Section):
    """The facts of the synthetic world."""

    kind: Literal["world"] = Field("world", description="Countries and cities, artists and songs, actors and films.")


class FactsFile(Section):
    """A table of facts."""

    kind: Literal["file"] = Field("file", description="The facts come from a CSV file.")
    path: str = Field(description="A .csv file, UTF-8, a row per answer: columns relation, subject, answer.")


class ListingFiles(Section):
    """Prompts with their answers as the released code of the paper has them."""

    kind: Literal["listings"] = Field("listings", description="The prompts come from the authors' JSON Lines files.")
    paths: list[str] = Field(min_length=3, max_length=3, description="The files of answer steps 1, 2 and 3.")
    relation: Name = Field(description="What is listed, for the tables (songs, cities, ...).")


class RecallTemplate(Section):
    """How a list of answers is asked for and written."""

    system: str = Field("", description="System message; empty for none.")
    user: str = Field(description="The request, with {relation} (what is listed, plural) and {subject} once each.")
    lead: str = Field(description="What the answer begins with, such as `they are` or ` 1.`; the first item follows.")
    separator: str = Field(", | and ", description="Regular expression that parts two items of a generated list.")
    between: str = Field(
        ", ", description="What is written between two items of a given list; {number} is the next item's number."
    )
    trim: str = Field(" \n\"'_*.,", description="Characters taken off both ends of an item.")
    chat: bool = Field(True, description="Whether the request is a chat message, or plain text in front of `lead`.")

    @model_validator(mode="after")
    def _placeholders(self) -> RecallTemplate:
        for placeholder in ("{relation}", "{subject}"):
            if self.user.count(placeholder) != 1:
                raise ValueError(f"user must contain {placeholder} once: {self.user!r}")
        if self.system and not self.chat:
            raise ValueError("a system message needs chat: true")
        try:
            re.compile(self.separator)
        except re.error as error:
            raise ValueError(f"separator {self.separator!r} is not a regular expression ({error})") from None
        return self


class Tracing(Section):
    """Causal tracing of the recall study."""

    subjects: int = Field(100, ge=0, description="Subjects traced of each relation and template; 0 for no tracing.")
    draws: int = Field(10, ge=1, description="Draws of the noise, shared by all cells of a prompt.")
    sigmas: float = Field(3.0, gt=0, description="Standard deviation of the noise, in spreads of the embeddings.")
    window: int | None = Field(
        None, ge=1, description="Layers restored around each centre. Default: the published 10 of 32, to scale."
    )


class Recall(Section):
    """The recall study: how a list of several answers is produced without repetition."""

    models: list[Name] = Field([], description="Checkpoints studied; none named: all.")
    source: Annotated[WorldFacts | FactsFile | ListingFiles, Field(discriminator="kind")] = Field(
        default=WorldFacts(), description="Where subjects and answers come from."
    )
    templates: dict[Name, RecallTemplate] = Field({}, description="Wordings by name (none for `listings`).")
    lists: Literal["generated", "given"] = Field(
        "generated",
        description="generated: the model's own greedy lists, kept if distinct and correct (as published); given: the "
        "first three answers of the facts, whether or not the model would say so.",
    )
    collisions: Literal["drop", "flag"] = Field(
        "drop", description="Lists in which two of subject and answers begin with the same token: leave out, or mark."
    )
    max_new_tokens: int = Field(48, ge=4, description="Most tokens generated for a list.")
    tracing: Tracing = Field(default=Tracing(), description="Causal tracing.")

    @model_validator(mode="after")
    def _has_templates(self) -> Recall:
        if bool(self.templates) == isinstance(self.source, ListingFiles):
            raise ValueError(
                "templates are needed for facts, and only for them: listings bring their own wording "
                f"(source {self.source.kind}, templates {list(self.templates)})"
            )
        return self


class Statistics(Section):
    """Intervals, tests and means."""

    draws: int = Field(2000, ge=100, description="Bootstrap draws and sign flips over groups (pairs).")
    level: float = Field(0.95, gt=0.5, lt=1, description="Level of the intervals.")
    control_tasks: list[str] = Field(
        ["codebook"],
        description="Tasks that are controls of the method: they have rows of their own in every table, and are kept "
        "out of means over tasks and of correlations. A task that the study lacks is ignored.",
    )


class Audit(Section):
    """The methods audit: the comparison as the released code of the paper makes it, defect by defect."""

    models: list[Name] = Field(min_length=1, description="Checkpoints that are audited, on every task.")


class Study(Section):
    """A study: everything that decides its results, and nothing about where it runs."""

    study: Name = Field(description="Name of the study: the folder under data/, figures/ and paper/.")
    title: str = Field(description="Title of the report.")
    seed: int = Field(0, ge=0, description="Seed from which every random draw of the study is derived.")
    world: World | None = Field(None, description="The synthetic world (needed by organisms and world tasks).")
    organisms: Organisms | None = Field(None, description="Models trained by the workflow.")
    checkpoints: dict[Name, Checkpoint] = Field({}, description="Models that already exist, by id.")
    templates: dict[Name, Template] = Field(min_length=1, description="Prompt templates by name.")
    tasks: dict[Name, Task] = Field(min_length=1, description="Judgment tasks by name.")
    prompts: Prompts = Field(default=Prompts(), description="Which prompts are made.")
    engine: Engine = Field(default=Engine(), description="How models are run.")
    probes: Probes = Field(default=Probes(), description="Probes.")
    statistics: Statistics = Field(default=Statistics(), description="Intervals.")
    vectors: Vectors | None = Field(None, description="The study of instruction vectors; null: left out.")
    audit: Audit | None = Field(None, description="The methods audit; without it the study has none.")
    recall: Recall | None = Field(None, description="The recall study; left out, the study has no such part.")

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        if self.study == "remote":
            raise ValueError("study must have another name than 'remote': data/remote is DVC's bundled remote")
        world_tasks = [name for name, task in self.tasks.items() if isinstance(task.source, WorldSource)]
        if (self.organisms or world_tasks) and self.world is None:
            raise ValueError("`world` is missing, but organisms and world tasks need it")
        if not self.organisms and not self.checkpoints:
            raise ValueError("no model: name `organisms` to train or `checkpoints` to load")
        wanted = {"prompts.template": [self.prompts.template]}
        if self.organisms:
            wanted["organisms.templates"] = list(self.organisms.templates)
        for field, names in wanted.items():
            for name in names:
                if name not in self.templates:
                    raise ValueError(f"{field} names {name!r}, which is not among templates {sorted(self.templates)}")
        others: list[str] = [name for name in self.engine.interventions if name in typing.get_args(OtherIntervention)]
        changed: list[str] = [name for name in (*self.engine.interventions, *self._appended) if name not in others]
        for variation, names in {"instruction_first": changed, "other_instruction": others}.items():
            if names and variation not in self.prompts.variations:
                raise ValueError(
                    f"engine.interventions and random_answer {names} change the {variation} prompts, but "
                    f"prompts.variations is {self.prompts.variations}"
                )
        unknown = sorted(set(self.audit.models if self.audit else []) - set(self.model_ids))
        if unknown:
            raise ValueError(f"audit.models names {unknown}, which are not among the models {self.model_ids}")
        if self.recall:
            absent = sorted(set(self.recall.models) - set(self.model_ids))
            if absent:
                raise ValueError(f"recall.models names {absent}, which are not among the models {self.model_ids}")
            if isinstance(self.recall.source, WorldFacts) and self.world is None:
                raise ValueError("`world` is missing, but recall asks for its facts")
        clash = sorted({*self.organism_ids, "organisms", "tokenizer"} & set(self.checkpoints))
        if clash:
            raise ValueError(f"checkpoints {clash} have the id of an organism, or that of a folder beside them")
        for name, task in self.tasks.items():
            source = task.source
            if self.world and isinstance(source, WorldSource) and source.name not in self.world.tasks:
                raise ValueError(
                    f"tasks.{name}: the world has no task {source.name!r}; it has {list(self.world.tasks)}"
                )
            no_question = isinstance(source, FileSource) and not source.columns.question and not task.question
            if no_question:
                raise ValueError(f"tasks.{name} needs `question`, or `source.columns.question`")
            if "other_instruction" in self.prompts.variations and isinstance(source, FileSource):
                raise ValueError(
                    f"tasks.{name}: other_instruction asks about a second property of the text, and texts of a file "
                    "have one; leave it out of prompts.variations"
                )
            if self.prompts.polarity == "mixed" and isinstance(source, FileSource) and not task.negated_question:
                raise ValueError(f"tasks.{name} needs `negated_question`, because prompts.polarity is mixed")
        return self

    @model_validator(mode="after")
    def _vectors_consistent(self) -> Study:
        if self.vectors:
            unknown = sorted(set(self.vectors.models) - set(self.model_ids))
            if unknown:
                raise ValueError(f"vectors.models names {unknown}, which are not among the models {self.model_ids}")
            if self.world is None and any(isinstance(c.source, ContrastWorld) for c in self.vectors.tasks.values()):
                raise ValueError("`world` is missing, but contrastive tasks of `vectors` need it")
        return self

    @property
    def organism_runs(self) -> list[tuple[str, str, int]]:
        """(name, shape, seed) of every training of organisms: <shape>, or <shape>-seed<k> for k > 0."""
        return _runs(self.organisms.shapes) if self.organisms else []

    @property
    def organism_ids(self) -> list[str]:
        """Checkpoint ids of the organisms, <family>-<size>-<stage> or <family>-<size>-seed<k>-<stage>."""
        if not self.organisms:
            return []
        found = []
        for run, shape, seed in self.organism_runs:
            # random weights, only for the first seed of a shape
            control = shape in self.organisms.untrained and seed == self.organisms.shapes[shape].seeds[0]
            found += [f"{run}-{stage}" for stage in (*(["untrained"] if control else []), *self.organisms.stages)]
        return found

    @property
    def conditions(self) -> list[str]:
        """Conditions in which every model is read: the prompt variations, the interventions, the appended answer."""
        return [*self.prompts.variations, *self.engine.interventions, *self._appended]

    @property
    def _appended(self) -> list[str]:
        return ["random_answer"] if self.engine.random_answer else []

    @property
    def vector_models(self) -> list[str]:
        """Checkpoints whose instruction vectors are studied."""
        return [] if self.vectors is None else list(self.vectors.models or self.model_ids)

    @property
    def recall_ids(self) -> list[str]:
        """Checkpoint ids of the recall study."""
        return (self.recall.models or self.model_ids) if self.recall else []

    @property
    def model_ids(self) -> list[str]:
        """All checkpoint ids of the study."""
        return [*self.organism_ids, *self.checkpoints]


def validate(tree: Mapping[str, Any], where: str = "config") -> Study:
    """Validate a config tree.

    Raises:
        InputError: one sentence per mistake: the field, what was found, what was expected.
    """
    try:
        return Study.model_validate(tree)
    except ValidationError as error:
        raise InputError(_explain(error, where)) from None


def load(path: str | Path) -> Study:
    """Read and validate a YAML config file.

    Raises:
        InputError: the file is missing, is not YAML, or does not describe a study.
    """
    import yaml

    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such config file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line}: not valid YAML ({getattr(error, 'problem', error)})") from None
    if not isinstance(tree, dict):
        raise InputError(f"{path}: expected a mapping of settings, found {type(tree).__name__}")
    return validate(tree, str(path))


def _explain(error: ValidationError, where: str) -> str:
    sentences = []
    for item in error.errors(include_url=False):
        kinds = ("world", "file", "listings") if len(item["loc"]) > 1 else ()
        field = ".".join(str(part) for part in item["loc"] if part not in kinds)
        message = item["msg"].removeprefix("Value error, ")
        match item["type"]:
            case "extra_forbidden":
                known = ", ".join(_siblings(item["loc"]))
                sentence = f"{where}: unknown key `{field}`" + (f"; known keys here: {known}" if known else "")
            case "missing":
                sentence = f"{where}: `{field}` is missing"
            case "value_error":
                sentence = f"{where}: " + (f"`{field}`: " if field else "") + message
            case _:
                found = json.dumps(item.get("input"), default=str)
                sentence = f"{where}: `{field}`: {message[0].lower()}{message[1:]}, found {found[:80]}"
        sentences.append(sentence)
    return "\n".join(dict.fromkeys(sentences))


def _siblings(location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields that could stand where an unknown key stood."""
    schema = Study.model_json_schema()
    node: dict[str, Any] = schema
    for part in location[:-1]:
        node = _resolve(node, schema)
        if isinstance(part, str) and part in node.get("properties", {}):
            node = node["properties"][part]
        elif "additionalProperties" in node and isinstance(node["additionalProperties"], dict):
            node = node["additionalProperties"]
        elif isinstance(part, str) and part in node.get("discriminator", {}).get("mapping", {}):
            node = {"$ref": node["discriminator"]["mapping"][part]}
        else:
            return []
    return list(_resolve(node, schema).get("properties", {}))


def _resolve(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    for _ in range(4):
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
        elif "anyOf" in node:
            node = next((option for option in node["anyOf"] if option.get("type") != "null"), node)
        else:
            break
    return node


class Settings:
    """The slice of a study that one rule names: attribute access to typed sections, and to nothing else.

    A rule writes ``params: settings=settings("seed", "probes")``; the command receives it as JSON and reads
    ``settings.probes.folds``. A dotted key picks one entry of a mapping: ``settings["tasks.acceptability"]``.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = {key: _section_type(key).validate_python(value) for key, value in values.items()}

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Parse what the rule passed on the command line."""
        try:
            return cls(json.loads(text))
        except (json.JSONDecodeError, ValidationError, KeyError) as error:
            raise InputError(f"--settings: expected a JSON object of config sections ({error})") from None

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            raise InputError(f"this command was not given `{key}`; its rule passes {sorted(self._values)}")
        return self._values[key]

    def __getattr__(self, key: str) -> Any:
        if key.startswith("_"):
            raise AttributeError(key)
        return self[key]


def settings_json(study: Study, *keys: str) -> str:
    """The named parts of a validated study as one line of JSON, defaults filled in, for a rule's ``params``."""
    tree = study.model_dump(mode="json")
    values = {}
    for key in keys:
        node: Any = tree
        for part, _ in _path(key):
            node = node[part]
        values[key] = node
    return json.dumps(values, ensure_ascii=False, sort_keys=True)


def _section_type(key: str) -> TypeAdapter[Any]:
    return TypeAdapter(_path(key)[-1][1])


def _path(key: str) -> list[tuple[str, Any]]:
    """The parts of a dotted key, each with the type of what stands there. The name of a mapping's entry may itself
    contain dots (checkpoints.llama-3.1-8b)."""
    annotation: Any = Study
    path: list[tuple[str, Any]] = []
    rest = key
    while rest:
        if typing.get_origin(annotation) in (typing.Union, types.UnionType):  # Section | None
            annotation = next(option for option in typing.get_args(annotation) if option is not types.NoneType)
        if typing.get_origin(annotation) is dict:
            part, rest = rest, ""
            annotation = typing.get_args(annotation)[1]
        else:
            part, _, rest = rest.partition(".")
            annotation = annotation.model_fields[part].annotation
        path.append((part, annotation))
    return path


def schema() -> str:
    """The JSON schema of a config file, as kept in config/schema.json."""
    return json.dumps(Study.model_json_schema(), indent=2, ensure_ascii=False) + "\n"


def reference() -> str:
    """The config reference (docs/config.md): a table per section, generated from the field descriptions."""
    tree = Study.model_json_schema()
    lines = [
        "# Config reference",
        "",
        "Generated from `src/levelt/config.py` by `make schema`; a test fails when it is out of date. A study is one",
        "YAML file of this shape. Unknown keys are errors. Editors that read `config/schema.json` complete the keys.",
    ]
    sections: dict[str, dict[str, Any]] = {"Study": tree, **tree["$defs"]}
    for name in _reading_order(tree):
        section = sections[name]
        lines += ["", f"## {name}", "", section.get("description", "").replace("\n", " "), ""]
        lines += ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
        required = section.get("required", [])
        for key, node in section.get("properties", {}).items():
            default = "required" if key in required else f"`{json.dumps(node.get('default'), ensure_ascii=False)}`"
            if "$ref" in json.dumps(node) and default != "required" and default != "`null`":
                default = "see there"
            text = node.get("description", "").replace("\n", " ").replace("|", "\\|")
            default = default.replace("|", "\\|")
            lines.append(f"| `{key}` | {_value_of(node)} | {default} | {text} |")
    return "\n".join(lines) + "\n"


def _reading_order(tree: dict[str, Any]) -> list[str]:
    """Sections in the order in which a reader meets them, depth first from the study."""
    order: list[str] = []

    def visit(name: str) -> None:
        if name not in order:
            order.append(name)
            for child in _references(tree if name == "Study" else tree["$defs"][name]):
                visit(child)

    visit("Study")
    return order


def _references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else []
        return own + [r for key, value in node.items() if key != "$defs" for r in _references(value)]
    if isinstance(node, list):
        return [r for value in node for r in _references(value)]
    return []


def _value_of(node: dict[str, Any]) -> str:
    """A JSON schema node in words."""
    if "$ref" in node:
        name = node["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    if "const" in node:
        return f"`{node['const']}`"
    if "anyOf" in node or "oneOf" in node:
        options = [option for option in node.get("anyOf", node.get("oneOf", [])) if option.get("type") != "null"]
        return " or ".join(_value_of(option) for option in options)
    if "allOf" in node:
        return _value_of(node["allOf"][0])
    if node.get("type") == "array":
        return f"list of {_value_of(node['items'])}"
    if node.get("type") == "object":
        entries = node.get("additionalProperties") or next(iter(node["patternProperties"].values()))
        return f"name: {_value_of(entries)}"
    limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {node[key]}" for key, sign in limits.items() if key in node]
    return " ".join([str(node.get("type", "any")), *bounds])
