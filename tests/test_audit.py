"""The methods audit: paired differences, F1 of one class against macro F1, means over tasks."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from levelt.engine.plans import CONDITIONS
from levelt.statistics.resampling import cluster_draws
from levelt.studies.audit import (
    DEFECTS,
    MASKING,
    Measured,
    audit_table,
    compare_means,
    compare_statistics,
    confusion,
    f1_row,
    macro_and_one_class_f1,
    masking_rows,
    paired_row,
)

random = np.random.default_rng(5)
CODES = np.repeat(np.arange(40), 2)
DRAWS = cluster_draws(40, 400, np.random.default_rng(6))


def test_equal_measurements_differ_by_exactly_nothing_and_a_shift_by_the_shift() -> None:
    values = random.random(80)
    same = compare_means(values, values, CODES, DRAWS, 0.95)
    assert same["difference"] == same["ci_low"] == same["ci_high"] == 0.0
    shifted = compare_means(values, values + 0.25, CODES, DRAWS, 0.95)
    # a constant shift has no spread: only rounding is left
    assert [shifted[key] for key in ("difference", "ci_low", "ci_high")] == pytest.approx([0.25] * 3, abs=1e-12)
    assert shifted["corrected"] == pytest.approx(values.mean())


def test_f1_is_scikit_learns_and_one_class_is_not_macro() -> None:
    truth, said = random.random(80) < 0.35, random.random(80) < 0.5
    counts = {name: np.stack([values] * 2, axis=1) for name, values in confusion(said, truth).items()}
    found = compare_statistics(counts, macro_and_one_class_f1, CODES, DRAWS, 0.95)
    assert found["corrected"] == pytest.approx(f1_score(truth, said, average="macro"), abs=1e-12)
    assert found["released"] == pytest.approx(f1_score(truth, said), abs=1e-12)
    assert abs(found["difference"]) > 0.01  # with 35 % positives the two are not the same number


def test_confusion_counts_every_row_once() -> None:
    counts = confusion([1, 1, 0, 0, 1], [1, 0, 1, 0, 1])
    assert {name: int(values.sum()) for name, values in counts.items()} == {"tp": 2, "fp": 1, "fn": 1, "tn": 1}
    assert np.array_equal(sum(counts.values()), np.ones(5))


def test_every_masking_differs_from_its_correction() -> None:
    for masking in MASKING:
        assert masking.released != masking.corrected, masking
        assert masking.corrected == CONDITIONS[masking.block]
    assert {masking.defect for masking in MASKING} <= set(DEFECTS)


def test_mean_over_tasks_adds_squared_half_widths() -> None:
    row = {"model": "m", "task": "a", "defect": "trainer", "quantity": "q", "block": "", "n": 10}
    row |= {"corrected": 1.0, "released": 0.8, "difference": -0.2, "ci_low": -0.3, "ci_high": -0.1}
    other = row | {"task": "b", "difference": 0.0, "ci_low": -0.1, "ci_high": 0.1}
    table = audit_table([pd.DataFrame([row]), pd.DataFrame([other])])
    assert list(table["task"]) == ["a", "b", "all"]
    mean = table.iloc[2]
    half = np.hypot(0.1, 0.1) / 2
    assert (mean["difference"], mean["ci_low"], mean["ci_high"]) == pytest.approx((-0.1, -0.1 - half, -0.1 + half))
    assert mean["n"] == 20
    without = audit_table([pd.DataFrame([row]), pd.DataFrame([other])], ["b"])
    assert without.iloc[2]["difference"] == pytest.approx(-0.2) and len(without) == 3  # b keeps its own row


def test_masking_rows_are_changes_against_the_plain_run() -> None:
    plain = random.random(80)
    masking = MASKING[1]
    corrected, released = plain - 0.3, plain - 0.1
    rows = masking_rows(
        Measured({"exact match": plain}),
        {masking.block: Measured({"exact match": corrected})},
        {masking: Measured({"exact match": released})},
        CODES,
        DRAWS,
        0.95,
    )
    assert len(rows) == 1
    row = rows[0]
    assert (row["defect"], row["block"], row["quantity"]) == (masking.defect, masking.block, "change of exact match")
    found = [row[key] for key in ("corrected", "released", "difference")]
    assert found == pytest.approx([-0.3, -0.1, 0.2], abs=1e-12)


def test_prompts_that_lack_a_measurement_leave_both_sides() -> None:
    first, second = random.random(80), random.random(80)
    holes = second.copy()
    holes[:10] = np.nan
    row = paired_row("trainer", "q", first, holes, CODES, DRAWS, 0.95)
    assert row["n"] == 70 and row["corrected"] == pytest.approx(first[10:].mean())
    with pytest.raises(ValueError, match="no prompt has both"):
        paired_row("trainer", "q", first, np.full(80, np.nan), CODES, DRAWS, 0.95)
    with pytest.raises(ValueError, match="no defect 'unheard_of'"):
        paired_row("unheard_of", "q", first, second, CODES, DRAWS, 0.95)


def test_f1_row_names_its_defect() -> None:
    truth = random.random(80) < 0.35
    row = f1_row("F1 at sample", ~truth, truth, CODES, DRAWS, 0.95)
    assert row["defect"] == "one_class_f1" and row["corrected"] == row["released"] == 0.0  # always wrong
