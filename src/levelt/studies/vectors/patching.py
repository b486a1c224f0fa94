"""Patching instruction vectors into prompts without an instruction: effects per query, and whether layers add up.

A cell is a tuple of layers. Its effect on a query is f = z(patched) - z(plain), z the logit of the answer's first token
at the receiver's last position. Beside it: what the *other* instruction's answer gains under the same vector (an effect
that is not about this instruction raises both), the reciprocal rank 1 / rank, and the gap between the two tokens that
lead after the full prompt.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats

from levelt.config import Receiver, Statistics, Vectors
from levelt.engine.tuples import Cell, Grid, patch_tuples
from levelt.engine.tuples import Receiver as Prepared
from levelt.models.loading import Decoder
from levelt.randomness import generator
from levelt.statistics.permutation import Alternative, holm, sign_flip_test, sign_flips
from levelt.statistics.resampling import cluster_draws, mean_interval
from levelt.statistics.selection import nested_best
from levelt.studies.vectors.cases import Case, final_logits, instruction_states
from levelt.vocabulary import ALL

LAYERS = ["first", "second", "third"]
"""Columns of a cell's layers, from 1 (the layer behind which the residual is replaced); 0: no such layer."""
KEYS = ["task", "instruction_id", "receiver", "token"]


def patch_case(decoder: Decoder, case: Case, settings: Vectors, batch_tokens: int) -> pd.DataFrame:
    """Effects of both instructions' vectors in every receiver: one row per query, instruction, receiver and cell.

    Returns:
        task, instruction_id, receiver, token (of the instruction, from its last: 0, -1, ...), first, second, third,
        sample, effect, to_full (patched minus full prompt), other_effect, reciprocal_rank (change), gap (change).
        Token 0 has all tuples of layers; earlier tokens of the instruction what ``settings.tokens`` says, in the first
        receiver only.
    """
    full = [final_logits(decoder, side.prompts, batch_tokens) for side in case.sides]
    states = [instruction_states(decoder, case, side, [0])[0][:, 1:] for side in case.sides]
    frames = []
    for kind in settings.receivers:
        last = torch.stack([state[-1] for state in states])
        grid = _grid(decoder, case, kind, full, last, settings.order, batch_tokens)
        frames += [_effects(case, kind, side, 0, grid, side, full) for side in (0, 1)]
        if kind != settings.receivers[0] or settings.tokens == "last":
            continue
        for side, state in enumerate(states):
            if len(state) > 1:
                order = settings.order if settings.tokens == "tuples" else 1
                earlier = _grid(decoder, case, kind, full, state[:-1], order, batch_tokens)
                frames += [
                    _effects(case, kind, side, at - len(state) + 1, earlier, at, full) for at in range(len(state) - 1)
                ]
    return pd.concat(frames, ignore_index=True)


def _grid(
    decoder: Decoder,
    case: Case,
    kind: Receiver,
    full: Sequence[torch.Tensor],
    donors: torch.Tensor,
    order: int,
    batch_tokens: int,
) -> Grid:
    """Every query patched with every donor [donors, layers, d]; watched: both answers, both leading pairs."""
    leading = [logits.topk(2, dim=-1).indices.tolist() for logits in full]
    receivers = []
    for row, query in enumerate(case.queries):
        prompt, position = case.writer.receiver(kind, query)
        watched = [side.answer_ids[row] for side in case.sides] + leading[0][row] + leading[1][row]
        receivers.append(Prepared(prompt.input_ids, position, tuple(watched)))
    everyone = donors[None].expand(len(receivers), -1, -1, -1)
    return patch_tuples(decoder, receivers, everyone, order, batch_tokens, ranked=2)


def _effects(
    case: Case, kind: Receiver, side: int, token: int, grid: Grid, donor: int, full: Sequence[torch.Tensor]
) -> pd.DataFrame:
    logits, rank = grid.logits[:, donor], grid.rank[:, donor]
    change = logits[:, 1:] - logits[:, :1]
    gap = logits[..., 2 + 2 * side] - logits[..., 3 + 2 * side]
    own = full[side].gather(1, torch.tensor(case.sides[side].answer_ids)[:, None]).numpy()
    cells = np.array([_columns(cell) for cell in grid.cells[1:]])
    count = len(case.queries)
    table = pd.DataFrame(np.tile(cells, (count, 1)), columns=LAYERS)
    table.insert(0, "token", token)
    for name, value in (("receiver", kind), ("instruction_id", case.sides[side].instruction_id), ("task", case.task)):
        table.insert(0, name, value)
    return table.assign(
        sample=np.repeat(np.arange(count), len(cells)),
        effect=change[..., side].ravel(),
        to_full=(logits[:, 1:, side] - own).ravel(),
        other_effect=change[..., 1 - side].ravel(),
        reciprocal_rank=(1 / rank[:, 1:, side] - 1 / rank[:, :1, side]).ravel(),
        gap=(gap[:, 1:] - gap[:, :1]).ravel(),
    )


def _columns(cell: Cell) -> list[int]:
    return [layer + 1 for layer in cell] + [0] * (len(LAYERS) - len(cell))


# --- tables ---------------------------------------------------------------------------------------------------------

MEASURES = ["effect", "other_effect", "to_full", "reciprocal_rank", "gap"]


def patching_table(effects: pd.DataFrame, statistics: Statistics, seed: int) -> pd.DataFrame:
    """Mean effect of every cell with cluster-bootstrap intervals over queries.

    Returns:
        task, instruction_id, receiver, token, first, second, third, measure, n, mean, ci_low, ci_high. The measure
        ``specific`` is effect minus other_effect, paired.
    """
    table = effects.assign(specific=effects["effect"] - effects["other_effect"])
    rows = []
    for key, part in table.groupby(KEYS, sort=False):
        cells = part[LAYERS].drop_duplicates()
        count = part["sample"].nunique()
        draws = cluster_draws(count, statistics.draws, generator(seed, "vectors", "patching", str(key[0])))
        for measure in [*MEASURES, "specific"]:
            values = part[measure].to_numpy().reshape(count, len(cells))
            mean, low, high = mean_interval(values, np.arange(count), draws, statistics.level)
            named = _named(KEYS, key, cells)
            rows.append(named.assign(measure=measure, n=count, mean=mean, ci_low=low, ci_high=high))
    found = pd.concat(rows, ignore_index=True)
    return found[[*KEYS, *LAYERS, "measure", "n", "mean", "ci_low", "ci_high"]]


def summary_table(effects: pd.DataFrame, statistics: Statistics, seed: int) -> pd.DataFrame:
    """A few numbers per task, and over all tasks: is the last token where the instruction is, and do layers add up?

    In the first receiver, as means over layers behind which a patch can reach the answer, and over both instructions.
    Quantities: specific_last (effect minus other_effect of the last instruction token's vectors), specific_other (of
    another token's: for each instruction the one that is best on the other folds of queries), last_minus_other, and
    interaction_last and interaction_other (means over the pairs of layers).

    Returns:
        task (all: every query of every task), quantity, n (queries), estimate, ci_low, ci_high (over queries), p
        (two-sided sign flips; of interactions one-sided, above zero).
    """
    values = means_by_query(effects, seed)
    rows = []
    tasks, quantities = dict.fromkeys(task for task, _ in values), dict.fromkeys(name for _, name in values)
    for quantity in quantities:
        each = {task: values[task, quantity] for task in tasks if (task, quantity) in values}
        for task, of_queries in {**each, ALL: np.concatenate(list(each.values()))}.items():
            kept = of_queries[~np.isnan(of_queries)]
            if len(kept) < 2:
                continue
            drawn = generator(seed, "vectors", "summary", task, quantity)
            draws = cluster_draws(len(kept), statistics.draws, drawn)
            mean, low, high = mean_interval(kept[:, None], np.arange(len(kept)), draws, statistics.level)
            sided: Alternative = "greater" if quantity.startswith("interaction") else "two-sided"
            p = sign_flip_test(kept[:, None], sign_flips(len(kept), statistics.draws, drawn), sided)
            rows.append(
                {"task": task, "quantity": quantity, "n": len(kept), "estimate": mean[0]}
                | {"ci_low": low[0], "ci_high": high[0], "p": p[0]}
            )
    return pd.DataFrame(rows, columns=["task", "quantity", "n", "estimate", "ci_low", "ci_high", "p"])


def means_by_query(effects: pd.DataFrame, seed: int) -> dict[tuple[str, str], np.ndarray]:
    """The quantities of `summary_table` by task and quantity, one value per query: means over both instructions."""
    main = effects[effects["receiver"] == effects["receiver"].iloc[0]]
    main = main.assign(specific=main["effect"] - main["other_effect"])
    values: dict[tuple[str, str], list[np.ndarray]] = {}
    for (task, instruction), part in main.groupby(["task", "instruction_id"], sort=False):
        by_token = {int(token): _means(of_token) for token, of_token in part.groupby("token", sort=True)}
        others = [token for token in by_token if token]
        found = {"specific_last": by_token[0][0], "interaction_last": by_token[0][1]}
        if others:
            specific = np.stack([by_token[token][0] for token in others], 1)
            count = len(specific)
            drawn = generator(seed, "vectors", "tokens", str(task), str(instruction))
            best = nested_best(specific, np.full(count, 1 / count), np.arange(count), 4, drawn)
            found |= {"specific_other": best.values, "last_minus_other": found["specific_last"] - best.values}
            found["interaction_other"] = by_token[others[int(specific.mean(0).argmax())]][1]
        for quantity, of_queries in found.items():
            values.setdefault((str(task), quantity), []).append(of_queries)
    return {key: np.mean(several, axis=0) for key, several in values.items()}


def _means(part: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Per query: the specific effect over single layers that can act, the interaction over pairs (nan: no pairs)."""
    names, effect = by_cell(part, "effect")
    _, specific = by_cell(part, "specific")
    singles = [index for cell, index in names.items() if len(cell) == 1 and np.abs(specific[:, index]).max() > 0]
    pairs = [_interaction(effect, names, cell) for cell in names if len(cell) == 2]
    acting = [pair for pair in pairs if np.abs(pair).max() > 0]
    nothing = np.zeros(len(effect))
    return (
        specific[:, singles].mean(1) if singles else nothing,
        np.mean(acting, axis=0) if acting else nothing * np.nan,
    )


def by_cell(part: pd.DataFrame, measure: str) -> tuple[dict[Cell, int], np.ndarray]:
    """One measure of a group of effects as [samples, cells], and the column of each cell."""
    wide = part.pivot(index="sample", columns=LAYERS, values=measure)
    names = {tuple(int(layer) for layer in column if int(layer)): at for at, column in enumerate(wide.columns)}
    return names, wide.to_numpy()


def interaction_table(effects: pd.DataFrame, statistics: Statistics, top: int, seed: int) -> pd.DataFrame:
    """Do two (or three) layers together do more than the sum of what each does? One row per tuple.

    I = f(ij) - f(i) - f(j) per query, for three layers by inclusion and exclusion. p: one-sided sign flips of I over
    queries (I > 0); p_holm: over all tuples of the same task, instruction, receiver, token and size. Queries are also
    split in halves: the ``top`` strongest tuples of one half are tested on the other (selected, p_selected, corrected
    among themselves). A tuple whose last layer cannot reach the answer (behind the last layer, away from the last
    position) is no test: its interaction is exactly zero, and it is left out.

    As released (`released_*`): share of queries with f(ij) >= f(i) + f(j), and the p-value of the t-test of these
    truth values against 50, over the ten strongest cells, singles (i, i) among them.

    Returns:
        task, instruction_id, receiver, token, first, second, third, n, effect, sum_of_singles, interaction, ci_low,
        ci_high, p, p_holm, selected, p_selected, released_share, released_p, released_top.
    """
    frames = []
    for key, part in effects.groupby(KEYS, sort=False):
        count = part["sample"].nunique()
        names, values = by_cell(part, "effect")
        for size in (2, 3):
            cells = [cell for cell in names if len(cell) == size]
            if cells:
                labels = (seed, "vectors", "interaction", *map(str, key), size)
                frames.append(_named(KEYS, key, _tested(values, names, cells, count, statistics, top, labels)))
    columns = [*KEYS, *LAYERS, "n", "effect", "sum_of_singles", "interaction", "ci_low", "ci_high", "p", "p_holm"]
    columns += ["selected", "p_selected", "released_share", "released_p", "released_top"]
    return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)


def _named(keys: Sequence[str], values: Sequence[Any], table: pd.DataFrame) -> pd.DataFrame:
    """A table of one group, with the group's keys as columns."""
    named = table.copy()
    for key, value in zip(keys, values, strict=True):
        named[key] = value
    return named


def _tested(
    values: np.ndarray,
    names: dict[Cell, int],
    cells: list[Cell],
    count: int,
    statistics: Statistics,
    top: int,
    labels: tuple[int | str, ...],
) -> pd.DataFrame:
    drawn = generator(int(labels[0]), *labels[1:])
    alone = np.stack([sum(values[:, names[(layer,)]] for layer in cell) for cell in cells], 1)
    together = np.stack([values[:, names[cell]] for cell in cells], 1)
    interaction = np.stack([_interaction(values, names, cell) for cell in cells], 1)
    tested = np.abs(interaction).max(0) > 0
    draws = cluster_draws(count, statistics.draws, drawn)
    mean, low, high = mean_interval(interaction, np.arange(count), draws, statistics.level)
    p = _greater(interaction, statistics.draws, drawn)
    half = drawn.permutation(count) < count // 2
    ranked = np.argsort(-together[half].mean(0), kind="stable")
    strongest = [int(at) for at in ranked if tested[at]][:top]
    p_selected = np.full(len(cells), np.nan)
    if strongest:
        p_selected[strongest] = holm(_greater(interaction[~half][:, strongest], statistics.draws, drawn))
    boolean = together >= alone
    # the released test (its expected share is 50, not 0.5), which says "significant" whatever the data are
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of shares that are all equal
        released = np.array([stats.ttest_1samp(column, 50.0).pvalue for column in boolean.T.astype(float)])
    pool = np.concatenate([together.mean(0), [values[:, names[cell]].mean() for cell in names if len(cell) == 1]])
    ten = np.sort(pool)[::-1][: min(10, len(pool))][-1]
    table = pd.DataFrame([list(cell) + [0] * (3 - len(cell)) for cell in cells], columns=LAYERS).assign(
        n=count,
        effect=together.mean(0),
        sum_of_singles=alone.mean(0),
        interaction=mean,
        ci_low=low,
        ci_high=high,
        p=p,
        selected=np.isin(np.arange(len(cells)), strongest),
        p_selected=p_selected,
        released_share=boolean.mean(0),
        released_p=released,
        released_top=together.mean(0) >= ten,
    )
    table = table.loc[tested].copy()
    corrected: pd.DataFrame = table.assign(p_holm=holm(table["p"].to_numpy()))
    return corrected


def _interaction(values: np.ndarray, names: dict[Cell, int], cell: Cell) -> np.ndarray:
    """Inclusion and exclusion over the subsets of a tuple."""
    total = np.zeros(len(values))
    for subset in names:
        if set(subset) <= set(cell):
            total += (-1) ** (len(cell) - len(subset)) * values[:, names[subset]]
    return total


def _greater(values: np.ndarray, draws: int, drawn: np.random.Generator) -> np.ndarray:
    """p-value of "the mean is not above zero" for each column, by sign flips over rows."""
    return np.asarray(sign_flip_test(values, sign_flips(len(values), draws, drawn), "greater"))
