"""Patches and noise: identities that hold exactly, and twins that break them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from levelt.engine.changes import Patch, noise, patching, tensor_hash
from levelt.files import InputError
from levelt.models.anatomy import locate
from levelt.models.loading import Decoder
from levelt.prompts.spans import Span, TokenGroups
from models_local import END, FAMILIES, kernel, tiny, tokenizer
from test_engine import OPTIONS, PROMPTS, decoder, gap, hooks_left, read
from test_plans import LAYERS, TOLERANCE, Prompt, cached, model_of, padded, states

SITES = ("embedding", "residual", "attention", "mlp")
ROWS = PROMPTS[:3]
TWINS = [Prompt([(token + 20) % 90 + 3 for token in item.input_ids], item.groups) for item in ROWS]


@torch.inference_mode()
def sites(model: PreTrainedModel, prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
    """[layers, rows, seq, d] of each site (one layer for the embedding), by hooks written here."""
    parts = locate(model)
    seen: dict[str, list[torch.Tensor]] = {site: [] for site in SITES}
    ids, mask, at, _ = padded(prompts)

    def output(site: str):
        return lambda _m, _i, out: seen[site].append(out[0] if isinstance(out, tuple) else out)

    def enter(_module, positional, named):
        seen["embedding"].append(positional[0] if positional else named["hidden_states"])

    with ExitStack() as stack:
        stack.callback(parts.layers[0].register_forward_pre_hook(enter, with_kwargs=True).remove)
        for site, modules in (
            ("residual", parts.layers),
            ("attention", parts.attention_contribution),
            ("mlp", parts.mlp_contribution),
        ):
            for module in modules:
                stack.callback(module.register_forward_hook(output(site)).remove)
        model(input_ids=ids, attention_mask=mask, position_ids=at, use_cache=False)
    return {site: torch.stack(values) for site, values in seen.items()}


def everywhere(prompts: Sequence[Prompt], layer: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every position of every row, at one layer."""
    cells = [(row, layer, t) for row, item in enumerate(prompts) for t in range(len(item.input_ids))]
    rows, layers, positions = np.array(cells).T
    return rows, layers, positions


def values_at(run: torch.Tensor, prompts: Sequence[Prompt], cells: tuple[np.ndarray, ...]) -> torch.Tensor:
    rows, layers, positions = cells
    return run[layers, rows, positions + np.array(padded(prompts)[3])[rows]]


def patched(model: PreTrainedModel, prompts: Sequence[Prompt], *patches: Patch) -> list[torch.Tensor]:
    with patching(locate(model), patches, padded(prompts)[3]):
        return states(model, prompts)


def apart(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    return max(gap(a, b) for a, b in zip(found, expected, strict=True))


def logits(run: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [row[:, LAYERS * 32 :] for row in run]


def cells_of(site: str, prompts: Sequence[Prompt]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One cell for each row: another layer and another position."""
    layers = [0 if site == "embedding" else row % LAYERS for row in range(len(prompts))]
    return np.arange(len(prompts)), np.array(layers), np.array([3 + row for row in range(len(prompts))])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", SITES)
def test_what_is_there_already_and_nothing_added_change_nothing(family: str, site: str):
    model = model_of(family, kernel(family))
    plain, runs = states(model, ROWS), sites(model, ROWS)[site]
    cells = cells_of(site, ROWS)
    own = values_at(runs, ROWS, cells)
    assert apart(patched(model, ROWS, Patch(site, *cells, own)), plain) == 0
    assert apart(patched(model, ROWS, Patch(site, *cells, torch.zeros_like(own), add=True)), plain) == 0
    assert apart(patched(model, ROWS, Patch(site, *cells, sources=cells[0])), plain) == 0
    # twins: one number of the vector, a layer or a position beside it
    assert apart(patched(model, ROWS, Patch(site, *cells, own + torch.eye(1, 32)[0])), plain) > 1e-3
    rows, layers, positions = cells
    if site != "embedding":
        assert apart(patched(model, ROWS, Patch(site, rows, (layers + 1) % LAYERS, positions, own)), plain) > 1e-3
    assert apart(patched(model, ROWS, Patch(site, rows, layers, positions + 1, own)), plain) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_patching_every_position_gives_the_source_run(family: str):
    """From one layer on, the run is the source's; with one position left out it is not."""
    model = model_of(family, kernel(family))
    source, runs = states(model, TWINS), sites(model, TWINS)
    for site, layer in [("embedding", 0), *(("residual", layer) for layer in range(LAYERS))]:
        cells = everywhere(ROWS, layer)
        found = patched(model, ROWS, Patch(site, *cells, values_at(runs[site], TWINS, cells)))
        assert apart(logits(found), logits(source)) == 0
        less = tuple(part[1:] for part in cells)
        found = patched(model, ROWS, Patch(site, *less, values_at(runs[site], TWINS, less)))
        assert apart(logits(found), logits(source)) > 1e-3


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox"])
def test_rows_are_cells(family: str):
    """One pass evaluates a cell in each row: every row as if it had been patched alone."""
    model = model_of(family, kernel(family))
    for site in SITES:
        cells = cells_of(site, ROWS)
        own = values_at(sites(model, TWINS)[site], TWINS, cells)
        together = patched(model, ROWS, Patch(site, *cells, own))
        for row, item in enumerate(ROWS):
            at = [np.array([0]), cells[1][[row]], cells[2][[row]]]
            assert gap(patched(model, [item], Patch(site, *at, own[[row]]))[0], together[row]) < TOLERANCE
            assert gap(states(model, [item])[0], together[row]) > 1e-3
        # causality: nothing changes before the patched position
        plain = states(model, ROWS)
        assert all(
            torch.equal(a[: cells[2][r]], b[: cells[2][r]])
            for r, (a, b) in enumerate(zip(together, plain, strict=True))
        )


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text", "gpt2"])
def test_patches_hold_in_cached_runs(family: str):
    """In whichever pass the column is; and not again in later steps."""
    from test_plans import NOTHING, blocked_rows

    model, prompts = model_of(family, kernel(family)), ROWS
    tail = torch.tensor([[5, 6], [7, 8], [9, 10]])
    cells = cells_of("residual", prompts)
    patch = Patch("residual", *cells, values_at(sites(model, TWINS)["residual"], TWINS, cells))
    _, mask, _, begins = padded(prompts)
    real = torch.cat([mask, torch.ones_like(tail)], 1).bool()
    width = mask.shape[1]

    def run(pieces: list[int]) -> torch.Tensor:
        with patching(locate(model), [patch], begins):
            return cached(model, blocked_rows(NOTHING, prompts), prompts, tail, pieces)[0][real]

    for pieces in ([width, 1, 1], [width - 4, 4, 2], [1] * (width + 2)):
        assert gap(run(pieces), run([width + 2])) < TOLERANCE
    plain = cached(model, blocked_rows(NOTHING, prompts), prompts, tail, [width, 1, 1])[0][real]
    assert gap(run([width, 1, 1]), plain) > 1e-3


def test_noise_is_shared_and_a_clean_row_is_clean():
    model = model_of("llama", "sdpa")
    batch = [PROMPTS[1]] * 4
    span, width = range(2, 6), 32
    plain = states(model, batch)

    def noisy(scale: float, rows: Sequence[int] = (1, 2, 3), seed: int = 0) -> Patch:
        return noise(rows, span, scale, width, np.random.default_rng(seed))

    assert apart(patched(model, batch, noisy(0.0)), plain) == 0
    found = patched(model, batch, noisy(3.0))
    assert torch.equal(found[0], plain[0])
    assert torch.equal(found[1], found[2]) and torch.equal(found[1], found[3])
    assert gap(found[1], plain[1]) > 1e-2
    again = patched(model, batch[:2], noisy(3.0, rows=[1]))
    assert gap(again[1], found[1]) < TOLERANCE  # the same noise in another batch
    assert gap(patched(model, batch, noisy(3.0, seed=1))[1], found[1]) > 1e-2
    assert all(torch.equal(row[:2], clean[:2]) for row, clean in zip(found, plain, strict=True))
    by_hand = sites(model, batch)["embedding"][0].clone()
    by_hand[1:, 2:6] += 3.0 * torch.from_numpy(np.random.default_rng(0).standard_normal((4, width)).astype(np.float32))
    cells = everywhere(batch, 0)
    source = patched(model, batch, Patch("embedding", *cells, values_at(by_hand[None], batch, cells)))
    assert apart(found, source) < 2e-6


def test_causal_tracing_restores_the_clean_row():
    """ROME's cells: row 0 clean, the others corrupted, each with another module output restored from row 0."""
    model = model_of("llama", "sdpa")
    length = len(PROMPTS[1].input_ids)
    batch = [PROMPTS[1]] * 4
    plain = states(model, batch)
    corrupt = noise([1, 2, 3], range(2, 6), 3.0, 32, np.random.default_rng(0))
    noisy = patched(model, batch, corrupt)
    every = np.arange(length)
    restore = [
        Patch("residual", np.repeat(1, length), np.repeat(1, length), every, sources=np.zeros(length)),
        Patch("mlp", [2, 2], [0, 1], [3, 3], sources=[0, 0]),
    ]
    found = patched(model, batch, corrupt, *restore)
    assert torch.equal(found[0], plain[0])
    assert torch.equal(found[1][:, 32:], plain[0][:, 32:])  # all of layer 1 restored: the clean run from there on
    assert gap(found[2], noisy[2]) > 1e-3 and gap(found[2], plain[0]) > 1e-3
    assert torch.equal(found[3], noisy[3])
    # the same cell, computed alone
    clean = sites(model, batch[:1])["mlp"]
    alone = patched(
        model,
        batch[:1],
        noise([0], range(2, 6), 3.0, 32, np.random.default_rng(0)),
        Patch("mlp", [0, 0], [0, 1], [3, 3], clean[[0, 1], 0, 3]),
    )
    assert gap(alone[0], found[2]) < TOLERANCE


def test_sources_are_at_the_same_token_whatever_the_padding():
    model = model_of("llama", "sdpa")
    rows = [PROMPTS[1], Prompt([*PROMPTS[1].input_ids[:5], *PROMPTS[0].input_ids], PROMPTS[0].groups)]
    assert len({len(item.input_ids) for item in rows}) == 2
    found = patched(model, rows, Patch("residual", [0], [0], [4], sources=[1]))
    assert gap(found[0], states(model, rows)[0]) < TOLERANCE  # the first five tokens are the same
    assert gap(patched(model, rows, Patch("residual", [0], [0], [4], sources=[0]))[0], found[0]) < TOLERANCE
    assert gap(patched(model, rows, Patch("residual", [0], [0], [5], sources=[1]))[0], found[0]) > 1e-3


def test_readings_show_the_patch_where_hugging_face_states_do_not():
    """Trap 8: transformers' own capture hooks stay installed, in front of a patch that comes later."""
    model = tiny("llama")
    ids = torch.tensor([list(PROMPTS[0].input_ids)])
    value = torch.full((1, 32), 2.0)
    reader = Decoder(model, locate(model), tokenizer(), (END,))
    with torch.inference_mode():
        model(ids, output_hidden_states=True)
    with torch.inference_mode(), patching(reader.parts, [Patch("residual", [0], [0], [4], value)], [0]):
        theirs = model(ids, output_hidden_states=True, use_cache=False).hidden_states[1][0, 4]
    assert gap(theirs, value[0]) > 1e-2  # twin
    item = Prompt(PROMPTS[0].input_ids, TokenGroups((Span("sample", 4, 5), PROMPTS[0].groups["decision"])))
    ours = read(reader, [item], option_ids=[OPTIONS[0]], plan=Patch("residual", [0], [0], [4], value))
    assert gap(ours.residual["sample"][0, 1], value[0]) == 0


def test_read_prompts_under_a_patch():
    """Cells by prompt; batches take those of their own rows."""
    reader = decoder("llama")
    rows, layers, positions = np.array([1, 5]), np.array([0, 2]), np.array([2, 4])
    patch = Patch("residual", rows, layers, positions, torch.full((2, 32), 2.0))
    plain, found = read(reader), read(reader, batch_tokens=64, plan=patch)
    changed = np.array([gap(a, b) for a, b in zip(found.residual["sample"], plain.residual["sample"], strict=True)])
    assert set(np.flatnonzero(changed > 1e-3)) == {1, 5} and changed[[0, 2, 3, 4, 6, 7]].max() < TOLERANCE
    assert hooks_left(reader) == 0
    item = PROMPTS[5]
    single = read(
        reader, [item], option_ids=[OPTIONS[5]], plan=Patch("residual", [0], [2], [4], torch.full((1, 32), 2.0))
    )
    assert gap(found.residual["sample"][[5]], single.residual["sample"]) < TOLERANCE
    apart_ = Patch("residual", [1], [0], [2], sources=[5])
    with pytest.raises(InputError, match="row 5 is a source, but runs in another batch"):
        read(reader, batch_tokens=64, plan=apart_)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Patch("residual", [0], [0, 1], [2], torch.zeros(1, 32)), "one row, layer, position and value"),
        (lambda: Patch("residual", [0], [0], [2], torch.zeros(2, 32)), "one row, layer, position and value"),
        (lambda: Patch("residual", [0], [0], [2]), "either the values to write, or the rows"),
        (lambda: Patch("residual", [0], [0], [2], torch.zeros(1, 32), [0]), "either the values"),
        (lambda: Patch("embedding", [0], [1], [2], torch.zeros(1, 32)), "its layer is always 0"),
        (lambda: Patch("mlp", [0], [0], [-1], torch.zeros(1, 32)), "counted from 0"),
        (lambda: Patch("mlp", [0, 0], [1, 1], [2, 2], torch.zeros(2, 32)), "two cells replace the same"),
        (lambda: Patch("mlp", [0], [3], [2], torch.zeros(1, 32)), r"layer 3 of a model with layers 0\.\.2"),
        (lambda: Patch("mlp", [3], [0], [2], torch.zeros(1, 32)), "row 3 of a batch of 3 rows"),
        (lambda: Patch("mlp", [0], [0], [2], torch.zeros(1, 16)), r"values \(1, 16\), expected vectors of 32"),
        (lambda: Patch("mlp", [1], [0], [99], torch.zeros(1, 32)), "position 99 of row 1 was in none of the forward"),
    ],
)
def test_bad_patches_are_refused(make, sentence: str):
    model = model_of("llama", "sdpa")
    with pytest.raises(InputError, match=sentence):
        patched(model, ROWS, make())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# --- patches as values -----------------------------------------------------------------------------------------------


def test_a_patch_survives_json_and_its_digest_says_what_it_writes():
    values = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    patch = Patch("residual", [0, 1], [1, 2], [3, 4], values)
    tree = json.loads(json.dumps(patch.to_json()))
    assert tree["values"] == {"sha256": tensor_hash(values), "shape": [2, 32], "dtype": "float32"}
    again = Patch.from_json(tree, [values + 1, values.clone()])
    assert again.digest == patch.digest and torch.equal(again.values, values) and again.rows.tolist() == [0, 1]
    copied = Patch("mlp", [0], [1], [2], sources=[1], add=True)
    assert Patch.from_json(copied.to_json()).to_json() == copied.to_json()
    changed = values.clone()
    changed[1, 31] = torch.nextafter(changed[1, 31], torch.tensor(9.0))  # one bit is another patch
    twins = [
        Patch("residual", [0, 1], [1, 2], [3, 4], changed),
        Patch("residual", [0, 1], [1, 2], [3, 5], values),
        Patch("residual", [0, 1], [1, 2], [3, 4], values.to(torch.bfloat16)),
        Patch("residual", [0, 1], [1, 2], [3, 4], values, add=True),
        Patch("mlp", [0, 1], [1, 2], [3, 4], values),
        copied,
    ]
    assert len({patch.digest, *(twin.digest for twin in twins)}) == len(twins) + 1
    with pytest.raises(InputError, match=r"none of 1 tensors has the hash"):
        Patch.from_json(tree, [changed])
    with pytest.raises(InputError, match="not a patch"):
        Patch.from_json({"site": "mlp"})
    with pytest.raises(InputError, match="no site 'logits'"):
        Patch.from_json(copied.to_json() | {"site": "logits"})
