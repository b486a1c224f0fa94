"""What is run on one model: the queries drawn, their prompts, the answers' first tokens, and what the model answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from levelt.config import Vectors
from levelt.engine.capture import Read, capture
from levelt.files import InputError
from levelt.models.loading import Decoder
from levelt.models.selfcheck import readout
from levelt.randomness import generator
from levelt.studies.vectors.prompts import Prompt, Writer


@dataclass(frozen=True)
class Side:
    """One of a task's two instructions: its wordings (0 is in use), and per query the prompt and the answer's token."""

    instruction_id: str
    wordings: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    answers: tuple[str, ...]
    answer_ids: tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """A contrastive task on one model. dropped: queries whose two answers begin with the same token."""

    task: str
    writer: Writer
    queries: tuple[str, ...]
    sides: tuple[Side, Side]
    dropped: int


def cases_of(
    decoder: Decoder, name: str, queries: pd.DataFrame, instructions: pd.DataFrame, settings: Vectors, seed: int
) -> list[Case]:
    """The study's contrastive tasks on one model, ``settings.queries`` queries each.

    Args:
        name: the model's, for messages.
        queries, instructions: see `levelt.studies.vectors.contrasts`.

    Raises:
        InputError: a task has not two instructions with the same queries, or fewer than 8 queries are left.
    """
    return [
        _case(
            Writer(decoder.tokenizer, name, contrast),
            task,
            queries[queries["task"] == task],
            instructions[instructions["task"] == task],
            settings.queries,
            generator(seed, "vectors", "queries", task),
        )
        for task, contrast in settings.tasks.items()
    ]


def _case(
    writer: Writer,
    task: str,
    queries: pd.DataFrame,
    instructions: pd.DataFrame,
    number: int,
    drawn: np.random.Generator,
) -> Case:
    sides = list(dict.fromkeys(instructions["instruction_id"]))
    table = queries.pivot(index="query", columns="instruction_id", values="answer").reindex(
        list(dict.fromkeys(queries["query"]))
    )
    if len(sides) != 2 or sorted(table.columns) != sorted(sides) or table.isna().any(axis=None):
        raise InputError(f"contrastive task {task}: expected two instructions, each with an answer to every query")
    wordings = {
        side: tuple(part.sort_values("wording")["instruction"])
        for side, part in instructions.groupby("instruction_id", sort=False)
    }
    order = np.sort(drawn.permutation(len(table))[:number])
    kept: list[tuple[str, list[Prompt], list[int]]] = []
    for query, row in table.iloc[order].iterrows():
        prompts = [writer.full(wordings[side][0], str(query)) for side in sides]
        ids = [writer.answer_id(prompt, row[side]) for prompt, side in zip(prompts, sides, strict=True)]
        if ids[0] != ids[1]:
            kept.append((str(query), prompts, ids))
    if len(kept) < 8:
        raise InputError(f"contrastive task {task}: only {len(kept)} queries whose answers differ in their first token")
    made = [
        Side(
            side,
            wordings[side],
            tuple(prompts[at] for _, prompts, _ in kept),
            tuple(str(table.loc[query, side]) for query, _, _ in kept),
            tuple(ids[at] for _, _, ids in kept),
        )
        for at, side in enumerate(sides)
    ]
    return Case(task, writer, tuple(query for query, _, _ in kept), (made[0], made[1]), len(order) - len(kept))


def rephrased(case: Case, side: Side, wording: int) -> list[Prompt]:
    """The prompts of one side in another wording."""
    return [case.writer.full(side.wordings[wording], query) for query in case.queries]


@torch.inference_mode()
def final_logits(decoder: Decoder, prompts: Sequence[Prompt], batch_tokens: int) -> Float[Tensor, "n vocabulary"]:
    """The logits of each prompt's last position, over the whole vocabulary."""
    depth = len(decoder.parts.layers)
    read = Read("residual", "decision", layers=(depth,))
    found = capture(decoder, prompts, [read], batch_tokens=batch_tokens, label="contrastive")
    residual = torch.from_numpy(found[read.name][:, 0]).to(decoder.model.device, decoder.model.dtype)
    return torch.cat([readout(decoder.parts, part).float().cpu() for part in torch.split(residual, 256)])


def instruction_states(
    decoder: Decoder, case: Case, side: Side, wordings: Sequence[int]
) -> list[Float[Tensor, "tokens layers_and_embedding d"]]:
    """For each wording, the residual at every token of the instruction; the last row is the instruction vector.

    By causality these do not depend on the query that follows, so one query will do.
    """
    prompts = [case.writer.full(side.wordings[wording], case.queries[0]) for wording in wordings]
    found = capture(decoder, prompts, [Read("residual", "instruction", each=True)], label="instruction")
    return [torch.from_numpy(found.row("instruction.residual.each", index)) for index in range(len(prompts))]


def behaviour(decoder: Decoder, cases: Sequence[Case], batch_tokens: int) -> pd.DataFrame:
    """Whether the model's first token is that of the answer: per query, for the wording in use and the first other one.

    Returns:
        task, instruction_id, wording, sample, query, correct, other (it is the other instruction's answer), rank (of
        the answer's first token), probability (of that token).
    """
    frames = []
    for case in cases:
        for side, against in (case.sides, case.sides[::-1]):
            for wording in range(min(2, len(side.wordings))):
                logits = final_logits(decoder, rephrased(case, side, wording), batch_tokens)
                own = torch.tensor(side.answer_ids)
                first = logits.argmax(-1)
                target = logits.gather(1, own[:, None])
                frames.append(
                    pd.DataFrame(
                        {
                            "task": case.task,
                            "instruction_id": side.instruction_id,
                            "wording": wording,
                            "sample": range(len(case.queries)),
                            "query": case.queries,
                            "correct": (first == own).numpy(),
                            "other": (first == torch.tensor(against.answer_ids)).numpy(),
                            "rank": ((logits > target).sum(-1) + 1).numpy(),
                            "probability": logits.softmax(-1).gather(1, own[:, None])[:, 0].numpy(),
                        }
                    )
                )
    return pd.concat(frames, ignore_index=True)
