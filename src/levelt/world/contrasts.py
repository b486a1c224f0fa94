"""Contrastive tasks: one query, two instructions, disjoint sets of answers.

The query is a short text ("emma buys a robin."); the answer to each question is one word that plain text has said of
the query's key word ("robin"), never a word of the query.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product

import pandas as pd

from levelt.files import InputError
from levelt.randomness import generator, share
from levelt.world import lexicon as words


@dataclass(frozen=True)
class Contrast:
    """A contrastive task: its queries, and for both nouns what the answer is for each key word."""

    name: str
    queries: tuple[str, ...]
    nouns: tuple[str, str]
    tables: tuple[Mapping[str, str], Mapping[str, str]] = field(hash=False)

    @property
    def questions(self) -> tuple[str, str]:
        """The two instructions."""
        return f"what is the {self.nouns[0]}?", f"what is the {self.nouns[1]}?"

    def answers(self, query: str) -> tuple[str, str]:
        """The answers to the two questions; the key word is the last word of a query."""
        key = query.removesuffix(".").split()[-1]
        return self.tables[0][key], self.tables[1][key]

    def texts(self, heldout: float, kept: bool) -> tuple[str, ...]:
        """The queries that are held out of all training (``kept``), or the others; a hash of the text decides.

        Raises:
            InputError: there are none.
        """
        found = tuple(query for query in self.queries if (share(query, "heldout") < heldout) == kept)
        if not found:
            side = "held out" if kept else "left for training"
            raise InputError(f"world.heldout is {heldout}: no query of the contrastive task {self.name} is {side}")
        return found


def contrasts() -> tuple[Contrast, ...]:
    """The contrastive tasks of the world."""
    members = [(kind, member) for kind, group in words.KINDS.items() for member in group]
    colours = {
        member: words.COLOURS[(group.index(member) + index) % len(words.COLOURS)]
        for index, group in enumerate(words.KINDS.values())
        for member in group
    }
    opposites = {one: other for pair in words.OPPOSITES for one, other in (pair, pair[::-1])}
    owned = tuple(
        f"{name} {verb} {words.article(member)} {member}."
        for name, verb, (_, member) in product(words.NAMES, words.ACQUIRES, members)
    )
    described = tuple(
        f"{name} {report} the {thing} is {quality}."
        for name, report, thing, quality in product(words.NAMES, words.REPORTS, words.THINGS, words.SYNONYMS)
    )
    return (
        Contrast("possession", owned, ("kind", "colour"), ({member: kind for kind, member in members}, colours)),
        Contrast("quality", described, ("opposite", "synonym"), (opposites, words.SYNONYMS)),
    )


def contrast_samples(seed: int, heldout: float, number: int) -> pd.DataFrame:
    """Up to ``number`` held-out queries of each contrastive task.

    Returns:
        The columns task, sample_id, text, question_1, answer_1, question_2, answer_2.
    """
    rows = []
    for contrast in contrasts():
        texts = contrast.texts(heldout, True)
        order = generator(seed, "world", "contrasts", contrast.name).permutation(len(texts))[:number]
        for index, place in enumerate(sorted(order.tolist())):
            answers = contrast.answers(texts[place])
            rows.append(
                {
                    "task": contrast.name,
                    "sample_id": f"{contrast.name}-{index:05d}",
                    "text": texts[place],
                    "question_1": contrast.questions[0],
                    "answer_1": answers[0],
                    "question_2": contrast.questions[1],
                    "answer_2": answers[1],
                }
            )
    return pd.DataFrame(rows)
