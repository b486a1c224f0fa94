"""Read one model's activations and answers on tasks: every condition of its prompts, and every intervention."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
from jaxtyping import Int8, Int64

from levelt.config import Engine, Role, Settings
from levelt.engine.answers import judge
from levelt.engine.attention import check_blocking
from levelt.engine.plans import CONDITIONS, Plan
from levelt.engine.run import Appended, Condition, Readings, check_prompts, read_conditions
from levelt.files import InputError, manifest_of, read_json, sha256, write_arrays, write_json, write_parquet
from levelt.models.loading import Decoder, load_model
from levelt.prompts.render import COLUMNS, OTHER_INSTRUCTION, Prompt, from_table
from levelt.randomness import share

KEPT = [
    "prompt_id",
    "sample_id",
    "pair_id",
    "condition",
    "template",
    "polarity",
    "label",
    "answer",
    "unasked",
]
INTERVENED = "instruction_first"
"""The condition whose prompts the interventions are applied to, and random_answer."""

OTHER = "other_"
"""How the name of an intervention on the other_instruction prompts begins."""

RANDOM_ANSWER = "random_answer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--settings", required=True, help="JSON with engine and probes.roles")
    parser.add_argument("--model-manifest", required=True, help="the checkpoint's manifest.json")
    parser.add_argument("--tasks", nargs="+", required=True, help="names of the tasks")
    parser.add_argument("--prompts", nargs="+", required=True, help="the model's prompts of each task (.parquet)")
    parser.add_argument(
        "--activations", required=True, help="folder for <task>/<condition>.safetensors and <task>/manifest.json"
    )
    parser.add_argument("--behaviour", required=True, help="folder for the behaviour tables, <task>.parquet")


def run(args: argparse.Namespace) -> None:
    """Load the model once; check every task's prompts; read every task."""
    settings = Settings.from_json(args.settings)
    engine: Engine = settings.engine
    roles = list(settings["probes.roles"])
    torch.set_num_threads(engine.threads)
    transformers.logging.disable_progress_bar()
    if len(args.tasks) != len(args.prompts):
        raise InputError(f"found {len(args.tasks)} tasks and {len(args.prompts)} prompts files, expected one for each")
    if not Path(args.model_manifest).is_file():
        raise InputError(f"{args.model_manifest}: no such model manifest")
    manifest = read_json(args.model_manifest)
    jobs = [_Job.of(task, path, engine) for task, path in zip(args.tasks, args.prompts, strict=True)]
    decoder = load_model(manifest, engine.dtype, engine.device, engine.attention)
    if engine.interventions:
        check_blocking(decoder.model, len(decoder.parts.layers))
    ranges = [
        [
            check_prompts(
                decoder, one.prompts, one.conditions, roles, one.option_ids, engine, f"{manifest['id']} {job.task}"
            )
            for one in job.sets
        ]
        for job in jobs
    ]
    for job, checked in zip(jobs, ranges, strict=True):
        _read_task(job, checked, decoder, manifest, roles, engine, Path(args.activations), Path(args.behaviour))


@dataclass(frozen=True)
class _Set:
    """The prompts of one variation, and the conditions in which they are read."""

    rows: pd.DataFrame
    prompts: list[Prompt]
    conditions: dict[str, Condition]

    @property
    def option_ids(self) -> list[tuple[int, int]]:
        """First tokens of the two options, by prompt."""
        return [prompt.option_ids for prompt in self.prompts]


@dataclass(frozen=True)
class _Job:
    """One task: its prompts by variation, and the names of all conditions in the order of the results."""

    task: str
    path: str
    sets: list[_Set]
    names: list[str]

    @classmethod
    def of(cls, task: str, path: str, engine: Engine) -> _Job:
        table = prompts_table(path)
        changed = [*engine.interventions, *([RANDOM_ANSWER] if engine.random_answer else [])]
        sets = []
        for name, rows in table.groupby("condition", sort=False):
            prompts = from_table(rows)
            conditions: dict[str, Condition] = {str(name): None}
            if name in (INTERVENED, OTHER_INSTRUCTION):
                conditions |= {
                    intervention: CONDITIONS[intervention.removeprefix(OTHER)]
                    for intervention in engine.interventions
                    if intervention.startswith(OTHER) == (name == OTHER_INSTRUCTION)
                }
            if name == INTERVENED and engine.random_answer:
                drawn = appended_options(prompts)
                ids = tuple(prompt.option_ids[index] for prompt, index in zip(prompts, drawn, strict=True))
                conditions[RANDOM_ANSWER] = Appended(ids)
            sets.append(_Set(rows, prompts, conditions))
        variations = [next(iter(one.conditions)) for one in sets]
        read = {condition for one in sets for condition in one.conditions}
        for variation in (INTERVENED, OTHER_INSTRUCTION):
            lost = [name for name in changed if name.startswith(OTHER) == (variation == OTHER_INSTRUCTION)]
            lost = [name for name in lost if name not in read]
            if lost:
                names = ", ".join(lost)
                raise InputError(
                    f"{path}: no prompts of the condition {variation}, which the interventions ({names}) change"
                )
        return cls(task, path, sets, [*variations, *changed])


def appended_options(prompts: Sequence[Prompt]) -> Int8[np.ndarray, " n"]:
    """Which option, 0 or 1, random_answer appends to each prompt: a hash of the prompt's id decides.

    Of the prompts with one label and answer, half get each option (one more the second, if their number is odd): what
    was drawn must not be decodable through what the model knows.
    """
    cells: dict[tuple[str, str], list[int]] = {}
    for row, prompt in enumerate(prompts):
        cells.setdefault((prompt.label, prompt.answer), []).append(row)
    drawn = np.ones(len(prompts), dtype=np.int8)
    for rows in cells.values():
        ranked = sorted(rows, key=lambda row: (share(prompts[row].prompt_id, RANDOM_ANSWER), prompts[row].prompt_id))
        drawn[ranked[: len(rows) // 2]] = 0
    return drawn


def _read_task(
    job: _Job,
    checked: Sequence[Mapping[Role, Int64[np.ndarray, "n 2"]]],
    decoder: Decoder,
    manifest: Mapping[str, Any],
    roles: list[Role],
    engine: Engine,
    activations: Path,
    behaviour: Path,
) -> None:
    """Read every condition of a task; write its activations, manifest and behaviour."""
    files: dict[str, Path] = {}
    counts: dict[str, dict[str, Any]] = {}
    tables: dict[str, pd.DataFrame] = {}
    for one, ranges in zip(job.sets, checked, strict=True):
        label = f"{manifest['id']} {job.task}"
        found = read_conditions(decoder, one.prompts, one.conditions, roles, one.option_ids, engine, label, ranges)
        for name, readings in found.items():
            condition = one.conditions[name]
            plan = {"plan": condition.to_json()} if isinstance(condition, Plan) else {}
            arrays = readings.arrays()
            if isinstance(condition, Appended):
                # nobody chose this answer, so it is no behaviour; it is a target for the probes
                arrays["appended"] = appended_options(one.prompts)
            else:
                tables[name] = behaviour_table(one.rows.assign(condition=name), readings, decoder)
            files[name] = activations / job.task / f"{name}.safetensors"
            about = {"model": manifest["id"], "task": job.task, "condition": name, "roles": roles, **plan}
            # how a file was read, and not what was read beside it
            how = engine.model_dump(exclude={"interventions", "random_answer", "tasks_per_job"})
            write_arrays(files[name], arrays, {**about, "settings": how})
            counts[name] = readings.counts() | plan
    kept = [tables[name] for name in job.names if name in tables]
    write_parquet(behaviour / f"{job.task}.parquet", pd.concat(kept, ignore_index=True))
    written = manifest_of(files)
    write_json(
        activations / job.task / "manifest.json",
        {
            "model": manifest["id"],
            "task": job.task,
            "weights": weights_hash(manifest),
            "revision": manifest["revision"],
            "prompts": sha256(job.path),
            "roles": roles,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "attention": decoder.model.config._attn_implementation,
            "dtype": str(decoder.model.dtype).removeprefix("torch."),
            "device": decoder.model.device.type,
            "threads": engine.threads,
            "batch_tokens": engine.batch_tokens,
            "max_new_tokens": engine.max_new_tokens,
            "stop_ids": list(decoder.stop_ids),
            "conditions": {name: {**written[name], **counts[name]} for name in job.names},
        },
    )


def prompts_table(path: str | Path) -> pd.DataFrame:
    """The prompts of one model and task.

    Raises:
        InputError: no such file, no rows, columns are missing, or an answer is none of its options.
    """
    try:
        table = pd.read_parquet(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such prompts file") from None
    missing = [column for column in COLUMNS if column not in table.columns]
    if missing:
        raise InputError(f"{path}: column {missing[0]} is missing; found {', '.join(table.columns)}")
    if table.empty:
        raise InputError(f"{path}: there are no prompts in it")
    cases = dict.fromkeys(zip(table["answer"], map(tuple, table["options"]), strict=True))
    for answer, options in cases:
        judge("", answer, options)  # for its errors, before hours of reading
    return table


def behaviour_table(prompts: pd.DataFrame, readings: Readings, decoder: Decoder) -> pd.DataFrame:
    """One row per prompt: what was answered, whether it is right, whether it is one of the options at all, and
    whether the right option is the preferred one (the higher logit at the decision position)."""
    decoded = {ids: decoder.tokenizer.decode(list(ids), skip_special_tokens=True) for ids in set(readings.generated)}
    texts = [decoded[ids] for ids in readings.generated]
    options = list(map(tuple, prompts["options"]))
    cases = list(zip(texts, prompts["answer"], options, strict=True))
    verdicts = {case: judge(*case) for case in set(cases)}
    judged = [verdicts[case] for case in cases]
    affirms = prompts["answer"].to_numpy() == np.array([first for first, _ in options])
    difference = readings.logit_difference
    return prompts[KEPT].assign(
        generated=texts,
        given=[answer.given for answer in judged],
        exact_match=[answer.exact_match for answer in judged],
        answered=[answer.answered for answer in judged],
        preferred=np.where(affirms, difference > 0, difference < 0),
        logit_difference=difference,
        output_positions=readings.positions,
    )


def weights_hash(manifest: Mapping[str, Any]) -> str:
    """One SHA-256 over the names and hashes of a checkpoint's weight files."""
    files = sorted((name, file["sha256"]) for name, file in manifest["files"].items() if "safetensors" in name)
    if manifest.get("random_weights") is not None:
        files.append(("random_weights", str(manifest["random_weights"])))
    return hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in files).encode()).hexdigest()
