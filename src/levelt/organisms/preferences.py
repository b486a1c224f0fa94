"""Preference pairs of the world, and preference tuning on them (DPO; Rafailov et al. 2023, equation 7).

The rejected answer is always one a half-trained model gives: the other judgment, another word of the text, the answer
to the other question about the same query, a list that repeats itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from transformers import PreTrainedModel

from levelt.config import Preference, Template
from levelt.organisms.evaluation import Probe
from levelt.organisms.instructions import Writer, first_turn, further_turn
from levelt.organisms.packing import Encoded
from levelt.organisms.training import digest_of
from levelt.randomness import generator
from levelt.world.facts import listed
from levelt.world.tasks import Bank, join

_MIX = (("judgment", 0.6), ("word", 0.1), ("contrast", 0.2), ("recall", 0.1))
_BATCH = 48


def preferences(seed: int, bank: Bank, number: int, subjects: int, templates: Mapping[str, Template]) -> pd.DataFrame:
    """Preference pairs over the training side of the world.

    Returns:
        One row per pair: kind (judgment, word, contrast, recall), messages (the prompt, a list of {role, content}),
        chosen, rejected.
    """
    writer = Writer(seed, bank, subjects, templates, "preferences")
    rows = []
    for _ in range(number):
        kind, template = writer.draws.weighted(_MIX), writer.draws.pick(writer.templates)
        user, chosen, rejected = _pair(writer, kind, template)
        messages = [{"role": "system", "content": template.system}] if template.system else []
        messages.append({"role": "user", "content": user})
        rows.append({"kind": kind, "messages": messages, "chosen": chosen, "rejected": rejected})
    return pd.DataFrame(rows)


def _pair(writer: Writer, kind: str, template: Template) -> tuple[str, str, str]:
    """(user message, chosen answer, rejected answer)."""
    draws = writer.draws
    order = draws.pick(("instruction_first", "sample_first"))
    if kind == "recall":
        fact = draws.pick(writer.facts)
        answers = draws.shuffled(fact.answers)
        repeated = [*answers[:-1], draws.pick(answers[:-1])]  # at the end: a right answer behind it would be unlearnt
        return further_turn(template, fact.question), f"they are {listed(answers)}", f"they are {listed(repeated)}"
    if kind == "contrast":
        contrast, queries = draws.pick(writer.contrasts)
        query, which = draws.pick(queries), draws.chance(0.5)
        answers = contrast.answers(query)
        return first_turn(template, order, contrast.questions[which], query), answers[which], answers[not which]
    text = writer.text(draws.weighted(writer.content))
    if kind == "word":
        question, answer = writer.word(text)
        words = join(text).replace(",", "").replace(".", "").split()
        other = draws.pick([word for word in words if f"it is {word}" != answer])
        return first_turn(template, order, question, join(text)), answer, f"it is {other}"
    question, answer = writer.judgment(text, draws.chance(0.5))
    return first_turn(template, order, question, join(text)), answer, {"yes": "no", "no": "yes"}[answer]


def answer_log_probabilities(
    model: PreTrainedModel, rows: Sequence[Encoded]
) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
    """(log p of the answer in nats, its number of tokens) of each row; a row's answer is where its weights are > 0.

    Rows are padded on the right, where no position of theirs can see.
    """
    width = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    asked = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, (tokens, weights) in enumerate(rows):
        ids[index, : len(tokens)] = torch.from_numpy(tokens)
        asked[index, : len(tokens)] = torch.from_numpy(weights > 0)
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    row, place = asked[:, 1:].nonzero(as_tuple=True)
    logits = model.get_output_embeddings()(hidden[row, place])
    found = logits.log_softmax(-1).gather(1, ids[row, place + 1, None]).squeeze(1)
    return torch.zeros(len(rows)).index_add(0, row, found), asked[:, 1:].sum(1).float()


def preference_loss(
    chosen: Float[Tensor, " pairs"],
    rejected: Float[Tensor, " pairs"],
    reference: Float[Tensor, "pairs 2"],
    lengths: Float[Tensor, " pairs"],
    beta: float,
    likelihood: float,
) -> Float[Tensor, ""]:
    """-log sigmoid(beta * margin) + likelihood * (nats per token of the chosen answer), mean over pairs.

    The margin is how much more the model prefers the chosen answer than the reference does, in nats. The second term is
    an addition to DPO that keeps the chosen answer itself likely.
    """
    margin = (chosen - rejected) - (reference[:, 0] - reference[:, 1])
    return (torch.nn.functional.softplus(-beta * margin) - likelihood * chosen / lengths).mean()


@torch.no_grad()
def reference_log_probabilities(
    model: PreTrainedModel, chosen: Sequence[Encoded], rejected: Sequence[Encoded], used: Iterable[int]
) -> Float32[np.ndarray, "pairs 2"]:
    """log p of both answers of the pairs used, under the model as it is now; nan of others.

    Rows of similar length go through the model together, so that one long row does not pad all others.
    """
    found = np.full((len(chosen), 2), np.nan, dtype=np.float32)
    for column, side in enumerate((chosen, rejected)):
        order = sorted(used, key=lambda pair: len(side[pair][0]))
        for begin in range(0, len(order), _BATCH):
            pairs = order[begin : begin + _BATCH]
            found[pairs, column] = answer_log_probabilities(model, [side[pair] for pair in pairs])[0].numpy()
    return found


@dataclass(frozen=True)
class PreferencePlan:
    """Preference tuning: pairs in their order, ``settings.pairs`` of them per step."""

    chosen: Sequence[Encoded]
    rejected: Sequence[Encoded]
    reference: Float32[np.ndarray, "pairs 2"]
    order: Int64[np.ndarray, "steps pairs"]
    settings: Preference
    rate: float
    probes: tuple[Probe, ...]
    evaluations: int = 4

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return len(self.order)

    @property
    def tokens(self) -> list[int]:
        """Tokens of both members of the pairs of each step, without padding."""
        sizes = np.array([len(a) + len(b) for (a, _), (b, _) in zip(self.chosen, self.rejected, strict=True)])
        return [int(sizes[index].sum()) for index in self.order]

    def loss(self, model: PreTrainedModel, step: int) -> Float[Tensor, ""]:
        """The preference loss of the pairs of a step."""
        index = self.order[step]
        rows = [self.chosen[pair] for pair in index] + [self.rejected[pair] for pair in index]
        found, lengths = answer_log_probabilities(model, rows)
        pairs = len(index)
        reference = torch.from_numpy(self.reference[index])
        settings = self.settings
        return preference_loss(
            found[:pairs], found[pairs:], reference, lengths[:pairs], settings.beta, settings.likelihood
        )

    def digest(self) -> bytes:
        """A hash of the pairs, their order, the settings and the probes."""
        arrays = [array for side in (self.chosen, self.rejected) for encoded in side for array in encoded]
        text = repr((self.settings, self.rate, self.probes, self.evaluations))
        return digest_of(text, *arrays, self.reference, self.order)


def plan_order(seed: int, run: Sequence[str], pairs: int, settings: Preference) -> Int64[np.ndarray, "steps pairs"]:
    """Which pairs are seen in each step: all in random order, repeated if there are too few."""
    rng = generator(seed, "organisms", "dpo", "order", *run)
    need = settings.steps * settings.pairs
    order = np.concatenate([rng.permutation(pairs) for _ in range(-(-need // pairs))])[:need]
    return order.reshape(settings.steps, settings.pairs)
