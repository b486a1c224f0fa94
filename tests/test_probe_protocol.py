"""What surrounds the solver: nested penalties, companions, description length, controls, the released trainer."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import Ridge
from torch import nn

import synthetic
from levelt.cli import main
from levelt.config import Controls, Probes
from levelt.files import sha256, write_arrays, write_parquet
from levelt.probes import released, solver
from levelt.probes.companions import companions, companions_out_of_fold
from levelt.probes.control_labels import bag, permuted, random_by_text, random_by_words
from levelt.probes.curves import group_end, online_code, training_subsets
from levelt.probes.folds import grouped_folds
from levelt.probes.grid import out_of_fold
from levelt.probes.hidden import hidden_out_of_fold
from levelt.probes.selection import out_of_fold_chosen
from levelt.probes.solver import fit, standardise
from levelt.studies.controls import COLUMNS, controls_task
from levelt.studies.information import TaskFolds, labels_of

Floats = npt.NDArray[np.float64]


def planted(pairs: int = 100, width: int = 8, shift: float = 2.0) -> tuple[Floats, Any, Any]:
    """Two layers, the second with the label in it: activations, labels, groups."""
    random = np.random.default_rng(0)
    labels, groups = np.tile([0, 1], pairs), np.repeat(np.arange(pairs), 2)
    activations = random.normal(size=(2 * pairs, 2, width))
    activations[:, 1, 0] += shift * labels
    return activations, labels, groups


def test_nested_penalty_is_the_best_of_the_inner_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recomputed one probe at a time; and the rows tested have no say in it.

    Probes are finished at 1e-9 here: those of a batch go on until all are finished, so that the labels of one show in
    another within what is certified.
    """
    monkeypatch.setattr(solver, "ACCURACY", 1e-9)
    activations, labels, groups = planted(40)
    folds = grouped_folds(labels, groups, 4, np.random.default_rng(1))
    grid = [1e-3, 1e-1, 10.0]
    chosen = out_of_fold_chosen(activations, labels[None], folds[None], penalties=grid)
    for layer in range(2):
        for outer in range(4):
            losses = []
            for penalty in grid:
                loss = 0.0
                for inner in set(range(4)) - {outer}:
                    train, test = (folds != outer) & (folds != inner), folds == inner
                    logits = fit(activations[train, layer], labels[train], penalty).logits(activations[test, layer])
                    loss += np.logaddexp(0, -np.where(labels[test] == 1, 1, -1) * logits).sum()
                losses.append(loss)
            assert chosen.penalties[0, 0, outer, layer] == grid[int(np.argmin(losses))]
    assert set(np.unique(chosen.penalties)) != {grid[0]}
    changed = labels.copy()
    changed[folds == 0] = 1 - changed[folds == 0]
    again = out_of_fold_chosen(activations, changed[None], folds[None], penalties=grid)
    assert (again.penalties[:, :, 0] == chosen.penalties[:, :, 0]).all()
    np.testing.assert_allclose(again.scores.logits[:, :, folds == 0], chosen.scores.logits[:, :, folds == 0])
    with pytest.raises(ValueError, match="3 folds"):
        out_of_fold_chosen(activations, labels[None], folds[None] % 2, penalties=grid)


def test_one_penalty_to_choose_from_is_that_penalty() -> None:
    activations, labels, groups = planted(30)
    folds = grouped_folds(labels, groups, 3, np.random.default_rng(1))[None]
    chosen = out_of_fold_chosen(activations, labels[None], folds, penalties=[0.02]).scores
    fixed = out_of_fold(activations, labels[None], folds, penalty=0.02)
    np.testing.assert_allclose(chosen.logits, fixed.logits, atol=1e-5)
    other = out_of_fold(activations, labels[None], folds, penalty=0.03)
    assert not np.allclose(chosen.logits, other.logits, atol=1e-3)


@pytest.mark.parametrize("width", [6, 90])
def test_companions_equal_their_oracles(width: int) -> None:
    """Narrow and wide (where they are computed in the row space)."""
    random = np.random.default_rng(0)
    features = random.normal(size=(70, width)) * np.geomspace(0.1, 10, width)
    labels = (features[:, 0] / features[:, 0].std() + random.normal(size=70) > 0).astype(np.int64)
    trained = np.arange(70) < 50
    share = trained[None] / trained.sum()
    design = standardise(features.T, share)[0][0]
    found = companions(design, labels[None], trained, 0.1)
    rows, truth = design.T[trained], labels[trained]

    ridge = Ridge(alpha=0.1 * 50).fit(rows, np.where(truth == 1, 1.0, -1.0))
    np.testing.assert_allclose(found["ridge"][0], ridge.predict(design.T), rtol=1e-6, atol=1e-8)
    assert not np.allclose(found["ridge"][0], Ridge(alpha=0.2 * 50).fit(rows, truth * 2.0 - 1).predict(design.T))

    means = np.stack([rows[truth == side].mean(axis=0) for side in (0, 1)])
    covariance, _ = ledoit_wolf(rows - means[truth], assume_centered=True)
    direction = np.linalg.solve(covariance, means[1] - means[0])
    expected = (design.T - means.mean(axis=0)) @ direction + np.log((truth == 1).sum() / (truth == 0).sum())
    np.testing.assert_allclose(found["lda"][0], expected, rtol=1e-6, atol=1e-8)
    expected = (design.T - means.mean(axis=0)) @ (means[1] - means[0])
    np.testing.assert_allclose(found["mean_difference"][0], expected, rtol=1e-6, atol=1e-8)


def test_companions_and_hidden_layers_find_the_planted_layer() -> None:
    activations, labels, groups = planted()
    folds = grouped_folds(labels, groups, 4, np.random.default_rng(1))[None]
    scores = {name: s[0] for name, s in companions_out_of_fold(activations, labels[None], folds, 0.01).items()}
    scores["hidden"] = hidden_out_of_fold(activations, labels, folds, 1, 0.1, np.random.default_rng(0))
    for name, logits in scores.items():
        accuracy = ((logits[0] > 0) == labels[:, None]).mean(axis=0)
        assert accuracy[1] > 0.75 and abs(accuracy[0] - 0.5) < 0.15, name


def test_online_code_counts_bits() -> None:
    """Noise costs at least its uniform code, a planted label less; recomputed block by block for one layer."""
    activations, labels, groups = planted()
    fractions = [0.1, 0.3, 1.0]
    code = online_code(activations, labels[None], groups, fractions, np.random.default_rng(3), penalty=0.05)
    assert code.uniform_bits == 200
    assert code.bits[0, 0] > 195 and code.bits[0, 1] < 150
    np.testing.assert_allclose(code.compression, 200 / code.bits)
    place = np.random.default_rng(3).permutation(100)
    order = np.argsort(place[groups], kind="stable")
    bits = 20.0
    for start, end in ((20, 60), (60, 200)):
        known, new = order[:start], order[start:end]
        logits = fit(activations[known, 1], labels[known], 0.05).logits(activations[new, 1])
        right = 1 / (1 + np.exp(-np.where(labels[new] == 1, 1, -1) * logits))
        bits += -np.log2(right).sum()
    assert code.bits[0, 1] == pytest.approx(bits, rel=1e-5)


def test_online_code_of_a_class_not_yet_seen_is_uniform() -> None:
    activations, labels, _ = planted(20)
    late = np.zeros(40, dtype=int)
    order = np.random.default_rng(0).permutation(40)
    late[np.argsort(order)[-3:]] = 1  # the last three to be sent
    both = np.stack([labels, late])
    code = online_code(activations, both, np.arange(40), [0.25, 0.5, 1.0], np.random.default_rng(0), penalty=0.1)
    assert code.bits[1] == pytest.approx(40)
    alone = online_code(activations, both[:1], np.arange(40), [0.25, 0.5, 1.0], np.random.default_rng(0), penalty=0.1)
    np.testing.assert_allclose(code.bits[0], alone.bits[0], rtol=1e-6)


def test_subsets_are_nested_whole_groups() -> None:
    groups = np.repeat(np.arange(30), 2)
    trained = np.ones((3, 60), dtype=bool)
    trained[:, :20] = np.arange(20) // 2 % 3 != np.arange(3)[:, None]
    sizes = [training_subsets(trained, groups, size, np.random.default_rng(0)) for size in (9, 21, 60)]
    for small, large in itertools.pairwise(sizes):
        assert (small <= large).all()
    assert (sizes[0].sum(axis=1) == 10).all()
    assert (sizes[2] == trained).all()
    assert (sizes[0].reshape(3, 30, 2).min(axis=2) == sizes[0].reshape(3, 30, 2).max(axis=2)).all()
    assert group_end(np.array([5, 5, 7]), 1) == 2 and group_end(np.array([5, 5, 7]), 0) == 0


def test_random_labels() -> None:
    random = np.random.default_rng(0)
    texts = [(1, 2), (3, 4), (1, 2), (5, 1), (5, 6), (3, 4)] * 5
    labels = random_by_text(texts, random)
    assert all(labels[i] == labels[j] for i in range(30) for j in range(30) if texts[i] == texts[j])
    assert set(labels) == {0, 1}
    by_words = random_by_words([tuple(random.integers(0, 9, 6)) for _ in range(80)], random)
    assert 0.3 < by_words.mean() < 0.6
    groups = np.repeat(np.arange(200), 2)
    pairs = np.tile([0, 1], 200)
    dealt = permuted(pairs, groups, random)
    assert (dealt.reshape(200, 2).sum(axis=1) == 1).all() and 0.4 < (dealt == pairs).mean() < 0.6
    same = np.repeat([0, 1], 200)
    dealt = permuted(same, groups, random)
    assert dealt.sum() == same.sum() and 0.4 < (dealt == same).mean() < 0.6
    np.testing.assert_array_equal(bag([(3, 3, 9), (9,)]), [[2, 1], [0, 1]])


def test_random_words_can_be_learned_from_words_and_random_text_cannot() -> None:
    random = np.random.default_rng(0)
    texts = [tuple(random.integers(0, 20, 8)) for _ in range(400)]
    labels = np.stack([random_by_words(texts, random), random_by_text(texts, random)])
    folds = grouped_folds(labels[0], np.arange(400), 4, random)
    logits = out_of_fold(bag(texts)[:, None], labels, folds[None], penalty=0.01).logits[:, 0, :, 0]
    words, text = ((logits > 0) == labels).mean(axis=1)
    assert words > 0.9 and abs(text - 0.5) < 0.1  # 400 rows: standard error 0.025


def with_tokens(table: pd.DataFrame) -> pd.DataFrame:
    """Prompts that also have tokens and a sample."""
    random = np.random.default_rng(0)
    group = [{"name": "sample", "start": 2, "stop": 8}]
    return table.assign(input_ids=[random.integers(0, 30, 10) for _ in range(len(table))], groups=[group] * len(table))


def test_controls_of_a_task() -> None:
    table = with_tokens(synthetic.prompts("t", 40, 0))
    arrays = synthetic.activations(table, True, 0)
    settings = Probes(folds=4, controls=Controls(draws=2, sizes=[20, 40, 500]))
    found = controls_task(table, arrays, settings, 0, "t")
    assert list(found.columns) == COLUMNS
    assert set(found["condition"]) == {"instruction_first"}
    kinds = {"random_text", "random_words", "permuted", "ridge", "lda", "mean_difference", "online_code", "size"}
    assert set(found["kind"]) == kinds | {"bag_of_sample", "bag_of_prompt"}
    label = found[(found["target"] == "label") & (found["role"] == "sample") & (found["layer"] == 3)]
    label = label.set_index("kind")
    assert label.loc["lda", "accuracy"] > 0.75
    assert label.loc["online_code", "compression"] > 1.2
    sizes = label.loc["size"]
    assert sizes["train_rows"].tolist() == [20, 40, 60] and (sizes["n"] == 80).all()
    chance = found[found["kind"].isin(["random_text", "permuted", "bag_of_sample"])]
    assert abs(chance["accuracy"].mean() - 0.5) < 0.05
    random_text = found[(found["kind"] == "random_text") & (found["role"] == "sample") & (found["layer"] == 3)]
    assert (random_text["selectivity"] > 0.15).all() and set(random_text["draw"]) == {0, 1}
    again = controls_task(table, arrays, settings, 0, "t")
    pd.testing.assert_frame_equal(found, again)
    none = controls_task(table, arrays, settings.model_copy(update={"controls": Controls(conditions=[])}), 0, "t")
    assert none.empty and list(none.columns) == COLUMNS


def test_one_job_probes_several_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each task's files are what its own job would have written; what is missing is said before anything is probed."""
    settings = {"seed": 3, "probes": Probes(folds=2).model_dump(), "statistics": synthetic.STATISTICS.model_dump()}
    conditions: list[str] = []
    for seed, task in enumerate(("one", "two")):
        table = with_tokens(synthetic.prompts(task, 12, seed))
        write_parquet(tmp_path / f"{task}.parquet", table)
        for name, arrays in synthetic.activations(table, True, seed).items():
            conditions = list(dict.fromkeys([*conditions, name]))
            write_arrays(tmp_path / task / f"{name}.safetensors", arrays, {})

    def probe(out: str, *tasks: str, prompts: tuple[str, ...] | None = None) -> int:
        files = [str(tmp_path / f"{task}.parquet") for task in prompts or tasks]
        named = ["--settings", json.dumps(settings), "--model", "m", "--activations", str(tmp_path)]
        to = ["--probes", str(tmp_path / out), "--hits", str(tmp_path / out / "hits")]
        return main(["probe", *named, "--tasks", *tasks, "--conditions", *conditions, "--prompts", *files, *to])

    assert probe("both", "one", "two") == 0
    assert probe("first", "one") == probe("second", "two") == 0
    for out, task in (("first", "one"), ("second", "two")):
        for name in (f"{task}.parquet", f"{task}.controls.parquet", f"hits/{task}.parquet"):
            assert sha256(tmp_path / "both" / name) == sha256(tmp_path / out / name)
    assert sha256(tmp_path / "both/one.parquet") != sha256(tmp_path / "both/two.parquet")
    assert probe("none", "one", "two", prompts=("one",)) == 2
    assert "2 tasks and 1 prompts files" in capsys.readouterr().err
    conditions.append("nothing")
    assert probe("none", "one") == 2 and not (tmp_path / "none").exists()
    assert "nothing.safetensors: no such activations" in capsys.readouterr().err


def test_hidden_layers_are_an_option() -> None:
    table = with_tokens(synthetic.prompts("t", 12, 0))
    settings = Probes(folds=2, hidden=[1], roles=["output"], targets=["answer"])
    found = controls_task(table, synthetic.activations(table, True, 0), settings, 0, "t")
    assert found[found["kind"] == "hidden_1"]["accuracy"].min() > 0.75


def test_folds_of_a_task_are_shared_by_its_conditions() -> None:
    table = synthetic.prompts("t", 20, 0)
    folds = TaskFolds(table, Probes(folds=4), 0, "t")
    parts = dict(list(table.groupby("condition", sort=False)))
    assigned = [
        pd.Series(folds.of(part, labels_of(part, {}, ["label"]))[0], part["sample_id"]).sort_index()
        for part in parts.values()
    ]
    for other in assigned[1:]:
        pd.testing.assert_series_equal(assigned[0], other)
    some = parts["sample_first"].iloc[4:]
    assert (folds.of(some, {})[0] == folds.of(parts["sample_first"], {})[0][4:]).all()


def test_appended_answer_is_a_target_where_it_was_appended() -> None:
    table = synthetic.prompts("t", 10, 0).query("condition == 'instruction_first'")
    drawn = np.tile([0, 1, 1, 0], 5).astype(np.int8)
    labels = labels_of(table, {"appended": drawn}, ["label", "appended"])
    assert (labels["appended"] == (drawn == 0)).all(), "1 is the first option, as for the other targets"
    assert list(labels_of(table, {}, ["label", "appended"])) == ["label"]


# --- the released trainer -------------------------------------------------------------------------------------------


def test_released_trainer_equals_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Same start, same batches, no dropout: torch's linear layer, double softmax, Adam and schedule give the same."""
    random = np.random.default_rng(0)
    features, labels = random.normal(size=(1, 50, 6)), random.integers(0, 2, 50)
    development, truth = random.normal(size=(1, 20, 6)), random.integers(0, 2, 20)
    monkeypatch.setattr(released, "PATIENCE", 100)
    found = released.train(features, labels, development, truth, np.random.default_rng(5), dropout=0, epochs=4)

    again = np.random.default_rng(5)
    layer = nn.Linear(6, 2, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(again.uniform(-(6**-0.5), 6**-0.5, (1, 6, 2))[0].T))
        layer.bias.copy_(torch.tensor(again.uniform(-(6**-0.5), 6**-0.5, (1, 1, 2))[0, 0]))
    adam = torch.optim.Adam(layer.parameters(), lr=1e-3)
    steps, warm = 16, 2
    schedule = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda step: step / warm if step < warm else (steps - step) / (steps - warm)
    )
    softmax, criterion = nn.Softmax(dim=1), nn.CrossEntropyLoss()
    best, least = layer.weight.detach().clone(), np.inf
    for _ in range(4):
        order = again.permutation(50)
        for start in range(0, 50, 16):
            rows = order[start : start + 16]
            adam.zero_grad()
            criterion(softmax(layer(torch.tensor(features[0, rows]))), torch.tensor(labels[rows])).backward()
            adam.step()
            schedule.step()
        with torch.no_grad():
            value = float(criterion(softmax(layer(torch.tensor(development[0]))), torch.tensor(truth)))
        assert value == pytest.approx(
            float(
                released.loss(
                    development @ layer.weight.detach().numpy().T[None] + layer.bias.detach().numpy(), np.eye(2)[truth]
                )[0]
            )
        )
        if value < least:
            best, least = layer.weight.detach().clone(), value
    np.testing.assert_allclose(found.weights[0].T, best.numpy(), rtol=1e-9, atol=1e-12)


def test_double_softmax_loss_is_bounded_as_measured() -> None:
    """Methods/1 A6: margins -20, -1, 0, 20 give 1.313, .951, .693, .313."""
    logits = np.array([[[margin, 0.0]] for margin in (-20, -1, 0, 20)])
    found = released.loss(logits, np.array([[[1.0, 0.0]]] * 4))
    np.testing.assert_allclose(found, [1.313, 0.951, 0.693, 0.313], atol=5e-4)


def test_released_out_of_fold() -> None:
    activations, labels, _ = planted(400, shift=3.0)  # its few and small steps need many rows
    folds = released.quarters(800)
    assert (np.diff(folds) >= 0).all() and np.bincount(folds).tolist() == [200] * 4
    said = released.released_out_of_fold(activations, labels, folds, 2, np.random.default_rng(0))
    assert said.shape == (2, 800, 2) and set(np.unique(said)) == {0, 1}
    accuracy = (said == labels[None, :, None]).mean(axis=(0, 1))
    assert accuracy[1] > 0.7 and abs(accuracy[0] - 0.5) < 0.12
    assert released.f1_of_second_class([0, 0, 1, 1, 1], [0, 1, 1, 1, 0]) == pytest.approx(2 / 3)


def test_companions_stand_rows_of_few_distinct_values() -> None:
    """The position before the sample has one vector per question: within a class nothing, or too little, varies."""
    random = np.random.default_rng(4)
    kinds = random.normal(size=(3, 8))
    which = np.arange(90) % 3
    labels = random.integers(0, 2, 90)
    design = kinds[which].T
    trained = np.arange(90) < 60
    found = companions(design, labels[None], trained, 0.1)
    assert all(np.isfinite(scores).all() for scores in found.values())
