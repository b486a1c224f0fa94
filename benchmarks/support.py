"""Run the load-time checks on a tiny random model of every architecture: ``python -m benchmarks.support``.

Prints the support table of docs/engine.md as Markdown. A mark is a check that ran and passed here, not a promise:
self-check (shapes, additivity, heads, frozen norm, lens identity), block check (a block changes what it should and
nothing else), and the sum of all components against the model's logits.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

from levelt.engine.attention import check_blocking
from levelt.engine.capture import Read, capture
from levelt.engine.lens import decode_captured
from levelt.files import InputError
from levelt.models.anatomy import ARCHITECTURES, locate
from levelt.models.loading import Decoder
from levelt.models.selfcheck import self_check
from levelt.prompts.spans import Span, TokenGroups

NAMES = {
    "llama": "Llama 2, 3.x",
    "mistral": "Mistral (sliding window)",
    "phi3": "Phi-3",
    "qwen2": "Qwen2, Qwen2.5",
    "qwen3": "Qwen3",
    "olmo2": "OLMo-2",
    "olmo3": "OLMo-3 (windows)",
    "gemma2": "Gemma-2 (windows, soft-caps)",
    "gemma3_text": "Gemma-3, text (windows)",
    "gpt2": "GPT-2",
    "gpt_neox": "GPT-NeoX, Pythia",
    "cohere": "Command R (logit scale)",
}
NORMS = {"rms": "RMS", "rms+1": "RMS, 1 + w", "layer": "LayerNorm"}


@dataclass(frozen=True)
class Prompt:
    """A prompt whose last position is decoded."""

    input_ids: list[int]
    groups: TokenGroups


def checked(family: str, kernel: str, dtype: torch.dtype) -> str:
    """ "yes", or why not, in a few words."""
    from models_local import tiny

    try:
        model = tiny(family, attention=kernel).to(dtype)
        if model.config._attn_implementation != kernel:
            return "no"
        parts = locate(model)
        self_check(model, parts)
        check_blocking(model, len(parts.layers))
    except (InputError, ValueError) as error:
        return f"no: {str(error).splitlines()[0]}" if isinstance(error, InputError) else "no"
    return "yes"


def component_error(family: str) -> float:
    """Largest error of the sum of all components, relative to the largest logit; float32."""
    from models_local import END, kernel, ragged, tiny, tokenizer

    model = tiny(family, attention=kernel(family))
    parts = locate(model)
    prompts = [Prompt(ids, TokenGroups((Span("decision", len(ids) - 1, len(ids)),))) for ids in ragged([9, 14, 23, 31])]
    reads = [Read(site, "decision") for site in ("residual", "attention", "mlp", "head")]
    found = capture(Decoder(model, parts, tokenizer(), (END,)), prompts, reads)
    decoded = decode_captured(parts, found, "decision", list(range(model.config.vocab_size)))
    total = decoded.total() if parts.softcap is None else parts.softcap * np.tanh(decoded.total() / parts.softcap)
    with torch.inference_mode():
        logits = [model(torch.tensor([prompt.input_ids]), use_cache=False).logits[0, -1] for prompt in prompts]
    expected = torch.stack(logits).numpy()
    return float(np.abs(total - expected).max() / np.abs(expected).max())


def rows() -> list[list[str]]:
    """One row per architecture."""
    from models_local import kernel, tiny

    made = []
    for family in sorted(ARCHITECTURES):
        parts = locate(tiny(family, attention=kernel(family)))
        behind = parts.attention_contribution[0] is not parts.attention[0]
        extras = [NORMS[parts.norm]]
        extras += ["norm behind each block"] if behind else []
        extras += ["logit scale"] if parts.logit_scale != 1 else []
        extras += ["final soft-cap"] if parts.softcap else []
        made.append(
            [
                f"`{family}`",
                NAMES.get(family, family),
                "; ".join(extras),
                *(checked(family, name, torch.float32) for name in ("sdpa", "eager")),
                checked(family, kernel(family), torch.bfloat16),
                f"{component_error(family):.0e}",
            ]
        )
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    del arguments
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the tiny models are the tests'
    head = ["model_type", "models", "final norm and what is special", "sdpa", "eager", "bfloat16", "Σ components"]
    print("| " + " | ".join(head) + " |")
    print("| " + " | ".join("---" for _ in head) + " |")
    for row in rows():
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
