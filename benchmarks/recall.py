"""The recall study's engine against the straightforward procedure: ``python -m benchmarks.recall``.

Both sides compute the same numbers on the same prompts (checked before timing), on one thread, on a random model of the
shape of an organism; the work does not depend on the weights. Straightforward means what the paper's code does, without
its copies of the modelling files:

tracing: one pass over the whole prompt for every token, module and centre layer, a batch of the clean row and the
    noisy ones, probabilities of the whole vocabulary at every position;
lens: an eager run with all attention weights; for each layer and group a loop over heads, and the whole vocabulary's
    logits of the sum, and of each MLP and attention output; another run for each knocked-out group.

The last line is a JSON object: speedup_tracing, speedup_lens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from benchmarks.engine import Ratio
from levelt.engine.last_token import REST, Knockout, read_last_token
from levelt.engine.tracing import Disturbed, trace, windows
from levelt.models.anatomy import locate
from levelt.models.linear import FrozenNorm, head_matrices
from levelt.models.loading import Decoder
from levelt.prompts.spans import Span, TokenGroups

SHAPES: dict[str, dict[str, int]] = {
    "organism": {
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 192,
        "vocab_size": 1536,
    },
    "toy": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 48,
        "vocab_size": 160,
    },
}
GROUPS = ("subject", "answer_1", "answer_2", "decision")
NOISED = {1: ("subject",), 2: ("subject", "answer_1"), 3: ("subject", "answer_1", "answer_2")}
DRAWS = 10


class Prompt:
    """A prompt of the organisms' layout at one answer step: 14 tokens and two for each answer given."""

    def __init__(self, ids: Sequence[int], step: int) -> None:
        self.step = step
        spans = [Span("subject", 8, 9), *(Span(f"answer_{k}", 12 + 2 * k, 13 + 2 * k) for k in range(1, step))]
        self.input_ids = list(ids[: 12 + 2 * step])
        last = len(self.input_ids) - 1
        self.groups = TokenGroups((*spans, Span("decision", last, last + 1)))


def decoder_of(shape: str) -> Decoder:
    """A random Llama."""
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=256, initializer_range=0.1)
    model = LlamaForCausalLM(config).eval()
    return Decoder(model, locate(model), None, (0,))  # type: ignore[arg-type]


def prompts_of(count: int, vocabulary: int) -> list[Prompt]:
    """So many subjects, three steps each."""
    drawn = np.random.default_rng(0)
    rows = drawn.integers(5, vocabulary, (count, 18)).tolist()
    return [Prompt(row, step) for row in rows for step in (1, 2, 3)]


def disturbed_of(prompts: Sequence[Prompt], width: int) -> list[Disturbed]:
    """What the study traces: at each step the subject, and each answer given."""
    made = []
    for index, prompt in enumerate(prompts):
        for name in NOISED[prompt.step]:
            span = prompt.groups[name]
            noise = np.random.default_rng(index).standard_normal((DRAWS, len(span), width)).astype(np.float32)
            made.append(Disturbed(prompt.input_ids, span.start, span.stop, 7 + index % 50, noise))
    return made


# --- the straightforward procedures ----------------------------------------------------------------------------------


@torch.inference_mode()
def traced_simply(decoder: Decoder, jobs: Sequence[Disturbed], layers: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """[sites, tokens, windows] of each prompt: one pass per cell, clean row first."""
    model, parts = decoder.model, decoder.parts
    results = []
    for job in jobs:
        ids = torch.tensor([list(job.input_ids)])
        embedded = parts.embedding(ids).repeat(1 + DRAWS, 1, 1)
        embedded[1:, job.start : job.stop] += torch.from_numpy(job.noise)
        scores = np.zeros((2, len(job.input_ids), len(layers)), np.float32)
        for site, modules in enumerate((parts.attention_contribution, parts.mlp_contribution)):
            for token in range(len(job.input_ids)):
                for window, (first, stop) in enumerate(layers):

                    def restore(_module: Any, _inputs: Any, output: Any, token: int = token) -> None:
                        hidden = output[0] if isinstance(output, tuple) else output
                        hidden[1:, token] = hidden[0, token]

                    with ExitStack() as stack:
                        for module in modules[first:stop]:
                            stack.callback(module.register_forward_hook(restore).remove)
                        logits = model(inputs_embeds=embedded, use_cache=False).logits
                    scores[site, token, window] = logits.softmax(-1)[1:, -1, job.target].mean()
        results.append(scores)
    return results


@torch.inference_mode()
def read_simply(
    decoder: Decoder, prompts: Sequence[Prompt], ids: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Per prompt the token lens [layers, groups + 1, tokens], and knocked MLPs [groups, layers, tokens]."""
    lenses, knocked = [], []
    for prompt, chosen in zip(prompts, ids, strict=True):
        groups = [name for name in GROUPS if name in prompt.groups]
        run, weights = _run(decoder, prompt, [])
        lens = np.zeros((len(weights), len(groups) + 1, len(chosen)), np.float32)
        for layer, projection in enumerate(decoder.parts.projection):
            matrices = head_matrices(projection, decoder.parts.heads)
            for index, name in enumerate([*groups, REST]):
                inside = _members(prompt, name, groups)
                total = torch.zeros(decoder.parts.hidden_size)
                for head in range(decoder.parts.heads):
                    mixed = weights[layer][0, head, -1, inside] @ run["values"][layer][head][inside]
                    total = total + mixed @ matrices[head]
                lens[layer, index] = _whole(decoder, total, run["final"])[chosen]
        for name in ("attention", "mlp"):  # early decoding
            for vector in run[name]:
                _whole(decoder, vector, run["final"])
        lenses.append(lens)
        rows = []
        for name in groups:
            changed, _ = _run(decoder, prompt, _members(prompt, name, groups))
            rows.append([_whole(decoder, vector, changed["final"])[chosen] for vector in changed["mlp"]])
        knocked.append(np.asarray(rows, np.float32))
    return lenses, knocked


def _members(prompt: Prompt, name: str, groups: Sequence[str]) -> list[int]:
    taken = {t: group for group in groups for t in range(prompt.groups[group].start, prompt.groups[group].stop)}
    return [t for t in range(len(prompt.input_ids)) if taken.get(t, REST) == name]


def _run(decoder: Decoder, prompt: Prompt, removed: Sequence[int]) -> tuple[dict[str, Any], Any]:
    """One eager run over the whole prompt, the last query's weights on some keys removed behind the softmax."""
    model, parts = decoder.model, decoder.parts
    found: dict[str, Any] = {"attention": [], "mlp": [], "values": [], "final": None}
    heads, shared = parts.heads, parts.heads // int(model.config.num_key_value_heads)

    def keep_values(_module: Any, _inputs: Any, output: Tensor) -> None:
        values = output[0].view(output.shape[1], -1, output.shape[2] // (heads // shared)).transpose(0, 1)
        found["values"].append(values.repeat_interleave(shared, 0))

    def keep(name: str, _module: Any, _inputs: Any, output: Any) -> None:
        found[name].append((output[0] if isinstance(output, tuple) else output)[0, -1])

    def cut(module: Any, _inputs: Any, output: Any) -> Any:
        # what the removed keys brought is taken out of the block's output
        hidden, weights = output
        mixed = torch.einsum("hk,hkw->hw", weights[0, :, -1, list(removed)], found["values"][-1][:, list(removed)])
        hidden = hidden.clone()
        hidden[:, -1] -= module.o_proj(mixed.flatten())
        return hidden, weights

    def keep_final(_module: Any, _inputs: Any, output: Any) -> None:
        found["final"] = (output[0] if isinstance(output, tuple) else output)[0, -1]

    model.set_attn_implementation("eager")
    try:
        with ExitStack() as stack:
            for module in parts.attention:
                stack.callback(module.v_proj.register_forward_hook(keep_values).remove)
                if removed:
                    stack.callback(module.register_forward_hook(cut).remove)
            for name, modules in (("attention", parts.attention_contribution), ("mlp", parts.mlp_contribution)):
                for module in modules:
                    stack.callback(module.register_forward_hook(partial(keep, name)).remove)
            stack.callback(parts.layers[-1].register_forward_hook(keep_final).remove)
            output = model(torch.tensor([prompt.input_ids]), use_cache=False, output_attentions=True)
    finally:
        model.set_attn_implementation("sdpa")
    return found, output.attentions


def _whole(decoder: Decoder, vector: Tensor, final: Tensor) -> np.ndarray:
    """All logits of one vector, the final norm frozen."""
    norm = FrozenNorm.of(decoder.parts.final_norm, decoder.parts.norm)
    logits: Tensor = decoder.parts.head(norm.linear(vector) * norm.scale(final))
    return logits.numpy()


# --- the run ---------------------------------------------------------------------------------------------------------


def read_well(
    decoder: Decoder, prompts: Sequence[Prompt], ids: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The same numbers, and the heads', by step."""
    lenses: list[np.ndarray] = [np.empty(0)] * len(prompts)
    knocked = list(lenses)
    for step in (1, 2, 3):
        rows = [index for index, prompt in enumerate(prompts) if prompt.step == step]
        groups = [name for name in GROUPS if name in prompts[rows[0]].groups]
        found = read_last_token(
            decoder, [prompts[row] for row in rows], ids[rows], groups, [Knockout((name,)) for name in groups]
        )
        for place, row in enumerate(rows):
            lenses[row], knocked[row] = found.lens[place], found.knocked_mlp[place]
    return lenses, knocked


def seconds(work: Callable[[], Any]) -> float:
    """CPU seconds of this process, which other work on the machine does not change much; one thread."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def ratio(numerator: Callable[[], Any], denominator: Callable[[], Any], rounds: int, scale: float) -> Ratio:
    """The median quotient of two pieces of work that take turns, the first one's times multiplied by ``scale``."""
    pairs = [(scale * seconds(numerator), seconds(denominator)) for _ in range(rounds)]
    quotients = sorted(first / second for first, second in pairs)
    middle = (statistics.median(side) for side in zip(*pairs, strict=True))
    return Ratio(statistics.median(quotients), quotients[0], quotients[-1], *middle)


def agree(mine: Sequence[np.ndarray], theirs: Sequence[np.ndarray], what: str) -> None:
    """A comparison of speeds is void unless both computed the same."""
    for one, other in zip(mine, theirs, strict=True):
        error = float(np.abs(one - other).max() / np.abs(other).max())
        if not error < 1e-3:
            raise SystemExit(f"{what}: the two procedures differ by {error:.1e}")


def table(rows: dict[str, Ratio], targets: dict[str, str]) -> None:
    """For people."""
    print(f"\n{'':18}{'median':>8}  {'range':>17}  {'target':>8}  CPU seconds, straightforward / levelt")
    for key, row in rows.items():
        span = f"{row.low:.1f} .. {row.high:.1f}"
        print(f"{key:18}{row.value:>8.1f}  {span:>17}  {targets[key]:>8}  {row.numerator:.3f} / {row.denominator:.3f}")
    print()


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run, print the table and the JSON line, and return what it says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recall", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=list(SHAPES), default="organism")
    parser.add_argument("--subjects", type=int, default=12, help="subjects, three prompts each")
    parser.add_argument("--simple-subjects", type=int, default=2, help="of them, for the straightforward side")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(1)
    decoder = decoder_of(options.shape)
    prompts = prompts_of(options.subjects, SHAPES[options.shape]["vocab_size"])
    few = prompts[: 3 * options.simple_subjects]
    scale = len(prompts) / len(few)
    ids = np.random.default_rng(1).integers(5, SHAPES[options.shape]["vocab_size"], (len(prompts), 7))
    depth = len(decoder.parts.layers)
    ranges = windows(depth, max(1, round(depth * 10 / 32)))
    jobs, few_jobs = (disturbed_of(part, decoder.parts.hidden_size) for part in (prompts, few))
    sides: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "speedup_tracing": (
            partial(traced_simply, decoder, few_jobs, ranges),
            partial(trace, decoder, jobs, ranges),
        ),
        "speedup_lens": (
            partial(read_simply, decoder, few, ids[: len(few)]),
            partial(read_well, decoder, prompts, ids),
        ),
    }
    simple, good = traced_simply(decoder, few_jobs, ranges), trace(decoder, few_jobs, ranges)
    agree([one.scores for one in good], simple, "tracing")
    compared = read_well(decoder, few, ids[: len(few)]), read_simply(decoder, few, ids[: len(few)])
    for what, mine, theirs in zip(("lens", "knockout"), *compared, strict=True):
        agree(mine, theirs, what)
    rows: dict[str, Ratio] = {}
    for key, (straightforward, levelt) in sides.items():
        rows[key] = ratio(straightforward, levelt, options.rounds, scale)
    print(f"{options.shape}: {SHAPES[options.shape]}, {len(prompts)} prompts, {len(jobs)} traces of {DRAWS} draws")
    print(f"straightforward side: {len(few)} prompts, scaled up; {options.rounds} rounds, one thread")
    table(rows, {"speedup_tracing": ">= 30", "speedup_lens": ">= 10"})
    result = {key: row.value for key, row in rows.items()}
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
