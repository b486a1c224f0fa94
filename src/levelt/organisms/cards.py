"""The card of an organism: what it is, what it has seen, how it was trained, and what it can do, in one small file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

_IDENTITY = ("id", "family", "size", "seed", "stage", "architecture", "parameters", "layers", "hidden_size")
_TRAINING = ("steps", "tokens", "stopped", "target", "worst", "init")


def card(
    manifest: Mapping[str, Any],
    table: pd.DataFrame,
    trained: Sequence[str],
    main: str,
    world: Mapping[str, Any],
) -> dict[str, Any]:
    """The card.

    Args:
        manifest: manifest.json of the organism.
        table: its accuracies (`examination.COLUMNS`).
        trained: templates used in training. main: the study's template.
        world: summary.json of the world.

    Returns:
        {organism, training, data, accuracy}. accuracy: {group: {task: lowest estimate over the group's cells}}, the
        groups being own and negated questions in the main template, cross-task questions, trained and held-out
        templates, words, contrasts, demonstrations by mapping, recall by side, minimal pairs.
    """
    training = manifest["training"]
    return {
        "organism": {key: manifest[key] for key in _IDENTITY},
        "training": {key: training[key] for key in _TRAINING if key in training},
        "data": {key: world[key] for key in ("clauses", "contrasts", "facts", "documents", "characters")},
        "accuracy": {
            name: {
                str(task): round(float(value), 4)
                for task, value in rows.groupby("task", sort=False)["estimate"].min().items()
            }
            for name, rows in _groups(table, trained, main).items()
            if len(rows)
        },
    }


def _groups(table: pd.DataFrame, trained: Sequence[str], main: str) -> dict[str, pd.DataFrame]:
    exact = table[table["measure"] == "exact_match"]
    own, plain = exact["kind"] == "own", exact["template"] == main
    shown = exact["kind"] == "demonstrations"
    recall = table[table["measure"] == "three_correct"]
    pairs = table[(table["kind"] == "minimal_pair") & (table["measure"] == "preferred")]
    return {
        "own": exact[own & plain & (exact["polarity"] == "positive")],
        "negated": exact[own & plain & (exact["polarity"] == "negated")],
        "cross": exact[exact["kind"] == "cross"],
        "other_templates": exact[own & ~plain & exact["template"].isin(trained)],
        "heldout_templates": exact[own & ~plain & ~exact["template"].isin(trained)],
        "word": exact[exact["kind"] == "word"],
        "contrast": exact[exact["kind"] == "contrast"],
        "demonstrations": exact[shown & (exact["polarity"] != "reversed")],
        "demonstrations_reversed": exact[shown & (exact["polarity"] == "reversed")],
        "recall_asked": recall[(recall["variation"] == "asked") & recall["template"].isin(trained)],
        "recall_plain_text_only": recall[(recall["variation"] == "plain_text_only") & recall["template"].isin(trained)],
        "minimal_pair": pairs,
    }
