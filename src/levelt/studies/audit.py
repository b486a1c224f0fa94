"""The methods audit: the same comparison as the released code of paper 1 makes it and corrected, defect by defect.

A row says what one defect does to one number that a conclusion rests on: its value with everything right, its value
with this defect alone, and the paired difference with an interval over pairs (methods/1 sections 3, 4 and 6; the
defects themselves were measured in methods/1, A1 to A7).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from levelt.engine.plans import Plan, Released, condition
from levelt.statistics.resampling import group_sums, percentile_interval

Floats = npt.NDArray[np.float64]
Counts = Mapping[str, Floats]


@dataclass(frozen=True)
class Defect:
    """A defect of the release: what it does, and where it is (files of the released code at d55586a)."""

    name: str
    what: str
    where: str


DEFECTS = {
    defect.name: defect
    for defect in [
        Defect("causal_mask", "an intervention reads the prompt in both directions", "encode.py 589-594"),
        Defect("first_layer", "layer 0 still reads what is blocked", "encode_tasks.bash, layer_from 0"),
        Defect("question_only", "the system message and the markup after it stay visible", "encode.py, question_right"),
        Defect("strict_columns", "one token too few is hidden from the deciding position", "encode.py, input_output"),
        Defect("masks_together", "all four at once, as the job scripts run them", "encode_tasks.bash"),
        Defect("shifted_span", "the sample loses its first character's token and gains one behind", "encode.py, spans"),
        Defect("answer_in_output", "the output role starts behind the deciding position", "encode.py, o_proj hook"),
        Defect("trainer", "softmax twice, unscaled inputs, Adam with early stopping", "probing_model.py"),
        Defect("one_class_f1", "F1 of the second class is reported as macro F1", "probing_model.py"),
        Defect("leaking_folds", "contiguous quarters of the file split minimal pairs", "probing_worker.py"),
        Defect("probing_together", "shifted span, released trainer and contiguous quarters at once", "as run"),
    ]
}


@dataclass(frozen=True)
class Masking:
    """An intervention run right (``corrected``) and with one switch of the release on."""

    defect: str
    block: str
    switches: Released

    @property
    def corrected(self) -> Plan:
        """The intervention as it should be."""
        return condition(self.block)

    @property
    def released(self) -> Plan:
        """The intervention with the defect."""
        return condition(self.block, self.switches)


_ALL = Released(first_layer_open=True, question_only=True, strict_columns=True, non_causal=True)

MASKING = [
    Masking("causal_mask", "block_nothing", Released(non_causal=True)),
    Masking("causal_mask", "block_instruction_to_all", Released(non_causal=True)),
    Masking("first_layer", "block_instruction_to_all", Released(first_layer_open=True)),
    Masking("question_only", "block_instruction_to_all", Released(question_only=True)),
    Masking("strict_columns", "block_sample_to_output", Released(strict_columns=True)),
    Masking("masks_together", "block_instruction_to_all", _ALL),
    Masking("masks_together", "block_instruction_to_sample", _ALL),
    Masking("masks_together", "block_sample_to_output", _ALL),
]
"""Which defect of the masks is tried on which intervention."""


@dataclass(frozen=True)
class Measured:
    """What one reading of the prompts says, a value per prompt.

    Attributes:
        outcomes: quantity name -> [n]: exact match; and, by "<target> at <role>", the share of layers 1..L at which
            the out-of-fold probe is right.
    """

    outcomes: Mapping[str, Floats]


def masking_rows(
    plain: Measured,
    corrected: Mapping[str, Measured],
    released: Mapping[Masking, Measured],
    codes: npt.ArrayLike,
    draws: Floats,
    level: float,
) -> list[dict[str, object]]:
    """What each defect of the masks does to each change that an intervention makes.

    Args:
        plain: the prompts without an intervention.
        corrected: by intervention.
        released: by defect and intervention.
        codes, draws, level: as in `compare_means`.
    """
    rows = []
    for masking, found in released.items():
        for quantity, values in found.outcomes.items():
            before = plain.outcomes[quantity]
            changes = corrected[masking.block].outcomes[quantity] - before, values - before
            name = f"change of {quantity}"
            rows.append(paired_row(masking.defect, name, *changes, codes, draws, level, masking.block))
    return rows


def paired_row(
    defect: str,
    quantity: str,
    corrected: npt.ArrayLike,
    released: npt.ArrayLike,
    codes: npt.ArrayLike,
    draws: Floats,
    level: float,
    block: str = "",
) -> dict[str, object]:
    """A row for two measurements of the same prompts; prompts that either lacks (nan) are left out of both."""
    first, second = np.asarray(corrected, dtype=np.float64), np.asarray(released, dtype=np.float64)
    both = np.isfinite(first) & np.isfinite(second)
    if not both.any():
        raise ValueError(f"{defect}, {quantity}: no prompt has both measurements")
    compared = compare_means(first[both], second[both], np.asarray(codes)[both], draws, level)
    return _row(defect, quantity, block, int(both.sum()), compared)


def _row(defect: str, quantity: str, block: str, n: int, compared: Mapping[str, float]) -> dict[str, object]:
    if defect not in DEFECTS:
        raise ValueError(f"no defect {defect!r}; there are {', '.join(DEFECTS)}")
    return {"defect": defect, "quantity": quantity, "block": block, "n": n, **compared}


def f1_row(
    quantity: str, said: npt.ArrayLike, truth: npt.ArrayLike, codes: npt.ArrayLike, draws: Floats, level: float
) -> dict[str, object]:
    """A row for macro F1 against the F1 of the second class (no), of one set of predictions [n]."""
    counts = {name: np.stack([values] * 2, axis=1) for name, values in confusion(said, truth).items()}
    compared = compare_statistics(counts, macro_and_one_class_f1, codes, draws, level)
    return _row("one_class_f1", quantity, "", len(np.asarray(said)), compared)


def compare_means(
    corrected: npt.ArrayLike, released: npt.ArrayLike, codes: npt.ArrayLike, draws: Floats, level: float
) -> dict[str, float]:
    """Two measurements of the same rows [n]: both means, and the paired difference with its interval over groups."""
    first, second = np.asarray(corrected, dtype=np.float64), np.asarray(released, dtype=np.float64)
    both = np.stack([first, second], axis=1)
    counts = {"sum": both, "rows": np.ones_like(both)}
    return compare_statistics(counts, lambda c: c["sum"] / c["rows"], codes, draws, level)


def compare_statistics(
    counts: Counts,
    statistic: Callable[[Counts], Floats],
    codes: npt.ArrayLike,
    draws: Floats,
    level: float,
) -> dict[str, float]:
    """The same for any statistic of sums over rows, such as an F1.

    Args:
        counts: name -> [n, 2] what each row adds, corrected and released.
        statistic: sums [..., 2] by name -> values [..., 2].
        codes, draws, level: groups of the rows, bootstrap draws over groups, level of the interval.
    """
    sums = {name: group_sums(values, codes, draws.shape[1]) for name, values in counts.items()}
    estimate = statistic({name: values.sum(axis=0) for name, values in sums.items()})
    drawn = statistic({name: draws @ values for name, values in sums.items()})
    low, high = percentile_interval(drawn[:, 1] - drawn[:, 0], level)
    return {
        "corrected": float(estimate[0]),
        "released": float(estimate[1]),
        "difference": float(estimate[1] - estimate[0]),
        "ci_low": float(low),
        "ci_high": float(high),
    }


def confusion(said: npt.ArrayLike, truth: npt.ArrayLike) -> Counts:
    """What a row adds to the four cells of a confusion table: each [n], class 1 is positive."""
    positive, true = np.asarray(said, dtype=bool), np.asarray(truth, dtype=bool)
    cells = {"tp": positive & true, "fp": positive & ~true, "fn": ~positive & true, "tn": ~positive & ~true}
    return {name: cell.astype(np.float64) for name, cell in cells.items()}


def f1(counts: Counts, positive: bool = True) -> Floats:
    """F1 of one class from sums of a confusion table."""
    hit = counts["tp"] if positive else counts["tn"]
    missed = counts["fp"] + counts["fn"]
    with np.errstate(invalid="ignore", divide="ignore"):
        value: Floats = 2 * hit / (2 * hit + missed)
    return value


def macro_and_one_class_f1(counts: Counts) -> Floats:
    """[..., 2]: macro F1, and F1 of class 1 alone, which the release reports under the same name."""
    one, other = f1(counts), f1(counts, positive=False)
    value: Floats = np.stack([(one[..., 0] + other[..., 0]) / 2, one[..., 1]], axis=-1)
    return value


def audit_table(rows: Iterable[pd.DataFrame], control_tasks: Iterable[str] = ()) -> pd.DataFrame:
    """All rows of the audit, and their mean over tasks (``task`` = all) by model, defect and quantity.

    Control tasks have rows of their own, and are kept out of the means.

    Tasks have different samples, so the squared half widths of their intervals add up.
    """
    table = pd.concat(list(rows), ignore_index=True)
    keys = ["model", "defect", "quantity", "block"]
    parts = table.assign(squared=((table["ci_high"] - table["ci_low"]) / 2) ** 2)
    parts = parts[~parts["task"].isin(list(control_tasks))]
    means = (
        parts.groupby(keys, sort=False, dropna=False)
        .agg(
            n=("n", "sum"),
            tasks=("task", "nunique"),
            corrected=("corrected", "mean"),
            released=("released", "mean"),
            difference=("difference", "mean"),
            squared=("squared", lambda part: part.sum(skipna=False)),
        )
        .reset_index()
    )
    half = np.sqrt(means.pop("squared")) / means["tasks"]
    means = means.assign(task="all", ci_low=means["difference"] - half, ci_high=means["difference"] + half)
    return pd.concat([table, means.drop(columns="tasks")], ignore_index=True)[list(table.columns)]
