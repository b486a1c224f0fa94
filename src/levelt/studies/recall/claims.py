"""The claims of the third paper, each as a declared test on recall.csv (methods/3 section 1 numbers them M1 to M4).

Every number is a difference between an answer and its control (an answer of another subject), in logits, with an
interval over subjects; the mean over models and families of the latest stage of training among those studied. A claim
about several steps or tokens holds if it holds for each of them: its evidence is the *weakest* of the rows, the
estimate furthest to the wrong side, with the lowest lower and the lowest upper bound (or the highest ones, where the
claim is about negative numbers). So it is supported only if every interval lies where the claim says, and
contradicted if one of them lies wholly outside.

How far an answer falls from its peak cannot be negative, so that 0 would never be outside: a fall below `MARGIN` is
none. The paper gives no numbers to compare with; signs are its.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import pandas as pd

from levelt.studies.verdicts import NOTHING, Claim, Finding, Region, Tables, above, below
from levelt.vocabulary import ALL, latest_stage

MARGIN = 0.1
"""Logits: an answer that falls by less than this from its peak is not suppressed."""

GIVEN_STEPS = (2, 3)
"""Steps at which there is a given answer."""

Row = dict[str, object]


def weakest(rows: pd.DataFrame, sign: int, of: str) -> Finding:
    """All rows together: the estimate and the bounds that lie furthest to the wrong side of zero.

    Args:
        rows: of recall.csv.
        sign: 1 where the claim is about positive numbers, -1 about negative ones.
        of: what ``n`` counts; n is that of the smallest row.
    """
    if rows.empty or rows[["estimate", "ci_low", "ci_high"]].isna().any(axis=None):
        return NOTHING
    worst = (sign * rows[["estimate", "ci_low", "ci_high"]]).min() * sign
    return Finding(worst["estimate"], worst["ci_low"], worst["ci_high"], int(rows["n"].min()), of)


def _chosen(table: pd.DataFrame, wanted: Row) -> pd.DataFrame:
    for name, value in wanted.items():
        table = table[table[name].isin(value if isinstance(value, tuple) else (value,))]
    return table


def _mean(sign: int, steps: Sequence[int], count: int, **wanted: object) -> Callable[[Tables], Finding]:
    """Means over models at some steps; there must be so many rows, or the study cannot test it."""

    def evidence(tables: Tables) -> Finding:
        table = tables["recall"]
        pooled = {"model": ALL, "relation": ALL, "template": ALL, "stage": latest_stage(table["stage"])}
        rows = _chosen(table, {**pooled, "step": tuple(steps), **wanted})
        return weakest(rows, sign, "subjects") if len(rows) == count else NOTHING

    return evidence


def _everywhere(sign: int, steps: Sequence[int], **wanted: object) -> Callable[[Tables], Finding]:
    """Each model of the latest stage at each step, in each relation and in each template; several rows at least."""

    def evidence(tables: Tables) -> Finding:
        table = tables["recall"]
        rows = _chosen(table, {"stage": latest_stage(table["stage"]), "step": tuple(steps), **wanted})
        rows = rows[rows["model"] != ALL]
        single = (rows["relation"] != ALL) | (rows["template"] != ALL)
        cells = rows[single] if single.any() else rows
        return weakest(cells, sign, "subjects") if len(cells) > 1 else NOTHING

    return evidence


def _claim(
    name: str, short: str, statement: str, test: Region, source: str, evidence: Callable[[Tables], Finding]
) -> Claim:
    return Claim(f"recall.{name}", short, statement, test, "logits", None, source, "recall", evidence)


def _claims() -> Iterable[Claim]:
    raised = {"statistic": "promotion_peak", "group": ALL}
    fallen = {"statistic": "suppression_depth", "group": ALL, "token": "used"}
    own = {"group": "used", "token": "own"}
    yield _claim(
        "m1.given",
        "peak of given answers",
        "answers already given are raised once more",
        above(0),
        "M1",
        _mean(1, GIVEN_STEPS, 2, token="used", **raised),
    )
    yield _claim(
        "m1.future",
        "peak of answers still to come",
        "answers still to come after the next one are raised, too",
        above(0),
        "M1",
        _mean(1, (1, 2), 2, token="future", **raised),
    )
    yield _claim(
        "m1.suppressed",
        "fall of given answers from their peak",
        f"later layers lower the answers already given (by at least {MARGIN:g} logits)",
        above(MARGIN),
        "M1",
        _mean(1, GIVEN_STEPS, 2, **fallen),
    )
    yield _claim(
        "m2.subject",
        "subject's token lens on answers, step 1",
        "attention to the subject brings its answers to the last token",
        above(0),
        "M2",
        _mean(1, (1,), 1, statistic="lens", group="subject", token="any"),
    )
    yield _claim(
        "m2.mlp",
        "what MLPs add to answers",
        "MLPs at the last token raise all answers, given, next and future",
        above(0),
        "M2",
        _mean(1, (1, 2, 3), 7, statistic="mlp_sum", token=("used", "current", "future")),
    )
    yield _claim(
        "m2.mlp_subject",
        "MLP effect of attention to the subject, on answers",
        "attention to the subject makes MLPs raise its answers",
        above(0),
        "M2",
        _mean(1, (1, 2, 3), 3, statistic="knockout", group="subject", token="any"),
    )
    yield _claim(
        "m2.mlp_others",
        "MLP effect of attention to given answers, on others",
        "attention to the answers already given makes MLPs raise the other ones",
        above(0),
        "M2",
        _mean(1, GIVEN_STEPS, 2, statistic="knockout", group="used", token="others"),
    )
    yield _claim(
        "m3.attention",
        "given answers' token lens on themselves",
        "attention to the answers already given writes against them",
        below(0),
        "M3",
        _mean(-1, GIVEN_STEPS, 2, statistic="lens", **own),
    )
    yield _claim(
        "m3.mlp",
        "MLP effect of attention to given answers, on themselves",
        "MLPs amplify that suppression",
        below(0),
        "M3",
        _mean(-1, GIVEN_STEPS, 2, statistic="knockout", **own),
    )
    yield _claim(
        "m3.next",
        "what late MLPs add to the next answer",
        "the MLPs of the upper half promote the next answer",
        above(0),
        "M3",
        _mean(1, GIVEN_STEPS, 2, statistic="mlp_last_half", token="current"),
    )
    yield _claim(
        "m4.given",
        "peak of given answers, weakest cell",
        "given answers are raised at both steps, in each model, relation and template",
        above(0),
        "M4",
        _everywhere(1, GIVEN_STEPS, token="used", **raised),
    )
    yield _claim(
        "m4.suppressed",
        "fall of given answers, weakest cell",
        "and lowered at both steps, in each of them",
        above(MARGIN),
        "M4",
        _everywhere(1, GIVEN_STEPS, **fallen),
    )
    yield _claim(
        "m4.subject",
        "subject's token lens, weakest cell",
        "attention to the subject brings its answers at each step, in each model, relation and template",
        above(0),
        "M4",
        _everywhere(1, (1, 2, 3), statistic="lens", group="subject", token="any"),
    )
    yield _claim(
        "m4.attention",
        "given answers' token lens, weakest cell",
        "attention to given answers writes against them at both steps, in each model, relation and template",
        below(0),
        "M4",
        _everywhere(-1, GIVEN_STEPS, statistic="lens", **own),
    )


CLAIMS: tuple[Claim, ...] = tuple(_claims())
