"""Verdicts: what an interval says about a claim, and that nothing is claimed where there is nothing."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from levelt.studies.verdicts import NOTHING, Claim, Finding, Region, above, below, within

finite = st.floats(-100, 100, allow_nan=False)


def finding(low: float, high: float) -> Finding:
    return Finding((low + high) / 2, low, high, 10, "pairs")


@pytest.mark.parametrize(
    ("test", "low", "high", "verdict"),
    [
        (above(0), 0.1, 2.0, "supported"),
        (above(0), -0.1, 2.0, "undecided"),
        (above(0), -2.0, -0.1, "contradicted"),
        (above(0), 0.0, 2.0, "undecided"),  # on the border
        (below(-1), -3.0, -1.5, "supported"),
        (below(-1), -0.5, 0.5, "contradicted"),
        (within(2), -1.0, 1.9, "supported"),
        (within(2), -1.0, 2.1, "undecided"),
        (within(2), 2.1, 5.0, "contradicted"),
        (within(2), -9.0, 9.0, "undecided"),  # an imprecise estimate is not evidence for equality
    ],
)
def test_verdicts(test: Region, low: float, high: float, verdict: str) -> None:
    assert test.verdict(finding(low, high)) == verdict


@given(finite, finite, finite)
def test_a_claim_and_its_opposite_never_hold_together(bound: float, one: float, other: float) -> None:
    low, high = sorted([one, other])
    verdicts = {above(bound).verdict(finding(low, high)), below(bound).verdict(finding(low, high))}
    assert verdicts in ({"supported", "contradicted"}, {"undecided"})


def test_no_evidence_decides_nothing() -> None:
    assert above(0).verdict(NOTHING) == "undecided"
    assert above(0).verdict(Finding(1.0, math.nan, math.nan, 5, "tasks")) == "undecided"


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (-math.inf, math.inf)])
def test_a_test_that_cannot_fail_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="cannot be tested"):
        Region(low, high)


def test_a_judged_claim_is_plain_json() -> None:
    claim = Claim("x.y", "x", "X.", within(2), "pp", None, "row 1", "spread", lambda tables: NOTHING)
    judged = claim.judge({"spread": pd.DataFrame()}).to_json()
    assert judged["estimate"] is None and judged["ci_low"] is None
    assert judged["verdict"] == "undecided" and judged["test"] == "between -2 and 2"
