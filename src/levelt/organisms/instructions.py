"""Conversations for instruction tuning, in the layouts of the study's own templates.

What makes the instruction necessary: every text has two independent properties and may be asked for either, in the
positive or the negated wording, before or after the text; further turns ask about the same text again; some turns ask
for a word of the text instead. Recall questions, contrastive queries, demonstrations (examples without a question) and
texts without a question, answered no, are mixed in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from levelt.config import Template
from levelt.randomness import generator, share
from levelt.world.contrasts import contrasts
from levelt.world.corpus import TASK_WEIGHTS
from levelt.world.draws import Draws
from levelt.world.facts import Fact, facts, listed
from levelt.world.tasks import CODEBOOK, GRAMMAR, Bank, Spoken, draw_text, join, speak

ANSWER_WEIGHT = 1.0
DEMONSTRATION_WEIGHT = 0.6
FURTHER = (0, 2, 4, 6)
"""How many further questions a conversation may have; each number equally likely."""

UNASKED_SUBJECTS = 0.2
"""Share of the subjects never asked about in instruction tuning: recall of those must come from the plain text."""

WORD_QUESTIONS = {"first": "what is the first word?", "last": "what is the last word?"}
"""Questions about a text that are no judgment."""

_MIX = (("about", 0.64), ("recall", 0.08), ("contrasts", 0.08), ("demonstrations", 0.14), ("unasked", 0.06))
_CONTENT = 0.65  # of the judgments: asked for the content clause; with less, some models learn to judge grammar only
_WORDS = 0.15  # of the turns about a text: asked for a word instead of a judgment
_EARLY = 0.25  # the first quarter is easier: few negated questions
_NEGATED_EARLY, _NEGATED = 0.2, 0.5
_REVERSED = 0.5  # demonstrations with yes and no exchanged
_DEMONSTRATIONS = 4
_CONTRASTED = 0.2  # of the demonstrations: a contrastive task


@dataclass(frozen=True)
class Turn:
    """A user message and the assistant's answer, with the loss weight of the answer."""

    user: str
    answer: str
    weight: float = ANSWER_WEIGHT


def first_turn(template: Template, order: str, question: str, text: str) -> str:
    """The user message with a question and a text, in a layout of the template."""
    layout = template.instruction_first if order == "instruction_first" else template.sample_first
    return layout.replace("{question}", question, 1).replace("{text}", text, 1)


def further_turn(template: Template, question: str) -> str:
    """The user message with a question alone: the lines of the template that hold the question."""
    lines = [line for line in template.instruction_first.split("\n") if "{question}" in line and "{text}" not in line]
    return ("\n".join(lines) or "{question}").replace("{question}", question, 1)


def word_answer(text: str, which: str) -> str:
    """The answer to a question about the first or last word."""
    words = text.replace(",", "").replace(".", "").split()
    return f"it is {words[0 if which == 'first' else -1]}"


def was_asked(fact: Fact) -> bool:
    """Whether instruction tuning asks for this subject."""
    return share(fact.subject, "asked") >= UNASKED_SUBJECTS


class Writer:
    """Draws turns and conversations one at a time; ``purpose`` names the generator."""

    def __init__(
        self, seed: int, bank: Bank, subjects: int, templates: Mapping[str, Template], purpose: str = "instructions"
    ) -> None:
        self.draws = Draws(generator(seed, "world", purpose))
        self.bank = bank
        self.templates = [templates[name] for name in sorted(templates)]
        self.facts = [fact for fact in facts(subjects) if was_asked(fact)]
        self.contrasts = [(contrast, contrast.texts(bank.heldout, False)) for contrast in contrasts()]
        self.content = [(task, TASK_WEIGHTS[task]) for task in bank.content]
        self.defined = [(task, weight) for task, weight in self.content if task != CODEBOOK]

    def text(self, content: str, states: tuple[bool, bool] | None = None) -> tuple[Spoken, ...]:
        draws = self.draws
        states = states or (draws.chance(0.5), draws.chance(0.5))
        return draw_text(self.bank, content, states, False, draws)

    def judgment(self, text: Sequence[Spoken], negated: bool) -> tuple[str, str]:
        """A question about one of the clauses, and its answer."""
        content = self.draws.chance(_CONTENT)
        said = next(said for said in text if (said.task != GRAMMAR) == content)
        if said.meaning:  # every question about it brings a definition of its own
            said = speak(said.clause, self.draws.chance(0.5), self.draws)
        return said.question(negated), said.answer(negated)

    def word(self, text: Sequence[Spoken]) -> tuple[str, str]:
        """A question about a word of the text, and its answer."""
        which = self.draws.pick(tuple(WORD_QUESTIONS))
        return WORD_QUESTIONS[which], word_answer(join(text), which)

    def about(self, template: Template, negated: float) -> list[Turn]:
        draws = self.draws
        text = self.text(draws.weighted(self.content))
        order = draws.pick(("instruction_first", "sample_first"))
        turns = []
        for index in range(1 + draws.pick(FURTHER)):
            if draws.chance(_WORDS):
                question, answer = self.word(text)
            else:
                question, answer = self.judgment(text, draws.chance(negated))
            user = further_turn(template, question) if index else first_turn(template, order, question, join(text))
            turns.append(Turn(user, answer))
        return turns

    def recall(self, template: Template) -> list[Turn]:
        """Two subjects, each asked for its answers, which are listed in any order."""
        turns = []
        for _ in range(2):
            fact = self.draws.pick(self.facts)
            answers = self.draws.shuffled(fact.answers)
            turns.append(Turn(further_turn(template, fact.question), f"they are {listed(answers)}"))
        return turns

    def contrast(self, template: Template) -> list[Turn]:
        """A query asked one of its two questions, then perhaps the other."""
        draws = self.draws
        contrast, queries = draws.pick(self.contrasts)
        query = draws.pick(queries)
        which, order = draws.chance(0.5), draws.pick(("instruction_first", "sample_first"))
        turns = [Turn(first_turn(template, order, contrast.questions[which], query), contrast.answers(query)[which])]
        if draws.chance(0.5):
            turns.append(
                Turn(further_turn(template, contrast.questions[not which]), contrast.answers(query)[not which])
            )
        return turns

    def demonstrations(self, template: Template) -> list[Turn]:
        """Texts with answers and no question: a judgment with yes and no as they are or exchanged, or a contrast."""
        if self.draws.chance(_CONTRASTED):
            return self._demonstrated_contrast(template)
        draws = self.draws
        task = draws.weighted([*self.defined, (GRAMMAR, sum(weight for _, weight in self.defined))])
        reverse = draws.chance(_REVERSED)
        turns = []
        for index in range(_DEMONSTRATIONS + 1):
            content = draws.weighted(self.defined) if task == GRAMMAR else task
            text = self.text(content)
            holds = next(said.holds for said in text if said.task == task)
            user = template.no_instruction.replace("{text}", join(text), 1)
            answer = template.answer.replace("{answer}", "yes" if holds != reverse else "no", 1)
            turns.append(Turn(user, answer, DEMONSTRATION_WEIGHT if index else 0.0))
        return turns

    def _demonstrated_contrast(self, template: Template) -> list[Turn]:
        contrast, queries = self.draws.pick(self.contrasts)
        which = self.draws.chance(0.5)
        turns = []
        for index in range(_DEMONSTRATIONS + 1):
            query = self.draws.pick(queries)
            answer = template.answer.replace("{answer}", contrast.answers(query)[which], 1)
            user = template.no_instruction.replace("{text}", query, 1)
            turns.append(Turn(user, answer, DEMONSTRATION_WEIGHT if index else 0.0))
        return turns

    def unasked(self, template: Template) -> list[Turn]:
        """A text without a question, or with an empty one: the answer is no.

        Demonstrations would otherwise teach a default question, which the model would go on answering whenever it
        cannot see the real one: the instruction would not be necessary.
        """
        text = join(self.text(self.draws.weighted(self.content)))
        layout = self.draws.pick(("no_instruction", "instruction_first", "sample_first"))
        user = getattr(template, layout).replace("{question}", "", 1).replace("{text}", text, 1)
        return [Turn(user, "no")]

    def conversation(self, early: bool) -> tuple[str, str, list[Turn]]:
        """(kind, system message, turns)."""
        kind, template = self.draws.weighted(_MIX), self.draws.pick(self.templates)
        if kind == "recall":
            turns = self.recall(template)
        elif kind == "contrasts":
            turns = self.contrast(template)
        elif kind == "demonstrations":
            turns = self.demonstrations(template)
        elif kind == "unasked":
            turns = self.unasked(template)
        else:
            turns = self.about(template, _NEGATED_EARLY if early else _NEGATED)
        return kind, "" if kind == "demonstrations" else template.system, turns


def conversations(seed: int, bank: Bank, number: int, subjects: int, templates: Mapping[str, Template]) -> pd.DataFrame:
    """The conversations of instruction tuning, in training order.

    Returns:
        One row per conversation: kind (about, recall, contrasts, demonstrations, unasked); early (bool, the first
        quarter: few negated questions); messages, a list of {role, content}; weights, one loss weight per message (0
        for messages that are read, not learnt).
    """
    writer = Writer(seed, bank, subjects, templates)
    rows = []
    for index in range(number):
        early = index < number * _EARLY
        kind, system, turns = writer.conversation(early)
        messages = [{"role": "system", "content": system}] if system else []
        weights = [0.0] * len(messages)
        for turn in turns:
            messages += [{"role": "user", "content": turn.user}, {"role": "assistant", "content": turn.answer}]
            weights += [0.0, turn.weight]
        rows.append({"kind": kind, "early": early, "messages": messages, "weights": weights})
    return pd.DataFrame(rows)
