"""What the probes of a study are held against, for one model and task (docs/probes.md lists the kinds)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from levelt.config import Probes
from levelt.files import InputError
from levelt.probes.companions import companions_out_of_fold
from levelt.probes.control_labels import bag, permuted, random_by_text, random_by_words
from levelt.probes.curves import online_code, training_subsets
from levelt.probes.grid import fit_sets, held_out_rows, out_of_fold
from levelt.probes.scores import auc, rates
from levelt.probes.selection import out_of_fold_chosen
from levelt.randomness import generator
from levelt.studies.blocks import Block, frame
from levelt.studies.information import Cell, Codes, Floats, cells_of

BELOW = -1
"""The layer of a baseline that reads the prompt's tokens instead of the model."""

COLUMNS = [
    *["kind", "condition", "role", "site", "target", "layer", "draw", "train_rows", "n"],
    *["accuracy", "balanced_accuracy", "auc", "macro_f1", "selectivity", "bits", "uniform_bits", "compression"],
]


def controls_task(
    prompts: pd.DataFrame,
    activations: Mapping[str, Mapping[str, npt.NDArray[Any]]],
    probes: Probes,
    seed: int,
    task: str,
    model: str = "",
) -> pd.DataFrame:
    """The controls of one model on one task, in the conditions of ``probes.controls``.

    Args: see `levelt.studies.information.probe_task`; ``model`` says whether it gets the slow controls. Random draws
    depend on (seed, task) only, so that all models, conditions, roles and layers are probed for the same random labels
    on the same subsets.

    Returns:
        One row per kind, condition, role, target, layer and draw (or training size), with `COLUMNS`; what a kind does
        not have is missing.
    """
    chosen = {name: arrays for name, arrays in activations.items() if name in probes.controls.conditions}
    parts: list[Block] = []
    for number, cell in enumerate(cells_of(prompts, chosen, probes, seed, task)):
        try:
            parts.extend(_rows(cell, probes, seed, task, baselines=number % len(probes.roles) == 0))
            wanted = probes.controls
            if model in (wanted.models or [model]) and task in (wanted.tasks or [task]):
                parts.extend(_slow(cell, probes, seed, task))
        except ValueError as error:
            raise InputError(f"{task}, {cell.condition}, {cell.role}, controls: {error}") from None
    return frame(parts, COLUMNS)


def _rows(cell: Cell, probes: Probes, seed: int, task: str, baselines: bool) -> Iterator[Block]:
    yield from _random_labels(cell, probes, seed, task)
    yield from _companions(cell, probes)
    yield from _online_code(cell, probes, seed, task)
    yield from _sizes(cell, probes, seed, task)
    if baselines:  # they do not read the role
        yield from _bags(cell, probes)


def _names(kind: str, cell: Cell, target: str) -> dict[str, str]:
    return {"kind": kind, "condition": cell.condition, "role": cell.role, "site": cell.site, "target": target}


def _scored(
    kind: str, cell: Cell, target: str, labels: Codes, logits: Floats, layers: npt.ArrayLike, **more: Any
) -> dict[str, Any]:
    """Rows, one per layer, for out-of-fold log-odds [repeats, n, layers]; rows not scored (nan) are left out."""
    scored = np.isfinite(logits).all(axis=(0, 2))
    truth, values = labels[scored], logits[:, scored]
    accuracy, balanced, macro = rates(truth, values > 0)
    return {
        **_names(kind, cell, target),
        "layer": layers,
        "n": int(scored.sum()),
        "accuracy": accuracy,
        "balanced_accuracy": balanced,
        "auc": auc(truth, values.mean(axis=0)),
        "macro_f1": macro,
        **more,
    }


def _random_labels(cell: Cell, probes: Probes, seed: int, task: str) -> Iterator[Block]:
    """Control tasks and permuted labels; selectivity is the task's accuracy minus the control's."""
    texts = sample_tokens(cell.rows)
    drawn: list[tuple[str, str, int, Codes]] = []
    for draw in range(probes.controls.draws):
        at = generator(seed, "probes", task, "controls", draw)
        drawn.append(("random_text", "random", draw, random_by_text(texts, at)))
        drawn.append(("random_words", "random", draw, random_by_words(texts, at)))
        for target, labels in cell.labels.items():
            drawn.append(("permuted", target, draw, permuted(labels, cell.rows["pair_id"], at)))
    labels = np.stack([*cell.labels.values(), *(labels for *_, labels in drawn)])
    fitted = out_of_fold(cell.values, labels, cell.folds, penalty=probes.penalty, bound=probes.bound, room=cell.room)
    logits = fitted.logits
    own = {target: rates(codes, logits[at] > 0)[0] for at, (target, codes) in enumerate(cell.labels.items())}
    for (kind, target, draw, codes), scores in zip(drawn, logits[len(own) :], strict=True):
        made = _scored(kind, cell, target, codes, scores, cell.layers, draw=draw)
        compared = own[target if target in own else next(iter(own))]
        yield {**made, "selectivity": compared - made["accuracy"]}


def _companions(cell: Cell, probes: Probes) -> Iterator[Block]:
    labels = np.stack(list(cell.labels.values()))
    for kind, logits in companions_out_of_fold(cell.values, labels, cell.folds, probes.penalty).items():
        for (target, codes), scores in zip(cell.labels.items(), logits, strict=True):
            yield _scored(kind, cell, target, codes, scores, cell.layers)


def _online_code(cell: Cell, probes: Probes, seed: int, task: str) -> Iterator[Block]:
    code = online_code(
        cell.values,
        np.stack(list(cell.labels.values())),
        cell.rows["pair_id"],
        probes.controls.fractions,
        generator(seed, "probes", task, "code"),
        penalty=probes.penalty,
        bound=probes.bound,
        room=cell.room,
    )
    for at, target in enumerate(cell.labels):
        yield {
            **_names("online_code", cell, target),
            "layer": cell.layers,
            "n": len(cell.rows),
            "bits": code.bits[at],
            "uniform_bits": code.uniform_bits,
            "compression": code.compression[at],
        }


def _sizes(cell: Cell, probes: Probes, seed: int, task: str) -> Iterator[Block]:
    """Accuracy by training rows, on the same test rows; a size is left out if a subset lacks a class of a target."""
    tested = held_out_rows(cell.folds[:1])
    labels = np.stack(list(cell.labels.values()))
    smallest = int((~tested).sum(axis=1).min())
    parts = []
    for size in sorted({min(size, smallest) for size in probes.controls.sizes}):
        draw = generator(seed, "probes", task, "sizes")
        trained = training_subsets(~tested, cell.rows["pair_id"], size, draw)
        if all(len(np.unique(codes[rows])) == 2 for rows in trained for codes in labels):
            parts.append(trained)
    if not parts:
        return
    logits = np.full((len(parts), len(labels), 1, *cell.values.shape[:2]), np.nan)
    sets = np.concatenate(parts)
    for layer, at, scores, _ in fit_sets(cell.values, labels, sets, probes.penalty, probes.bound, cell.room):
        part, fold = divmod(at, len(tested))
        logits[part, :, 0, tested[fold], layer] = scores[:, tested[fold]].T
    for trained, of_size in zip(parts, logits, strict=True):
        rows = float(trained.sum(axis=1).mean())
        for (target, codes), scores in zip(cell.labels.items(), of_size, strict=True):
            yield _scored("size", cell, target, codes, scores, cell.layers, train_rows=rows)


def _slow(cell: Cell, probes: Probes, seed: int, task: str) -> Iterator[Block]:
    """The first target (the label) with other probes: the penalty chosen in nested folds, and hidden layers; and, since
    not every model has these, the study's own probe (fixed_penalty) to compare them with."""
    if not probes.controls.penalties and not probes.hidden:
        return
    target, codes = next(iter(cell.labels.items()))
    fixed = out_of_fold(cell.values, codes[None], cell.folds, penalty=probes.penalty, bound=probes.bound)
    yield _scored("fixed_penalty", cell, target, codes, fixed.logits[0], cell.layers)
    if probes.controls.penalties:
        chosen = out_of_fold_chosen(
            cell.values,
            codes[None],
            cell.folds,
            penalties=probes.controls.penalties,
            bound=probes.bound,
            room=cell.room,
        )
        yield _scored("nested_penalty", cell, target, codes, chosen.scores.logits[0], cell.layers)
    if probes.hidden:
        from levelt.probes.hidden import hidden_out_of_fold  # here, since scikit-learn takes a second to import

        for layers in probes.hidden:
            draw = generator(seed, "probes", task, "hidden", layers)
            scores = hidden_out_of_fold(cell.values, codes, cell.folds, layers, probes.penalty, draw)
            yield _scored(f"hidden_{layers}", cell, target, codes, scores, cell.layers)


def _bags(cell: Cell, probes: Probes) -> Iterator[Block]:
    labels = np.stack(list(cell.labels.values()))
    prompts = [tuple(np.asarray(ids).tolist()) for ids in cell.rows["input_ids"]]
    for kind, texts in (("bag_of_sample", sample_tokens(cell.rows)), ("bag_of_prompt", prompts)):
        logits = out_of_fold(bag(texts)[:, None], labels, cell.folds, penalty=probes.penalty, bound=probes.bound).logits
        for (target, codes), scores in zip(cell.labels.items(), logits, strict=True):
            yield {**_scored(kind, cell, target, codes, scores, np.array([BELOW])), "role": "none", "site": "tokens"}


def sample_tokens(rows: pd.DataFrame) -> list[tuple[int, ...]]:
    """The tokens of each prompt's sample.

    Raises:
        InputError: a prompt without a sample.
    """
    found = []
    for prompt, ids, groups in zip(rows["prompt_id"], rows["input_ids"], rows["groups"], strict=True):
        span = next(((g["start"], g["stop"]) for g in groups if g["name"] == "sample"), None)
        if span is None:
            raise InputError(f"prompt {prompt} has no token group `sample`, which the controls need")
        found.append(tuple(np.asarray(ids)[span[0] : span[1]].tolist()))
    return found
