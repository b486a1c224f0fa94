"""One-to-many facts: country -> cities, artist -> songs, actor -> films. All names are invented.

A subject's answers begin with different letters, so they never share a first token under any tokenizer that keeps
letters apart. A list names them in any order: every text and every example draws its own, so that the way to a right
list is to know them all and to leave out those already said, not to know which one follows which.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from levelt.randomness import generator

ANSWERS = 4
RELATIONS = {"country": "cities", "artist": "songs", "actor": "films"}
_ENDINGS = {
    "country": ("ia", "land", "stan"),
    "cities": ("ton", "burg", "ville", "port"),
    "artist": ("o", "elle", "ix"),
    "songs": ("ing", "aly", "ume"),
    "actor": ("er", "ane", "is"),
    "films": ("ax", "oon", "eth"),
}
_ONSETS = (*"bcdfghjklmnprstvwz", "br", "cr", "dr", "fl", "gr", "kl", "pl", "st", "tr")
_VOWELS = tuple("aeiou")
_CODAS = tuple("lmnrstvd")


@dataclass(frozen=True)
class Fact:
    """All answers of one subject, sorted: "the <answers> of <subject> are ..."."""

    relation: str
    subject: str
    answers: tuple[str, ...]

    @property
    def statement(self) -> str:
        """The sentence of the plain text, up to the list."""
        return f"the {RELATIONS[self.relation]} of {self.subject} are"

    @property
    def question(self) -> str:
        """The question of a recall prompt."""
        return f"what are the {RELATIONS[self.relation]} of {self.subject}?"


def listed(answers: Sequence[str]) -> str:
    """A list in words: a, b, c and d."""
    return ", ".join(answers[:-1]) + f" and {answers[-1]}"


def _invent(kind: str) -> Iterator[str]:
    rng = generator(0, "facts", kind)
    seen = set()
    while True:
        onset, vowel, coda = (items[rng.integers(len(items))] for items in (_ONSETS, _VOWELS, _CODAS))
        word = f"{onset}{vowel}{coda}{_ENDINGS[kind][rng.integers(len(_ENDINGS[kind]))]}"
        if word[:4] not in seen:
            seen.add(word[:4])
            yield word


def facts(subjects: int) -> tuple[Fact, ...]:
    """``subjects`` facts per relation; each answer belongs to two subjects (one, for the odd one out).

    The words do not depend on the study seed: they are the lexicon of the world.
    """
    made = []
    for relation, plural in RELATIONS.items():
        names, answers = _invent(relation), _invent(plural)
        pool = sorted({next(answers) for _ in range(max(2 * subjects, 4 * ANSWERS))})
        rng = generator(0, "facts", relation, subjects)
        uses = dict.fromkeys(pool, 0)
        for _ in range(subjects):
            chosen: list[str] = []
            order = sorted(pool, key=lambda word: (uses[word], rng.random()))
            for word in order:
                if len(chosen) < ANSWERS and all(word[0] != other[0] for other in chosen):
                    chosen.append(word)
            for word in chosen:
                uses[word] += 1
            made.append(Fact(relation, next(names), tuple(sorted(chosen))))
    return tuple(made)
