"""From a template, a variation and a sample to chat messages whose parts say what they are.

Also the two draws that belong to prompts: which pairs are asked the negated question, and which examples stand
before a query in the demonstrations variation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from levelt.config import Template, Variation
from levelt.files import InputError
from levelt.prompts.spans import SAMPLE
from levelt.randomness import generator, share

SYSTEM, INSTRUCTION = "system", "instruction"
"""Names of the token groups of a query, beside `SAMPLE`."""


@dataclass(frozen=True)
class Sample:
    """A text with its gold label (one of the task's options) and its minimal pair."""

    sample_id: str
    pair_id: str
    text: str
    label: str
    question: str
    negated_question: str | None = None
    unasked: str | None = None
    unasked_question: str | None = None
    unasked_negated_question: str | None = None


@dataclass(frozen=True)
class Part:
    """A piece of a message: characters of the template (name None), or the whole of one token group."""

    text: str
    name: str | None = None


@dataclass(frozen=True)
class Message:
    """One chat message in parts."""

    role: str
    parts: tuple[Part, ...]

    @property
    def content(self) -> str:
        """The message as plain text."""
        return "".join(part.text for part in self.parts)


@dataclass(frozen=True)
class Demonstration:
    """An example before the query: a text and its answer."""

    text: str
    answer: str


@lru_cache(maxsize=256)
def _pieces(wording: str) -> tuple[str, ...]:
    return tuple(piece for piece in re.split(r"(\{question\}|\{text\}|\{answer\})", wording) if piece)


def fill(wording: str, values: Mapping[str, tuple[str, str]]) -> tuple[Part, ...]:
    """The parts of ``wording`` with each placeholder replaced by a named part.

    ``values`` maps a placeholder's name to (group name, text). Other braces stay as they are.
    """
    parts = []
    for piece in _pieces(wording):
        key = piece[1:-1] if piece.startswith("{") and piece.endswith("}") else ""
        parts.append(Part(values[key][1], values[key][0]) if key in values else Part(piece))
    return tuple(parts)


def answer_parts(template: Template, answer: str, name: str) -> tuple[Part, ...]:
    """An answer as an assistant message writes it, the option itself marked as the group ``name``."""
    return fill(template.answer, {"answer": (name, answer)})


def conversation(
    template: Template,
    variation: Variation,
    question: str,
    text: str,
    demonstrations: Sequence[Demonstration] = (),
) -> tuple[Message, ...]:
    """The messages of one query, without its answer.

    In the demonstrations variation there is neither a question nor a system message (which is an instruction too);
    ``question`` is then not used. The other variations take no demonstrations.
    """
    if variation == "demonstrations":
        if not demonstrations:
            raise ValueError("the demonstrations variation needs demonstrations")
        messages = []
        for k, shown in enumerate(demonstrations):
            group = f"demonstration_{k}"
            messages += [
                Message("user", fill(template.no_instruction, {"text": (group, shown.text)})),
                Message("assistant", answer_parts(template, shown.answer, f"{group}_answer")),
            ]
        return (*messages, Message("user", fill(template.no_instruction, {"text": (SAMPLE, text)})))
    if demonstrations:
        raise ValueError(f"the {variation} variation takes no demonstrations")
    wording = template.sample_first if variation == "sample_first" else template.instruction_first
    user = Message("user", fill(wording, {"question": (INSTRUCTION, question), "text": (SAMPLE, text)}))
    return (Message("system", (Part(template.system, SYSTEM),)), user) if template.system.strip() else (user,)


def negated_pairs(pair_ids: Sequence[str]) -> frozenset[str]:
    """The pairs that are asked the negated question under mixed polarity.

    The pairs are ranked by a hash of their id and the first half is negated, so the choice is exactly balanced (one
    less negated than not, if their number is odd) and needs no seed.
    """
    ranked = sorted(set(pair_ids), key=lambda pair: (share(pair, "polarity"), pair))
    return frozenset(ranked[: len(ranked) // 2])


class DemonstrationPool:
    """The samples of a task, for drawing the examples that stand before each query."""

    def __init__(self, samples: Sequence[Sample], options: Sequence[str], *, seed: int, task: str) -> None:
        self._pools = [[sample for sample in samples if sample.label == option] for option in options]
        self._options = tuple(options)
        self._seed = seed
        self._task = task

    def draw(self, query: Sample, count: int) -> tuple[Demonstration, ...]:
        """``count`` examples for ``query``: never of its pair, never its text, no text twice.

        Labels are balanced within one (which of the two gets the extra example is drawn), both occur, and the order
        is shuffled. The draw depends on the seed, the task, the query's id and the samples.

        Raises:
            InputError: fewer than two examples are asked for, or too few samples lie outside the query's pair.
        """
        if count < 2:
            raise InputError(f"prompts.demonstrations: found {count}, expected at least 2, to show both answers")
        random = generator(self._seed, "demonstrations", self._task, query.sample_id)
        wanted = [count // 2, count - count // 2]
        if random.integers(2):
            wanted.reverse()
        texts = {query.text}
        chosen: list[Demonstration] = []
        for pool, option, number in zip(self._pools, self._options, wanted, strict=True):
            for index in random.permutation(len(pool)):
                if not number:
                    break
                candidate = pool[index]
                if candidate.pair_id != query.pair_id and candidate.text not in texts:
                    texts.add(candidate.text)
                    chosen.append(Demonstration(candidate.text, candidate.label))
                    number -= 1
            if number:
                raise InputError(
                    f"tasks.{self._task}: too few samples labelled {option!r} outside the pair of sample "
                    f"{query.sample_id!r} for {count} demonstrations; add rows or lower prompts.demonstrations"
                )
        return tuple(chosen[index] for index in random.permutation(count))
