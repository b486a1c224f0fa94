"""The audit of the correlations: the corrected side is the study's, equal probings move nothing, others do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau
from sklearn.metrics import f1_score

import synthetic
from levelt.config import Probes
from levelt.engine.run import Readings
from levelt.studies.audit import DEFECTS
from levelt.studies.audit_correlations import (
    ONE_CLASS,
    audit_correlations,
    comparisons,
    f1_of_second,
    second_options,
)
from levelt.studies.audit_hits import variation_hits
from levelt.studies.audit_rows import ROLES
from levelt.studies.estimates import Resampling
from levelt.studies.evidence import collect
from levelt.studies.information import probe_task
from levelt.studies.scope import describe_models

random = np.random.default_rng(11)
NAMES = ["level", "task", "first", "second"]


@pytest.fixture(scope="module")
def study() -> dict[str, Any]:
    return synthetic.study(pairs=24)


def audited(study: dict[str, Any], hits: pd.DataFrame, rows: pd.DataFrame | None = None) -> pd.DataFrame:
    evidence = collect(describe_models(study["manifests"]), [study["rows"] if rows is None else rows], [hits])
    resampling = Resampling(evidence.samples, synthetic.STATISTICS, 0)
    return audit_correlations(evidence, second_options(evidence, [hits]), resampling, [])


@pytest.fixture(scope="module")
def equal(study: dict[str, Any]) -> pd.DataFrame:
    return audited(study, synthetic.audit_hits(study["hits"], study["rows"]))


def test_corrected_is_what_the_study_says_of_the_same_models(study: dict[str, Any], equal: pd.DataFrame) -> None:
    known = study["correlations"][study["correlations"]["stage"] == "all"].set_index(NAMES)
    found = equal[equal["defect"] == "trainer"].set_index(NAMES)
    assert set(found.index) == set(known.index)
    for name, published in {"corrected": "tau", "corrected_low": "ci_low", "corrected_high": "ci_high"}.items():
        np.testing.assert_allclose(found[name], known.loc[found.index, published], atol=1e-12, err_msg=name)
    assert (found["cells"] == known.loc[found.index, "cells"]).all()
    assert (found["n"] == known.loc[found.index, "n"]).all()


def test_a_defect_that_changes_no_hit_moves_no_tau_and_one_that_does_moves_its_own_rows(
    study: dict[str, Any], equal: pd.DataFrame
) -> None:
    concerned = equal[~equal["defect"].isin(["answer_in_output", ONE_CLASS])]
    assert (concerned[["difference", "ci_low", "ci_high"]] == 0).all(axis=None)
    hits = synthetic.audit_hits(study["hits"], study["rows"])
    flipped = hits["role"] == "trainer: output"
    hits.loc[flipped, "hits"] = pd.Series([1 - values for values in hits.loc[flipped, "hits"]], hits.index[flipped])
    table = audited(study, hits).set_index(["defect", *NAMES])
    moved = table[table["difference"].abs() > 1e-9].reset_index()
    moved = moved[~moved["defect"].isin(["answer_in_output", ONE_CLASS])]
    assert set(moved["defect"]) == {"trainer"} and all("output" in (r.first, r.second) for r in moved.itertuples())
    turned = table.loc[("trainer", "instances", "all", "output", "behaviour")]
    assert turned["released"] == pytest.approx(-turned["corrected"], abs=1e-12)  # every hit became a miss
    assert turned["ci_low"] <= turned["difference"] <= turned["ci_high"]


def test_taus_over_cells_are_scipys(study: dict[str, Any], equal: pd.DataFrame) -> None:
    hits = synthetic.audit_hits(study["hits"], study["rows"])
    cells = ["model", "task", "condition"]
    right = study["rows"].groupby(cells)["exact_match"].mean()

    def score(role: str, one_class: bool) -> pd.Series:
        def of_cell(part: pd.DataFrame) -> float:
            values, second = np.stack(list(part["hits"])).astype(float), part["second"].to_numpy()
            said = np.where(values > 0.5, second[:, None], ~second[:, None])
            if one_class:
                return float(np.mean([f1_score(second, said[:, layer]) for layer in range(said.shape[1])]))
            return float(values[second].mean() / 2 + values[~second].mean() / 2)

        part = hits[hits["role"] == role].copy()
        part["hits"] = [values[1 - first :] for values, first in zip(part["hits"], part["first_layer"], strict=True)]
        return part.groupby(cells)[["hits", "second"]].apply(of_cell)

    rows = equal[equal["level"] == "cells"].set_index(["defect", "first", "second"])
    for role in ("sample", "output", "decision"):
        row = rows.loc[(ONE_CLASS, role, "behaviour")]
        for name, one_class in (("corrected", False), ("released", True)):
            x = score(role, one_class)
            # scores are sums of the same hits in another order: rounding keeps ties ties
            assert row[name] == pytest.approx(kendalltau(x.round(9), right.loc[x.index].round(9)).statistic, abs=1e-12)


def test_f1_of_the_second_class_is_scikit_learns_and_not_that_of_the_first() -> None:
    second = random.random(60) < 0.3
    said = random.random((60, 2)) < 0.5
    found = f1_of_second((said == second[:, None]).astype(float), second)
    assert found == pytest.approx([f1_score(second, said[:, layer]) for layer in (0, 1)], abs=1e-12)
    assert abs(found[0] - f1_score(~second, ~said[:, 0])) > 0.05


def test_cells_that_one_side_cannot_correlate_are_counted(study: dict[str, Any]) -> None:
    rows = study["rows"].copy()
    rows.loc[rows["model"] == "m-sft", "exact_match"] = True
    table = audited(study, synthetic.audit_hits(study["hits"], study["rows"]), rows)
    behaviour = table[(table["level"] == "instances") & (table["second"] == "behaviour") & (table["task"] == "all")]
    assert (behaviour["undefined"] == 6).all() and (behaviour["cells"] == 6).all()


def test_comparisons_name_known_defects_and_change_something() -> None:
    for compared in comparisons():
        assert compared.defect in DEFECTS
        assert (compared.corrected == compared.released) == (compared.defect == ONE_CLASS), compared


def test_probed_right_is_what_the_study_probes_and_the_defects_differ() -> None:
    table = synthetic.prompts("t", 20, 3)
    arrays = synthetic.activations(table, True, 3)
    probes = Probes(folds=3)
    known = probe_task(table, arrays, probes, synthetic.STATISTICS, 5, "t").hits
    readings = {}
    for variation, of_variation in arrays.items():
        residual = {role: of_variation[f"{role}.residual"] for role in ("sample", "decision")}
        attention = {role: of_variation["output.attention"].copy() for role in ("output", "output_with_decision")}
        attention["output"][0] = np.nan  # this prompt's answer ended at once
        residual["sample_as_released"] = residual["sample"]
        count = len(residual["sample"])
        nothing = np.zeros(count, dtype=np.int32)
        readings[variation] = Readings(residual, attention, nothing, (), (), nothing.astype(np.float32), 0, 0, 1)
    found = variation_hits(table, readings, probes, 5, "t")
    whole = synthetic.LAYERS + 1

    def hits(frame: pd.DataFrame, role: str) -> pd.DataFrame:
        part = frame[(frame["role"] == role) & (frame["target"] == "label")].set_index("prompt_id")
        return pd.DataFrame(list(part["hits"]), index=part.index)

    for role in ("sample", "decision"):
        pd.testing.assert_frame_equal(hits(found, role), hits(known, role))
    pd.testing.assert_frame_equal(hits(found, "sample_as_released"), hits(found, "sample"), check_names=False)
    assert set(found["role"]) >= set(ROLES)
    assert hits(found, "output").shape == (len(table) - len(arrays), synthetic.LAYERS)
    for defect in ("trainer", "leaking_folds"):
        other = hits(found, f"{defect}: sample")
        assert other.shape == (len(table), whole) and not other.equals(hits(found, "sample"))
    options = table.set_index("prompt_id")["label"].loc[found["prompt_id"]] == "no"
    assert (found["second"].to_numpy() == options.to_numpy()).all()
