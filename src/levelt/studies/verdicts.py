"""Verdicts: a published claim as a declared test on an estimate with its interval.

Three verdicts, and no fourth: *supported* (the whole interval lies where the claim says), *contradicted* (the whole
interval lies outside), *undecided* (the interval crosses the border, or there is nothing to test it on). A claim that
two things are equal is tested against a margin stated beside it, never by a large p-value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import numpy as np
import pandas as pd

Verdict = Literal["supported", "contradicted", "undecided"]
Paper = Literal["asymmetry", "vectors", "recall"]
Unit = Literal["pp", "tau", "percent", "logits", "layers", "log10"]


@dataclass(frozen=True)
class Finding:
    """An estimate with its interval, in the unit of its claim. ``n`` counts what was averaged, ``of`` says what."""

    estimate: float
    ci_low: float
    ci_high: float
    n: int
    of: str

    @property
    def defined(self) -> bool:
        """Whether there is an estimate with an interval at all."""
        return all(map(math.isfinite, (self.estimate, self.ci_low, self.ci_high)))


NOTHING = Finding(math.nan, math.nan, math.nan, 0, "")
"""No evidence: the study lacks what the claim is about."""


@dataclass(frozen=True)
class Region:
    """Where the interval must lie: between ``low`` and ``high`` (either may be infinite).

    A bound of plus or minus a margin makes an equivalence test; one bound at zero makes a directional one.
    """

    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if not self.low < self.high or (math.isinf(self.low) and math.isinf(self.high)):
            raise ValueError(f"cannot be tested: {self.low} to {self.high}")

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"above {self.low:g}"
        if math.isinf(self.low):
            return f"below {self.high:g}"
        return f"between {self.low:g} and {self.high:g}"

    def verdict(self, evidence: Finding) -> Verdict:
        """Supported, contradicted or undecided.

        An interval that ends exactly on the border (all draws equal) belongs to neither side: undecided.
        """
        if not evidence.defined:
            return "undecided"
        if self.low < evidence.ci_low and evidence.ci_high < self.high:
            return "supported"
        if evidence.ci_high < self.low or self.high < evidence.ci_low:
            return "contradicted"
        return "undecided"


def above(bound: float) -> Region:
    """The whole interval above a bound."""
    return Region(low=bound)


def below(bound: float) -> Region:
    """The whole interval below a bound."""
    return Region(high=bound)


def within(margin: float) -> Region:
    """Equivalence: the whole interval closer to zero than the margin."""
    return Region(-margin, margin)


Tables = Mapping[str, pd.DataFrame]


def find(table: pd.DataFrame, column: str, scale: float, of: str, **wanted: object) -> Finding:
    """The one row of a table with these values, as a finding; `NOTHING` if there is none.

    Raises:
        ValueError: several rows match, so that the claim would rest on an arbitrary one.
    """
    chosen = np.ones(len(table), dtype=bool)
    for name, value in wanted.items():
        chosen &= (table[name] == value).to_numpy()
    rows = table[chosen]
    if rows.empty:
        return NOTHING
    if len(rows) > 1:
        raise ValueError(f"{len(rows)} rows with {wanted}, where a claim needs one")
    row = rows.iloc[0]
    low, high = sorted(scale * row[["ci_low", "ci_high"]].to_numpy(dtype=float))
    return Finding(float(scale * row[column]), float(low), float(high), int(row["n"]), of)


@dataclass(frozen=True)
class Claim:
    """A published claim, how it is tested here, and what it is tested on.

    Attributes:
        name: key of the claim, ``asymmetry.block.behaviour``: the paper comes first.
        short: the quantity in a few words, for figures and tables.
        statement: the claim as one sentence.
        test: where the interval must lie for the claim to hold.
        unit: unit of the estimate: pp (percentage points), tau, percent, logits, layers, log10 (powers of ten).
        published: the published value in the same unit, if there is one number.
        source: the published place (rows of methods/1 section 9; C1 to C5 of methods/2; M1 to M4 of methods/3).
        table: the table of the study the evidence comes from.
        evidence: reads the estimate from the study's tables; `NOTHING` where the study lacks it.
    """

    name: str
    short: str
    statement: str
    test: Region
    unit: Unit
    published: float | None
    source: str
    table: str
    evidence: Callable[[Tables], Finding]

    @property
    def paper(self) -> Paper:
        """The study whose paper makes the claim."""
        return cast(Paper, self.name.partition(".")[0])

    def judge(self, tables: Tables) -> Judged:
        """The claim on these tables."""
        found = self.evidence(tables)
        return Judged(
            id=self.name,
            paper=self.paper,
            short=self.short,
            statement=self.statement,
            test=str(self.test),
            region_low=_plain(self.test.low),
            region_high=_plain(self.test.high),
            unit=self.unit,
            published=self.published,
            source=self.source,
            table=self.table,
            estimate=_plain(found.estimate),
            ci_low=_plain(found.ci_low),
            ci_high=_plain(found.ci_high),
            n=found.n,
            of=found.of,
            verdict=self.test.verdict(found),
        )


@dataclass(frozen=True)
class Judged:
    """A claim with its evidence and verdict, as claims.json carries it. Undefined numbers are None."""

    id: str
    paper: Paper
    short: str
    statement: str
    test: str
    region_low: float | None
    region_high: float | None
    unit: Unit
    published: float | None
    source: str
    table: str
    estimate: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    of: str
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def _plain(value: float) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None
