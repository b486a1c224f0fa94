"""Block plans: which positions must not attend to which, in which layers, by the names of token groups.

A plan is a value: frozen, hashable, JSON, with a digest. It names groups and never positions, so one plan serves
every prompt; `Selector.ranges` gives the positions of one prompt. Nothing here needs torch: `levelt.engine.attention`
puts a plan in force.

Layers are counted from 0 (decoder layer 0 reads the embeddings), both ends included; ``None`` as the last layer means
the model's last one. Residual readings count the same layers from 1 (entry l is *after* layer l).
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, get_args

from levelt.config import Intervention
from levelt.files import InputError
from levelt.prompts.spans import DECISION, TokenGroups

OUTPUT = "output"
"""The group of the generated positions: those behind the last prompt position, however many there will be."""

OPEN = sys.maxsize
"""The end of a range that reaches into the generated positions."""

Layers = tuple[int, int | None]
Ranges = tuple[tuple[int, int], ...]
"""Sorted, disjoint, half-open ranges of token positions of one prompt; a generated position counts on from its end."""

ALL_LAYERS: Layers = (0, None)

_GROUP = r"[a-z][a-z0-9_]*(?:\[-?\d+:-?\d+\])?\??"
_TERM = re.compile(rf"all|{_GROUP}|(?:after|before|from):{_GROUP}|between:{_GROUP}:{_GROUP}")
_REFERENCE = re.compile(r"([a-z][a-z0-9_]*)(?:\[(-?\d+):(-?\d+)\])?(\?)?")


@dataclass(frozen=True)
class Selector:
    """A set of positions, as a sum of terms: ``after:instruction - decision - output``.

    Terms, added and removed from left to right:

    - ``all``: every position of the prompt and every generated one;
    - ``NAME``: a token group of the prompt (sample, instruction, system, decision, ...), or ``output``, the generated
      positions;
    - ``after:NAME``, ``before:NAME``: every position behind (generated ones too) or in front of a group;
    - ``from:NAME``: the group and everything after it;
    - ``between:A:B``: the positions behind group A and in front of group B.

    ``NAME[i:j]`` moves the group's first position by i and its end by j (``sample[1:0]``: without its first token).
    ``NAME?`` is an optional group: a term that names an absent one selects nothing, where otherwise a missing group
    is an error.
    """

    text: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", " ".join(self.text.split()))
        self.terms()

    def __str__(self) -> str:
        return self.text

    def terms(self) -> tuple[tuple[bool, str], ...]:
        """(added or removed, term) from left to right.

        Raises:
            InputError: the text is not a sum of terms.
        """
        return _terms(self.text)

    def ranges(self, groups: TokenGroups, length: int) -> Ranges:
        """The positions in a prompt of ``length`` tokens.

        Raises:
            InputError: the prompt has no such group.
        """
        chosen: Ranges = ()
        for added, term in self.terms():
            found = _resolve(term, groups, length)
            chosen = _union(chosen, found) if added else difference(chosen, found)
        return chosen


@lru_cache
def _terms(text: str) -> tuple[tuple[bool, str], ...]:
    words = text.split(" ")
    signs, terms = ["+", *words[1::2]], words[0::2]
    if len(words) % 2 == 0 or not set(signs) <= {"+", "-"} or not all(map(_TERM.fullmatch, terms)):
        raise InputError(f"not a selection of positions: {text!r}; expected terms such as after:instruction")
    return tuple((sign == "+", term) for sign, term in zip(signs, terms, strict=True))


def _resolve(term: str, groups: TokenGroups, length: int) -> Ranges:
    if term == "all":
        return ((0, OPEN),)
    last = list(re.finditer(_GROUP, term))[-1].start()  # what stands behind the last colon outside brackets
    kind, rest = term[: max(last - 1, 0)], term[last:]
    if kind.startswith("between:"):
        first, second = _bounds(kind.removeprefix("between:"), groups, length), _bounds(rest, groups, length)
        return _kept(first[1], second[0]) if first and second else ()
    bounds = _bounds(rest, groups, length)
    if bounds is None:
        return ()
    start, stop = bounds
    match kind:
        case "after":
            return _kept(stop, OPEN)
        case "before":
            return _kept(0, start)
        case "from":
            return _kept(start, OPEN)
        case _:
            return _kept(start, stop)


def _bounds(reference: str, groups: TokenGroups, length: int) -> tuple[int, int] | None:
    match = _REFERENCE.fullmatch(reference)
    assert match is not None  # the term was checked when the selector was made
    name, first, last, optional = match.groups()
    if name == OUTPUT:
        start, stop = length, OPEN
    elif name in groups:
        start, stop = groups[name].start, groups[name].stop
    elif optional:
        return None
    else:
        raise InputError(f"no token group {name}, only {', '.join(groups.names)}")
    return max(start + int(first or 0), 0), stop if stop == OPEN else stop + int(last or 0)


def _kept(start: int, stop: int) -> Ranges:
    return ((start, stop),) if start < stop else ()


def _union(left: Ranges, right: Ranges) -> Ranges:
    merged: list[tuple[int, int]] = []
    for start, stop in sorted([*left, *right]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return tuple(merged)


def difference(left: Ranges, right: Ranges) -> Ranges:
    """The positions of the left ranges that are not in the right ones."""
    for start, stop in right:
        left = tuple(piece for a, b in left for piece in (*_kept(a, min(b, start)), *_kept(max(a, stop), b)))
    return left


@dataclass(frozen=True)
class Block:
    """Queries at ``queries`` must not attend to keys at ``keys``, in layers first..last."""

    queries: Selector
    keys: Selector
    layers: Layers = ALL_LAYERS

    def __post_init__(self) -> None:
        _check_layers(self.layers)

    @classmethod
    def of(cls, queries: str, keys: str, layers: Layers = ALL_LAYERS) -> Block:
        """A block from the texts of its selectors."""
        return cls(Selector(queries), Selector(keys), layers)


def window(centre: int, size: int, layers: int) -> Layers:
    """The layers of a window around a centre, cut off at the model's ends: [centre - size/2, centre + size/2)."""
    half = size // 2
    return max(0, centre - half), min(layers, centre - half + size) - 1


def covers(layers: Layers, layer: int) -> bool:
    """Whether a layer, counted from 0, is among layers."""
    return layers[0] <= layer and (layers[1] is None or layer <= layers[1])


def _check_layers(layers: Layers) -> None:
    first, last = layers
    if first < 0 or (last is not None and last < first):
        raise InputError(f"layers {first}..{last} are not a range of layers (counted from 0, both ends included)")


@dataclass(frozen=True)
class Plan:
    """Blocks that are in force together. The empty plan changes nothing, on the same attention kernel.

    open_future: layers in which every prompt position also sees the prompt positions *behind* it. Never right: it is
        the released artefact of paper 1 (see `Released.non_causal`) and exists to measure it.
    """

    blocks: tuple[Block, ...] = ()
    open_future: Layers | None = None

    def __post_init__(self) -> None:
        if self.open_future is not None:
            _check_layers(self.open_future)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        blocks = [{"queries": b.queries.text, "keys": b.keys.text, "layers": list(b.layers)} for b in self.blocks]
        opened = list(self.open_future) if self.open_future else None
        return {"blocks": blocks, "open_future": opened}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Plan:
        """The plan that `to_json` wrote.

        Raises:
            InputError: it is not one.
        """
        try:
            blocks = tuple(Block.of(b["queries"], b["keys"], _layers(b["layers"])) for b in value["blocks"])
            opened = value["open_future"]
            return cls(blocks, _layers(opened) if opened is not None else None)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"not a plan: {json.dumps(value, default=str)[:80]} ({error})") from None

    @property
    def digest(self) -> str:
        """SHA-256 of the plan's JSON: two plans with one digest are one plan."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def _layers(value: Any) -> Layers:
    first, last = value
    return int(first), None if last is None else int(last)


# --- the conditions of paper 1 ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Released:
    """What the released code of paper 1 (encode.py; methods/1, sections 3 and 4) does otherwise, switch by switch.

    first_layer_open: the job scripts pass ``--attention_limitation_layer_from 0`` and the layer gate is strict
        (``layer > from``), so that layer 0 still reads what is blocked.
    question_only: only the characters of the question string count as the instruction; the system message ("Answer
        only with a single word...") and the markup behind it stay visible. Without it, and where a prompt has a
        system message, everything from it to the end of the question is blocked.
    strict_columns: at the last prompt position, ``input_output`` leaves the first sample token open (columns >
        smin) and takes away the position itself and all generated ones; ``instruction_output`` leaves the first
        question token open (qmin < column).
    non_causal: the wrapped forward replaces the mask None, which SDPA gets for an unpadded batch, by an all-True one
        (encode.py 589-594), and a mask switches ``is_causal`` off: the prompt is read in both directions in every
        layer that is edited. A sliding window is kept here, as in the released code where one is shorter than the
        prompt; there the artefact is absent, and with padding it is too.
    shifted_spans: spans are 1-based in the task files and used as 0-based, so that the sample's characters begin and
        end one late. Here it moves whole tokens, which is exact for one-character tokens only (1.5 to 46 % of the
        released rows begin with one) and overstates the rest; the conditions named ``*_as_released`` leave it out.
    """

    first_layer_open: bool = False
    question_only: bool = False
    strict_columns: bool = False
    non_causal: bool = False
    shifted_spans: bool = False


def condition(name: str, released: Released = Released()) -> Plan:
    """The plan of a condition (on instruction_first prompts), right by default.

    - ``block_nothing``: the empty plan, on the same kernel. Released: the wrapper without a mode.
    - ``block_instruction_to_all``: nothing after the instruction reads it. Released: ``question_right`` + ``output``.
    - ``block_instruction_to_sample``: nothing after the instruction reads it, but the decision and the generated
      positions do. Not the sample's tokens alone: the template tokens around them would relay it. Released:
      ``question_right`` ("prompt-only").
    - ``block_instruction_to_output``: the decision and the generated positions do not read it. Released:
      ``instruction_output``.
    - ``block_sample_to_output``: the decision and the generated positions do not read the sample and the template
      tokens that close it, which would relay it; they do read themselves. Released: ``input_output``.
    - ``isolate_sample``: the sample's tokens see nothing in front of the sample. No counterpart in the release.
    """
    layers: Layers = (1, None) if released.first_layer_open else ALL_LAYERS
    whole = "instruction" if released.question_only else "system? + between:system?:instruction + instruction"
    sample = "sample[1:1]" if released.shifted_spans else "sample"
    match name:
        case "block_nothing":
            blocks = []
        case "block_instruction_to_all":
            blocks = [("after:instruction", whole)]
        case "block_instruction_to_sample":
            blocks = [(f"after:instruction - {DECISION} - {OUTPUT}", whole)]
        case "block_instruction_to_output" if released.strict_columns:
            blocks = [(DECISION, f"{whole} - instruction + instruction[1:0]"), (OUTPUT, whole)]
        case "block_instruction_to_output":
            blocks = [(f"{DECISION} + {OUTPUT}", whole)]
        case "block_sample_to_output" if released.strict_columns:
            first = "sample[2:1]" if released.shifted_spans else "sample[1:0]"
            blocks = [(DECISION, f"{first} + after:{sample}"), (OUTPUT, f"from:{sample}")]
        case "block_sample_to_output":
            blocks = [(f"{DECISION} + {OUTPUT}", f"{sample} + between:{sample}:{DECISION} - {DECISION}")]
        case "isolate_sample":
            blocks = [(sample, f"before:{sample}")]
        case _:
            raise InputError(f"no condition {name!r}; there are {', '.join(get_args(Intervention))}")
    opened = layers if released.non_causal else None
    return Plan(tuple(Block.of(queries, keys, layers) for queries, keys in blocks), opened)


_RELEASE = Released(first_layer_open=True, question_only=True, strict_columns=True, non_causal=True)
_SUFFIX = "_as_released"

CONDITIONS: Mapping[str, Plan] = {
    name: condition(name.removesuffix(_SUFFIX), _RELEASE if name.endswith(_SUFFIX) else Released())
    for name in get_args(Intervention)
}
"""The interventions of the config: the published blocks and their controls, done right; and, under names that end in
``_as_released``, as the released code runs them (batch size 1, SDPA; all switches of `Released` but shifted_spans)."""
