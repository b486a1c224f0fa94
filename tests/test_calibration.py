"""Calibration by simulation: intervals cover, tests keep their level, planted effects are found, planted nulls are not.

Rates are counted over N simulated studies; a rate p then has a standard error of sqrt(p (1 - p) / N), and tolerances
are three of them on top of what is claimed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, kendalltau, norm

import synthetic
from levelt.config import Probes, Statistics
from levelt.statistics.correlation import cronbach_alpha, kendall, largest_tau, weighted_tau
from levelt.statistics.permutation import max_t, sign_flip_test, sign_flips
from levelt.statistics.resampling import cluster_draws
from levelt.studies.asymmetry import study_tables
from levelt.studies.claims import judge_all
from levelt.studies.conditions import spread_table
from levelt.studies.estimates import Builder, Resampling, stack
from levelt.studies.evidence import Samples, collect
from levelt.studies.information import probe_task
from levelt.studies.scope import describe_models

Array = np.ndarray[Any, Any]


def samples(sizes: Array) -> Samples:
    """Samples of one task with groups of these sizes."""
    rows = pd.DataFrame({"pair_id": np.repeat(np.arange(len(sizes)), sizes)})
    rows["sample_id"] = rows["prompt_id"] = rows.index.astype(str)
    frame = rows.assign(model="m", task="t", condition="instruction_first", exact_match=True, answered=True)
    models = describe_models([synthetic.manifest("m", "sft")])
    return collect(models, [frame.assign(preferred=True)], []).samples["t"]


def hits(random: np.random.Generator, codes: Array, rate: Array, cells: int, shared: float = 0.5) -> Array:
    """Hits [n, cells] with a probability for each row; rows of a group are correlated."""
    groups = random.normal(size=(codes.max() + 1, cells))[codes]
    latent = np.sqrt(shared) * groups + np.sqrt(1 - shared) * random.normal(size=(len(codes), cells))
    return (latent < norm.ppf(rate)[:, None]).astype(float)


@pytest.mark.parametrize("sizes", [np.full(250, 2), np.tile([1, 1, 2, 4], 60)], ids=["pairs", "unequal groups"])
def test_intervals_of_information_cover_95_percent(sizes: Array) -> None:
    """Balanced accuracy of one task, a difference between two conditions, and the mean over two tasks."""
    random = np.random.default_rng(0)
    studies = 1500
    tasks = {"one": samples(sizes), "two": samples(sizes)}
    resampling = Resampling(tasks, Statistics(draws=1000), 0)
    builder = Builder(tasks)
    for task, of_task in tasks.items():
        truth = np.arange(len(of_task.ids)) % 2
        weights = np.where(truth == 1, 0.5 / (truth == 1).sum(), 0.5 / (truth == 0).sum())
        for condition, rate in (("a", np.where(truth == 1, 0.9, 0.7)), ("b", np.full(len(truth), 0.75))):
            values = hits(random, of_task.codes, rate, studies)
            builder.add(task, values, weights, {"model": "m", "condition": condition, "study": list(range(studies))})
    estimates = builder.build(describe_models([synthetic.manifest("m", "sft")]), ["condition", "study"])
    a, b = estimates.where(estimates.rows["condition"] == "a"), estimates.where(estimates.rows["condition"] == "b")
    for tested, true in ((a, 0.8), (a.mean(["task"]), 0.8), (stack([a, b]).contrast("condition", "a", "b"), 0.05)):
        low, high = resampling.intervals(tested)
        covered = ((low <= true) & (true <= high)).mean()
        assert 0.93 <= covered <= 0.97


def test_intervals_over_rows_would_not_cover() -> None:
    """The twin of the test above: rows of a group taken for independent."""
    random = np.random.default_rng(0)
    codes = np.repeat(np.arange(100), 4)
    values = hits(random, codes, np.full(400, 0.8), 500)
    draws = cluster_draws(400, 500, random)
    low, high = np.quantile(draws @ values / 400, [0.025, 0.975], axis=0)
    assert ((low <= 0.8) & (high >= 0.8)).mean() < 0.9


def layers_with_effect(random: np.random.Generator, studies: int, effect: Array, groups: int = 120) -> Array:
    """Paired differences [groups, studies, layers]: correlated over layers, discrete, with a mean of ``effect``."""
    shared = random.normal(size=(groups, studies, 1))
    latent = 0.8 * shared + 0.6 * random.normal(size=(groups, studies, len(effect)))
    return np.round(latent) / 2 + effect


def test_max_t_keeps_the_family_wise_error_and_finds_effects() -> None:
    random = np.random.default_rng(1)
    studies, layers = 1200, 6
    flips = sign_flips(120, 400, random)
    tolerance = 3 * np.sqrt(0.05 * 0.95 / studies)
    null = layers_with_effect(random, studies, np.zeros(layers))
    adjusted = max_t(null, flips)
    assert (adjusted <= 0.05).any(axis=1).mean() <= 0.05 + tolerance
    # not so without the correction, and not so conservative as to be useless
    assert (sign_flip_test(null.reshape(120, -1), flips).reshape(studies, layers) <= 0.05).any(axis=1).mean() > 0.1
    assert (adjusted <= 0.05).any(axis=1).mean() >= 0.05 - tolerance
    # with effects in two layers: found, and no more errors among the other layers than without
    effect = np.array([0, 0, 0, 0, 0.25, 0.25])
    adjusted = max_t(layers_with_effect(random, studies, effect), flips)
    assert (adjusted[:, 4:] <= 0.05).mean() > 0.95
    assert (adjusted[:, :4] <= 0.05).any(axis=1).mean() <= 0.05 + tolerance


def test_sign_flips_keep_their_level_one_sided() -> None:
    random = np.random.default_rng(2)
    sums = layers_with_effect(random, 2000, np.zeros(1))[..., 0]
    for alternative in ("greater", "less", "two-sided"):
        p = sign_flip_test(sums, sign_flips(120, 2000, random), alternative)  # type: ignore[arg-type]
        # 2000 studies, and 2000 flips that they share
        assert abs((p <= 0.05).mean() - 0.05) <= 3 * np.sqrt(2 * 0.05 * 0.95 / 2000)


def test_intervals_of_tau_cover_95_percent() -> None:
    """x: share of 4 layers that are right, y: right answer, both depending on how hard the sample is."""
    random = np.random.default_rng(3)
    ease = np.linspace(0.05, 0.95, 7)
    shares = np.arange(5) / 4
    joint = [
        (share, y, np.mean(binom.pmf(4 * share, 4, 0.4 + 0.5 * ease) * np.where(y, ease, 1 - ease)))
        for share in shares
        for y in (0, 1)
    ]
    x, y, probability = (np.array(column) for column in zip(*joint, strict=True))
    true = weighted_tau(x, y, probability[None])[0]
    assert 0.15 < true < 0.35
    studies, covered = 700, 0
    draws = cluster_draws(150, 400, random)
    for _ in range(studies):
        drawn = random.choice(len(x), size=150, p=probability / probability.sum())
        result = kendall(x[drawn], y[drawn], np.arange(150), draws, 0.95)
        covered += result.ci_low <= true <= result.ci_high
    assert 0.93 - 0.01 <= covered / studies <= 0.97 + 0.01  # 95 +- 2 %, and a standard error of 0.8 %


def test_largest_tau_is_what_a_perfect_dependence_gives() -> None:
    """Behaviour is decided by the sample's latent ease, probes see it with noise: tau is as large as it can be."""
    random = np.random.default_rng(4)
    n = 8000
    for layers in (4, 6):
        for rate in (0.6, 0.9):
            for noise in (0.3, 1.0, 3.0):
                ease = random.normal(size=n)
                seen = ease[:, None] + noise * random.normal(size=(n, layers))
                items = (seen > np.linspace(-1, 0.3, layers)).astype(float)
                x, y = items.mean(axis=1), (ease > np.quantile(ease, 1 - rate)).astype(float)
                largest = largest_tau(x, y, cronbach_alpha(items))
                # the approximation is good to 0.06, and a tau of 8000 rows has a standard error below 0.01
                assert kendalltau(x, y).statistic == pytest.approx(largest, abs=0.07)


@pytest.mark.parametrize("rates", [(0.8, 0.8, 0.8), (0.8, 0.8, 0.81), (0.74, 0.8, 0.86)])
def test_intervals_of_spread_cover_also_near_zero(rates: tuple[float, ...]) -> None:
    random = np.random.default_rng(5)
    studies, of_task = 300, samples(np.full(120, 2))
    conditions = dict(zip(synthetic.CONDITIONS, rates, strict=True))
    builder = Builder({"t": of_task})
    n = len(of_task.ids)
    ease = random.normal(size=(n, studies))  # a sample is as hard in every variation
    for condition, rate in conditions.items():
        latent = 0.7 * ease + np.sqrt(1 - 0.49) * random.normal(size=(n, studies))
        values = (latent < norm.ppf(rate)).astype(float)
        named = {"model": "m", "condition": condition, "quantity": "information", "role": "sample", "target": "label"}
        # each study is a target of its own, since targets are not averaged
        builder.add("t", values, np.full(n, 1 / n), named | {"target": [f"{study}" for study in range(studies)]})
    models = describe_models([synthetic.manifest("m", "sft")])
    estimates = builder.build(models, ["condition", "quantity", "role", "target"])
    resampling = Resampling({"t": of_task}, Statistics(draws=400), 0)
    table = spread_table(estimates.where(np.zeros(len(estimates.values))), estimates, resampling, [])
    table = table[(table["model"] == "m") & (table["task"] == "t")]
    true = max(abs(rate - np.mean(rates)) for rate in rates)
    assert ((table["ci_low"] <= true) & (true <= table["ci_high"])).mean() >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / studies)
    rejected = (table["p"] <= 0.05).mean()
    if len(set(rates)) == 1:
        assert rejected <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / studies)
        assert table["estimate"].mean() == pytest.approx(table["chance"].mean(), rel=0.1)
    elif true > 0.03:
        assert rejected > 0.8


MODELS = [synthetic.manifest("m-base", "base"), synthetic.manifest("m-sft", "sft")]
PLANTED = [*synthetic.CONDITIONS, "block_instruction_to_all"]


def through_probes(at_output: dict[str, float], seed: int, pairs: int = 80) -> dict[str, pd.DataFrame]:
    """All tables of activations with the label at the sample (every condition alike) and at the output (as given).

    Only layers 2 and 3 of the tuned model's output role differ between conditions.
    """
    random = np.random.default_rng(seed)
    table = synthetic.prompts("t", pairs, seed, "positive")
    answers, all_hits, scores = [], [], []
    blocked = table[table["condition"] == "instruction_first"].assign(condition="block_instruction_to_all")
    for model in MODELS:
        name = model["id"]
        arrays = {}
        for condition in PLANTED:
            label = (table[table["condition"] == "instruction_first"]["label"] == "yes").to_numpy()
            sample = random.normal(size=(len(label), synthetic.LAYERS + 1, synthetic.WIDTH)).astype(np.float32)
            sample[:, 1:, 0] += 1.5 * label[:, None]
            output = random.normal(size=(len(label), synthetic.LAYERS, synthetic.WIDTH)).astype(np.float32)
            output[:, :, 0] += 1.5 * label[:, None]
            output[:, 1:, 1] += at_output[condition] * (name == "m-sft") * label[:, None]
            arrays[condition] = {"sample.residual": sample, "output.attention": output}
        settings = Probes(folds=3, roles=["sample", "output"], targets=["label"])
        result = probe_task(table, arrays, settings, Statistics(draws=100), seed, "t")
        names = {"model": name, "task": "t"}
        all_hits.append(result.hits.assign(**names))
        scores.append(result.probes.assign(**names))
        answers.append(synthetic.behaviour(pd.concat([table, blocked]), 0.8, seed).assign(**names))
    evidence = collect(describe_models(MODELS), answers, all_hits)
    return study_tables(evidence, pd.concat(scores, ignore_index=True), Statistics(draws=300), seed)


def found(tables: dict[str, pd.DataFrame]) -> dict[str, bool]:
    """Whether the tables claim an asymmetry: the output changes, and more than the sample does."""
    cell = "model == 'm-sft' and task == 't' and target == 'label'"
    contrast = f"{cell} and role == 'output - sample'"
    spread, blocking, stages = (tables[name].query(contrast).iloc[0] for name in ("spread", "blocking", "stages"))
    layers = tables["blocking_layers"].query(f"{cell} and role == 'output'").set_index("layer")["p_adjusted"]
    return {
        "spread": spread["ci_low"] > 0,
        "blocking": blocking["ci_high"] < 0,
        "stages": stages["ci_low"] > 0,
        "layers": bool((layers[[2, 3]] < 0.05).all()),
        "first layer": layers[1] < 0.05,
        **{name: verdicts(tables)[f"asymmetry.{name}"] == "supported" for name in ("spread.output", "tuning.output")},
    }


def verdicts(tables: dict[str, pd.DataFrame]) -> dict[str, str]:
    """What the study says of each claim on these tables."""
    return {claim.id: claim.verdict for claim in judge_all(tables)}


def test_a_planted_asymmetry_is_recovered_from_activations() -> None:
    strength = {"instruction_first": 4.0, "sample_first": 4.0, "demonstrations": 0.0, "block_instruction_to_all": 0.0}
    claims = found(through_probes(strength, 0))
    assert not claims.pop("first layer") and all(claims.values()), claims


def selected(strength: float, seed: int, pairs: int = 80) -> dict[str, pd.DataFrame]:
    """All tables of activations in which the sample carries both properties whatever is asked, and the decision of
    layers 2 and 3 carries more of the asked one by ``strength``; nothing of it where the instruction is blocked."""
    random = np.random.default_rng(seed)
    first = synthetic.prompts("t", pairs, seed, "positive").query("condition == 'instruction_first'")
    first = first.assign(unasked=np.repeat(random.permutation(["yes", "no"] * (pairs // 2)), 2))
    other = first.assign(
        condition="other_instruction", answer=first["unasked"], prompt_id="other-" + first["sample_id"]
    )
    table = pd.concat([first, other], ignore_index=True)
    arrays, shown = {}, []
    for condition, part in (
        ("instruction_first", first),
        ("other_instruction", other),
        ("block_instruction_to_all", first),
        ("other_block_instruction_to_all", other),
    ):
        label, unasked = ((part[name] == "yes").to_numpy(dtype=float)[:, None] for name in ("label", "unasked"))
        values = random.normal(size=(2, len(part), synthetic.LAYERS + 1, synthetic.WIDTH)).astype(np.float32)
        sample, decision = values
        # the unasked property is the easier one, at every position: a difference in kind, and no selection
        for role, weight in ((sample, 1.0), (decision, 0.5)):
            role[:, 1:, 0] += 1.5 * weight * label
            role[:, 1:, 1] += 2.5 * weight * unasked
        read = 0.0 if "block" in condition else strength
        decision[:, 2:, 2] += read * (unasked if condition == "other_instruction" else label)
        arrays[condition] = {"sample.residual": sample, "decision.residual": decision}
        shown.append(synthetic.behaviour(part.assign(condition=condition), 0.9 if read else 0.5, seed))
    settings = Probes(folds=4, roles=["sample", "decision"], targets=["label", "unasked"])
    result = probe_task(table, arrays, settings, Statistics(draws=100), seed, "t")
    names = {"model": "m-sft", "task": "t"}
    evidence = collect(describe_models(MODELS[1:]), [pd.concat(shown).assign(**names)], [result.hits.assign(**names)])
    return study_tables(evidence, result.probes.assign(**names), Statistics(draws=300), seed)


@pytest.mark.parametrize("strength", [0.0, 3.0])
def test_selection_is_found_where_it_was_planted_and_a_difference_in_kind_is_not(strength: float) -> None:
    tables = selected(strength, 0, 150)
    told = verdicts(tables)
    assert (told["asymmetry.selection.decision"] == "supported") is bool(strength)
    assert told["asymmetry.selection.sample"] != "contradicted"
    assert told["asymmetry.selection.decision.blocked"] != "contradicted"
    layers = tables["selection_layers"].query("task == 't' and role == 'decision' and target == 'all'")
    found = layers.query("condition == 'instruction_first'").set_index("layer")
    assert list(found.index[(found["p_adjusted"] < 0.05) & (found["estimate"] > 0.05)]) == ([2, 3] if strength else [])


def test_a_planted_null_is_not_found() -> None:
    """The same, with equally much at the output in every condition and model: at most what 5 % tests allow.

    Intervals hold the fitted probes fixed, while every condition has probes of its own, so a little more than 5 % is
    expected; docs/statistics.md has the measured rates. 16 verdicts: more than 4 would have a probability of 0.1 %
    at 5 %, and of 4 % at 12 %.
    """
    claims = [found(through_probes(dict.fromkeys(PLANTED, 0.0), seed)) for seed in range(1, 5)]
    assert sum(claim[name] for claim in claims for name in ("spread", "blocking", "stages", "layers")) <= 4
