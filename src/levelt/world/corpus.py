"""Plain text of the world, with repairs and comments, and the loss weight of each stretch of it.

The text is what makes a small model learn the tasks without ever seeing a question: a wrong clause is followed by a
typed marker, a comment and the right word ("nah, the event is impossible: sinks."), sometimes at once ("the boulder
floats, nah, sinks."), mostly after the clause, which forces the model to carry the judgment to its end. Comments never
wait for the text's end: what a model learnt from those gathers all judgments there, and the answer's position then
takes them over together instead of choosing between them (docs/world.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from levelt.files import InputError
from levelt.randomness import generator
from levelt.world.contrasts import Contrast, contrasts
from levelt.world.draws import Draws
from levelt.world.facts import Fact, facts
from levelt.world.tasks import CODEBOOK, GRAMMAR, KINDS, Bank, Clause, Spoken, definitions, draw_text, join, speak

DEFAULT_WEIGHT = 0.5
WEIGHTS = {"after": 2.0, "marker": 3.0, "critical": 1.5, "polarity": 2.5, "claim": 5.0, "bad": 0.05, "answer": 1.5}
"""Loss weights: the word after a critical word, what follows a finished clause or text, a good critical word, the
polarity word of a comment, the verdict on a claim judged at once, a bad critical word, an answer in a list of facts.
Everything else: DEFAULT_WEIGHT."""

END_MARK = "\n"
"""Ends every document; where no marker follows a text, this is what the model must predict."""

TASK_WEIGHTS = {
    "acceptability": 1.0,
    "stereotype": 1.2,
    "reasoning": 2.0,
    "plausibility": 0.8,
    "belief": 1.2,
    "codebook": 2.0,
}
"""How often the tasks' clauses appear: the harder, the more often."""

EARLY = 0.3
"""Share of the documents, and of the base stage, in which single clauses prevail: they are learnt sooner."""

_FACTS, _CONTRASTS, _CODES = 0.15, 0.09, 0.1
_CLAIMS = 4  # claims about one definition
_SINGLE_EARLY, _SINGLE = 0.7, 0.25
_DEFINED_FIRST = 0.6  # a definition comes before the text, which is harder to learn, or after it
_INLINE_CODED = 0.6  # wrong codebook clauses repaired at once, if the definition came first
_SPACE = 0.5  # documents that begin with a space, so that both token forms of a first word are learnt


@dataclass
class Document:
    """A document under construction: its text and the stretches that have a loss weight of their own."""

    kind: str
    text: str = ""
    spans: list[tuple[int, int, float]] = field(default_factory=list)

    def add(self, piece: str, weight: float | None = None) -> None:
        """Append a piece (with its leading space), with a loss weight of its own if one is given."""
        if weight is not None:
            self.spans.append((len(self.text), len(self.text) + len(piece), weight))
        self.text += piece


def _comment(document: Document, said: Spoken) -> None:
    """What follows a clause about it."""
    kind = KINDS[said.task]
    document.add(f" {'indeed' if said.holds else kind.marker}", WEIGHTS["marker"])
    document.add(f", the {kind.noun} is")
    document.add(f" {kind.holds if said.holds else kind.fails}", WEIGHTS["polarity"])
    if not said.holds:
        document.add(":")
        document.add(f" {said.right}", WEIGHTS["critical"])
    document.add(".")


def _write(document: Document, said: Spoken, inline: bool) -> None:
    """A clause; a wrong one may be repaired at once."""
    clause = said.clause
    document.add((" " if document.text else "") + clause.prefix)
    document.add(f" {said.word}", DEFAULT_WEIGHT if said.meaning else WEIGHTS["critical" if said.holds else "bad"])
    if inline:
        document.add(",", WEIGHTS["after"])
        document.add(f" {KINDS[said.task].marker},")
        document.add(f" {said.right}", WEIGHTS["critical"])
        document.add(",") if not clause.suffix.startswith(".") else None
    head, tail = _first_piece(clause.suffix)
    document.add(head, None if inline else WEIGHTS["after"])
    document.add(tail)


def _first_piece(suffix: str) -> tuple[str, str]:
    cut = suffix.find(" ", 1)
    return (suffix, "") if cut < 0 else (suffix[:cut], suffix[cut:])


def _judged(bank: Bank, draws: Draws, content: Sequence[tuple[str, float]], single: bool) -> Document:
    """A text of one or two clauses, with repairs and comments."""
    undefined = []  # clauses whose definition is yet to come
    if single:
        weights = [*content, (GRAMMAR, sum(weight for _, weight in content) / max(len(content), 1))]
        task = draws.weighted(weights)
        clauses = [speak(bank.shelf(task, False).draw(draws), draws.chance(0.6), draws)]
        inline_share, indeed_share = 0.4, 0.3
    else:
        states = (draws.chance(0.5), draws.chance(0.5))
        clauses = list(draw_text(bank, draws.weighted(content), states, False, draws))
        inline_share, indeed_share = 0.26, 0.35
    document = Document("single" if single else "double")
    known = definitions(clauses)
    first = draws.chance(_DEFINED_FIRST)
    if known and first:
        document.add(known)
    for said in clauses:
        share = inline_share if not said.meaning else _INLINE_CODED * first
        inline = not said.holds and draws.chance(share)
        _write(document, said, inline)
        if (not said.holds and not inline) or (said.holds and draws.chance(indeed_share)):
            if said.meaning and not first:
                undefined.append(said)
            else:
                _comment(document, said)
    if known and not first:
        document.add(f" {known}")
    for said in undefined:
        _comment(document, said)
    return document


def _recalled(known: Sequence[Fact], draws: Draws) -> Document:
    """Two subjects and their answers, in any order."""
    document = Document("facts")
    for _ in range(2):
        fact = draws.pick(known)
        document.add((" " if document.text else "") + fact.statement)
        for index, answer in enumerate(draws.shuffled(fact.answers)):
            document.add(" and" if index == len(fact.answers) - 1 else "," if index else "")
            document.add(f" {answer}", WEIGHTS["answer"])
        document.add(".")
    return document


def _described(contrast: Contrast, known: Sequence[str], draws: Draws) -> Document:
    """A short text and one or both of the things that can be said about it."""
    document = Document("contrasts", draws.pick(known))
    found = contrast.answers(document.text)
    order = (0, 1) if draws.chance(0.5) else (1, 0)
    for index in order[: 1 + draws.chance(0.7)]:
        document.add(f" the {contrast.nouns[index]} is")
        document.add(f" {found[index]}", WEIGHTS["answer"])
        document.add(".")
    return document


def _claimed(coded: Sequence[Sequence[Clause]], draws: Draws) -> Document:
    """A definition and several claims, each judged at once, since one alone teaches little; ``coded``: by code.

    The verdict follows the claim's last word without a comma: it must be known at that word, which is part of the text,
    not at a later one. (With ", the claim is true" alone, half of the models compared the two only after the text.)
    """
    document = Document("codes")
    clauses = draws.pick(coded)
    clause = draws.pick(clauses)
    meaning = draws.pick(clause.meanings)
    document.add(Spoken(clause, clause.good, meaning).definition)
    for _ in range(_CLAIMS):
        said = Spoken(clause, clause.good, meaning)
        document.add(f" {said.text.removesuffix('.')}")
        document.add(f" {'indeed' if said.holds else KINDS[CODEBOOK].marker}", WEIGHTS["claim"])
        document.add(f", the {KINDS[CODEBOOK].noun} is")
        document.add(f" {KINDS[CODEBOOK].holds if said.holds else KINDS[CODEBOOK].fails}", WEIGHTS["polarity"])
        document.add(".")
        clause = draws.pick(clauses)
    return document


def plain_text(seed: int, bank: Bank, documents: int, subjects: int) -> pd.DataFrame:
    """The training text of the base stage.

    Returns:
        One row per document: text; kind (single, double: clauses; facts; contrasts; codes); early (bool: to be read
        first); starts, stops, weights: character ranges (half-open) with a loss weight of their own, everything else
        having DEFAULT_WEIGHT.
    """
    draws = Draws(generator(seed, "world", "text"))
    known = facts(subjects)
    content = [(task, TASK_WEIGHTS[task]) for task in bank.content]
    shelves = [(contrast, contrast.texts(bank.heldout, False)) for contrast in contrasts()]
    by_code: dict[str, list[Clause]] = {}
    for clause in bank.shelf(CODEBOOK, False) if CODEBOOK in bank.tasks else ():
        by_code.setdefault(clause.code, []).append(clause)
    coded = list(by_code.values())
    codes = _CODES if coded else 0.0
    rest = 1 - _FACTS - _CONTRASTS - codes
    kinds = (("facts", _FACTS), ("contrasts", _CONTRASTS), ("codes", codes), ("judged", rest))
    rows = []
    for index in range(documents):
        early = index < documents * EARLY
        kind = draws.weighted(kinds)
        if kind == "facts":
            document = _recalled(known, draws)
        elif kind == "contrasts":
            document = _described(*draws.pick(shelves), draws)
        elif kind == "codes":
            document = _claimed(coded, draws)
        else:
            document = _judged(bank, draws, content, draws.chance(_SINGLE_EARLY if early else _SINGLE))
        document.add(END_MARK, WEIGHTS["marker"])
        shift = int(draws.chance(_SPACE))
        spans = np.array(document.spans)
        rows.append(
            {
                "kind": document.kind,
                "early": early,
                "text": " " * shift + document.text,
                "starts": (spans[:, 0] + shift).astype(np.int32),
                "stops": (spans[:, 1] + shift).astype(np.int32),
                "weights": spans[:, 2].astype(np.float32),
            }
        )
    return pd.DataFrame(rows)


def samples(seed: int, bank: Bank, task: str, number: int) -> pd.DataFrame:
    """Held-out samples of one task: minimal pairs that differ in the asked property only.

    The members of a codebook pair are the same text with different questions: which definition the question gives
    decides the label. Both clauses of a text are held out of training. The other property is right in half of the
    pairs; the label is yes in exactly half of the rows.

    Returns:
        The columns sample_id, pair_id, text, label, question, negated_question; unasked, unasked_question and
        unasked_negated_question, about the other property; line (1-based).

    Raises:
        InputError: the world has not that many different held-out samples.
    """
    draws = Draws(generator(seed, "world", "samples", task))
    rows: list[dict[str, object]] = []
    seen: set[str] = set()
    repeats = 0
    while len(rows) < number // 2 * 2:
        pair = len(rows) // 2
        other = pair % 2 == 0
        content = task if task != GRAMMAR else draws.pick(bank.content)
        states = (True, other) if task != GRAMMAR else (other, True)
        good = draw_text(bank, content, states, True, draws)
        bad = tuple(speak(said.clause, False, draws) if said.task == task else said for said in good)
        members = [(good, "yes"), (bad, "no")]
        if seen & {join(text) for text, _ in members}:
            repeats += 1
            if repeats > 20 * number:
                raise InputError(
                    f"world.samples is {number}, but only {len(rows)} different held-out samples of {task} were found: "
                    "ask for fewer, or hold out more (world.heldout)"
                )
            continue
        seen |= {join(text) for text, _ in members}
        for text, label in members if draws.chance(0.5) else members[::-1]:
            (asked,), (unasked,) = ([said for said in text if (said.task == task) == own] for own in (True, False))
            rows.append(
                {
                    "sample_id": f"{task}-{len(rows):05d}",
                    "pair_id": f"{task}-{pair:05d}",
                    "text": join(text),
                    "label": label,
                    "question": asked.question(False),
                    "negated_question": asked.question(True),
                    "unasked": "yes" if other else "no",
                    "unasked_question": unasked.question(False),
                    "unasked_negated_question": unasked.question(True),
                    "line": len(rows) + 1,
                }
            )
    return pd.DataFrame(rows)
