"""The last token taken apart, knockouts and causal tracing, against hooks and algebra written here.

Oracles run one unpadded prompt at a time, the whole prompt, through Hugging Face's own eager attention; weights are
zeroed behind the softmax by an attention function of this file. Tolerance: 1e-5 of the largest expected value, float32
(measured: below 1e-6); twins differ by more than 1e-3.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from levelt.engine.capture import Read, capture
from levelt.engine.last_token import REST, Knockout, LastToken, read_last_token
from levelt.engine.lens import decode_captured
from levelt.engine.tracing import SITES, Disturbed, embedding_spread, trace, windows
from levelt.files import InputError
from levelt.models.linear import FrozenNorm, head_matrices
from levelt.prompts.spans import Span, TokenGroups
from models_local import FAMILIES, VOCABULARY, ragged
from test_capture import LAYERS, WIDTH, Prompt, decoder, gap

TOLERANCE = 1e-5
LENGTHS = [11, 9, 17, 9, 11, 31]
GROUPS = ("subject", "answer_1", "decision")
TOKENS = np.array([[10 + row, 20 + row, 30] for row in range(len(LENGTHS))])


def prompt(ids: Sequence[int], row: int) -> Prompt:
    last = len(ids) - 1
    spans = Span("subject", 1 + row % 2, 3), Span("answer_1", last - 4, last - 2), Span("decision", last, last + 1)
    return Prompt(ids, TokenGroups(spans))


PROMPTS = [prompt(ids, row) for row, ids in enumerate(ragged(LENGTHS))]
NOTHING, SUBJECT, ANSWER = Knockout(()), Knockout(("subject",)), Knockout(("answer_1",))
BOTH, ALL = Knockout(("subject", "answer_1")), Knockout((*GROUPS, REST))
SCALED = Knockout(("subject", "answer_1"), renormalise=True)
KNOCKOUTS = (NOTHING, SUBJECT, ANSWER, BOTH, ALL, SCALED)


@cache
def read(family: str) -> LastToken:
    return read_last_token(decoder(family), PROMPTS, TOKENS, GROUPS, KNOCKOUTS, batch_tokens=60)


def positions(row: int, names: Sequence[str]) -> list[int]:
    groups = PROMPTS[row].groups
    named = {t: span.name for span in groups for t in range(span.start, span.stop)}
    return [t for t in range(LENGTHS[row]) if named.get(t, REST) in names]


# --- an oracle: the whole prompt with weights zeroed behind the softmax ---------------------------------------------

REMOVED: list[int] = []
RENORMALISE = [False]
SEEN: list[tuple[torch.Tensor, torch.Tensor]] = []


def zeroed(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **others: Any) -> Any:
    run: Callable[..., Any] = sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[attr-defined]
    mixed, weights = run(module, query, key, value, attention_mask, **others)
    weights, value = weights.clone(), value.repeat_interleave(weights.shape[1] // value.shape[1], 1)
    weights[:, :, -1, REMOVED] = 0
    if RENORMALISE[0]:
        weights[:, :, -1] /= weights[:, :, -1].sum(-1, keepdim=True)
    SEEN.append((weights[0, :, -1], value[0]))
    mixed = mixed.clone()
    mixed[:, -1] = torch.einsum("hk,hkw->hw", weights[0, :, -1], value[0])
    return mixed, weights


AttentionInterface.register("test_zeroed", zeroed)
AttentionMaskInterface.register("test_zeroed", eager_mask)


@torch.inference_mode()
def oracle(family: str, row: int, removed: Sequence[int], renormalise: bool = False) -> dict[str, Any]:
    """Contributions [layers, d] at the last position, its weights and values, and the final residual [d]."""
    model, parts = decoder(family).model, decoder(family).parts
    before = model.config._attn_implementation
    found: dict[str, Any] = {"attention": [], "mlp": [], "last": [], "projected": []}
    SEEN.clear()
    REMOVED[:], RENORMALISE[0] = removed, renormalise

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            found[name].append((output[0] if isinstance(output, tuple) else output)[0, -1])

        return hook

    with ExitStack() as stack:
        for name, modules in (
            ("attention", parts.attention_contribution),
            ("mlp", parts.mlp_contribution),
            ("last", parts.layers[-1:]),
            ("projected", parts.projection),
        ):
            for module in modules:
                stack.callback(module.register_forward_hook(keep(name)).remove)
        stack.callback(model.set_attn_implementation, before)
        model.set_attn_implementation("test_zeroed")
        found["logits"] = model(torch.tensor([list(PROMPTS[row].input_ids)]), use_cache=False).logits[0, -1]
    return found | {"seen": list(SEEN)}


def decoded(family: str, vectors: Any, last: torch.Tensor, row: int) -> np.ndarray:
    parts = decoder(family).parts
    norm = FrozenNorm.of(parts.final_norm, parts.norm)
    normed = norm.linear(torch.stack(list(vectors))) * norm.scale(last)
    with torch.inference_mode():
        return (normed @ parts.head.weight[TOKENS[row]].float().T * parts.logit_scale).numpy()


# --- decode, token lens, heads --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_components_are_those_of_the_component_lens_and_add_up(family: str):
    found = read(family)
    reads = [Read(site, "decision") for site in ("residual", "attention", "mlp", "head")]
    parts = decode_captured(decoder(family).parts, capture(decoder(family), PROMPTS, reads), "decision", TOKENS)
    assert gap(found.embedding, parts.components["embedding"]) < TOLERANCE
    assert gap(found.mlp, parts.components["mlp"]) < TOLERANCE
    assert gap(found.heads, parts.components["head"]) < TOLERANCE
    assert gap(found.attention, parts.components["head"].sum(2) + parts.components["attention_bias"]) < TOLERANCE
    assert gap(found.linear, parts.linear) < TOLERANCE
    total = found.embedding + found.attention.sum(1) + found.mlp.sum(1) + found.constant
    assert gap(total, found.linear) < TOLERANCE
    assert gap(total - found.mlp[:, 1], found.linear) > 1e-2  # twin: a layer less


@pytest.mark.parametrize("family", FAMILIES)
def test_lens_of_a_partition_and_heads_add_up_to_attention(family: str):
    found = read(family)
    # what is left is the projection's bias, the same whatever the prompt says once the norms' scales are taken off
    left = found.attention - found.lens.sum(2)
    assert gap(found.lens.sum(2), found.heads.sum(2)) < TOLERANCE
    projection = decoder(family).parts.projection[0]
    if getattr(projection, "bias", None) is None:
        assert np.abs(left).max() < TOLERANCE * np.abs(found.attention).max()
    else:
        assert np.abs(left).max() > 1e-3
    # twins: one group less, and the projection transposed as released
    assert gap(found.lens[:, :, :-1].sum(2), found.heads.sum(2)) > 1e-2
    if found.heads_as_released is not None:
        assert gap(found.heads_as_released.sum(2), found.heads.sum(2)) > 1e-1
    assert gap(found.weights.sum(2), np.ones_like(found.weights[..., 0])) < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_lens_is_the_published_formula_with_weights_and_values_of_an_eager_run(family: str):
    """Grouped key-value heads, sliding windows and post-norms included."""
    found, parts = read(family), decoder(family).parts
    for row in (0, 2):
        plain = oracle(family, row, [])
        for index, name in enumerate((*GROUPS, REST)):
            own, other = positions(row, [name]), positions(row, [GROUPS[index - 1]])
            for which, same in ((own, True), (other, False)):
                vectors = []
                for layer, (weights, values) in enumerate(plain["seen"]):
                    heads = torch.einsum("hk,hkw->hw", weights[:, which], values[:, which])
                    added = torch.einsum("hw,hwd->d", heads, head_matrices(parts.projection[layer], parts.heads))
                    if parts.attention_contribution[layer] is not parts.attention[layer]:
                        frozen = FrozenNorm.of(parts.attention_contribution[layer], parts.norm)
                        added = frozen.linear(added) * frozen.scale(plain["projected"][layer])
                    vectors.append(added)
                expected = decoded(family, vectors, plain["last"][0], row)
                error = np.abs(found.lens[row, :, index] - expected).max() / np.abs(found.attention[row]).max()
                assert (error < TOLERANCE) == same, (row, name)


@pytest.mark.parametrize("family", ["llama", "olmo2"])
def test_transposed_projection_is_what_the_released_code_computes(family: str):
    found, parts = read(family), decoder(family).parts
    assert found.heads_as_released is not None
    plain = oracle(family, 0, [])
    for layer, (weights, values) in enumerate(plain["seen"]):
        heads = torch.einsum("hk,hkw->hw", weights, values)
        view = parts.projection[layer].weight.detach().view(4, -1, WIDTH)  # rows, as released
        added = torch.einsum("hw,hwd->hd", heads, view)
        if parts.attention_contribution[layer] is not parts.attention[layer]:
            frozen = FrozenNorm.of(parts.attention_contribution[layer], parts.norm)
            added = frozen.linear(added) * frozen.scale(plain["projected"][layer])
        assert gap(found.heads_as_released[0, layer], decoded(family, added, plain["last"][0], 0)) < TOLERANCE


def test_predicted_is_the_models_greedy_token():
    with torch.inference_mode():
        model = decoder("llama").model
        expected = [int(model(torch.tensor([list(one.input_ids)])).logits[0, -1].argmax()) for one in PROMPTS]
    assert read("llama").predicted.tolist() == expected


# --- knockout -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_knockout_is_zeroing_weights_behind_the_softmax_in_every_layer(family: str):
    found = read(family)
    for index, knockout in enumerate(KNOCKOUTS):
        for row in (0, 5):
            gone = positions(row, knockout.groups)
            expected = oracle(family, row, gone, knockout.renormalise)
            last = expected["last"][0]
            for name in ("attention", "mlp"):
                mine = getattr(found, f"knocked_{name}")[row, index]
                scale = np.abs(getattr(found, name)[row]).max()
                assert np.abs(mine - decoded(family, expected[name], last, row)).max() < TOLERANCE * scale
            cap = decoder(family).parts.softcap
            linear = found.knocked_linear[row, index]
            capped = linear if cap is None else cap * np.tanh(linear / cap)
            assert gap(capped, expected["logits"][TOKENS[row]].float().numpy()) < TOLERANCE
            if gone and index != KNOCKOUTS.index(ALL):  # twin: one position fewer
                other = oracle(family, row, gone[1:], knockout.renormalise)
                wrong = decoded(family, other["mlp"], other["last"][0], row)
                # in a model of windows the position may be out of sight in every layer
                seen = any(float(weights[:, gone[0]].abs().max()) > 0 for weights, _ in oracle(family, row, [])["seen"])
                assert not seen or np.abs(found.knocked_mlp[row, index] - wrong).max() > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_empty_knockout_is_no_op_and_full_knockout_leaves_the_bias(family: str):
    found, parts = read(family), decoder(family).parts
    empty, full = KNOCKOUTS.index(NOTHING), KNOCKOUTS.index(ALL)
    assert gap(found.knocked_mlp[:, empty], found.mlp) < TOLERANCE
    assert gap(found.knocked_linear[:, empty], found.linear) < TOLERANCE
    assert gap(found.knocked_mlp[:, KNOCKOUTS.index(ANSWER)], found.mlp) > 1e-3  # twin; windows see it
    for row in (0, 1):
        expected = []
        for layer, projection in enumerate(parts.projection):
            bias = getattr(projection, "bias", None)
            bias = torch.zeros(WIDTH) if bias is None else bias.detach()
            norm = parts.attention_contribution[layer]
            expected.append(bias if norm is parts.attention[layer] else norm(bias).detach())
        last = oracle(family, row, range(LENGTHS[row]))["last"][0]
        wanted = decoded(family, expected, last, row)
        assert np.abs(found.knocked_attention[row, full] - wanted).max() < TOLERANCE * np.abs(found.attention).max()


def test_renormalised_knockout_differs_and_needs_something_left():
    found = read("llama")
    published, scaled = (found.knocked_mlp[:, KNOCKOUTS.index(one)] for one in (BOTH, SCALED))
    assert gap(published, scaled) > 1e-3
    with pytest.raises(InputError, match="nothing is left to attend to"):
        read_last_token(decoder("llama"), PROMPTS, TOKENS, GROUPS, [Knockout((*GROUPS, REST), renormalise=True)])


@pytest.mark.parametrize("family", ["llama", "gpt2", "olmo2", "olmo3"])
def test_batches_do_not_matter(family: str):
    together = read_last_token(decoder(family), PROMPTS, TOKENS, GROUPS, KNOCKOUTS)
    for row, one in enumerate(PROMPTS):
        alone = read_last_token(decoder(family), [one], TOKENS[row : row + 1], GROUPS, KNOCKOUTS)
        for name in ("lens", "heads", "mlp", "knocked_mlp", "linear"):
            assert gap(getattr(together, name)[row], getattr(alone, name)[0]) < TOLERANCE, name


def test_the_kernel_is_put_back_and_bad_requests_are_refused():
    model = decoder("llama").model
    before = model.config._attn_implementation
    read("llama")
    assert model.config._attn_implementation == before
    overlapping = Prompt(PROMPTS[0].input_ids, TokenGroups((Span("subject", 1, 4), Span("decision", 3, 5))))
    for arguments, sentence in (
        (([], TOKENS, GROUPS), "expected a list of token ids for each of 0 prompts"),
        ((PROMPTS, TOKENS[:2], GROUPS), "for each of 6 prompts"),
        ((PROMPTS, TOKENS + VOCABULARY, GROUPS), "outside the vocabulary"),
        ((PROMPTS, TOKENS, ("subject", "nowhere")), "has no token group nowhere"),
        ((PROMPTS, TOKENS, ("subject", "subject")), "each once"),
        ((PROMPTS, TOKENS, GROUPS, [Knockout(("elsewhere",))]), "elsewhere"),
        (([overlapping], TOKENS[:1], ("subject", "decision")), "overlaps another group"),
    ):
        with pytest.raises(InputError, match=sentence):
            read_last_token(decoder("llama"), *arguments)
    assert model.config._attn_implementation == before


# --- causal tracing -------------------------------------------------------------------------------------------------

DRAWS = 3
RANGES = [(1, 3), (3, 4), (6, 8), (1, 3), (0, 2), (20, 24)]


def disturbed(row: int, spread: float = 1.5) -> Disturbed:
    start, stop = RANGES[row]
    noise = np.random.default_rng(row).standard_normal((DRAWS, stop - start, WIDTH)).astype(np.float32) * spread
    return Disturbed(PROMPTS[row].input_ids, start, stop, int(TOKENS[row, 0]), noise)


@contextmanager
def overwriting(modules: Sequence[Any], layers: Sequence[int], tokens: Sequence[int], clean: Any) -> Iterator[None]:
    with ExitStack() as stack:
        for layer in layers:

            def write(_module: Any, _inputs: Any, output: Any, layer: int = layer) -> Any:
                hidden = (output[0] if isinstance(output, tuple) else output).clone()
                hidden[:, tokens] = clean[layer][:, tokens]
                return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

            stack.callback(modules[layer].register_forward_hook(write).remove)
        yield


@torch.inference_mode()
def naive(family: str, one: Disturbed, cells: Sequence[tuple[str, Sequence[int], Sequence[int]]]) -> float:
    """One pass over the whole prompt; cells: (site, layers, tokens) all restored together."""
    model, parts = decoder(family).model, decoder(family).parts
    ids = torch.tensor([list(one.input_ids)])
    sites = {"attention": parts.attention_contribution, "mlp": parts.mlp_contribution}
    clean: dict[str, list[torch.Tensor]] = {"attention": [], "mlp": []}
    with ExitStack() as stack:
        for site, modules in sites.items():
            for module in modules:

                def keep(_m: Any, _i: Any, output: Any, site: str = site) -> None:
                    clean[site].append(output[0] if isinstance(output, tuple) else output)

                stack.callback(module.register_forward_hook(keep).remove)
        model(ids, use_cache=False)
    embedded = parts.embedding(ids).repeat(DRAWS, 1, 1)
    embedded[:, one.start : one.stop] += torch.from_numpy(one.noise)
    with ExitStack() as stack:
        for site, layers, tokens in cells:
            stack.enter_context(overwriting(sites[site], layers, tokens, clean[site]))
        logits = model(inputs_embeds=embedded, use_cache=False).logits[:, -1]
    return float(logits.softmax(-1)[:, one.target].mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_cell_is_that_of_one_pass_over_the_whole_prompt(family: str):
    ranges = [(0, 1), (1, 3), (2, 3)]
    rows = range(len(PROMPTS)) if family in ("llama", "gpt2") else (0, 4)
    prompts = [disturbed(row) for row in rows]
    found = trace(decoder(family), prompts, ranges, batch_tokens=200)
    for one, traced in zip(prompts, found, strict=True):
        with torch.inference_mode():
            logits = decoder(family).model(torch.tensor([list(one.input_ids)])).logits[0, -1]
        assert traced.high == pytest.approx(float(logits.softmax(-1)[one.target]), rel=1e-4, abs=1e-9)
        assert traced.low == pytest.approx(naive(family, one, []), rel=1e-4, abs=1e-9)
        length = len(one.input_ids)
        tokens = range(length) if length < 12 else (0, one.start, one.stop, length - 3, length - 1)
        differing = 0
        for index, site in enumerate(SITES):
            for token in tokens:
                for window, (first, stop) in enumerate(ranges):
                    expected = naive(family, one, [(site, range(first, stop), [token])])
                    assert traced.scores[index, token, window] == pytest.approx(expected, rel=1e-3, abs=1e-8)
                    differing += abs(expected - traced.low) > 1e-3 * traced.low
        assert differing > 4  # the comparison has something to see
        # in front of the noise nothing can differ, and that is exact
        assert (traced.scores[:, : one.start] == np.float32(traced.low)).all()


@pytest.mark.parametrize("family", ["llama", "gpt2", "olmo2", "gemma2"])
def test_restoring_everything_is_the_clean_run(family: str):
    """Both modules at every token and layer: what is left of the noise is in the disturbed tokens' own embeddings."""
    one = disturbed(0)
    every = range(len(one.input_ids))
    high, low = (trace(decoder(family), [one], [(0, LAYERS)])[0].__dict__[name] for name in ("high", "low"))
    cells = [(site, range(LAYERS), every) for site in SITES]
    assert naive(family, one, cells) == pytest.approx(high, rel=1e-4)
    assert naive(family, one, cells[1:]) != pytest.approx(high, rel=1e-2)  # twin: MLPs alone
    assert low != pytest.approx(high, rel=1e-2)
    # at the last token alone, everything that reaches it: all that is read there is clean as well
    traced = trace(decoder(family), [one], [(0, LAYERS)])[0]
    both = naive(family, one, [(site, range(LAYERS), [len(one.input_ids) - 1]) for site in SITES])
    assert both == pytest.approx(high, rel=1e-4)
    assert traced.scores[0, -1, 0] == pytest.approx(high, rel=1e-4)  # clean attention in, so clean MLPs too


def test_noise_is_shared_and_silence_changes_nothing():
    one = disturbed(0)
    quiet = Disturbed(one.input_ids, one.start, one.stop, one.target, np.zeros_like(one.noise))
    traced = trace(decoder("llama"), [quiet], windows(LAYERS, 1))[0]
    assert traced.low == pytest.approx(traced.high, rel=1e-5)
    assert gap(traced.scores, np.full_like(traced.scores, traced.high)) < TOLERANCE
    several, alone = (
        trace(decoder("llama"), [one, disturbed(4), one], [(0, 1)]),
        trace(decoder("llama"), [one], [(0, 1)]),
    )
    assert gap(several[0].scores, several[2].scores) < TOLERANCE and gap(several[0].scores, alone[0].scores) < TOLERANCE
    assert gap(trace(decoder("llama"), [disturbed(0, 1.4)], [(0, 1)])[0].scores, alone[0].scores) > 1e-3  # twin


def test_windows_are_the_published_ones():
    published = [(max(0, layer - 5), min(32, layer + 5)) for layer in range(32)]
    assert windows(32, 10) == published
    assert windows(4, 1) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert windows(4, 3) == [(0, 2), (0, 3), (1, 4), (2, 4)]


def test_spread_is_that_of_the_embedding_rows():
    weight = decoder("llama").parts.embedding.weight.detach()
    assert embedding_spread(decoder("llama"), [3, 5, 5]) == pytest.approx(float(weight[[3, 5, 5]].std()))
    with pytest.raises(InputError, match="no tokens"):
        embedding_spread(decoder("llama"), [])


def test_traces_that_do_not_fit_are_refused():
    one = disturbed(0)
    for prompts, layers, sites, sentence in (
        ([], [(0, 1)], SITES, "tracing needs prompts"),
        ([one], [(0, 4)], SITES, r"window \[0, 4\) of a model with layers 0..2"),
        ([one], [(0, 1)], ("residual",), "of attention, mlp"),
        ([Disturbed(one.input_ids, 3, 3, 5, one.noise)], [(0, 1)], SITES, r"disturbed tokens are \[3, 3\)"),
        ([Disturbed(one.input_ids, 1, 2, 5, one.noise)], [(0, 1)], SITES, "noise has shape"),
        ([Disturbed(one.input_ids, 1, 3, VOCABULARY, one.noise)], [(0, 1)], SITES, "outside the vocabulary"),
    ):
        with pytest.raises(InputError, match=sentence):
            trace(decoder("llama"), prompts, layers, sites)
