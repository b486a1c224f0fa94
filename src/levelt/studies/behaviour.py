"""Behaviour: how often models answer, and answer right, and whether variations agree on the same samples."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd

from levelt.studies.estimates import Builder, Resampling
from levelt.studies.evidence import OUTCOMES, Evidence
from levelt.studies.scope import MODEL_COLUMNS, PUBLISHED_VARIATIONS


def behaviour_table(evidence: Evidence, resampling: Resampling) -> pd.DataFrame:
    """Exact match, share answered and preference accuracy by model, task, condition and polarity of the question.

    ``exact_match`` counts a reply outside the options as wrong (as published); ``answered`` says how often, and
    ``preferred`` is the accuracy of the sign of the options' logit difference, which needs no format.
    """
    builder = Builder(evidence.samples)
    for (model, task, condition), values in evidence.outcomes.items():
        asked = evidence.asked[task, condition]
        present = ~np.isnan(values[:, 0])
        polarity = asked["polarity"].to_numpy(dtype=object)
        found = sorted(set(polarity[present]))
        for name in ["all", *(found if len(found) > 1 else [])]:  # one polarity only: the same rows again
            chosen = present & ((polarity == name) | (name == "all"))
            named = {"model": model, "condition": condition, "template": asked["template"].dropna().iloc[0]}
            builder.add(task, values, chosen / chosen.sum(), named | {"polarity": name, "quantity": list(OUTCOMES)})
    keys = ["condition", "template", "polarity", "quantity"]
    estimates = builder.build(evidence.models, keys)
    table = resampling.table(estimates)
    index = [name for name in estimates.rows if name != "quantity"]
    wide = None
    for name in OUTCOMES:
        of_outcome = table[table["quantity"] == name].drop(columns="quantity")
        columns = {"estimate": name, "ci_low": f"{name}_ci_low", "ci_high": f"{name}_ci_high"}
        of_outcome = of_outcome.rename(columns=columns).reset_index(drop=True)
        wide = of_outcome if wide is None else wide.join(of_outcome.drop(columns=index))
    assert wide is not None
    return wide


def agreement_table(evidence: Evidence, resampling: Resampling, control_tasks: Sequence[str]) -> pd.DataFrame:
    """Share of samples with the same outcome (right or wrong) under two, and under all, published variations.

    Methods/1 section 7. ``expected`` is the agreement that independent variations of the same accuracies would have:
    agreement says something only above it.
    """
    builder = Builder(evidence.samples)
    cells = dict.fromkeys((model, task) for model, task, _ in evidence.outcomes)
    for model, task in cells:
        known = {name: evidence.outcomes.get((model, task, name)) for name in PUBLISHED_VARIATIONS}
        right = {name: values[:, 0] for name, values in known.items() if values is not None}
        combinations: list[tuple[str, ...]] = list(itertools.combinations(right, 2))
        if len(right) > 2:
            combinations.append(tuple(right))
        for combination in combinations:
            outcomes = np.stack([right[name] for name in combination], axis=1)
            present = ~np.isnan(outcomes).any(axis=1)
            rates = outcomes[present].mean(axis=0)
            same = (outcomes == outcomes[:, :1]).all(axis=1)
            expected = float(rates.prod() + (1 - rates).prod())
            named = {"model": model, "conditions": " + ".join(combination), "expected": expected}
            builder.add(task, same[:, None], present / present.sum(), named)
    estimates = builder.build(evidence.models, ["conditions", "expected"], companions=("expected",))
    table = resampling.table(estimates.with_means(control_tasks), "agreement")
    return table[[*MODEL_COLUMNS, "task", "conditions", "n", "groups", "agreement", "ci_low", "ci_high", "expected"]]
