"""Behaviour: what a generated answer says, after normalisation, apart from whether it is right."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from levelt.files import InputError


def normalised(text: str) -> str:
    """An answer without what does not matter: outer white space, punctuation and quotes removed, case folded.

    >>> normalised(' "Yes." ')
    'yes'
    >>> normalised("**No**\\n")
    'no'
    """
    start, stop = 0, len(text)
    while start < stop and _outer(text[start]):
        start += 1
    while stop > start and _outer(text[stop - 1]):
        stop -= 1
    return text[start:stop].casefold()


def _outer(character: str) -> bool:
    # backtick and acute accent are modifier symbols in Unicode, quotes in practice
    return character.isspace() or character in "`´" or unicodedata.category(character).startswith("P")


@dataclass(frozen=True)
class Behaviour:
    """One answer: as given (normalised), whether it is the right one, whether it is an option at all."""

    given: str
    exact_match: bool
    answered: bool


def judge(generated: str, answer: str, options: Sequence[str]) -> Behaviour:
    """Compare a generated text with the right answer and with the options.

    Raises:
        InputError: the options are not distinct after normalisation, or the answer is none of them.
    """
    allowed = [normalised(option) for option in options]
    if len(set(allowed)) < len(allowed) or "" in allowed:
        raise InputError(f"the options {list(options)} cannot be told apart once case and punctuation are removed")
    right = normalised(answer)
    if right not in allowed:
        raise InputError(f"the answer {answer!r} is none of the options {list(options)}")
    given = normalised(generated)
    return Behaviour(given, given == right, given in allowed)
