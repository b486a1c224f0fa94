"""Numbers and tables of the report's section on recall, as LaTeX by key."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from levelt.studies.latex import decimal, escape, interval, tabular
from levelt.vocabulary import ALL, latest_stage

_TOKENS = {"used": "given", "current": "next", "future": "later"}
_CURVE = {
    "promotion_peak": "peak",
    "suppression_depth": "fall",
    "final": "end",
    "attention_sum": "attention",
    "mlp_sum": "MLPs",
}
_SOURCES = {
    ("subject", "any"): "subject on all answers",
    ("used", "own"): "given answer on itself",
    ("used", "others"): "given answer on the others",
    ("decision", "any"): "last token on all answers",
    ("rest", "any"): "all other tokens on all answers",
}
_READ = {"lens": "token lens", "knockout": "MLPs, knockout", "knockout_renormalised": "the same, renormalised"}


def recall_numbers(tables: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """What the section quotes: `recall.*` and `table.recall.*`.

    Args:
        tables: recall, recall_lists and recall_audit of the study.
    """
    table, lists, audit = tables["recall"], tables["recall_lists"], tables["recall_audit"]
    stage = latest_stage(table["stage"])
    pooled = table[(table["model"] == ALL) & (table["stage"] == stage)]
    pooled = pooled[(pooled["relation"] == ALL) & (pooled["template"] == ALL)]
    counts = lists.groupby("outcome", sort=False)["lists"].sum()
    left_out = counts.drop(["kept", "predicted", "collision"], errors="ignore")
    projection = audit[audit["defect"] == "transposed projection"].groupby("quantity")["as_released"]
    models = list(dict.fromkeys(lists["model"]))
    values = {
        "recall.models": ", ".join(rf"\texttt{{{escape(name)}}}" for name in models),
        "recall.stage": escape(stage),
        "recall.latest": ", ".join(
            rf"\texttt{{{escape(name)}}}"
            for name in dict.fromkeys(table["model"][(table["stage"] == stage) & (table["model"] != ALL)])
        ),
        "recall.subjects": str(int(pooled["n"].max())),
        "recall.kept": str(int(counts["kept"])),
        "recall.asked": str(int(counts["kept"] + left_out.sum())),
        "recall.left_out": ", ".join(f"{count} {escape(str(reason))}" for reason, count in left_out.items() if count),
        "recall.predicted": decimal(100 * counts["predicted"] / counts["kept"], 0),
        "table.recall.curves": _curves_table(pooled),
        "table.recall.sources": _sources_table(pooled),
        "table.recall.audit": _audit_table(audit),
    }
    if len(projection):
        values["recall.correlation"] = decimal(float(projection.get_group("correlation").mean()))
    return values


def _shown(rows: pd.DataFrame, **wanted: object) -> str:
    """The one row with these values; a dash if there is none."""
    for name, value in wanted.items():
        rows = rows[rows[name] == value]
    if rows.empty:
        return "--"
    row = rows.iloc[0]
    return f"{decimal(row['estimate'])} {interval(row['ci_low'], row['ci_high'])}".strip()


def _curves_table(pooled: pd.DataFrame) -> str:
    """A row per step and kind of answer."""
    rows: list[list[str]] = []
    for step, of_step in pooled[pooled["group"] == ALL].groupby("step"):
        for token in (name for name in _TOKENS if name in set(of_step["token"])):
            shown = [_shown(of_step, statistic=statistic, token=token) for statistic in _CURVE]
            rows.append([str(step), _TOKENS[token], *shown])
    return tabular(["step", "answers", *_CURVE.values()], rows, "ll" + "l" * len(_CURVE))


def _sources_table(pooled: pd.DataFrame) -> str:
    """What attention to each group does to answers, directly and through the MLPs."""
    rows: list[list[str]] = []
    for step, of_step in pooled.groupby("step"):
        for (group, token), name in _SOURCES.items():
            shown = [_shown(of_step, statistic=statistic, group=group, token=token) for statistic in _READ]
            if set(shown) != {"--"}:
                rows.append([str(step), name, *shown])
    return tabular(["step", "attention to", *_READ.values()], rows, "lllll")


def _audit_table(audit: pd.DataFrame) -> str:
    """The transposed projection by model and step, and the doubled template on the mean of all sums."""
    rows: list[list[str]] = []
    transposed = audit[audit["defect"] == "transposed projection"]
    for model, of_model in transposed.groupby("model", sort=False):
        for step, of_step in of_model.groupby("step"):
            found = of_step.set_index("quantity")
            rows.append([rf"\texttt{{{escape(str(model))}}}", str(step), *_audited(found)])
    header = ["model", "step", "right: error of the sum", "transposed: error", "correlation", "of promotion rates"]
    return tabular(header, rows, "llrrrr") if rows else ""


def _audited(found: pd.DataFrame) -> Sequence[str]:
    right, wrong = float(found["right"]["sum_error"]), float(found["as_released"]["sum_error"])
    power = math.ceil(math.log10(right)) if right > 0 else 0
    shown = [f"$<10^{{{power}}}$" if right > 0 else "0", decimal(wrong)]
    return [*shown, *(decimal(float(found["as_released"][name])) for name in ("correlation", "rate_correlation"))]
