"""Chat messages to one string, with the exact place of every named part.

A tokenizer's chat template is a program; where it puts a text cannot be found by looking for the text, which may
occur elsewhere too. So the conversation is rendered once with a private-use character in place of each named part,
the places of those characters are read off, the real texts are put there, and the result must equal what the
template renders for the real messages. A template that trims or rewrites a text is refused for that text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from levelt.files import InputError
from levelt.prompts.spans import Span
from levelt.prompts.templates import Message, Part

_SENTINELS = 0xF0000  # plane 15, private use: no template contains these characters, and a count checks that
_DATE = "26 Jul 2024"
# Some templates write today's date into the prompt; prompts must be the same tomorrow.
_FIXED_CLOCK = (
    "{%- macro strftime_now(format) -%}{{ {'%d %b %Y': '26 Jul 2024', '%B %d, %Y': 'July 26, 2024', "
    "'%d %B %Y': '26 July 2024'}.get(format, '2024-07-26') }}{%- endmacro -%}{{ '' }}"
)

_Shape = tuple[tuple[str, tuple[Part, ...]], ...]
"""Roles and parts of a conversation, with the texts of named parts left out."""


@dataclass(frozen=True)
class Rendered:
    """A prompt as text, the character range of each named part in it, and what an answer begins with.

    ``lead`` is what an assistant message has between the prompt and its option, as a finished conversation shows it;
    None where that is unknown: there is no chat template, or a finished conversation does not begin with the prompt.
    """

    text: str
    marks: tuple[Span, ...]
    lead: str | None = None


@dataclass(frozen=True)
class _Skeleton:
    """Template characters around the named parts: literals[0] part[order[0]] literals[1] ... literals[-1]."""

    literals: tuple[str, ...]
    order: tuple[int, ...]
    lead: str | None = None


class ChatFormat:
    """How one tokenizer writes a conversation.

    Without a chat template the contents are joined by line breaks, roles vanish, and the tokenizer adds its special
    tokens. With one, the rendered text holds them already (``adds_special_tokens`` says which). A template that has
    no system role (it raises, or leaves the system text out) gets it before the first user message, a blank line
    between them.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        """``tokenizer``: a Hugging Face tokenizer. ``name``: the model's, for messages."""
        self.name = name
        self._tokenizer = tokenizer
        self._template: str | None = None
        if tokenizer.chat_template is not None:
            try:
                self._template = _FIXED_CLOCK + tokenizer.get_chat_template()
            except ValueError as error:  # several named templates, none of them the default
                raise InputError(f"{name}: no default chat template ({str(error).splitlines()[0]})") from None
        self._skeletons: dict[tuple[str, ...], _Skeleton] = {}
        self._system: bool | None = None

    @property
    def adds_special_tokens(self) -> bool:
        """Whether the tokenizer must add its special tokens, because no chat template wrote them."""
        return self._template is None

    def render(self, messages: Sequence[Message], answer: tuple[Part, ...], where: str) -> Rendered:
        """The conversation as the template writes it, up to where the assistant answers.

        ``answer``: the parts of an answer, one of them named; ``where``: names the sample in messages.

        Raises:
            InputError: the template cannot render it, or changes a text.
        """
        messages = self._without_system(messages)
        skeleton = self._skeleton(messages, answer)
        named = [part for message in messages for part in message.parts if part.name is not None]
        pieces: list[str] = [skeleton.literals[0]]
        marks: list[Span] = []
        position = len(pieces[0])
        for index, literal in zip(skeleton.order, skeleton.literals[1:], strict=True):
            part = named[index]
            marks.append(Span(str(part.name), position, position + len(part.text)))
            pieces += [part.text, literal]
            position += len(part.text) + len(literal)
        text = "".join(pieces)
        if self._template is not None:
            direct = self._apply([(message.role, message.content) for message in messages], generate=True)
            if direct != text:
                raise InputError(
                    f"{where}: the chat template of {self.name} rewrites the text (it may trim blanks at its ends), so "
                    f"the place of the text in the prompt is unknown; change the text or `templates`"
                )
        return Rendered(text, tuple(marks), skeleton.lead)

    def _without_system(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        if self._template is None or messages[0].role != "system" or self._has_system():
            return tuple(messages)
        first = messages[1]
        return (Message(first.role, (*messages[0].parts, Part("\n\n"), *first.parts)), *messages[2:])

    def _has_system(self) -> bool:
        if self._system is None:
            system, user = chr(_SENTINELS), chr(_SENTINELS + 1)
            try:
                self._system = system in self._apply([("system", system), ("user", user)], generate=True)
            except InputError:
                self._system = False
        return self._system

    def _skeleton(self, messages: Sequence[Message], answer: tuple[Part, ...]) -> _Skeleton:
        # Plain strings as key: this runs for every prompt. "\0" cannot be the text of a template part in YAML.
        key = tuple(
            part.text if part.name is None else f"\0{part.name}"
            for message in messages
            for part in (Part("", message.role), *message.parts)
        )
        if key not in self._skeletons:
            shape = _shape(messages)
            prompt = self._make_skeleton(shape, generate=True)
            lead = self._lead(shape, prompt, answer)
            self._skeletons[key] = _Skeleton(prompt.literals, prompt.order, lead)
        return self._skeletons[key]

    def _lead(self, shape: _Shape, prompt: _Skeleton, answer: tuple[Part, ...]) -> str | None:
        if self._template is None:
            return None
        try:
            full = self._make_skeleton((*shape, *_shape([Message("assistant", answer)])), generate=False)
        except InputError:
            return None
        count = len(prompt.order)
        lead = full.literals[count]
        known = (
            full.literals[:count] == prompt.literals[:-1]
            and full.order == (*prompt.order, count)
            and lead.startswith(prompt.literals[-1])
        )
        return lead[len(prompt.literals[-1]) :] if known else None

    def _make_skeleton(self, shape: _Shape, generate: bool) -> _Skeleton:
        sentinels: list[str] = []
        turns: list[tuple[str, str]] = []
        for role, parts in shape:
            content = ""
            for part in parts:
                if part.name is not None:
                    sentinels.append(chr(_SENTINELS + len(sentinels)))
                content += part.text if part.name is None else sentinels[-1]
            turns.append((role, content))
        if self._template is None:
            rendered = "\n".join(content for _, content in turns).strip()
        else:
            rendered = self._apply(turns, generate)
        names = [part.name for _, parts in shape for part in parts if part.name is not None]
        for name, sentinel in zip(names, sentinels, strict=True):
            if rendered.count(sentinel) != 1:
                raise InputError(
                    f"the chat template of {self.name} writes {name} {rendered.count(sentinel)} times, expected once"
                )
        order = sorted(range(len(sentinels)), key=lambda index: rendered.index(sentinels[index]))
        literals: list[str] = []
        for index in order:
            literal, rendered = rendered.split(sentinels[index])
            literals.append(literal)
        return _Skeleton((*literals, rendered), tuple(order))

    def _apply(self, turns: Sequence[tuple[str, str]], generate: bool) -> str:
        import jinja2

        try:
            return str(
                self._tokenizer.apply_chat_template(
                    [{"role": role, "content": content} for role, content in turns],
                    chat_template=self._template,
                    tokenize=False,
                    add_generation_prompt=generate,
                    date_string=_DATE,
                )
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            roles = ", ".join(role for role, _ in turns)
            raise InputError(f"the chat template of {self.name} cannot render ({roles}): {error}") from None


def _shape(messages: Sequence[Message]) -> _Shape:
    return tuple(
        (message.role, tuple(part if part.name is None else Part("", part.name) for part in message.parts))
        for message in messages
    )
