"""Path tracing: what adds up exactly, and twins that must not."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from levelt.engine.frozen import Freezer, Frozen
from levelt.engine.last_token import read_last_token
from levelt.engine.paths import (
    Network,
    activity,
    backward,
    edge_totals,
    enumerate_paths,
    path_counts,
    ranks,
    source_totals,
    spread,
    transforms,
)
from levelt.files import InputError
from levelt.models.anatomy import locate
from levelt.models.loading import Decoder
from levelt.prompts.spans import Span, TokenGroups
from models_local import END, FAMILIES, tiny, tokenizer
from test_capture import Prompt

IDS = [11, 45, 23, 70, 8, 33, 90]
TARGET = 42
TOLERANCE = 1e-4
"""Relative to the largest logit: float32 sums of a few hundred terms, and the limit the issue names."""


def decoder(family: str, **changes) -> Decoder:
    model = tiny(family, attention="eager", **changes)
    return Decoder(model, locate(model), tokenizer(), (END,))


@cache
def frozen(family: str) -> tuple[Decoder, Frozen]:
    loaded = decoder(family)
    return loaded, Freezer(loaded)(IDS)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_all_paths_add_up_to_the_models_logits(family: str):
    """Any norm, norms before and behind, grouped queries, biases, parallel blocks, windows; seven tokens."""
    loaded, at = frozen(family)
    with torch.inference_mode():
        logits = loaded.model(torch.tensor([IDS]), use_cache=False).logits[0, -1]
    softcap = loaded.parts.softcap
    network = Network.of(at, "exact", None)
    totals = source_totals(network, spread(network))
    total = totals.sum(0)
    assert relative(softcap * torch.tanh(total / softcap) if softcap else total, logits) < TOLERANCE
    # each source matters, the biases too where there are any
    assert all(relative(total - totals[source], total) > 1e-3 for source in range(len(IDS)))


@pytest.mark.parametrize("family", ["llama", "gpt2", "olmo2", "qwen2", "cohere"])
def test_the_sum_breaks_with_one_thing_changed(family: str):
    """Attention weights, a norm's scale, an MLP factor, which key-value head serves a query head."""
    _, at = frozen(family)
    network = Network.of(at, "exact", None)
    right = source_totals(network, spread(network)).sum(0)
    layer = at.layers[1]

    def total(**changes) -> torch.Tensor:
        layers = (at.layers[0], replace(layer, **changes), *at.layers[2:])
        twin = Network.of(replace(at, layers=layers), "exact", None)
        return source_totals(twin, spread(twin)).sum(0)

    assert relative(total(), right) == 0
    factor = layer.factor.clone()
    factor[-1, 0] += 1
    assert relative(total(factor=factor), right) > 1e-3
    assert relative(total(weights=layer.weights.roll(1, 0)), right) > 1e-3
    assert relative(total(weights=torch.ones_like(layer.weights)), right) > 1e-3  # the released tracer's
    scale = "behind_attention_scale" if family == "olmo2" else "attention_scale"
    assert relative(total(**{scale: getattr(layer, scale) * 1.01}), right) > 1e-4
    if family in ("llama", "qwen2"):
        value = layer.of.value
        half = value.matrix.shape[1] // 2
        swapped = replace(layer.of, value=value.outputs(torch.arange(2 * half).roll(half)))
        assert relative(total(of=swapped), right) > 1e-3
    if family == "qwen2":
        unbiased = replace(layer.of.value, bias=torch.zeros_like(layer.of.value.bias))
        assert relative(total(of=replace(layer.of, value=unbiased)), right) > 1e-3


@pytest.mark.parametrize("mode", ["exact", "masked", "paper"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "olmo2", "gpt_neox"])
def test_totals_are_the_sum_of_enumerated_paths(family: str, mode: str):
    """By a pass forward, by a pass backward, and path by path; and paths are as many as counted."""
    _, at = frozen(family)
    for keys in (1, 2, *([None] if mode == "exact" else [])):
        network = Network.of(at, mode, keys)
        tokens = range(len(IDS))
        paths = enumerate_paths(network, tokens, TARGET)
        forward = source_totals(network, spread(network))[:-1, TARGET]
        summed = torch.zeros(len(IDS)).index_add_(0, paths.tokens[:, 0], paths.logit)
        assert relative(summed, forward) < TOLERANCE
        assert relative(backward(network, TARGET).sources, forward) < TOLERANCE
        counted = torch.bincount(paths.tokens[:, 0], minlength=len(IDS)).double()
        assert torch.equal(counted, path_counts(network))
        # twins: without one path; of another mode
        strongest = int(paths.logit.abs().argmax())
        less = summed.clone()
        less[paths.tokens[strongest, 0]] -= paths.logit[strongest]
        assert relative(less, forward) > 1e-3
        other = Network.of(at, "masked" if mode != "masked" else "exact", keys or 1)
        assert relative(backward(other, TARGET).sources, forward) > 1e-3


def test_chunks_change_nothing():
    _, at = frozen("llama")
    network = Network.of(at, "exact", 2)
    whole, parts = (enumerate_paths(network, range(len(IDS)), TARGET, chunk=chunk) for chunk in (4096, 3))
    assert torch.equal(whole.tokens, parts.tokens) and torch.equal(whole.rank, parts.rank)
    assert relative(parts.logit, whole.logit) < 1e-5
    assert torch.equal(enumerate_paths(network, [2], TARGET).tokens, whole.tokens[whole.tokens[:, 0] == 2])


@pytest.mark.parametrize("mode", ["exact", "masked", "paper"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "olmo2", "gemma2", "gpt_neox"])
def test_vector_and_matrix_agree(family: str, mode: str):
    _, at = frozen(family)
    network = Network.of(at, mode, 2)
    paths = enumerate_paths(network, range(len(IDS)), TARGET)
    matrices = transforms(network, paths.tokens)
    ends = torch.einsum("pd,pde->pe", at.embedding[paths.tokens[:, 0]], matrices)
    assert relative(at.readout(ends)[:, TARGET], paths.logit) < TOLERANCE
    wrong = torch.einsum("pd,pde->pe", at.embedding[(paths.tokens[:, 0] + 1) % len(IDS)], matrices)
    assert relative(at.readout(wrong)[:, TARGET], paths.logit) > 1e-3


@pytest.mark.parametrize("family", ["llama", "olmo2", "qwen2", "gpt2", "gpt_neox"])
def test_edges_of_a_layer_and_what_stays_are_the_whole(family: str):
    """Cut a layer: what its heads' edges carry and what stays (with its MLP) is each source's total."""
    _, at = frozen(family)
    network = Network.of(at, "exact", None)
    states, read = spread(network), backward(network, TARGET)
    totals = source_totals(network, states)[:, TARGET]
    for source in (0, 3):
        edges = edge_totals(network, read, states, [source])
        for layer in range(3):
            weights = at.layers[layer].weights
            closed = replace(at.layers[layer], weights=torch.zeros_like(weights))
            without = replace(at, layers=(*at.layers[:layer], closed, *at.layers[layer + 1 :]))
            left = source_totals(network_of := Network.of(without, "exact", None), spread(network_of))[source, TARGET]
            assert abs(edges[layer].sum() + left - totals[source]) < TOLERANCE * totals.abs().max()
            assert abs(edges[layer, 1:].sum() + left - totals[source]) > 1e-4 * totals.abs().max()


def test_one_token_is_a_single_path_in_every_mode():
    """The released tracer's own test: with one token, attention is one, and paper, masked and exact agree."""
    loaded = decoder("mistral", num_key_value_heads=4)
    at = Freezer(loaded)([17])
    with torch.inference_mode():
        logits = loaded.model(torch.tensor([[17]]), use_cache=False).logits[0, -1]
    for mode in ("exact", "masked", "paper"):
        network = Network.of(at, mode, 1)
        paths = enumerate_paths(network, [0], TARGET)
        assert len(paths.tokens) == 1
        assert relative(paths.logit, logits[[TARGET]]) < TOLERANCE
        assert int(paths.rank) == int((logits.argsort(descending=True) == TARGET).nonzero()) + 1
    # with more tokens, paper does not add up
    _, many = frozen("llama")
    network = Network.of(many, "paper", 1)
    assert relative(source_totals(network, spread(network)).sum(0), many.logits) > 0.1


def test_rank_by_count_is_rank_by_sort():
    logits = torch.randn(5, 200, generator=torch.Generator().manual_seed(0))
    own = logits[:, 7]
    by_sort = (logits.argsort(1, descending=True) == 7).nonzero()[:, 1] + 1
    assert torch.equal(ranks(logits, own), by_sort)
    assert not torch.equal(ranks(logits, logits[:, 8]), by_sort)


def test_activity_counts_the_heads_of_a_paths_edges():
    _, at = frozen("llama")
    network = Network.of(at, "masked", 1)
    paths = enumerate_paths(network, range(len(IDS)), TARGET).tokens[:5]
    by_hand = torch.zeros(3, 4)
    for path in paths.tolist():
        for layer in range(3):
            for head in range(4):
                key = int(at.layers[layer].weights[head, path[layer + 1]].argmax())
                by_hand[layer, head] += key == path[layer]
    assert torch.allclose(activity(network, paths), by_hand / 5)


def test_what_cannot_be_traced_is_refused():
    model = tiny("llama")
    with pytest.raises(InputError, match="eager"):
        Freezer(Decoder(model, locate(model), tokenizer(), (END,)))
    _, at = frozen("llama")
    with pytest.raises(InputError, match="number of keys"):
        Network.of(at, "masked", None)
    freezer = Freezer(decoder("llama"))
    object.__setattr__(freezer.layers[1].value, "matrix", freezer.layers[1].value.matrix * 1.1)
    with pytest.raises(InputError, match="layer 1 of this llama model, frozen, differs"):
        freezer(IDS)


def over_one_edge(at: Frozen, layer: int, key: int, mixed: int | None = None) -> torch.Tensor:
    """Logits of all paths that reach the last token by one attention edge and then stay in its residual, over heads.

    mixed: take what is handed on from this position instead, under the same weights.
    """
    network = Network.of(at, "exact", None)
    arrived = spread(network)[layer].sum(0)  # of all sources, biases among them: the residual
    frozen_layer, source = at.layers[layer], torch.tensor([key if mixed is None else mixed])
    norm, of = frozen_layer.of.attention_norm, frozen_layer.of
    values = frozen_layer.values(arrived[source], source)
    bias = (of.value.bias + (norm.bias @ of.value.matrix if norm else 0)).view(-1, values.shape[-1])
    values = values + bias.repeat_interleave(values.shape[-2] // len(bias), 0)  # paths that begin on the edge
    z = network.weights(layer)[:, -1, key][None, :, None] * values
    return at.readout(frozen_layer.projected(z, torch.tensor([len(IDS) - 1])))[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_paths_over_one_edge_into_the_last_token_are_the_token_lens(family: str):
    """The tracer of this study and the lens of the next one, in every layer; a twin hands on another token's value."""
    loaded, at = frozen(family)
    edges = {"first": 0, "second": 3, "last": len(IDS) - 1}
    groups = TokenGroups(tuple(Span(name, key, key + 1) for name, key in edges.items()))
    tokens = [TARGET, 7, 19]
    lens = read_last_token(loaded, [Prompt(IDS, groups)], [tokens], list(edges)).lens[0]
    size = float(torch.tensor(lens).abs().max())
    for layer in range(len(at.layers)):
        for group, key in enumerate(edges.values()):
            expected = torch.from_numpy(lens[layer, group])
            assert float((over_one_edge(at, layer, key)[tokens] - expected).abs().max()) < TOLERANCE * size
    twin = over_one_edge(at, 1, 3, mixed=2)[tokens]
    assert float((twin - torch.from_numpy(lens[1, 1])).abs().max()) > 1e-2 * size
