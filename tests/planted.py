"""A Llama with hand-set weights that answers contrastive prompts, so that what there is to be found is known.

A prompt is "S <noun> ? <query> :". In the first layer the token "?" takes the instruction from the noun (what it then
holds is the instruction vector). In layer ``reads`` the last token takes it from "?". In the layer behind, head 0 takes
one answer from the query if the instruction was the first, head 1 the other answer if it was the second. Heads that
have nothing to do attend to S, whose values are zero. There is no MLP.
"""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from levelt.models.anatomy import locate
from levelt.models.loading import Decoder

NOUNS = ("kind", "colour")
QUERIES = tuple(f"q{index}" for index in range(8))
ANSWERS = tuple(tuple(f"{noun[0]}{index}" for index in range(8)) for noun in NOUNS)
WORDS = ("<pad>", "S", *NOUNS, "?", ".", ":", *QUERIES, *ANSWERS[0], *ANSWERS[1])
WIDTH, HEADS = 40, 2
_SIZE = WIDTH // HEADS
_MATCH, _REST = _SIZE // 2 - 1, _SIZE - 1
"""The dimensions of a head that its rotation leaves alone: one for what it looks for, one for S."""


def planted(reads: int = 2) -> Decoder:
    """The model, with ``reads`` + 1 layers (``reads`` at least 2, counted from 1)."""
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        intermediate_size=2,
        num_hidden_layers=reads + 1,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 1e12},
        tie_word_embeddings=False,
        pad_token_id=0,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).eval()
    names = ["one", "S", *NOUNS, "?", ".", ":", "query", *QUERIES, *(f"held {noun}" for noun in NOUNS)]
    names += [*(f"told {noun}" for noun in NOUNS), *ANSWERS[0], *ANSWERS[1]]
    at = {name: index for index, name in enumerate(names)}
    assert len(names) <= WIDTH
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        for index, word in enumerate(WORDS[1 : 7 + len(QUERIES)], start=1):
            for name in ("one", word, *(["query"] if word in QUERIES else [])):
                model.model.embed_tokens.weight[index, at[name]] = 1.0
        for word in (*ANSWERS[0], *ANSWERS[1]):
            model.lm_head.weight[WORDS.index(word), at[word]] = 10.0

        def head(layer: int, number: int, seeker: str | None, sought: list[str], moves: list[tuple[str, str]]) -> None:
            """Where ``seeker`` is, attend to what has one of ``sought``, and move features; elsewhere attend to S."""
            block = model.model.layers[layer].self_attn
            first = number * _SIZE
            block.q_proj.weight[first + _REST, at["one"]] = 7.0
            block.k_proj.weight[first + _REST, at["S"]] = 1.0
            if seeker is not None:
                block.q_proj.weight[first + _MATCH, at[seeker]] = 20.0
            for name in sought:
                block.k_proj.weight[first + _MATCH, at[name]] = 1.0
            for place, (source, target) in enumerate(moves):
                block.v_proj.weight[first + place, at[source]] = 1.0
                block.o_proj.weight[at[target], first + place] = 0.25

        for layer in range(reads + 1):
            for number in range(HEADS):
                head(layer, number, None, [], [])
        head(0, 0, "?", list(NOUNS), [(noun, f"held {noun}") for noun in NOUNS])
        head(reads - 1, 0, ":", ["?"], [(f"held {noun}", f"told {noun}") for noun in NOUNS])
        for number, noun in enumerate(NOUNS):
            head(reads, number, f"told {noun}", ["query"], list(zip(QUERIES, ANSWERS[number], strict=True)))
    return Decoder(model, locate(model), words(), (0,))


def words() -> PreTrainedTokenizerFast:
    """One token per word."""
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>")
