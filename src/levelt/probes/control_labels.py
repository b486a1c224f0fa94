"""Labels that carry nothing about the task: what a probe reaches on these says something about the probe.

- text: one random label per text, so that equal texts agree (Hewitt and Liang 2019, with texts as types).
- words: every word type has a random weight, and a text's label says whether its words weigh more than the median
  text's. It is as arbitrary as the first, but can be learned from other texts, through the words they share: what a
  probe of a sentence can do with lexical content alone.
- permuted: the task's own labels, dealt anew within each pair, or over rows where a pair has one label.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.int64]


def random_by_text(texts: Sequence[tuple[int, ...]], generator: np.random.Generator) -> Codes:
    """A random label per distinct text, as many of each as can be: [n]."""
    types: dict[tuple[int, ...], int] = {}
    codes = np.array([types.setdefault(text, len(types)) for text in texts])
    dealt: Codes = generator.permutation(np.arange(len(types)) % 2)[codes]
    return dealt


def random_by_words(texts: Sequence[tuple[int, ...]], generator: np.random.Generator) -> Codes:
    """Whether the random weights of a text's words add up to more than the median text's: [n]."""
    words, at = np.unique(np.concatenate([np.asarray(text) for text in texts]), return_inverse=True)
    rows = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    sums = np.bincount(rows, weights=generator.normal(size=len(words))[at], minlength=len(texts))
    heavy: Codes = (sums > np.median(sums)).astype(np.int64)
    return heavy


def permuted(labels: Codes, groups: npt.ArrayLike, generator: np.random.Generator) -> Codes:
    """Labels dealt anew within each group, [n]; rows of groups with a single label exchange theirs with each other."""
    _, codes = np.unique(np.asarray(groups), return_inverse=True)
    first = np.empty(codes.max() + 1, dtype=labels.dtype)
    first[codes] = labels
    mixed = (np.bincount(codes, weights=labels != first[codes]) > 0)[codes]
    dealt = labels.copy()
    rows = np.flatnonzero(mixed)
    order = np.lexsort((generator.random(len(rows)), codes[rows]))
    dealt[rows[np.argsort(codes[rows], kind="stable")]] = labels[rows[order]]
    others = np.flatnonzero(~mixed)
    dealt[others] = labels[generator.permutation(others)]
    return dealt


def bag(texts: Sequence[tuple[int, ...]]) -> npt.NDArray[np.float64]:
    """How often each word occurs in each text: [n, distinct words]."""
    words = {word: at for at, word in enumerate(sorted({word for text in texts for word in text}))}
    counts = np.zeros((len(texts), len(words)))
    for row, text in enumerate(texts):
        np.add.at(counts[row], [words[word] for word in text], 1)
    return counts
