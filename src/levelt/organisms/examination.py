"""What a finished organism can do on held-out texts: the numbers of its card.

A greedy answer is right exactly if, with the right answer and the end of the turn written after the prompt, every
next token is the most likely one; so one pass per prompt is enough, without generation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from levelt.config import Statistics, Template
from levelt.organisms.instructions import WORD_QUESTIONS, first_turn, further_turn, was_asked, word_answer
from levelt.organisms.tokenizer import END, render
from levelt.prompts.templates import DemonstrationPool, Sample
from levelt.randomness import generator
from levelt.statistics.resampling import cluster_draws, mean_interval
from levelt.world.contrasts import Contrast
from levelt.world.corpus import END_MARK
from levelt.world.facts import Fact
from levelt.world.tasks import CODEBOOK

OPTIONS = ("yes", "no")
FLIPPED = {"yes": "no", "no": "yes"}
ORDERS = ("instruction_first", "sample_first")
CELL = ("kind", "task", "variation", "template", "polarity")
COLUMNS = (*CELL, "measure", "n", "estimate", "ci_low", "ci_high")
_TOKENS = 12_000  # padded tokens of a batch
_LIST = 24  # most tokens of a generated list
_WANTED = 3  # answers of a list that must be right


@dataclass(frozen=True)
class Item:
    """A prompt, its right answer, a wrong one if there is one, and the cell and group (pair) it is counted in."""

    cell: tuple[str, ...]
    group: str
    messages: tuple[Mapping[str, str], ...]
    answer: str
    other: str = ""


def _messages(template: Template, user: str) -> tuple[Mapping[str, str], ...]:
    system = ({"role": "system", "content": template.system},) if template.system else ()
    return (*system, {"role": "user", "content": user})


def judgments(
    samples: Mapping[str, pd.DataFrame], templates: Mapping[str, Template], main: str, others: Mapping[str, int]
) -> Iterable[Item]:
    """The own question, the negated one and the one about the text's other property, in the main template; the own
    question (half of the pairs negated) in the ``others``, each about so many texts."""
    for task, table in samples.items():
        for index, row in enumerate(table.to_dict("records")):
            negated = index // 2 % 2 == 1
            negated_other = index // 4 % 2 == 1  # the other property holds in every second pair: not in step with that
            own = [
                ("own", "positive", row["question"], row["label"]),
                ("own", "negated", row["negated_question"], FLIPPED[row["label"]]),
            ]
            cross = [
                ("cross", "mixed", row["unasked_question"], row["unasked"]),
                ("cross", "mixed", row["unasked_negated_question"], FLIPPED[row["unasked"]]),
            ]
            kind, _, question, answer = own[negated]
            asked = [(main, *own[0]), (main, *own[1]), (main, *cross[negated_other])]
            asked += [(name, kind, "mixed", question, answer) for name, number in others.items() if index < number]
            for name, kind, polarity, question, answer in asked:
                for order in ORDERS:
                    user = first_turn(templates[name], order, question, row["text"])
                    cell = (kind, task, order, name, polarity)
                    yield Item(cell, row["pair_id"], _messages(templates[name], user), answer, FLIPPED[answer])


def word_items(table: pd.DataFrame, template: Template, name: str) -> Iterable[Item]:
    """Questions about a word of the text instead of a judgment."""
    for row in table.to_dict("records"):
        for which, question in WORD_QUESTIONS.items():
            for order in ORDERS:
                user = first_turn(template, order, question, row["text"])
                cell = ("word", which, order, name, "")
                yield Item(cell, row["pair_id"], _messages(template, user), word_answer(row["text"], which))


def contrast_items(table: pd.DataFrame, contrasts: Sequence[Contrast], template: Template, name: str) -> Iterable[Item]:
    """Each query with either question."""
    nouns = {contrast.name: contrast.nouns for contrast in contrasts}
    for row in table.to_dict("records"):
        for which in (0, 1):
            answers = row["answer_1"], row["answer_2"]
            for order in ORDERS:
                user = first_turn(template, order, row[f"question_{which + 1}"], row["text"])
                cell = ("contrast", f"{row['task']}: {nouns[row['task']][which]}", order, name, "")
                yield Item(cell, row["sample_id"], _messages(template, user), answers[which], answers[1 - which])


def demonstrated(
    seed: int, samples: Mapping[str, pd.DataFrame], number: int, count: int, template: Template, name: str
) -> Iterable[Item]:
    """Texts after answered examples without a question, the examples' answers as they are or exchanged.

    The codebook is left out: without a definition its texts have no answer.
    """
    for task, table in samples.items():
        if task == CODEBOOK:
            continue
        rows = [
            Sample(row["sample_id"], row["pair_id"], row["text"], row["label"], "") for row in table.to_dict("records")
        ]
        pool = DemonstrationPool(rows, OPTIONS, seed=seed, task=task)
        for row in rows[:number]:
            shown = [(example.text, example.answer) for example in pool.draw(row, count)]
            for mapping in ("default", "reversed"):
                turns = [(text, answer if mapping == "default" else FLIPPED[answer]) for text, answer in shown]
                answer = row.label if mapping == "default" else FLIPPED[row.label]
                cell = ("demonstrations", task, "demonstrations", name, mapping)
                yield Item(cell, row.pair_id, _shown(template, turns, row.text), answer, FLIPPED[answer])


def demonstrated_contrasts(
    seed: int,
    table: pd.DataFrame,
    contrasts: Sequence[Contrast],
    number: int,
    count: int,
    template: Template,
    name: str,
) -> Iterable[Item]:
    """Queries after examples that answer one of the two questions: the examples alone say which."""
    for contrast in contrasts:
        rows = table[table["task"] == contrast.name].to_dict("records")
        rng = generator(seed, "examination", contrast.name)
        for index, row in enumerate(rows[:number]):
            others = [int(place) for place in rng.permutation(len(rows)) if place != index][:count]
            for which in (1, 2):
                turns = [(rows[place]["text"], rows[place][f"answer_{which}"]) for place in others]
                cell = ("demonstrations", f"{contrast.name}: {contrast.nouns[which - 1]}", "demonstrations", name, "")
                messages = _shown(template, turns, row["text"])
                yield Item(cell, row["sample_id"], messages, row[f"answer_{which}"], row[f"answer_{3 - which}"])


def _shown(template: Template, turns: Sequence[tuple[str, str]], text: str) -> tuple[Mapping[str, str], ...]:
    messages: list[Mapping[str, str]] = []
    for example, answer in turns:
        messages += [
            {"role": "user", "content": template.no_instruction.replace("{text}", example, 1)},
            {"role": "assistant", "content": template.answer.replace("{answer}", answer, 1)},
        ]
    return (*messages, {"role": "user", "content": template.no_instruction.replace("{text}", text, 1)})


class Examiner:
    """One model and its tokenizer; everything is computed in batches of similar length."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._options = [self._ids(option)[0] for option in OPTIONS]
        (self._end,) = self._ids(END)

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    @torch.inference_mode()
    def _predict(self, rows: Sequence[Sequence[int]], firsts: Sequence[int]) -> list[Float[torch.Tensor, "tokens v"]]:
        """log p of the tokens of each row from position ``first`` on, as the tokens before them predict them."""
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        found: list[torch.Tensor] = [torch.empty(0)] * len(rows)
        while order:
            width = len(rows[order[-1]])
            batch, order = order[-max(1, _TOKENS // width) :], order[: -max(1, _TOKENS // width)]
            ids = torch.zeros(len(batch), width, dtype=torch.int64)  # padding is to the right: unseen
            for place, index in enumerate(batch):
                ids[place, : len(rows[index])] = torch.tensor(rows[index])
            hidden = self._model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            wanted = [hidden[place, firsts[index] - 1 : len(rows[index]) - 1] for place, index in enumerate(batch)]
            logits = self._model.get_output_embeddings()(torch.cat(wanted)).log_softmax(-1)
            for index, part in zip(batch, logits.split([len(part) for part in wanted]), strict=True):
                found[index] = part
        return found

    def answers(self, items: Sequence[Item]) -> pd.DataFrame:
        """Per item: exact_match; for judgments, answered (yes or no, then the end); where a wrong answer is named,
        margin (log p of the first token of the right minus of the wrong one, in nats) and preferred (margin > 0)."""
        prompts = [self._ids(render(item.messages, generate=True)) for item in items]
        answers = [self._ids(item.answer + END) for item in items]
        predicted = self._predict(
            [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)], [len(p) for p in prompts]
        )
        rows = []
        again: list[int] = []
        for index, (item, answer, logs) in enumerate(zip(items, answers, predicted, strict=True)):
            best = logs.argmax(-1).tolist()
            row = {"exact_match": float(best == answer), "answered": np.nan, "preferred": np.nan, "margin": np.nan}
            if item.other:
                row["margin"] = float(logs[0, answer[0]] - logs[0, self._ids(item.other)[0]])
                row["preferred"] = float(row["margin"] > 0)
            if item.answer in OPTIONS:
                row["answered"] = row["exact_match"]
                if best[0] in self._options and best[0] != answer[0]:
                    again.append(index)
            rows.append(row)
        given = [[*prompts[index], int(predicted[index][0].argmax()), self._end] for index in again]
        for index, logs in zip(again, self._predict(given, [len(ids) - 1 for ids in given]), strict=True):
            rows[index]["answered"] = float(int(logs[0].argmax()) == self._end)
        return pd.DataFrame(rows)

    def prefers(self, texts: Sequence[str]) -> Float[np.ndarray, " n"]:
        """log p of each text in nats, as plain text after the end of another."""
        rows = [self._ids(END_MARK + text) for text in texts]
        logs = self._predict(rows, [1] * len(rows))
        return np.array([float(part[range(len(ids) - 1), ids[1:]].sum()) for part, ids in zip(logs, rows, strict=True)])

    def continued(self, prompts: Sequence[str], most: int) -> list[str]:
        """The greedy continuation of each prompt, up to the end token or ``most`` tokens."""
        rows = [self._ids(prompt) for prompt in prompts]
        begins = [len(row) for row in rows]
        running = list(range(len(rows)))
        for _ in range(most):
            logs = self._predict([[*rows[index], 0] for index in running], [len(rows[index]) for index in running])
            for index, part in zip(running, logs, strict=True):
                rows[index].append(int(part[0].argmax()))
            running = [index for index in running if rows[index][-1] != self._end]
            if not running:
                break
        return [self._tokenizer.decode(row[begin:]).removesuffix(END) for row, begin in zip(rows, begins, strict=True)]


def summarise(
    items: Sequence[tuple[tuple[str, ...], str]], values: pd.DataFrame, statistics: Statistics, seed: int
) -> pd.DataFrame:
    """One row per cell and measure: n, mean and a cluster-bootstrap interval over groups; columns COLUMNS.

    ``items``: (cell, group) of each row of ``values``; a measure that a row lacks is NaN there.
    """
    frame = values.assign(**{name: [cell[index] for cell, _ in items] for index, name in enumerate(CELL)})
    frame["group"] = [group for _, group in items]
    rows = []
    for cell, part in frame.groupby(list(CELL), sort=False):
        for measure in values.columns:
            known = part[part[measure].notna()]
            codes, groups = pd.factorize(known["group"])
            if not len(groups):
                continue
            if len(groups) == 1:  # no interval
                rows.append((*cell, measure, len(known), known[measure].mean(), np.nan, np.nan))
                continue
            draws = cluster_draws(len(groups), statistics.draws, generator(seed, "examination", *map(str, cell)))
            numbers = known[[measure]].to_numpy()
            estimate, low, high = mean_interval(numbers, codes, draws, statistics.level)
            rows.append((*cell, measure, len(known), estimate[0], low[0], high[0]))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def minimal_pairs(
    examiner: Examiner, samples: Mapping[str, pd.DataFrame]
) -> tuple[list[tuple[tuple[str, ...], str]], pd.DataFrame]:
    """Whether the right member of a pair is the likelier text (not the codebook: its members are the same text)."""
    items: list[tuple[tuple[str, ...], str]] = []
    values = []
    for task, table in samples.items():
        if task == CODEBOOK:
            continue
        logs = examiner.prefers(table["text"].tolist())
        wide = table.assign(log=logs).pivot(index="pair_id", columns="label", values="log")
        for pair, margin in (wide["yes"] - wide["no"]).items():
            items.append((("minimal_pair", task, "plain_text", "", ""), str(pair)))
            values.append({"preferred": float(margin > 0), "margin": float(margin)})
    return items, pd.DataFrame(values)


def recalled(
    examiner: Examiner, known: Sequence[Fact], templates: Mapping[str, Template]
) -> tuple[list[tuple[tuple[str, ...], str]], pd.DataFrame]:
    """Whether the first three listed answers are distinct and right, for subjects that instruction tuning asked about
    and for those known from plain text only."""
    items: list[tuple[tuple[str, ...], str]] = []
    prompts, facts = [], []
    for name, template in templates.items():
        for fact in known:
            prompts.append(render(_messages(template, further_turn(template, fact.question)), generate=True))
            side = "asked" if was_asked(fact) else "plain_text_only"
            items.append((("recall", fact.relation, side, name, ""), fact.subject))
            facts.append(fact)
    found = examiner.continued(prompts, _LIST)
    right = []
    for text, fact in zip(found, facts, strict=True):
        listed = text.removeprefix("they are ").replace(" and ", ", ").split(", ")[:_WANTED]
        right.append(float(len(set(listed)) == _WANTED and set(listed) <= set(fact.answers)))
    return items, pd.DataFrame({"three_correct": right})
