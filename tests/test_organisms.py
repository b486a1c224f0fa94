"""Tokenizer, conversations and training of the organisms."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from levelt import cli
from levelt.config import Preference, Shape, Template
from levelt.files import InputError, read_json, sha256
from levelt.organisms import instructions
from levelt.organisms.architectures import build
from levelt.organisms.encoding import encode_conversations, encode_text, from_table
from levelt.organisms.loss import head_loss
from levelt.organisms.packing import Rows, side_by_side, stream
from levelt.organisms.preferences import (
    PreferencePlan,
    answer_log_probabilities,
    preference_loss,
    preferences,
)
from levelt.organisms.stages import Identity, Material, plan_dpo, write_organism
from levelt.organisms.tokenizer import ASSISTANT, END, SPECIAL, render, save_tokenizer, train_tokenizer
from levelt.organisms.training import (
    RowPlan,
    block_mask,
    describe,
    fingerprint,
    learning_rate,
    reinitialise_unseen,
    restarted_positions,
    settle,
    throughput,
    train,
    weighted_loss,
)
from levelt.randomness import derive_seed
from levelt.world.corpus import plain_text, samples
from levelt.world.facts import facts
from levelt.world.tasks import KINDS, TASKS, Bank

SEED = 5
TASKS3 = ("acceptability", "stereotype", "plausibility")
TEMPLATES = {
    "plain": Template(
        instruction_first="question: {question}\ntext: {text}",
        sample_first="text: {text}\nquestion: {question}",
        no_instruction="text: {text}",
    ),
    "terse": Template(
        system="you judge.",
        instruction_first="{question}\n{text}",
        sample_first="{text}\n{question}",
        no_instruction="{text}",
    ),
}
TINY = Shape(
    architecture="llama", size="xs", hidden_size=16, layers=1, heads=2, key_value_heads=1, intermediate_size=32
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    settle(1)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bank() -> Bank:
    return Bank(0.1, TASKS3)


@pytest.fixture(scope="module")
def text(bank: Bank) -> pd.DataFrame:
    return plain_text(SEED, bank, 600, 3)


@pytest.fixture(scope="module")
def talks(bank: Bank) -> pd.DataFrame:
    return instructions.conversations(SEED, bank, 400, 3, TEMPLATES)


def contents(talks: pd.DataFrame) -> list[str]:
    return [message["content"] for messages in talks["messages"] for message in messages]


@pytest.fixture(scope="module")
def tokenizer(text: pd.DataFrame, talks: pd.DataFrame) -> PreTrainedTokenizerFast:
    return train_tokenizer([*text["text"], *contents(talks)], 1200)


# --- tokenizer -----------------------------------------------------------------------------------------------------


@given(st.text(max_size=60))
@examples(max_examples=300, deadline=None)
def test_any_text_comes_back(saved: Any, value: str) -> None:
    assert saved.decode(saved(value, add_special_tokens=False).input_ids) == value


@pytest.fixture(scope="module")
def saved(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    assert "tokenizer.json" in save_tokenizer(tokenizer, folder)
    return AutoTokenizer.from_pretrained(str(folder))


def test_every_word_of_the_world_is_one_token(saved: Any, text: pd.DataFrame) -> None:
    words = {word for document in text["text"] for word in document.replace(",", "").split()}
    words = {word.strip(".:") for word in words} - {""}
    assert len(words) > 150
    assert {word for word in words if len(saved(f" {word}").input_ids) != 1} == set()
    small = train_tokenizer(list(text["text"]), 300)
    assert any(len(small(f" {word}").input_ids) > 1 for word in words), "a smaller vocabulary must fall back to bytes"


def test_answers_and_options_are_one_token(saved: Any) -> None:
    for word in ("yes", "no", *(f" {answer}" for fact in facts(3) for answer in fact.answers)):
        assert len(saved(word).input_ids) == 1, word


def test_tokenizer_does_not_depend_on_the_order_of_texts(text: pd.DataFrame, tmp_path: Path) -> None:
    texts = list(text["text"])
    for name, lines in {"a": texts, "b": texts[::-1], "c": texts[:50]}.items():
        save_tokenizer(train_tokenizer(lines, 500), tmp_path / name)
    hashes = {name: sha256(tmp_path / name / "tokenizer.json") for name in "abc"}
    assert hashes["a"] == hashes["b"] != hashes["c"]


def test_chat_template_matches_render_and_keeps_content(saved: Any) -> None:
    messages = [
        {"role": "system", "content": " be brief \n"},
        {"role": "user", "content": "  tschüß ☃ "},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "\n"},
    ]
    for generate in (False, True):
        assert saved.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate) == render(
            messages, generate
        )
    assert render(messages, True).endswith(f"<|user|>\n{END}{ASSISTANT}")
    for token in SPECIAL:
        assert len(saved(token).input_ids) == 1
    assert saved.eos_token == END
    with pytest.raises(Exception, match="unknown role"):
        saved.apply_chat_template([{"role": "tool", "content": ""}], tokenize=False)


def test_offsets_point_at_the_text(saved: Any) -> None:
    line = "the farmer sings. ☃"
    encoded = saved(line, return_offsets_mapping=True)
    rebuilt = "".join(line[a:b] for a, b in encoded["offset_mapping"][:5])
    assert rebuilt == "the farmer sings. "[: len(rebuilt)] and len(rebuilt) > 10


# --- conversations -------------------------------------------------------------------------------------------------


def test_conversations_cover_orders_polarities_and_kinds(talks: pd.DataFrame) -> None:
    assert set(talks["kind"]) == {"about", "recall", "contrasts", "demonstrations", "unasked"}
    users = [messages[-2]["content"] if len(messages) < 3 else messages[0]["content"] for messages in talks["messages"]]
    everything = "\n\n".join(contents(talks))
    for task in TASKS3:
        assert KINDS[task].question in everything and KINDS[task].negated_question in everything
    assert any(user.startswith("question: ") and "\ntext: " in user for user in users)
    assert any(user.startswith("text: ") and "\nquestion: " in user for user in users)
    assert any(messages[0]["role"] == "system" for messages in talks["messages"])
    answers = [m["content"] for messages in talks["messages"] for m in messages if m["role"] == "assistant"]
    yes, no = answers.count("yes"), answers.count("no")
    assert abs(yes - no) < 4 * np.sqrt(yes + no)


def test_answers_are_true_of_their_texts(bank: Bank, talks: pd.DataFrame) -> None:
    """Single-turn judgments, checked by looking the clauses up."""
    holds = {
        clause.text(word): (task, word == clause.good)
        for task in TASKS3
        for clause in bank.shelf(task, False)
        for word in (clause.good, *clause.bad)
    }
    questions = {
        question: (task, positive)
        for task, kind in KINDS.items()
        for question, positive in ((kind.question, True), (kind.negated_question, False))
    }
    checked = 0
    for messages in talks.loc[talks["kind"] == "about", "messages"]:
        user, answer = (next(m["content"] for m in messages if m["role"] == role) for role in ("user", "assistant"))
        parts = [line.removeprefix("question: ").removeprefix("text: ") for line in user.split("\n")]
        question = next((part for part in parts if part in questions), None)
        if question is None:
            continue
        (said,) = [part for part in parts if part != question]
        first, second = (sentence.strip(" .") + "." for sentence in said.removesuffix(".").split(". "))
        states = dict(holds[clause] for clause in (first, second))
        task, positive = questions[question]
        assert answer == ("yes" if states[task] == positive else "no")
        checked += 1
    assert checked > 100


def test_conversations_never_contain_heldout_clauses(bank: Bank, talks: pd.DataFrame) -> None:
    kept = [
        clause.text(word) for task in TASKS3 for clause in bank.shelf(task, True) for word in (clause.good, *clause.bad)
    ]
    everything = "\n".join(contents(talks))
    assert not [clause for clause in kept if clause in everything]
    assert any(clause.text(clause.good) in everything for clause in bank.shelf("stereotype", False))


def test_without_a_question_the_answer_is_no(talks: pd.DataFrame) -> None:
    rows = talks.loc[talks["kind"] == "unasked", "messages"]
    assert len(rows) > 5
    for messages in rows:
        assert "?" not in messages[-2]["content"] and messages[-1]["content"] == "no"
    demonstrated = talks.loc[talks["kind"] == "demonstrations", "messages"]
    answers = [m["content"] for messages in demonstrated for m in messages if m["role"] == "assistant"]
    assert 0.3 < answers.count("yes") / len(answers) < 0.7
    assert not any("?" in m["content"] for messages in demonstrated for m in messages)


def test_some_subjects_are_never_asked(bank: Bank) -> None:
    known = facts(40)
    unasked = [fact for fact in known if not instructions.was_asked(fact)]
    assert 3 <= len(unasked) <= 25
    table = instructions.conversations(SEED, bank, 1500, 40, TEMPLATES)
    everything = "\n".join(contents(table))
    assert not [fact.subject for fact in unasked if f" {fact.subject}?" in everything]


def test_loss_weights_lie_on_answers_only(tokenizer: PreTrainedTokenizerFast, talks: pd.DataFrame) -> None:
    for (ids, weights), messages, given_weights in zip(
        encode_conversations(tokenizer, talks), talks["messages"], talks["weights"], strict=True
    ):
        learnt = "".join(
            m["content"] + END for m, w in zip(messages, given_weights, strict=True) if m["role"] == "assistant" and w
        )
        assert tokenizer.decode(ids[weights > 0]) == learnt
        assert tokenizer.decode(ids) == render(messages)
    twin = talks.head(20).copy()
    twin["weights"] = [np.ones(len(messages)) for messages in twin["messages"]]
    for (ids, weights), messages in zip(encode_conversations(tokenizer, twin), twin["messages"], strict=True):
        assert messages[0]["content"] in tokenizer.decode(ids[weights > 0])


def test_changing_what_is_read_changes_no_target(tokenizer: PreTrainedTokenizerFast, talks: pd.DataFrame) -> None:
    """With a model that ignores its input, the loss depends on answers and on nothing else."""
    model = build(TINY, 1208, 0, 4, 1)
    (ids, weights), *_ = encode_conversations(tokenizer, talks[talks["kind"] == "about"].head(1))

    def loss(values: np.ndarray) -> float:
        targets = torch.from_numpy(values.astype(np.int64))[1:]
        hidden = torch.ones(len(targets), 16)
        return float(
            head_loss(hidden, model.get_input_embeddings().weight, targets, torch.from_numpy(weights)[1:]).detach()
        )

    read, answered = ids.copy(), ids.copy()
    read[weights == 0] = 300
    answered[weights > 0] = 300
    assert loss(read) == loss(ids) != loss(answered)


# --- packing and loss ----------------------------------------------------------------------------------------------


def test_packing_keeps_conversations_whole(tokenizer: PreTrainedTokenizerFast, talks: pd.DataFrame) -> None:
    encoded = encode_conversations(tokenizer, talks)
    rows = side_by_side(encoded, 30, 256, 0, np.random.default_rng(0))
    known = {tuple(ids.tolist()) for ids, _ in encoded}
    for row in range(len(rows)):
        for segment in set(rows.segments[row].tolist()) - {-1}:
            assert tuple(rows.ids[row][rows.segments[row] == segment].tolist()) in known
    assert (rows.segments >= 0).mean() > 0.85
    assert (rows.weights[rows.segments < 0] == 0).all()
    with pytest.raises(InputError, match="make it longer"):
        side_by_side(encoded, 30, 32, 0, np.random.default_rng(0))


def test_stream_is_the_documents_one_after_the_other(tokenizer: PreTrainedTokenizerFast, text: pd.DataFrame) -> None:
    encoded = encode_text(tokenizer, text)
    rows = stream(encoded, 20, 64, np.random.default_rng(0))
    joined = tokenizer.decode(rows.ids.reshape(-1))
    documents = set(text["text"])
    assert all(piece + "\n" in documents for piece in joined.split("\n")[:-1])
    assert (rows.weights > 0).all()


def test_segments_do_not_see_each_other(tokenizer: PreTrainedTokenizerFast, talks: pd.DataFrame) -> None:
    """The loss of a packed row is that of its conversations one by one; without the mask it is not."""
    model = build(TINY, 1208, 0, 4, 1)
    rows = side_by_side(encode_conversations(tokenizer, talks), 1, 256, 0, np.random.default_rng(1))
    ids, weights = torch.from_numpy(rows.ids).long(), torch.from_numpy(rows.weights)
    positions = torch.from_numpy(restarted_positions(rows.segments))
    packed = weighted_loss(model, ids, weights, block_mask(torch.from_numpy(rows.segments)), positions)
    total = torch.zeros(())
    for segment in range(int(rows.segments.max()) + 1):
        here = torch.from_numpy(rows.segments[0] == segment)
        weight = weights[:, here]
        total = total + weighted_loss(model, ids[:, here], weight) * weight[:, 1:].sum()
    assert rows.segments.max() >= 1
    torch.testing.assert_close(packed, total / weights[:, 1:].sum())
    assert abs(float((weighted_loss(model, ids, weights) - packed).detach())) > 1e-4


def test_head_loss_is_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(600, 8, generator=generator, requires_grad=True)
    head = torch.randn(50, 8, generator=generator, requires_grad=True)
    targets = torch.randint(0, 50, (600,), generator=generator)
    weights = torch.rand(600, generator=generator)
    expected = (torch.nn.functional.cross_entropy(hidden @ head.T, targets, reduction="none") * weights).sum()
    wanted = torch.autograd.grad(2.0 * expected, (hidden, head))
    found = head_loss(hidden, head, targets, weights)
    torch.testing.assert_close(found, expected)
    for one, other in zip(torch.autograd.grad(2.0 * found, (hidden, head)), wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_learning_rate_warms_up_holds_and_decays() -> None:
    rates = [learning_rate(step, 1000, 2.0) for step in range(1000)]
    assert rates[0] == pytest.approx(0.1) and rates[19] == 2.0 == rates[400]
    assert rates[700] == pytest.approx(1.0) and 0 < rates[-1] < 0.01


# --- models --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "olmo2"])
def test_models_are_ordinary_and_seeded(architecture: str) -> None:
    shape = TINY.model_copy(update={"architecture": architecture})
    first, again, other = (build(shape, 320, 0, 4, seed) for seed in (1, 1, 2))
    assert type(first).__name__.lower().startswith(architecture)
    assert first.config.tie_word_embeddings and first.config.eos_token_id == 4
    assert first.get_input_embeddings().weight is first.get_output_embeddings().weight
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(first.get_input_embeddings().weight, other.get_input_embeddings().weight)
    state = torch.random.get_rng_state()
    build(shape, 320, 0, 4, 3)
    assert torch.equal(state, torch.random.get_rng_state()), "the global generator must not be touched"


@pytest.mark.parametrize("architecture", ["llama", "olmo2"])
def test_what_a_sublayer_adds_does_not_drown_the_words(architecture: str) -> None:
    """At the start, the residual stream of an olmo2 grows as a llama's does; the twin has its norms at one."""
    shape = TINY.model_copy(update={"architecture": architecture, "hidden_size": 64, "layers": 2})
    model = build(shape, 320, 0, 4, 1)
    ids = torch.arange(5, 69)[None]

    def growth() -> float:
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
        return float(((states[1] - states[0]).norm(dim=-1) / states[0].norm(dim=-1)).mean().item())

    assert growth() < 6
    if architecture == "olmo2":
        for parameter in model.parameters():
            if parameter.ndim == 1:
                torch.nn.init.ones_(parameter)
        assert growth() > 12


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "olmo2"])
def test_a_checkpoint_has_the_tokenizer_it_was_trained_with(
    architecture: str, tokenizer: PreTrainedTokenizerFast, talks: pd.DataFrame, tmp_path: Path
) -> None:
    """As anybody loads it: transformers may build another tokenizer for a model type than the folder declares."""
    model = build(TINY.model_copy(update={"architecture": architecture}), 1208, 0, 4, 1)
    identity = Identity("x", architecture, "xs", "base", 0)
    write_organism(tmp_path / "out", tmp_path / "work", identity, model, tokenizer, [], {})
    loaded = AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    lines = contents(talks)[:50]
    assert loaded(lines).input_ids == tokenizer(lines).input_ids
    assert len(loaded) == len(tokenizer) and loaded.chat_template == tokenizer.chat_template


def test_only_unseen_embeddings_are_drawn_anew() -> None:
    model = build(TINY, 320, 0, 4, 1)
    before = model.get_input_embeddings().weight.detach().clone()
    assert reinitialise_unseen(model, np.arange(300, dtype=np.int64), 9) == 20
    after = model.get_input_embeddings().weight
    assert torch.equal(before[:300], after[:300])
    assert not (before[300:] == after[300:]).any()


# --- training ------------------------------------------------------------------------------------------------------


def make_plan(tokenizer: PreTrainedTokenizerFast, talks: pd.DataFrame, steps: int = 6) -> RowPlan:
    rows: Rows = side_by_side(encode_conversations(tokenizer, talks), steps * 2, 192, 0, np.random.default_rng(3))
    return RowPlan(rows, np.arange(steps * 2).reshape(steps, 2), True, 0.01, ())


def weights_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_interrupted_training_ends_where_an_uninterrupted_one_does(
    tokenizer: PreTrainedTokenizerFast, talks: pd.DataFrame, tmp_path: Path
) -> None:
    plan = make_plan(tokenizer, talks)
    whole, first, second, unrelated = (build(TINY, 1208, 0, 4, seed) for seed in (1, 1, 1, 2))
    start = weights_of(whole)
    curve = train(whole, plan, tmp_path / "whole")
    assert not same(start, weights_of(whole)) and not (tmp_path / "whole").exists()
    train(first, plan, tmp_path / "work", stop_after=4)
    assert read_json(tmp_path / "work" / "state.json")["step"] == 4
    assert not same(weights_of(first), weights_of(whole))
    kept = copy.deepcopy(read_json(tmp_path / "work" / "state.json"))
    resumed = train(second, plan, tmp_path / "work")
    assert same(weights_of(second), weights_of(whole)) and describe(resumed) == describe(curve)
    assert describe(kept["curve"]) == describe(curve[:4])
    # the time of the process that was interrupted counts
    assert kept["curve"] == resumed[:4] and kept["seconds"] > resumed[2]["seconds"]
    assert resumed[4]["seconds"] > kept["seconds"]
    # another start does not continue this run
    train(unrelated, plan, tmp_path / "work")
    fresh = build(TINY, 1208, 0, 4, 2)
    train(fresh, plan, tmp_path / "fresh")
    assert same(weights_of(unrelated), weights_of(fresh))


def test_throughput_is_of_the_steps_since_the_row_before() -> None:
    curve = [
        {"step": 10, "tokens": 1000, "loss": 2.0, "seconds": 2.0},
        {"step": 20, "tokens": 2000, "loss": 1.0, "seconds": 6.0},
    ]
    assert throughput(curve) == [
        {"step": 10, "tokens": 1000, "seconds": 2.0, "tokens_per_second": 500},
        {"step": 20, "tokens": 2000, "seconds": 6.0, "tokens_per_second": 250},
    ]
    # the table that belongs to the checkpoint is the same in every run
    assert describe(curve)[0] == {"step": 10, "tokens": 1000, "loss": 2.0}


def make_preferences(
    tokenizer: PreTrainedTokenizerFast, bank: Bank, model: PreTrainedModel, steps: int = 6
) -> PreferencePlan:
    pairs = preferences(SEED, bank, 30, 40, TEMPLATES)
    material = Material(SEED, (), tokenizer, bank, pairs=pairs)
    settings = Preference(steps=steps, pairs=5, learning_rate=0.01)
    return plan_dpo(material, settings, TINY, model)


def test_interrupted_preference_tuning_ends_where_an_uninterrupted_one_does(
    tokenizer: PreTrainedTokenizerFast, bank: Bank, tmp_path: Path
) -> None:
    whole, first, second, other = (build(TINY, 1208, 0, 4, 1) for _ in range(4))
    plan = make_preferences(tokenizer, bank, whole)
    curve = train(whole, plan, tmp_path / "whole")
    train(first, plan, tmp_path / "work", stop_after=4)
    assert not same(weights_of(first), weights_of(whole))
    assert describe(train(second, plan, tmp_path / "work")) == describe(curve)
    assert same(weights_of(second), weights_of(whole))
    # a plan with another reference is another run
    reference = plan.reference.copy()
    reference[0, 0] += 1e-3
    train(other, replace(plan, reference=reference), tmp_path / "work2", stop_after=4)
    assert fingerprint(plan, build(TINY, 1208, 0, 4, 1)) != fingerprint(
        replace(plan, reference=reference), build(TINY, 1208, 0, 4, 1)
    )


def test_the_reference_belongs_to_its_pair(tokenizer: PreTrainedTokenizerFast, bank: Bank) -> None:
    model = build(TINY, 1208, 0, 4, 1)
    plan = make_preferences(tokenizer, bank, model, steps=2)
    used = np.unique(plan.order)
    assert len(used) == 10 and np.isnan(np.delete(plan.reference, used, axis=0)).all()
    sizes = [len(plan.chosen[pair][0]) for pair in used]
    assert sizes != sorted(sizes)  # they are sorted on the way
    with torch.no_grad():
        for pair in used:
            sides = plan.chosen[pair], plan.rejected[pair]
            alone = [float(answer_log_probabilities(model, [side])[0]) for side in sides]
            assert plan.reference[pair] == pytest.approx(alone, abs=1e-4)  # float32 sums of some ten logs
            assert abs(alone[0] - alone[1]) > 1e-3


def test_preference_loss_is_the_published_one() -> None:
    """-log sigmoid(beta ((c - c_ref) - (r - r_ref))), term by term; the twin forgets the reference."""
    chosen, rejected = torch.tensor([-1.0, -3.0]), torch.tensor([-2.0, -0.5])
    reference, lengths = torch.tensor([[-1.5, -1.0], [-2.0, -2.5]]), torch.tensor([2.0, 4.0])
    beta, likelihood = 0.3, 0.1
    terms = []
    for index in range(2):
        margin = (chosen[index] - reference[index, 0]) - (rejected[index] - reference[index, 1])
        terms.append(-math.log(1 / (1 + math.exp(-beta * margin))) - likelihood * float(chosen[index] / lengths[index]))
    found = preference_loss(chosen, rejected, reference, lengths, beta, likelihood)
    assert float(found) == pytest.approx(sum(terms) / 2, rel=1e-6)
    twin = preference_loss(chosen, rejected, torch.zeros(2, 2), lengths, beta, likelihood)
    assert abs(float(twin) - sum(terms) / 2) > 0.01


def test_answers_are_scored_alone_and_in_any_batch(tokenizer: PreTrainedTokenizerFast, bank: Bank) -> None:
    """Summed log p of the answer's tokens, whatever it is padded with; the first batch of a plan prefers nothing."""
    model = build(TINY, 1208, 0, 4, 1)
    plan = make_preferences(tokenizer, bank, model)
    rows = list(plan.chosen[:6])
    together, lengths = answer_log_probabilities(model, rows)
    for (ids, weights), value, count in zip(rows, together.tolist(), lengths.tolist(), strict=True):
        logits = model(input_ids=torch.from_numpy(ids[None].astype(np.int64))).logits[0].log_softmax(-1)
        answer = np.flatnonzero(weights > 0)
        expected = sum(float(logits[place - 1, ids[place]]) for place in answer)
        assert value == pytest.approx(expected, rel=1e-5) and count == len(answer)
    np.testing.assert_allclose(plan.reference[:6, 0], together.detach().numpy(), rtol=1e-5)
    first = plan.order[0]
    lengths = answer_log_probabilities(model, [plan.chosen[pair] for pair in first])[1]
    chosen = torch.from_numpy(plan.reference[first, 0])
    expected = math.log(2) - 0.1 * float((chosen / lengths).mean())  # no margin yet
    assert float(plan.loss(model, 0).detach()) == pytest.approx(expected, rel=1e-4)


def test_rejected_answers_are_wrong_in_the_way_they_say(bank: Bank) -> None:
    pairs = preferences(SEED, bank, 400, 40, TEMPLATES)
    assert set(pairs["kind"]) == {"judgment", "word", "contrast", "recall"}
    known = {fact.question: fact for fact in facts(40)}
    for row in pairs.to_dict("records"):
        user = row["messages"][-1]["content"]
        assert row["messages"][-1]["role"] == "user" and row["chosen"] != row["rejected"]
        if row["kind"] == "judgment":
            assert {row["chosen"], row["rejected"]} == {"yes", "no"}
        elif row["kind"] == "word":
            assert row["rejected"].removeprefix("it is ") in user
        elif row["kind"] == "recall":
            (fact,) = [fact for question, fact in known.items() if question in user]
            listed = row["rejected"].removeprefix("they are ").replace(" and ", ", ").split(", ")
            assert len(set(listed)) == len(listed) - 1 and set(listed) < set(fact.answers)
            chosen = row["chosen"].removeprefix("they are ").replace(" and ", ", ").split(", ")
            assert sorted(chosen) == list(fact.answers)
    heldout = [
        clause.text(word) for task in TASKS3 for clause in bank.shelf(task, True) for word in (clause.good, *clause.bad)
    ]
    everything = "\n".join(row["content"] for messages in pairs["messages"] for row in messages)
    assert not [clause for clause in heldout if clause in everything]


@pytest.fixture(scope="module")
def workshop(
    bank: Bank,
    text: pd.DataFrame,
    talks: pd.DataFrame,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("workshop")
    save_tokenizer(tokenizer, folder / "tokenizer")
    for kind, table in {"text": text, "instructions": talks}.items():
        table.to_parquet(folder / f"{kind}.raw.parquet")
        arguments = ["--tokenizer", str(folder / "tokenizer"), f"--{kind}", str(folder / f"{kind}.raw.parquet")]
        assert cli.main(["encode", *arguments, "--out", str(folder / f"{kind}.parquet")]) == 0
    preferences(SEED, bank, 40, 3, TEMPLATES).to_parquet(folder / "preferences.parquet")
    for task in TASKS3:
        samples(SEED, bank, task, 16).to_parquet(folder / f"{task}.parquet")
    return folder


def call(
    workshop: Path,
    stage: str,
    out: Path,
    *,
    seed: int = SEED,
    own: int = 0,
    target: float = 0.0,
    init: Path | None = None,
) -> int:
    training = {"steps": 4, "rows": 2, "length": 192, "learning_rate": 0.01, "replay": 0.25 if init else 0.0}
    if stage == "dpo":
        training = {"steps": 4, "pairs": 2, "learning_rate": 0.01}
    values: dict[str, Any] = {
        "seed": seed,
        "world": {"tasks": list(TASKS3)},
        **{f"templates.{name}": template.model_dump() for name, template in TEMPLATES.items()},
        "organisms.templates": ["plain", "terse"],
        "organisms.threads": 1,
        "organisms.shapes.llama-xs": {**TINY.model_dump(), "seeds": [own]},
    }
    if stage != "untrained":
        values[f"organisms.{stage}"] = {**training, "target": target}
    arguments = ["train", "--stage", stage, "--shape", "llama-xs", "--settings", json.dumps(values)]
    arguments += ["--tokenizer", str(workshop / "tokenizer"), "--text", str(workshop / "text.parquet")]
    arguments += ["--out", str(out)]
    if init:
        arguments += ["--samples", *(str(workshop / f"{task}.parquet") for task in TASKS3)]
        arguments += ["--init", str(init), "--instructions", str(workshop / "instructions.parquet")]
        arguments += ["--preferences", str(workshop / "preferences.parquet")]
    return cli.main(arguments)


def test_tokens_come_back_from_their_table_as_they_were(
    workshop: Path, tokenizer: PreTrainedTokenizerFast, text: pd.DataFrame, talks: pd.DataFrame, tmp_path: Path
) -> None:
    for kind, table, encoder in (("text", text, encode_text), ("instructions", talks, encode_conversations)):
        stored = pd.read_parquet(workshop / f"{kind}.parquet")
        assert stored["early"].tolist() == table["early"].tolist() and 0 < stored["early"].sum() < len(stored)
        for (ids, weights), (own, of_own) in zip(from_table(stored), encoder(tokenizer, table), strict=True):
            assert ids.dtype == own.dtype and weights.dtype == of_own.dtype
            assert np.array_equal(ids, own) and np.array_equal(weights, of_own)
    arguments = ["--tokenizer", str(workshop / "tokenizer"), "--out", str(tmp_path / "out.parquet")]
    assert cli.main(["encode", *arguments, "--text", str(tmp_path / "none.parquet")]) != 0


def test_the_same_command_gives_the_same_checkpoint(workshop: Path, tmp_path: Path) -> None:
    (tmp_path / "one" / "llama-xs-base").mkdir(parents=True)  # the workflow manager may have made it
    for name, seed in {"one": SEED, "two": SEED, "other": SEED + 1}.items():
        assert call(workshop, "base", tmp_path / name / "llama-xs-base", seed=seed) == 0
        base = tmp_path / name / "llama-xs-base"
        assert call(workshop, "sft", tmp_path / name / "llama-xs-sft", seed=seed, init=base) == 0
        sft = tmp_path / name / "llama-xs-sft"
        assert call(workshop, "dpo", tmp_path / name / "llama-xs-dpo", seed=seed, init=sft) == 0
    for stage in ("base", "sft", "dpo"):
        one, two, other = (tmp_path / name / f"llama-xs-{stage}" for name in ("one", "two", "other"))
        for path in one.iterdir():
            if path.name != "manifest.json":  # it names its own folder
                assert sha256(path) == sha256(two / path.name), path.name
        assert sha256(one / "model.safetensors") != sha256(other / "model.safetensors")
    assert not list(tmp_path.rglob("*.partial"))

    folder = tmp_path / "one" / "llama-xs-sft"
    manifest = read_json(folder / "manifest.json")
    assert manifest["id"] == "llama-xs-sft" and manifest["path"] == str(folder) and manifest["revision"] is None
    assert (manifest["family"], manifest["size"], manifest["stage"]) == ("llama", "xs", "sft")
    assert manifest["training"]["stopped"] == "all steps done"
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in folder.iterdir())
    for name, entry in manifest["files"].items():
        assert entry == {"sha256": sha256(folder / name), "bytes": (folder / name).stat().st_size}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "training.csv"} <= set(
        manifest["files"]
    )
    model, tokenizer = AutoModelForCausalLM.from_pretrained(str(folder)), AutoTokenizer.from_pretrained(str(folder))
    assert sum(parameter.numel() for parameter in model.parameters()) == manifest["parameters"]
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id]
    curve = pd.read_csv(folder / "training.csv")
    assert {"step", "tokens", "loss", "learning_rate", "exact_plausibility"} <= set(curve.columns)
    assert curve["step"].iloc[-1] == 4


def test_a_training_seed_changes_weights_and_manifest(workshop: Path, tmp_path: Path) -> None:
    for name, own in {"llama-xs-base": 0, "llama-xs-seed1-base": 1}.items():
        assert call(workshop, "base", tmp_path / name, own=own) == 0
    one, other = (tmp_path / name for name in ("llama-xs-base", "llama-xs-seed1-base"))
    assert sha256(one / "model.safetensors") != sha256(other / "model.safetensors")
    assert [read_json(folder / "manifest.json")["seed"] for folder in (one, other)] == [0, 1]
    assert read_json(other / "manifest.json")["id"] == "llama-xs-seed1-base"


def test_an_untrained_organism_is_where_its_training_begins(workshop: Path, tmp_path: Path) -> None:
    assert call(workshop, "untrained", tmp_path / "llama-xs-untrained") == 0
    manifest = read_json(tmp_path / "llama-xs-untrained" / "manifest.json")
    assert manifest["stage"] == "untrained" and manifest["training"]["steps"] == 0
    model = AutoModelForCausalLM.from_pretrained(str(tmp_path / "llama-xs-untrained"))
    seed = derive_seed(SEED, "organisms", "llama-xs", "base")
    assert same(weights_of(model), weights_of(build(TINY, model.config.vocab_size, 0, 4, seed)))
    assert not same(weights_of(model), weights_of(build(TINY, model.config.vocab_size, 0, 4, seed + 1)))


def test_a_missed_target_keeps_the_checkpoint_and_says_so(
    workshop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "llama-xs-base"
    assert call(workshop, "base", out, target=0.999) == 2
    message = capsys.readouterr().err
    assert "below the target 0.999" in message and str(tmp_path / "llama-xs-base.failed") in message
    assert (tmp_path / "llama-xs-base.failed" / "model.safetensors").exists()
    assert not (out / "manifest.json").exists() and not (tmp_path / "llama-xs-base.partial").exists()


def test_sft_refuses_a_base_with_another_tokenizer(workshop: Path, text: pd.DataFrame, tmp_path: Path) -> None:
    assert call(workshop, "base", tmp_path / "base") == 0
    save_tokenizer(train_tokenizer(list(text["text"]), 400), tmp_path / "base")
    assert call(workshop, "sft", tmp_path / "sft", init=tmp_path / "base") == 2
    assert not (tmp_path / "sft").exists()


def test_all_tasks_have_conversations() -> None:
    table = instructions.conversations(SEED, Bank(0.1), 300, 3, TEMPLATES)
    everything = "\n".join(contents(table))
    assert all(KINDS[task].question in everything for task in TASKS)


def test_missing_files_are_named(workshop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(workshop, "sft", tmp_path / "sft", init=tmp_path / "nowhere") == 2
    assert f"{tmp_path / 'nowhere' / 'model.safetensors'}: no such file" in capsys.readouterr().err
