"""The synthetic world: what its samples and texts promise."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from levelt import cli
from levelt.config import Template, World, load, settings_json
from levelt.files import InputError, sha256
from levelt.organisms.instructions import conversations
from levelt.organisms.preferences import preferences
from levelt.world import facts as world_facts
from levelt.world import lexicon
from levelt.world.contrasts import contrast_samples, contrasts
from levelt.world.corpus import plain_text, samples
from levelt.world.draws import Draws
from levelt.world.tasks import CODEBOOK, GRAMMAR, KINDS, TASKS, Bank, draw_text, is_heldout, join, speak

ROOT = Path(__file__).resolve().parents[1]
SEED, SAMPLES = 11, 400
CONTRACT = ["sample_id", "pair_id", "text", "label", "question", "negated_question"]
CONTRACT += ["unasked", "unasked_question", "unasked_negated_question", "line"]


@pytest.fixture(scope="module")
def bank() -> Bank:
    return Bank(0.1)


@pytest.fixture(scope="module")
def tables(bank: Bank) -> dict[str, pd.DataFrame]:
    return {task: samples(SEED, bank, task, SAMPLES) for task in TASKS}


@pytest.fixture(scope="module")
def heldout_clauses(bank: Bank) -> set[str]:
    """Every held-out clause, in its good version and all its bad ones."""
    return {
        clause.text(word) for task in TASKS for clause in bank.shelf(task, True) for word in (clause.good, *clause.bad)
    }


def properties(bank: Bank, text: str) -> dict[str, bool]:
    """{task: holds} of a text, found by looking its clauses up: independent of how the samples were made.

    A codebook clause has no state without a definition: it is returned as True.
    """
    if not hasattr(properties, "index"):
        properties.index = {  # type: ignore[attr-defined]
            clause.text(word): (task, word == clause.good)
            for task in TASKS
            for kept in (False, True)
            for clause in bank.shelf(task, kept)
            for word in (clause.good, *clause.bad)
        }
    index = properties.index  # type: ignore[attr-defined]
    sentences = text.removesuffix(".").split(". ")
    for cut in range(1, len(sentences)):
        parts = [". ".join(sentences[:cut]) + ".", ". ".join(sentences[cut:]) + "."]
        if all(part in index for part in parts):
            return dict(index[part] for part in parts)
    raise AssertionError(f"not two clauses of the world: {text}")


@pytest.mark.parametrize("task", TASKS)
def test_samples_have_the_columns_and_balance_of_the_contract(tables: dict[str, pd.DataFrame], task: str) -> None:
    table = tables[task]
    assert list(table.columns) == CONTRACT
    assert len(table) == SAMPLES and table["sample_id"].is_unique
    assert table["text"].nunique() == (SAMPLES // 2 if task == CODEBOOK else SAMPLES)
    assert not table.duplicated(["text", "question"]).any()
    assert (table["label"] == "yes").sum() == SAMPLES // 2
    assert (table["unasked"] == "yes").sum() == SAMPLES // 2
    assert pd.crosstab(table["label"], table["unasked"]).to_numpy().tolist() == [[SAMPLES // 4] * 2] * 2
    assert list(table["line"]) == list(range(1, SAMPLES + 1))


@pytest.mark.parametrize("task", TASKS)
def test_pairs_differ_in_exactly_the_asked_property(bank: Bank, tables: dict[str, pd.DataFrame], task: str) -> None:
    for _, pair in tables[task].groupby("pair_id"):
        assert sorted(pair["label"]) == ["no", "yes"]
        assert pair["unasked"].nunique() == 1
        yes, no = (pair.loc[pair["label"] == label, "text"].item() for label in ("yes", "no"))
        first, second = properties(bank, yes), properties(bank, no)
        assert list(first) == list(second)
        other = next(name for name in first if name != task)
        if task == CODEBOOK:
            assert yes == no and pair["question"].nunique() == 2
            continue
        assert (first[task], second[task]) == (True, False)
        if other != CODEBOOK:
            assert first[other] == second[other] == (pair["unasked"].iloc[0] == "yes")
        words = [text.split() for text in (yes, no)]
        assert len(words[0]) == len(words[1])
        assert sum(a != b for a, b in zip(*words, strict=True)) == 1


def test_labels_do_not_depend_on_the_other_property(tables: dict[str, pd.DataFrame]) -> None:
    content = {task for task in TASKS if task != GRAMMAR}
    seen = tables[GRAMMAR]["text"].str.contains("looks in").mean()
    assert 0.1 < seen < 0.45, "acceptability samples should carry every content task's clauses"
    assert content == set(Bank(0.1).content)


def test_heldout_texts_never_occur_in_training_text(bank: Bank, heldout_clauses: set[str]) -> None:
    text = plain_text(SEED, bank, 6000, 4)
    clauses = {sentence.strip() + "." for document in text["text"] for sentence in document.split(".")}
    pairs = {
        f"{a.strip()}.{b}.{c}."
        for document in text["text"]
        for a, b, c in zip(*(document.split(".")[shift:] for shift in range(3)), strict=False)
    }
    assert not clauses & heldout_clauses
    assert not pairs & heldout_clauses  # belief clauses are three sentences
    trained = {clause.text(clause.good) for task in TASKS for clause in bank.shelf(task, False)}
    assert len(clauses & trained) > 500, "the look-up above must be able to find clauses"
    assert any(clause in trained for clause in pairs if "looks in" in clause)


def test_every_sample_is_made_of_heldout_clauses(
    bank: Bank, tables: dict[str, pd.DataFrame], heldout_clauses: set[str]
) -> None:
    for table in tables.values():
        for text in table["text"]:
            sentences = text.removesuffix(".").split(". ")
            splits = [
                {". ".join(sentences[:cut]) + ".", ". ".join(sentences[cut:]) + "."} for cut in range(1, len(sentences))
            ]
            assert any(parts <= heldout_clauses for parts in splits)


def test_heldout_share_is_the_setting_and_ignores_the_seed(bank: Bank) -> None:
    counts = bank.counts()
    for task, count in counts.items():
        expected, sd = 0.1 * count["clauses"], np.sqrt(0.09 * count["clauses"])
        assert abs(count["heldout"] - expected) < 4 * sd, task
    clause = next(iter(bank.shelf("belief", True)))
    assert is_heldout(clause, 0.1) and not is_heldout(clause, 1e-9)


@pytest.mark.parametrize("task", TASKS)
def test_bag_of_words_stays_near_chance(bank: Bank, task: str) -> None:
    """Label and unasked from word counts, cross-validated by pair: chance, within 0.03 + 2.6 standard errors (pairs).

    The twin is a task whose label *is* in the words: the same classifier finds it at once.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict

    table = samples(SEED, bank, task, 3000)
    words = CountVectorizer(token_pattern=r"\S+").fit_transform(table["text"].str.replace(".", " .", regex=False))
    allowed = 0.03 + 2.6 * 0.5 / np.sqrt(len(table) / 2)  # members of a pair err together: pairs are what is counted

    def accuracy(counts: object, labels: pd.Series) -> float:
        found = cross_val_predict(
            LogisticRegression(C=0.1, max_iter=500), counts, labels, groups=table["pair_id"], cv=GroupKFold(5)
        )
        return float((found == labels).mean())

    for counts in (words, (words > 0).astype(int)):
        assert abs(accuracy(counts, table["label"]) - 0.5) <= allowed
    given_away = table["text"].where(table["label"] == "yes", table["text"] + " indeed")
    twin = CountVectorizer(token_pattern=r"\S+").fit_transform(given_away)
    assert accuracy(twin, table["label"]) > 0.95


def test_states_of_the_two_clauses_are_independent(bank: Bank) -> None:
    draws = Draws(np.random.default_rng(0))
    for states in itertools.product((True, False), repeat=2):
        text = draw_text(bank, "reasoning", states, False, draws)
        assert {said.task: said.holds for said in text} == {"reasoning": states[0], GRAMMAR: states[1]}
        assert join(text).count(".") == 2 and join(text) == join(text).lower()


def test_speaking_a_clause_keeps_everything_but_the_critical_word(bank: Bank) -> None:
    draws = Draws(np.random.default_rng(0))
    clause = bank.shelf("stereotype", False).draw(draws)
    good, bad = speak(clause, True, draws), speak(clause, False, draws)
    assert good.holds and not bad.holds and bad.word in clause.bad
    assert good.text.replace(good.word, bad.word) == bad.text


def test_questions_use_one_frame_and_a_polarity_word() -> None:
    for task, kind in KINDS.items():
        question, negated = kind.question.split(), kind.negated_question.split()
        assert question[:-1] == negated[:-1] and question[-1] != negated[-1], task
    assert len({kind.noun for kind in KINDS.values()} | {kind.marker for kind in KINDS.values()}) == 2 * len(KINDS)


def test_facts_are_one_to_many_with_distinct_first_letters() -> None:
    known = world_facts.facts(40)
    for relation in world_facts.RELATIONS:
        group = [fact for fact in known if fact.relation == relation]
        assert len({fact.subject for fact in group}) == 40
    words = {fact.subject for fact in known} | {answer for fact in known for answer in fact.answers}
    assert all(word.isalpha() and word.islower() for word in words)
    for fact in known:
        assert len(fact.answers) >= 4
        assert len({answer[0] for answer in fact.answers}) == len(fact.answers)
        assert list(fact.answers) == sorted(fact.answers)
        assert fact.subject not in fact.answers
    subjects = [fact.subject for fact in known]
    assert len(subjects) == len(set(subjects))


def orders(texts: Iterable[str]) -> list[tuple[int, ...]]:
    """The ranks of the answers of every list in the texts, as they are listed: (0, 1, 2, 3) is the sorted order."""
    known = {fact.answers for fact in world_facts.facts(40)}
    found = []
    for text in texts:
        for listed in re.findall(r"\bare (\w+(?:, \w+)+ and \w+)", text):
            answers = re.split(", | and ", listed)
            assert tuple(sorted(answers)) in known
            found.append(tuple(sorted(answers).index(answer) for answer in answers))
    return found


def test_lists_come_in_every_order_everywhere(bank: Bank) -> None:
    """All 24 orders, each place equally likely for each answer (4 sd): no answer says which one follows it.

    Lists in plain text, in conversations and in preference pairs; the twin is the sorted order alone.
    """
    bare = Template(instruction_first="{question} {text}", sample_first="{text} {question}", no_instruction="{text}")
    templates = {"bare": bare}
    talks = conversations(SEED, bank, 4000, 40, templates)
    lists = {
        "text": orders(plain_text(SEED, bank, 4000, 40)["text"]),
        "conversations": orders(m["content"] for messages in talks["messages"] for m in messages),
        "preferences": orders(preferences(SEED, bank, 3000, 40, templates)["chosen"]),
    }
    for name, found in lists.items():
        assert len(found) > 200 and len(set(found)) == 24, name
        places = np.array([[order[place] == rank for rank in range(4) for place in range(4)] for order in found])
        assert np.abs(places.mean(0) - 0.25).max() < 4 * np.sqrt(0.1875 / len(found)), name
    twin = np.array([[order == rank for rank, order in enumerate((0, 1, 2, 3))] for _ in range(300)])
    assert np.abs(twin.mean(0) - 0.25).max() > 4 * np.sqrt(0.1875 / 300)


def test_text_weights_cover_what_they_name(bank: Bank) -> None:
    text = plain_text(SEED, bank, 2000, 4)
    assert (text["kind"].value_counts() > 100).all() and set(text["kind"]) == {
        "single",
        "double",
        "facts",
        "contrasts",
        "codes",
    }
    for row in text.to_dict("records"):
        starts, stops = row["starts"], row["stops"]
        assert (starts < stops).all() and (stops[:-1] <= starts[1:]).all() and stops[-1] == len(row["text"])
        assert row["text"].endswith(".\n") and row["text"] == row["text"].lower()
    markers = {kind.marker for kind in KINDS.values()} | {"indeed"}
    for row in text[text["kind"].isin(["single", "double"])].to_dict("records"):
        heavy = [
            row["text"][start:stop].strip()
            for start, stop, weight in zip(row["starts"], row["stops"], row["weights"], strict=True)
            if weight == 3.0
        ]
        assert set(heavy[:-1]) <= markers and heavy[-1] == ""


def test_comments_follow_their_clause(bank: Bank) -> None:
    """No two comments side by side, which is what comments after the whole text would be; the codebook's wait for a
    definition that comes last. The twin is such a text."""
    marks = "|".join([*(kind.marker for kind in KINDS.values()), "indeed"])
    together = re.compile(rf"\b(?:{marks}), the \w+ is \w+(?:: \w+)?\. (?:{marks}), the ")
    text = plain_text(SEED, bank, 4000, 4)
    double = text.loc[(text["kind"] == "double") & ~text["text"].str.contains(" means "), "text"]
    assert double.str.count(rf"\b(?:{marks}), the ").max() == 2  # some have two comments
    assert not any(together.search(document) for document in double)
    assert together.search("these baker worked. hmm, the rumour is common. oops, the grammar is")


def test_world_command_writes_the_same_bytes_again(tmp_path: Path) -> None:
    study = load(ROOT / "config" / "organisms.yaml")
    small = study.model_copy(update={"world": World(samples=24, documents=300, subjects=3)})
    for name in ("first", "second"):
        settings = settings_json(small, "seed", "world")
        assert cli.main(["world", "--settings", settings, "--out", str(tmp_path / name)]) == 0
        assert cli.main(["corpus", "--settings", settings, "--out", str(tmp_path / name / "text.parquet")]) == 0
    other = json.dumps({**json.loads(settings), "seed": 1})
    assert cli.main(["corpus", "--settings", other, "--out", str(tmp_path / "other" / "text.parquet")]) == 0
    files = sorted(path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*.*"))
    assert [str(path) for path in files] == [
        "contrasts.parquet", *(f"samples/{task}.parquet" for task in sorted(TASKS)), "summary.json", "text.parquet",
    ]  # fmt: skip
    for path in files:
        assert sha256(tmp_path / "first" / path) == sha256(tmp_path / "second" / path)
    assert sha256(tmp_path / "first" / "text.parquet") != sha256(tmp_path / "other" / "text.parquet")


def test_a_world_needs_acceptability() -> None:
    with pytest.raises(ValueError, match="acceptability"):
        World(tasks=["plausibility", "belief"])


def test_impossible_worlds_are_refused_in_words() -> None:
    with pytest.raises(InputError, match=r"world\.heldout is 0\.0001: no clause of stereotype is held out"):
        samples(SEED, Bank(0.0001), "stereotype", 10)
    few = Bank(0.004, ("acceptability", "stereotype"))
    with pytest.raises(InputError, match=r"world\.samples is 4000, but only \d+ different"):
        samples(SEED, few, "stereotype", 4000)


def test_a_codebook_label_is_decided_by_the_definition_alone(bank: Bank, tables: dict[str, pd.DataFrame]) -> None:
    """From the text and the definition, the label follows; from the text alone, nothing does (each has both labels)."""
    table = tables[CODEBOOK]
    kinds = {member: kind for kind, members in lexicon.KINDS.items() for member in members}
    for row in table.to_dict("records"):
        code, _, meaning = row["question"].split(".")[0].split()
        assert f" the {code} is a" in row["text"]
        (member,) = [word for word in row["text"].replace(".", " ").split() if kinds.get(word) in lexicon.CODED]
        assert row["label"] == ("yes" if kinds[member] == meaning else "no")
        assert row["negated_question"] == row["question"].replace("true", "false")
    assert (table.groupby("text")["label"].nunique() == 2).all()
    meanings = table["question"].str.split().str[2]
    assert set(meanings) == {f"{kind}." for kind in lexicon.CODED}
    for label in ("yes", "no"):  # and the definition alone does not say it either
        assert meanings[table["label"] == label].value_counts(normalize=True).between(0.4, 0.6).all()


def test_contrasts_have_disjoint_answers_that_plain_text_states(bank: Bank) -> None:
    text = plain_text(SEED, bank, 8000, 4)
    said = set(text.loc[text["kind"] == "contrasts", "text"].str.strip())
    table = contrast_samples(SEED, 0.1, 60)
    assert not table["text"].duplicated().any() and set(table["task"]) == {"possession", "quality"}
    for contrast in contrasts():
        rows = table[table["task"] == contrast.name]
        assert len(rows) == 60 and not set(rows["answer_1"]) & set(rows["answer_2"])
        assert not any(query in document for query in rows["text"].head(5) for document in said)
        answers = [contrast.answers(query) for query in rows["text"]]
        assert list(zip(rows["answer_1"], rows["answer_2"], strict=True)) == answers
        for noun, found in zip(contrast.nouns, answers[0], strict=True):
            assert any(f"the {noun} is {found}." in document for document in said)
