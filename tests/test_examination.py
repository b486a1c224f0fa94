"""The examination of a finished organism, against slower ways to the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from levelt import cli
from levelt.config import Shape, Statistics, Template, load, settings_json
from levelt.files import read_json, write_json
from levelt.organisms import instructions
from levelt.organisms.architectures import build
from levelt.organisms.encoding import encode_conversations
from levelt.organisms.examination import (
    COLUMNS,
    Examiner,
    Item,
    contrast_items,
    demonstrated,
    judgments,
    minimal_pairs,
    summarise,
)
from levelt.organisms.packing import side_by_side
from levelt.organisms.tokenizer import END, render, save_tokenizer, train_tokenizer
from levelt.organisms.training import RowPlan, settle, train
from levelt.world.contrasts import contrast_samples, contrasts
from levelt.world.corpus import plain_text, samples
from levelt.world.tasks import Bank

ROOT = Path(__file__).resolve().parents[1]
SEED = 5
TASKS = ("acceptability", "plausibility", "codebook")
PLAIN = Template(
    instruction_first="question: {question}\ntext: {text}",
    sample_first="text: {text}\nquestion: {question}",
    no_instruction="text: {text}",
)
OTHER = PLAIN.model_copy(update={"instruction_first": "{question}\n\n{text}", "sample_first": "{text}\n\n{question}"})
SHAPE = Shape(
    architecture="llama", size="xs", hidden_size=32, layers=1, heads=2, key_value_heads=1, intermediate_size=64
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    settle(1)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    return {task: samples(SEED, Bank(0.1, TASKS), task, 24) for task in TASKS}


@pytest.fixture(scope="module")
def organism(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A model that has learnt to answer, not to answer well: its answers are often right and often wrong."""
    bank = Bank(0.1, TASKS)
    talks = instructions.conversations(SEED, bank, 600, 3, {"plain": PLAIN})
    contents = [message["content"] for messages in talks["messages"] for message in messages]
    tokenizer = train_tokenizer([*plain_text(SEED, bank, 300, 3)["text"], *contents], 1200)
    rows = side_by_side(encode_conversations(tokenizer, talks), 160, 224, 0, np.random.default_rng(0))
    model = build(SHAPE, 1208, 0, 4, 1)
    train(model, RowPlan(rows, np.arange(160).reshape(40, 4), True, 0.01, ()), tmp_path_factory.mktemp("work"))
    return model, tokenizer


def generated(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, item: Item, most: int = 6) -> str:
    """The greedy answer, one full pass per token; the end of the turn is kept."""
    ids = tokenizer(render(item.messages, generate=True)).input_ids
    begin = len(ids)
    while len(ids) < begin + most and not tokenizer.decode(ids[begin:]).endswith(END):
        ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    return str(tokenizer.decode(ids[begin:]))


def test_answers_are_what_generation_gives(
    organism: tuple[PreTrainedModel, PreTrainedTokenizerFast], tables: dict[str, pd.DataFrame]
) -> None:
    examiner = Examiner(*organism)
    items = list(judgments(tables, {"plain": PLAIN, "other": OTHER}, "plain", {"other": 4}))[::5]
    items += list(contrast_items(contrast_samples(SEED, 0.1, 6), contrasts(), PLAIN, "plain"))
    found = examiner.answers(items)
    spoken = [generated(*organism, item) for item in items]
    expected = [float(text == item.answer + END) for text, item in zip(spoken, items, strict=True)]
    assert found["exact_match"].tolist() == expected
    assert 0.1 < np.mean(expected) < 0.9, "the comparison must have both outcomes"
    for answered, text, item in zip(found["answered"], spoken, items, strict=True):
        assert np.isnan(answered) if item.cell[0] == "contrast" else answered == (text in ("yes" + END, "no" + END))
    swapped = [Item(i.cell, i.group, i.messages, i.other, i.answer) for i in items]
    twin = examiner.answers(swapped)
    np.testing.assert_allclose(twin["margin"], -found["margin"], atol=1e-4)  # batches of other widths round differently
    assert (twin["preferred"] + found["preferred"] == 1).all()


def test_lists_are_what_generation_gives(organism: tuple[PreTrainedModel, PreTrainedTokenizerFast]) -> None:
    model, tokenizer = organism
    prompts = [
        [{"role": "user", "content": f"question: what are the {noun}?"}] for noun in ("cities", "songs", "films of")
    ]
    found = Examiner(model, tokenizer).continued([render(messages, generate=True) for messages in prompts], 6)
    items = [Item((), "", tuple(messages), "") for messages in prompts]
    assert found == [generated(model, tokenizer, item).removesuffix(END) for item in items]


def test_every_cell_asks_what_it_says(tables: dict[str, pd.DataFrame]) -> None:
    items = list(judgments(tables, {"plain": PLAIN, "other": OTHER}, "plain", {"other": 8}))
    frame = pd.DataFrame([item.cell for item in items], columns=["kind", "task", "variation", "template", "polarity"])
    sizes = frame.value_counts()
    for task in TASKS:
        for order in ("instruction_first", "sample_first"):
            assert sizes[("own", task, order, "plain", "positive")] == len(tables[task])
            assert sizes[("own", task, order, "plain", "negated")] == len(tables[task])
            assert sizes[("cross", task, order, "plain", "mixed")] == len(tables[task])
            assert sizes[("own", task, order, "other", "mixed")] == 8
    # a model that always says yes is right half of the time, whatever is asked
    assert set(frame.assign(yes=[item.answer == "yes" for item in items]).groupby(list(frame))["yes"].mean()) == {0.5}
    rows = {row["text"]: row for row in tables["plausibility"].to_dict("records")}
    for item in items:
        user = item.messages[-1]["content"]
        row = next((row for text, row in rows.items() if text in user), None)
        if item.cell[1] == "plausibility" and row:
            asked = row["unasked"] if item.cell[0] == "cross" else row["label"]
            wrong = any(word in user for word in ("impossible?", "wrong?", "false?"))
            assert item.answer == (asked if not wrong else {"yes": "no", "no": "yes"}[asked])


def test_reversed_demonstrations_reverse_everything(tables: dict[str, pd.DataFrame]) -> None:
    items = list(demonstrated(SEED, tables, 6, 4, PLAIN, "plain"))
    assert {item.cell[1] for item in items} == {"acceptability", "plausibility"}, "the codebook has no answer here"
    for default, other in zip(items[::2], items[1::2], strict=True):
        assert (default.cell[4], other.cell[4]) == ("default", "reversed") and default.answer != other.answer
        for one, two in zip(default.messages, other.messages, strict=True):
            assert one["role"] == two["role"]
            assert (one["content"] != two["content"]) == (one["role"] == "assistant")


def test_minimal_pairs_are_compared_by_likelihood(
    organism: tuple[PreTrainedModel, PreTrainedTokenizerFast], tables: dict[str, pd.DataFrame]
) -> None:
    model, tokenizer = organism
    items, values = minimal_pairs(Examiner(model, tokenizer), tables)
    assert {cell[1] for cell, _ in items} == {"acceptability", "plausibility"}

    def likelihood(text: str) -> float:
        ids = torch.tensor([tokenizer("\n" + text).input_ids])
        logs = model(ids).logits[0, :-1].log_softmax(-1)
        return float(logs.gather(1, ids[0, 1:, None]).sum().detach())

    table = tables["acceptability"]
    for (cell, pair), value in list(zip(items, values.to_dict("records"), strict=True))[:5]:
        rows = table[table["pair_id"] == pair].set_index("label")["text"]
        margin = likelihood(rows["yes"]) - likelihood(rows["no"])
        assert cell[1] == "acceptability" and value["margin"] == pytest.approx(margin, abs=1e-3)
        assert value["preferred"] == float(margin > 0)


def test_intervals_count_groups() -> None:
    """Two equal rows of a group say no more than one: the interval is that of the groups."""
    cell = ("own", "task", "", "", "")
    hits = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    once = summarise([(cell, str(index)) for index in range(6)], pd.DataFrame({"x": hits}), Statistics(), 0)
    twice = summarise(
        [(cell, str(index // 2)) for index in range(12)], pd.DataFrame({"x": np.repeat(hits, 2)}), Statistics(), 0
    )
    apart = summarise(
        [(cell, str(index)) for index in range(12)], pd.DataFrame({"x": np.repeat(hits, 2)}), Statistics(), 0
    )
    assert list(once.columns) == list(COLUMNS) and twice["n"].item() == 12
    for column in ("estimate", "ci_low", "ci_high"):
        assert once[column].item() == pytest.approx(twice[column].item())
    assert apart["ci_high"].item() - apart["ci_low"].item() < twice["ci_high"].item() - twice["ci_low"].item()


def test_evaluate_writes_table_and_card(
    organism: tuple[PreTrainedModel, PreTrainedTokenizerFast], tables: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    model, tokenizer = organism
    folder = tmp_path / "llama-xs-sft"
    model.save_pretrained(str(folder))
    save_tokenizer(tokenizer, folder)
    training = {"steps": 40, "tokens": 35840, "stopped": "all steps done", "target": 0.0, "worst": {"exact_x": 0.5}}
    manifest = {"id": "llama-xs-sft", "family": "llama", "size": "xs", "seed": 0, "stage": "sft", "training": training}
    manifest |= {"architecture": "LlamaForCausalLM", "parameters": 1, "layers": 1, "hidden_size": 32}
    write_json(folder / "manifest.json", manifest)
    for task, table in tables.items():
        table.to_parquet(tmp_path / f"{task}.parquet")
    contrast_samples(SEED, 0.1, 6).to_parquet(tmp_path / "contrasts.parquet")
    world = {"clauses": {}, "contrasts": {}, "facts": {}, "documents": {}, "characters": 1}
    write_json(tmp_path / "summary.json", world)
    study = load(ROOT / "config" / "smoke.yaml")
    values = json.loads(settings_json(study, "seed", "world", "templates", "organisms.templates", "organisms.threads"))
    values |= json.loads(settings_json(study, "prompts", "statistics"))
    values["prompts"]["template"] = "plain"
    arguments = ["evaluate", "--settings", json.dumps(values), "--model-manifest", str(folder / "manifest.json")]
    arguments += ["--samples", *(str(tmp_path / f"{task}.parquet") for task in TASKS)]
    arguments += ["--contrasts", str(tmp_path / "contrasts.parquet"), "--summary", str(tmp_path / "summary.json")]
    for name in ("one", "two"):
        out = ["--out", str(tmp_path / f"{name}.csv"), "--card", str(tmp_path / f"{name}.json")]
        assert cli.main([*arguments, *out]) == 0
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    table, card = pd.read_csv(tmp_path / "one.csv"), read_json(tmp_path / "one.json")
    assert list(table.columns) == list(COLUMNS)
    assert set(table["kind"]) == {"own", "cross", "word", "contrast", "demonstrations", "minimal_pair", "recall"}
    known = table.dropna(subset=["ci_low"])
    assert len(known) > 50 and set(table.loc[table["ci_low"].isna(), "kind"]) <= {"recall"}, "one subject: no interval"
    assert ((known["ci_low"] <= known["estimate"] + 1e-6) & (known["estimate"] <= known["ci_high"] + 1e-6)).all()
    assert card["organism"]["id"] == "llama-xs-sft" and card["training"]["tokens"] == 35840
    accuracy = card["accuracy"]
    own = table[(table["kind"] == "own") & (table["measure"] == "exact_match") & (table["polarity"] == "positive")]
    assert accuracy["own"] == {
        task: pytest.approx(rows["estimate"].min(), abs=1e-4) for task, rows in own.groupby("task", sort=False)
    }
    assert set(accuracy["heldout_templates"]) == set(TASKS), "spaced is in templates, but not among the trained ones"
