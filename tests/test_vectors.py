"""The study of instruction vectors: a planted case, its statistics, and the published file format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from levelt.config import Contrast, ContrastFile, ContrastWorld, Statistics, Vectors
from levelt.engine.frozen import Freezer
from levelt.files import InputError
from levelt.models.anatomy import locate
from levelt.models.loading import Decoder
from levelt.studies.vectors.cases import Case, behaviour, cases_of
from levelt.studies.vectors.circuits import circuits_table, compare, exchange_test, head_maps, robustness_table
from levelt.studies.vectors.contrasts import from_file, from_world
from levelt.studies.vectors.patching import interaction_table, patch_case, patching_table, summary_table
from levelt.studies.vectors.prompts import Writer
from levelt.studies.vectors.separability import instruction_vectors, separability_table
from levelt.studies.vectors.tracing import paths_table, sums_table, trace_case
from models_local import END, tiny
from planted import ANSWERS, NOUNS, QUERIES, planted

STATISTICS = Statistics(draws=500)
WORDINGS = ["{noun} ?", "{noun} {noun} ?", "S {noun} ?", ". {noun} ?", "{noun} {noun} {noun} ?"]
PLANTED = Contrast(
    source=ContrastWorld(name="planted", wordings=WORDINGS),
    full="S {instruction} {query} :",
    short_prompt="S {query} :",
    filler_query="S {filler} {query} :",
    filler=".",
    answer=" {answer}",
    chat=False,
)


def planted_case(decoder: Decoder, **changes) -> tuple[Case, Vectors]:
    settings = Vectors(
        tasks={"planted": PLANTED}, receivers=["filler_query"], tokens="tuples", traced=8, rank=1, **changes
    )
    queries = pd.DataFrame(
        [
            ("planted", query, noun, ANSWERS[side][index])
            for side, noun in enumerate(NOUNS)
            for index, query in enumerate(QUERIES)
        ],
        columns=["task", "query", "instruction_id", "answer"],
    )
    instructions = pd.DataFrame(
        [("planted", noun, at, text.replace("{noun}", noun)) for noun in NOUNS for at, text in enumerate(WORDINGS)],
        columns=["task", "instruction_id", "wording", "instruction"],
    )
    return cases_of(decoder, "planted", queries, instructions, settings, 0)[0], settings


@pytest.mark.parametrize("reads", [2, 3])
def test_the_planted_vector_its_layers_and_heads_are_found(reads: int):
    """And nothing else: which token, behind which layers, which head for which instruction; moved with the plant."""
    decoder = planted(reads)
    case, settings = planted_case(decoder)
    answered = behaviour(decoder, [case], 4096)
    assert answered["correct"].all() and not answered["other"].any()

    effects = patch_case(decoder, case, settings, 4096)
    table = patching_table(effects, STATISTICS, 0)
    means = table[table["measure"] == "specific"].set_index(["instruction_id", "token", "first", "second"])["mean"]
    full = -means[NOUNS[0], 0, reads + 1, 0] + means[NOUNS[0], 0, 1, 0]
    assert full > 5
    for (_, token, first, second), value in means.items():
        holds = token == 0 and (first < reads or 0 < second < reads)
        assert abs(value - (full if holds else 0.0)) < 0.05 * full, (token, first, second)

    pairs = interaction_table(effects, STATISTICS, 10, 0)
    pairs = pairs[pairs["token"] == 0]
    if reads == 2:  # one layer holds it: it adds up with layers that do nothing (exactly, so that nothing is tested)
        assert (pairs["interaction"].abs() < 0.05 * full).all() and not (pairs["p_holm"] < 0.05).any()
    else:  # two layers hold the same: together they do what one does
        twice = pairs[(pairs["first"] == 1) & (pairs["second"] == 2)]
        assert (twice["interaction"] / -twice["effect"]).between(0.9, 1.1).all()
    summary = summary_table(effects, STATISTICS, 0).set_index(["task", "quantity"])
    assert summary.loc[("all", "last_minus_other"), "ci_low"] > 1

    traced = trace_case(decoder, Freezer(decoder), case, settings)
    assert sums_table(traced.sums).set_index("mode").loc["exact", "error"] < 1e-4
    maps = head_maps(traced.heads, ["planted", "exact", 1, "query", "flow"])
    for side, noun in enumerate(NOUNS):
        expected = np.zeros((reads + 1, 2))
        expected[reads, side] = 1.0
        assert np.allclose(maps[noun, 0], expected, atol=1e-3)
    circuits = circuits_table(traced.heads, STATISTICS, 0)
    query = circuits[(circuits["source"] == "query") & (circuits["measure"] == "flow") & (circuits["mode"] == "exact")]
    distances = query[query["keys"] == 1].pivot(index="comparison", columns="layer", values="distance")
    assert np.allclose(distances.loc["instructions"], [0.0] * reads + [1.0], atol=1e-3)
    assert distances.loc[["other_queries", "rephrased"]].to_numpy().max() < 1e-3
    last = query[(query["comparison"] == "instructions") & (query["layer"] == reads + 1) & (query["keys"] == 1)]
    assert float(last["p_holm"].iloc[0]) < 0.05
    paths = paths_table(traced.tokens, STATISTICS, 0)
    main = (paths["mode"] == "exact") & (paths["keys"] == 1) & (paths["wording"] == 0) & (paths["measure"] == "total")
    carried = paths[main & (paths["mean"].abs() > 0.01 * full)]  # ranks tie here: most paths put nothing into any logit
    assert set(carried["group"]) == {"query"}


def test_planted_vectors_are_separable_from_the_layer_that_makes_them_on():
    decoder = planted()
    case, settings = planted_case(decoder)
    table = separability_table(*instruction_vectors(decoder, [case]), settings, STATISTICS, 0)
    held_out = table[(table["split"] == "held_out") & (table["labels"] == "true")]
    accuracy = held_out.pivot(index="method", columns="layer", values="accuracy")
    assert (accuracy[[1, 2, 3]] == 1).all(axis=None) and (accuracy[0] <= 0.5).all()


# --- separability ---------------------------------------------------------------------------------------------------


def test_in_sample_separation_proves_nothing():
    """Noise in more dimensions than rows: LDA separates it in sample, whatever the labels, and not out of sample."""
    drawn = np.random.default_rng(0)
    rows = pd.DataFrame(
        [("task", side, wording) for side in "abcd" for wording in range(12)],
        columns=["task", "instruction_id", "wording"],
    )
    settings = Vectors(tasks={"planted": PLANTED})
    noise = drawn.standard_normal((48, 2, 64))
    table = separability_table(rows, noise, settings, STATISTICS, 0).set_index(["method", "split", "labels", "layer"])
    assert table.loc[("lda", "in_sample", "true", 0), "accuracy"] > 0.9
    assert table.loc[("lda", "in_sample", "shuffled", 0), "accuracy"] > 0.9
    # four classes by chance: a quarter; 48 rows have a standard error of 0.06
    assert all(table.loc[(method, "held_out", "true", 0), "accuracy"] < 0.45 for method in ("lda", "logistic"))
    apart = noise + 3 * np.eye(64)[rows["instruction_id"].map(dict(zip("abcd", range(4), strict=True)))][:, None]
    found = separability_table(rows, apart, settings, STATISTICS, 0).set_index(["method", "split", "labels", "layer"])
    assert found.loc[("logistic", "held_out", "true", 1), "accuracy"] > 0.6
    assert found.loc[("logistic", "held_out", "shuffled", 1), "accuracy"] < 0.45


# --- interaction ----------------------------------------------------------------------------------------------------


def made_effects(together: float, count: int = 40, seed: int = 0) -> pd.DataFrame:
    """Three layers whose pair (1, 2) does more than its parts by ``together``; (1, 3) and (2, 3) add up, with noise."""
    drawn = np.random.default_rng(seed)
    alone = {layer: drawn.normal(1.0, 0.5, count) for layer in (1, 2, 3)}
    rows = []
    for cell in [(1,), (2,), (3,), (1, 2), (1, 3), (2, 3)]:
        values = sum(alone[layer] for layer in cell)
        if len(cell) == 2:
            values = values + drawn.normal(together if cell == (1, 2) else 0.0, 0.5, count)
        layers = [*cell, 0, 0][:3]
        rows += [(*layers, sample, value) for sample, value in enumerate(values)]
    table = pd.DataFrame(rows, columns=["first", "second", "third", "sample", "effect"])
    return table.assign(task="t", instruction_id="i", receiver="query", token=0, other_effect=0.0)


def test_interaction_finds_what_is_more_than_a_sum():
    table = interaction_table(made_effects(1.0), STATISTICS, 2, 0).set_index(["first", "second"])
    assert table.loc[(1, 2), "p_holm"] < 0.01 and table.loc[(1, 2), "ci_low"] > 0.5
    assert table.loc[(1, 2), "p_selected"] < 0.05 and table["selected"].sum() == 2
    assert (table.loc[[(1, 3), (2, 3)], "p_holm"] > 0.05).all()
    assert table.loc[(1, 2), "interaction"] == pytest.approx(
        table.loc[(1, 2), "effect"] - table.loc[(1, 2), "sum_of_singles"]
    )
    # redundant layers are no evidence, however strong
    assert (interaction_table(made_effects(-1.0), STATISTICS, 2, 0)["p"].to_numpy()[0]) > 0.99


def test_the_released_test_finds_superadditivity_in_anything():
    """It compares truth values with 50: significant where layers add up exactly in the mean, and where they cancel."""
    for together in (0.0, -1.0):
        released = interaction_table(made_effects(together), STATISTICS, 2, 0)
        assert (released["released_p"] < 1e-10).all()
    found = [
        (interaction_table(made_effects(0.0, seed=seed), STATISTICS, 2, 0)["p_holm"] < 0.05).any() for seed in range(20)
    ]
    assert sum(found) <= 4  # 5 % of 20 families, and chance (P(more than 4) < 0.003)


def test_three_layers_are_judged_by_inclusion_and_exclusion():
    effects = made_effects(0.5)
    wide = effects.pivot(index="sample", columns=["first", "second"], values="effect")
    triple = effects[(effects["first"] == 1) & (effects["second"] == 0)].copy()
    pairs = wide[1, 2] + wide[1, 3] + wide[2, 3]
    singles = wide[1, 0] + wide[2, 0] + wide[3, 0]
    triple["effect"] = (pairs - singles + 2.0).to_numpy()
    triple[["second", "third"]] = [2, 3]
    table = interaction_table(pd.concat([effects, triple]), STATISTICS, 2, 0)
    assert table.loc[table["third"] == 3, "interaction"].to_numpy() == pytest.approx([2.0])


# --- circuits -------------------------------------------------------------------------------------------------------


def made_maps(shift: float, count: int = 24, seed: int = 0) -> dict[tuple[str, int], np.ndarray]:
    drawn = np.random.default_rng(seed)
    maps = {(name, wording): drawn.uniform(0.2, 0.6, (count, 3, 4)) for name in "ab" for wording in (0, 1)}
    for wording in (0, 1):
        maps["b", wording][:, 2, 1] += shift
    return maps


def test_distances_stand_out_of_their_nulls_where_heads_differ_only():
    found = compare(made_maps(0.4), 50, np.random.default_rng(1))
    means = {name: values.mean(0) for name, values in found.items()}
    assert means["instructions"][2] > 3 * max(means["other_queries"][2], means["rephrased"][2])
    assert means["instructions"][0] < 1.5 * means["other_queries"][0]
    for shift, differs in ((0.4, True), (0.0, False)):
        maps = made_maps(shift)
        p = exchange_test(maps["a", 0], maps["b", 0], 1000, np.random.default_rng(2))
        assert (p[2] < 0.01) == differs and p[0] > 0.01


def test_robustness_compares_one_key_with_two():
    heads = pd.DataFrame(
        [
            ("t", "i", 0, "exact", "query", keys, "activity", layer, head, sample, value + 0.01 * keys)
            for keys in (1, 2)
            for layer in (1, 2)
            for head, value in enumerate((0.0, 0.4, 0.8))
            for sample in range(3)
        ],
        columns=[
            "task",
            "instruction_id",
            "wording",
            "mode",
            "source",
            "keys",
            "measure",
            "layer",
            "head",
            "sample",
            "value",
        ],
    )
    row = robustness_table(heads).iloc[0]
    assert row["jaccard"] == 1 and row["spearman"] > 0.8
    heads.loc[heads["keys"] == 2, "value"] = 0.8 - heads.loc[heads["keys"] == 2, "value"]
    assert robustness_table(heads).iloc[0]["spearman"] < 0


# --- input ----------------------------------------------------------------------------------------------------------

FULL = "{instruction} Adjective: {query}. Answer:"
ADJECTIVES = {
    "adj_comp": "Given an adjective, state its comparative form.",
    "adj_ant": "Given an adjective, state its antonym.",
}


def test_the_published_files_run_on_any_checkpoint(published: Path):
    """Real queries and rephrasings, a tiny random model of another family, bare text: every table has rows."""
    folder = published / "instruction_vectors"
    source = ContrastFile(
        path=str(folder / "adjectives.csv"),
        instructions=ADJECTIVES,
        rephrasings={name: str(folder / f"{name}_rephrased.csv") for name in ADJECTIVES},
    )
    contrast = Contrast(
        source=source,
        full=FULL,
        short_prompt="Adjective: {query}. Answer:",
        filler_query="{filler} {query}",
        filler=".",
        answer=" {answer}",
        chat=False,
    )
    queries, instructions, report = from_file("adjectives", source)
    assert report["rows"] == 142 and report["kept"] == 139 and sorted(report["repeated"]) == ["quiet", "safe", "short"]
    assert len(queries) == 2 * 139 and (instructions.groupby("instruction_id").size() >= 200).all()
    instructions = instructions[instructions["wording"] < 5]
    spoken = byte_level(
        [f" {word}" for word in (*queries["query"], *queries["answer"])] + list(instructions["instruction"])
    )
    model = tiny("olmo2", attention="eager", max_position_embeddings=512, vocab_size=len(spoken))
    decoder = Decoder(model, locate(model), spoken, (END,))
    settings = Vectors(tasks={"adjectives": contrast}, queries=10, traced=4, most_paths=2000)
    cases = cases_of(decoder, "tiny", queries, instructions, settings, 0)
    for side in cases[0].sides:
        prompt = side.prompts[0]
        last = prompt.groups["instruction"]
        assert prompt.text.startswith(side.wordings[0] + " Adjective: ")
        assert decoder.tokenizer.decode([prompt.input_ids[last.stop - 1]]) == "."
    effects = patch_case(decoder, cases[0], settings, 4096)
    assert set(effects["receiver"]) == {"filler_query", "query", "short_prompt"} and effects["token"].min() < -10
    assert effects.groupby(["receiver", "instruction_id"])["sample"].nunique().min() == len(cases[0].queries) >= 8
    table = separability_table(*instruction_vectors(decoder, cases), settings, STATISTICS, 0)
    assert set(table["layer"]) == {-1, 0, 1, 2, 3} and table["n"].iloc[0] == 10
    assert len(behaviour(decoder, cases, 4096)) == 4 * len(cases[0].queries)
    traced = trace_case(decoder, Freezer(decoder), cases[0], settings)
    exact = sums_table(traced.sums).set_index("mode")["error"]
    assert exact["exact"] < 1e-4 < exact["paper"]
    lengths = [len(prompt.input_ids) for side in cases[0].sides for prompt in side.prompts[:4]]
    used = traced.tokens.query("mode == 'exact' and wording == 0 and keys == 1")
    assert len(used) == sum(lengths) and used["total"].notna().all()
    assert set(paths_table(traced.tokens, STATISTICS, 0)["measure"]) >= {"total"} and len(traced.heads)


def byte_level(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE, which keeps the blank in front of a word with it, as real ones do."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")


def test_receivers_are_patched_where_they_say():
    decoder = planted()
    writer = Writer(decoder.tokenizer, "planted", PLANTED)
    for kind, text, position in (
        ("filler_query", "S . q3 :", 1),
        ("query", "q3", 0),
        ("short_prompt", "S q3 :", 0),
    ):
        prompt, at = writer.receiver(kind, "q3")
        assert (prompt.text, at) == (text, position)
    full = writer.full("kind ?", "q3")
    assert full.text == "S kind ? q3 :" and full.groups["instruction"].stop == 3
    assert writer.answer_id(full, "k3") == decoder.tokenizer.convert_tokens_to_ids("k3")


def test_bad_input_is_refused(tmp_path: Path):
    path = tmp_path / "pairs.csv"

    def read(text: str, **changes) -> None:
        path.write_text(text, encoding="utf-8")
        from_file("mine", ContrastFile(path=str(path), instructions={"a": "Say a.", "b": "Say b."}, **changes))

    for text, sentence in (
        ("query,a\nbig,bigger\n", "column b is missing; found query, a"),
        ("query,a,b\nbig,,small\n", "row 2: `a` is empty"),
        ("query,a,b\nbig,same,same\n", "no query with two different answers"),
    ):
        with pytest.raises(InputError, match=sentence):
            read(text)
    with pytest.raises(InputError, match="no such file"):
        from_file("mine", ContrastFile(path=str(tmp_path / "none.csv"), instructions={"a": "x", "b": "y"}))
    pairs = pd.DataFrame({"task": ["other"], "text": ["x"], "question_1": ["what is the kind?"], "answer_1": ["y"]})
    with pytest.raises(InputError, match="no contrastive task 'planted'"):
        from_world(pairs, "planted", ContrastWorld(name="planted"))
    with pytest.raises(InputError, match="which is not the first wording"):
        from_world(pairs, "mine", ContrastWorld(name="other", wordings=["name the {noun}.", "{noun}?"]))
    decoder = planted()
    with pytest.raises(InputError, match="has no chat template"):
        Writer(decoder.tokenizer, "planted", PLANTED.model_copy(update={"chat": True}))
