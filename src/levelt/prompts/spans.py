"""Token groups: named ranges of token positions of one prompt, located from exact character offsets.

Nothing here searches for a text. Characters come from the rendering (levelt.prompts.chat knows where it put what);
tokens come from the tokenizer's offsets. A group without a token, a token that two groups claim, a group with a hole
or a special token inside a text is an InputError.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from levelt.files import InputError

DECISION = "decision"
"""The group of the last prompt position, whose logits choose the answer."""

SAMPLE = "sample"
"""The group of the text that is judged."""

RELEASED = "sample_as_released"
"""The tokens that the released code of paper 1 averages as the sample (`encode.py`, the search for token indices): the
1-based spans of its task files are used as 0-based, end included, so that the characters are those from the second
of the text to the second behind it. The text's first token is lost where it has one character, and the template's
characters behind the text bring theirs along. It overlaps the sample, and exists to measure what that changes."""


@dataclass(frozen=True)
class Span:
    """A named half-open range of positions: characters of a text, or tokens of a prompt."""

    name: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def shifted(self, by: int) -> Span:
        """The same range ``by`` positions later."""
        return Span(self.name, self.start + by, self.stop + by)


@dataclass(frozen=True)
class TokenGroups:
    """The named token ranges of one prompt.

    Names: system, instruction (the question), sample, demonstration_k and demonstration_k_answer (k from 0),
    decision, sample_as_released (`RELEASED`). ``straddling`` counts the tokens that reach from a group into template
    characters (".\\n\\n" as one token): they belong to the group. The decision may coincide with a token of another
    group, and sample_as_released overlaps its neighbours; no other two do.
    """

    spans: tuple[Span, ...]
    straddling: int = 0

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:  # groups are asked for by plans many times
        return hash((self.spans, self.straddling))

    def __getitem__(self, name: str) -> Span:
        for span in self.spans:
            if span.name == name:
                return span
        raise KeyError(f"no token group {name!r}; there are {list(self.names)}")

    def __contains__(self, name: object) -> bool:
        return any(span.name == name for span in self.spans)

    def __iter__(self) -> Iterator[Span]:
        return iter(self.spans)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the groups: in the order of the prompt, sample_as_released last."""
        return tuple(span.name for span in self.spans)

    def shifted(self, by: int) -> TokenGroups:
        """The groups ``by`` positions later: what left padding does to them."""
        return TokenGroups(tuple(span.shifted(by) for span in self.spans), self.straddling)

    def adding(self, name: str, start: int, stop: int) -> TokenGroups:
        """The groups and one more, such as the generated positions."""
        if name in self or not 0 <= start < stop:
            raise ValueError(f"cannot add the token group {name!r} [{start}, {stop}) to {list(self.names)}")
        return TokenGroups((*self.spans, Span(name, start, stop)), self.straddling)


def locate(
    text: str,
    marks: Sequence[Span],
    offsets: Sequence[tuple[int, int]],
    *,
    special: Sequence[int] = (),
    where: str = "the prompt",
) -> TokenGroups:
    """The tokens of each marked character range, the decision (the last token), and the sample as released.

    A token belongs to a group when its characters overlap the group's, so tokens with a leading space, with a
    trailing line break, and the bytes of one character all count. Zero-width tokens (spaces, for tokenizers that trim
    offsets) belong to none, unless they stand between two tokens of the group.

    Args:
        text: the rendered prompt.
        marks: character ranges in ``text``, which do not overlap.
        offsets: character range of each token, as the tokenizer gives them.
        special: indices of the special tokens in ``offsets``; one that covers a character of a mark is refused.
        where: names the sample and the template in messages.

    Raises:
        InputError: a group is empty, ambiguous, has a hole, or contains a special token.
    """
    if not offsets:
        raise InputError(f"{where}: the prompt has no tokens")
    edges = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    starts, stops = edges[:, 0], edges[:, 1]
    ordinary = np.ones(len(edges), dtype=bool)
    ordinary[list(special)] = False
    spans: list[Span] = []
    straddling = 0
    for mark in sorted(marks, key=lambda span: span.start):
        overlaps = np.minimum(stops, mark.stop) > np.maximum(starts, mark.start)
        for index in np.flatnonzero(overlaps & ~ordinary).tolist():
            _refuse_special(text, mark, *offsets[index], where)
        inside = overlaps & ordinary
        members = np.flatnonzero(inside)
        if not len(members):
            raise InputError(f"{where}: {mark.name} not found in its prompt: none of its characters has a token")
        first, last = int(members[0]), int(members[-1])
        holes = np.flatnonzero(~inside[first:last] & (starts[first:last] < stops[first:last]))
        if len(holes):
            raise InputError(
                f"{where}: the tokens of {mark.name} are not contiguous (token {first + int(holes[0])} lies outside)"
            )
        _refuse_merged_start(text, mark, int(starts[members].min()), where)
        beyond = members[(starts[members] < mark.start) | (stops[members] > mark.stop)]
        straddling += sum(_reaches_out(text, mark, *offsets[index]) for index in beyond.tolist())
        spans.append(Span(mark.name, first, last + 1))
    for left, right in itertools.pairwise(spans):
        if right.start < left.stop:
            start, stop = offsets[right.start]
            raise InputError(
                f"{where}: ambiguous: the token {text[start:stop]!r} belongs to {left.name} and to {right.name}; put "
                f"characters between them in the template that the tokenizer does not merge"
            )
    released = [_released(mark, starts, stops) for mark in marks if mark.name == SAMPLE]
    return TokenGroups((*spans, Span(DECISION, len(offsets) - 1, len(offsets)), *filter(None, released)), straddling)


def _released(sample: Span, starts: np.ndarray, stops: np.ndarray) -> Span | None:
    """Tokens of the characters that the released code takes for the sample; None where it would find none."""
    members = np.flatnonzero(np.minimum(stops, sample.stop + 2) > np.maximum(starts, sample.start + 1))
    return Span(RELEASED, int(members[0]), int(members[-1]) + 1) if len(members) else None


def _refuse_special(text: str, mark: Span, start: int, stop: int, where: str) -> None:
    # Whitespace alone is no reason: a special token of the template may swallow the blanks beside it.
    if text[max(start, mark.start) : min(stop, mark.stop)].strip():
        raise InputError(
            f"{where}: {mark.name} contains {text[start:stop]!r}, which is a special token of this tokenizer; "
            f"remove it from the text"
        )


def _refuse_merged_start(text: str, mark: Span, covered: int, where: str) -> None:
    """A combining character that opens a text may have been composed with the template's last character."""
    for character in text[mark.start : max(covered, mark.start)]:
        if unicodedata.category(character).startswith("M") or "\u1160" <= character <= "\u11ff":
            raise InputError(
                f"{where}: {mark.name} begins with a combining character, which the tokenizer merges with the template"
            )


def _reaches_out(text: str, mark: Span, start: int, stop: int) -> bool:
    """Whether a token of the group also covers characters outside it, a leading space aside."""
    while start < mark.start and text[start] == " ":
        start += 1
    return start < mark.start or stop > mark.stop
