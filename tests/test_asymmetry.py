"""The study's tables on planted results: what was put in comes out, and a null is not found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

import synthetic
from levelt.config import Probes
from levelt.files import InputError
from levelt.studies.asymmetry import blocking_table, correlations_table, describe_models
from levelt.studies.information import probe_task, targets_of


@pytest.fixture(scope="module")
def study() -> dict[str, Any]:
    return synthetic.study()


def cell(study: dict[str, Any], **wanted: Any) -> pd.DataFrame:
    table = study["probes"]
    for name, value in wanted.items():
        table = table[table[name] == value]
    return table


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
    by_target = output.groupby("target")["information"].mean()
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
    with pytest.raises(InputError, match="sample_first: no prompt has a token in role output"):
        probe_task(table, arrays, settings, synthetic.STATISTICS, 0, "t")


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
    table = correlations_table(rows, hits, study["information"], synthetic.STATISTICS, 0)
    instances = table[table["level"] == "instances"].set_index(["task", "first", "second"])
    for task in ("acceptability", "belief"):
        assert instances.loc[(task, "decision", "behaviour"), "tau"] == pytest.approx(1.0)
        assert abs(instances.loc[(task, "sample", "behaviour"), "tau"]) < 0.2
        assert instances.loc[(task, "decision", "behaviour"), "cells"] == 6


def test_blocking_is_paired_with_the_same_prompts(study: dict[str, Any]) -> None:
    """An intervention that makes every answer wrong and leaves the sample tokens alone."""
    rows, hits = study["rows"], study["hits"]
    first = rows["condition"] == "instruction_first"
    blocked = rows[first].assign(condition="block_instruction_to_all", exact_match=False)
    same = hits[hits["condition"] == "instruction_first"].assign(condition="block_instruction_to_all")
    lost = [np.zeros(3) if role == "decision" else v for role, v in zip(same["role"], same["hits"], strict=True)]
    models = describe_models(study["manifests"])
    table = blocking_table(
        pd.concat([rows, blocked]), pd.concat([hits, same.assign(hits=lost)]), models, synthetic.STATISTICS, 0
    ).set_index(["model", "task", "role", "target"])
    before = rows[first].groupby(["model", "task"])["exact_match"].mean()
    for (model, task), rate in before.items():  # type: ignore[misc]
        row = table.loc[(model, task, "behaviour", "answer")]
        assert row["before"] == pytest.approx(rate) and row["change"] == pytest.approx(-rate)
        assert row["ci_low"] < row["change"] < row["ci_high"] < 0
        assert table.loc[(model, task, "sample", "label"), "change"] == 0
        assert table.loc[(model, task, "decision", "label"), "ci_high"] < 0
    empty = blocking_table(rows, hits, models, synthetic.STATISTICS, 0)
    assert empty.empty and "change" in empty


def test_cells_without_variance_are_counted_not_hidden(study: dict[str, Any]) -> None:
    rows = study["rows"].copy()
    rows.loc[rows["model"] == "m-sft", "exact_match"] = True
    table = correlations_table(rows, study["hits"], study["information"], synthetic.STATISTICS, 0)
    instances = table[(table["level"] == "instances") & (table["second"] == "behaviour")]
    assert (instances["undefined"] == 3).all() and (instances["cells"] == 3).all()
