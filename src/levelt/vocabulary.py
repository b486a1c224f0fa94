"""Words that tables share with whoever reads them: stages of training in their order, and the value "all"."""

from __future__ import annotations

from collections.abc import Iterable

ALL = "all"
"""The value of a column over which a row is a mean."""

UNTRAINED = "untrained"
"""The stage of models with random weights: a control, kept out of means."""

STAGES = ("base", "sft", "dpo", "instruct")
"""Stages of training from early to late; instruct is what is published last, after whatever came before."""


def latest_stage(stages: Iterable[str]) -> str:
    """The latest of some stages, control models apart; a stage of another name counts as earlier than these.

    Raises:
        ValueError: there is none.
    """
    trained = [str(stage) for stage in dict.fromkeys(stages) if stage not in (UNTRAINED, ALL)]
    if not trained:
        raise ValueError("no trained model")
    return max(trained, key=lambda stage: STAGES.index(stage) if stage in STAGES else -1)
