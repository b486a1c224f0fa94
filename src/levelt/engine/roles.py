"""Roles: which positions of a prompt are probed, and at which site. No torch here: the probes read it too.

- ``sample`` (residual): the sample's tokens, mean.
- ``decision`` (residual): the last prompt position, whose logits choose the answer.
- ``output`` (attention): the answer positions (`levelt.engine.generate`), mean; as published.
- ``output_with_decision`` (attention): the decision and the answer positions, mean. The published role leaves out the
  very position that selects the answer (encode.py collects one-token passes only).
- ``before`` (residual): the position in front of the sample. A control: nothing there depends on the sample.
- ``sample_as_released`` (residual): the sample as the released code finds it, one character late and longer
  (`levelt.prompts.spans.RELEASED`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from levelt.config import Role
from levelt.files import InputError
from levelt.prompts.spans import DECISION, RELEASED, TokenGroups

ROLE_SITES: Mapping[str, Literal["residual", "attention"]] = {
    "sample": "residual",
    "output": "attention",
    "decision": "residual",
    "before": "residual",
    "output_with_decision": "attention",
    "sample_as_released": "residual",
}
"""The site of each role (`levelt.engine.sites`)."""

GENERATED: Sequence[Role] = ("output", "output_with_decision")
"""Roles that include positions the model generates."""


def role_range(role: Role, groups: TokenGroups, length: int, where: str) -> tuple[int, int]:
    """The half-open token range of a role that lies in the prompt itself.

    Raises:
        InputError: the prompt lacks the role's group, or has it outside its tokens; the decision is not its last token.
    """
    name = {"before": "sample", "sample_as_released": RELEASED}.get(role, str(role))
    if name not in groups:
        raise InputError(f"{where} has no token group {name}, only {', '.join(groups.names)}")
    span = groups[name]
    if not 0 <= span.start < span.stop <= length:
        raise InputError(f"{where}: {name} is [{span.start}, {span.stop}) of {length} tokens")
    if role == DECISION and span.start != length - 1:
        raise InputError(f"{where}: the decision is token {span.start}, not the last of {length}")
    if role == "before":
        if span.start == 0:
            raise InputError(f"{where}: the sample begins at token 0, so there is no position before it")
        return span.start - 1, span.start
    return span.start, span.stop
