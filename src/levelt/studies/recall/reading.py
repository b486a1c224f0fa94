"""What one model shows on the prompts of the recall study: last-token decodes, knockouts, and causal traces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from levelt.config import Tracing
from levelt.engine.last_token import REST, Knockout, read_last_token
from levelt.engine.tracing import SITES, Disturbed, embedding_spread, trace, windows
from levelt.models.loading import Decoder
from levelt.randomness import generator
from levelt.studies.recall.listings import ANSWERS
from levelt.studies.recall.prompts import READOUTS, RecallPrompt, places

NOISED = {1: ("subject",), 2: ("subject", "answer_1"), 3: ("subject", "answer_1", "answer_2")}
"""Which groups are disturbed at which step, one at a time, as published."""

KEPT = (
    *("embedding", "constant", "linear", "attention", "mlp", "lens", "weights", "heads", "heads_as_released"),
    *("predicted", "knocked_mlp", "knocked_linear"),
)
_PUBLISHED = (10, 32)
"""Layers restored at once, of so many."""


def step_groups(step: int) -> tuple[str, ...]:
    """Groups of the token lens at a step; `REST` comes behind them."""
    return ("subject", *(f"answer_{k}" for k in range(1, step)), "decision")


def knockouts(step: int) -> tuple[Knockout, ...]:
    """The groups of the token lens, one at a time, as published, then renormalised."""
    return tuple(Knockout((group,), renormalise) for renormalise in (False, True) for group in step_groups(step))


def read_steps(decoder: Decoder, prompts: Sequence[RecallPrompt], batch_tokens: int) -> dict[str, np.ndarray]:
    """Arrays by ``step<k>.<name>``; rows are the prompts of that step in their order, tokens are `READOUTS`.

    Names and shapes: `levelt.engine.last_token.LastToken`; groups of the lens: `step_groups` and the rest; knockouts:
    `knockouts`.
    """
    arrays: dict[str, np.ndarray] = {}
    for step in range(1, ANSWERS + 1):
        here = [prompt for prompt in prompts if prompt.step == step]
        ids = [prompt.readouts for prompt in here]
        found = read_last_token(decoder, here, ids, step_groups(step), knockouts(step), batch_tokens)
        for name in KEPT:
            values = getattr(found, name)
            if values is not None:
                arrays[f"step{step}.{name}"] = values
    return arrays


def describe(decoder: Decoder, prompts: Sequence[RecallPrompt]) -> dict[str, Any]:
    """What the arrays' axes are, for their metadata."""
    steps = range(1, ANSWERS + 1)
    return {
        "readouts": list(READOUTS),
        "groups": {str(step): [*step_groups(step), REST] for step in steps},
        "knockouts": {str(step): [[*one.groups, one.renormalise] for one in knockouts(step)] for step in steps},
        "prompts": {str(step): sum(prompt.step == step for prompt in prompts) for step in steps},
        "layers": len(decoder.parts.layers),
        "heads": decoder.parts.heads,
    }


def read_traces(
    decoder: Decoder, prompts: Sequence[RecallPrompt], settings: Tracing, seed: int, batch_tokens: int
) -> pd.DataFrame:
    """Causal traces of the first subjects of each relation and template.

    The noise has ``sigmas`` times the spread of the embeddings of all subjects (or answers) of the relation; it is the
    same in all traces of a subject.

    Returns:
        One row per prompt, disturbed group, site, place of the prompt (see `places`) and centre layer (from 0):
        relation, template, subject, step, noised, site, place, layer, tokens (of that place), score (their mean), low,
        high.
    """
    columns = ["relation", "template", "subject", "step", "noised", "site", "place", "layer", "tokens", "score"]
    if not settings.subjects:
        return pd.DataFrame(columns=[*columns, "low", "high"])
    chosen = _first_subjects(prompts, settings.subjects)
    spreads = {(relation, kind): embedding_spread(decoder, ids) for relation, kind, ids in _embedded_groups(prompts)}
    jobs: list[tuple[RecallPrompt, str, Disturbed]] = []
    for prompt in chosen:
        for noised in NOISED[prompt.step]:
            span = prompt.groups[noised]
            drawn = generator(seed, "recall", "noise", prompt.relation, prompt.subject, noised)
            noise = drawn.standard_normal((settings.draws, len(span), decoder.parts.hidden_size))
            spread = spreads[prompt.relation, noised.split("_")[0]] * settings.sigmas
            target = prompt.readouts[READOUTS.index(f"answer_{prompt.step}")]
            one = Disturbed(prompt.input_ids, span.start, span.stop, target, (noise * spread).astype(np.float32))
            jobs.append((prompt, noised, one))
    depth = len(decoder.parts.layers)
    width = settings.window or max(1, round(depth * _PUBLISHED[0] / _PUBLISHED[1]))
    traced = trace(decoder, [one for _, _, one in jobs], windows(depth, width), SITES, batch_tokens)
    rows: list[dict[str, Any]] = []
    for (prompt, noised, _), found in zip(jobs, traced, strict=True):
        about: dict[str, Any] = {"relation": prompt.relation, "template": prompt.template, "subject": prompt.subject}
        about |= {"step": prompt.step, "noised": noised}
        names = np.array(places(prompt))
        for place in dict.fromkeys(names.tolist()):
            scores = found.scores[:, names == place]
            for index, site in enumerate(SITES):
                for layer, score in enumerate(scores[index].mean(0).tolist()):
                    row = about | {"site": site, "place": place, "layer": layer, "tokens": scores.shape[1]}
                    rows.append(row | {"score": score, "low": found.low, "high": found.high})
    return pd.DataFrame(rows, columns=[*columns, "low", "high"])


def _first_subjects(prompts: Sequence[RecallPrompt], number: int) -> list[RecallPrompt]:
    seen: dict[tuple[str, str], list[str]] = {}
    chosen = []
    for prompt in prompts:
        subjects = seen.setdefault((prompt.relation, prompt.template), [])
        if prompt.subject not in subjects and len(subjects) < number:
            subjects.append(prompt.subject)
        if prompt.subject in subjects:
            chosen.append(prompt)
    return chosen


def _embedded_groups(prompts: Sequence[RecallPrompt]) -> Iterator[tuple[str, str, list[int]]]:
    """The tokens of all subjects, and of all answers that stand in a prompt, by relation."""
    for relation in dict.fromkeys(prompt.relation for prompt in prompts):
        found: dict[str, list[int]] = {"subject": [], "answer": []}
        for prompt in prompts:
            if prompt.relation == relation and prompt.step == ANSWERS:
                for span in prompt.groups:
                    kind = span.name.split("_")[0]
                    if kind in found:
                        found[kind] += prompt.input_ids[span.start : span.stop]
        for kind, ids in found.items():
            yield relation, kind, ids
