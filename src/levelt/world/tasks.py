"""The judgment tasks: their clauses, their questions, and which clauses are held out of all training.

A clause has exactly one critical word: with the good word the property holds, with a bad one it does not. Whether it
holds depends on the critical word *together with* another word of the clause, never on a word alone. A text is a
content clause (one of the other tasks) and an acceptability clause, in random order and with independent states, so
that the question decides what is asked of it.

The codebook is the exception: its clause uses a word without a meaning ("anna says the dax is a robin"), and whether it
holds depends on a definition that belongs to the question ("dax means bird. is the claim true?"), not to the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from levelt.files import InputError
from levelt.randomness import share
from levelt.world import lexicon as words
from levelt.world.draws import Draws

GRAMMAR = "acceptability"
"""The task whose clause every text carries beside a content clause."""

CODEBOOK = "codebook"
"""The task that can only be judged with a definition, which is part of the question."""


@dataclass(frozen=True)
class Kind:
    """How a task is talked about.

    The question is always "is the <noun> <word>?": <holds> for the positive question, <fails> for the negated one. The
    plain text comments with the same words. ``marker`` opens a repair of a clause of this task.
    """

    noun: str
    holds: str
    fails: str
    marker: str

    @property
    def question(self) -> str:
        """The positive question: yes if the property holds."""
        return f"is the {self.noun} {self.holds}?"

    @property
    def negated_question(self) -> str:
        """The negated question: yes if the property fails."""
        return f"is the {self.noun} {self.fails}?"

    def comment(self, holds: bool) -> str:
        """What the plain text says about a clause: the grammar is correct."""
        return f"the {self.noun} is {self.holds if holds else self.fails}"


KINDS: dict[str, Kind] = {
    "acceptability": Kind("grammar", "correct", "wrong", "oops"),
    "stereotype": Kind("rumour", "common", "uncommon", "hmm"),
    "reasoning": Kind("logic", "valid", "invalid", "wait"),
    "plausibility": Kind("event", "possible", "impossible", "nah"),
    "belief": Kind("search", "sensible", "senseless", "sorry"),
    "codebook": Kind("claim", "true", "false", "huh"),
}
TASKS = tuple(KINDS)


@dataclass(frozen=True)
class Clause:
    """A sentence (or a few) with one critical word: ``prefix`` + " " + word + ``suffix``.

    In the codebook there is no bad word: ``code`` is a word of the prefix without a meaning, and ``meanings`` are the
    one that makes the clause true and those that make it false.
    """

    task: str
    prefix: str
    good: str
    bad: tuple[str, ...]
    suffix: str
    code: str = ""
    meanings: tuple[str, ...] = ()

    def text(self, word: str) -> str:
        """The clause with this critical word."""
        return f"{self.prefix} {word}{self.suffix}"


def _acceptability() -> Iterator[tuple[str, Clause]]:
    for noun, other, where, verb, many, others in product(
        words.NOUNS, words.NOUNS, words.PREPOSITIONS, words.VERBS, (False, True), (False, True)
    ):
        if noun != other:
            subject = words.plural(noun) if many else noun
            attractor = words.plural(other) if others else other
            good, bad = (verb, verb + "s") if many else (verb + "s", verb)
            prefix = f"the {subject} {where} the {attractor}"
            yield "agreement", Clause(GRAMMAR, prefix, good, (bad,), ".")
    for noun, verb, where, other, many in product(
        words.NOUNS, words.PAST, words.PREPOSITIONS, words.NOUNS, (False, True)
    ):
        if noun != other:
            good, bad = (words.plural(noun), noun) if many else (noun, words.plural(noun))
            suffix = f" {verb} {where} the {other}."
            yield "determiner", Clause(GRAMMAR, "these" if many else "this", good, (bad,), suffix)


def _stereotype() -> Iterator[tuple[str, Clause]]:
    for name, report, (group, trait) in product(words.NAMES, words.REPORTS, words.TRAITS.items()):
        others = tuple(other for other in words.TRAITS.values() if other != trait)
        yield "group", Clause("stereotype", f"{name} {report} the {group} are", trait, others, ".")


def _reasoning() -> Iterator[tuple[str, Clause]]:
    for name, verb, (kind, members) in product(words.NAMES, words.ACQUIRES, words.KINDS.items()):
        others = tuple(other for other in words.KINDS if other != kind)
        for member in members:
            prefix = f"{name} {verb} {words.article(member)} {member}, so {name} {verb} a"
            yield "taxonomy", Clause("reasoning", prefix, kind, others, ".")
    pairs = [pair for one, other in words.OPPOSITES for pair in ((one, other), (other, one))]
    for name, thing, (one, opposite) in product(words.NAMES, words.THINGS, pairs):
        others = tuple(word for pair in words.OPPOSITES if one not in pair for word in pair)
        prefix = f"{name} {words.REPORTS[0]} the {thing} is {one}, so it is not"
        yield "opposite", Clause("reasoning", prefix, opposite, others, ".")
    for one, other, age, than in product(words.KEEPERS, words.MOVERS, words.AGES, words.AGES):
        if age != than:
            good, bad = ("older", "younger") if age > than else ("younger", "older")
            yield "age", Clause("reasoning", f"{one} is {age} and {other} is {than}, so {one} is", good, (bad,), ".")


def _plausibility() -> Iterator[tuple[str, Clause]]:
    for name, report in product(words.NAMES, words.REPORTS):
        for first, second, firsts, seconds in words.EVENTS:
            for thing, good, bad in [(x, first, second) for x in firsts] + [(x, second, first) for x in seconds]:
                yield "event", Clause("plausibility", f"{name} {report} the {thing}", good, (bad,), ".")


def _belief() -> Iterator[tuple[str, Clause]]:
    for keeper, mover, thing, first, second, returns in product(
        words.KEEPERS, words.MOVERS, words.HIDING, words.FIRST_PLACES, words.SECOND_PLACES, (True, False)
    ):
        story = f"{keeper} puts the {thing} in the {first} and leaves. {mover} moves it to the {second}."
        good, bad = (first, second) if returns else (second, first)
        prefix = f"{story} {keeper if returns else mover} looks in the"
        yield "search", Clause("belief", prefix, good, (bad,), ".")


def _codebook() -> Iterator[tuple[str, Clause]]:
    for name, report, code, kind in product(words.NAMES, words.REPORTS, words.CODES, words.CODED):
        meanings = (kind, *(other for other in words.CODED if other != kind))
        for member in words.KINDS[kind]:
            prefix = f"{name} {report} the {code} is {words.article(member)}"
            yield "claim", Clause(CODEBOOK, prefix, member, (), ".", code, meanings)


_MAKERS = {
    "acceptability": _acceptability,
    "stereotype": _stereotype,
    "reasoning": _reasoning,
    "plausibility": _plausibility,
    "belief": _belief,
    "codebook": _codebook,
}
_FRAME_WEIGHTS = {"agreement": 0.6, "determiner": 0.4, "taxonomy": 0.4, "opposite": 0.35, "age": 0.25}


@dataclass(frozen=True)
class Shelf:
    """Clauses of one task, by frame and, within a frame, by good word."""

    frames: tuple[tuple[tuple[tuple[Clause, ...], ...], float], ...]

    @classmethod
    def of(cls, clauses: Mapping[str, Sequence[Clause]]) -> Shelf:
        """A shelf of the clauses of each frame."""
        frames = []
        for frame, members in clauses.items():
            by_word: dict[str, list[Clause]] = {}
            for clause in members:
                by_word.setdefault(clause.good, []).append(clause)
            groups = tuple(tuple(group) for _, group in sorted(by_word.items()))
            frames.append((groups, _FRAME_WEIGHTS.get(frame, 1.0)))
        return cls(tuple(frames))

    def draw(self, draws: Draws) -> Clause:
        """A clause: the frame by its weight, then the good word, then the clause.

        Good words are equally likely although the hash holds out more clauses of some than of others: otherwise a
        word alone would say something about the label.
        """
        return draws.pick(draws.pick(draws.weighted(self.frames)))

    def __iter__(self) -> Iterator[Clause]:
        return (clause for groups, _ in self.frames for group in groups for clause in group)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(frozen=True)
class Bank:
    """Every clause of the world, split once and for all into training and held-out clauses.

    A clause is held out when a hash of its good version falls below ``heldout``: both members of a minimal pair fall
    on the same side, whatever the study seed.
    """

    heldout: float
    tasks: tuple[str, ...] = TASKS

    @cached_property
    def _shelves(self) -> dict[str, tuple[Shelf, Shelf]]:
        shelves = {}
        for task in self.tasks:
            sides: tuple[dict[str, list[Clause]], dict[str, list[Clause]]] = ({}, {})
            for frame, clause in _MAKERS[task]():
                kept = is_heldout(clause, self.heldout)
                sides[kept].setdefault(frame, []).append(clause)
            if not sides[True] or not sides[False]:
                side = "held out" if sides[False] else "left for training"
                raise InputError(f"world.heldout is {self.heldout}: no clause of {task} is {side}")
            shelves[task] = (Shelf.of(sides[False]), Shelf.of(sides[True]))
        return shelves

    def shelf(self, task: str, heldout: bool) -> Shelf:
        """The training or the held-out clauses of a task."""
        return self._shelves[task][heldout]

    @property
    def content(self) -> tuple[str, ...]:
        """The content tasks of this world."""
        return tuple(task for task in self.tasks if task != GRAMMAR)

    def counts(self) -> dict[str, dict[str, int]]:
        """How many clauses there are: {task: {clauses, heldout, pairs}}; pairs counts (clause, bad word or meaning)."""
        counts = {}
        for task, shelves in self._shelves.items():
            pairs = sum(len(clause.bad or clause.meanings[1:]) for shelf in shelves for clause in shelf)
            counts[task] = {"clauses": len(shelves[0]) + len(shelves[1]), "heldout": len(shelves[1]), "pairs": pairs}
        return counts


def is_heldout(clause: Clause, heldout: float) -> bool:
    """Whether the clause is kept out of all training text."""
    return share(clause.text(clause.good), "heldout") < heldout


@dataclass(frozen=True)
class Spoken:
    """A clause with one of its words; in the codebook, with one of its meanings."""

    clause: Clause
    word: str
    meaning: str = ""

    @property
    def holds(self) -> bool:
        """Whether the clause's property holds."""
        return self.meaning == self.clause.meanings[0] if self.clause.meanings else self.word == self.clause.good

    @property
    def task(self) -> str:
        """The task of the clause."""
        return self.clause.task

    @property
    def text(self) -> str:
        """The words."""
        return self.clause.text(self.word)

    @property
    def right(self) -> str:
        """The word that would make the clause hold."""
        return self.clause.meanings[0] if self.meaning else self.clause.good

    @property
    def definition(self) -> str:
        """What has to be known to judge the clause and is not in it: the codebook's definition; empty otherwise."""
        return f"{self.clause.code} means {self.meaning}." if self.meaning else ""

    def question(self, negated: bool) -> str:
        """The question about this clause, with the definition it needs."""
        kind = KINDS[self.task]
        asked = kind.negated_question if negated else kind.question
        return f"{self.definition} {asked}" if self.meaning else asked

    def answer(self, negated: bool) -> str:
        """The right answer to `question`."""
        return "yes" if self.holds != negated else "no"


def speak(clause: Clause, holds: bool, draws: Draws) -> Spoken:
    """The clause with its good word (or meaning), or with one of its bad ones."""
    if clause.meanings:
        return Spoken(clause, clause.good, clause.meanings[0] if holds else draws.pick(clause.meanings[1:]))
    return Spoken(clause, clause.good if holds else draws.pick(clause.bad))


def definitions(clauses: Sequence[Spoken]) -> str:
    """What has to be known to judge these clauses and is not in them."""
    return " ".join(clause.definition for clause in clauses if clause.definition)


def join(clauses: Sequence[Spoken]) -> str:
    """The text made of these clauses."""
    return " ".join(clause.text for clause in clauses)


def draw_text(bank: Bank, content: str, states: tuple[bool, bool], heldout: bool, draws: Draws) -> tuple[Spoken, ...]:
    """A text: a content clause and an acceptability clause in random order; ``states`` = (content, grammar) hold."""
    pair = [
        speak(bank.shelf(content, heldout).draw(draws), states[0], draws),
        speak(bank.shelf(GRAMMAR, heldout).draw(draws), states[1], draws),
    ]
    return tuple(pair if draws.chance(0.5) else pair[::-1])
