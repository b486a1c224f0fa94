"""Listings: a request, and three answers to it, as one text in which every part has its exact place.

Three sources: the model's own greedy list, verified against a table of facts; a list given by the facts; and the
authors' JSON Lines, whose token ids are another model's, so that only their texts are used.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from levelt.config import RecallTemplate
from levelt.files import InputError
from levelt.prompts.chat import ChatFormat
from levelt.prompts.spans import Span
from levelt.prompts.templates import Message, Part
from levelt.world.facts import RELATIONS, facts

ANSWERS = 3
"""Answers of a list, and steps of the study: at step k the prompt ends where answer k begins."""


@dataclass(frozen=True)
class Known:
    """A subject of a relation, and all that is known to be right, in the order of a given list."""

    relation: str
    subject: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Request:
    """What a model is asked, up to where its list begins; marks: characters of relation and subject."""

    known: Known
    template: str
    text: str
    marks: tuple[Span, ...]
    special: bool
    """Whether the tokenizer adds its special tokens to the text."""


@dataclass(frozen=True)
class Listing:
    """A text with three answers; marks: characters of relation (where known), subject, answer_1 to answer_3."""

    relation: str
    template: str
    subject: str
    answers: tuple[str, ...]
    others: tuple[str, ...]
    """Right answers that are not in the list."""
    text: str
    marks: tuple[Span, ...]
    special: bool


@dataclass
class Dropped:
    """How many subjects were left out, by relation, template and reason."""

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def add(self, relation: str, template: str, reason: str) -> None:
        """Count one."""
        self.counts[relation, template, reason] += 1


# --- facts ----------------------------------------------------------------------------------------------------------


def world_facts(subjects: int) -> list[Known]:
    """The facts of the synthetic world; relations by the plural of what is listed."""
    return [Known(RELATIONS[fact.relation], fact.subject, fact.answers) for fact in facts(subjects)]


def read_facts(path: str | Path) -> list[Known]:
    """Facts from a CSV with the columns relation, subject, answer; subjects and answers in the order of the file.

    Raises:
        InputError: the file is missing, or a column, or a value, or a subject has fewer than three answers.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file of facts") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a CSV file ({str(error).splitlines()[0]})") from None
    columns = ["relation", "subject", "answer"]
    absent = [column for column in columns if column not in table]
    if absent:
        raise InputError(f"{path}: no column {absent[0]}, found {', '.join(table.columns)}")
    if table.empty:
        raise InputError(f"{path}: no facts in it")
    empty = table[columns].apply(lambda column: column.str.strip() == "").any(axis=1)
    if empty.any():
        raise InputError(f"{path}, line {int(empty.idxmax()) + 2}: an empty {' or '.join(columns)}")
    known = []
    for (relation, subject), part in table.groupby(["relation", "subject"], sort=False):
        answers = tuple(dict.fromkeys(part["answer"].str.strip()))
        if len(answers) < ANSWERS:
            raise InputError(f"{path}: {subject!r} has {len(answers)} {relation}, a list needs {ANSWERS}")
        known.append(Known(str(relation), str(subject), answers))
    return known


# --- requests and lists ---------------------------------------------------------------------------------------------


def requests(known: Sequence[Known], name: str, template: RecallTemplate, tokenizer: Any, model: str) -> list[Request]:
    """Every subject asked for in one wording, as the model's tokenizer writes a conversation.

    Raises:
        InputError: the chat template cannot render it exactly.
    """
    chat = ChatFormat(tokenizer, model)
    made = []
    for one in known:
        parts = _parts(template.user, one)
        where = f"recall, {one.relation} of {one.subject!r}, template {name!r}"
        if template.chat:
            system = [Message("system", (Part(template.system),))] if template.system else []
            rendered = chat.render([*system, Message("user", parts)], (Part("", "answer"),), where)
            text, marks = rendered.text + (rendered.lead or ""), rendered.marks
            special = chat.adds_special_tokens
        else:
            text, places = "", []
            for part in parts:
                if part.name is not None:
                    places.append(Span(part.name, len(text), len(text) + len(part.text)))
                text += part.text
            marks, special = tuple(places), True
        made.append(Request(one, name, text + template.lead, marks, special))
    return made


def _parts(wording: str, known: Known) -> tuple[Part, ...]:
    values = {"{relation}": Part(known.relation, "relation"), "{subject}": Part(known.subject, "subject")}
    return tuple(values.get(piece, Part(piece)) for piece in re.split(r"(\{relation\}|\{subject\})", wording) if piece)


def given_list(request: Request, template: RecallTemplate) -> Listing:
    """The first three answers of the facts, written as the template says."""
    text, marks = request.text, list(request.marks)
    answers = request.known.answers[:ANSWERS]
    for number, answer in enumerate(answers, start=1):
        text += " " if number == 1 else template.between.replace("{number}", str(number))
        text += "" if text.endswith(" ") else " "
        marks.append(Span(f"answer_{number}", len(text), len(text) + len(answer)))
        text += answer
    return _listing(request, answers, text, marks)


def generated_list(request: Request, continuation: str, template: RecallTemplate) -> Listing | str:
    """The list a model wrote, or why it is not used: format, repeated, wrong.

    format: fewer than three items. repeated: an item occurs twice. wrong: an item is not among the known answers
    (upper and lower case are the same).
    """
    items, begin = [], 0
    for match in [*re.finditer(template.separator, continuation), None]:
        end = match.start() if match else len(continuation)
        item = continuation[begin:end]
        inner = item.strip(template.trim)
        start = begin + item.find(inner) if inner else begin
        items.append((start, inner))
        begin = match.end() if match else end
    chosen = items[:ANSWERS]
    if len(chosen) < ANSWERS or not all(text for _, text in chosen):
        return "format"
    plain = [text.casefold() for _, text in chosen]
    if len(set(plain)) < ANSWERS:
        return "repeated"
    if not set(plain) <= {answer.casefold() for answer in request.known.answers}:
        return "wrong"
    offset = len(request.text)
    marks = [
        Span(f"answer_{number}", offset + start, offset + start + len(text))
        for number, (start, text) in enumerate(chosen, start=1)
    ]
    return _listing(request, tuple(text for _, text in chosen), request.text + continuation, [*request.marks, *marks])


def _listing(request: Request, answers: tuple[str, ...], text: str, marks: Sequence[Span]) -> Listing:
    listed = {answer.casefold() for answer in answers}
    others = tuple(answer for answer in request.known.answers if answer.casefold() not in listed)
    return Listing(
        request.known.relation,
        request.template,
        request.known.subject,
        answers,
        others,
        text,
        tuple(marks),
        request.special,
    )


# --- the authors' files ---------------------------------------------------------------------------------------------


def read_listings(paths: Sequence[str | Path], relation: str) -> tuple[list[Listing], Dropped]:
    """Listings of the released prompts (a JSON Lines file for each answer step, the same subjects in the same order).

    The prompt of a step is the beginning of the next step's, so the places of subject and answers follow from the
    texts of the three files: an answer stands where a prompt ends. Left out: ``place``, where it does not.

    Raises:
        InputError: a file is missing, a line is not JSON, lacks a key, or the files do not belong together.
    """
    files = [_read_lines(path) for path in paths]
    if len({len(rows) for rows in files}) > 1:
        raise InputError(
            f"{', '.join(map(str, paths))}: {[len(rows) for rows in files]} lines, expected the same number"
        )
    dropped, made = Dropped(), []
    for number, rows in enumerate(zip(*files, strict=True), start=1):
        subject, answers = rows[0]["subject"], tuple(rows[0]["three_answers_label_list"])
        if any(row["subject"] != subject or tuple(row["three_answers_label_list"]) != answers for row in rows):
            raise InputError(f"{paths[1]}, line {number}: another subject or other answers than in {paths[0]}")
        listing = _placed([row["query"] for row in rows], subject, answers, relation)
        if listing is None:
            dropped.add(relation, "released", "place")
        else:
            made.append(listing)
    return made, dropped


def _placed(queries: Sequence[str], subject: str, answers: tuple[str, ...], relation: str) -> Listing | None:
    if queries[0].count(subject) != 1 or len(answers) != ANSWERS:
        return None
    start = queries[0].index(subject)
    marks = [Span("subject", start, start + len(subject))]
    # behind the last prompt the third answer follows as the first ones follow theirs
    lead = queries[1][len(queries[0]) :].split(answers[0])[0]
    texts = [*queries, queries[-1] + lead + answers[-1]]
    for number, (before, after, answer) in enumerate(zip(texts, texts[1:], answers, strict=False), start=1):
        rest = after.removeprefix(before)
        if not after.startswith(before) or rest.strip()[: len(answer)] != answer:
            return None
        place = len(before) + len(rest) - len(rest.lstrip())
        marks.append(Span(f"answer_{number}", place, place + len(answer)))
    return Listing(relation, "released", subject, answers, (), texts[-1], tuple(marks), True)


def _read_lines(path: str | Path) -> list[Mapping[str, Any]]:
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number}: not valid JSON ({error.msg})") from None
        for key, kind in (("query", str), ("subject", str), ("three_answers_label_list", list)):
            if not isinstance(row, dict) or not isinstance(row.get(key), kind):
                raise InputError(f"{path}, line {number}: `{key}` is missing, or no {kind.__name__}")
        rows.append(row)
    if not rows:
        raise InputError(f"{path}: there are no prompts in it")
    return rows
