"""The tables of the recall study, from what each model showed. No model, no torch.

Every answer has a control: the answer at the same place in the list of another subject of the same relation. Columns
``over_control`` are paired differences between the two, prompt by prompt: what is said about this subject's answers
and not about words of that kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from levelt.config import Statistics
from levelt.studies.recall.averages import Averages, Floats, Mean, mean_of
from levelt.studies.recall.prompts import READOUTS
from levelt.studies.scope import MODEL_COLUMNS
from levelt.vocabulary import ALL

RATES = ("promotion", "suppression")


@dataclass(frozen=True)
class ModelResults:
    """What one model showed: manifest, prompts table, decode arrays with their metadata, traces."""

    manifest: Mapping[str, Any]
    prompts: pd.DataFrame
    arrays: Mapping[str, np.ndarray]
    about: Mapping[str, Any]
    traces: pd.DataFrame
    summary: Mapping[str, Any]

    @property
    def layers(self) -> int:
        """Layers of the model."""
        return int(self.about["layers"])

    @property
    def described(self) -> dict[str, Any]:
        """The model's columns."""
        return {"model": self.manifest["id"], **{key: self.manifest.get(key) for key in MODEL_COLUMNS[1:]}}

    def step(
        self, step: int, statistics: Statistics, seed: int, everyone: Mapping[str, Sequence[str]] | None = None
    ) -> Step:
        """Everything of one answer step. everyone: see `Averages`."""
        rows = self.prompts[self.prompts["step"] == step]
        arrays = {
            name.partition(".")[2]: values.astype(np.float64) if values.dtype.kind == "f" else values
            for name, values in self.arrays.items()
            if name.startswith(f"step{step}.")
        }
        groups = list(self.about["groups"][str(step)])
        return Step(
            step, self.layers, arrays, groups, self.about["knockouts"][str(step)], rows, statistics, seed, everyone
        )


class Step:
    """One answer step of one model."""

    def __init__(
        self,
        step: int,
        layers: int,
        arrays: Mapping[str, np.ndarray],
        groups: Sequence[str],
        knockouts: Sequence[Sequence[Any]],
        rows: pd.DataFrame,
        statistics: Statistics,
        seed: int,
        everyone: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.step, self.layers, self.arrays, self.rows = step, layers, arrays, rows
        self.groups, self.level = list(groups), statistics.level
        self.knockouts = [(str(one[0]), bool(one[-1])) for one in knockouts]
        self.averages = Averages(rows, statistics.draws, seed, everyone)

    @property
    def increments(self) -> Floats:
        """[n, layers, tokens] what each layer adds."""
        return np.asarray(self.arrays["attention"] + self.arrays["mlp"])

    @property
    def cumulative(self) -> Floats:
        """[n, layers + 1, tokens] the logit so far: embedding, then after each layer, at the final norm's scale."""
        first = self.arrays["embedding"][:, None]
        return np.concatenate([first, first + self.increments.cumsum(1)], axis=1)

    def knocked(self, group: str, renormalised: bool) -> tuple[Floats, Floats]:
        """Plain minus knocked out: of each MLP [n, layers, tokens], and of the logit [n, tokens]."""
        index = self.knockouts.index((group, renormalised))
        mlp = self.arrays["mlp"] - self.arrays["knocked_mlp"][:, index]
        return mlp, self.arrays["linear"] - self.arrays["knocked_linear"][:, index]

    def roles(self) -> dict[str, list[int]]:
        """Answers (1 to 3) by what they are at this step: used, current, future, any."""
        numbers = {"used": range(1, self.step), "current": [self.step], "future": range(self.step + 1, 4)}
        return {name: list(part) for name, part in {**numbers, "any": range(1, 4)}.items() if part}

    def scopes(self) -> list[str]:
        """all, then each relation."""
        return ["all", *self.averages.relations]


def over_control(values: Floats) -> Floats:
    """[..., 7 readouts] -> the same, each answer minus its control; nan for subject and controls."""
    found = np.full(values.shape, np.nan)
    found[..., 1:4] = values[..., 1:4] - values[..., 4:7]
    return found


def _columns(name: str, mean: Mean, level: float) -> dict[str, Floats]:
    low, high = mean.interval(level)
    prefix = "" if name in ("logit", "effect", "score", "estimate") else f"{name}_"
    return {name: mean.value.ravel(), f"{prefix}ci_low": low.ravel(), f"{prefix}ci_high": high.ravel()}


def _grid(axes: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
    """Columns of a table whose rows run over all combinations, the last axis fastest."""
    grids = np.meshgrid(*(np.arange(len(values)) for values in axes.values()), indexing="ij")
    return {
        name: np.asarray(values, dtype=object)[grid.ravel()]
        for (name, values), grid in zip(axes.items(), grids, strict=True)
    }


# --- lens.csv and knockout.csv ---------------------------------------------------------------------------------------


def lens_table(models: Sequence[ModelResults], statistics: Statistics, seed: int) -> pd.DataFrame:
    """Early decoding and the token lens, layer by layer.

    component residual: the logit so far (layer 0: the embedding); attention, mlp: what the block of the layer adds;
    group all. component attention with a group: the token lens. component weight: the attention weight of the group,
    mean over heads (no token). Layers are counted from 1; logits are linear, before any soft-capping.
    """
    parts = []
    for model in models:
        for step in (model.step(k, statistics, seed) for k in (1, 2, 3)):
            inner = range(1, step.layers + 1)
            blocks: list[tuple[str, str, Sequence[int], Floats]] = [
                ("residual", "all", range(step.layers + 1), step.cumulative),
                ("attention", "all", inner, step.arrays["attention"]),
                ("mlp", "all", inner, step.arrays["mlp"]),
            ]
            lens = step.arrays["lens"]
            blocks += [("attention", group, inner, lens[:, :, i]) for i, group in enumerate(step.groups)]
            for scope in step.scopes():
                for component, group, layers, values in blocks:
                    axes = {"layer": list(layers), "token": READOUTS}
                    columns = _columns("logit", step.averages.mean(values, scope), statistics.level)
                    paired = step.averages.mean(over_control(values), scope)
                    columns |= _columns("over_control", paired, statistics.level)
                    parts.append(_part(model, step, scope, {"component": component, "group": group}, axes, columns))
                weights = step.averages.mean(step.arrays["weights"].swapaxes(1, 2), scope)
                axes = {"group": step.groups, "layer": list(inner), "token": ["none"]}
                columns = _columns("logit", weights, statistics.level)
                parts.append(_part(model, step, scope, {"component": "weight"}, axes, columns))
    return _joined(parts, ["relation", "step", "component", "group", "token", "layer", "depth", "n"])


def knockout_table(models: Sequence[ModelResults], statistics: Statistics, seed: int) -> pd.DataFrame:
    """What the last token's attention to a group makes each MLP add: plain run minus knocked-out run.

    effect > 0: attention to the group made the MLP raise the token. component logit (layer: the last): the change of
    the logit itself. renormalised: the remaining weights were scaled up to sum to one.
    """
    parts = []
    for model in models:
        for step in (model.step(k, statistics, seed) for k in (1, 2, 3)):
            for group, renormalised in step.knockouts:
                mlp, logit = step.knocked(group, renormalised)
                for scope in step.scopes():
                    for component, values, layers in (
                        ("mlp", mlp, list(range(1, step.layers + 1))),
                        ("logit", logit[:, None], [step.layers]),
                    ):
                        axes = {"layer": layers, "token": READOUTS}
                        columns = _columns("effect", step.averages.mean(values, scope), statistics.level)
                        paired = step.averages.mean(over_control(values), scope)
                        columns |= _columns("over_control", paired, statistics.level)
                        about = {"group": group, "renormalised": renormalised, "component": component}
                        parts.append(_part(model, step, scope, about, axes, columns))
    return _joined(parts, ["relation", "step", "group", "renormalised", "component", "token", "layer", "depth", "n"])


# --- tracing.csv -----------------------------------------------------------------------------------------------------


def tracing_table(models: Sequence[ModelResults], statistics: Statistics, seed: int) -> pd.DataFrame:
    """Probability of the answer with one module of one token restored, by place in the prompt.

    score: mean over the tokens of the place, then over prompts that have it. low, high: nothing disturbed back, and
    the clean run. effect: score - low, with its own interval.
    """
    keys = ["site", "place", "layer"]
    parts = []
    for model in models:
        traced: Any = model.traces.groupby(["step", "noised"], sort=False)
        for (step, noised), cell in traced:
            index = ["relation", "template", "subject"]
            columns_of = cell[keys].drop_duplicates().reset_index(drop=True)
            wide = cell.pivot(index=index, columns=keys, values="score")
            wide = wide[[tuple(row) for row in columns_of.itertuples(index=False)]]
            ends = cell.drop_duplicates(index).set_index(index).loc[wide.index, ["low", "high"]].to_numpy(float)
            averages = Averages(wide.index.to_frame(index=False), statistics.draws, seed)
            scores = wide.to_numpy(float)
            for scope in ["all", *averages.relations]:
                mean = averages.mean(scores, scope)
                if np.isnan(mean.value).all():
                    continue
                both = averages.mean(ends, scope).value
                columns = _columns("score", mean, statistics.level)
                columns |= _columns("effect", averages.mean(scores - ends[:, :1], scope), statistics.level)
                columns = {(f"effect_{k}" if k.startswith("ci_") else k): v for k, v in columns.items()}
                low, high = mean.interval(statistics.level)
                part = columns_of.assign(
                    relation=scope,
                    step=int(step),
                    noised=str(noised),
                    n=averages.subjects(scope),
                    low=both[0],
                    high=both[1],
                    ci_low=low,
                    ci_high=high,
                    **columns,
                )
                part["layer"] += 1
                part["depth"] = part["layer"] / model.layers
                parts.append(_described(model, part[np.isfinite(mean.value)]))
    order = ["relation", "step", "noised", "site", "place", "layer", "depth", "n", "low", "high", "score", "ci_low"]
    return _joined(parts, [*order, "ci_high", "effect", "effect_ci_low", "effect_ci_high"])


# --- heads.csv -------------------------------------------------------------------------------------------------------


def heads_table(models: Sequence[ModelResults], statistics: Statistics, seed: int) -> pd.DataFrame:
    """How often each head promotes and suppresses, per model, and what it adds to answers over their controls.

    A head promotes in a prompt if it adds more than mean + one standard deviation to one of subject and answers, and
    suppresses if less than mean - one standard deviation; mean and deviation are pooled over the heads and prompts of
    a layer (method spec, 4.5). projection: right, or as_released (transposed).
    """
    parts = []
    for model in models:
        for step in (model.step(k, statistics, seed) for k in (1, 2, 3)):
            for projection, name in (("right", "heads"), ("as_released", "heads_as_released")):
                if name not in step.arrays:
                    continue
                heads = step.arrays[name]
                rates = head_rates(heads)
                axes = {"layer": list(range(1, step.layers + 1)), "head": list(range(1, heads.shape[2] + 1))}
                columns: dict[str, Floats] = {}
                for rate, values in zip(RATES, rates, strict=True):
                    columns |= _columns(rate, step.averages.mean(values), statistics.level)
                against = over_control(heads)
                for role, numbers in step.roles().items():
                    values = against[..., numbers].mean(-1)
                    columns |= _columns(role, step.averages.mean(values), statistics.level)
                parts.append(_part(model, step, "all", {"projection": projection}, axes, columns))
    return _joined(parts, ["step", "projection", "layer", "depth", "head", "n"]).drop(columns="relation")


def head_rates(heads: Floats) -> tuple[Floats, Floats]:
    """[n, layers, heads] whether each head promotes, and suppresses, in each prompt.

    heads: [n, layers, heads, tokens]; the first four tokens count, subject and answers.
    """
    four = heads[..., :4]
    mean, spread = four.mean((0, 2, 3), keepdims=True), four.std((0, 2, 3), keepdims=True)
    return (four > mean + spread).any(-1).astype(float), (four < mean - spread).any(-1).astype(float)


# --- recall.csv: one number per question -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Statistic:
    """One number of `statistics_table`; layer: where it was read, nan if nowhere in particular."""

    statistic: str
    group: str
    token: str
    mean: Mean
    layer: float = np.nan

    def row(self, level: float, layers: float) -> dict[str, Any]:
        """Its columns."""
        low, high = self.mean.interval(level)
        about = {"statistic": self.statistic, "group": self.group, "token": self.token}
        found = {"estimate": float(self.mean.value), "ci_low": float(low), "ci_high": float(high)}
        return about | found | {"layer": self.layer, "depth": self.layer / layers}


def statistics_table(models: Sequence[ModelResults], statistics: Statistics, seed: int) -> pd.DataFrame:
    """The statistics that claims are tested on, by step, for all relations and templates together and each alone.

    Answers are over their controls. token: used (given before), current, future, any. See docs/recall.md for each
    statistic. Layers at which something is read are chosen on one half of the subjects and used on the other, so that
    a maximum of noise is not reported as a peak; ``layer`` is the choice on all of them.

    Behind the models, one block for each stage of training: the mean over its models, then families (model and family
    ``all``), with the interval of that mean: models answer about the same subjects and are resampled together.
    """
    everyone = _subjects_of(models)
    parts = []
    pooled: dict[tuple[str, int, str, str], dict[str, list[list[Statistic]]]] = {}
    for model in models:
        for step in (model.step(k, statistics, seed, everyone) for k in (1, 2, 3)):
            scopes = [(relation, "all") for relation in step.scopes()]
            scopes += [("all", template) for template in step.averages.templates if len(step.averages.templates) > 1]
            for relation, template in scopes:
                found = list(_statistics(step, relation, template))
                family = str(model.described["family"])
                key = (str(model.described["stage"]), step.step, relation, template)
                pooled.setdefault(key, {}).setdefault(family, []).append(found)
                rows = pd.DataFrame([one.row(statistics.level, step.layers) for one in found])
                rows = rows.assign(relation=relation, template=template, step=step.step)
                parts.append(_described(model, rows.assign(n=step.averages.subjects(relation))))
    for (stage, number, relation, template), families in sorted(
        pooled.items(), key=lambda item: list(pooled).index(item[0])
    ):
        chosen = [name for name in everyone if relation in ("all", name)]
        about: dict[str, Any] = dict.fromkeys(MODEL_COLUMNS, ALL) | {"parameters": pd.NA, "seed": pd.NA, "stage": stage}
        about |= {"relation": relation, "template": template, "step": number}
        rows = pd.DataFrame([one.row(statistics.level, np.nan) for one in _over_families(families)])
        parts.append(rows.assign(**about, n=sum(len(everyone[name]) for name in chosen)))
    return _joined(parts, ["relation", "template", "step", "statistic", "group", "token", "estimate"])


def _over_families(families: Mapping[str, Sequence[Sequence[Statistic]]]) -> Iterator[Statistic]:
    """Each statistic as the mean over the models of a family, then over families."""
    of_families = [
        {(one[0].statistic, one[0].group, one[0].token): mean_of([single.mean for single in one]) for one in aligned}
        for aligned in (zip(*several, strict=True) for several in families.values())
    ]
    for key in of_families[0]:
        yield Statistic(*key, mean_of([found[key] for found in of_families]))


def _subjects_of(models: Sequence[ModelResults]) -> dict[str, list[str]]:
    """The subjects of each relation that any model answered about."""
    names: dict[str, set[str]] = {}
    for model in models:
        for relation, subjects in model.prompts.groupby("relation", sort=False)["subject"]:
            names.setdefault(str(relation), set()).update(map(str, subjects))
    return {relation: sorted(subjects) for relation, subjects in names.items()}


def _statistics(step: Step, relation: str, template: str) -> Iterator[Statistic]:
    averages, layers = step.averages, step.layers

    def mean(values: Floats) -> Mean:
        return averages.mean(values, relation, template)

    halves = averages.halves()
    cumulative, increments = over_control(step.cumulative), over_control(step.increments)
    for role, numbers in step.roles().items():
        curve = cumulative[..., numbers].mean(-1)
        folds = [averages.mean(curve, relation, template, only=half) for half in halves]
        peak = _argmax(mean(curve).value)
        yield Statistic("promotion_peak", "all", role, _crossed(folds, _at_peak), peak)
        yield Statistic("suppression_depth", "all", role, _crossed(folds, _fall), peak)
        yield Statistic("final", "all", role, mean(curve[:, -1]), layers)
        yield Statistic("sign_change", "all", role, _sign_change(mean(increments[..., numbers].mean(-1))))
        for component in ("attention", "mlp"):
            values = over_control(step.arrays[component])[..., numbers].mean(-1)
            yield Statistic(f"{component}_sum", "all", role, mean(values.sum(1)))
            yield Statistic(f"{component}_last_half", "all", role, mean(values[:, layers // 2 :].sum(1)))
    for statistic, group, token, values in _pairs(step):
        yield Statistic(statistic, group, token, mean(values))


def _pairs(step: Step) -> Iterator[tuple[str, str, str, Floats]]:
    """(statistic, group, token, values [n]): sums over layers of token lens and knockout effects on answers."""
    lens = over_control(step.arrays["lens"].sum(1))  # [n, groups, tokens]
    for renormalised in (False, True):
        name = "knockout_renormalised" if renormalised else "knockout"
        for group in (group for group, of in step.knockouts if of == renormalised):
            effect = over_control(step.knocked(group, renormalised)[0].sum(1))
            for token, numbers in step.roles().items():
                yield name, group, token, effect[:, numbers].mean(-1)
    for index, group in enumerate(step.groups):
        for token, numbers in step.roles().items():
            yield "lens", group, token, lens[:, index, numbers].mean(-1)
    used = step.roles().get("used", [])
    if used:  # each given answer's own positions, on that answer and on the two others
        own, others, knocked_own, knocked_others = [], [], [], []
        for k in used:
            index, rest = step.groups.index(f"answer_{k}"), [j for j in (1, 2, 3) if j != k]
            effect = over_control(step.knocked(f"answer_{k}", False)[0].sum(1))
            own.append(lens[:, index, k])
            others.append(lens[:, index, rest].mean(-1))
            knocked_own.append(effect[:, k])
            knocked_others.append(effect[:, rest].mean(-1))
        yield "lens", "used", "own", np.mean(own, axis=0)
        yield "lens", "used", "others", np.mean(others, axis=0)
        yield "knockout", "used", "own", np.mean(knocked_own, axis=0)
        yield "knockout", "used", "others", np.mean(knocked_others, axis=0)


def _argmax(curve: Floats) -> int:
    return int(np.argmax(np.where(np.isfinite(curve), curve, -np.inf)))


def _at_peak(curves: Floats, chosen: Floats) -> Floats:
    """Each row of ``curves`` [..., layers + 1] at the layer where that row of ``chosen`` is highest."""
    peak = np.argmax(np.where(np.isfinite(chosen), chosen, -np.inf), axis=-1)
    found: Floats = np.take_along_axis(curves, peak[..., None], -1)[..., 0]
    return found


def _fall(curves: Floats, chosen: Floats) -> Floats:
    """From the peak of ``chosen`` to the end."""
    found: Floats = _at_peak(curves, chosen) - curves[..., -1]
    return found


def _crossed(folds: Sequence[Mean], measure: Any) -> Mean:
    """The mean of both ways to choose on one fold and measure on the other."""
    one, two = folds
    return Mean(
        np.asarray((measure(two.value, one.value) + measure(one.value, two.value)) / 2),
        (measure(two.draws, one.draws) + measure(one.draws, two.draws)) / 2,
    )


def _sign_change(increments: Mean) -> Mean:
    """The first layer (from 1) from which on everything that is added is negative; one past the last: there is none."""

    def first(values: Floats) -> Floats:
        negative = np.flip(np.cumprod(np.flip(values < 0, -1), axis=-1), -1).astype(float)
        found: Floats = values.shape[-1] - negative.sum(-1) + 1
        return found

    draws = np.where(np.isnan(increments.draws).any(-1), np.nan, first(increments.draws))
    return Mean(np.asarray(first(increments.value)), draws)


# --- recall_audit.csv and recall_lists.csv ---------------------------------------------------------------------------


def audit_table(models: Sequence[ModelResults], statistics: Statistics, seed: int) -> pd.DataFrame:
    """What two defects of the released code change: the right number, and the number as released.

    transposed projection: sum_error, the largest difference between the heads' sum and the attention decode (bias
    aside), relative to the latter; correlation of the mean head decodes with the right ones; rate_correlation, of the
    promotion rates. doubled template: macro averages of the token lens and the knockout (sums over layers).
    """
    parts = []
    for model in models:
        for step in (model.step(k, statistics, seed) for k in (1, 2, 3)):
            rows: list[dict[str, Any]] = []
            right, wrong = step.arrays["heads"], step.arrays.get("heads_as_released")
            whole = step.arrays["lens"].sum(2)
            if wrong is not None:
                scale = np.abs(whole).max()
                errors = [float(np.abs(heads.sum(2) - whole).max() / scale) for heads in (right, wrong)]
                rows.append(_audit("transposed projection", "sum_error", *errors))
                means = [heads.mean(0)[..., :4].ravel() for heads in (right, wrong)]
                rows.append(_audit("transposed projection", "correlation", 1.0, _correlation(*means)))
                rates = [head_rates(heads)[0].mean(0).ravel() for heads in (right, wrong)]
                rows.append(_audit("transposed projection", "rate_correlation", 1.0, _correlation(*rates)))
            if len(step.averages.templates) > 1:
                for statistic, group, token, values in _pairs(step):
                    if statistic != "knockout_renormalised":
                        both = [float(step.averages.mean(values, as_released=flag).value) for flag in (False, True)]
                        rows.append(_audit("doubled template", f"{statistic} {group} on {token}", *both))
            parts.append(_described(model, pd.DataFrame(rows).assign(step=step.step)))
    return _joined(parts, ["step", "defect", "quantity", "right", "as_released"])


def _audit(defect: str, quantity: str, right: float, as_released: float) -> dict[str, Any]:
    return {"defect": defect, "quantity": quantity, "right": right, "as_released": as_released}


def _correlation(one: Floats, two: Floats) -> float:
    return float(np.corrcoef(one, two)[0, 1]) if one.std() > 0 and two.std() > 0 else float("nan")


def lists_table(models: Sequence[ModelResults]) -> pd.DataFrame:
    """How many lists there are: kept, in which the model's next token is the listed answer at every step, and left out.

    One row per model, relation and template, and outcome: kept, predicted (of the kept), collision (of the kept), and
    the reasons for leaving out.
    """
    parts = []
    for model in models:
        right = model.prompts.assign(predicted=False)
        for k in (1, 2, 3):
            rows = model.prompts["step"] == k
            wanted = np.array([ids[k] for ids in model.prompts.loc[rows, "readouts"]])
            right.loc[rows, "predicted"] = model.arrays[f"step{k}.predicted"] == wanted
        keys = ["relation", "template"]
        every = right.groupby([*keys, "subject"], sort=False)[["predicted", "collision"]].all().reset_index()
        counted = every.groupby(keys, sort=False).agg(
            kept=("subject", "size"), predicted=("predicted", "sum"), collision=("collision", "sum")
        )
        long = counted.reset_index().melt(keys, var_name="outcome", value_name="lists")
        dropped = pd.DataFrame(model.summary["dropped"], columns=[*keys, "reason", "lists"])
        long = pd.concat([long, dropped.rename(columns={"reason": "outcome"})], ignore_index=True)
        parts.append(_described(model, long.astype({"lists": int})))
    return _joined(parts, ["relation", "template", "outcome", "lists"])


# --- shared ----------------------------------------------------------------------------------------------------------


def _part(
    model: ModelResults,
    step: Step,
    scope: str,
    about: Mapping[str, Any],
    axes: Mapping[str, Sequence[Any]],
    columns: Mapping[str, Floats],
) -> pd.DataFrame:
    grid = _grid(axes)
    layer = grid["layer"].astype(int)
    scalars = {"relation": scope, "step": step.step, "n": step.averages.subjects(scope), **about, **model.described}
    return pd.DataFrame({**grid, **columns, "layer": layer, "depth": layer / step.layers, **scalars})


def _described(model: ModelResults, table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(**model.described)


def _joined(parts: Sequence[pd.DataFrame], first: Sequence[str]) -> pd.DataFrame:
    """One table: the models' columns, the given ones, then the rest."""
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*MODEL_COLUMNS, *first])
    leading = [name for name in (*MODEL_COLUMNS, *first) if name in table]
    return table[[*leading, *[name for name in table if name not in leading]]]
