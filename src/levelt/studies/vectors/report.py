"""The numbers and tables of the report's section on instruction vectors, by key, as LaTeX."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from levelt.studies.latex import decimal, escape, interval, tabular
from levelt.studies.vectors.columns import MEAN_OF_LAYERS, NONE
from levelt.vocabulary import ALL, latest_stage

TABLES = ("contrastive", "interaction", "separability", "path_sums", "circuit_keys", "vectors_stages")
"""The tables that are quoted."""

_QUANTITIES = {
    "followed": ("first token right", 2),
    "full": ("full prompt over receiver (logits)", 2),
    "effect_last": ("last token, effect (logits)", 3),
    "specific_last": ("last token, specific (logits)", 3),
    "specific_other": ("best other token, specific (logits)", 3),
    "last_minus_other": ("last minus other token (logits)", 3),
    "early_minus_late": ("early minus late layers (logits)", 3),
    "interaction_last": ("interaction, last token (logits)", 3),
    "interaction_other": ("interaction, strongest token (logits)", 3),
    "paths_last_minus_other": ("share of high-ranking paths, last minus other", 3),
    "error_exact": ("error of path sums, exact ($\\log_{10}$)", 1),
    "error_paper": ("error of path sums, as released ($\\log_{10}$)", 1),
    "separable.logistic": ("separability, logistic, over shuffled", 2),
    "separable.lda": ("separability, LDA, over shuffled", 2),
}
"""Quantities of the stages' table in its order: name for readers and digits; head maps follow."""


def vector_numbers(tables: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """Key -> LaTeX. All keys begin with ``vectors.`` or ``table.vectors.``."""
    stages = tables["vectors_stages"]
    stage = latest_stage(stages["stage"])
    found = dict(_means(stages[(stages["stage"] == stage) & (stages["earlier_stage"] == NONE)]))
    found |= dict(_behaviour(tables["contrastive"], stage))
    found |= dict(_interactions(tables["interaction"]))
    found |= dict(_separability(tables["separability"], stage))
    found |= dict(_paths(tables["path_sums"], tables["circuit_keys"], stage))
    return found | {
        "vectors.stage": escape(stage),
        "vectors.models": str(tables["contrastive"]["model"].nunique()),
        "table.vectors.contrastive": _contrastive_table(tables["contrastive"]),
        "table.vectors.interaction": _interaction_table(tables["interaction"]),
        "table.vectors.stages": _stages_table(stages),
    }


Numbers = Iterator[tuple[str, str]]


def _means(rows: pd.DataFrame) -> Numbers:
    """``vectors.<quantity>``: estimate and interval at the latest stage; ``vectors.n.<quantity>``: queries."""
    for row in rows[rows["task"] == ALL].to_dict("records"):
        digits = _QUANTITIES.get(row["quantity"], ("", 3))[1]
        yield f"vectors.{row['quantity']}", _shown(row, "estimate", digits)
        yield f"vectors.n.{row['quantity']}", str(row["n"])


def _behaviour(contrastive: pd.DataFrame, stage: str) -> Numbers:
    """Share of right first tokens by stage, in the wording trained and in another one."""
    for (name, wording), part in contrastive.groupby(["stage", "wording"], sort=False):
        key = "latest" if name == stage else str(name)
        yield f"vectors.right.{key}.{'trained' if wording == 0 else 'rephrased'}", decimal(part["correct"].mean())


def _interactions(interaction: pd.DataFrame) -> Numbers:
    """How many pairs of layers are significant, corrected, and by the released test."""
    pairs = interaction[(interaction["third"] == 0) & (interaction["token"] == 0)]
    yield "vectors.pairs", str(len(pairs))
    yield "vectors.pairs.above", str(int((pairs["p_holm"] < 0.05).sum()))
    yield "vectors.pairs.below", str(int((pairs["ci_high"] < 0).sum()))
    yield "vectors.pairs.released", str(int((pairs["released_p"] < 0.05).sum()))


def _separability(separability: pd.DataFrame, stage: str) -> Numbers:
    """Accuracies of the latest stage, means over models: held out and in sample, true and shuffled labels."""
    rows = separability[separability["stage"] == stage]
    yield "vectors.vectors", str(int(rows["n"].max()))
    yield "vectors.classes", str(int(rows["classes"].max()))
    for (method, labels, split), part in rows.groupby(["method", "labels", "split"], sort=False):
        layers = part["layer"] == MEAN_OF_LAYERS if labels == "true" else part["layer"] > 0
        yield f"vectors.accuracy.{method}.{labels}.{split}", decimal(part[layers]["accuracy"].mean())
    first = rows[(rows["layer"] == 0) & (rows["labels"] == "true") & (rows["split"] == "held_out")]
    yield "vectors.accuracy.embedding", decimal(first["accuracy"].max())


def _paths(sums: pd.DataFrame, keys: pd.DataFrame, stage: str) -> Numbers:
    for mode, part in sums.groupby("mode", sort=False):
        error = float(part["error"].max())
        shown = f"$10^{{{int(np.ceil(np.log10(error)))}}}$" if 0 < error < 0.01 else decimal(error, 1)
        yield f"vectors.error.{mode}", shown
    agreeing = keys[keys["stage"] == stage]
    if len(agreeing):
        yield "vectors.keys.spearman", decimal(agreeing["spearman"].mean())
        yield "vectors.keys.jaccard", decimal(agreeing["jaccard"].mean())


def _shown(row: Mapping[Any, Any], estimate: str, digits: int = 2) -> str:
    """An estimate of a row with its interval."""
    value, low, high = (float(row[name]) for name in (estimate, "ci_low", "ci_high"))
    return f"{decimal(value, digits)} {interval(low, high, digits)}"


def _code(name: object) -> str:
    return rf"\texttt{{{escape(str(name))}}}"


def _plain(name: object) -> str:
    return escape(str(name).replace("_", " "))


def _contrastive_table(contrastive: pd.DataFrame) -> str:
    rows = []
    for (model, task, instruction), part in contrastive.groupby(["model", "task", "instruction_id"], sort=False):
        row = [_code(model), _plain(task), _plain(instruction)]
        for wording in (0, 1):
            one = part[part["wording"] == wording].to_dict("records")
            row.append(_shown(one[0], "correct") if one else "--")
        rows.append([*row, decimal(part[part["wording"] == 0]["other"].mean())])
    header = ["checkpoint", "task", "instruction", "right, as trained", "right, rephrased", "other's answer"]
    return tabular(header, rows, "lllllr")


def _interaction_table(interaction: pd.DataFrame) -> str:
    """For every instruction, last token: the pair of layers with the largest effect, right and as released."""
    pairs = interaction[(interaction["third"] == 0) & (interaction["token"] == 0)]
    pairs = pairs[pairs["receiver"] == pairs["receiver"].iloc[0]] if len(pairs) else pairs
    rows = []
    for (model, task, instruction), part in pairs.groupby(["model", "task", "instruction_id"], sort=False):
        r = part.sort_values("effect", ascending=False).to_dict("records")[0]
        row = [_code(model), _plain(task), _plain(instruction), f"{r['first']}, {r['second']}"]
        row += [decimal(r["effect"], 3), decimal(r["sum_of_singles"], 3)]
        row.append(_shown(r, "interaction", 3))
        rows.append([*row, decimal(r["p_holm"], 4), decimal(r["released_share"]), decimal(r["released_p"], 4)])
    header = ["checkpoint", "task", "instruction", "layers", "effect", "sum of singles", "interaction", "$p$ (Holm)"]
    return tabular([*header, "$b$", "$p$ as released"], rows, "lllrrrlrrr") if rows else ""


def _stages_table(stages: pd.DataFrame) -> str:
    """A row per quantity, a column per stage and per change since base."""
    table = stages[stages["task"] == ALL]
    columns = [(s, NONE) for s in dict.fromkeys(table["stage"])]
    columns += [(s, "base") for s in dict.fromkeys(table[table["earlier_stage"] == "base"]["stage"])]
    names = [*_QUANTITIES, *[q for q in dict.fromkeys(table["quantity"]) if q not in _QUANTITIES]]
    rows = []
    for quantity in names:
        of = {(r["stage"], r["earlier_stage"]): r for r in table[table["quantity"] == quantity].to_dict("records")}
        if not of:
            continue
        name, digits = _QUANTITIES.get(quantity, (_plain(quantity.replace(".", ", ")), 3))
        rows.append([name, *(_shown(of[column], "estimate", digits) if column in of else "--" for column in columns)])
    header = ["quantity", *[_plain(s) if e == NONE else f"{_plain(s)} minus {_plain(e)}" for s, e in columns]]
    return tabular(header, rows, "l" * len(header))
