"""Tracing paths in full prompts: how many of each token's paths lead to the answer, and through which heads."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from levelt.config import Statistics, Vectors
from levelt.engine.frozen import Freezer, Frozen
from levelt.engine.paths import (
    Mode,
    Network,
    Paths,
    activity,
    backward,
    edge_totals,
    enumerate_paths,
    path_counts,
    source_totals,
    spread,
)
from levelt.models.loading import Decoder
from levelt.randomness import generator
from levelt.statistics.resampling import Floats, cluster_draws, mean_interval
from levelt.studies.vectors.cases import Case, rephrased
from levelt.studies.vectors.prompts import Prompt

log = logging.getLogger(__name__)

MODES: tuple[Mode, ...] = ("exact", "masked", "paper")
PLACE = ["task", "instruction_id", "wording", "mode", "keys"]


@dataclass(frozen=True)
class Traced:
    """What was traced in one model.

    tokens: per prompt, mode and source token: sample, position, from_last (position minus that of the last instruction
        token), group, paths (all there are), high (those whose answer ranks high; missing if there were too many to
        enumerate), total (the answer's logit from all of the token's paths).
    heads: per prompt, mode, source (instruction_last: the last instruction token; instruction: all of them; query: the
        query's tokens, whose ways to the answer the instruction may select), layer and head: value. Measure
        ``activity``: share of the high-ranking paths from the source that use the head (missing without such paths);
        ``flow`` (mode exact): what all of the source's paths through the head put into the answer's logit.
    sums: per prompt and mode: error (largest difference between the logits summed over all paths and the model's,
        relative to the largest), cosine and norm_ratio of the two.
    """

    tokens: pd.DataFrame
    heads: pd.DataFrame
    sums: pd.DataFrame


def trace_case(decoder: Decoder, freezer: Freezer, case: Case, settings: Vectors) -> Traced:
    """Trace ``settings.traced`` queries of a task under both instructions; the first rephrasing in one mode only."""
    tokens, heads, sums = [], [], []
    plans: list[tuple[Mode, int]] = [("exact", settings.keys + 1), *((mode, settings.keys) for mode in MODES)]
    for side in case.sides:
        for wording in range(min(2, len(side.wordings))):
            prompts = rephrased(case, side, wording)[: settings.traced]
            for sample, prompt in enumerate(prompts):
                frozen = freezer(prompt.input_ids)
                about: dict[str, Any] = {"task": case.task, "instruction_id": side.instruction_id, "wording": wording}
                for mode, keys in plans if wording == 0 else plans[1:2]:
                    place = about | {"mode": mode, "keys": keys, "sample": sample}
                    found = _trace(frozen, prompt, side.answer_ids[sample], mode, keys, settings)
                    tokens.append(found[0].assign(**place))
                    heads.append(found[1].assign(**place))
                if wording == 0:
                    for mode in MODES:
                        place = about | {"mode": mode, "keys": settings.keys, "sample": sample}
                        sums.append(place | _sums(frozen, mode, settings.keys))
            log.info("%s %s, wording %d: %d prompts traced", case.task, side.instruction_id, wording, len(prompts))
    return Traced(pd.concat(tokens, ignore_index=True), pd.concat(heads, ignore_index=True), pd.DataFrame(sums))


def _trace(
    frozen: Frozen, prompt: Prompt, target: int, mode: Mode, keys: int, settings: Vectors
) -> tuple[pd.DataFrame, pd.DataFrame]:
    network = Network.of(frozen, mode, keys)
    length = len(prompt.input_ids)
    span = prompt.groups["instruction"]
    last = span.stop - 1
    query = prompt.groups["query"]
    sources = {
        "instruction_last": [last],
        "instruction": list(range(span.start, span.stop)),
        "query": list(range(query.start, query.stop)),
    }
    counts = path_counts(network).numpy()
    # totals over every path there is, not only those along strongest keys
    whole = Network.of(frozen, "exact", None) if mode == "exact" else network
    read = backward(whole, target)
    paths: Paths | None = None
    high = np.full(length, np.nan)
    if counts.sum() <= settings.most_paths:
        paths = enumerate_paths(network, range(length), target)
        ranked = paths.rank <= settings.rank
        high = np.bincount(paths.tokens[ranked, 0].cpu().numpy(), minlength=length).astype(float)
    tokens = pd.DataFrame(
        {
            "position": range(length),
            "from_last": np.arange(length) - last,
            "group": _groups(prompt),
            "paths": counts,
            "high": high,
            "total": read.sources.cpu().numpy(),
        }
    )
    values: dict[tuple[str, str], np.ndarray] = {}
    states = spread(whole) if mode == "exact" else None
    for name, places in sources.items():
        if paths is not None:
            used = paths.tokens[(paths.rank <= settings.rank) & _starting(paths, places)]
            shape = network.masks.shape[:2]
            values[name, "activity"] = activity(network, used).cpu().numpy() if len(used) else np.full(shape, np.nan)
        if states is not None:
            values[name, "flow"] = edge_totals(whole, read, states, places).sum((2, 3)).cpu().numpy()
    return tokens, _heads(values)


def _starting(paths: Paths, sources: Sequence[int]) -> torch.Tensor:
    """Which paths start at one of some tokens."""
    return torch.isin(paths.tokens[:, 0], torch.tensor(sources, device=paths.tokens.device))


def _heads(values: dict[tuple[str, str], np.ndarray]) -> pd.DataFrame:
    frames = []
    for (source, measure), table in values.items():
        layer, head = np.indices(table.shape)
        numbers = {"layer": layer.ravel() + 1, "head": head.ravel(), "value": table.ravel()}
        frames.append(pd.DataFrame({"source": source, "measure": measure, **numbers}))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _groups(prompt: Prompt) -> list[str]:
    """The group of each token; the last instruction token by its own name, the template in between as such."""
    names = ["template"] * len(prompt.input_ids)
    for span in prompt.groups:
        if span.name in ("instruction", "query", "decision"):
            names[span.start : span.stop] = [span.name] * len(span)
    names[prompt.groups["instruction"].stop - 1] = "instruction_last"
    return names


def _sums(frozen: Frozen, mode: Mode, keys: int) -> dict[str, float]:
    network = Network.of(frozen, mode, None if mode == "exact" else keys)
    total = source_totals(network, spread(network)).sum(0)
    logits = frozen.logits
    cosine = torch.nn.functional.cosine_similarity(total, logits, dim=0)
    return {
        "error": float((total - logits).abs().max() / logits.abs().max()),
        "cosine": float(cosine),
        "norm_ratio": float(total.norm() / logits.norm()),
    }


# --- tables ---------------------------------------------------------------------------------------------------------


def paths_table(tokens: pd.DataFrame, statistics: Statistics, seed: int) -> pd.DataFrame:
    """Paths by source token: raw counts, and normalised by how many there could be.

    Tokens are aligned by their distance from the last instruction token; where queries differ in length, a distance
    holds the tokens that are there.

    Returns:
        task, instruction_id, wording, mode, keys, from_last, group (the most frequent), n (prompts), paths (mean number
        of all paths), measure, mean, ci_low, ci_high. Measures: high (mean number of high-ranking paths), share (high /
        paths, of each prompt), total (the answer's logit from the token).
    """
    table = tokens.assign(share=tokens["high"] / tokens["paths"].where(tokens["paths"] > 0))
    rows = []
    drawn: dict[tuple[str, int], Floats] = {}
    for key, part in table.groupby([*PLACE, "from_last"], sort=False):
        head = dict(zip([*PLACE, "from_last"], key, strict=True))
        group = part["group"].mode().iloc[0]
        for measure in ("high", "share", "total"):
            values = part[measure].dropna().to_numpy()
            if len(values) < 2:
                continue
            which = str(key[0]), len(values)
            if which not in drawn:
                drawn[which] = cluster_draws(len(values), statistics.draws, generator(seed, "vectors", "paths", *which))
            mean, low, high = mean_interval(values[:, None], np.arange(len(values)), drawn[which], statistics.level)
            rows.append(
                head
                | {"group": group, "n": len(values), "paths": part["paths"].mean(), "measure": measure}
                | {"mean": mean[0], "ci_low": low[0], "ci_high": high[0]}
            )
    columns = [*PLACE, "from_last", "group", "n", "paths", "measure", "mean", "ci_low", "ci_high"]
    return pd.DataFrame(rows, columns=columns)


def sums_table(sums: pd.DataFrame) -> pd.DataFrame:
    """Do the paths add up to the model? task, mode, n, error (largest), cosine and norm_ratio (means)."""
    grouped = sums.groupby(["task", "mode"], sort=False)
    table = grouped.agg(
        n=("error", "size"), error=("error", "max"), cosine=("cosine", "mean"), norm_ratio=("norm_ratio", "mean")
    )
    return table.reset_index()
