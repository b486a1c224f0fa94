"""The prompts of the recall study: a listing cut where each answer begins, with tokens, groups and readouts.

At step k (1, 2, 3) the prompt is the list so far, and its last token is the one whose logits choose answer k. Read
out are the first tokens of the subject, of the three answers as they follow in the text, and, as controls, of the
answers at the same places in the list of another subject of the same relation.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from levelt.files import InputError
from levelt.prompts.render import require_offsets
from levelt.prompts.spans import Span, TokenGroups, locate
from levelt.randomness import generator
from levelt.studies.recall.listings import ANSWERS, Dropped, Listing

READOUTS = ("subject", *(f"answer_{k}" for k in range(1, 4)), *(f"control_{k}" for k in range(1, 4)))
"""What the logits of a prompt are read of: the token axis of every array of the study."""

COLUMNS = ("relation", "template", "subject", "step", "input_ids", "groups", "readouts", "answers", "collision")


@dataclass(frozen=True)
class Tokens:
    """A listing in tokens: marks as token ranges, and the first tokens of subject and answers."""

    listing: Listing
    ids: tuple[int, ...]
    spans: Mapping[str, Span]
    collision: bool

    @property
    def firsts(self) -> tuple[int, ...]:
        """First tokens of the three answers."""
        return tuple(self.ids[self.spans[f"answer_{k}"].start] for k in range(1, ANSWERS + 1))

    @property
    def subject(self) -> int:
        """The first token of the subject."""
        return self.ids[self.spans["subject"].start]


@dataclass(frozen=True)
class RecallPrompt:
    """One prompt. ``readouts``: token ids in the order of `READOUTS`. ``groups``: relation (where it is known),
    subject, answer_1 .. answer_{step - 1}, decision."""

    relation: str
    template: str
    subject: str
    step: int
    input_ids: tuple[int, ...]
    groups: TokenGroups
    readouts: tuple[int, ...]
    answers: tuple[str, ...]
    collision: bool

    @property
    def asked(self) -> tuple[str, ...]:
        """Groups the last token may read from, other than the rest: subject, answers so far, itself."""
        return ("subject", *(f"answer_{k}" for k in range(1, self.step)), "decision")


def tokenised(listing: Listing, tokenizer: Any, model: str, expected: Sequence[int] | None = None) -> Tokens | str:
    """The tokens of a listing, or why it is not used.

    retokenised: the text does not give the tokens that the model read and wrote (``expected``, its beginning). merged:
    a token holds the end of the prompt and the beginning of an answer, or of subject and something else.
    """
    require_offsets(tokenizer, model)
    encoded = tokenizer(
        listing.text,
        add_special_tokens=listing.special,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        verbose=False,
    )
    ids, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
    while ids and encoded["special_tokens_mask"][len(ids) - 1] and offsets[len(ids) - 1] == (0, 0):
        ids.pop()  # an end token that the tokenizer adds
    offsets = offsets[: len(ids)]
    try:
        groups = locate(listing.text, listing.marks, offsets)
    except InputError:
        return "merged"
    spans = {span.name: span for span in groups if span.name != "decision"}
    for mark in listing.marks:
        begin = offsets[spans[mark.name].start][0]
        if listing.text[begin : mark.start].strip():
            return "merged"
    stop = spans[f"answer_{ANSWERS}"].stop
    if expected is not None and list(expected[:stop]) != ids[:stop]:
        return "retokenised"
    made = Tokens(listing, tuple(ids[:stop]), spans, False)
    collides = len({made.subject, *made.firsts}) <= ANSWERS
    return Tokens(listing, made.ids, spans, collides)


def with_steps(found: Sequence[Tokens], seed: int, dropped: Dropped) -> list[RecallPrompt]:
    """Three prompts for each listing, with its control subject's readouts.

    The control is another subject of the same relation and wording, drawn at random, none of whose answers or first
    tokens is one of this subject's; each subject's partner is the next one that fits in a shuffled circle. Subjects
    without such a partner are left out (``no control``).
    """
    prompts = []
    for (relation, template), same in itertools.groupby(found, key=lambda t: (t.listing.relation, t.listing.template)):
        circle = list(same)
        order = generator(seed, "recall", "controls", relation).permutation(len(circle)).tolist()
        place = {index: at for at, index in enumerate(order)}
        for index, tokens in enumerate(circle):
            others = (circle[order[(place[index] + by) % len(order)]] for by in range(1, len(order)))
            partner = next((other for other in others if _fits(tokens, other)), None)
            if partner is None:
                dropped.add(relation, template, "no control")
                continue
            readouts = (tokens.subject, *tokens.firsts, *partner.firsts)
            prompts += [_prompt(tokens, step, readouts) for step in range(1, ANSWERS + 1)]
    return prompts


def _fits(tokens: Tokens, other: Tokens) -> bool:
    own = {name.casefold() for name in (*tokens.listing.answers, *tokens.listing.others)}
    return not (
        own & {name.casefold() for name in other.listing.answers}
        or {tokens.subject, *tokens.firsts} & set(other.firsts)
        or len(set(other.firsts)) < ANSWERS
    )


def _prompt(tokens: Tokens, step: int, readouts: tuple[int, ...]) -> RecallPrompt:
    listing, stop = tokens.listing, tokens.spans[f"answer_{step}"].start
    spans = sorted((span for span in tokens.spans.values() if span.stop <= stop), key=lambda span: span.start)
    return RecallPrompt(
        relation=listing.relation,
        template=listing.template,
        subject=listing.subject,
        step=step,
        input_ids=tokens.ids[:stop],
        groups=TokenGroups((*spans, Span("decision", stop - 1, stop))),
        readouts=readouts,
        answers=listing.answers,
        collision=tokens.collision,
    )


def places(prompt: RecallPrompt) -> list[str]:
    """A name for every token: what the rows of a tracing heatmap are.

    before; <group>_first, _middle, _last (a group of one token is its last); after_<group> between groups; decision.
    """
    length = len(prompt.input_ids)
    names, current, begin = [], "before", 0
    for span in sorted(prompt.groups, key=lambda span: span.start):
        names += [current] * (span.start - begin)
        if span.name == "decision":
            break
        inner = len(span) - 2
        names += [f"{span.name}_first", *[f"{span.name}_middle"] * inner] if inner >= 0 else []
        names.append(f"{span.name}_last")
        current, begin = f"after_{span.name}", span.stop
    return [*names[: length - 1], "decision"]


# --- tables ---------------------------------------------------------------------------------------------------------


def to_table(prompts: Sequence[RecallPrompt]) -> pd.DataFrame:
    """One row per prompt, with `COLUMNS`."""
    rows = [{name: getattr(prompt, name) for name in COLUMNS} for prompt in prompts]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table["step"] = table["step"].astype(np.int32)
    for name in ("input_ids", "readouts"):
        table[name] = pd.Series([np.asarray(values, np.int32) for values in table[name]], dtype=object)
    table["groups"] = pd.Series(
        [[{"name": s.name, "start": np.int32(s.start), "stop": np.int32(s.stop)} for s in p.groups] for p in prompts],
        dtype=object,
    )
    table["answers"] = pd.Series([list(values) for values in table["answers"]], dtype=object)
    return table
