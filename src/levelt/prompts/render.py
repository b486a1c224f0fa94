"""Prompts out: every sample in every variation as text, token ids and token groups, for one model's tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from levelt.config import Prompts, Task, Template, Variation
from levelt.files import InputError
from levelt.prompts.chat import ChatFormat, Rendered
from levelt.prompts.spans import Span, TokenGroups, locate
from levelt.prompts.templates import (
    DemonstrationPool,
    Sample,
    answer_parts,
    conversation,
    negated_pairs,
)

_STRINGS = (
    "prompt_id",
    "sample_id",
    "pair_id",
    "condition",
    "template",
    "polarity",
    "text",
    "label",
    "answer",
    "unasked",
)
COLUMNS = (*_STRINGS[:7], "input_ids", "groups", "straddling", *_STRINGS[7:], "options", "option_ids")
"""Columns of a prompts table."""

OTHER_INSTRUCTION = "other_instruction"
"""The variation that asks about the text's other property: its answer is ``unasked``, not the label."""

_BATCH = 1024  # prompts per tokenizer call: bounds the memory that offsets take


@dataclass(frozen=True)
class Prompt:
    """One prompt, ready for a model."""

    prompt_id: str
    sample_id: str
    pair_id: str
    condition: str
    template: str
    polarity: str
    text: str
    input_ids: tuple[int, ...]
    groups: TokenGroups
    label: str
    answer: str
    unasked: str | None
    options: tuple[str, str]
    option_ids: tuple[int, int]


@dataclass(frozen=True)
class _Draft:
    """A prompt before it meets the tokenizer."""

    sample: Sample
    condition: Variation
    negated: bool
    rendered: Rendered
    where: str


# --- the tokenizer -------------------------------------------------------------------------------------------------


def load_tokenizer(manifest: Mapping[str, Any]) -> Any:
    """The tokenizer of the model that ``manifest`` (models/<id>/manifest.json) describes.

    Raises:
        InputError: it cannot be loaded, or gives no character offsets (a slow tokenizer).
    """
    from transformers import AutoTokenizer

    for key in ("id", "path"):
        if not isinstance(manifest.get(key), str):
            raise InputError(f"model manifest: `{key}` is missing")
    path = str(manifest["path"])
    hub = path.startswith("hub:")
    if hub and not manifest.get("revision"):
        raise InputError(f"model manifest of {manifest['id']}: {path} needs a `revision`")
    if not hub and not Path(path).is_dir():
        raise InputError(f"model manifest of {manifest['id']}: no such folder {path}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path.removeprefix("hub:"), revision=manifest["revision"] if hub else None, trust_remote_code=False
        )
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"{path}: the tokenizer cannot be loaded ({str(error).splitlines()[0]})") from None
    require_offsets(tokenizer, str(manifest["id"]))
    return tokenizer


def require_offsets(tokenizer: Any, name: str) -> None:
    """Refuse a tokenizer that cannot say which characters a token stands for."""
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"the tokenizer of {name} ({type(tokenizer).__name__}) gives no character offsets; a fast tokenizer "
            f"(tokenizer.json) is needed"
        )


class _Tokens:
    """The tokenizer's view of rendered prompts: ids, offsets, special tokens, and how answers continue them."""

    def __init__(self, tokenizer: Any, chat: ChatFormat) -> None:
        self._tokenizer = tokenizer
        self._chat = chat
        added = tokenizer.added_tokens_decoder
        self._special = {index: str(token.content) for index, token in added.items() if token.special}
        self._unknown = tokenizer.unk_token_id
        self._ends: dict[str, list[int]] = {}
        self._first: dict[tuple[str, str, tuple[str, ...]], tuple[int, int] | None] = {}

    def encode(self, texts: Sequence[str], *, offsets: bool = False) -> Any:
        """ids of each text; with ``offsets``, also the characters of each token and the special-tokens mask."""
        return self._tokenizer(
            list(texts),
            add_special_tokens=self._chat.adds_special_tokens,
            return_offsets_mapping=offsets,
            return_special_tokens_mask=offsets,
            return_attention_mask=False,
            return_token_type_ids=False,
            truncation=False,
            padding=False,
            verbose=False,
        )

    def special_indices(self, ids: Sequence[int], offsets: Sequence[tuple[int, int]], text: str) -> list[int]:
        """Which of the tokens are special. The unknown token is only where the text spells it out: otherwise it
        stands for characters that the vocabulary lacks."""
        return [
            index
            for index, token in enumerate(ids)
            if token in self._special
            and (token != self._unknown or text[slice(*offsets[index])].strip() == self._special[token])
        ]

    def option_ids(
        self, draft: _Draft, ids: list[int], offsets: Sequence[tuple[int, int]], template: Template, options: list[str]
    ) -> tuple[int, int]:
        """The first token of each option where it follows the prompt.

        Tried in order: the option as a finished conversation writes it; as the template's ``answer`` writes it right
        after the prompt. The first whose tokens are determined and differ is taken.
        """
        leads = [draft.rendered.lead, template.answer.partition("{answer}")[0]]
        end, end_ids, whole = self._end(draft.rendered, ids, offsets)
        for lead in dict.fromkeys(lead for lead in leads if lead is not None):
            first = self._first_tokens(end, end_ids, lead, options, whole)
            if first is not None and first[0] != first[1]:
                return first
        raise InputError(
            f"{draft.where}: the options {options} cannot be told apart by their first tokens after the prompt (they "
            f"share it, or it merges with the prompt's end; templates.*.answer is {template.answer!r}); change the "
            f"options or the template"
        )

    def _end(
        self, rendered: Rendered, ids: list[int], offsets: Sequence[tuple[int, int]]
    ) -> tuple[str, list[int], bool]:
        """The shortest end of the prompt that decides how an answer continues it, and whether that is all of it.

        Special tokens are split off before anything else happens to a text, so the template characters from the last
        special token on are enough, and they are the same for all samples; that they are encoded alike is checked.
        """
        tail = max((mark.stop for mark in rendered.marks), default=0)
        for index in range(len(ids) - 1, 0, -1):
            start, stop = offsets[index]
            if start < tail:
                break
            if ids[index] in self._special and start < stop:
                end = rendered.text[start:]
                if end not in self._ends:
                    self._ends[end] = self.encode([end])["input_ids"][0]
                if self._ends[end] == ids[index:]:
                    return end, ids[index:], False
                break
        return rendered.text, ids, True

    def _first_tokens(
        self, end: str, ids: list[int], lead: str, options: list[str], whole: bool
    ) -> tuple[int, int] | None:
        key = (end, lead, tuple(options))
        if key in self._first:
            return self._first[key]
        texts = [end + lead + option for option in options]
        found: list[int] = []
        for option, longer in zip(options, self.encode(texts)["input_ids"], strict=True):
            if longer[: len(ids)] == ids and len(longer) > len(ids):
                found.append(longer[len(ids)])
            elif (alone := self._alone(ids, lead + option)) is not None:
                found.append(alone)
        first = (found[0], found[1]) if len(found) == 2 else None
        if not whole:
            self._first[key] = first
        return first

    def _alone(self, ids: list[int], answer: str) -> int | None:
        """The first token of ``answer`` encoded by itself, if its tokens after the prompt's spell the answer."""
        alone = self._tokenizer(answer, add_special_tokens=False)["input_ids"]
        before, after = (
            self._tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            for tokens in (ids, ids + alone)
        )
        return alone[0] if alone and after == before + answer else None


# --- prompts -------------------------------------------------------------------------------------------------------


def render_task(
    samples: pd.DataFrame,
    task: Task,
    prompts: Prompts,
    templates: Mapping[str, Template],
    tokenizer: Any,
    *,
    seed: int,
    name: str,
    model: str,
) -> pd.DataFrame:
    """All prompts of one task for one tokenizer.

    Args:
        samples: the samples table (levelt.prompts.samples).
        task, prompts, templates: config sections.
        tokenizer: a fast Hugging Face tokenizer.
        seed: the study seed, for drawing demonstrations.
        name: the task's name. model: the model's id; both also for messages.

    Returns:
        A table with ``COLUMNS``, one row per prompt, variation after variation in the order of ``prompts``.

    Raises:
        InputError: a prompt cannot be made exactly; the sentence names task, sample and template.
    """
    require_offsets(tokenizer, model)
    template = templates[prompts.template]
    rows = _samples(samples)
    chat = ChatFormat(tokenizer, model)
    tokens = _Tokens(tokenizer, chat)
    drafts = _drafts(rows, task, prompts, template, chat, seed=seed, name=name)
    made: list[Prompt] = []
    for begin in range(0, len(drafts), _BATCH):
        batch = drafts[begin : begin + _BATCH]
        encoded = tokens.encode([draft.rendered.text for draft in batch], offsets=True)
        for draft, ids, offsets, mask in zip(
            batch, encoded["input_ids"], encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True
        ):
            if chat.adds_special_tokens and ids and mask[-1] and offsets[-1][0] == offsets[-1][1]:
                raise InputError(
                    f"the tokenizer of {model} ends every text with a special token (add_eos_token?), so the last "
                    f"position of a prompt would not be the one that answers"
                )
            groups = locate(
                draft.rendered.text,
                draft.rendered.marks,
                offsets,
                special=tokens.special_indices(ids, offsets, draft.rendered.text),
                where=draft.where,
            )
            options = (task.options[0], task.options[1])
            right = draft.sample.unasked if draft.condition == OTHER_INSTRUCTION else draft.sample.label
            made.append(
                Prompt(
                    prompt_id=f"{draft.condition}:{draft.sample.sample_id}",
                    sample_id=draft.sample.sample_id,
                    pair_id=draft.sample.pair_id,
                    condition=draft.condition,
                    template=prompts.template,
                    polarity="negated" if draft.negated else "positive",
                    text=draft.rendered.text,
                    input_ids=tuple(ids),
                    groups=groups,
                    label=draft.sample.label,
                    answer=options[options.index(str(right)) ^ int(draft.negated)],
                    unasked=draft.sample.unasked,
                    options=options,
                    option_ids=tokens.option_ids(draft, ids, offsets, template, list(options)),
                )
            )
    return to_table(made)


def _samples(table: pd.DataFrame) -> list[Sample]:
    columns = [field.name for field in fields(Sample)]
    absent = [column for column in columns if column not in table.columns]
    if absent:
        raise InputError(f"the samples table lacks the column(s) {absent}")
    plain = table[columns].astype(object).where(table[columns].notna(), None)
    return [Sample(**{str(key): value for key, value in row.items()}) for row in plain.to_dict("records")]


def _drafts(
    rows: Sequence[Sample],
    task: Task,
    prompts: Prompts,
    template: Template,
    chat: ChatFormat,
    *,
    seed: int,
    name: str,
) -> list[_Draft]:
    negated = negated_pairs([row.pair_id for row in rows]) if prompts.polarity == "mixed" else frozenset()
    pool = DemonstrationPool(rows, task.options, seed=seed, task=name)
    answer = answer_parts(template, "", "answer")
    drafts = []
    for variation in prompts.variations:
        for row in rows:
            where = f"tasks.{name}, sample {row.sample_id!r}, template {prompts.template!r} ({variation})"
            if row.label not in task.options:
                raise InputError(f"{where}: label {row.label!r} is not among the options {task.options}")
            if variation == "demonstrations":
                negate = False  # there is no question that could be negated
                shown = pool.draw(row, prompts.demonstrations)
                messages = conversation(template, variation, "", row.text, shown)
            elif variation == "unrelated_instruction":
                negate = False  # the question does not ask for the label, negated or not
                messages = conversation(template, variation, prompts.unrelated_question or "", row.text)
            else:
                negate = row.pair_id in negated
                questions: tuple[str | None, str | None] = row.question, row.negated_question
                if variation == OTHER_INSTRUCTION:
                    questions = row.unasked_question, row.unasked_negated_question
                    if row.unasked not in task.options or row.unasked_question is None:
                        raise InputError(f"{where}: the text has no other property that could be asked about")
                question = questions[negate]
                if question is None:
                    raise InputError(f"{where}: no negated question, but prompts.polarity is mixed")
                messages = conversation(template, variation, question, row.text)
            drafts.append(_Draft(row, variation, negate, chat.render(messages, answer, where), where))
    return drafts


# --- tables --------------------------------------------------------------------------------------------------------


def to_table(prompts: Sequence[Prompt]) -> pd.DataFrame:
    """Prompts as a table with ``COLUMNS``; integers are 32-bit, a missing ``unasked`` is null."""
    rows = [{key: getattr(prompt, key) for key in _STRINGS} for prompt in prompts]
    table = pd.DataFrame(rows, columns=list(_STRINGS)).astype("str")
    table["input_ids"] = _column([np.asarray(prompt.input_ids, dtype=np.int32) for prompt in prompts])
    table["groups"] = _column(
        [
            [{"name": span.name, "start": np.int32(span.start), "stop": np.int32(span.stop)} for span in prompt.groups]
            for prompt in prompts
        ]
    )
    table["straddling"] = np.asarray([prompt.groups.straddling for prompt in prompts], dtype=np.int32)
    table["options"] = _column([list(prompt.options) for prompt in prompts])
    table["option_ids"] = _column([np.asarray(prompt.option_ids, dtype=np.int32) for prompt in prompts])
    return table[list(COLUMNS)]


def _column(values: Sequence[Any]) -> pd.Series:
    return pd.Series(list(values), dtype=object)


def from_table(table: pd.DataFrame) -> list[Prompt]:
    """The prompts of a table as `to_table` makes it, in its order.

    Raises:
        InputError: a column is missing.
    """
    absent = [column for column in COLUMNS if column not in table.columns]
    if absent:
        raise InputError(f"the prompts table lacks the column(s) {absent}; `levelt prompts` writes them")
    named = [key for key in _STRINGS if key != "unasked"]
    strings = zip(*(table[key].tolist() for key in named), strict=True)
    given = table["unasked"].notna()
    unasked = [str(value) if known else None for value, known in zip(table["unasked"], given, strict=True)]
    others = zip(*(table[key].tolist() for key in COLUMNS if key not in _STRINGS), strict=True)
    prompts = []
    for texts, other, (ids, groups, straddling, options, option_ids) in zip(strings, unasked, others, strict=True):
        spans = tuple(Span(str(group["name"]), int(group["start"]), int(group["stop"])) for group in groups)
        prompts.append(
            Prompt(
                **dict(zip(named, map(str, texts), strict=True)),
                unasked=other,
                input_ids=tuple(np.asarray(ids).tolist()),
                groups=TokenGroups(spans, int(straddling)),
                options=cast("tuple[str, str]", tuple(str(option) for option in options)),
                option_ids=cast("tuple[int, int]", tuple(np.asarray(option_ids).tolist())),
            )
        )
    return prompts
