"""What comparisons are about: which conditions are variations, which models enter means, how models are described."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from levelt.config import Intervention, OtherIntervention

PUBLISHED_VARIATIONS = ("instruction_first", "sample_first", "demonstrations")
"""The three prompt variations of the paper: they alone enter spread, agreement and correlations."""

PUBLISHED_ROLES = ("sample", "output", "decision")
"""The roles that enter correlations and contrasts; further ones are controls or variants."""

INTERVENED = "instruction_first"
"""The variation whose prompts the interventions are applied to, and with which others are compared."""

UNRELATED = "unrelated_instruction"
"""The variation that asks something which has nothing to do with the label."""

INTERVENTIONS: tuple[str, ...] = typing.get_args(Intervention)

OTHER = "other_instruction"
"""The variation that asks about the text's other property, in the layout of instruction_first."""

OTHER_ASKED = {INTERVENED: OTHER, **{name.removeprefix("other_"): name for name in typing.get_args(OtherIntervention)}}
"""Condition -> the same condition when the other property of the same texts is asked about."""

MODEL_COLUMNS = ["model", "family", "size", "parameters", "stage", "seed"]


def describe_models(manifests: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per model: model, family, size, parameters, stage, seed (missing for checkpoints without), layers."""
    keys = ("family", "size", "parameters", "stage", "layers")
    rows = [
        {"model": manifest["id"], "seed": manifest.get("seed"), **{key: manifest[key] for key in keys}}
        for manifest in manifests
    ]
    return pd.DataFrame(rows).astype({"seed": "Int64", "parameters": "Int64"})[[*MODEL_COLUMNS, "layers"]]


def with_models(table: pd.DataFrame, models: pd.DataFrame, extra: Sequence[str] = ()) -> pd.DataFrame:
    """The table with the models' columns first, rows in the order of the models."""
    described = models[[*MODEL_COLUMNS, *extra]]
    merged = described.merge(table, on="model", how="inner", validate="one_to_many")
    return merged[[*MODEL_COLUMNS, *[column for column in merged if column not in MODEL_COLUMNS]]]


def interventions_among(conditions: Iterable[str]) -> list[str]:
    """The conditions that are interventions, each once, in their order."""
    return [name for name in dict.fromkeys(conditions) if name in INTERVENTIONS and name not in PUBLISHED_VARIATIONS]


def shared_samples(condition: str, other: str) -> str:
    """The name of a condition restricted to the samples in which another one has the role, too."""
    return f"{condition}, shared with {other}"
