"""Training: the loop that all stages share, and next-token prediction on packed rows (base, sft).

Everything random is drawn before the first step, the number of steps is fixed, and the thread count is a setting, so
the same settings give the same weights on the same kind of machine, whether or not training was interrupted.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int64
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from levelt.files import InputError, read_json, replacing, write_json
from levelt.organisms.evaluation import Probe, measure
from levelt.organisms.loss import head_loss
from levelt.organisms.packing import Rows

log = logging.getLogger(__name__)

_WARMUP, _DECAY = 0.02, 0.6  # shares of the steps
_BETAS, _WEIGHT_DECAY, _CLIP = (0.9, 0.95), 0.05, 1.0
_LOG_SECONDS, _SAVE_SECONDS = 5.0, 60.0
_CURVE_POINTS = 60

Curve = list[dict[str, float | int | None]]


class TargetMissed(InputError):
    """A finished model is worse on held-out texts than its target; the checkpoint is kept beside the output."""


class Plan(Protocol):
    """A training run: how long, at what rate, what is lost at each step, and what is measured on the way."""

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        ...

    @property
    def rate(self) -> float:
        """Peak learning rate."""
        ...

    @property
    def tokens(self) -> list[int]:
        """Tokens read in each step."""
        ...

    @property
    def probes(self) -> tuple[Probe, ...]:
        """What is measured on the way and at the end."""
        ...

    @property
    def evaluations(self) -> int:
        """How often it is measured."""
        ...

    def loss(self, model: PreTrainedModel, step: int) -> Float[Tensor, ""]:
        """The loss of a step."""
        ...

    def digest(self) -> bytes:
        """A hash of the plan."""
        ...


@dataclass(frozen=True)
class RowPlan:
    """Next-token prediction on packed rows (base, sft). ``masked``: segments of a row do not see each other."""

    rows: Rows
    order: Int64[np.ndarray, "steps rows"]
    masked: bool
    rate: float
    probes: tuple[Probe, ...]
    evaluations: int = 8

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return len(self.order)

    @property
    def tokens(self) -> list[int]:
        """Tokens of the rows of each step, padding included."""
        return [self.order.shape[1] * self.rows.ids.shape[1]] * self.steps

    @cached_property
    def _positions(self) -> Int64[np.ndarray, "rows length"] | None:
        return restarted_positions(self.rows.segments) if self.masked else None

    def loss(self, model: PreTrainedModel, step: int) -> Float[Tensor, ""]:
        """Weighted next-token loss of the rows of a step."""
        index = self.order[step]
        ids = torch.from_numpy(self.rows.ids[index]).long()
        weights = torch.from_numpy(self.rows.weights[index])
        if self._positions is None:
            return weighted_loss(model, ids, weights)
        mask = block_mask(torch.from_numpy(self.rows.segments[index]))
        return weighted_loss(model, ids, weights, mask, torch.from_numpy(self._positions[index]))

    def digest(self) -> bytes:
        """A hash of rows, order, rate and probes."""
        return digest_of(
            repr((self.masked, self.rate, self.probes, self.evaluations)),
            self.rows.ids, self.rows.weights, self.rows.segments, self.order,
        )  # fmt: skip


def digest_of(text: str, *arrays: np.ndarray) -> bytes:
    """SHA-256 of a text and some arrays."""
    digest = hashlib.sha256(text.encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()


def fingerprint(plan: Plan, model: PreTrainedModel) -> str:
    """A hash of everything a resumed run must share with the run it continues; ``model`` as it starts."""
    digest = hashlib.sha256(plan.digest())
    for name, parameter in model.named_parameters():
        digest.update(name.encode() + parameter.detach().numpy().tobytes())
    return digest.hexdigest()


def settle(threads: int) -> None:
    """Make torch's results repeatable: a fixed number of threads and deterministic kernels."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # Filling takes a tenth of a step, and nothing here is read before it is written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm-up over the first 2 % of the steps, constant, linear decay over the last 60 %."""
    warm = min(1.0, (step + 1) / max(1.0, _WARMUP * steps))
    return peak * warm * min(1.0, (steps - step) / (_DECAY * steps))


def block_mask(segments: Int64[Tensor, "rows length"]) -> Float[Tensor, "rows 1 length length"]:
    """Added to the scores: 0 where a position sees itself or an earlier one of its own segment, -inf elsewhere.

    Of booleans, attention would make these numbers anew in every layer.
    """
    same = segments[:, None, :, None] == segments[:, None, None, :]
    length = segments.shape[1]
    seen = same & torch.ones(length, length, dtype=torch.bool).tril()
    return torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)


def restarted_positions(segments: Int64[np.ndarray, "rows length"]) -> Int64[np.ndarray, "rows length"]:
    """Positions that count from 0 in every segment."""
    place = np.broadcast_to(np.arange(segments.shape[1]), segments.shape)
    begins = np.ones_like(segments, dtype=bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return place - np.maximum.accumulate(np.where(begins, place, 0), axis=1)


def weighted_loss(
    model: PreTrainedModel,
    ids: Int64[Tensor, "rows length"],
    weights: Float[Tensor, "rows length"],
    mask: Tensor | None = None,
    positions: Int64[Tensor, "rows length"] | None = None,
) -> Float[Tensor, ""]:
    """Mean next-token loss in nats, weighted by the target tokens' weights.

    Logits are computed only where the target has a weight: in instruction tuning that is a few per cent.
    """
    hidden = model.base_model(
        input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
    ).last_hidden_state
    wanted = weights[:, 1:].reshape(-1)
    index = wanted.nonzero().squeeze(1)
    chosen = hidden[:, :-1].reshape(-1, hidden.shape[-1]).index_select(0, index)
    targets = ids[:, 1:].reshape(-1).index_select(0, index)
    scale = wanted.index_select(0, index)
    return head_loss(chosen, model.get_output_embeddings().weight, targets, scale / scale.sum())


def reinitialise_unseen(model: PreTrainedModel, seen: Int64[np.ndarray, " n"], seed: int) -> int:
    """Give embeddings of tokens never seen so far the mean and spread of the seen ones; returns how many.

    Unseen rows of a tied embedding are only ever pushed away from the hidden states, and end up nearly identical.
    """
    weight = model.get_input_embeddings().weight
    unseen = torch.ones(len(weight), dtype=torch.bool)
    unseen[torch.from_numpy(np.unique(seen)).long()] = False
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        known = weight[~unseen]
        noise = torch.randn(int(unseen.sum()), weight.shape[1], generator=generator)
        weight[unseen] = known.mean(0) + known.std(0) * noise
    return int(unseen.sum())


@dataclass
class _State:
    """Where a run is: saved and restored as a whole. ``seconds``: spent on its steps, by all its processes."""

    step: int
    curve: Curve
    seconds: float


def _save(
    folder: Path, fingerprint: str, state: _State, model: PreTrainedModel, optimiser: torch.optim.Optimizer
) -> None:
    arrays: dict[str, Tensor] = {}
    for (name, parameter), values in zip(model.named_parameters(), _optimiser_values(model, optimiser), strict=True):
        arrays[f"parameter.{name}"] = parameter.detach()
        for key, value in values.items():
            arrays[f"{key}.{name}"] = value
    folder.mkdir(parents=True, exist_ok=True)
    name = f"state-{state.step}.safetensors"
    with replacing(folder / name) as temporary:
        save_file(arrays, str(temporary))
    write_json(
        folder / "state.json",
        {
            "fingerprint": fingerprint,
            "step": state.step,
            "seconds": state.seconds,
            "arrays": name,
            "curve": state.curve,
        },
    )
    for old in folder.glob("state-*.safetensors"):
        if old.name != name:
            old.unlink()


def _optimiser_values(model: PreTrainedModel, optimiser: torch.optim.Optimizer) -> list[dict[str, Tensor]]:
    return [optimiser.state.get(parameter, {}) for parameter in model.parameters()]


def _restore(folder: Path, fingerprint: str, model: PreTrainedModel, optimiser: torch.optim.Optimizer) -> _State:
    path = folder / "state.json"
    if not path.exists():
        return _State(0, [], 0.0)
    record = read_json(path)
    if record["fingerprint"] != fingerprint:
        log.info("%s belongs to other settings; starting again", path)
        return _State(0, [], 0.0)
    arrays = load_file(str(folder / record["arrays"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(arrays[f"parameter.{name}"])
            keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in arrays]
            optimiser.state[parameter] = {key: arrays[f"{key}.{name}"].clone() for key in keys}
    log.info("continuing at step %d", record["step"])
    return _State(record["step"], record["curve"], record["seconds"])


def train(model: PreTrainedModel, plan: Plan, work: Path, stop_after: int | None = None) -> Curve:
    """Train ``model`` in place and return its curve: step, tokens, loss, learning_rate and the held-out measures.

    A row's ``seconds`` were spent up to it, measuring included; of an interrupted run, by all its processes.

    ``work`` holds the checkpoint of an interrupted run; it is used when its fingerprint matches. ``stop_after`` ends
    the call after that step, with a checkpoint, as an interruption would.
    """
    steps = plan.steps
    parameters = list(model.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=plan.rate, betas=_BETAS, weight_decay=_WEIGHT_DECAY, fused=True)
    identity = fingerprint(plan, model)
    state = _restore(work, identity, model, optimiser)
    evaluated = {round(steps * (index + 1) / plan.evaluations) for index in range(plan.evaluations)}
    noted = evaluated | {round(steps * (index + 1) / _CURVE_POINTS) for index in range(_CURVE_POINTS)}
    read = np.cumsum(plan.tokens)
    begun = logged = saved = time.monotonic()
    first, before, running, since = state.step, state.seconds, torch.zeros(()), 0
    model.train()
    while state.step < steps:
        rate = learning_rate(state.step, steps, plan.rate)
        optimiser.param_groups[0]["lr"] = rate
        loss = plan.loss(model, state.step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, _CLIP)
        optimiser.step()
        state.step += 1
        running, since = running + loss.detach(), since + 1
        if state.step in noted:
            row: dict[str, float | int | None] = {
                "step": state.step,
                "tokens": int(read[state.step - 1]),
                "loss": float(loss.detach()),
                "learning_rate": rate,
            }
            if state.step in evaluated:
                measures = measure(model, plan.probes)
                row |= measures
                log.info("step %d: %s", state.step, " ".join(f"{name} {value:.2f}" for name, value in measures.items()))
            state.curve.append(row | {"seconds": round(before + time.monotonic() - begun, 3)})
        now = time.monotonic()
        if now - logged > _LOG_SECONDS or state.step == steps:
            speed = (state.step - first) / max(now - begun, 1e-9)
            left = (steps - state.step) / speed
            log.info(
                "step %d of %d, loss %.3f, %.0f tokens/s, %.0f s left",
                state.step, steps, float(running) / max(since, 1), speed * read[-1] / steps, left,
            )  # fmt: skip
            logged, running, since = now, torch.zeros(()), 0
        stopping = stop_after is not None and state.step >= stop_after
        if stopping or now - saved > _SAVE_SECONDS:
            state.seconds = before + now - begun
            _save(work, identity, state, model, optimiser)
            saved = now
        if stopping:
            break
    model.eval()
    return state.curve


def final_measures(curve: Curve, prefix: str) -> dict[str, float]:
    """The last held-out measures whose name starts with ``prefix``."""
    return {name: float(value or 0.0) for name, value in curve[-1].items() if name.startswith(prefix)}


def worst(measures: Mapping[str, float]) -> tuple[str, float]:
    """The lowest of several measures: (name, value)."""
    return min(measures.items(), key=lambda item: item[1])


def spread(total: int, shares: Sequence[float]) -> list[int]:
    """Split ``total`` into parts in proportion to ``shares``; the parts add up to it."""
    edges = np.round(np.cumsum([0.0, *shares]) / sum(shares) * total).astype(int)
    return [int(part) for part in np.diff(edges)]


def describe(curve: Curve) -> list[dict[str, Any]]:
    """The curve with every column in every row, for a table; without ``seconds``, which no second run would repeat."""
    columns = [name for name in dict.fromkeys(name for row in curve for name in row) if name != "seconds"]
    return [{name: row.get(name) for name in columns} for row in curve]


def throughput(curve: Curve) -> list[dict[str, Any]]:
    """step, tokens, seconds up to each row of the curve, and the tokens per second since the row before."""
    ends = [(float(row["tokens"] or 0), float(row["seconds"] or 0)) for row in curve]
    return [
        {"step": row["step"], "tokens": row["tokens"], "seconds": row["seconds"]}
        | {"tokens_per_second": round((tokens - before) / max(seconds - since, 1e-9))}
        for row, (tokens, seconds), (before, since) in zip(curve, ends, [(0.0, 0.0), *ends[:-1]], strict=True)
    ]
