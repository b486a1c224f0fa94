"""The study's tables on planted results: what was put in comes out, and a null is not found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array

import synthetic
from levelt.config import Probes
from levelt.files import InputError
from levelt.statistics.resampling import cluster_draws
from levelt.studies.estimates import linear
from levelt.studies.evidence import Samples, collect
from levelt.studies.information import probe_task, targets_of
from levelt.studies.scope import describe_models


@pytest.fixture(scope="module")
def study() -> dict[str, Any]:
    return synthetic.study()


def cell(study: dict[str, Any], **wanted: Any) -> pd.DataFrame:
    table = study["probes"]
    for name, value in wanted.items():
        table = table[table[name] == value]
    return table


def one(table: pd.DataFrame, **wanted: Any) -> pd.Series:
    for name, value in wanted.items():
        table = table[table[name] == value]
    assert len(table) == 1, f"{len(table)} rows with {wanted}"
    return table.iloc[0]


def test_planted_information_is_found_where_it_is(study: dict[str, Any]) -> None:
    sample = cell(study, role="sample", target="label")
    # 80 rows: the standard error of an accuracy is at most 0.056
    assert sample[sample["layer"] > 0]["balanced_accuracy"].min() > 0.7
    assert sample[sample["layer"] == 0]["balanced_accuracy"].max() < 0.72
    decision = cell(study, role="decision", target="answer", model="m-sft")
    assert decision[decision["layer"] == synthetic.LAYERS]["balanced_accuracy"].min() > 0.8
    assert decision[decision["layer"] < synthetic.LAYERS]["balanced_accuracy"].max() < 0.75


def test_planted_null_is_not_found(study: dict[str, Any]) -> None:
    """The base model's output carries nothing: its interval misses chance no more often than 5 % allows."""
    null = cell(study, role="output", model="m-base")
    misses = ((null["ci_low"] > 0.5) | (null["ci_high"] < 0.5)).mean()
    assert abs(null["balanced_accuracy"].mean() - 0.5) < 0.05
    assert misses < 0.25  # the intervals leave out refitting and the cells share draws


def test_label_of_mixed_polarity_is_not_the_answer(study: dict[str, Any]) -> None:
    """An output that only repeats the answer says nothing about the label under mixed polarity: the leak, seen."""
    output = study["information"].query("role == 'output' and model == 'm-sft' and condition == 'instruction_first'")
    by_target = output[output["task"] != "all"].groupby("target")["estimate"].mean()
    assert by_target["answer"] > 0.9
    assert by_target["label"] < 0.65


def test_layers_and_depth(study: dict[str, Any]) -> None:
    table = study["probes"]
    assert set(table[table["role"] == "output"]["layer"]) == {1, 2, 3}
    assert set(table[table["role"] == "sample"]["layer"]) == {0, 1, 2, 3}
    np.testing.assert_allclose(table["depth"], table["layer"] / 3)
    assert (table["bound"] <= 1e-8).all()


def test_targets() -> None:
    mixed, positive = synthetic.prompts("t", 4, 0), synthetic.prompts("t", 4, 0, "positive")
    wanted = ["label", "answer", "unasked"]
    assert [name for name, _ in targets_of(mixed, wanted)] == wanted
    assert [name for name, _ in targets_of(positive, wanted)] == ["label", "unasked"]
    positive.loc[0, "unasked"] = None
    assert [name for name, _ in targets_of(positive, wanted)] == ["label"]


def test_rows_without_output_are_left_out_and_counted() -> None:
    table = synthetic.prompts("t", 20, 0)
    arrays = synthetic.activations(table, True, 0)
    arrays["sample_first"]["output.attention"][:4] = np.nan
    settings = Probes(folds=3, roles=["output"])
    scores = probe_task(table, arrays, settings, synthetic.STATISTICS, 0, "t").probes
    left_out = scores.groupby("condition")["left_out"].max()
    assert left_out["sample_first"] == 4 and left_out["instruction_first"] == 0
    arrays["sample_first"]["output.attention"][:] = np.nan
    with pytest.raises(InputError, match="sample_first, output: no prompt has a token in role output"):
        probe_task(table, arrays, settings, synthetic.STATISTICS, 0, "t")


def test_an_intervention_that_silences_a_model_leaves_out_the_role_and_nothing_else() -> None:
    table = synthetic.prompts("t", 20, 0)
    arrays = synthetic.activations(table, True, 0)
    arrays["isolate_sample"] = {name: values.copy() for name, values in arrays["instruction_first"].items()}
    arrays["isolate_sample"]["output.attention"][:] = np.nan
    scores = probe_task(table, arrays, Probes(folds=3), synthetic.STATISTICS, 0, "t").probes
    found = scores.groupby("condition")["role"].unique().map(set)
    assert found["isolate_sample"] == {"sample", "decision"}
    assert found["instruction_first"] == {"sample", "decision", "output"}


def test_behaviour_rates(study: dict[str, Any]) -> None:
    table = study["behaviour"]
    sft = table[(table["model"] == "m-sft") & (table["polarity"] == "all")]
    assert sft["exact_match"].between(0.75, 1.0).all()
    assert (
        (sft["exact_match_ci_low"] <= sft["exact_match"]) & (sft["exact_match"] <= sft["exact_match_ci_high"])
    ).all()
    assert set(table["polarity"]) == {"all", "positive", "negated"}
    demonstrations = table[table["condition"] == "demonstrations"]
    assert set(demonstrations["polarity"]) == {"all"}, "one polarity only: not repeated"


def test_agreement_of_a_variation_with_itself_and_with_its_opposite(study: dict[str, Any]) -> None:
    table = study["agreement"]
    table = table[(table["task"] != "all") & (table["model"] != "all")]
    assert len(table) == 2 * 2 * 4  # models x tasks x (three pairs and all three)
    independent = table[table["conditions"].str.count(r"\+") == 1]
    # outcomes were drawn independently: agreement is what chance gives, within 4 standard errors of 80 rows
    assert (independent["agreement"] - independent["expected"]).abs().max() < 0.23


def test_correlations_find_a_planted_link_and_miss_an_absent_one(study: dict[str, Any]) -> None:
    rows, hits = study["rows"], study["hits"].copy()
    right = rows.set_index(["model", "task", "prompt_id"])["exact_match"]
    keys = pd.MultiIndex.from_frame(hits[["model", "task", "prompt_id"]])
    linked = right.loc[keys].to_numpy()
    hits["hits"] = [
        np.full(3, float(r)) if role == "decision" else values
        for r, role, values in zip(linked, hits["role"], hits["hits"], strict=True)
    ]
    table = synthetic.tables_of(study["manifests"], rows, hits)["correlations"]
    table = table[table["stage"] == "all"]
    instances = table[table["level"] == "instances"].set_index(["task", "first", "second"])
    for task in ("acceptability", "belief", "all"):
        assert instances.loc[(task, "decision", "behaviour"), "tau"] == pytest.approx(1.0)
        assert instances.loc[(task, "decision", "behaviour"), "largest_tau"] == pytest.approx(1.0)
        assert abs(instances.loc[(task, "sample", "behaviour"), "tau"]) < 0.2
        assert instances.loc[(task, "decision", "behaviour"), "cells"] == (12 if task == "all" else 6)


def test_cells_without_variance_are_counted_not_hidden(study: dict[str, Any]) -> None:
    rows = study["rows"].copy()
    rows.loc[rows["model"] == "m-sft", "exact_match"] = True
    table = synthetic.tables_of(study["manifests"], rows, study["hits"])["correlations"]
    instances = table[(table["level"] == "instances") & (table["second"] == "behaviour") & (table["task"] != "all")]
    both, sft = instances[instances["stage"] == "all"], instances[instances["stage"] == "sft"]
    assert (both["undefined"] == 3).all() and (both["cells"] == 3).all()
    assert sft["tau"].isna().all() and (sft["undefined"] == 3).all()


def test_blocking_is_paired_with_the_same_prompts(study: dict[str, Any]) -> None:
    """An intervention that makes every answer wrong and leaves the sample tokens alone."""
    rows, hits = study["rows"], study["hits"]
    first = rows["condition"] == "instruction_first"
    blocked = rows[first].assign(condition="block_instruction_to_all", exact_match=False)
    same = hits[hits["condition"] == "instruction_first"].assign(condition="block_instruction_to_all")
    lost = [np.zeros(4) if role == "decision" else v for role, v in zip(same["role"], same["hits"], strict=True)]
    tables = synthetic.tables_of(
        study["manifests"], pd.concat([rows, blocked]), pd.concat([hits, same.assign(hits=lost)])
    )
    table = tables["blocking"]
    before = rows[first].groupby(["model", "task"])["exact_match"].mean()
    for (model, task), rate in before.items():  # type: ignore[misc]
        cell = {"model": model, "task": task}
        row = one(table, quantity="exact_match", **cell)
        assert row["before"] == pytest.approx(rate) and row["change"] == pytest.approx(-rate)
        assert row["ci_low"] < row["change"] < row["ci_high"] < 0 and row["p"] < 0.01
        sample, decision = (one(table, role=role, target="label", **cell) for role in ("sample", "decision"))
        assert sample["change"] == 0 and sample["p"] == 1 and decision["ci_high"] < 0
        contrast = one(table, role="decision - sample", target="label", **cell)
        assert contrast["change"] == pytest.approx(decision["change"])
    mean = one(table, model="m-sft", task="all", quantity="exact_match")
    assert mean["change"] == pytest.approx(-before["m-sft"].mean()) and mean["n"] == 160
    # two tasks with independent samples: narrower by a factor of 0.71 than each, with 200 draws
    single = table.query("model == 'm-sft' and task != 'all' and quantity == 'exact_match'")
    ratio = (mean["ci_high"] - mean["ci_low"]) / (single["ci_high"] - single["ci_low"]).mean()
    assert 0.5 < ratio < 0.9
    layers = tables["blocking_layers"].query("role == 'decision' and target == 'label' and layer > 0")
    assert (layers["p_adjusted"] >= layers["p"]).all() and layers["p_adjusted"].max() < 0.01


def test_a_silenced_model_is_compared_on_the_samples_that_it_answers(study: dict[str, Any]) -> None:
    """An intervention that ends the answer at once in every second pair, and leaves the others as they were: no change
    at the output, though the pairs that stay are not those that were decodable before."""
    rows, hits = study["rows"], study["hits"]
    first = rows["condition"] == "instruction_first"
    same = hits[hits["condition"] == "instruction_first"].copy()
    even = same["pair_id"].map({pair: at % 2 == 0 for at, pair in enumerate(dict.fromkeys(same["pair_id"]))})
    output = (same["role"] == "output").to_numpy()
    same["hits"] = [
        np.full(len(v), float(kept)) if is_output else v
        for v, kept, is_output in zip(same["hits"], even, output, strict=True)
    ]
    hits = pd.concat([hits[hits["condition"] != "instruction_first"], same])
    full = pd.concat([rows, rows[first].assign(condition="block_instruction_to_all")])
    blocked = same.assign(condition="block_instruction_to_all")
    tables = synthetic.tables_of(study["manifests"], full, pd.concat([hits, blocked[even.to_numpy() | ~output]]))
    table = tables["blocking"]
    for row in table.query("role == 'output' and task != 'all' and model != 'all'").itertuples():
        assert row.n == 40 and row.before == 1 and row.change == 0 and row.p == 1
    assert (table.query("role == 'output' and task == 'all'")["change"] == 0).all()
    layers = tables["blocking_layers"].query("role == 'output'")
    assert (layers["change"] == 0).all() and (layers["p_adjusted"] == 1).all()
    information = tables["information"].query("role == 'output' and target == 'label' and task != 'all'")
    for row in information.query("model != 'all'").itertuples():  # each condition by itself has all of its samples
        assert row.n == (40 if row.condition == "block_instruction_to_all" else 80)
    assert set(tables["information"]["condition"]) == {*synthetic.CONDITIONS, "block_instruction_to_all"}


def test_interval_and_mean_are_those_of_the_samples(study: dict[str, Any]) -> None:
    """Estimates are sums over pairs: the same numbers as averaging hits row by row, and the bootstrap of the rows."""
    evidence = study["evidence"]
    table = study["information"].query("quantity == 'information' and model == 'm-sft' and task == 'belief'")
    for row in table.itertuples():
        hits = evidence.hits["m-sft", "belief", row.condition, row.role, row.target]
        truth = evidence.asked["belief", row.condition][row.target].to_numpy()
        per_class = [hits.inner[truth == label].mean() for label in ("yes", "no")]
        assert row.estimate == pytest.approx(np.mean(per_class), abs=1e-6)  # hits are in single precision
    cell = one(table, role="sample", target="label", condition="instruction_first")
    values = evidence.hits["m-sft", "belief", "instruction_first", "sample", "label"].inner.mean(axis=1)
    pairs = values.reshape(-1, 2).mean(axis=1)
    random = np.random.default_rng(0)
    drawn = [pairs[random.integers(0, len(pairs), len(pairs))].mean() for _ in range(2000)]
    # the ends of intervals from 200 and from 2000 draws: the standard error of a 2.5 % quantile is about 0.2 sd here
    ends = np.quantile(drawn, [0.025, 0.975])
    np.testing.assert_allclose([cell["ci_low"], cell["ci_high"]], ends, atol=0.7 * np.std(drawn))


def test_a_balanced_accuracy_of_single_samples_has_the_spread_of_its_classes() -> None:
    """Without pairs, a group is of one class. Hit rates of 0.98 and 0.5 differ far more than either can vary."""
    random = np.random.default_rng(0)
    truth = np.repeat([0, 1], [300, 100])
    hits = (random.random(400) < np.where(truth == 0, 0.98, 0.5)).astype(float)
    weights = np.where(truth == 0, 1 / 600, 1 / 200)
    members = csr_array(np.eye(400))
    samples = Samples(pd.Index(range(400)), np.arange(400), members, pd.Series(dtype=int))
    draws = cluster_draws(400, 4000, random)
    rates = [(draws @ (hits * (truth == label))) / (draws @ (truth == label)) for label in (0, 1)]
    estimate, _, influences = linear(hits[:, None], weights, samples, truth)
    assert estimate == pytest.approx(np.mean([hits[truth == label].mean() for label in (0, 1)]))
    # the same draws, so that only the linearisation differs: second order in 1 / 100
    assert (draws @ influences[0]).std() == pytest.approx(np.mean(rates, axis=0).std(), rel=0.03)
    _, _, pooled = linear(hits[:, None], weights, samples)
    assert (draws @ pooled[0]).std() > 1.1 * np.mean(rates, axis=0).std()


ZOO = [
    synthetic.manifest(
        f"{family}-{size}-{stage}", stage, family=family, size=size, parameters=count, seed=0, layers=layers
    )
    for family in ("llama", "qwen2")
    for size, count, layers in (("s", 10, 3), ("l", 30, 5))
    for stage in ("base", "sft")
] + [synthetic.manifest("llama-s-untrained", "untrained", size="s", parameters=10, seed=0)]
CONDITIONS = [*synthetic.CONDITIONS, "unrelated_instruction", "block_instruction_to_all", "block_nothing"]
CONDITIONS += ["other_instruction", "other_block_instruction_to_all"]


def exact(model: str, task: str, condition: str) -> float:
    """Tuned models answer, unless the instruction is hidden or about something else."""
    asked = condition in synthetic.CONDITIONS or condition == "block_nothing"
    return {True: 0.9, False: 0.5}["sft" in model and asked]


def hit(model: str, task: str, condition: str, role: str, target: str, layer: int) -> float:
    """Samples carry both properties in every condition; late layers of tuned models carry the asked one elsewhere."""
    asked = condition in synthetic.CONDITIONS or condition == "block_nothing"
    if "untrained" in model or layer == 0:
        return 0.5
    if task == "codebook":
        return 0.9 if asked and condition != "sample_first" and role == "sample" and target == "label" else 0.5
    if role == "sample":
        return 0.8
    if role == "decision":
        read = {"label": asked, "unasked": condition == "other_instruction"}[target]
        # the kinds of properties differ, whatever is asked: no selection, and no part of it
        return (0.9 if "sft" in model and read and layer >= 3 else 0.5) + 0.05 * (target == "unasked")
    return (0.9 if "-l-" in model else 0.7) if "sft" in model and asked and condition != "demonstrations" else 0.55


@pytest.fixture(scope="module")
def zoo() -> dict[str, pd.DataFrame]:
    tasks = ["acceptability", "belief", "codebook"]
    return synthetic.tables_of(ZOO, *synthetic.raw_results(ZOO, tasks, CONDITIONS, exact, hit, pairs=100))


def test_models_of_one_size_all_enter_the_scale_table() -> None:
    twin = {**ZOO[3], "id": "llama-l-twin"}
    models = [ZOO[1], ZOO[3], twin]  # small, large and another large one of a family, stage and seed
    raw = synthetic.raw_results(models, ["acceptability"], ["instruction_first"], exact, hit, pairs=20)
    scale = synthetic.tables_of(models, *raw)["scale"]
    steps = scale[(scale["span"] == "step") & (scale["model"] != "all")]
    assert set(zip(steps["smaller"], steps["model"], strict=True)) == {
        ("llama-s-sft", "llama-l-sft"),
        ("llama-s-sft", "llama-l-twin"),
    }
    whole = scale[(scale["span"] == "whole") & (scale["quantity"] == "exact_match") & (scale["task"] == "all")]
    mean = whole[whole["model"] == "all"]["change"].iloc[0]
    assert mean == pytest.approx(whole[whole["model"] != "all"]["change"].mean())


def test_every_table_says_what_was_planted(zoo: dict[str, pd.DataFrame]) -> None:
    """True values are differences of the probabilities above; tolerances are 4 standard errors of 400 samples."""
    everyone = {"model": "all", "family": "all", "task": "all", "quantity": "information", "target": "label"}
    tuned = everyone | {"stage": "sft"}
    spread = zoo["spread"]
    assert one(spread, role="output", **tuned)["estimate"] == pytest.approx(0.167, abs=0.03)  # 0.8, 0.8, 0.55
    assert one(spread, role="sample", **tuned)["p"] > 0.01 and one(spread, role="output", **tuned)["p"] < 0.01
    assert one(spread, role="output - sample", **tuned)["ci_low"] > 0.05
    blocking = {"condition": "block_instruction_to_all"}
    assert one(zoo["blocking"], role="sample", **tuned, **blocking)["change"] == pytest.approx(0, abs=0.03)
    assert one(zoo["blocking"], role="output - sample", **tuned, **blocking)["ci_high"] < -0.15
    control = one(zoo["blocking"], role="output", condition="block_nothing", **tuned)
    assert control["ci_low"] <= 0 <= control["ci_high"]
    answers = tuned | {"quantity": "exact_match", "target": "answer"}
    assert one(zoo["blocking"], role="behaviour", **answers, **blocking)["change"] == pytest.approx(-0.4, abs=0.06)
    assert one(zoo["unrelated"], role="output", **tuned)["change"] == pytest.approx(-0.25, abs=0.04)
    assert one(zoo["stages"], role="sample", **tuned)["change"] == pytest.approx(0, abs=0.03)
    assert one(zoo["stages"], role="output", **tuned)["change"] == pytest.approx(0.25, abs=0.04)
    growth = one(zoo["scale"], role="output", span="whole", **tuned)
    assert growth["change"] == pytest.approx(0.2, abs=0.04) and growth["growth"] == pytest.approx(0.2 / 0.7, abs=0.08)
    assert growth["growth_ci_low"] < growth["growth"] < growth["growth_ci_high"]
    grown = one(zoo["scale"], role="output - sample", span="whole", **tuned)
    assert grown["ci_low"] > 0.1 and np.isnan(grown["growth"])
    mean = {"model": "all", "family": "all", "task": "all", "stage": "sft", "role": "decision"}
    for target in ("label", "unasked", "all"):
        selected = one(zoo["selection"], condition="instruction_first", target=target, **mean)
        assert selected["estimate"] == pytest.approx((0.4 / 3 + 0.4 * 3 / 5) / 2, abs=0.04), target
        assert selected["estimate"] == pytest.approx(selected["asked"] - selected["other"]) and selected["p"] < 0.01
        blocked = one(zoo["selection"], condition="block_instruction_to_all", target=target, **mean)
        assert blocked["ci_low"] <= 0.005 and blocked["ci_high"] >= -0.005 and abs(blocked["estimate"]) < 0.03, target
    parts = zoo["selection"].query("model == 'llama-l-sft' and condition == 'instruction_first' and role == 'decision'")
    parts = parts[parts["task"] == "belief"].set_index("target")["estimate"]
    assert parts["all"] == pytest.approx((parts["label"] + parts["unasked"]) / 2)


def test_layers_are_found_and_the_others_are_not(zoo: dict[str, pd.DataFrame]) -> None:
    mean = {"model": "llama-l-sft", "task": "all", "role": "decision"}
    for name, target in (("selection_layers", {"target": "all"}), ("stage_layers", {"target": "label"})):
        table = zoo[name].query("model in ['llama-l-sft', 'qwen2-l-sft'] and task != 'codebook' and role == 'decision'")
        table = table[table["condition"].isin(["instruction_first", "block_nothing"])]
        for column, value in target.items():
            table = table[table[column] == value]
        planted = table["layer"] >= 3
        assert (table[planted]["p_adjusted"] < 0.05).all(), name
        # two or more families of three true nulls each share their samples; test_calibration.py counts properly
        assert (table[~planted]["p_adjusted"] < 0.05).mean() < 0.2, name
    best = one(zoo["best_layers"], condition="instruction_first", target="label", **mean)
    assert best["depth"] >= 0.6 and best["ci_low"] < 0.9 < best["naive"] + 0.03 and best["estimate"] <= best["naive"]


def test_the_positive_control_is_kept_apart(zoo: dict[str, pd.DataFrame]) -> None:
    codebook = zoo["codebook"]
    assert set(codebook["task"]) == {"codebook"}
    tuned = {"model": "all", "stage": "sft", "quantity": "information", "role": "sample", "target": "label"}
    first = one(codebook, condition="instruction_first", **tuned)
    last = one(codebook, condition="sample_first", **tuned)
    assert first["ci_low"] > 0.85 and np.isnan(first["change"])
    assert last["change"] == pytest.approx(last["estimate"] - first["estimate"], abs=1e-6)
    assert last["change_ci_high"] < -0.3 and last["p"] < 0.01
    for name, table in zoo.items():
        means = table[(table["task"] == "all")]
        if "n" in table and "model" in table and len(means):
            assert means["n"].max() <= 400, f"{name}: the codebook's samples are in a mean over tasks"


def test_untrained_models_are_in_no_mean(zoo: dict[str, pd.DataFrame]) -> None:
    for name in ("information", "blocking", "spread", "agreement", "unrelated", "stages", "scale"):
        table = zoo[name]
        assert "untrained" not in set(table[table["model"] == "all"]["stage"]), name
    assert "untrained" not in set(zoo["correlations"]["stage"])
    alone = zoo["depth"].query("stage == 'untrained' and role == 'sample' and target == 'label' and task == 'all'")
    assert (alone["models"] == 1).all() and alone["estimate"].between(0.42, 0.58).all()


def test_depth_curves_never_change_their_models(zoo: dict[str, pd.DataFrame]) -> None:
    """Models of 3 and 5 layers: their output roles begin at depths 1/3 and 1/5, so a mean begins at 0.4."""
    curve = {"stage": "sft", "target": "label", "task": "all", "condition": "instruction_first"}
    output = zoo["depth"]
    for name, value in (curve | {"role": "output"}).items():
        output = output[output[name] == value]
    assert output["depth"].min() == pytest.approx(0.4) and (output["models"] == 4).all()
    assert one(zoo["depth"], role="decision", depth=1.0, **curve)["estimate"] == pytest.approx(0.9, abs=0.03)
    assert one(zoo["depth"], role="sample", depth=0.0, **curve)["estimate"] == pytest.approx(0.5, abs=0.05)


def test_missing_parts_give_empty_tables_with_columns(zoo: dict[str, pd.DataFrame]) -> None:
    """One model, one task, one variation, no interventions."""
    manifests = [synthetic.manifest("alone", "instruct", seed=None)]
    rows, hits = synthetic.raw_results(manifests, ["t"], ["instruction_first"], exact, hit, pairs=20, targets=["label"])
    tables = synthetic.tables_of(manifests, rows, hits)
    empty = {name for name, table in tables.items() if table.empty}
    assert empty == {"agreement", "spread", "blocking", "blocking_layers", "unrelated", "selection", "selection_layers",
                     "codebook", "scale", "stages", "stage_layers"}  # fmt: skip
    for name, table in tables.items():
        assert list(table.columns) == list(zoo[name].columns), name


def test_what_does_not_fit_together_is_refused() -> None:
    manifests = [synthetic.manifest("alone", "instruct")]
    rows, hits = synthetic.raw_results(manifests, ["t"], ["instruction_first"], exact, hit, pairs=20, targets=["label"])
    models = describe_models(manifests)
    with pytest.raises(InputError, match="behaviour of model other"):
        collect(models, [rows.assign(model="other")], [hits])
    with pytest.raises(InputError, match="hits without behaviour"):
        collect(models, [rows[2:]], [hits])
    with pytest.raises(InputError, match="t-0-yes is in two pairs"):
        collect(models, [pd.concat([rows, rows.assign(pair_id="x")])], [hits])
