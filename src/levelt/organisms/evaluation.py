"""What an organism can do on held-out texts, measured while it is trained.

marker: after a finished clause the base model must predict which repair follows (its task's marker, or none).
exact: the instruction-tuned model's greedy answer to the study's own prompts is the right word and then the end of the
turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int64
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from levelt.config import Template
from levelt.organisms.instructions import first_turn
from levelt.organisms.tokenizer import END, render
from levelt.randomness import generator
from levelt.world.corpus import END_MARK
from levelt.world.draws import Draws
from levelt.world.tasks import GRAMMAR, KINDS, Bank, definitions, draw_text, join

_BATCH = 64


@dataclass(frozen=True)
class Probe:
    """Held-out prompts with the token that must follow; ``choices`` None: the choice is among all tokens."""

    name: str
    prompts: list[list[int]]
    expected: list[list[int]]
    choices: list[int] | None = None


def marker_probes(bank: Bank, tokenizer: PreTrainedTokenizerFast, number: int) -> list[Probe]:
    """One probe per task: after a held-out clause, which may have another before it, its marker or none.

    "None" is the end of the document or the word that opens an approving comment. The other clause is right; a
    definition comes first, or behind the text, where the clause can only then be judged.
    """
    (end,) = tokenizer(END_MARK).input_ids
    indeed = tokenizer(" indeed").input_ids[0]
    marker = {task: tokenizer(f" {KINDS[task].marker}").input_ids[0] for task in bank.tasks}
    probes = []
    for task in bank.tasks:
        draws = Draws(generator(0, "organisms", "marker", task))
        prompts, expected = [], []
        for index in range(number):
            holds = index % 2 == 0
            content, states = (draws.pick(bank.content), (True, holds)) if task == GRAMMAR else (task, (holds, True))
            text = draw_text(bank, content, states, True, draws)
            place = [clause.task for clause in text].index(task)
            known = definitions(text)
            if text[place].meaning and index // 2 % 2:
                parts = [join(text), known]
            else:
                parts = [known, join(text[: place + 1])]
            prompts.append(list(tokenizer(" ".join(part for part in parts if part)).input_ids))
            expected.append([indeed, end] if holds else [marker[task]])
        probes.append(Probe(f"marker_{task}", prompts, expected, [*marker.values(), indeed, end]))
    return probes


def answer_probes(
    samples: Mapping[str, pd.DataFrame],
    tokenizer: PreTrainedTokenizerFast,
    templates: Sequence[Template],
    number: int,
) -> list[Probe]:
    """One probe per task: the study's prompts over held-out samples, orders, polarities and templates in turn."""
    probes = []
    for task, table in samples.items():
        prompts, expected = [], []
        for index, row in enumerate(table.head(number).to_dict("records")):
            template = templates[index // 8 % len(templates)]
            negated = index // 2 % 2 == 1
            order = "instruction_first" if index // 4 % 2 == 0 else "sample_first"
            question = row["negated_question"] if negated else row["question"]
            answer = row["label"] if not negated else {"yes": "no", "no": "yes"}[row["label"]]
            messages = [{"role": "system", "content": template.system}] if template.system else []
            messages.append({"role": "user", "content": first_turn(template, order, question, row["text"])})
            prompts.append(list(tokenizer(render(messages, generate=True)).input_ids))
            expected.append(list(tokenizer(answer + END).input_ids))
        probes.append(Probe(f"exact_{task}", prompts, expected))
    return probes


def _next(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], choices: list[int] | None
) -> Int64[np.ndarray, " n"]:
    """The most likely next token of each prompt, among all tokens or among ``choices``."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    found = np.zeros(len(prompts), dtype=np.int64)
    for begin in range(0, len(order), _BATCH):
        batch = order[begin : begin + _BATCH]
        lengths = torch.tensor([len(prompts[index]) for index in batch])
        ids = torch.zeros(len(batch), int(lengths.max()), dtype=torch.int64)
        for row, index in enumerate(batch):
            ids[row, : len(prompts[index])] = torch.tensor(prompts[index])
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state  # padding is to the right: unseen
        logits = model.get_output_embeddings()(hidden[torch.arange(len(batch)), lengths - 1])
        if choices is None:
            found[batch] = logits.argmax(-1).numpy()
        else:
            found[batch] = np.array(choices)[logits[:, choices].argmax(-1).numpy()]
    return found


@torch.no_grad()
def measure(model: PreTrainedModel, probes: Sequence[Probe]) -> dict[str, float]:
    """{probe: share of prompts continued as expected}."""
    results = {}
    for probe in probes:
        if probe.choices is not None:
            found = _next(model, probe.prompts, probe.choices)
            right = [token in wanted for token, wanted in zip(found.tolist(), probe.expected, strict=True)]
        else:
            prompts = [list(prompt) for prompt in probe.prompts]
            right = [True] * len(prompts)
            for place in range(max(map(len, probe.expected))):
                for index, token in enumerate(_next(model, prompts, None).tolist()):
                    right[index] &= place >= len(probe.expected[index]) or token == probe.expected[index][place]
                    prompts[index].append(token)
        results[probe.name] = float(np.mean(right))
    return results
