"""Small tokenizers of the kinds that decoders use, trained on a few sentences, and chat templates. No network."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "Is the given text acceptable? Answer only with ‘yes’ or ‘no’: choose ‘yes’ or ‘no’.",
    "The author likes the senators that the doctors admire. yes no yes no",
    "question: is it so?\ntext: a lady isn't sure to flee from.\n\nAnswer: yes",
    "Question: Text: user assistant system\n\n##Text\nMark disturbed these ill students.\n\nAnswer: no",
] * 4

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""With a system role, keeps every character of the contents (Qwen)."""

LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
"""Trims the contents (Llama-3)."""

NO_SYSTEM = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% elif message['role'] == 'user' %}"
    "[INST] {{ message['content'] }} [/INST]{% else %} {{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
"""Refuses a system message (Mistral, Gemma)."""

IGNORES_SYSTEM = (
    "{% for message in messages %}{% if message['role'] == 'user' %}User: {{ message['content'] }}\n"
    "{% elif message['role'] == 'assistant' %}Bot: {{ message['content'] }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Bot:{% endif %}"
)
"""Silently leaves a system message out, and its generation prompt is ordinary text."""

TEMPLATES: dict[str, str | None] = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "no_system": NO_SYSTEM,
    "ignores_system": IGNORES_SYSTEM,
    "none": None,
}

_CHAT_TOKENS = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def _byte_level(*, prefix: bool, trim: bool, split: str | None = None, normalizer: object = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, trim_offsets=trim, use_regex=split is None)
    tokenizer.pre_tokenizer = (
        level
        if split is None
        else pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), behavior="isolated"), level])
    )
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", *_CHAT_TOKENS],
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def _fast(tokenizer: Tokenizer, **tokens: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens)


def gpt2(*, prefix: bool = False, trim: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE; the beginning, end and unknown tokens are one."""
    end = "<|endoftext|>"
    return _fast(_byte_level(prefix=prefix, trim=trim), bos_token=end, eos_token=end, unk_token=end)


def neox() -> PreTrainedTokenizerFast:
    """Byte-level BPE with NFC and trimmed offsets."""
    tokenizer = _byte_level(prefix=False, trim=True, normalizer=normalizers.NFC())
    return _fast(tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def llama3() -> PreTrainedTokenizerFast:
    """Byte-level BPE after a split expression; the tokenizer adds a beginning-of-text token."""
    tokenizer = _byte_level(prefix=False, trim=False, split=LLAMA3_SPLIT)
    begin = "<|endoftext|>"
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]),
        ]
    )
    return _fast(tokenizer, bos_token=begin, eos_token="<|eot_id|>")


def qwen2() -> PreTrainedTokenizerFast:
    """Byte-level BPE after a split expression, with NFC normalisation."""
    tokenizer = _byte_level(prefix=False, trim=False, split=LLAMA3_SPLIT, normalizer=normalizers.NFC())
    return _fast(tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def _pieces(*, legacy: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    lines = pre_tokenizers.Split("\n", behavior="isolated")  # for training only: no pieces across lines and words
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [lines, pre_tokenizers.Split("▁", behavior="merged_with_next")]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([lines, pre_tokenizers.Metaspace(prepend_scheme="first")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=520,
        special_tokens=["<unk>", "<s>", "</s>", *_CHAT_TOKENS],
        initial_alphabet=["▁"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    vocabulary = tokenizer.get_vocab()
    for byte in range(256):
        vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    state = json.loads(tokenizer.to_str())
    state["model"]["vocab"] = vocabulary
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    state["pre_tokenizer"] = None if legacy else metaspace
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def llama2() -> PreTrainedTokenizerFast:
    """Pieces with byte fallback; the space mark is a normaliser."""
    return _fast(_pieces(legacy=True), bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def mistral() -> PreTrainedTokenizerFast:
    """Pieces with byte fallback; the space mark is a pre-tokenizer (Metaspace)."""
    return _fast(_pieces(legacy=False), bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def lowercase() -> PreTrainedTokenizerFast:
    """Byte-level BPE of lower-cased text without accents: the normaliser drops characters."""
    chain = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()])
    return _fast(_byte_level(prefix=False, trim=False, normalizer=chain), bos_token="<|endoftext|>")


BUILDERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "gpt2": gpt2,
    "gpt2_prefix": lambda: gpt2(prefix=True),
    "gpt2_trim": lambda: gpt2(trim=True),
    "gpt2_prefix_trim": lambda: gpt2(prefix=True, trim=True),
    "neox": neox,
    "llama3": llama3,
    "qwen2": qwen2,
    "llama2": llama2,
    "mistral": mistral,
    "lowercase": lowercase,
}


@cache
def build(kind: str, chat: str = "none") -> PreTrainedTokenizerFast:
    """The tokenizer of this kind with this chat template; one object per process, not to be changed."""
    tokenizer = BUILDERS[kind]()
    tokenizer.chat_template = TEMPLATES[chat]
    if tokenizer.bos_token is None and chat != "none":
        tokenizer.bos_token = "<|endoftext|>"
    return tokenizer
