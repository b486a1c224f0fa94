"""Patching at layer tuples: identities that hold exactly, and twins that break them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from levelt.engine.changes import Patch, patching
from levelt.engine.tuples import Receiver, cells_of, patch_tuples
from levelt.files import InputError
from levelt.models import hooks
from levelt.models.anatomy import locate
from levelt.models.loading import Decoder
from models_local import END, FAMILIES, ragged, tiny, tokenizer

TOLERANCE = 2e-5
"""Of logits of order 10 in float32: rows of another batch are summed in another order."""
WATCHED = (42, 7)


def decoder(family: str = "llama") -> Decoder:
    model = tiny(family)
    return Decoder(model, locate(model), tokenizer(), (END,))


def residuals(loaded: Decoder, prompts: list[list[int]], at: list[int]) -> torch.Tensor:
    """[n, layers, d] behind each layer, at one position of each prompt."""
    found = []
    for prompt, position in zip(prompts, at, strict=True):
        seen: list[torch.Tensor] = []
        with torch.inference_mode(), hooks.outputs(loaded.parts.layers, lambda _l, h, seen=seen: seen.append(h[0])):
            loaded.model(torch.tensor([prompt]), use_cache=False)
        found.append(torch.stack([hidden[position] for hidden in seen]))
    return torch.stack(found)


def logits(loaded: Decoder, prompt: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return loaded.model(torch.tensor([prompt]), use_cache=False).logits[0, -1]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_cell_is_the_patched_run(family: str):
    """Against one forward pass per cell with `engine.changes`: ragged prompts, several batches."""
    loaded = decoder(family)
    prompts = ragged([7, 5, 7, 9, 7])
    places = [2, 0, 6, 3, 2]
    sources = [residuals(loaded, ragged([6] * 5, seed=seed), [5, 4, 3, 5, 2]) for seed in (1, 2)]
    donors = torch.stack(sources, 1)
    receivers = [Receiver(tuple(ids), at, WATCHED) for ids, at in zip(prompts, places, strict=True)]
    grid = patch_tuples(loaded, receivers, donors, order=3, batch_tokens=40, ranked=2)
    assert grid.cells == cells_of(3, 3) and len(grid.cells) == 8
    for row, (ids, at) in enumerate(zip(prompts, places, strict=True)):
        for (index, cell), donor in itertools.product(enumerate(grid.cells), (0, 1)):
            values = donors[row, donor, list(cell)]
            patch = Patch("residual", np.zeros(len(cell)), np.array(cell), np.full(len(cell), at), values)
            with patching(loaded.parts, [patch], [0]):
                expected = logits(loaded, ids)
            scale = float(expected.abs().max())
            assert np.abs(grid.logits[row, donor, index] - expected[list(WATCHED)].numpy()).max() < TOLERANCE * scale
            by_count = [int((expected > expected[token]).sum()) + 1 for token in WATCHED]
            assert grid.rank[row, donor, index].tolist() == by_count
    # a last layer's patch is seen at the last position only (row 2), and there nothing else is; batches do not matter
    for row, same in ((0, lambda cell: cell[:-1] if cell[-1:] == (2,) else cell), (2, lambda cell: cell[-1:])):
        groups = {same(cell) for cell in grid.cells}
        assert len(np.unique(grid.logits[row, 0, :, 0].round(4))) == len(groups) == 4
    again = patch_tuples(loaded, receivers, donors, order=3, batch_tokens=10**6)
    assert np.allclose(again.logits, grid.logits, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_receivers_own_states_change_nothing(family: str):
    loaded = decoder(family)
    prompts, places = ragged([7, 7, 9]), [2, 0, 8]
    own = residuals(loaded, prompts, places)
    receivers = [Receiver(tuple(ids), at, WATCHED) for ids, at in zip(prompts, places, strict=True)]
    grid = patch_tuples(loaded, receivers, own[:, None])
    size = np.abs(grid.logits).max()
    assert np.abs(grid.logits - grid.logits[:, :, :1]).max() < TOLERANCE * size
    twin = patch_tuples(loaded, receivers, own[:, None] + torch.eye(1, 32))
    assert np.abs(twin.logits - twin.logits[:, :, :1]).max() > 1e-3 * size


def test_a_receiver_of_one_token_sees_the_last_layer_patched_only():
    """f(i, j) = f(j): the patch overwrites everything there is. With a second token it does not."""
    loaded = decoder()
    donors = residuals(loaded, ragged([6]), [5])

    def effects(ids: list[int]) -> dict[tuple[int, ...], np.ndarray]:
        grid = patch_tuples(loaded, [Receiver(tuple(ids), 0, WATCHED)], donors[None])
        return dict(zip(grid.cells, grid.logits[0, 0], strict=True))

    one, two = effects([17]), effects([17, 18])
    for i, j in [(0, 1), (0, 2), (1, 2)]:
        assert np.abs(one[i, j] - one[j,]).max() < 1e-4
    assert np.abs(two[0, 1] - two[1,]).max() > 1e-2
    assert np.abs(one[0, 1] - one[0,]).max() > 1e-2


def test_the_donors_last_state_gives_the_donors_logits():
    loaded = decoder()
    donor = ragged([6], seed=3)[0]
    donors = residuals(loaded, [donor], [5])
    ids = ragged([4])[0]
    grid = patch_tuples(loaded, [Receiver(tuple(ids), 3, WATCHED)], donors[None])
    expected = logits(loaded, donor)[list(WATCHED)].numpy()
    assert np.abs(grid.logits[0, 0, grid.cells.index((2,))] - expected).max() < 1e-4
    assert np.abs(grid.logits[0, 0, grid.cells.index((1,))] - expected).max() > 1e-2
    elsewhere = patch_tuples(loaded, [Receiver(tuple(ids), 2, WATCHED)], donors[None])
    assert np.abs(elsewhere.logits[0, 0, grid.cells.index((2,))] - expected).max() > 1e-2


def test_prompts_of_a_batch_keep_their_own_beginnings():
    """The first token differs, in front of the patch: shared by the cells of a prompt, but not by prompts."""
    loaded = decoder()
    prompts = [[17, *ragged([6])[0]], [18, *ragged([6])[0]]]
    donors = torch.stack([residuals(loaded, ragged([6] * 2, seed=seed), [5, 4]) for seed in (1, 2)], 1)
    receivers = [Receiver(tuple(ids), 3, WATCHED) for ids in prompts]
    together = patch_tuples(loaded, receivers, donors[:1].expand(2, -1, -1, -1)).logits
    for row, receiver in enumerate(receivers):
        assert np.abs(patch_tuples(loaded, [receiver], donors[:1]).logits[0] - together[row]).max() < 1e-4
    assert (np.abs(together[0] - together[1]).max(-1) > 1e-2).all()
    assert (np.abs(patch_tuples(loaded, receivers, donors).logits[1] - together[1]).max(-1)[:, 1:3] > 1e-2).all()


def test_the_last_layer_patched_away_from_the_answer_is_exactly_nothing():
    """Interactions with it are tested for being exactly zero; at the last position it is everything."""
    loaded = decoder()
    donors = residuals(loaded, ragged([6]), [5])[None]
    ids = tuple(ragged([7])[0])
    found = {at: patch_tuples(loaded, [Receiver(ids, at, WATCHED)], donors) for at in (3, 6)}
    cells = found[3].cells
    for cell in [cell for cell in cells if cell[-1:] == (2,)]:
        of = {at: grid.logits[0, 0, cells.index(cell)] for at, grid in found.items()}
        assert np.array_equal(of[3], found[3].logits[0, 0, cells.index(cell[:-1])])
        assert np.abs(of[6] - found[6].logits[0, 0, cells.index(cell[:-1])]).max() > 1e-2
        assert np.array_equal(of[6], found[6].logits[0, 0, cells.index((2,))])


def test_bad_grids_are_refused():
    loaded = decoder()
    with pytest.raises(InputError, match="position 4 of prompt 0, which has 3 tokens"):
        patch_tuples(loaded, [Receiver((5, 6, 7), 4, WATCHED)], torch.zeros(1, 1, 3, 32))
    with pytest.raises(InputError, match=r"donors have shape \(1, 1, 2, 32\), expected \(1, donors, 3, 32\)"):
        patch_tuples(loaded, [Receiver((5, 6, 7), 1, WATCHED)], torch.zeros(1, 1, 2, 32))
