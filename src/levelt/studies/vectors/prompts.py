"""Prompts of a contrastive task: full ones, receivers without an instruction, and the first token of an answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from levelt.config import Contrast, Receiver
from levelt.files import InputError
from levelt.prompts.chat import ChatFormat, Rendered
from levelt.prompts.render import require_offsets
from levelt.prompts.spans import Span, TokenGroups, locate
from levelt.prompts.templates import Message, Part

_PLACEHOLDER = re.compile(r"(\{instruction\}|\{filler\}|\{query\})")


@dataclass(frozen=True)
class Prompt:
    """A prompt and its token groups: instruction, filler, frame (first word of a short prompt), query, decision."""

    text: str
    input_ids: tuple[int, ...]
    groups: TokenGroups
    lead: str


class Writer:
    """Writes the prompts of one contrastive task for one tokenizer."""

    def __init__(self, tokenizer: Any, name: str, contrast: Contrast) -> None:
        """``name``: the model's, for messages.

        Raises:
            InputError: the tokenizer gives no character offsets, or the layout needs a chat template it lacks.
        """
        require_offsets(tokenizer, name)
        if contrast.chat and tokenizer.chat_template is None:
            raise InputError(f"{name} has no chat template; set `chat: false` for this contrastive task")
        self._tokenizer = tokenizer
        self._contrast = contrast
        self._chat = ChatFormat(tokenizer, name) if contrast.chat else None
        unknown = tokenizer.unk_token_id
        self._special = {index for index in tokenizer.all_special_ids if index != unknown}

    def full(self, instruction: str, query: str) -> Prompt:
        """The prompt with its instruction."""
        return self._write(self._contrast.full, {"instruction": instruction, "query": query})

    def receiver(self, kind: Receiver, query: str) -> tuple[Prompt, int]:
        """A prompt without instruction, and the position where vectors are patched in."""
        contrast = self._contrast
        match kind:
            case "filler_query":
                prompt = self._write(contrast.filler_query, {"filler": contrast.filler, "query": query})
                return prompt, prompt.groups["filler"].stop - 1
            case "query":
                prompt = self._write("{query}", {"query": query})
                return prompt, prompt.groups["query"].start
            case "short_prompt":
                prompt = self._write(contrast.short_prompt, {"query": query})
                return prompt, prompt.groups["frame" if "frame" in prompt.groups else "query"].start

    def answer_id(self, prompt: Prompt, answer: str) -> int:
        """The first token of an answer where it follows the prompt.

        Raises:
            InputError: the answer has no token of its own there.
        """
        written = prompt.lead + self._contrast.answer.replace("{answer}", answer)
        longer = self._encode(prompt.text + written)["input_ids"]
        count = len(prompt.input_ids)
        if tuple(longer[:count]) == prompt.input_ids and len(longer) > count:
            return int(longer[count])
        raise InputError(
            f"the answer {answer!r} merges with the prompt's end {prompt.text[-20:]!r}; change `answer` of the task"
        )

    def _write(self, layout: str, values: dict[str, str]) -> Prompt:
        parts = []
        for piece in filter(None, _PLACEHOLDER.split(layout)):
            name = piece[1:-1]
            if piece.startswith("{") and name in values:
                parts.append(Part(values[name], name))
            elif not parts and "{instruction}" not in layout and "{filler}" not in layout:
                word = re.match(r"\s*(\S+)", piece)
                head, tail = (piece[: word.end()], piece[word.end() :]) if word else ("", piece)
                parts += [*([Part(head, "frame")] if head else []), *([Part(tail)] if tail else [])]
            else:
                parts.append(Part(piece))
        where = f"query {values['query']!r}"
        if self._chat is not None:
            rendered = self._chat.render([Message("user", tuple(parts))], (Part("answer", "answer"),), where)
        else:
            rendered = _joined(parts)
        encoded = self._encode(rendered.text)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        special = [index for index, token in enumerate(ids) if token in self._special]
        groups = locate(rendered.text, rendered.marks, offsets, special=special, where=where)
        return Prompt(rendered.text, tuple(ids), groups, rendered.lead or "")

    def _encode(self, text: str) -> Any:
        return self._tokenizer(text, add_special_tokens=self._chat is None, return_offsets_mapping=True, verbose=False)


def _joined(parts: list[Part]) -> Rendered:
    marks, text = [], ""
    for part in parts:
        if part.name is not None:
            marks.append(Span(part.name, len(text), len(text) + len(part.text)))
        text += part.text
    return Rendered(text, tuple(marks))
