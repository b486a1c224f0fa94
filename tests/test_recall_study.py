"""The recall study around the engine: listings, prompts, controls, averages, tables, figures, and its commands."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from levelt.cli import main
from levelt.config import ListingFiles, Recall, RecallTemplate, Statistics, Tracing, load, settings_json
from levelt.files import InputError, read_arrays, read_json
from levelt.ledger.numbers import typed_numbers
from levelt.prompts.spans import Span, TokenGroups
from levelt.studies.latex import decimal
from levelt.studies.recall import tables
from levelt.studies.recall.averages import Averages, Mean, mean_of
from levelt.studies.recall.building import build_prompts
from levelt.studies.recall.claims import CLAIMS, weakest
from levelt.studies.recall.listings import (
    Dropped,
    Known,
    Listing,
    Request,
    generated_list,
    given_list,
    read_facts,
    read_listings,
    requests,
)
from levelt.studies.recall.prompts import READOUTS, RecallPrompt, places, tokenised, with_steps
from levelt.studies.recall.report import recall_numbers
from levelt.studies.verdicts import Finding
from models_local import save, tiny
from test_capture import decoder
from tokenizers_local import gpt2, llama3

KNOWN = Known("songs", "Ada Lee", ("Blue Sky", "Red River", "Old Road", "Home"))
NUMBERED = RecallTemplate(
    user="List three {relation} by {subject}:", lead=" 1.", separator=r"\s+\d+\.", between=" {number}.", chat=False
)
PLAIN = RecallTemplate(user="What are the {relation} of {subject}?\n", lead="They are", chat=False)
RELEASED = "one_to_many_recall/artist_songs_{}.jsonl"


def request(template: RecallTemplate = NUMBERED, known: Known = KNOWN) -> Request:
    return requests([known], "t", template, gpt2(), "m")[0]


# --- listings -------------------------------------------------------------------------------------------------------


def marked(listing: Listing) -> dict[str, str]:
    return {mark.name: listing.text[mark.start : mark.stop] for mark in listing.marks}


def test_requests_say_where_relation_and_subject_are():
    made = request()
    assert made.text == "List three songs by Ada Lee: 1."
    assert {mark.name: made.text[mark.start : mark.stop] for mark in made.marks} == {
        "relation": "songs",
        "subject": "Ada Lee",
    }


def test_chat_requests_follow_the_template_of_the_tokenizer():
    from levelt.organisms.tokenizer import render, train_tokenizer

    made = train_tokenizer(["what are the songs of Ada Lee? they are a b c"], 400)
    template = RecallTemplate(system="be brief", user="what are the {relation} of {subject}?", lead="they are")
    asked = requests([KNOWN], "t", template, made, "m")[0]
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "what are the songs of Ada Lee?"}]
    assert asked.text == render(turns, generate=True) + "they are" and not asked.special


def test_given_lists_are_written_as_the_template_says():
    listing = given_list(request(), NUMBERED)
    assert listing.text == "List three songs by Ada Lee: 1. Blue Sky 2. Red River 3. Old Road"
    assert marked(listing) == {
        "relation": "songs",
        "subject": "Ada Lee",
        "answer_1": "Blue Sky",
        "answer_2": "Red River",
        "answer_3": "Old Road",
    }
    assert listing.others == ("Home",)
    plain = given_list(request(PLAIN), PLAIN)
    assert plain.text == "What are the songs of Ada Lee?\nThey are Blue Sky, Red River, Old Road"


@pytest.mark.parametrize(
    ("continuation", "outcome"),
    [
        (' "Red River" 2. "Blue Sky",\n3. HOME 4. Else', ("Red River", "Blue Sky", "HOME")),
        (" Red River 2. Blue Sky 3.", "format"),
        (" Red River and Blue Sky", "format"),
        (" Red River 2. Blue Sky 3. red river", "repeated"),
        (" Red River 2. Blue Sky 3. Moon", "wrong"),
    ],
)
def test_generated_lists_are_parsed_and_verified(continuation: str, outcome: Any):
    listing = generated_list(request(), continuation, NUMBERED)
    if isinstance(outcome, str):
        assert listing == outcome
        return
    assert isinstance(listing, Listing) and listing.answers == outcome
    assert [marked(listing)[f"answer_{k}"] for k in (1, 2, 3)] == list(outcome)
    assert listing.text == request().text + continuation
    # places, not a search: the second item's text also stands in the first one's place of another list
    assert listing.marks[2].start < listing.marks[3].start < listing.marks[4].start


def test_facts_are_read_or_refused_with_the_line(tmp_path: Path):
    path = tmp_path / "facts.csv"
    path.write_text("relation,subject,answer\n" + "".join(f"songs,Ada,{x}\n" for x in ("a", "b", "c", "b")))
    assert read_facts(path) == [Known("songs", "Ada", ("a", "b", "c"))]
    for text, sentence in (
        ("relation,subject\nsongs,Ada\n", "no column answer, found relation, subject"),
        ("relation,subject,answer\nsongs,Ada,\n", "line 2: an empty"),
        ("relation,subject,answer\nsongs,Ada,a\n", "'Ada' has 1 songs, a list needs 3"),
        ("relation,subject,answer\n", "no facts in it"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=sentence):
            read_facts(path)
    with pytest.raises(InputError, match="no such file of facts"):
        read_facts(tmp_path / "none.csv")


def rows_of(*queries: str, subject: str = "Ada", answers: tuple[str, ...] = ("x", "yy", "z")) -> list[dict[str, Any]]:
    return [{"query": query, "subject": subject, "three_answers_label_list": list(answers)} for query in queries]


def write_released(folder: Path, rows: list[list[dict[str, Any]]]) -> list[Path]:
    paths = [folder / f"{k}.jsonl" for k in (1, 2, 3)]
    for path, of_step in zip(paths, zip(*rows, strict=True), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in of_step))
    return paths


def test_released_files_are_placed_by_how_prompts_continue(tmp_path: Path):
    paths = write_released(
        tmp_path,
        [
            rows_of('by Ada: 1. "', 'by Ada: 1. "x" 2. "', 'by Ada: 1. "x" 2. "yy" 3. "'),
            rows_of("by Ada: 1.", "by Ada: 1. x, 2.", "by Ada: 1. x, 2. yy, 3."),
            rows_of("by Ada: 1.", "by Ada: 1. x, 2.", "by Ada: 1. q, 2. yy, 3."),  # does not continue
            rows_of("Ada by Ada: 1.", "Ada by Ada: 1. x 2.", "Ada by Ada: 1. x 2. yy 3."),  # twice
        ],
    )
    found, dropped = read_listings(paths, "songs")
    assert dropped.counts == {("songs", "released", "place"): 2}
    assert [one.text for one in found] == ['by Ada: 1. "x" 2. "yy" 3. "z', "by Ada: 1. x, 2. yy, 3. z"]
    for listing in found:
        assert marked(listing) == {"subject": "Ada", "answer_1": "x", "answer_2": "yy", "answer_3": "z"}
    paths[1].write_text(
        paths[1].read_text().replace("Ada", "Eve", 1).replace('"subject": "Ada"', '"subject": "Eve"', 1)
    )
    with pytest.raises(InputError, match=r"2\.jsonl, line 1: another subject"):
        read_listings(paths, "songs")
    paths[1].write_text("{")
    with pytest.raises(InputError, match=r"2\.jsonl, line 1: not valid JSON"):
        read_listings(paths, "songs")


@pytest.mark.published
@pytest.mark.parametrize("make", [gpt2, llama3])
def test_the_authors_songs_are_complete(published: Path, make: Any):
    """All 206 subjects, re-tokenised: each prompt's text is the released one, up to the blank before an answer."""
    paths = [published / RELEASED.format(k) for k in (1, 2, 3)]
    listings, dropped = read_listings(paths, "songs")
    assert len(listings) == 206 and not dropped.counts
    made = make()
    tokens = [tokenised(listing, made, "m") for listing in listings]
    kept = [one for one in tokens if not isinstance(one, str)]
    assert len(kept) == 206
    prompts = with_steps(kept, 0, dropped)
    assert len(prompts) == 3 * (206 - dropped.counts.total()) and dropped.counts.total() < 10
    for k, path in enumerate(paths, start=1):
        queries = {json.loads(line)["subject"]: json.loads(line)["query"] for line in path.read_text().splitlines()}
        for prompt in prompts:
            if prompt.step == k:
                text = made.decode(list(prompt.input_ids), skip_special_tokens=True)
                assert text.rstrip(" ") == queries[prompt.subject].rstrip(" ")


@pytest.mark.published
def test_the_authors_songs_run_through_every_reading(published: Path, root: Path, tmp_path: Path):
    """The example config on a tiny model: all subjects at all steps; traces of the first two."""
    example = load(root / "config/examples/songs.yaml")
    assert example.recall is not None and isinstance(example.recall.source, ListingFiles)
    keys = [f"engine.{name}" for name in ("dtype", "device", "attention", "threads", "batch_tokens")]
    settings = json.loads(settings_json(example, "seed", "recall", *keys))
    names = [Path(path).name for path in example.recall.source.paths]
    settings["recall"]["source"]["paths"] = [str(published / "one_to_many_recall" / name) for name in names]
    settings["recall"]["tracing"] |= {"subjects": 2, "draws": 2}
    save(tiny("llama", max_position_embeddings=512), tmp_path / "model")
    checkpoint = {"path": str(tmp_path / "model"), "family": "llama", "size": "t", "stage": "sft"}
    options = json.dumps({"seed": 3, "checkpoints.tiny": checkpoint})
    main(["checkpoint", "--settings", options, "--id", "tiny", "--out", str(tmp_path / "manifest.json")])
    run_recall(tmp_path, tmp_path / "out", settings)
    arrays, about = read_arrays(tmp_path / "out" / "decode.safetensors")
    assert about["prompts"] == {"1": 206, "2": 206, "3": 206}
    readings = {"attention", "mlp", "lens", "knocked_mlp", "heads"}
    assert all(np.isfinite(arrays[f"step{step}.{name}"]).all() for step in (1, 2, 3) for name in readings)
    traces = pd.read_parquet(tmp_path / "out" / "traces.parquet")
    assert (traces.groupby(["step", "noised"])["subject"].nunique() == 2).all() and traces["step"].nunique() == 3


# --- prompts --------------------------------------------------------------------------------------------------------


def listing_of(subject: str, answers: tuple[str, ...], others: tuple[str, ...] = ()) -> Listing:
    return given_list(request(NUMBERED, Known("songs", subject, answers + others)), NUMBERED)


@pytest.mark.parametrize("make", [gpt2, llama3])
def test_prompts_are_cut_where_answers_begin(make: Any):
    made = make()
    found = [listing_of("Ada Lee", ("Kim", "Lop", "Mud")), listing_of("Bob Orr", ("Qi", "Rex", "Sun"))]
    tokens = [tokenised(listing, made, "m") for listing in found]
    prompts = with_steps([one for one in tokens if not isinstance(one, str)], 0, Dropped())
    assert [prompt.step for prompt in prompts] == [1, 2, 3] * 2
    first = prompts[:3]
    # a blank that is a token of its own belongs to the prompt
    texts = [made.decode(list(prompt.input_ids), skip_special_tokens=True).rstrip(" ") for prompt in first]
    assert texts == [
        "List three songs by Ada Lee: 1.",
        "List three songs by Ada Lee: 1. Kim 2.",
        "List three songs by Ada Lee: 1. Kim 2. Lop 3.",
    ]
    for prompt in first:
        for name, word in (("subject", " Ada Lee"), ("answer_1", " Kim"), ("answer_2", " Lop")):
            if name in prompt.groups:
                span = prompt.groups[name]
                assert made.decode(list(prompt.input_ids[span.start : span.stop])).strip() == word.strip()
        assert prompt.groups["decision"].start == len(prompt.input_ids) - 1
        assert set(prompt.asked) <= {*prompt.groups.names}
    assert [made.decode([token]).strip()[0] for token in first[0].readouts] == list("AKLMQRS")
    assert len({prompt.readouts for prompt in first}) == 1


def test_collisions_are_seen_and_controls_do_not_share_answers_or_first_tokens():
    made = gpt2()
    alike = tokenised(listing_of("Ada Lee", ("Kim", "Kite", "Mud")), made, "m")
    assert not isinstance(alike, str) and alike.collision  # " K" of the small vocabulary
    apart = tokenised(listing_of("Ada Lee", ("Kim", "Lop", "Mud"), ("Qi",)), made, "m")
    assert not isinstance(apart, str) and not apart.collision
    shares_answer = tokenised(listing_of("Bob Orr", ("Qi", "Rex", "Sun")), made, "m")
    shares_token = tokenised(listing_of("Cy Orr", ("Vi", "Mud Pie", "Rex")), made, "m")
    fits = tokenised(listing_of("Eve Orr", ("Vi", "Rex", "Zoo")), made, "m")
    assert not any(isinstance(one, str) for one in (shares_answer, shares_token, fits))
    dropped = Dropped()
    prompts = with_steps([apart, shares_answer, shares_token], 0, dropped)  # type: ignore[list-item]
    assert {prompt.subject for prompt in prompts} == {"Bob Orr"}  # Ada's list is no answer to Bob, but Bob's is to Ada
    assert dropped.counts["songs", "t", "no control"] == 2
    prompts = with_steps([apart, shares_answer, shares_token, fits], 0, Dropped())  # type: ignore[list-item]
    of_apart = next(prompt for prompt in prompts if prompt.subject == "Ada Lee")
    assert of_apart.readouts[4:] == fits.firsts  # type: ignore[union-attr]


def test_lists_whose_tokens_are_not_those_written_are_left_out():
    made, listing = gpt2(), listing_of("Ada Lee", ("Kim", "Lop", "Mud"))
    tokens = tokenised(listing, made, "m")
    assert not isinstance(tokens, str)
    again = tokenised(listing, made, "m", [*tokens.ids, 99])
    assert not isinstance(again, str) and again.ids == tokens.ids
    assert tokenised(listing, made, "m", [*tokens.ids[:-1], 99]) == "retokenised"


def test_places_name_every_token():
    spans = (Span("relation", 1, 2), Span("subject", 3, 6), Span("answer_1", 8, 10), Span("decision", 11, 12))
    prompt = RecallPrompt("r", "t", "s", 2, tuple(range(12)), TokenGroups(spans), (0,) * 7, (), False)
    assert places(prompt) == [
        "before",
        "relation_last",
        "after_relation",
        "subject_first",
        "subject_middle",
        "subject_last",
        *["after_subject"] * 2,
        "answer_1_first",
        "answer_1_last",
        "after_answer_1",
        "decision",
    ]


# --- averages and tables ----------------------------------------------------------------------------------------------


def rows_frame(cells: dict[tuple[str, str], int]) -> pd.DataFrame:
    return pd.DataFrame(
        [(relation, template, f"{relation}{i}") for (relation, template), count in cells.items() for i in range(count)],
        columns=["relation", "template", "subject"],
    )


def test_macro_average_weighs_cells_and_not_rows():
    rows = rows_frame({("a", "t1"): 2, ("a", "t2"): 4, ("b", "t1"): 3, ("b", "t2"): 3})
    values = np.repeat([1.0, 2.0, 10.0, 20.0], [2, 4, 3, 3])
    averages = Averages(rows, 200, 0)
    assert averages.mean(values).value == pytest.approx((1.5 + 15) / 2)
    assert averages.mean(values, "a").value == pytest.approx(1.5)
    assert averages.mean(values, template="t1").value == pytest.approx(5.5)
    assert values.mean() != pytest.approx(8.25)
    # as released: template 1 twice, divided by the number of templates
    assert averages.mean(values, as_released=True).value == pytest.approx(((1 + 1 + 2) / 2 + (10 + 10 + 20) / 2) / 2)
    assert averages.subjects() == 7 and averages.subjects("a") == 4


def test_intervals_resample_subjects_and_leave_out_what_a_prompt_lacks():
    rows = rows_frame({("a", "t1"): 40, ("a", "t2"): 40})
    drawn = np.random.default_rng(0).normal(size=40)
    together = Averages(rows, 2000, 0).mean(np.concatenate([drawn, drawn]))
    low, high = together.interval(0.95)
    # both templates show the same subjects, so they add no information
    assert (high - low) == pytest.approx(2 * 1.96 * drawn.std() / np.sqrt(40), rel=0.1)
    missing = np.concatenate([drawn, np.full(40, np.nan)])
    assert Averages(rows, 100, 0).mean(missing).value == pytest.approx(drawn.mean())
    alone = Averages(rows_frame({("a", "t1"): 1}), 100, 0).mean(np.ones(1))
    assert alone.value == 1 and np.isnan(alone.interval(0.95)).all()


def fake_step(curve: np.ndarray, step: int) -> tables.Step:
    """Twenty subjects whose first answer's logit follows a curve over its control; nothing else moves."""
    count, layers = 20, len(curve) - 1
    rows = rows_frame({("a", "t1"): count}).assign(step=step)
    arrays: dict[str, np.ndarray] = {name: np.zeros((count, layers, 7)) for name in ("attention", "mlp")}
    arrays["embedding"] = np.zeros((count, 7))
    arrays["mlp"][..., 1] = np.diff(curve)
    arrays["linear"] = np.zeros((count, 7))
    groups = ["subject", *(f"answer_{k}" for k in range(1, step)), "decision", "rest"]
    arrays["lens"] = np.zeros((count, layers, len(groups), 7))
    knockouts = [[group, flag] for flag in (False, True) for group in groups[:-1]]
    arrays["knocked_mlp"] = np.repeat(arrays["mlp"][:, None], len(knockouts), 1)
    arrays["knocked_linear"] = np.zeros((count, len(knockouts), 7))
    return tables.Step(step, layers, arrays, groups, knockouts, rows, Statistics(draws=200), 0)


def found(step: tables.Step, statistic: str, token: str = "used") -> dict[str, Any]:
    every = [one.row(0.95, step.layers) for one in tables._statistics(step, "all", "all")]
    rows = [row for row in every if row["statistic"] == statistic]
    return next(row for row in rows if row["token"] == token and row["group"] == "all")


def test_promotion_and_suppression_are_read_off_a_known_curve():
    step = fake_step(np.array([0.0, 1.0, 4.0, 3.0, 1.0]), step=2)  # answer 1 alone is used
    assert found(step, "promotion_peak")["estimate"] == pytest.approx(4)
    assert found(step, "suppression_depth")["estimate"] == pytest.approx(3)
    assert found(step, "promotion_peak")["layer"] == 2
    assert found(step, "sign_change")["estimate"] == 3
    assert found(step, "final")["estimate"] == pytest.approx(1)
    rising = fake_step(np.array([0.0, 1.0, 2.0, 3.0, 4.0]), step=2)  # twin: nothing is suppressed
    assert found(rising, "suppression_depth")["estimate"] == pytest.approx(0)
    assert found(rising, "sign_change")["estimate"] == 5


def test_a_peak_of_noise_is_not_reported_as_promotion():
    """Chosen and measured on the same subjects the highest layer is above zero on average; on other ones it is not."""
    same, other = [], []
    for seed in range(60):
        curves = np.random.default_rng(seed).normal(size=(2, 8))
        folds = [Mean(curve, np.zeros((1, 8))) for curve in curves]
        same.append(curves.mean(0).max())
        other.append(float(tables._crossed(folds, tables._at_peak).value))
    assert np.mean(same) > 0.8
    assert abs(np.mean(other)) < 3 * np.std(other) / np.sqrt(60)


def test_heads_promote_and_suppress_by_their_layers_own_spread():
    heads = np.zeros((10, 1, 3, 7))
    heads[:, 0, 0, 1], heads[:, 0, 1, 2] = 5.0, -5.0
    heads[..., 4:] = 99.0  # controls do not count
    promotes, suppresses = tables.head_rates(heads)
    assert promotes.mean(0).tolist() == [[1, 0, 0]] and suppresses.mean(0).tolist() == [[0, 1, 0]]


# --- end to end -------------------------------------------------------------------------------------------------------


@cache
def world_prompts(lists: str = "given") -> tuple[list[RecallPrompt], Dropped]:
    settings = Recall(lists=lists, templates={"plain": PLAIN}, max_new_tokens=4)  # type: ignore[arg-type]
    return build_prompts(decoder("llama"), settings, 6, 0, "m")


def test_a_model_that_knows_nothing_has_no_lists_of_its_own():
    prompts, dropped = world_prompts("generated")
    assert prompts == [] and set(dropped.counts) == {(name, "plain", "format") for name in ("cities", "songs", "films")}


SETTINGS = {
    "seed": 3,
    "world.subjects": 8,
    "engine.dtype": "float32",
    "engine.device": "cpu",
    "engine.attention": "sdpa",
    "engine.threads": 1,
    "engine.batch_tokens": 2048,
    "recall": {
        "lists": "given",
        "collisions": "flag",
        "templates": {
            "plain": {"user": "the {relation} of {subject}", "lead": ": ", "chat": False},
            "terse": {"user": "{relation} of {subject}", "lead": ": ", "chat": False},
        },
        "tracing": {"subjects": 2, "draws": 2},
    },
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command and the tables of one tiny model."""
    folder = tmp_path_factory.mktemp("recall")
    save(tiny("llama"), folder / "model")
    checkpoint = {"path": str(folder / "model"), "family": "llama", "size": "t", "stage": "sft"}
    settings = json.dumps({"seed": 3, "checkpoints.tiny": checkpoint})
    assert main(["checkpoint", "--settings", settings, "--id", "tiny", "--out", str(folder / "manifest.json")]) in (
        0,
        None,
    )
    run_recall(folder, folder / "out")
    arguments = ["--manifests", str(folder / "manifest.json"), "--results", str(folder / "out")]
    options = json.dumps({"seed": 3, "statistics": {"draws": 100}})
    assert main(["recall_tables", "--settings", options, *arguments, "--out", str(folder / "tables")]) in (0, None)
    return folder


def run_recall(folder: Path, out: Path, settings: Any = None) -> None:
    names = {"prompts": "parquet", "decode": "safetensors", "traces": "parquet", "summary": "json"}
    files = [part for name, kind in names.items() for part in (f"--{name}", str(out / f"{name}.{kind}"))]
    manifest = ["--model-manifest", str(folder / "manifest.json")]
    assert main(["recall", "--settings", json.dumps(settings or SETTINGS), *manifest, *files]) in (0, None)


def test_results_are_the_same_bytes_again(study: Path, tmp_path: Path):
    run_recall(study, tmp_path)
    for path in sorted((study / "out").iterdir()):
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_tables_say_what_the_arrays_say(study: Path):
    arrays, about = read_arrays(study / "out" / "decode.safetensors")
    made = {path.stem: pd.read_csv(path) for path in (study / "tables").iterdir()}
    assert set(made) == {"lens", "knockout", "tracing", "heads", "recall", "recall_audit", "recall_lists"}
    prompts = pd.read_parquet(study / "out" / "prompts.parquet")
    second = prompts[prompts["step"] == 2].reset_index(drop=True)
    lens = made["lens"]
    cell = lens[(lens["step"] == 2) & (lens["relation"] == "songs") & (lens["component"] == "mlp")]
    rows = second["relation"] == "songs"
    means = [
        arrays["step2.mlp"][(rows & (second["template"] == name)).to_numpy()].mean(0) for name in ("plain", "terse")
    ]
    expected = np.mean(means, axis=0)  # [layers, tokens]
    for row in cell.itertuples():
        assert row.logit == pytest.approx(expected[row.layer - 1, READOUTS.index(row.token)], rel=1e-4, abs=1e-5)
    # a layer's groups add up to its attention (this model has no projection bias), and components to the last residual
    total = lens[(lens["component"] == "attention") & (lens["relation"] == "all")]
    keys = ["step", "token", "layer"]
    whole = total[total["group"] == "all"].set_index(keys)["logit"]
    assert np.allclose(total[total["group"] != "all"].groupby(keys)["logit"].sum(), whole.sort_index(), atol=1e-4)
    assert set(total["group"]) == {"all", "subject", "answer_1", "answer_2", "decision", "rest"}
    knockout = made["knockout"]
    assert set(knockout["renormalised"]) == {True, False} and set(knockout["component"]) == {"mlp", "logit"}
    traced = made["tracing"]
    assert {(1, "subject"), (3, "answer_2")} <= set(zip(traced["step"], traced["noised"], strict=True))
    assert (traced[traced["place"] == "before"]["effect"].abs() < 1e-6).all()  # in front of the noise
    audit = made["recall_audit"].set_index(["step", "quantity"])
    assert audit.loc[(1, "sum_error"), "right"] < 1e-4 < audit.loc[(1, "sum_error"), "as_released"]
    doubled = made["recall_audit"][made["recall_audit"]["defect"] == "doubled template"]
    assert (doubled["right"] - doubled["as_released"]).abs().max() > 1e-3
    lists = made["recall_lists"].set_index(["relation", "template", "outcome"])["lists"]
    assert lists["songs", "plain", "kept"] == rows.sum() / 2
    assert about["readouts"] == list(READOUTS) and read_json(study / "out" / "summary.json")["kept"] == len(prompts) / 3
    statistics = made["recall"]
    assert {"promotion_peak", "suppression_depth", "sign_change", "lens", "knockout"} <= set(statistics["statistic"])
    assert {"all", "plain", "terse"} == set(statistics["template"])


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("recall_decode", ["lens"]),
        ("recall_lens", ["lens", "knockout"]),
        ("recall_tracing", ["tracing"]),
        ("recall_heads", ["heads"]),
        ("recall_joint", ["lens"]),
    ],
)
def test_figures_draw_the_rows_they_give(study: Path, tmp_path: Path, name: str, needed: list[str]):
    files = [str(study / "tables" / f"{table}.csv") for table in needed]
    out = [part for kind in ("pdf", "png", "csv") for part in (f"--{kind}", str(tmp_path / f"{name}.{kind}"))]
    assert main(["figure", name, "--tables", *files, *out]) in (0, None)
    drawn = pd.read_csv(tmp_path / f"{name}.csv")
    assert len(drawn) and (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert set(drawn["model"]) == {"tiny"}


def test_joint_figure_takes_the_other_studies_where_they_are(study: Path):
    from levelt.figures.recall_joint import draw

    cells = {"model": "tiny", "condition": "instruction_first", "target": "label", "task": ["a", "b"]}
    probes = pd.DataFrame({**cells, "role": "sample", "layer": 1, "depth": 0.5, "balanced_accuracy": [0.6, 0.8]})
    probes = probes.assign(ci_low=probes["balanced_accuracy"] - 0.3, ci_high=probes["balanced_accuracy"] + 0.3)
    patching = pd.DataFrame({"first": [1, 2, 1], "second": [0, 0, 2], "mean": [1.0, 3.0, 99.0]})
    patching = patching.assign(model="tiny", measure="specific", token=0, receiver="query", ci_low=0.0, ci_high=2.0)
    lens = pd.read_csv(study / "tables" / "lens.csv")
    _, drawn = draw({"lens": lens, "probes": probes, "patching": patching})
    assert list(dict.fromkeys(drawn["panel"])) == ["decoded", "written", "promoted", "suppressed"]
    one = drawn[drawn["panel"] == "decoded"].iloc[0]
    assert one["value"] == pytest.approx(0.7) and one["ci_high"] - one["value"] == pytest.approx(0.3 / np.sqrt(2))
    assert drawn[drawn["panel"] == "written"]["value"].tolist() == [1.0, 3.0]


def test_joint_figure_shows_the_latest_models_that_the_studies_share(study: Path):
    from levelt.figures.recall_joint import draw

    lens = pd.read_csv(study / "tables" / "lens.csv")
    copies = [
        lens.assign(model=f"{family}-{stage}", family=family, stage=stage)
        for stage in ("sft", "dpo")
        for family in ("a", "b", "c")
    ]
    lens = pd.concat(copies, ignore_index=True)
    circuits = pd.DataFrame({"layer": [1, 2, 1, 2], "distance": [0.1, 0.3, 0.2, 0.2]})
    circuits["comparison"] = ["instructions"] * 2 + ["other_queries"] * 2
    circuits = circuits.assign(mode="exact", keys=1, measure="activity", source="query", ci_low=0.0, ci_high=0.4)
    both = pd.concat([circuits.assign(model="b-dpo"), circuits.assign(model="c-sft")], ignore_index=True)
    _, drawn = draw({"lens": lens, "circuits": both})
    assert set(drawn["model"]) == {"b-dpo"}
    parted = drawn[drawn["panel"] == "split"]
    assert parted.set_index(["line", "depth"])["value"].to_dict() == {
        ("two instructions", 0.5): 0.1,
        ("two instructions", 1.0): 0.3,
        ("other queries", 0.5): 0.2,
        ("other queries", 1.0): 0.2,
    }
    _, alone = draw({"lens": lens})  # twin: with nothing to share, a model of each family
    assert list(dict.fromkeys(alone["model"])) == ["a-dpo", "b-dpo"] and "split" not in set(alone["panel"])


# --- claims and report ----------------------------------------------------------------------------------------------


def statistic_rows(signs: dict[str, float], width: float = 0.5) -> pd.DataFrame:
    """recall.csv of two models of a stage, in which the statistics that claims are about have these estimates."""
    rows = []
    cells = [("all", "all", "all")]
    cells += [(model, relation, "all") for model in ("m", "n") for relation in ("all", "songs", "films")]
    kinds = [("promotion_peak", "all", token) for token in ("used", "current", "future")]
    kinds += [("suppression_depth", "all", "used"), ("mlp_last_half", "all", "current")]
    kinds += [("mlp_sum", "all", token) for token in ("used", "current", "future")]
    kinds += [("lens", "subject", "any"), ("knockout", "subject", "any")]
    kinds += [(name, "used", token) for name in ("lens", "knockout") for token in ("own", "others")]
    for model, relation, template in cells:
        for step in (1, 2, 3):
            for kind in kinds:
                if (step == 1 and "used" in kind) or (step == 3 and "future" in kind):
                    continue
                estimate = signs.get(f"{kind[0]} {kind[1]} {kind[2]}", signs.get(kind[0], 1.0))
                about = dict(zip(("statistic", "group", "token"), kind, strict=True))
                about |= {"model": model, "relation": relation, "template": template, "step": step, "stage": "dpo"}
                rows.append(
                    about | {"estimate": estimate, "ci_low": estimate - width, "ci_high": estimate + width, "n": 40}
                )
    return pd.DataFrame(rows)


def verdicts(table: pd.DataFrame) -> dict[str, str]:
    return {claim.name.removeprefix("recall."): claim.judge({"recall": table}).verdict for claim in CLAIMS}


def test_claims_hold_in_a_study_made_so_and_fail_where_one_cell_is_turned():
    published = {"lens used own": -1.0, "knockout used own": -1.0}
    table = statistic_rows(published)
    assert set(verdicts(table).values()) == {"supported"}
    assert verdicts(statistic_rows(dict.fromkeys(published, 1.0)))["m3.attention"] == "contradicted"
    turned = table.copy()
    cell = (turned["model"] == "n") & (turned["relation"] == "songs") & (turned["step"] == 3)
    cell &= (turned["statistic"] == "lens") & (turned["group"] == "used") & (turned["token"] == "own")
    turned.loc[cell, ["estimate", "ci_low", "ci_high"]] = [0.2, 0.1, 0.3]
    found = verdicts(turned)
    assert found.pop("m4.attention") == "contradicted" and set(found.values()) == {"supported"}
    assert verdicts(table[table["model"] != "all"])["m1.given"] == "undecided"  # nothing to test it on


def test_no_fall_at_all_contradicts_suppression():
    flat = verdicts(statistic_rows({"suppression_depth": 0.0}, width=0.0))
    assert flat["m1.suppressed"] == flat["m4.suppressed"] == "contradicted"


def test_the_weakest_row_decides_on_either_side():
    rows = pd.DataFrame({"estimate": [1.0, 2.0], "ci_low": [0.5, -0.1], "ci_high": [1.5, 4.0], "n": [9, 8]})
    assert weakest(rows, 1, "subjects") == Finding(1.0, -0.1, 1.5, 8, "subjects")
    assert weakest(-rows.rename(columns={"ci_low": "ci_high", "ci_high": "ci_low"}).assign(n=-9), -1, "x") == Finding(
        -1.0, -1.5, 0.1, 9, "x"
    )


def test_means_over_models_are_paired_by_subject(study: Path):
    """A model counted twice has its own interval; independent copies would have a narrower one."""
    table = pd.read_csv(study / "tables" / "recall.csv")
    keys = ["relation", "template", "step", "statistic", "group", "token"]
    own, mean = (table[table["model"] == name].set_index(keys) for name in ("tiny", "all"))
    columns = ["estimate", "ci_low", "ci_high", "n"]
    pd.testing.assert_frame_equal(own[columns], mean[columns].loc[own.index], check_dtype=False)
    assert set(mean["family"]) == {"all"} and set(mean["stage"]) == {"sft"}
    one = Mean(np.array(1.0), np.array([0.0, 2.0]))
    other = Mean(np.array(2.0), np.array([3.0, 1.0]))
    assert mean_of([one, one]).draws.tolist() == [0.0, 2.0] and mean_of([one, other]).draws.tolist() == [1.5, 1.5]


def test_subjects_that_a_model_lacks_do_not_move_its_average():
    rows = rows_frame({("a", "t1"): 6})
    values = np.arange(6.0)
    alone, among = Averages(rows, 300, 0), Averages(rows, 300, 0, {"a": [*rows["subject"], "zz"]})
    assert among.mean(values).value == alone.mean(values).value and among.subjects() == alone.subjects() == 6


def test_report_quotes_what_the_tables_say(study: Path):
    made = {name: pd.read_csv(study / "tables" / f"{name}.csv") for name in ("recall", "recall_lists", "recall_audit")}
    values = recall_numbers(made)
    assert values["recall.models"] == values["recall.latest"] == r"\texttt{tiny}"
    assert values["recall.kept"] == str(read_json(study / "out" / "summary.json")["kept"])
    row = made["recall"].query("model == 'all' and relation == 'all' and template == 'all' and step == 2")
    peak = row.query("statistic == 'promotion_peak' and token == 'used'")["estimate"].iloc[0]
    assert decimal(peak) in values["table.recall.curves"]
    assert values["table.recall.audit"].count("tiny") == 3 and values["table.recall.sources"].count(r"\\") > 6


def test_the_section_types_no_number(root: Path):
    text = (root / "paper/recall.tex").read_text(encoding="utf-8")
    assert list(typed_numbers(text)) == []
    assert list(typed_numbers(text + "\nIt is 0.93.\n"))  # twin: a part of a document is read at all
    asked = set(re.findall(r"\\says\{([^}]*)\}", text))
    assert asked == {claim.name for claim in CLAIMS}


def test_settings_that_cannot_work_are_refused():
    fine = {"user": "{subject} {relation}", "lead": ""}
    for template, sentence in (
        (None, "templates are needed"),
        (fine | {"user": "{subject}"}, "relation} once"),
        (fine | {"separator": "("}, "not a regular expression"),
        (fine | {"system": "x", "chat": False}, "chat: true"),
    ):
        with pytest.raises(ValueError, match=sentence):
            Recall.model_validate({"templates": {"t": template} if template else {}})
    assert Recall.model_validate({"templates": {"t": fine}}).tracing == Tracing()
