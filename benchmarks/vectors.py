"""Speed of the patching grid and of path tracing: ``python -m benchmarks.vectors``; the last line is JSON.

One thread, a model of the m organism's shape (4 layers, width 64, 4 heads) with random weights, prompts of 15 tokens
(the filler_query receiver of the default study, patched at token 4).
Every ratio is the median over rounds in which the two things it compares take turns, so that a busy machine hits both.

- speedup_grid: the full grid of single layers and pairs, both instructions' vectors, one forward pass per cell (one
  prompt, hooks that write the vectors, logits of the last position, rank) / `patch_tuples`. They are checked to agree.
- passes_released: forward passes of the released loop per forward pass of one cell: it runs the full prompt, the
  receiver, the donor (once per layer of the tuple) and the patched receiver inside the loop over tuples. A count.
- speedup_tracing: all paths of 1 key per head, with logits and ranks, by depth-first search as released (every branch
  to the top, every path from its source on, a sort per path; with this repository's exact edge operator) /
  `enumerate_paths`. They are checked to agree. speedup_totals: the sum over *all* paths by enumerating them /
  `backward`, at 8 tokens, where they can still be enumerated.
- grid_passes: token positions that `patch_tuples` runs through whole layers / those of one forward pass per cell.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from levelt.engine.changes import Patch, patching
from levelt.engine.frozen import Freezer, Frozen
from levelt.engine.paths import Network, _step, backward, enumerate_paths, path_counts
from levelt.engine.tuples import FEWEST_KEYS, Receiver, cells_of, patch_tuples
from levelt.models.anatomy import locate
from levelt.models.loading import Decoder

TOKENS, POSITION = 15, 4


def decoder_of() -> Decoder:
    """The m organism's shape, random weights, eager attention as the study uses it."""
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        pad_token_id=0,
        tie_word_embeddings=True,
        initializer_range=0.08,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    return Decoder(model, locate(model), None, (2,))  # type: ignore[arg-type]


def receivers_of(count: int) -> list[Receiver]:
    """Prompts of one length with random tokens."""
    drawn = np.random.default_rng(0)
    ids = drawn.integers(5, 1000, (count, TOKENS)).tolist()
    return [Receiver(tuple(prompt), POSITION, (10, 20)) for prompt in ids]


@torch.inference_mode()
def one_pass_per_cell(decoder: Decoder, receivers: Sequence[Receiver], donors: torch.Tensor) -> np.ndarray:
    """Logits of the first watched token, [n, donors, cells]."""
    cells = cells_of(len(decoder.parts.layers), 2)
    found = np.zeros((len(receivers), donors.shape[1], len(cells)), np.float32)
    for row, receiver in enumerate(receivers):
        ids = torch.tensor([receiver.input_ids])
        for donor in range(donors.shape[1]):
            for index, cell in enumerate(cells):
                patch = Patch(
                    "residual",
                    np.zeros(len(cell)),
                    np.array(cell, dtype=np.int64),
                    np.full(len(cell), receiver.position),
                    donors[row, donor, list(cell)],
                )
                with patching(decoder.parts, [patch], [0]):
                    logits = decoder.model(ids, use_cache=False, logits_to_keep=1).logits[0, -1]
                found[row, donor, index] = logits[receiver.watched[0]]
                int((logits > logits[receiver.watched[0]]).sum())  # the rank, as the grid has it
    return found


@torch.no_grad()
def depth_first(network: Network, target: int) -> dict[tuple[int, ...], tuple[float, int]]:
    """Every path by itself: branches that never reach the last token are walked too, nothing is shared."""
    layers, tokens = network.edges.shape[:2]
    edges = [[row.nonzero()[:, 0].tolist() for row in layer.T] for layer in network.edges]
    paths: list[tuple[int, ...]] = []

    def walk(path: tuple[int, ...]) -> None:
        if len(path) > layers:
            if path[-1] == tokens - 1:
                paths.append(path)
            return
        for child in edges[len(path) - 1][path[-1]]:
            walk((*path, child))

    for source in range(tokens):
        walk((source,))
    found = {}
    for path in paths:
        x = network.frozen.embedding[[path[0]]]
        for layer in range(layers):
            x = _step(network, layer, torch.tensor([path[layer]]), torch.tensor([path[layer + 1]]), x)
        logits = network.frozen.readout(x)[0]
        order = logits.argsort(descending=True)
        found[path] = (float(logits[target]), int((order == target).nonzero()) + 1)
    return found


def ratio(slow: Callable[[], object], fast: Callable[[], object], rounds: int) -> float:
    """Median of slow / fast, taking turns."""
    found = []
    for _ in range(rounds):
        times = []
        for call in (slow, fast):
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        found.append(times[0] / times[1])
    return statistics.median(found)


def check_paths(network: Network, target: int) -> None:
    """Both searches find the same paths, logits and ranks."""
    slow, fast = depth_first(network, target), enumerate_paths(network, range(network.edges.shape[1]), target)
    assert len(slow) == len(fast.tokens) == int(path_counts(network).sum())
    for path, logit, rank in zip(fast.tokens.tolist(), fast.logit.tolist(), fast.rank.tolist(), strict=True):
        expected = slow[tuple(path)]
        assert abs(expected[0] - logit) < 1e-3 and abs(expected[1] - rank) <= 1


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--queries", type=int, default=60, help="receivers of the grid")
    options = parser.parse_args(arguments)
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(1)
    decoder = decoder_of()
    depth = len(decoder.parts.layers)
    receivers = receivers_of(options.queries)
    donors = torch.randn(len(receivers), 2, depth, 64, generator=torch.Generator().manual_seed(0))
    few = slice(0, 6)  # one pass per cell takes its time: its share of the queries, scaled up
    expected = one_pass_per_cell(decoder, receivers[few], donors[few])
    grid = patch_tuples(decoder, receivers, donors)
    assert np.abs(grid.logits[few, ..., 0] - expected).max() < 1e-3
    share = len(receivers) / len(receivers[few])

    def slow() -> None:
        one_pass_per_cell(decoder, receivers[few], donors[few])

    speedup_grid = share * ratio(slow, lambda: patch_tuples(decoder, receivers, donors), options.rounds)
    cells = cells_of(depth, 2)
    alive = [sum(1 for cell in cells if cell and max(cell) < layer) for layer in range(depth)]
    plain = (depth - 1) * max(TOKENS, FEWEST_KEYS) + 1
    positions = plain + 2 * (sum(alive[:-1]) * (TOKENS - POSITION) + alive[-1])
    grid_passes = positions / (2 * depth * len(cells) * TOKENS)
    released = [3 + len(cell) for cell in cells if cell]

    freezer = Freezer(decoder)
    frozen: list[Frozen] = [freezer(receiver.input_ids) for receiver in receivers[:4]]
    networks = [Network.of(one, "exact", 1) for one in frozen]
    for network in networks:
        check_paths(network, 10)
    speedup_tracing = ratio(
        lambda: [depth_first(network, 10) for network in networks],
        lambda: [enumerate_paths(network, range(TOKENS), 10) for network in networks],
        options.rounds,
    )
    whole = Network.of(freezer(receivers[0].input_ids[:8]), "exact", None)
    speedup_totals = ratio(lambda: depth_first(whole, 10), lambda: backward(whole, 10), options.rounds)
    print(f"cells {len(cells)} (the plain run among them), {len(receivers)} queries, 2 donors, {TOKENS} tokens")
    print(f"paths of one key per head: {[int(path_counts(network).sum()) for network in networks]}")
    print(
        json.dumps(
            {
                "speedup_grid": round(speedup_grid, 1),
                "passes_released": round(float(np.mean(released)), 2),
                "grid_passes": round(grid_passes, 3),
                "speedup_tracing": round(speedup_tracing, 1),
                "speedup_totals": round(speedup_totals, 1),
                "paths_of_totals": int(path_counts(whole).sum()),
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
