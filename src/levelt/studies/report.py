"""Every number and table of the report, by key, as LaTeX: prose cannot drift from data."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from levelt.studies.asymmetry import information
from levelt.studies.information import without_interventions
from levelt.studies.published import VALUES

_ESCAPES = {
    "\\": r"\textbackslash{}",
    **{character: "\\" + character for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\u2018": "`",
    "\u2019": "'",
    "\u201c": "``",
    "\u201d": "''",
}


def escape(text: str) -> str:
    """Plain text as LaTeX text; characters pdfLaTeX cannot set become [U+XXXX]."""
    out = []
    for character in text:
        if character in _ESCAPES:
            out.append(_ESCAPES[character])
        elif ord(character) < 0x250:
            out.append(character)
        else:
            out.append(f"[U+{ord(character):04X}]")
    return "".join(out)


def decimal(value: float, digits: int = 2) -> str:
    """A number with a fixed number of decimals and a real minus sign; an en dash where it is undefined."""
    if value is None or not math.isfinite(value):
        return "--"
    text = f"{value:.{digits}f}"
    text = text.lstrip("-") if float(text) == 0 else text
    return f"${text}$" if text.startswith("-") else text


def interval(low: float, high: float, digits: int = 2) -> str:
    """An interval in brackets, or nothing where it is undefined."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"[{decimal(low, digits)}, {decimal(high, digits)}]"


def tabular(header: Sequence[str], rows: Sequence[Sequence[str]], alignment: str) -> str:
    """A booktabs table body; cells are LaTeX already. An empty row becomes a thin rule."""
    lines = [rf"\begin{{tabular}}{{@{{}}{alignment}@{{}}}}", r"\toprule", " & ".join(header) + r" \\", r"\midrule"]
    lines += [" & ".join(row) + r" \\" if row else r"\addlinespace" for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def numbers(
    *,
    settings: Mapping[str, Any],
    behaviour: pd.DataFrame,
    agreement: pd.DataFrame,
    probes: pd.DataFrame,
    correlations: pd.DataFrame,
    blocking: pd.DataFrame,
    manifests: Sequence[Mapping[str, Any]],
    samples: Mapping[str, Mapping[str, Any]],
    example: pd.DataFrame,
) -> dict[str, str]:
    """Key -> LaTeX for everything the report quotes.

    Args:
        settings: study, title, seed, prompts, probes, statistics, tasks (typed sections).
        behaviour, agreement, probes, correlations, blocking: the study's tables.
        manifests: of every model.
        samples: task -> samples report.
        example: the prompts of one model and task, of which the first sample is shown.
    """
    fitted = probes
    # single models and tasks: the means shown are made of them here
    agreement, blocking = (
        table[(table["model"] != "all") & (table["task"] != "all")] for table in (agreement, blocking)
    )
    blocking = blocking[blocking["quantity"].isin(["exact_match", "information"])]
    of_tasks = (correlations["level"] == "cells") | (correlations["task"] != "all")
    correlations = correlations[(correlations["stage"] == "all") & of_tasks]
    behaviour, probes = without_interventions(behaviour), without_interventions(probes)
    summary = information(probes)
    values = {
        "study": escape(settings["study"]),
        "title": escape(settings["title"]),
        "seed": str(settings["seed"]),
        "draws": str(settings["statistics"].draws),
        "level": f"{100 * settings['statistics'].level:g}",
        "folds": str(settings["probes"].folds),
        "repeats": str(settings["probes"].repeats),
        "penalty": f"{settings['probes'].penalty:g}",
        "demonstrations": str(settings["prompts"].demonstrations),
        "polarity": settings["prompts"].polarity,
        "models": _counted(len(manifests), "checkpoint"),
        "tasks": _counted(len(samples), "task"),
        "probes.count": f"{_probe_count(fitted, settings['probes']):,}".replace(",", r"\,"),
        "probes.bound": _power(fitted["bound"].max()),
    }
    values["table.models"] = _models_table(manifests)
    values["table.tasks"] = _tasks_table(samples)
    values["table.behaviour"] = _behaviour_table(behaviour)
    values["table.polarity"] = _polarity_table(behaviour)
    values["table.information"] = _information_table(summary)
    values["table.correlations"] = _correlations_table(correlations)
    values["table.agreement"] = _agreement_table(agreement)
    values["table.blocking"] = _blocking_table(blocking)
    values["table.example"] = _example_table(example)
    values |= _stage_numbers(behaviour, manifests)
    values |= _spread_numbers(summary)
    values |= _layer_numbers(probes, manifests[-1]["id"])
    values |= _tau_numbers(correlations)
    values |= _blocking_numbers(blocking, manifests[-1]["id"])
    values |= {f"published.{key}": _published(key, value) for key, value in VALUES.items()}
    return values


def render(values: Mapping[str, str]) -> str:
    """The macros file: ``\\levelt{key}`` in the report expands to the value; an unknown key is an error there."""
    lines = ["% Generated by `levelt numbers`. Do not edit: the next run replaces it."]
    lines += [f"\\leveltset{{{key}}}{{{value}}}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _published(key: str, value: float) -> str:
    return decimal(value, {"spread": 1, "tau": 2, "agreement": 0, "change": 1}[key.split(".")[0]])


def _power(value: float) -> str:
    if value <= 0:
        return "0"
    return f"$10^{{{math.ceil(math.log10(value))}}}$"


def _probe_count(probes: pd.DataFrame, settings: Any) -> int:
    return len(probes) * int(settings.folds * settings.repeats)


def _models_table(manifests: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            rf"\texttt{{{escape(m['id'])}}}",
            escape(m["family"]),
            escape(m["stage"]),
            f"{m['parameters']:,}".replace(",", r"\,"),
            str(m["layers"]),
            str(m["hidden_size"]),
        ]
        for m in manifests
    ]
    return tabular(["checkpoint", "family", "stage", "parameters", "layers", "width"], rows, "lllrrr")


def _tasks_table(samples: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for task, report in samples.items():
        labels = " / ".join(f"{count}" for count in report["labels"].values())
        refused = report["rows_in"] - report["rows_used"]
        rows.append(
            [escape(task.replace("_", " ")), str(report["rows_used"]), str(report["pairs"]), labels, str(refused)]
        )
    return tabular(["task", "samples", "groups", "yes / no", "rows left out"], rows, "lrrrr")


def _behaviour_table(behaviour: pd.DataFrame) -> str:
    table = behaviour[behaviour["polarity"] == "all"]
    conditions = list(dict.fromkeys(table["condition"]))
    rows: list[list[str]] = []
    for model, of_model in table.groupby("model", sort=False):
        for task, cell in of_model.groupby("task", sort=False):
            row = [rf"\texttt{{{escape(str(model))}}}", escape(str(task).replace("_", " "))]
            by_condition = cell.set_index("condition")
            for condition in conditions:
                r = by_condition.loc[condition]
                row.append(f"{decimal(r['exact_match'])} {interval(r['exact_match_ci_low'], r['exact_match_ci_high'])}")
            row.append(decimal(cell["answered"].mean()))
            rows.append(row)
        rows.append([])
    header = ["model", "task", *[escape(c.replace("_", " ")) for c in conditions], "answered"]
    return tabular(header, rows[:-1], "ll" + "l" * len(conditions) + "r")


def _polarity_table(behaviour: pd.DataFrame) -> str:
    table = behaviour[(behaviour["polarity"] != "all") & (behaviour["condition"] != "demonstrations")]
    if table.empty:
        return ""
    rows = []
    for (model, condition), cell in table.groupby(["model", "condition"], sort=False):
        means = cell.groupby("polarity")["exact_match"].mean()
        rows.append(
            [rf"\texttt{{{escape(str(model))}}}", escape(str(condition).replace("_", " "))]
            + [decimal(means.get(p, math.nan)) for p in ("positive", "negated")]
        )
    return tabular(["model", "variation", "as asked", "negated"], rows, "llrr")


def _information_table(summary: pd.DataFrame) -> str:
    conditions = list(dict.fromkeys(summary["condition"]))
    means = summary.groupby(["model", "target", "role", "condition"], sort=False)["information"].mean()
    rows: list[list[str]] = []
    for (model, target, role), cell in means.groupby(["model", "target", "role"], sort=False):
        values = cell.droplevel(["model", "target", "role"])
        present = [values[c] for c in conditions if c in values]
        centre = sum(present) / len(present)
        spread = max(abs(v - centre) for v in present)
        row = [rf"\texttt{{{escape(str(model))}}}", escape(str(target)), escape(str(role))]
        row += [decimal(values.get(c, math.nan), 3) for c in conditions]
        rows.append([*row, decimal(100 * spread, 1)])
    header = ["model", "target", "role", *[escape(c.replace("_", " ")) for c in conditions], r"spread ($\pm$ pp)"]
    return tabular(header, rows, "lll" + "r" * (len(conditions) + 1))


def _spread_numbers(summary: pd.DataFrame) -> dict[str, str]:
    """Largest deviation of a variation from the mean over variations, averaged over models."""
    label = summary[summary["target"] == "label"]
    out = {}
    for role, of_role in label.groupby("role", sort=False):
        spreads = []
        for _, of_model in of_role.groupby("model", sort=False):
            means = of_model.groupby("condition")["information"].mean()
            spreads.append(float((means - means.mean()).abs().max()))
        out[f"spread.{role}"] = decimal(100 * sum(spreads) / len(spreads), 1)
        out[f"information.{role}"] = decimal(float(of_role["information"].mean()), 3)
    return out


def _layer_numbers(probes: pd.DataFrame, model: str) -> dict[str, str]:
    """First and last layer of the study's last model with the instruction first: ``<end>.<role>.<target>``."""
    cells = probes[(probes["model"] == model) & (probes["condition"] == "instruction_first")]
    out: dict[str, str] = {}
    for end, layer in (("first", 1), ("last", cells["layer"].max())):
        means = cells[cells["layer"] == layer].groupby(["role", "target"])["balanced_accuracy"].mean()
        for row in means.reset_index().itertuples():
            out[f"{end}.{row.role}.{row.target}"] = decimal(float(row.balanced_accuracy))  # type: ignore[arg-type]
    return out


def _tau_numbers(correlations: pd.DataFrame) -> dict[str, str]:
    """Mean over tasks of tau with behaviour over samples, by role; only tasks where it is defined."""
    rows = correlations[(correlations["level"] == "instances") & (correlations["second"] == "behaviour")]
    means = rows.groupby("first")["tau"].mean().dropna()
    return {f"tau.instances.{role}": decimal(float(value)) for role, value in means.items()}


def _correlations_table(correlations: pd.DataFrame) -> str:
    rows: list[list[str]] = []
    for (level, task), cell in correlations.groupby(["level", "task"], sort=False):
        row = [escape(str(task).replace("_", " ")) if level == "instances" else "all cells"]
        for _, r in cell.iterrows():
            row.append(f"{decimal(r['tau'])} {interval(r['ci_low'], r['ci_high'])}".strip())
        total, undefined = (cell["cells"] + cell["undefined"]).max(), cell["undefined"].max()
        rows.append([*row, str(int(total)), str(int(undefined))])
    pairs = correlations[["first", "second"]].drop_duplicates()
    header = [f"{first} $\\sim$ {second}" for first, second in pairs.itertuples(index=False)]
    return tabular(["task", *header, "cells", "undefined"], rows, "l" + "l" * len(header) + "rr")


def _agreement_table(agreement: pd.DataFrame) -> str:
    if agreement.empty:
        return ""
    means = agreement.groupby(["model", "conditions"], sort=False)[["agreement", "expected"]].mean().reset_index()
    rows = []
    for _, r in means.iterrows():
        names = r["conditions"].split(" + ")
        key = "agreement.all" if len(names) > 2 else "agreement." + ".".join(names)
        published = decimal(VALUES[key], 0) if key in VALUES else "--"
        shown = escape(r["conditions"].replace("_", " "))
        model = rf"\texttt{{{escape(r['model'])}}}"
        rows.append([model, shown, decimal(100 * r["agreement"], 0), decimal(100 * r["expected"], 0), published])
    return tabular(["model", "variations", "agree (\\%)", "by chance (\\%)", "published (\\%)"], rows, "llrrr")


_BLOCKING_COLUMNS = {
    ("behaviour", "answer"): "exact match",
    ("sample", "label"): "label at sample",
    ("output", "label"): "label at output",
    ("decision", "label"): "label at decision",
    ("decision", "unasked"): "unasked at decision",
}


def _blocking_means(blocking: pd.DataFrame) -> pd.Series:
    """Mean change over tasks, in percentage points, by model, condition, role and target."""
    return 100 * blocking.groupby(["model", "condition", "role", "target"], sort=False)["change"].mean()


def _blocking_table(blocking: pd.DataFrame) -> str:
    if blocking.empty:
        return ""
    means = _blocking_means(blocking)
    rows: list[list[str]] = []
    for model, of_model in means.groupby("model", sort=False):
        for condition, cell in of_model.groupby("condition", sort=False):
            values = cell.droplevel(["model", "condition"])
            row = [rf"\texttt{{{escape(str(model))}}}", escape(str(condition).replace("_", " "))]
            rows.append([*row, *(decimal(values.get(key, math.nan), 1) for key in _BLOCKING_COLUMNS)])
        rows.append([])
    return tabular(["model", "condition", *_BLOCKING_COLUMNS.values()], rows[:-1], "llrrrrr")


def _blocking_numbers(blocking: pd.DataFrame, model: str) -> dict[str, str]:
    """Mean changes of the study's last model: ``change.<condition>.<role>.<target>``, percentage points."""
    if blocking.empty:
        return {}
    means = _blocking_means(blocking[blocking["model"] == model]).reset_index(name="value")
    return {
        ".".join(["change", *key]): decimal(value, 1)
        for *key, value in means[["condition", "role", "target", "value"]].itertuples(index=False)
    }


def _stage_numbers(behaviour: pd.DataFrame, manifests: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Mean exact match of the study's last model (the most trained one), by variation."""
    last = manifests[-1]["id"]
    table = behaviour[(behaviour["polarity"] == "all") & (behaviour["model"] == last)]
    out = {"last.model": rf"\texttt{{{escape(last)}}}"}
    for condition, cell in table.groupby("condition", sort=False):
        out[f"last.exact_match.{condition}"] = decimal(float(cell["exact_match"].mean()))
        out[f"last.answered.{condition}"] = decimal(float(cell["answered"].mean()))
        out[f"last.worst.{condition}"] = decimal(float(cell["exact_match"].min()))
    return out


def _example_table(example: pd.DataFrame) -> str:
    """The first sample in every variation, as rendered, chat markup included."""
    sample = example["sample_id"].iloc[0]
    rows = []
    for _, prompt in example[example["sample_id"] == sample].iterrows():
        text = (
            prompt["text"] if len(prompt["text"]) <= 700 else prompt["text"][:350] + " [...] " + prompt["text"][-350:]
        )
        shown = r"\newline ".join(re.sub(r" {2,}", " ", escape(line)) for line in text.splitlines() if line)
        rows.append(
            [escape(prompt["condition"].replace("_", " ")), rf"\small\ttfamily {shown}", escape(prompt["answer"])]
        )
    return tabular(["variation", "prompt", "answer"], rows, r"lp{0.68\textwidth}l")
