"""Paths of tokens through a frozen decoder: what each source token, edge and path puts into the answer's logit.

The layered graph has a node (l, t) for every token t below (l = 0) and above each layer; a path starts at a source
token's embedding and ends at the last token above the last layer. An edge of a layer goes from k to q >= k. What
travels along an edge is linear, because the network is frozen (`levelt.engine.frozen`).

Modes (x: what the path carries; q's MLP follows in each):

exact: an edge carries  [k = q] x + sum over heads A[h, q, k] O_h V_h x:  the sum over all paths, the biases' paths
    included, is the model's logit, for any number of tokens.
masked: as exact, with hard attention: each head's ``keys`` strongest keys at q have weight one, all others zero.
paper: the released tracer. Edges as in masked; but each carries x + sum over *all* heads O_h V_h x, without attention
    weights, and the residual also jumps from k to q; a token always has an edge to itself, which applies all heads
    too; biases are left out. Its sum is not the logit.

Totals need no enumeration (a forward or a backward pass through the frozen network); enumeration is for ranks, which
are not sums, and visits only prefixes that reach the last token, each once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from levelt.engine.frozen import Frozen, FrozenLayer
from levelt.files import InputError

Mode = Literal["exact", "masked", "paper"]


@dataclass(frozen=True)
class Network:
    """A frozen decoder with the edges that count.

    mode: what an edge carries. masks: [layers, heads, query, key] which keys are among a head's strongest. edges:
    [layers, query, key]: where a path may go: masks of any head, and every token to itself; all that causality allows
    if keys is None.
    """

    frozen: Frozen
    mode: Mode
    masks: Bool[Tensor, "layers heads query key"]
    edges: Bool[Tensor, "layers query key"]

    @classmethod
    def of(cls, frozen: Frozen, mode: Mode, keys: int | None = 1) -> Network:
        """The network of a mode, with the ``keys`` strongest keys of each head and position as edges.

        Args:
            keys: None: all edges that causality allows (exact only); the masks are then those of one key.

        Raises:
            InputError: all edges are asked for in a mode of hard attention.
        """
        if keys is None and mode != "exact":
            raise InputError(f"paths: the mode {mode} needs a number of keys for each head")
        weights = torch.stack([layer.weights for layer in frozen.layers])
        tokens = weights.shape[-1]
        top = weights.topk(min(keys or 1, tokens), dim=-1)
        masks = torch.zeros_like(weights, dtype=torch.bool).scatter_(-1, top.indices, top.values > 0)
        own = torch.eye(tokens, dtype=torch.bool, device=weights.device)
        edges = masks.any(1) | own
        if keys is None:
            edges = torch.ones_like(edges).tril()
        return cls(frozen, mode, masks, edges)

    def weights(self, layer: int) -> Float[Tensor, "heads query key"]:
        """How much of a key's value each head hands on, under the mode; zero off the edges."""
        match self.mode:
            case "exact":
                return torch.where(self.edges[layer], self.frozen.layers[layer].weights, 0.0)
            case "masked":
                return self.masks[layer].float()
            case "paper":
                return self.edges[layer].float().expand(self.masks.shape[1], -1, -1)

    def stays(self, layer: int) -> Float[Tensor, "query key"]:
        """How much of the residual itself an edge carries."""
        own = torch.eye(self.edges.shape[-1], device=self.edges.device)
        return self.edges[layer].float() if self.mode == "paper" else own

    def _between(self, layer: int, x: Float[Tensor, "*any token d"]) -> tuple[Tensor, Tensor]:
        """What arrives at every position: the residual, and the heads' outputs."""
        every = torch.arange(x.shape[-2], device=x.device)
        values = self.frozen.layers[layer].values(x, every)
        return self.stays(layer) @ x, torch.einsum("hqk,...khw->...qhw", self.weights(layer), values)

    def _out(self, layer: int, skip: Float[Tensor, "*any token d"], z: Float[Tensor, "*any token h w"]) -> Tensor:
        """The residual above a layer from what arrived."""
        at = torch.arange(skip.shape[-2], device=skip.device)
        return _through(self.frozen.layers[layer], skip, z, at)


def _through(
    layer: FrozenLayer, skip: Float[Tensor, "*any d"], z: Float[Tensor, "*any h w"], at: Int[Tensor, "*any"]
) -> Float[Tensor, "*any d"]:
    middle = skip + layer.projected(z, at)
    return middle + layer.mlp(skip if layer.parallel else middle, at)


# --- totals ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def spread(network: Network) -> list[Float[Tensor, "source token d"]]:
    """What each source token has put into the residual of every token, above each layer (entry 0: the embeddings).

    The last source is the biases (nothing in the mode paper, which leaves them out). One pass per source, in a batch.
    """
    frozen = network.frozen
    tokens, width = frozen.embedding.shape
    x = torch.zeros(tokens + 1, tokens, width, device=frozen.embedding.device)
    x[torch.arange(tokens), torch.arange(tokens)] = frozen.embedding
    states = [x]
    for index, layer in enumerate(frozen.layers):
        skip, z = network._between(index, x)
        if network.mode != "paper":
            from_attention, from_mlp = layer.constants()
            if not layer.parallel:
                skip[-1] += from_attention
            x = network._out(index, skip, z)
            x[-1] += from_mlp + (from_attention if layer.parallel else 0)
        else:
            x = network._out(index, skip, z)
        states.append(x)
    return states


def source_totals(network: Network, states: Sequence[Tensor]) -> Float[Tensor, "source vocabulary"]:
    """The logits that all paths from each source add up to; the biases of the final norm go to the last source."""
    logits = network.frozen.readout(states[-1][:, -1])
    if network.mode != "paper":
        logits[-1] += network.frozen.constant_logits()
    return logits


@dataclass(frozen=True)
class Backward:
    """Directions in which the network reads one logit.

    sources: [T] what all paths from each token put into the logit (the same numbers as `source_totals`).
    heads: per layer [query, heads, width]: what one unit of a head's output at a position puts into it.
    """

    sources: Float[Tensor, " token"]
    heads: tuple[Float[Tensor, "query heads width"], ...]


@torch.no_grad()
def backward(network: Network, target: int) -> Backward:
    """Follow one logit back to the embeddings: every token's total, in one pass.

    Args:
        target: token id.
    """
    frozen = network.frozen
    tokens, width = frozen.embedding.shape
    column = frozen.head.matrix[:, target]
    direction = torch.zeros(tokens, width, device=column.device)
    direction[-1] = frozen.norm.transposed(column) * frozen.norm.scale(frozen.final) * frozen.logit_scale
    heads: list[Tensor] = []
    for index in reversed(range(len(frozen.layers))):
        layer = frozen.layers[index]
        zero = torch.zeros_like(direction)
        shape = (tokens, *layer.of.out.shape[:2])
        at_skip, at_heads = _pulled(partial(network._out, index), (zero, zero.new_zeros(shape)), direction)
        (direction,) = _pulled(partial(network._between, index), (zero,), (at_skip, at_heads))
        heads.append(at_heads)
    return Backward((direction * frozen.embedding).sum(-1), tuple(reversed(heads)))


def _pulled(function: Any, inputs: tuple[Tensor, ...], cotangent: Any) -> tuple[Tensor, ...]:
    """What a change of the outputs along ``cotangent`` means for each input of a linear function."""
    pulled: tuple[Tensor, ...] = torch.func.vjp(function, *inputs)[1](cotangent)
    return pulled


@torch.no_grad()
def edge_totals(
    network: Network, read: Backward, states: Sequence[Tensor], sources: Sequence[int] | None = None
) -> Float[Tensor, "layers heads query key"]:
    """What all paths through each head's edge (those of some source tokens, or of all) put into the logit of ``read``.

    Without sources, what travels includes the biases' paths, but not the value bias that starts at the edge itself.
    """
    found = []
    for index, layer in enumerate(network.frozen.layers):
        x = (states[index] if sources is None else states[index][list(sources)]).sum(0)
        values = layer.values(x, torch.arange(len(x), device=x.device))
        found.append(network.weights(index) * torch.einsum("qhw,khw->hqk", read.heads[index], values))
    return torch.stack(found)


# --- paths ----------------------------------------------------------------------------------------------------------


def path_counts(network: Network) -> Float[Tensor, " source"]:
    """How many paths lead from each token to the last one, by products of edge matrices."""
    counts = torch.zeros(network.edges.shape[-1], dtype=torch.float64)
    counts[-1] = 1
    for edges in network.edges.cpu().flip(0):
        counts = edges.to(torch.float64).T @ counts
    return counts


@dataclass(frozen=True)
class Paths:
    """Enumerated paths. tokens: [paths, layers + 1] from source to last token. logit, rank: of the target, along it."""

    tokens: Int[Tensor, "paths nodes"]
    logit: Float[Tensor, " paths"]
    rank: Int[Tensor, " paths"]


@torch.no_grad()
def enumerate_paths(network: Network, sources: Sequence[int], target: int, chunk: int = 4096) -> Paths:
    """Every path from the given tokens, with the target's logit and rank if the path alone were read out.

    Prefixes are extended layer by layer, each once for all paths that share it, and only along edges from which the
    last token can be reached; ``chunk`` prefixes at a time, so that memory does not grow with the number of paths.

    Args:
        sources: source tokens.
        target: token id.
    """
    edges = network.edges
    layers, tokens = edges.shape[:2]
    reached = torch.zeros(layers + 1, tokens, dtype=torch.bool, device=edges.device)
    reached[-1, -1] = True
    for layer in reversed(range(layers)):
        reached[layer] = (edges[layer] & reached[layer + 1][:, None]).any(0)
    start = torch.tensor([at for at in sources if reached[0, at]], dtype=torch.int64, device=edges.device)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    pending = [(0, start[:, None], network.frozen.embedding[start])]
    while pending:
        layer, path, x = pending.pop()
        if len(path) > chunk:
            cuts = range(0, len(path), chunk)
            pending += [(layer, path[cut : cut + chunk], x[cut : cut + chunk]) for cut in cuts]
        elif layer == layers:
            logits = network.frozen.readout(x)
            own = logits[:, target]
            found.append((path, own, ranks(logits, own)))
        elif len(path):
            allowed = edges[layer].T[path[:, -1]] & reached[layer + 1]
            parent, child = allowed.nonzero(as_tuple=True)
            state = _step(network, layer, path[parent, -1], child, x[parent])
            pending.append((layer + 1, torch.cat([path[parent], child[:, None]], 1), state))
    if not found:
        empty = torch.zeros(0, device=edges.device)
        return Paths(torch.zeros(0, layers + 1, dtype=torch.int64, device=edges.device), empty, empty.long())
    path, logit, rank = (torch.cat(part) for part in zip(*found, strict=True))
    order = _lexicographic(path, tokens)
    return Paths(path[order], logit[order], rank[order])


def _lexicographic(path: Int[Tensor, "paths nodes"], tokens: int) -> Int[Tensor, " paths"]:
    order = torch.arange(len(path), device=path.device)
    for column in reversed(range(path.shape[1])):
        order = order[torch.argsort(path[order, column], stable=True)]
    return order


def _step(
    network: Network,
    layer: int,
    k: Int[Tensor, " paths"],
    q: Int[Tensor, " paths"],
    x: Float[Tensor, "paths *basis d"],
) -> Float[Tensor, "paths *basis d"]:
    """Along one edge each: what leaves position q above the layer, of what was at k below it."""
    between = (slice(None), *[None] * (x.dim() - 2))
    at_k, at_q = k[between], q[between]
    shares = network.weights(layer)[:, q, k].T[between]  # [paths, (basis,) heads]
    z = network.frozen.layers[layer].values(x, at_k) * shares[..., None]
    skip = network.stays(layer)[q, k][between][..., None] * x
    return _through(network.frozen.layers[layer], skip, z, at_q)


@torch.no_grad()
def transforms(network: Network, paths: Int[Tensor, "paths nodes"]) -> Float[Tensor, "paths d d"]:
    """The matrix of each path (the mode "matrix" of the released tracer): embedding @ matrix is what arrives."""
    width = network.frozen.embedding.shape[1]
    x = torch.eye(width, device=network.frozen.embedding.device).expand(len(paths), -1, -1)
    for layer in range(len(network.frozen.layers)):
        x = _step(network, layer, paths[:, layer], paths[:, layer + 1], x)
    return x


def ranks(logits: Float[Tensor, "*any vocabulary"], own: Float[Tensor, " *any"]) -> Int[Tensor, " *any"]:
    """Rank of a logit among all of its row, from 1: one more than the number of larger ones; ties share the best."""
    return (logits > own[..., None]).sum(-1) + 1


def activity(network: Network, paths: Int[Tensor, "paths nodes"]) -> Float[Tensor, "layers heads"]:
    """For each head, the share of the paths whose edge in its layer is one of the head's strongest keys."""
    layers = torch.arange(len(network.frozen.layers), device=paths.device)
    used = network.masks[layers[:, None], :, paths[:, 1:].T, paths[:, :-1].T]  # [layers, paths, heads]
    return used.float().mean(1)
