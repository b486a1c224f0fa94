"""The organisms' tokenizer: byte-level BPE whose frequent words are whole entries, with a chat template.

Any text tokenises (all 256 bytes are entries); the words of the world are one token each, with and without the space
before them as they occur. There are no merges: `ignore_merges` looks a whole pre-token up first, as in Llama 3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, SYSTEM, USER, ASSISTANT, END = "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIAL = (PAD, SYSTEM, USER, ASSISTANT, END)
MAX_LENGTH = 4096

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + message['role']) }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def render(messages: Iterable[Mapping[str, str]], generate: bool = False) -> str:
    """The same text as the chat template gives, without Jinja (a test compares the two)."""
    text = "".join(f"<|{message['role']}|>{message['content']}{END}" for message in messages)
    return text + ASSISTANT if generate else text


def train_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """A tokenizer with at most ``size`` entries: special tokens, 256 bytes, then the most frequent pre-tokens.

    The same texts give the same tokenizer, whatever their order.
    """
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    counts: Counter[str] = Counter()
    for line, times in Counter(texts).items():
        for piece, _ in splitter.pre_tokenize_str(line):
            counts[piece] += times
    entries = [*SPECIAL, *alphabet]
    ranked = sorted((-times, piece) for piece, times in counts.items() if len(piece) > 1)
    entries += [piece for _, piece in ranked[: max(size - len(entries), 0)]]
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    core.pre_tokenizer = splitter
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> list[str]:
    """Write the tokenizer's files into a folder; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [Path(name) for name in tokenizer.save_pretrained(str(folder))]
    return sorted(path.name for path in written if path.exists())


def encode(
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    spans: Sequence[Sequence[tuple[int, int, float]]],
    default: float,
) -> list[tuple[Int32[np.ndarray, " tokens"], Float32[np.ndarray, " tokens"]]]:
    """Token ids and loss weights of each text.

    ``spans`` are half-open character ranges with a weight; a token takes the weight of the range its first character
    lies in, or ``default``.
    """
    core: Any = tokenizer.backend_tokenizer
    encodings = core.encode_batch(list(texts), add_special_tokens=False)
    encoded = []
    for encoding, text, ranges in zip(encodings, texts, spans, strict=True):
        weights = np.full(len(text) + 1, default, dtype=np.float32)
        for start, stop, weight in ranges:
            weights[start:stop] = weight
        begins = np.fromiter((offset[0] for offset in encoding.offsets), dtype=np.int64)
        encoded.append((np.array(encoding.ids, dtype=np.int32), weights[begins]))
    return encoded
