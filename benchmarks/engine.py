"""The engine's speed and memory: ``python -m benchmarks.engine``; the last line is JSON.

One run, one machine, one thread (its CPU time), random weights. Every ratio is the median over rounds in which the two
things it compares take turns, so that a busy machine hits both. The prompts are ragged and laid out like a study's: 48
tokens of system message and question that all share, a sample of 12 to 32 tokens, 10 tokens of template. So 65 % of a
prompt is shared, midway between the organisms' prompts (38 %) and the published ones (90 %). The "apart" rows use as
long prompts that share nothing. Batches are the engine's (sorted by length, at most 4096 tokens) for everyone but the
released procedure.

- capture_over_forward: `capture` of residuals (sample, decision), attention (decision) and the option logits / a plain
  batched forward of the same batches, which computes the logits of the last position only (the cheapest there is);
  on prompts that share nothing, so that no sharing helps. capture_over_forward_common: on the study's prompts.
- sweep_over_forward: nine conditions of the same samples (instruction_first plain and under six plans, sample_first,
  demonstrations) with the three roles / one plain batched forward of the instruction_first prompts. It depends on the
  layout: ..._organisms and ..._published have the shared parts of those studies (demonstrations are four times as
  long as an organism's prompt, and shorter than a published one).
- speedup_vs_transformerlens, speedup_vs_nnsight: residual and attention of every layer over the sample; the tools are
  asked for these sites only, in the same batches, and their values are averaged as ours are. They are checked to read
  the same. ..._apart: on prompts that share nothing, where only the cost of reading differs.
- speedup_vs_released: the released procedure (one prompt, `generate` of 20 tokens with all hidden states and scores,
  hooks on the output projections, list search for the sample, score lists) / `read_prompts` with the study's settings
  (4 new tokens at most); ..._20_tokens is the same with 20 here too. Prompts that share nothing.
- rss_5000_over_500: peak memory of a process that captures 5000 prompts / 500 prompts.

``--device cuda --shape 7b`` runs the first at the shape of a 7B Llama in bfloat16 and reports the achieved matrix
rate and the difference between the sdpa and eager kernels. It has been tested at a toy shape on a CPU only and has
NOT been run on a GPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from levelt.config import Engine
from levelt.engine.attention import plan_positions
from levelt.engine.capture import Read, capture, sweep
from levelt.engine.generate import Batch, plan_batches
from levelt.engine.plans import CONDITIONS, condition
from levelt.engine.run import read_prompts
from levelt.engine.sites import Selection
from levelt.models.anatomy import locate
from levelt.models.loading import Decoder
from levelt.prompts.spans import Span, TokenGroups

SHAPES: dict[str, dict[str, int]] = {
    "organism": {"vocab_size": 1100, "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 4, "heads": 4},
    "7b": {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "heads": 32},
    "toy": {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "heads": 4},
}
OPTIONS = [5, 6]
THREE_ROLES = (Read("residual", "sample"), Read("residual", "decision"), Read("attention", "decision"))


@dataclass(frozen=True)
class Prompt:
    """A made-up prompt: system, instruction, sample, a few template tokens."""

    input_ids: list[int]
    groups: TokenGroups


COMMON = {"": 48, "_organisms": 9, "_published": 180}
"""Tokens of system message and question, which the prompts of a condition share."""


def prompts_of(
    count: int, vocabulary: int, layout: str = "instruction_first", shared: int = COMMON[""]
) -> list[Prompt]:
    """Ragged prompts of one condition. "apart": instruction_first with nothing in common."""
    drawn = np.random.default_rng(0)
    head, template = drawn.integers(7, vocabulary, shared).tolist(), drawn.integers(7, vocabulary, 10).tolist()
    system = shared // 3
    made = []
    for _ in range(count):
        sample = drawn.integers(7, vocabulary, int(drawn.integers(12, 33))).tolist()
        match layout:
            case "instruction_first" | "apart":
                if layout == "apart":
                    head = drawn.integers(7, vocabulary, shared).tolist()
                ids = [*head, *template[:4], *sample, *template[4:]]
                begin = shared + 4
                groups = [Span("system", 1, system), Span("instruction", system + 2, shared)]
            case "sample_first":
                ids = [*head[:system], *sample, *template[:4], *head[system:], *template[4:]]
                begin = system
                at = system + len(sample) + 4
                groups = [Span("system", 1, system), Span("instruction", at, at + shared - system)]
            case _:  # demonstrations: four other samples, no instruction
                others = drawn.integers(7, vocabulary, 4 * int(drawn.integers(18, 30))).tolist()
                ids = [*head[:3], *others, *sample, *template[4:]]
                begin = 3 + len(others)
                groups = [Span("demonstration_0", 3, 12)]
        last = Span("decision", len(ids) - 1, len(ids))
        made.append(Prompt(ids, TokenGroups((*groups, Span("sample", begin, begin + len(sample)), last))))
    return made


def decoder_of(shape: str, device: str, dtype: torch.dtype, attention: str = "sdpa") -> Decoder:
    """A Llama with random weights. No tokenizer: nothing is decoded to text here."""
    sizes = dict(SHAPES[shape])
    heads = sizes.pop("heads")
    config = LlamaConfig(
        **sizes,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2 if shape != "7b" else heads,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
        attn_implementation=attention,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(config).to(dtype).eval()
    model.generation_config.pad_token_id = 0
    return Decoder(model, locate(model), None, (2,))  # type: ignore[arg-type]


# --- what is timed --------------------------------------------------------------------------------------------------


@torch.inference_mode()
def forward(decoder: Decoder, prompts: Sequence[Prompt], batch_tokens: int) -> None:
    """A plain batched forward: no cache, logits of the last position."""
    for rows in plan_batches([len(prompt.input_ids) for prompt in prompts], batch_tokens, 0):
        batch = Batch.of([prompts[row].input_ids for row in rows], decoder.model.device)
        decoder.model(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            position_ids=batch.positions(),
            use_cache=False,
            logits_to_keep=1,
        )


def captured(decoder: Decoder, prompts: Sequence[Prompt], batch_tokens: int) -> None:
    """The three roles without a decode step, and the options' logits."""
    reads = [*THREE_ROLES, Read("logits", "decision")]
    capture(decoder, prompts, reads, token_ids=OPTIONS, batch_tokens=batch_tokens)


PLANS = tuple(name for name in CONDITIONS if not name.endswith("_as_released"))


def nine_conditions(decoder: Decoder, conditions: dict[str, list[Prompt]], batch_tokens: int) -> None:
    """instruction_first plain and under six plans, sample_first, demonstrations: three roles and logits of each."""
    plan_positions.cache_clear()  # a study asks for each prompt's plan once
    reads = [*THREE_ROLES, Read("logits", "decision")]
    plans = {"instruction_first": None} | {name: condition(name) for name in PLANS}
    found = sweep(decoder, conditions["instruction_first"], plans, reads, token_ids=OPTIONS, batch_tokens=batch_tokens)
    for name in ("sample_first", "demonstrations"):
        captured(decoder, conditions[name], batch_tokens)
    assert len(found) + 2 == 9


def same_sites(decoder: Decoder, prompts: Sequence[Prompt], batch_tokens: int) -> dict[str, np.ndarray]:
    """Residual and attention over the sample: what is compared with other tools."""
    found = capture(
        decoder, prompts, [Read("residual", "sample"), Read("attention", "sample")], batch_tokens=batch_tokens
    )
    return dict(found.values)


def study(decoder: Decoder, prompts: Sequence[Prompt], new_tokens: int) -> None:
    """One condition of the study: roles, answers and logits."""
    engine = Engine(max_new_tokens=new_tokens, device="cpu")
    read_prompts(decoder, prompts, ["sample", "decision", "output"], [OPTIONS] * len(prompts), engine)


def selections(prompts: Sequence[Prompt], batch_tokens: int) -> list[tuple[list[int], Batch, Selection]]:
    """Batches and the sample's positions, for the tools that have no such thing."""
    made = []
    for rows in plan_batches([len(prompt.input_ids) for prompt in prompts], batch_tokens, 0):
        batch = Batch.of([prompts[row].input_ids for row in rows], torch.device("cpu"))
        spans = [prompts[row].groups["sample"].shifted(batch.offsets[at]) for at, row in enumerate(rows)]
        selection = Selection.of({"sample": [(span.start, span.stop) for span in spans]}, torch.device("cpu"))
        made.append((rows, batch, selection))
    return made


def in_order(found: list[tuple[list[int], Tensor]]) -> np.ndarray:
    rows = np.concatenate([rows for rows, _ in found])
    values = np.concatenate([values.numpy() for _, values in found])
    return np.asarray(values[np.argsort(rows)])


@torch.inference_mode()
def transformer_lens(bridge: Any, prompts: Sequence[Prompt], batch_tokens: int) -> dict[str, np.ndarray]:
    """`run_with_cache` of the same batches, filtered to the same sites."""
    layers = bridge.cfg.n_layers
    residual = ["blocks.0.hook_resid_pre"] + [f"blocks.{layer}.hook_resid_post" for layer in range(layers)]
    attention = [f"blocks.{layer}.hook_attn_out" for layer in range(layers)]
    found: dict[str, list[tuple[list[int], Tensor]]] = {"sample.residual": [], "sample.attention": []}
    for rows, batch, selection in selections(prompts, batch_tokens):
        _, cache = bridge.run_with_cache(
            batch.ids,
            names_filter=residual + attention,
            attention_mask=batch.mask,
            position_ids=batch.positions(),
        )
        for name, hooks in (("sample.residual", residual), ("sample.attention", attention)):
            found[name].append((rows, torch.stack([selection.mean(cache[hook])[:, 0] for hook in hooks], 1)))
    return {name: in_order(values) for name, values in found.items()}


@torch.inference_mode()
def nnsight(traced: Any, prompts: Sequence[Prompt], batch_tokens: int) -> dict[str, np.ndarray]:
    """One trace per batch, saving the same modules' outputs."""
    layers = traced._model.config.num_hidden_layers if hasattr(traced, "_model") else traced.config.num_hidden_layers
    found: dict[str, list[tuple[list[int], Tensor]]] = {"sample.residual": [], "sample.attention": []}
    for rows, batch, selection in selections(prompts, batch_tokens):
        positions = batch.positions()
        with traced.trace(
            input_ids=batch.ids, attention_mask=batch.mask, position_ids=positions, use_cache=False, logits_to_keep=1
        ):
            states = [traced.model.embed_tokens.output.save()]
            added = []
            for layer in range(layers):
                added.append(traced.model.layers[layer].self_attn.output[0].save())
                states.append(traced.model.layers[layer].output.save())
            states, added = states.save(), added.save()  # type: ignore[attr-defined]
        for name, values in (("sample.residual", states), ("sample.attention", added)):
            found[name].append((rows, torch.stack([selection.mean(value)[:, 0] for value in values], 1)))
    return {name: in_order(values) for name, values in found.items()}


@torch.inference_mode()
def released(decoder: Decoder, prompts: Sequence[Prompt], new_tokens: int = 20) -> None:
    """The published procedure for one condition, written after encode.py (methods/1, section 3 and defects B).

    One prompt at a time: ``generate`` of 20 tokens with hidden states and scores kept; a hook on every o_proj that
    stores its output when one token is fed; the sample found by searching its ids in the prompt's; the mean of the
    prefill's hidden states over it, of the stored outputs over the steps, of the steps' hidden states; the scores of
    every step as Python lists. Nothing is written to disk here, which the release does.
    """
    stored: dict[int, list[Tensor]] = {}

    def hook(layer: int, _module: Any, _inputs: Any, output: Tensor) -> None:
        if output.shape[1] == 1:
            stored.setdefault(layer, []).append(output.detach().cpu())

    handles = [
        module.register_forward_hook(partial(hook, layer)) for layer, module in enumerate(decoder.parts.projection)
    ]
    kept: list[Any] = []
    scores_kept: list[list[float]] = []
    try:
        for prompt in prompts:
            stored.clear()
            ids = torch.tensor([prompt.input_ids])
            output = decoder.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=new_tokens,
                eos_token_id=2,
                return_dict_in_generate=True,
                output_hidden_states=True,
                output_scores=True,
            )
            span = prompt.groups["sample"]
            wanted = prompt.input_ids[span.start : span.stop]
            start = next(at for at in range(len(prompt.input_ids)) if prompt.input_ids[at : at + len(wanted)] == wanted)
            indices = list(range(start, start + len(wanted)))
            sample = [state[0, indices].mean(0).float().numpy() for state in output.hidden_states[0]]
            added = [torch.cat(stored[layer], 1).mean(1)[0].float().numpy() for layer in sorted(stored)]
            steps = [
                torch.cat([step[layer] for step in output.hidden_states[1:]], 1).mean(1)[0].float().numpy()
                for layer in range(len(output.hidden_states[0]))
            ]
            kept.append((sample, added, steps, output.sequences[0, ids.shape[1] :].tolist()))
            scores_kept = [step[0].tolist() for step in output.scores]  # the release keeps these of every prompt
    finally:
        for handle in handles:
            handle.remove()
    assert len(kept) == len(prompts) and scores_kept


# --- peers ----------------------------------------------------------------------------------------------------------


def bridge_of(decoder: Decoder) -> Any:
    """A TransformerLens bridge around a copy of the model, which it turns to its own eager attention."""
    import copy
    import tempfile
    import warnings

    from tokenizers import Tokenizer, models
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    model = copy.deepcopy(decoder.model)
    model.config.architectures = [type(model).__name__]
    words = {word: index for index, word in enumerate(["<pad>", "<s>", "</s>"])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<pad>")),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
    )
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer.save_pretrained(folder)
        model.config.save_pretrained(folder)
        return TransformerBridge.boot_transformers(
            folder, hf_model=model, tokenizer=AutoTokenizer.from_pretrained(folder), device="cpu"
        )


def traced_of(decoder: Decoder) -> Any:
    """nnsight around the model itself."""
    from nnsight import NNsight

    return NNsight(decoder.model)


# --- timing ---------------------------------------------------------------------------------------------------------


def seconds(work: Callable[[], Any], device: str = "cpu") -> float:
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
    # on one thread of a CPU, the process's own time: what others do on the machine is not in it
    clock = time.perf_counter if device == "cuda" else time.process_time
    begin = clock()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - begin


def ratio(numerator: Callable[[], Any], denominator: Callable[[], Any], rounds: int, device: str = "cpu") -> Ratio:
    """The median ratio of two pieces of work that take turns, after one warm-up of each."""
    numerator(), denominator()
    pairs = []
    for turn in range(rounds):
        order = (numerator, denominator) if turn % 2 == 0 else (denominator, numerator)
        times = [seconds(work, device) for work in order]
        pairs.append(tuple(times if turn % 2 == 0 else reversed(times)))
    quotients = sorted(first / second for first, second in pairs)
    return Ratio(
        statistics.median(quotients),
        quotients[0],
        quotients[-1],
        statistics.median(first for first, _ in pairs),
        statistics.median(second for _, second in pairs),
    )


@dataclass(frozen=True)
class Ratio:
    """A measured quotient: median and range over the rounds, and the median seconds of both sides."""

    value: float
    low: float
    high: float
    numerator: float
    denominator: float


def peak(count: int, shape: str) -> int:
    """Peak resident memory, in KiB, of a process that captures so many prompts."""
    command = [sys.executable, "-m", "benchmarks.engine", "--memory", str(count), "--shape", shape]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def peak_of_this_process() -> int:
    """KiB. Linux keeps the parent's ru_maxrss across fork and exec, so its own high-water mark is preferred."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        if "VmHWM" in lines:
            return int(lines["VmHWM"].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def agree(mine: dict[str, np.ndarray], theirs: dict[str, np.ndarray], who: str) -> None:
    """A comparison of speeds is void unless both read the same."""
    for name, values in mine.items():
        error = float(np.abs(values - theirs[name]).max() / np.abs(values).max())
        if not error < 1e-4:
            raise SystemExit(f"{who} read something else: {name} differs by {error:.1e}")


# --- the run --------------------------------------------------------------------------------------------------------


def on_cpu(shape: str, count: int, rounds: int, batch_tokens: int, memory: tuple[int, int]) -> dict[str, Any]:
    """All ratios, on one thread."""
    decoder = decoder_of(shape, "cpu", torch.float32)
    layouts = "instruction_first", "apart", "sample_first", "demonstrations"
    conditions = {layout: prompts_of(count, SHAPES[shape]["vocab_size"], layout) for layout in layouts}
    common, apart = conditions["instruction_first"], conditions["apart"]
    rows: dict[str, Ratio | float | None] = {}
    notes: dict[str, str] = {}
    for key, prompts in (("capture_over_forward", apart), ("capture_over_forward_common", common)):
        work = partial(captured, decoder, prompts, batch_tokens)
        rows[key] = ratio(work, partial(forward, decoder, prompts, batch_tokens), 2 * rounds)
    for suffix, shared in COMMON.items():
        prompts = {layout: prompts_of(count, SHAPES[shape]["vocab_size"], layout, shared) for layout in layouts}
        plain = partial(forward, decoder, prompts["instruction_first"], batch_tokens)
        work = partial(nine_conditions, decoder, prompts, batch_tokens)
        rows[f"sweep_over_forward{suffix}"] = ratio(work, plain, rounds)
    peers: tuple[tuple[str, Callable[[Decoder], Any], Callable[..., dict[str, np.ndarray]]], ...] = (
        ("transformerlens", bridge_of, transformer_lens),
        ("nnsight", traced_of, nnsight),
    )
    for who, make, run in peers:
        key = f"speedup_vs_{who}"
        try:
            peer = make(decoder)
        except ImportError as error:
            rows[key], notes[key] = None, f"not installed ({error})"
            continue
        for name, prompts in ((key, common), (f"{key}_apart", apart)):
            mine, theirs = (
                partial(same_sites, decoder, prompts, batch_tokens),
                partial(run, peer, prompts, batch_tokens),
            )
            agree(mine(), theirs(), who)
            rows[name] = ratio(theirs, mine, rounds)
    few = apart[: max(8, count // 10)]
    one_by_one, scale = partial(released, decoder, few), count / len(few)
    for key, new_tokens in (("speedup_vs_released", 4), ("speedup_vs_released_20_tokens", 20)):
        found = ratio(one_by_one, partial(study, decoder, apart, new_tokens), rounds)
        values = (value * scale for value in (found.value, found.low, found.high, found.numerator))
        rows[key] = Ratio(*values, found.denominator)
    notes["speedup_vs_released"] = f"the released procedure ran on {len(few)} of the prompts, scaled up"
    small, large = (peak(number, shape) for number in memory)
    rows["rss_5000_over_500"] = large / small
    notes["rss_5000_over_500"] = f"{memory[0]}: {small / 1024:.0f} MiB, {memory[1]}: {large / 1024:.0f} MiB"
    tokens = sum(len(prompt.input_ids) for prompt in common)
    print(f"{shape}: {SHAPES[shape]}, {count} prompts, {tokens} tokens, {rounds} rounds, 1 thread")
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}")
    table(rows, notes)
    return {key: row.value if isinstance(row, Ratio) else row for key, row in rows.items()} | {"notes": notes}


def on_device(shape: str, device: str, count: int, rounds: int, batch_tokens: int) -> dict[str, Any]:
    """Capture at a large shape in bfloat16: its cost, its matrix rate, and whether the two kernels agree."""
    decoder = decoder_of(shape, device, torch.bfloat16)
    prompts = prompts_of(count, SHAPES[shape]["vocab_size"], "apart")
    work = partial(captured, decoder, prompts, batch_tokens)
    found = ratio(work, partial(forward, decoder, prompts, batch_tokens), rounds, device)
    matrices = sum(
        parameter.numel() for layer in decoder.parts.layers for parameter in layer.parameters() if parameter.dim() > 1
    )
    lengths = [len(prompt.input_ids) for prompt in prompts]
    width, layers = decoder.parts.hidden_size, len(decoder.parts.layers)
    flops = sum(2 * matrices * length + 4 * layers * width * length**2 for length in lengths)
    size = min(8192, max(256, 2 * width))
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        left @ right
    best = min(seconds(lambda: left @ right, device) for _ in range(10))
    rate, achieved = 2 * size**3 / best, flops / found.numerator
    exact = capture(decoder, prompts, [*THREE_ROLES], batch_tokens=batch_tokens)
    decoder.model.set_attn_implementation("eager")
    eager = capture(decoder, prompts, [*THREE_ROLES], batch_tokens=batch_tokens)
    gaps = {
        name: float(np.linalg.norm(values - eager[name]) / np.linalg.norm(eager[name]))
        for name, values in exact.values.items()
    }
    where = torch.cuda.get_device_name() if device == "cuda" else "a CPU, which only shows that this mode works"
    print(f"{shape} on {where}, bfloat16, {count} prompts")
    table({"capture_over_forward": found}, {})
    print(f"achieved {achieved / 1e12:.2f} TFLOP/s of {rate / 1e12:.2f} measured: {achieved / rate:.0%}")
    print("sdpa against eager:", ", ".join(f"{name} {value:.1e}" for name, value in gaps.items()))
    return {
        "capture_over_forward": found.value,
        "flops_over_matrix_rate": achieved / rate,
        "sdpa_against_eager": max(gaps.values()),
        "kernels_agree": all(math.isfinite(value) and value < 0.05 for value in gaps.values()),
    }


TARGETS = {
    "capture_over_forward": "<= 1.15",
    "sweep_over_forward": "<= 5",
    "speedup_vs_transformerlens": ">= 3",
    "speedup_vs_nnsight": ">= 1.2",
    "speedup_vs_released": ">= 20",
    "rss_5000_over_500": "flat",
}


def table(rows: dict[str, Ratio | float | None], notes: dict[str, str]) -> None:
    """For people."""
    print(f"\n{'':32}{'median':>8}  {'range':>15}  {'target':>8}  seconds")
    for key, row in rows.items():
        target = TARGETS.get(key, "")
        match row:
            case Ratio():
                span = f"{row.low:.2f} .. {row.high:.2f}"
                times = f"{row.numerator:.3f} / {row.denominator:.3f}"
                print(f"{key:32}{row.value:>8.2f}  {span:>15}  {target:>8}  {times}")
            case None:
                print(f"{key:32}{'-':>8}  {'':>15}  {target:>8}  {notes.get(key, '')}")
            case value:
                print(f"{key:32}{value:>8.2f}  {'':>15}  {target:>8}  {notes.get(key, '')}")
    print()


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run, print the table and the JSON line, and return what it says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shape", choices=list(SHAPES), default="organism")
    parser.add_argument("--mode", choices=["auto", "ratios", "device"], default="auto", help="device: the bf16 mode")
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--memory", type=int, help="capture so many prompts, print the peak memory in KiB, and stop")
    options = parser.parse_args(arguments)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if options.memory:
        torch.set_num_threads(1)
        prompts = prompts_of(options.memory, SHAPES[options.shape]["vocab_size"], "apart")
        captured(decoder_of(options.shape, "cpu", torch.float32), prompts, options.batch_tokens)
        print(peak_of_this_process())
        return {}
    on_a_device = options.mode == "device" or (options.mode == "auto" and options.device == "cuda")
    if on_a_device:
        if options.device == "cuda" and not torch.cuda.is_available():
            raise SystemExit("torch sees no CUDA device here")
        result = on_device(options.shape, options.device, options.prompts, options.rounds, options.batch_tokens)
    else:
        torch.set_num_threads(1)
        memory = (500, 5000) if options.shape != "toy" else (20, 40)
        result = on_cpu(options.shape, options.prompts, options.rounds, options.batch_tokens, memory)
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
