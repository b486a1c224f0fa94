"""Read one model's activations and answers on one task: every condition of its prompts, and every intervention."""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers

from levelt.config import Engine, Settings
from levelt.engine.answers import judge
from levelt.engine.attention import check_blocking
from levelt.engine.plans import CONDITIONS, Plan
from levelt.engine.run import Readings, check_prompts, read_prompts
from levelt.files import InputError, manifest_of, read_json, sha256, write_arrays, write_json, write_parquet
from levelt.models.loading import Decoder, load_model
from levelt.prompts.render import COLUMNS, Prompt, from_table

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
"""The condition whose prompts the interventions are applied to."""


@dataclass(frozen=True)
class Condition:
    """The rows of one condition, and what the engine needs of them; with a plan, if it is an intervention."""

    rows: pd.DataFrame
    prompts: list[Prompt]
    plan: Plan | None = None

    @classmethod
    def of(cls, rows: pd.DataFrame) -> Condition:
        """Take the rows of one condition apart."""
        return cls(rows, from_table(rows))

    @property
    def option_ids(self) -> list[tuple[int, int]]:
        """First tokens of the two options, by prompt."""
        return [prompt.option_ids for prompt in self.prompts]

    def under(self, intervention: str) -> Condition:
        """The same prompts, read with attention blocked."""
        return replace(self, rows=self.rows.assign(condition=intervention), plan=CONDITIONS[intervention])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--settings", required=True, help="JSON with engine and probes.roles")
    parser.add_argument("--model-manifest", required=True, help="the checkpoint's manifest.json")
    parser.add_argument("--prompts", required=True, help="prompts of this model and task (.parquet)")
    parser.add_argument("--task", required=True, help="name of the task")
    parser.add_argument("--activations", required=True, help="folder for <condition>.safetensors")
    parser.add_argument("--behaviour", required=True, help="behaviour table to write (.parquet)")
    parser.add_argument("--manifest", required=True, help="manifest of the activation files to write (.json)")


def run(args: argparse.Namespace) -> None:
    """Load the model once, read every condition, write activations, behaviour and the manifest."""
    settings = Settings.from_json(args.settings)
    engine: Engine = settings.engine
    roles = list(settings["probes.roles"])
    torch.set_num_threads(engine.threads)
    transformers.logging.disable_progress_bar()
    if not Path(args.model_manifest).is_file():
        raise InputError(f"{args.model_manifest}: no such model manifest")
    manifest = read_json(args.model_manifest)
    table = prompts_table(args.prompts)
    conditions = {str(name): Condition.of(rows) for name, rows in table.groupby("condition", sort=False)}
    if engine.interventions and INTERVENED not in conditions:
        raise InputError(f"{args.prompts}: no prompts of the condition {INTERVENED}, which the interventions change")
    conditions |= {name: conditions[INTERVENED].under(name) for name in engine.interventions}
    decoder = load_model(manifest, engine.dtype, engine.device, engine.attention)
    if engine.interventions:
        check_blocking(decoder.model, len(decoder.parts.layers))
    labels = {name: f"{manifest['id']} {args.task} {name}:" for name in conditions}
    for name, condition in conditions.items():
        plans = [condition.plan] * len(condition.prompts) if condition.plan else None
        check_prompts(decoder, condition.prompts, roles, condition.option_ids, engine, labels[name], plans)
    files: dict[str, Path] = {}
    counts: dict[str, dict[str, Any]] = {}
    behaviours = []
    for name, condition in conditions.items():
        readings = read_prompts(
            decoder, condition.prompts, roles, condition.option_ids, engine, condition.plan, labels[name]
        )
        files[name] = Path(args.activations) / f"{name}.safetensors"
        about = {"model": manifest["id"], "task": args.task, "condition": name, "roles": roles}
        about |= {"plan": condition.plan.to_json()} if condition.plan else {}
        # how a file was read, and not what was read beside it
        write_arrays(
            files[name], readings.arrays(), {**about, "settings": engine.model_dump(exclude={"interventions"})}
        )
        counts[name] = readings.counts() | ({"plan": condition.plan.to_json()} if condition.plan else {})
        behaviours.append(behaviour_table(condition.rows, readings, decoder))
    write_parquet(args.behaviour, pd.concat(behaviours, ignore_index=True))
    written = manifest_of(files)
    write_json(
        args.manifest,
        {
            "model": manifest["id"],
            "task": args.task,
            "weights": weights_hash(manifest),
            "revision": manifest["revision"],
            "prompts": sha256(args.prompts),
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
            "conditions": {name: {**written[name], **counts[name]} for name in files},
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
    texts = [decoder.tokenizer.decode(list(ids), skip_special_tokens=True) for ids in readings.generated]
    judged = [
        judge(text, answer, list(options))
        for text, answer, options in zip(texts, prompts["answer"], prompts["options"], strict=True)
    ]
    affirms = prompts["answer"].to_numpy() == np.array([options[0] for options in prompts["options"]])
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


def weights_hash(manifest: dict[str, Any]) -> str:
    """One SHA-256 over the names and hashes of a checkpoint's weight files."""
    files = sorted((name, file["sha256"]) for name, file in manifest["files"].items() if "safetensors" in name)
    return hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in files).encode()).hexdigest()
