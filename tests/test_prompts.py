"""Prompts: templates, demonstrations, polarity, token groups on every kind of tokenizer, options, tables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import tokenizers_local as local
from levelt.cli import main
from levelt.config import FileSource, Prompts, Task, Template, load
from levelt.files import InputError, sha256
from levelt.prompts.render import COLUMNS, from_table, load_tokenizer, render_task, to_table
from levelt.prompts.samples import load_samples
from levelt.prompts.spans import RELEASED, Span, TokenGroups, locate
from levelt.prompts.templates import (
    Demonstration,
    DemonstrationPool,
    Message,
    Part,
    Sample,
    conversation,
    negated_pairs,
)

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "../shared/data/processing_production/blimp.jsonl"

QUESTION = "Is the given text ‘acceptable’?"
TEMPLATES = {
    "plain": Template(
        instruction_first="question: {question}\ntext: {text}",
        sample_first="text: {text}\nquestion: {question}",
        no_instruction="text: {text}",
    ),
    "published": Template(
        system="##Instructions:\n-Your task is to answer questions.",
        instruction_first="##Question\n{question}\n\n##Text\n{text}\n\nAnswer:",
        sample_first="##Text\n{text}\n\n##Question\n{question}\n\nAnswer:",
        no_instruction="##Text\n{text}\n\nAnswer:",
        answer=" {answer}",
    ),
    "quoted": Template(
        system="Say yes or no.",
        instruction_first="{question} «{text}» {}",
        sample_first="«{text}» {question} {}",
        no_instruction="«{text}»",
    ),
}
KINDS = sorted(local.BUILDERS)
CHATS = sorted(local.TEMPLATES)
TASK = Task(source=FileSource(path="unused.csv"), question=QUESTION, negated_question="Is it not?")


def table_of(*texts: str, question: str = QUESTION, **columns: object) -> pd.DataFrame:
    rows = [
        {
            "sample_id": str(i),
            "pair_id": f"p{i // 2}",
            "text": text,
            "label": ("yes", "no")[i % 2],
            "question": question,
            "negated_question": "Is it not?",
            "unasked": None,
            "unasked_question": None,
            "unasked_negated_question": None,
            "line": i + 1,
            **columns,
        }
        for i, text in enumerate(texts)
    ]
    return pd.DataFrame(rows)


def render(samples: pd.DataFrame, kind: object = "gpt2", chat: str = "chatml", **prompts: object):
    tokenizer = local.build(kind, chat) if isinstance(kind, str) else kind
    templates = {**TEMPLATES, **prompts.pop("templates", {})}
    settings = Prompts(**{"template": "plain", "variations": ["instruction_first"], **prompts})
    return from_table(render_task(samples, TASK, settings, templates, tokenizer, seed=7, name="t", model="m"))


def sentences(count: int) -> list[str]:
    return [f"sentence number {i} is here." for i in range(count)]


# --- an oracle: where each text is, written down independently of the chat templates' programs ---------------------


def compose(chat: str, messages: tuple[Message, ...], bos: str, eos: str) -> tuple[str, list[Span]]:
    """The prompt and the characters of its parts, by hand."""
    if messages[0].role == "system" and chat in ("no_system", "ignores_system"):
        first = Message("user", (*messages[0].parts, Part("\n\n"), *messages[1].parts))
        messages = (first, *messages[2:])
    around = {
        "chatml": lambda role: (f"<|im_start|>{role}\n", "<|im_end|>\n"),
        "llama3": lambda role: (f"<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>"),
        "no_system": lambda role: ("[INST] ", " [/INST]") if role == "user" else (" ", eos),
        "ignores_system": lambda role: ({"user": "User: ", "assistant": "Bot: "}[role], "\n"),
    }
    text, marks = bos if chat in ("llama3", "no_system") else "", []
    for index, message in enumerate(messages):
        before, after = around[chat](message.role) if chat != "none" else ("\n" if index else "", "")
        text += before
        for position, part in enumerate(message.parts):
            value = part.text
            if chat == "llama3" and part.name is None:  # trimmed at the ends of the content
                value = value.lstrip() if position == 0 else value
                value = value.rstrip() if position == len(message.parts) - 1 else value
            if part.name is not None:
                marks.append(Span(part.name, len(text), len(text) + len(value)))
            text += value
        text += after
    end = {"chatml": "<|im_start|>assistant\n", "ignores_system": "Bot:"}
    end["llama3"] = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    return text + end.get(chat, ""), marks


def violations(groups: TokenGroups, marks: list[Span], text: str, offsets: list[tuple[int, int]]) -> list[str]:
    """What is wrong with the token groups of a prompt, given where its parts are."""
    wrong = []
    anywhere = {character for start, stop in offsets for character in range(start, stop)}
    for mark in marks:
        span = groups[mark.name]
        if not 0 <= span.start < span.stop <= len(offsets):
            wrong.append(f"{span} is empty or outside the prompt")
            continue
        overlaps = [min(stop, mark.stop) > max(start, mark.start) for start, stop in offsets]
        if not (overlaps[span.start] and overlaps[span.stop - 1]):
            wrong.append(f"{span} begins or ends outside {mark}")
        wrong += [
            f"token {index} lies outside {mark}"
            for index in range(span.start, span.stop)
            if not overlaps[index] and offsets[index][0] < offsets[index][1]
        ]
        inside = {index for index, overlap in enumerate(overlaps) if overlap}
        if not inside <= set(range(span.start, span.stop)):
            wrong.append(f"{span} leaves out tokens of {mark}")
        covered = {c for start, stop in offsets[span.start : span.stop] for c in range(start, stop)}
        wrong += [
            f"character {text[c]!r} of {mark} is not covered"
            for c in range(mark.start, mark.stop)
            # A character that no token covers was removed, or merged into its predecessor, by the normaliser.
            if not text[c].isspace() and c in anywhere and c not in covered
        ]
    return wrong


def check(prompt, tokenizer, chat: str, messages: tuple[Message, ...]) -> None:
    text, marks = compose(chat, messages, tokenizer.bos_token or "", tokenizer.eos_token or "")
    assert prompt.text == text
    encoding = tokenizer(text, add_special_tokens=chat == "none", return_offsets_mapping=True)
    assert list(prompt.input_ids) == encoding["input_ids"]
    offsets = encoding["offset_mapping"]
    assert violations(prompt.groups, marks, text, offsets) == []
    assert prompt.groups["decision"] == Span("decision", len(offsets) - 1, len(offsets))
    assert set(prompt.groups.names) - {RELEASED} == {mark.name for mark in marks} | {"decision"}
    if tokenizer.backend_tokenizer.normalizer is None:  # every byte is in the tokens
        for mark in marks:
            span = prompt.groups[mark.name]
            part = tokenizer.decode(list(prompt.input_ids[span.start : span.stop]), clean_up_tokenization_spaces=False)
            # Piece vocabularies write a space as ▁, so a ▁ of the text comes back as one.
            assert text[mark.start : mark.stop].replace("▁", " ").strip() in part.replace("▁", " ")
    for moved in (1, -1):  # the check itself can fail
        assert violations(prompt.groups.shifted(moved), marks, text, offsets)


# --- token groups: any text, any template, every kind of tokenizer -------------------------------------------------

PIECES = [
    *("yes", "no", "question:", "text:", "Answer:", "##Text", "user", "assistant", "Bot:", "[INST]", "{text}"),
    *("\n\n", " ", "  ", "\t", ".", "'", "a", "Is the given text", QUESTION, "‘yes’", "…", "«", "»", "▁"),
    *(
        "é",
        "e\u0301",
        "\u0301",
        "a\u0323\u0302",
        "ﬁ",
        "İ",
        "ß",
        "🙂",
        "👩‍👩‍👧",
        "🇨🇭",
        "한",
        "\u1112\u1161\u11ab",
        "\u200b",
    ),
    *("ع", "नि", "漢字", "\ufeff", "\U000f0000", "<", "|", ">", "<s>", "<unk>", "<|im_end|>", "<|end|>"),
]
TEXTS = st.lists(
    st.one_of(st.sampled_from(PIECES), st.text(st.characters(exclude_categories=["Cs"]), max_size=4)),
    min_size=1,
    max_size=6,
).map("".join)


@given(
    kind=st.sampled_from(KINDS),
    chat=st.sampled_from(CHATS),
    template=st.sampled_from(sorted(TEMPLATES)),
    variation=st.sampled_from(["instruction_first", "sample_first"]),
    text=TEXTS,
    question=TEXTS,
)
@example("gpt2", "chatml", "plain", "sample_first", QUESTION, QUESTION)
@example("neox", "none", "published", "instruction_first", "a  b\n\nc", "e\u0301 a\u0323\u0302?")
@example("llama2", "no_system", "published", "sample_first", "🙂é", "text: ")
@settings(max_examples=400, deadline=None, derandomize=True)
def test_groups_are_exact_for_any_text_or_refused(kind, chat, template, variation, text, question):
    tokenizer = local.build(kind, chat)
    if not text.strip() or not question.strip():
        return
    messages = conversation(TEMPLATES[template], variation, question, text)
    added = tokenizer.added_tokens_decoder.values()
    special = any(token.special and token.content in part for token in added for part in (text, question))
    try:
        (prompt,) = render(table_of(text, question=question), kind, chat, template=template, variations=[variation])
    except InputError as error:
        reason = str(error)
        assert "'0'" in reason and "m" in reason
        contents = [message.content for message in messages]
        allowed = {
            "rewrites the text": chat == "llama3" and any(content != content.strip() for content in contents),
            "not found in its prompt": tokenizer.backend_tokenizer.normalizer is not None,
            "begins with a combining": tokenizer.backend_tokenizer.normalizer is not None,
            "special token": special,
            # Without a chat template the prompt may end in the text itself, which may merge with the answer.
            "cannot be told apart": chat == "none" and template == "plain",
        }
        assert any(reason_ok and words in reason for words, reason_ok in allowed.items()), reason
        return
    assert not special
    check(prompt, tokenizer, chat, messages)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chat", CHATS)
def test_ordinary_samples_work_everywhere_in_all_variations(kind, chat):
    texts = ["A lady isn't sure to flee from.", "Mark’s cats “sleep” 🙂.", *sentences(10)]
    tokenizer = local.build(kind, chat)
    for template in TEMPLATES:
        prompts = render(
            table_of(*texts), kind, chat, template=template,
            variations=["instruction_first", "sample_first", "demonstrations"],
        )  # fmt: skip
        assert len(prompts) == 36
        rows = [Sample(str(i), f"p{i // 2}", text, ("yes", "no")[i % 2], QUESTION) for i, text in enumerate(texts)]
        pool = DemonstrationPool(rows, TASK.options, seed=7, task="t")
        for prompt in prompts:
            row = rows[int(prompt.sample_id)]
            shown = pool.draw(row, 4) if prompt.condition == "demonstrations" else ()
            messages = conversation(TEMPLATES[template], prompt.condition, QUESTION, row.text, shown)
            check(prompt, tokenizer, chat, messages)


@pytest.mark.parametrize("kind", ["gpt2", "llama2", "neox"])
def test_left_padding_shifts_the_groups(kind):
    tokenizer = local.build(kind, "chatml")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, pad_token="<|im_end|>")
    short, long = render(table_of("a cat.", "a cat and another cat and another cat."), kind)
    padded = tokenizer([short.text, long.text], padding=True, padding_side="left", add_special_tokens=False)
    by = len(long.input_ids) - len(short.input_ids)
    moved = short.groups.shifted(by)
    for span in short.groups:
        expected = list(short.input_ids[span.start : span.stop])
        assert padded["input_ids"][0][moved[span.name].start : moved[span.name].stop] == expected
    assert moved["decision"].stop == len(long.input_ids) and moved.straddling == short.groups.straddling


@pytest.mark.parametrize(
    ("kind", "token"),
    [("gpt2", "<|endoftext|>"), ("llama2", "<s>"), ("mistral", "</s>"), ("llama2", "<unk>"), ("qwen2", "<|im_end|>")],
)
@pytest.mark.parametrize("where", ["text", "question"])
def test_special_tokens_inside_texts_are_refused(kind, token, where):
    values = {"text": "a cat.", "question": "is it so?"}
    values[where] += f" {token} x"
    name = {"text": "sample", "question": "instruction"}[where]
    with pytest.raises(InputError, match=f"sample '0'.*{name} contains .*special token"):
        render(table_of(values["text"], question=values["question"]), kind)


def test_look_alikes_of_special_tokens_are_ordinary_text():
    (prompt,) = render(table_of("a <|end|> of </s> and <s>."), "gpt2")
    check(prompt, local.build("gpt2", "chatml"), "chatml", conversation(
        TEMPLATES["plain"], "instruction_first", QUESTION, "a <|end|> of </s> and <s>."))  # fmt: skip


def test_unknown_characters_are_not_special():
    words = {"<unk>": 0, "text": 1, ":": 2, "cat": 3, "question": 4, "yes": 5, "no": 6}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    (prompt,) = render(table_of("cat dog ∎"), fast)
    assert len(prompt.groups["sample"]) == 3


def test_a_token_of_two_groups_is_ambiguous():
    joined = TEMPLATES["plain"].model_copy(update={"instruction_first": "{question}{text}"})
    with pytest.raises(InputError, match=r"ambiguous.*instruction and to sample"):
        render(table_of("uthor likes.", question="Is it the a"), templates={"plain": joined})


def test_tokens_that_reach_into_the_template_are_counted():
    prompts = [render(table_of(text), "llama3", template="published")[0] for text in ("a cat.", "a cat")]
    assert [prompt.groups.straddling for prompt in prompts] == [1, 0]  # ".\n\n" is one token
    span = prompts[0].groups["sample"]
    assert local.build("llama3").decode(list(prompts[0].input_ids[span.start : span.stop])) == "a cat.\n\n"


def test_the_sample_as_released_begins_and_ends_late():
    """One token per character: the second character to the second behind the text, as encode.py averages them."""
    text = "say: a cat. now"
    groups = locate(text, [Span("sample", 5, 11)], [(at, at + 1) for at in range(len(text))])
    assert text[slice(groups["sample"].start, groups["sample"].stop)] == "a cat."
    assert text[slice(groups[RELEASED].start, groups[RELEASED].stop)] == " cat. n"
    words = locate(text, [Span("sample", 5, 11)], [(0, 4), (4, 6), (6, 10), (10, 12), (12, 15)])
    assert (words["sample"].start, words["sample"].stop) == (1, 4)
    assert (words[RELEASED].start, words[RELEASED].stop) == (2, 5), "the first token has one character of the text"
    long = locate(text, [Span("sample", 5, 11)], [(0, 5), (5, 10), (10, 11), (11, 15)])
    assert (long[RELEASED].start, long[RELEASED].stop) == (1, 4), "a first token of several characters stays"
    assert RELEASED not in locate("a", [Span("sample", 0, 1)], [(0, 1)])
    assert RELEASED not in locate(text, [Span("instruction", 5, 11)], [(0, 15)])


def test_locate_refuses_holes_and_empty_groups():
    marks = [Span("sample", 2, 6)]
    assert locate("xxabcdxx", marks, [(0, 2), (2, 4), (4, 4), (4, 6), (6, 8)]).spans[0] == Span("sample", 1, 4)
    with pytest.raises(InputError, match="here: the tokens of sample are not contiguous"):
        locate("xxabcdxx", marks, [(0, 2), (2, 4), (6, 8), (4, 6)], where="here")
    with pytest.raises(InputError, match="sample not found in its prompt"):
        locate("xxabcdxx", marks, [(0, 2), (2, 2), (6, 8)])
    with pytest.raises(InputError, match="no tokens"):
        locate("", [], [])


def test_groups_by_name():
    groups = TokenGroups((Span("sample", 1, 3), Span("decision", 4, 5)))
    assert "sample" in groups and "system" not in groups and len(groups["sample"]) == 2
    with pytest.raises(KeyError, match="no token group 'system'"):
        groups["system"]
    assert groups.adding("output", 5, 7)["output"] == Span("output", 5, 7)
    with pytest.raises(ValueError, match="cannot add"):
        groups.adding("sample", 5, 7)


# --- chat templates ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chat", "own"), [("chatml", True), ("llama3", True), ("no_system", False), ("ignores_system", False)]
)
def test_system_text_goes_before_the_first_user_message_where_there_is_no_system_role(chat, own):
    (prompt,) = render(table_of("a cat."), "gpt2", chat, template="published")
    system = TEMPLATES["published"].system
    assert prompt.text.count(system) == 1 and (f"{system}\n\n##Question" in prompt.text) is not own
    assert prompt.groups["system"].stop <= prompt.groups["instruction"].start


def test_demonstrations_have_neither_question_nor_system_message():
    prompt = render(table_of(*sentences(8)), template="published", variations=["demonstrations"])[0]
    assert "##Instructions" not in prompt.text and QUESTION not in prompt.text
    assert prompt.groups.names == (
        *(f"demonstration_{k}{end}" for k in range(4) for end in ("", "_answer")), "sample", "decision", RELEASED,
    )  # fmt: skip


@pytest.mark.parametrize("text", [" a cat.", "a cat. ", "\na cat.\n"])
def test_a_template_that_trims_a_text_is_refused(text):
    bare = TEMPLATES["plain"].model_copy(
        update={"instruction_first": "{question}\n{text}", "sample_first": "{text}\n{question}"}
    )
    variation = "sample_first" if text.startswith(" ") else "instruction_first"
    with pytest.raises(
        InputError, match=r"tasks.t, sample '0', template 'plain'.*chat template of m rewrites the text"
    ):
        render(table_of(text), "gpt2", "llama3", templates={"plain": bare}, variations=[variation])
    render(table_of(text), "gpt2", "chatml", templates={"plain": bare}, variations=[variation])


def test_without_a_chat_template_outer_blanks_of_a_text_stay():
    bare = TEMPLATES["plain"].model_copy(update={"instruction_first": "\n{question}\n{text}"})
    (prompt,) = render(table_of("a cat. "), "gpt2", "none", templates={"plain": bare})
    assert prompt.text == f"{QUESTION}\na cat. "


@pytest.mark.parametrize("chat", ["none", "llama3"])
def test_one_beginning_token(chat):
    (prompt,) = render(table_of("a cat."), "llama3", chat)
    begin = local.build("llama3").bos_token_id
    assert prompt.input_ids[0] == begin and prompt.input_ids.count(begin) == 1


@pytest.mark.parametrize(
    ("chat_template", "message"),
    [
        ("{{ messages[-1]['content'] | upper }}", "rewrites the text"),
        ("{{ messages[-1]['content'] }} {{ messages[-1]['content'] }}", "writes instruction 2 times, expected once"),
        ("{{ messages[-1]['content'][:5] }}", "writes instruction 0 times"),
        ("{{ messages[-1]['content'] | tojson }}", "rewrites the text"),
        ("{{ raise_exception('no') }}", r"cannot render \(user\): no"),
        ("{{ messages[-1]['content'][:60] }}", "rewrites the text"),
        ("{% if %}", "cannot render"),
    ],
)
def test_templates_that_lose_the_place_of_a_text_are_refused(chat_template, message):
    tokenizer = local.gpt2()
    tokenizer.chat_template = chat_template
    with pytest.raises(InputError, match=message):
        render(table_of('a "cat" and a dog and a bird and more.'), tokenizer)


def test_named_templates_need_a_default():
    tokenizer = local.gpt2()
    tokenizer.chat_template = {"tools": local.CHATML, "rag": local.CHATML}
    with pytest.raises(InputError, match="m: no default chat template"):
        render(table_of("a cat."), tokenizer)
    tokenizer.chat_template = {"tools": "x", "default": local.CHATML}
    assert render(table_of("a cat."), tokenizer) == render(table_of("a cat."))


@pytest.mark.parametrize("date", ["{{ strftime_now('%d %b %Y') }}", "{{ date_string }}"])
def test_todays_date_never_enters_a_prompt(date):
    tokenizer = local.gpt2()
    tokenizer.chat_template = "\n" + date + "\n" + local.CHATML
    assert render(table_of("a cat."), tokenizer)[0].text.startswith("\n26 Jul 2024\n<|im_start|>user")


def test_tokenizers_that_cannot_serve_are_refused():
    class Slow:
        is_fast = False

    with pytest.raises(InputError, match=r"m \(Slow\) gives no character offsets"):
        render(table_of("a cat."), Slow())
    tokenizer = local.gpt2()
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    with pytest.raises(InputError, match="ends every text with a special token"):
        render(table_of("a cat."), tokenizer)


# --- demonstrations and polarity -----------------------------------------------------------------------------------


@given(
    texts=st.lists(st.sampled_from(sentences(30)), min_size=16, max_size=40),
    pairs=st.integers(1, 3),
    count=st.integers(2, 5),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_demonstrations_are_fair(texts, pairs, count, seed):
    rows = [Sample(str(i), f"p{i // pairs}", text, ("yes", "no")[i % 2], QUESTION) for i, text in enumerate(texts)]
    pool = DemonstrationPool(rows, ["yes", "no"], seed=seed, task="t")
    for query in rows[:6]:
        try:
            shown = pool.draw(query, count)
        except InputError as error:
            assert "too few samples labelled" in str(error)
            continue
        assert shown == pool.draw(query, count)
        assert len({item.text for item in shown}) == len(shown) == count
        answers = [item.answer for item in shown]
        assert abs(answers.count("yes") - answers.count("no")) <= 1 and set(answers) == {"yes", "no"}
        outside = {(row.text, row.label) for row in rows if row.pair_id != query.pair_id and row.text != query.text}
        assert {(item.text, item.answer) for item in shown} <= outside


def test_demonstrations_differ_between_queries_and_are_shuffled():
    rows = [Sample(str(i), f"p{i // 2}", text, ("yes", "no")[i % 2], "") for i, text in enumerate(sentences(40))]
    pool = DemonstrationPool(rows, ["yes", "no"], seed=1, task="t")
    drawn = [pool.draw(row, 4) for row in rows]
    assert len(set(drawn)) == 40 and len({tuple(item.answer for item in shown) for shown in drawn}) == 6
    assert {sum(item.answer == "yes" for item in pool.draw(row, 3)) for row in rows} == {1, 2}
    other = DemonstrationPool(rows, ["yes", "no"], seed=2, task="t")
    assert other.draw(rows[0], 4) != drawn[0]
    with pytest.raises(InputError, match="expected at least 2"):
        pool.draw(rows[0], 1)


@given(st.lists(st.text(max_size=6)))
def test_half_of_the_pairs_are_negated(pairs):
    negated = negated_pairs(pairs)
    assert len(negated) == len(set(pairs)) // 2 and negated <= set(pairs)
    assert negated == negated_pairs(pairs[::-1] + pairs)


def test_mixed_polarity_asks_the_negated_question_and_flips_the_answer():
    variations = ["instruction_first", "sample_first", "demonstrations"]
    prompts = render(table_of(*sentences(12), unasked="yes"), polarity="mixed", variations=variations)
    by_condition = {}
    for prompt in prompts:
        negated = prompt.polarity == "negated"
        assert (prompt.answer != prompt.label) is negated and ("Is it not?" in prompt.text) is negated
        assert prompt.unasked == "yes"
        by_condition.setdefault(prompt.condition, {})[prompt.sample_id] = (prompt.pair_id, prompt.polarity)
    assert by_condition["instruction_first"] == by_condition["sample_first"]
    assert [polarity for _, polarity in by_condition["demonstrations"].values()] == ["positive"] * 12
    asked = dict(by_condition["sample_first"].values())
    assert sorted(asked.values()) == ["negated"] * 3 + ["positive"] * 3
    with pytest.raises(InputError, match="no negated question"):
        render(table_of(*sentences(4), negated_question=None), polarity="mixed")


def test_an_unrelated_instruction_takes_the_questions_place_and_nothing_else():
    """The layout of instruction_first, the same gold label under either polarity; only the question differs."""
    asked = "How often does the letter a occur?"
    variations = ["instruction_first", "unrelated_instruction"]
    settings = {"polarity": "mixed", "variations": variations, "unrelated_question": asked}
    made = render(table_of(*sentences(8)), **settings)
    related, unrelated = made[:8], made[8:]
    for first, second in zip(related, unrelated, strict=True):
        question = "Is it not?" if first.polarity == "negated" else QUESTION
        assert second.text == first.text.replace(question, asked) != first.text
        assert second.groups.names == first.groups.names and "instruction" in second.groups.names
        assert (second.polarity, second.answer, second.label) == ("positive", first.label, first.label)
        assert second.prompt_id == f"unrelated_instruction:{second.sample_id}"


def test_the_other_instruction_asks_about_the_other_property_in_the_same_polarity():
    """Text, label and polarity stay; question and right answer are those of the unasked property."""
    settings = {"polarity": "mixed", "variations": ["instruction_first", "other_instruction"]}
    asked = {"unasked_question": "Is it that?", "unasked_negated_question": "Is it not that?"}
    made = render(table_of(*sentences(8), unasked="no", **asked), **settings)
    for first, second in zip(made[:8], made[8:], strict=True):
        negated = first.polarity == "negated"
        question, other = ("Is it not?", "Is it not that?") if negated else (QUESTION, "Is it that?")
        assert second.text == first.text.replace(question, other) != first.text
        assert (second.polarity, second.label, second.unasked) == (first.polarity, first.label, "no")
        assert second.answer == ("yes" if negated else "no") and second.condition == "other_instruction"
    assert {prompt.polarity for prompt in made} == {"negated", "positive"}
    for lacking in ({"unasked": None}, {"unasked_question": None}):
        with pytest.raises(InputError, match="no other property"):
            render(table_of(*sentences(4), **{"unasked": "no", **asked, **lacking}), **settings)


def test_conversation_refuses_what_it_cannot_mean():
    with pytest.raises(ValueError, match="needs demonstrations"):
        conversation(TEMPLATES["plain"], "demonstrations", "", "a")
    with pytest.raises(ValueError, match="takes no demonstrations"):
        conversation(TEMPLATES["plain"], "sample_first", "q", "a", [Demonstration("b", "yes")])


# --- options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_option_ids_are_the_first_token_after_the_prompt(kind, chat, template):
    tokenizer = local.build(kind, chat)
    for prompt in render(table_of("a cat.", "a dog and a cat"), kind, chat, template=template):
        lead = "" if chat == "llama3" else TEMPLATES[template].answer.removesuffix("{answer}")
        if chat == "ignores_system":
            lead = " " if template != "published" else lead
        for option, token in zip(prompt.options, prompt.option_ids, strict=True):
            ids = tokenizer(prompt.text + lead + option, add_special_tokens=chat == "none")["input_ids"]
            if chat == "no_system":  # writes a space of its own before the answer, which may be a token or not
                assert tokenizer.decode([token]).strip() and option.startswith(tokenizer.decode([token]).strip())
                continue
            assert ids[: len(prompt.input_ids)] == list(prompt.input_ids) and ids[len(prompt.input_ids)] == token


def test_options_that_share_their_first_token_are_refused():
    task = Task(
        source=FileSource(path="x.csv", labels={"a": "yes", "b": "yes no"}), question="?", options=["yes", "yes no"]
    )
    samples = table_of("a cat.", label="yes")
    with pytest.raises(InputError, match=r"tasks.t, sample '0'.*options .* cannot be told apart by their first tokens"):
        render_task(samples, task, Prompts(template="plain", variations=["sample_first"]), TEMPLATES,
                    local.build("gpt2", "chatml"), seed=1, name="t", model="m")  # fmt: skip


def test_an_answer_that_merges_with_the_prompt_is_encoded_alone():
    # "text: a" + "uthor" is one token " author" in the whole text; alone it is "u".
    ends = TEMPLATES["plain"].model_copy(update={"sample_first": "{text} {question} the a"})
    task = Task(
        source=FileSource(path="x.csv", labels={"a": "uthor", "b": "no"}), question="?", options=["uthor", "no"]
    )
    tokenizer = local.build("gpt2")
    out = render_task(table_of("it is.", label="no"), task, Prompts(template="plain", variations=["sample_first"]),
                      {"plain": ends}, tokenizer, seed=1, name="t", model="m")  # fmt: skip
    (prompt,) = from_table(out)
    alone = [tokenizer(option)["input_ids"][0] for option in task.options]
    whole = tokenizer(prompt.text + "uthor")["input_ids"]
    assert whole[: len(prompt.input_ids)] != list(prompt.input_ids) and list(prompt.option_ids) == alone


# --- tables and the command ----------------------------------------------------------------------------------------


def test_table_round_trip(tmp_path):
    samples = table_of(*sentences(8))
    samples.loc[0, "unasked"] = "no"
    prompts = render(samples, variations=["instruction_first", "demonstrations"])
    table = to_table(prompts)
    assert list(table.columns) == list(COLUMNS)
    table.to_parquet(tmp_path / "p.parquet")
    again = from_table(pd.read_parquet(tmp_path / "p.parquet"))
    assert again == prompts and again[0].unasked == "no" and again[1].unasked is None
    import pyarrow.parquet as parquet

    schema = parquet.read_schema(tmp_path / "p.parquet")
    assert str(schema.field("input_ids").type) == "list<element: int32>"
    assert str(schema.field("groups").type) == "list<element: struct<name: string, start: int32, stop: int32>>"
    assert len({prompt.prompt_id for prompt in prompts}) == 16
    with pytest.raises(InputError, match=r"lacks the column\(s\) \['text'\]"):
        from_table(table.drop(columns="text"))
    with pytest.raises(InputError, match=r"lacks the column\(s\) \['text'\]"):
        render(samples.drop(columns="text"))


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "llama2", "qwen2"])
def test_command_loads_the_saved_tokenizer_and_writes_the_same_bytes_twice(tmp_path, kind):
    tokenizer = local.build(kind, "chatml")
    tokenizer.save_pretrained(tmp_path / "model")
    manifest = {"id": "m", "path": str(tmp_path / "model"), "revision": None}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    table_of(*sentences(8)).to_parquet(tmp_path / "samples.parquet")
    values = {
        "seed": 7,
        "prompts": {"template": "plain"},
        "templates.plain": TEMPLATES["plain"].model_dump(),
        "tasks.t": TASK.model_dump(),
    }
    digests = set()
    for name in ("a.parquet", "b.parquet"):
        arguments = ["prompts", "--settings", json.dumps(values), "--tokenizer", str(tmp_path / "manifest.json")]
        arguments += ["--task", "t", "--samples", str(tmp_path / "samples.parquet"), "--out", str(tmp_path / name)]
        assert main(arguments) == 0
        digests.add(sha256(tmp_path / name))
    assert len(digests) == 1
    variations = ["instruction_first", "sample_first", "demonstrations"]
    expected = render(table_of(*sentences(8)), kind, variations=variations)
    assert from_table(pd.read_parquet(tmp_path / "a.parquet")) == expected
    arguments[arguments.index("--tokenizer") + 1] = str(tmp_path / "model")  # the folder alone says the same
    assert main(arguments) == 0 and sha256(tmp_path / "b.parquet") in digests


def test_manifests_that_lead_nowhere(tmp_path):
    for manifest, message in [
        ({"id": "m"}, "`path` is missing"),
        ({"id": "m", "path": "hub:a/b"}, "needs a `revision`"),
        ({"id": "m", "path": str(tmp_path / "none")}, "no such folder"),
        ({"id": "m", "path": str(tmp_path)}, "tokenizer cannot be loaded"),
    ]:
        with pytest.raises(InputError, match=message):
            load_tokenizer(manifest)


def test_missing_inputs_are_named(tmp_path, capsys):
    arguments = ["--settings", "{}", "--tokenizer", "m.json", "--task", "t", "--samples", str(tmp_path / "s")]
    assert main(["prompts", *arguments, "--out", str(tmp_path / "o")]) == 2
    assert f"{tmp_path / 's'}: no such file" in capsys.readouterr().err


def test_modules_are_light_to_import():
    code = "import sys, levelt.commands.prompts; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


@pytest.mark.published
@pytest.mark.skipif(not PUBLISHED.exists(), reason="needs the published blimp.jsonl in ../shared/data")
def test_published_file_with_the_published_template(monkeypatch):
    monkeypatch.chdir(ROOT)
    study = load(ROOT / "config/examples/blimp.yaml")
    samples, _ = load_samples("blimp", study.tasks["blimp"])
    table = render_task(samples.head(600), study.tasks["blimp"], study.prompts, study.templates,
                        local.build("llama3", "llama3"), seed=study.seed, name="blimp", model="m")  # fmt: skip
    assert len(table) == 1800 and (table["answer"] == table["label"]).all()
    first = table["text"][0]
    assert "##Instructions:\n-Your task is to answer questions based on a given text.\n-Answer only with a" in first
    assert f"##Question\n{samples['question'][0]}\n\n##Text\n{samples['text'][0]}\n\nAnswer:" in first
    # The release loses the first token of texts such as "A lady ..." (methods audit, A4): here it is kept.
    rows = table[table["condition"].eq("instruction_first") & samples["text"].str.startswith("A ").reindex(table.index)]
    for prompt in from_table(rows):
        span = prompt.groups["sample"]
        assert local.build("llama3").decode([prompt.input_ids[span.start]]) in ("A", "A ")
    assert np.all(table["straddling"] >= 1)  # ".\n\n"
