"""Synthetic raw results with a planted asymmetry, for tests of tables, figures and the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from levelt.config import Probes, Statistics
from levelt.studies.asymmetry import study_tables
from levelt.studies.evidence import collect
from levelt.studies.information import probe_task, variation_of
from levelt.studies.scope import describe_models

TARGETS = ["label", "answer", "unasked"]
CONDITIONS = ["instruction_first", "sample_first", "demonstrations"]
LAYERS, WIDTH = 3, 6
STATISTICS = Statistics(draws=200)


def manifest(model: str, stage: str, **other: Any) -> dict[str, Any]:
    """A model manifest."""
    return {
        "id": model,
        "family": "llama",
        "size": "m",
        "stage": stage,
        "parameters": 1000,
        "layers": LAYERS,
        "hidden_size": WIDTH,
        **other,
    }


def prompts(task: str, pairs: int, seed: int, polarity: str = "mixed") -> pd.DataFrame:
    """Prompts of one task: pairs of samples, one per label, in every condition."""
    random = np.random.default_rng(seed)
    rows = []
    for condition in CONDITIONS:
        for pair in range(pairs):
            negated = polarity == "mixed" and pair % 2 == 0 and condition != "demonstrations"
            for label in ("yes", "no"):
                answer = {"yes": "no", "no": "yes"}[label] if negated else label
                rows.append(
                    {
                        "prompt_id": f"{condition}-{pair}-{label}",
                        "sample_id": f"{pair}-{label}",
                        "pair_id": f"{pair}",
                        "condition": condition,
                        "template": "plain",
                        "polarity": "negated" if negated else "positive",
                        "text": f"question: is it {{so}}? 50% of {task}_x\ntext: thing {pair} “is” good & ✓",
                        "label": label,
                        "answer": answer,
                        "unasked": "yes" if random.random() < 0.5 else "no",
                        "options": ["yes", "no"],
                    }
                )
    return pd.DataFrame(rows)


def activations(table: pd.DataFrame, output_follows_answer: bool, seed: int) -> dict[str, dict[str, Any]]:
    """The label at the sample tokens from layer 1 on, the answer at the decision position in the last layer."""
    random = np.random.default_rng(seed)
    arrays = {}
    for condition, part in table.groupby("condition", sort=False):
        label = (part["label"] == "yes").to_numpy()
        answer = (part["answer"] == "yes").to_numpy()
        sample = random.normal(size=(len(part), LAYERS + 1, WIDTH)).astype(np.float32)
        sample[:, 1:, 2] += 2.5 * label[:, None]
        decision = random.normal(size=(len(part), LAYERS + 1, WIDTH)).astype(np.float32)
        decision[:, -1, 1] += 3.0 * answer * output_follows_answer
        output = random.normal(size=(len(part), LAYERS, WIDTH)).astype(np.float32)
        output[:, :, 3] += 4.0 * answer[:, None] * output_follows_answer
        arrays[str(condition)] = {
            "sample.residual": sample,
            "decision.residual": decision,
            "output.attention": output,
        }
    return arrays


def behaviour(table: pd.DataFrame, accuracy: float, seed: int) -> pd.DataFrame:
    """Answers that are right with the given probability."""
    random = np.random.default_rng(seed)
    right = random.random(len(table)) < accuracy
    sign = np.where((table["answer"] == "yes") == right, 1.0, -1.0)
    other = table["answer"].map({"yes": "no", "no": "yes"})
    return table[["prompt_id", "sample_id", "pair_id", "condition", "template", "polarity", *TARGETS]].assign(
        preferred=right,
        given=table["answer"].where(right, other),
        exact_match=right,
        answered=True,
        logit_difference=sign,
    )


def study(tasks: tuple[str, ...] = ("acceptability", "belief"), pairs: int = 40) -> dict[str, Any]:
    """All tables of a small study with two models: `m-base` guesses, `m-sft` follows."""
    manifests = [manifest("m-base", "base"), manifest("m-sft", "sft")]
    models = describe_models(manifests)
    answers, scores, hits = [], [], []
    example = None
    for number, task in enumerate(tasks):
        table = prompts(task, pairs, number)
        example = table if example is None else example
        for follows, model in enumerate(["m-base", "m-sft"]):
            result = probe_task(table, activations(table, bool(follows), number), Probes(folds=3), STATISTICS, 0, task)
            names = {"model": model, "task": task}
            scores.append(result.probes.assign(**names))
            hits.append(result.hits.assign(**names))
            answers.append(behaviour(table, [0.5, 0.9][follows], 7 + number).assign(**names))
    rows, all_hits = pd.concat(answers, ignore_index=True), pd.concat(hits, ignore_index=True)
    evidence = collect(models, [rows], [all_hits])
    tables = study_tables(evidence, pd.concat(scores, ignore_index=True), STATISTICS, 0)
    return {
        **tables,
        "manifests": manifests,
        "example": example,
        "rows": rows,
        "hits": all_hits,
        "evidence": evidence,
    }


Chance = Callable[..., float]


def raw_results(
    manifests: Sequence[Mapping[str, Any]],
    tasks: Sequence[str],
    conditions: Sequence[str],
    exact: Chance,
    hit: Chance,
    *,
    pairs: int = 60,
    roles: Sequence[str] = ("sample", "output", "decision"),
    targets: Sequence[str] = ("label", "unasked"),
    shared: float = 0.5,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Behaviour and hits drawn from known probabilities, without models and probes.

    Args:
        exact: (model, task, condition) -> probability of a right answer.
        hit: (model, task, condition, role, target, layer) -> probability that a probe is right.
        shared: correlation of the latent variables within a pair and over layers and conditions of a sample.
    """
    random = np.random.default_rng(seed)
    answers, hits = [], []
    for task in tasks:
        names = [f"{task}-{pair}-{label}" for pair in range(pairs) for label in ("yes", "no")]
        label = np.array(["yes", "no"] * pairs)
        ease = np.repeat(random.normal(size=pairs), 2)

        def draw(chance: np.ndarray[Any, Any], ease: np.ndarray[Any, Any] = ease) -> np.ndarray[Any, Any]:
            latent = np.sqrt(shared) * ease[:, None] + np.sqrt(1 - shared) * random.normal(
                size=(len(ease), len(chance))
            )
            return (latent < norm.ppf(chance)).astype(np.float32)

        for described in manifests:
            model = described["id"]
            for condition in conditions:
                right = draw(np.array([exact(model, task, condition)]))[:, 0] > 0
                prompt_ids = [f"{variation_of(condition)}:{name}" for name in names]
                common = {"model": model, "task": task, "condition": condition, "prompt_id": prompt_ids}
                frame = pd.DataFrame(
                    {**common, "sample_id": names, "pair_id": np.repeat(np.arange(pairs), 2).astype(str)}
                )
                frame = frame.assign(template="plain", polarity="positive", label=label, answer=label)
                frame = frame.assign(unasked=np.tile(["yes", "no", "no", "yes"], pairs)[: len(label)])
                answers.append(frame.assign(exact_match=right, answered=True, preferred=right))
                for role in roles:
                    first = 1 if role == "output" else 0
                    layers = range(first, described["layers"] + 1)
                    for target in targets:
                        chance = np.array([hit(model, task, condition, role, target, layer) for layer in layers])
                        cell = frame[[*common, "pair_id"]].assign(role=role, target=target, first_layer=first)
                        hits.append(cell.assign(hits=list(draw(chance))))
    return pd.concat(answers, ignore_index=True), pd.concat(hits, ignore_index=True)


def probes_of(hits: pd.DataFrame) -> pd.DataFrame:
    """A table of probe scores with the columns that tables use, from hits."""
    keys = ["model", "task", "condition", "role", "target", "first_layer"]
    rows = []
    for cell, part in hits.groupby(keys, sort=False):
        accuracy = np.mean(np.stack(list(part["hits"])), axis=0)
        layers = np.arange(len(accuracy)) + int(str(cell[-1]))
        rows.append(pd.DataFrame({**dict(zip(keys[:-1], cell[:-1], strict=True)), "layer": layers}))
        rows[-1]["balanced_accuracy"] = accuracy
    return pd.concat(rows, ignore_index=True)


def tables_of(
    manifests: Sequence[Mapping[str, Any]], rows: pd.DataFrame, hits: pd.DataFrame, statistics: Statistics = STATISTICS
) -> dict[str, pd.DataFrame]:
    """All tables of raw results."""
    evidence = collect(describe_models(manifests), [rows], [hits])
    return study_tables(evidence, probes_of(hits), statistics, 0)


def audit_hits(hits: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Label hits as the methods audit names them, every probing equal to the study's."""
    label = hits[hits["target"] == "label"]
    labels = rows.drop_duplicates(["task", "prompt_id"]).set_index(["task", "prompt_id"])["label"]
    asked = labels.loc[pd.MultiIndex.from_frame(label[["task", "prompt_id"]])].to_numpy()
    label = label.assign(second=asked == "no")
    probings = {"sample": ["sample_as_released"], "output": ["output_with_decision"], "decision": []}
    frames = []
    for role, others in probings.items():
        names = [role, *others, f"trainer: {role}", f"leaking_folds: {role}"]
        names += [f"probing_together: {role}"] if role != "decision" else []
        frames += [label[label["role"] == role].assign(role=name) for name in names]
    return pd.concat(frames, ignore_index=True)
