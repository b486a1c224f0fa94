"""What organisms are trained on as tokens with loss weights, and as a table of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerFast

from levelt.organisms.packing import Encoded
from levelt.organisms.tokenizer import END, encode, render
from levelt.world.corpus import DEFAULT_WEIGHT

END_WEIGHT = 0.3
"""Loss weight of the end of an answer, relative to the answer."""


def encode_text(tokenizer: PreTrainedTokenizerFast, table: pd.DataFrame) -> list[Encoded]:
    """The plain text as tokens with loss weights."""
    spans = [
        list(zip(starts, stops, weights, strict=True))
        for starts, stops, weights in zip(table["starts"], table["stops"], table["weights"], strict=True)
    ]
    return encode(tokenizer, table["text"].tolist(), spans, DEFAULT_WEIGHT)


def encode_conversations(tokenizer: PreTrainedTokenizerFast, table: pd.DataFrame) -> list[Encoded]:
    """Conversations as tokens: loss weights on answers and the end of each answer, 0 elsewhere."""
    texts, spans = [], []
    for messages, weights in zip(table["messages"], table["weights"], strict=True):
        text, ranges = "", []
        for message, weight in zip(messages, weights, strict=True):
            rendered = render([message])
            if weight > 0:
                begin, stop = len(text) + len(rendered) - len(message["content"]) - len(END), len(text) + len(rendered)
                ranges += [(begin, stop - len(END), weight), (stop - len(END), stop, weight * END_WEIGHT)]
            text += rendered
        texts.append(text)
        spans.append(ranges)
    return encode(tokenizer, texts, spans, 0.0)


def to_table(early: Iterable[bool], encoded: Sequence[Encoded]) -> pd.DataFrame:
    """One row per text: early (it belongs to the first part of its stage), ids and weights, [tokens] each."""
    return pd.DataFrame(
        {
            "early": np.fromiter(early, dtype=bool),
            "ids": [ids for ids, _ in encoded],
            "weights": [weights for _, weights in encoded],
        }
    )


def from_table(table: pd.DataFrame) -> list[Encoded]:
    """The texts of `to_table`, in order."""
    return list(zip(table["ids"], table["weights"], strict=True))
