"""Synthetic raw results with a planted asymmetry, for tests of tables, figures and the report."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from levelt.config import Probes, Statistics
from levelt.studies.asymmetry import (
    agreement_table,
    behaviour_table,
    blocking_table,
    correlations_table,
    describe_models,
    information,
    probes_table,
)
from levelt.studies.information import probe_task

CONDITIONS = ["instruction_first", "sample_first", "demonstrations"]
LAYERS, WIDTH = 3, 6
STATISTICS = Statistics(draws=200)


def manifest(model: str, stage: str) -> dict[str, Any]:
    """A model manifest."""
    return {
        "id": model,
        "family": "llama",
        "size": "m",
        "stage": stage,
        "parameters": 1000,
        "layers": LAYERS,
        "hidden_size": WIDTH,
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
    return table[["prompt_id", "sample_id", "pair_id", "condition", "template", "polarity", "label", "answer"]].assign(
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
    rows = pd.concat(answers, ignore_index=True)
    probes = probes_table(pd.concat(scores), models)
    summary = information(probes)
    return {
        "manifests": manifests,
        "example": example,
        "rows": rows,
        "hits": pd.concat(hits),
        "behaviour": behaviour_table(rows, models, STATISTICS, 0),
        "agreement": agreement_table(rows, models, STATISTICS, 0),
        "probes": probes,
        "information": summary,
        "blocking": blocking_table(rows, pd.concat(hits), models, STATISTICS, 0),
        "correlations": correlations_table(rows, pd.concat(hits), summary, STATISTICS, 0),
    }
