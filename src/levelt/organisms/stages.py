"""What each stage trains on, and the folder a finished organism is written to."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from levelt.config import Preference, Shape, Template, Training
from levelt.files import manifest_of, read_json, write_csv, write_json
from levelt.organisms.encoding import encode_conversations, from_table
from levelt.organisms.evaluation import answer_probes, marker_probes
from levelt.organisms.packing import Encoded, Rows, concatenate, side_by_side, stream
from levelt.organisms.preferences import PreferencePlan, plan_order, reference_log_probabilities
from levelt.organisms.tokenizer import save_tokenizer
from levelt.organisms.training import Curve, RowPlan, describe, spread
from levelt.randomness import generator
from levelt.world.corpus import EARLY
from levelt.world.tasks import Bank

log = logging.getLogger(__name__)

EMPTY_CURVE = ("step", "tokens", "loss", "learning_rate")
"""Columns of the training.csv of an organism that was not trained."""

_RETOKENISED = {"qwen2"}
"""Model types for which transformers 5 ignores the tokenizer class that a folder declares, since many repositories
declare a wrong one, and builds its own from the vocabulary. With an empty ``auto_map`` the declared one is used."""

_EARLY = 0.25  # share of the steps that see the easier conversations
_MEASURED = 96  # held-out texts per task while training


@dataclass(frozen=True)
class Material:
    """What a stage is made from; a stage leaves empty what it does not need.

    ``run`` names the training's own seed; it is empty for seed 0. ``text`` and ``conversations`` are tables of
    `levelt.organisms.encoding`.
    """

    seed: int
    run: tuple[str, ...]
    tokenizer: PreTrainedTokenizerFast
    bank: Bank
    text: pd.DataFrame | None = None
    samples: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    templates: Sequence[Template] = ()
    conversations: pd.DataFrame | None = None
    pairs: pd.DataFrame | None = None


def plan_base(material: Material, settings: Training, shape: Shape) -> RowPlan:
    """Plain text in packed rows, measured by the markers. (What a base model answers is the study's own table.)"""
    assert material.text is not None
    rng = generator(material.seed, "organisms", "base", "order", *material.run)
    steps = round(settings.steps * shape.patience)
    parts = []
    for early, number in zip((True, False), spread(steps * settings.rows, (EARLY, 1 - EARLY)), strict=True):
        documents = from_table(material.text[material.text["early"] == early])
        parts.append(stream(documents, number, settings.length, rng))
    rows = concatenate(parts)
    order = np.arange(len(rows)).reshape(steps, settings.rows)
    probes = marker_probes(material.bank, material.tokenizer, _MEASURED)
    return RowPlan(rows, order, False, settings.learning_rate * shape.rate, tuple(probes))


def plan_sft(material: Material, settings: Training, shape: Shape) -> RowPlan:
    """Conversations in packed rows, the easier ones in the first quarter, with rows of plain text in between."""
    table, text = material.conversations, material.text
    assert table is not None and text is not None
    rng = generator(material.seed, "organisms", "sft", "order", *material.run)
    steps = round(settings.steps * shape.patience)
    total = steps * settings.rows
    replayed = round(total * settings.replay)
    pad = int(material.tokenizer.pad_token_id)
    parts: list[Rows] = []
    for early, number in zip((True, False), spread(total - replayed, (_EARLY, 1 - _EARLY)), strict=True):
        encoded = from_table(table[table["early"] == early])
        packed = side_by_side(encoded, number, settings.length, pad, rng)
        parts.append(packed.take(rng.permutation(number)))
    order = np.arange(total - replayed)
    if replayed:
        replay = stream(from_table(text), replayed, settings.length, rng)
        parts.append(Rows(replay.ids, replay.weights * np.float32(settings.replay_weight), replay.segments))
        places = np.sort(rng.choice(total, replayed, replace=False))
        order = np.insert(order, places - np.arange(replayed), np.arange(total - replayed, total))
    probes = answer_probes(material.samples, material.tokenizer, material.templates, _MEASURED)
    rows = concatenate(parts)
    log.info(
        "%d rows of conversations (%.0f %% filled), %d of plain text",
        total - replayed, 100 * float((rows.segments >= 0).mean()), replayed,
    )  # fmt: skip
    rate = settings.learning_rate * shape.rate
    return RowPlan(rows, order.reshape(steps, settings.rows), True, rate, tuple(probes))


def plan_dpo(material: Material, settings: Preference, shape: Shape, model: PreTrainedModel) -> PreferencePlan:
    """Preference pairs; the reference is ``model`` as it is given, the sft organism."""
    table = material.pairs
    assert table is not None

    def side(name: str) -> list[Encoded]:
        messages = [
            [*prompt, {"role": "assistant", "content": answer}]
            for prompt, answer in zip(table["messages"], table[name], strict=True)
        ]
        weights = [[0.0] * len(prompt) + [1.0] for prompt in table["messages"]]
        return encode_conversations(material.tokenizer, pd.DataFrame({"messages": messages, "weights": weights}))

    chosen, rejected = side("chosen"), side("rejected")
    order = plan_order(material.seed, material.run, len(table), settings)
    probes = answer_probes(material.samples, material.tokenizer, material.templates, _MEASURED)
    reference = reference_log_probabilities(model, chosen, rejected, np.unique(order))
    rate = settings.learning_rate * shape.rate
    return PreferencePlan(chosen, rejected, reference, order, settings, rate, tuple(probes))


@dataclass(frozen=True)
class Identity:
    """Who a finished organism is, for its manifest."""

    name: str
    family: str
    size: str
    stage: str
    seed: int


def write_organism(
    out: Path,
    work: Path,
    identity: Identity,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    curve: Curve,
    training: Mapping[str, Any],
) -> None:
    """Write a Hugging Face folder with training.csv and manifest.json.

    The files are written into ``work`` and renamed into ``out``, the manifest last, so that a folder with a manifest
    is whole.
    """
    staging = work / "folder"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    model.generation_config.eos_token_id = [int(tokenizer.eos_token_id)]
    model.generation_config.pad_token_id = int(tokenizer.pad_token_id)
    model.save_pretrained(str(staging))
    save_tokenizer(tokenizer, staging)
    if model.config.model_type in _RETOKENISED:
        settings = read_json(staging / "tokenizer_config.json")
        write_json(staging / "tokenizer_config.json", settings | {"auto_map": [None, None]})
    write_csv(staging / "training.csv", pd.DataFrame(describe(curve), columns=None if curve else list(EMPTY_CURVE)))
    names = sorted(path.name for path in staging.iterdir())
    config = model.config
    manifest = {
        "id": identity.name,
        "path": str(out),
        "revision": None,
        "family": identity.family,
        "size": identity.size,
        "stage": identity.stage,
        "seed": identity.seed,
        "architecture": config.architectures[0],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "vocabulary": config.vocab_size,
        "training": dict(training),
        "files": manifest_of({name: staging / name for name in names}),
    }
    write_json(staging / "manifest.json", manifest)
    out.mkdir(parents=True, exist_ok=True)
    for name in [*names, "manifest.json"]:
        (staging / name).chmod(0o644)  # safetensors writes files only their owner can read
        (staging / name).replace(out / name)
