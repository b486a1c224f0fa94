"""The probe solver against scikit-learn, its invariances, its certificate, and the folds."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from levelt.probes import blocks, grid, solver, systems
from levelt.probes.designs import TrainingSets, standardise
from levelt.probes.folds import FoldError, check_folds, grouped_folds
from levelt.probes.grid import out_of_fold
from levelt.probes.memory import LINE, Room, aligned
from levelt.probes.scores import auc, rates
from levelt.probes.solver import ConvergenceError, Precision, Probe, fit, fit_batch, fit_shared

Arrays = tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]


def data(rows: int, width: int, seed: int = 0) -> Arrays:
    """Features of very different scales with a planted direction."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(rows, width)) * 10.0 ** random.uniform(-3, 3, width)
    score = features[:, 0] / features[:, 0].std() + 0.7 * random.normal(size=rows)
    return features, (score > 0).astype(np.int64)


def peer(features: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], penalty: float) -> LogisticRegression:
    """scikit-learn, converged, on standardised features."""
    scaled = StandardScaler().fit_transform(features)
    return LogisticRegression(C=1 / (penalty * len(labels)), tol=1e-10, max_iter=100_000).fit(scaled, labels)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(("rows", "width"), [(300, 20), (60, 200), (320, 300)])
def test_equals_scikit_learn_converged(rows: int, width: int, classes: int) -> None:
    features, labels = data(rows, width)
    if classes == 3:
        labels = labels + (features[:, 1] > 0) * labels
    scaled = StandardScaler().fit_transform(features)
    for penalty, precision in [(0.02, "mixed"), (0.02, "float64"), (1e-4, "mixed")]:
        probe = fit(features, labels, penalty, precision=precision)  # type: ignore[arg-type]
        expected = peer(features, labels, penalty)
        weights = probe.weights * features.std(0)
        # ours are within 5e-6 of the optimum by certificate, theirs within 1e-10 / penalty in the gradient
        assert np.linalg.norm(weights - expected.coef_) <= 1e-5 * np.linalg.norm(expected.coef_)
        said = probe.logits(features)
        said = (said > 0).astype(int) if classes == 2 else said.argmax(axis=1)
        assert (said == expected.predict(scaled)).all()
        assert probe.bound <= 1e-8
        other = fit(features, labels, 1.01 * penalty).weights * features.std(0)
        assert np.linalg.norm(other - expected.coef_) > 1e-5 * np.linalg.norm(expected.coef_)


@pytest.mark.parametrize("width", [15, 250])
def test_invariances(width: int) -> None:
    """Feature scale, label names, and how often a row stands there; each with a twin that must differ."""
    features, labels = data(200, width)
    base = fit(features, labels, 0.01).logits(features)
    same = {"rtol": 1e-5, "atol": 1e-5}  # two solutions, each within 1e-6 of its optimum

    rescaled = features * np.geomspace(1e-3, 1e3, width) + 5
    np.testing.assert_allclose(fit(rescaled, labels, 0.01).logits(rescaled), base, **same)
    mixed = features.copy()
    mixed[:, 0] += features[:, 1] / features[:, 1].std() * features[:, 0].std()
    assert not np.allclose(fit(mixed, labels, 0.01).logits(mixed), base, rtol=1e-2, atol=1e-2)

    np.testing.assert_allclose(fit(features, 1 - labels, 0.01).logits(features), -base, **same)
    flipped = labels.copy()
    flipped[0] = 1 - flipped[0]
    assert not np.allclose(fit(features, 1 - flipped, 0.01).logits(features), -base, rtol=1e-2, atol=1e-2)

    doubled = fit(np.repeat(features, 2, axis=0), np.repeat(labels, 2), 0.01).logits(features)
    np.testing.assert_allclose(doubled, base, **same)
    weights = np.ones(200)
    weights[:7] = 2
    again = np.concatenate([features, features[:7]])
    repeated = fit(again, np.concatenate([labels, labels[:7]]), 0.01).logits(features)
    np.testing.assert_allclose(fit(features, labels, 0.01, weights=weights).logits(features), repeated, **same)
    assert not np.allclose(base, repeated, rtol=1e-4, atol=1e-4)


def test_a_batch_equals_its_probes_one_by_one() -> None:
    """Designs with different training rows, several problems each, narrow and wide: nothing leaks between them."""
    random = np.random.default_rng(0)
    for width in (12, 150):
        features = random.normal(size=(90, width)) * np.geomspace(0.1, 10, width)
        labels = (random.random((3, 90)) < 0.5).astype(np.int64)
        trained = (random.random((4, 90)) < 0.8).astype(float)
        designs, _, _ = standardise(features.T, trained / trained.sum(axis=1, keepdims=True))
        batch = fit_batch(designs, np.broadcast_to(labels, (4, 3, 90)), trained, 0.02)
        for design, rows in enumerate(trained > 0):
            for problem in range(3):
                alone = fit(features[rows], labels[problem, rows], 0.02).logits(features)
                np.testing.assert_allclose(batch.scores[design, problem, 0], alone, rtol=1e-5, atol=1e-5)


def test_weights_are_certified_as_near_the_optimal_ones_as_promised() -> None:
    """1e-5 of their length, whatever the bound on the loss lets through: |gradient| / penalty, from the bounds."""
    random = np.random.default_rng(0)
    features = random.normal(size=(400, 30)) @ (np.eye(30) + 0.5 * random.normal(size=(30, 30)))
    scores = features @ random.normal(size=(30, 24)) * np.geomspace(0.02, 2, 24)
    labels = (scores + random.logistic(size=scores.shape) > 0).T.astype(np.int64)
    design, _, _ = standardise(features.T, np.full((1, 400), 1 / 400))
    found = fit_batch(design, labels[None], np.ones((1, 400)), 0.01)
    distances = np.sqrt(2 * found.bounds[0] / 0.01) / np.linalg.norm(found.weights[0, :, 0], axis=1)
    assert distances.max() <= 1e-5


@pytest.mark.parametrize("classes", [2, 3])
def test_a_few_designs_at_a_time_are_the_same_designs(monkeypatch: pytest.MonkeyPatch, classes: int) -> None:
    """Tall designs are solved as many at a time as fit a cache; which share a pass must not show."""
    random = np.random.default_rng(0)
    features = random.normal(size=(3, 90, 8))
    labels = random.integers(0, classes, (3, 7, 90))
    trained = (random.random((3, 90)) < 0.8).astype(float)
    parts = [standardise(f.T, rows[None] / rows.sum())[0] for f, rows in zip(features, trained, strict=True)]
    whole = fit_batch(np.concatenate(parts), labels, trained, 0.02, classes=classes)
    one = 90 * 7 * (1 if classes == 2 else classes)
    for most in (1, one, 2 * one):
        monkeypatch.setattr(solver, "CHUNK_SCORES", most)
        found = fit_batch(np.concatenate(parts), labels, trained, 0.02, classes=classes)
        for name in ("weights", "intercepts", "scores", "bounds"):  # each within its certificate of the optimum
            np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-5, atol=1e-6)
        assert not np.allclose(found.scores, whole.scores[::-1], atol=0.1)
        if classes == 2:  # designs with scales of their own
            unlike = features * np.array([1.0, 10.0, 0.1])[:, None, None] ** np.arange(8)
            sets = (np.arange(90) % 3 != np.arange(3)[:, None]).astype(float)
            shared = fit_shared(unlike, labels, TrainingSets.of(sets, 8), 0.02)
            for design in range(3):
                alone = fit_shared(
                    unlike[design : design + 1], labels[design : design + 1], TrainingSets.of(sets, 8), 0.02
                )
                np.testing.assert_allclose(shared.scores[design], alone.scores[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["narrow", "wide", "wide, unlike", "constant in a set", "rows in no set"])
def test_sets_that_share_a_design_equal_their_probes_one_by_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What folds share must not show: each set is standardised and solved by its own rows, weights included."""
    monkeypatch.setattr(solver, "ACCURACY", 5e-7)  # what is left at the usual one shows at the row like no other
    random = np.random.default_rng(0)
    rows, width = 90, 12 if kind == "narrow" else 260
    features = random.normal(size=(rows, width)) * np.geomspace(0.1, 10, width) + 50
    if kind == "wide, unlike":
        features[0] += 100 * random.normal(size=width)  # the variances with this row are nothing like those without
    if kind == "constant in a set":
        features[:, 3] = np.arange(rows) == 0
    labels = (random.random((2, rows)) < 0.5).astype(np.int64)
    trained = np.arange(rows) % 3 != np.arange(3)[:, None]
    if kind == "rows in no set":
        trained &= np.arange(rows) < 70
    weights = trained * np.where(np.arange(rows) < 9, 2.0, 1.0)
    found = fit_shared(features[None], labels[None], TrainingSets.of(weights, width), 0.02)
    assert (found.bounds <= 1e-8).all()
    for at, used in enumerate(trained):
        for problem in range(2):
            alone = fit(features[used], labels[problem, used], 0.02, weights=weights[at, used])
            scores = found.scores[0, 2 * at + problem, 0]
            np.testing.assert_allclose(scores, alone.logits(features), rtol=1e-5, atol=2e-5)
            assert not np.allclose(found.scores[0, 2 * ((at + 1) % 3) + problem, 0], alone.logits(features), atol=0.1)


@pytest.mark.parametrize("kind", ["folds", "nested", "irregular", "constant in a set", "float64", "some at a time"])
def test_sets_in_blocks_equal_their_probes_one_by_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folds of unequal sizes, all pairs of them left out, or sets of which no blocks can be made; in a room that some
    other fit has used before."""
    monkeypatch.setattr(blocks, "FEWEST", 8)
    random = np.random.default_rng(0)
    rows, width = 120, 9
    features = random.normal(size=(3, rows, width)) * np.geomspace(0.1, 10, width) + 50
    labels = (random.random((3, 2, rows)) < 0.5).astype(np.int64)
    folds = random.permutation(np.repeat(np.arange(4), [32, 27, 30, 31]))
    trained = folds != np.arange(4)[:, None]
    if kind == "nested":
        trained = np.stack([trained[first] & trained[second] for first, second in itertools.combinations(range(4), 2)])
    if kind == "irregular":
        trained[0] &= folds != 1
    if kind == "constant in a set":
        features[:, :, 3] = folds == 2
    if kind == "some at a time":
        monkeypatch.setattr(systems, "CACHED_VALUES", 1)
        monkeypatch.setattr(solver, "CHUNK_SCORES", 2 * 4 * 2 * rows)
    monkeypatch.setattr(solver, "ACCURACY", 5e-7)
    sets = TrainingSets.of(trained.astype(float), width)
    assert (sets.blocks is None) == (kind == "irregular")
    precision: Precision = "float64" if kind == "float64" else "mixed"
    room = Room()
    before = TrainingSets.of((np.arange(rows + 40) % 5 != np.arange(5)[:, None]).astype(float), width)  # no empty place
    more = np.concatenate([features, features[:, :40]], axis=1) + 1000
    fit_shared(more, np.concatenate([labels, labels[:, :, :40]], axis=2), before, 0.02, room=room)
    found = fit_shared(features, labels, sets, 0.02, precision=precision, room=room)
    assert (found.bounds <= 1e-8).all()
    said = 1 / (1 + np.exp(-found.scores.reshape(3, len(trained), 2, rows)))
    slopes = ((said - labels[:, None]) * trained[:, None]).sum(axis=3) / trained.sum(axis=1)[:, None]
    assert np.abs(slopes).max() < 2e-12  # intercepts are settled by the rows of their set
    for at, used in enumerate(trained):
        for design, problem in itertools.product(range(3), range(2)):
            alone = fit(features[design, used], labels[design, problem, used], 0.02).logits(features[design])
            np.testing.assert_allclose(found.scores[design, 2 * at + problem, 0], alone, rtol=1e-5, atol=1e-5)
            assert not np.allclose(found.scores[design, (2 * at + problem + 2) % 8, 0], alone, atol=0.05)


def test_one_design_of_several_is_solved_again(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(3, 300, 6)) * np.array([1.0, 100.0, 0.01])[:, None, None]
    labels = (random.random((3, 2, 300)) < 0.5).astype(np.int64)
    sets = TrainingSets.of((np.arange(300) % 4 != np.arange(4)[:, None]).astype(float), 6)
    expected = fit_shared(features, labels, sets, 0.02)
    solve, kinds = solver._solve, []

    def stalled(*arguments: Any) -> Any:
        batch, near = solve(*arguments)
        kinds.append((arguments[5], len(batch.bounds)))
        if arguments[5] == np.float32:
            batch.bounds[1], batch.scores[1] = 1.0, np.nan
        return batch, near

    monkeypatch.setattr(solver, "_solve", stalled)
    found = fit_shared(features, labels, sets, 0.02)
    assert kinds == [(np.float32, 3), (np.float64, 1)]
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4, atol=1e-5)  # both within 5e-6 of their weights


def test_intercepts_are_settled_wherever_descent_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The certificate is one of weights whose intercept is optimal, also if descent alone has come near enough."""
    features, labels = data(300, 10)
    features = np.column_stack([features, features[:, :2] ** 2])
    for closeness in (solver.DESCENT, 1e-7, 1e-9):
        monkeypatch.setattr(solver, "DESCENT", closeness)
        probe = fit(features, labels, 0.01, precision="float64")
        said = 1 / (1 + np.exp(-probe.logits(features)))
        assert abs((said - labels).mean()) < 2e-12  # SETTLED is 1e-12, of scores in half log-odds
        shifted = 1 / (1 + np.exp(-probe.logits(features) - 1e-9))
        assert abs((shifted - labels).mean()) > 2e-12


def test_blocks_arrange_rows_and_sum_over_them() -> None:
    random = np.random.default_rng(0)
    folds = random.permutation(np.repeat(np.arange(4), [80, 90, 81, 90]))
    trained = folds != np.arange(4)[:, None]
    made = blocks.blocks_of(trained.astype(float))
    assert made is not None and made.length == 96 and sorted(made.filled) == [80, 81, 90, 90]
    np.testing.assert_array_equal(made.rows, trained.sum(axis=1))
    values = random.normal(size=(2, len(folds)))
    arranged = made.arrange(values)  # designs, blocks, places
    np.testing.assert_array_equal(arranged.reshape(2, -1)[:, made.place], values)
    assert (arranged != 0).sum() == values.size
    weights = random.normal(size=(2, 4 * 3, 1))  # four sets with three problems each
    lines, others = (made.lines(weights, idle) * arranged.reshape(8, 1, -1) for idle in (False, True))
    assert lines.shape == (8, 9, 96) and others.shape == (8, 3, 96)
    np.testing.assert_allclose(made.rows_of(lines, others), weights * values[:, None])
    expected = (weights * values[:, None] * np.repeat(trained, 3, axis=0)).sum(axis=2)
    np.testing.assert_allclose(made.total(lines.sum(axis=2)), expected)
    assert not np.allclose(made.total((lines[::-1]).sum(axis=2)), expected)
    lines += 1
    made.blank(lines)
    assert (lines[0, :, made.filled[0] :] == 0).all() and (lines[0, :, : made.filled[0]] != 0).all()
    for useless in (
        np.ones((3, 200)),
        trained * np.where(folds == 1, 2.0, 1.0),
        trained[:, :200] * 1.0,
        trained[:3] * 1.0,
    ):
        assert blocks.blocks_of(useless) is None  # one block; weights; few rows a block; a block that all sets use


def test_memory_starts_with_a_cache_line_and_is_used_again() -> None:
    room = Room()
    first = room.array("a", (3, 5), np.float32)
    first[:] = 1
    for array in (first, room.array("b", (7,), np.float64), aligned((11, 2), np.float32)):
        assert array.ctypes.data % LINE == 0 and array.flags.c_contiguous
    again = room.array("a", (2, 5), np.float32)
    assert np.shares_memory(again, first) and (again == 1).all()
    assert not np.shares_memory(room.array("a", (300, 5), np.float32), first)  # too small


def test_certificate_bounds_the_true_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the solver early: the certificate must still be at least the real excess loss, and then refuse."""
    features, labels = data(300, 10)
    scaled = (features - features.mean(0)) / features.std(0)

    def loss(probe: Probe) -> float:
        weights = probe.weights[0] * features.std(0)
        logits = scaled @ weights + probe.intercepts[0] + probe.weights[0] @ features.mean(0)
        return float(np.logaddexp(0, -np.where(labels == 1, 1, -1) * logits).mean() + 0.005 * weights @ weights)

    best = loss(fit(features, labels, 0.01))
    for steps in (1, 2, 3):
        with monkeypatch.context() as patch:
            patch.setattr(solver, "STEPS", steps)
            patch.setattr(solver, "ROUNDS", {np.float32: 0, np.float64: 0})
            early = fit(features, labels, 0.01, bound=1.0)
            assert early.bound >= loss(early) - best > 1e-7
            with pytest.raises(ConvergenceError, match="certified"):
                fit(features, labels, 0.01)


def test_float32_that_stalls_is_solved_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = data(60, 200)
    expected = fit(features, labels, 1e-6, precision="float64").logits(features)
    found = fit(features, labels, 1e-6)
    np.testing.assert_allclose(found.logits(features), expected, rtol=1e-4)
    monkeypatch.setattr(solver, "ROUNDS", {np.float32: 0, np.float64: 40})
    assert fit(features, labels, 0.01).bound <= 1e-8


def test_features_that_depend_on_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every feature twice and next to no penalty: float32 finds X'X singular, float64 does not. Two halves of a weight
    cost half of what the weight costs, so that the scores are those of the features alone with half the penalty."""
    random = np.random.default_rng(0)
    features = random.normal(size=(600, 32))
    labels = (features[:, :3].sum(axis=1) + 0.5 * random.normal(size=600) > 0).astype(np.int64)
    found = fit(np.tile(features, 2), labels, 1e-8).logits(np.tile(features, 2))
    np.testing.assert_allclose(found, fit(features, labels, 5e-9).logits(features), rtol=1e-4, atol=1e-4)
    assert not np.allclose(found, fit(features, labels, 1e-4).logits(features), rtol=1e-2, atol=1e-2)

    def singular(*_: object) -> None:
        raise np.linalg.LinAlgError

    monkeypatch.setattr(solver, "_solve", singular)  # as float64 says of them with less penalty still
    with pytest.raises(ConvergenceError, match=r"depend on each other.*raise probes.penalty"):
        fit(np.tile(features, 2), labels, 1e-8)


def test_refuses_what_it_cannot_probe() -> None:
    features, labels = data(50, 5)
    with pytest.raises(ValueError, match="both 0 and 1"):
        fit(features, np.ones(50, dtype=int), 0.01)
    features[3, 2] = np.nan
    with pytest.raises(ValueError, match="nan"):
        fit(features, labels, 0.01)
    for fitted in (np.arange(50) != 3, np.arange(50) >= 0):  # a row that is only scored must have a score, too
        with pytest.raises(ValueError, match="nan"):
            fit_shared(features[None], labels[None, None], TrainingSets.of(fitted[None].astype(float), 5), 0.01)


@pytest.mark.parametrize("rows", [100, 20])
def test_constant_features_are_ignored(rows: int) -> None:
    features, labels = data(rows, 30)
    with_constant = np.column_stack([features, np.full(rows, 7.0)])
    probe = fit(with_constant, labels, 0.01)
    assert probe.weights[0, -1] == 0
    np.testing.assert_allclose(probe.logits(with_constant), fit(features, labels, 0.01).logits(features), rtol=1e-5)


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_scores_equal_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = np.concatenate([[0, 1], random.integers(0, 2, 30)])
    scores = random.integers(-3, 4, (32, 2)).astype(float)  # with ties
    np.testing.assert_allclose(auc(labels, scores), [roc_auc_score(labels, scores[:, i]) for i in (0, 1)])
    said = scores > 0
    accuracy, balanced, macro = rates(labels, said)
    for i in (0, 1):
        assert accuracy[i] == pytest.approx(accuracy_score(labels, said[:, i]))
        assert balanced[i] == pytest.approx(balanced_accuracy_score(labels, said[:, i]))
        assert macro[i] == pytest.approx(f1_score(labels, said[:, i], average="macro", zero_division=0))


def test_folds_keep_groups_together_and_labels_balanced() -> None:
    labels = np.tile([0, 1], 50)
    groups = np.repeat(np.arange(50), 2)
    folds = grouped_folds(labels, groups, 4, np.random.default_rng(0))
    assert all(len(set(folds[groups == group])) == 1 for group in range(50))
    assert set(folds) == {0, 1, 2, 3}
    assert all(labels[folds == fold].mean() == 0.5 for fold in range(4))
    other = grouped_folds(labels, groups, 4, np.random.default_rng(1))
    assert (folds != other).any()


def test_folds_that_cannot_be_made_are_refused() -> None:
    with pytest.raises(FoldError, match="3 group"):
        grouped_folds([0, 1, 0], [0, 1, 2], 4, np.random.default_rng(0))
    with pytest.raises(FoldError, match="no label"):
        grouped_folds([1] * 20, range(20), 4, np.random.default_rng(0))


def test_folds_of_uneven_groups_are_balanced_too() -> None:
    """Groups of one to five rows, a rare label: every fold within two rows of its share of each label."""
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(120), random.integers(1, 6, 120))
    labels = (random.random(len(groups)) < 0.2).astype(int)
    folds = grouped_folds(labels, groups, 4, random)
    for label in (0, 1):
        counts = np.bincount(folds[labels == label], minlength=4)
        assert counts.max() - counts.min() <= 4, counts
    with pytest.raises(FoldError, match="no label"):
        check_folds(np.where(labels == 1, 0, folds), labels, 4)


def test_out_of_fold_finds_a_planted_layer_and_nothing_in_noise() -> None:
    random = np.random.default_rng(0)
    pairs = 150
    labels, groups = np.tile([0, 1], pairs), np.repeat(np.arange(pairs), 2)
    activations = random.normal(size=(2 * pairs, 3, 8))
    activations[:, 1, 4] += 2.5 * labels
    folds = np.stack([grouped_folds(labels, groups, 4, random) for _ in range(2)])
    result = out_of_fold(activations, labels[None], folds, penalty=0.01)
    accuracy = ((result.logits[0] > 0) == labels[None, :, None]).mean(axis=(0, 1))
    # standard error of an accuracy of 300 rows is 0.03
    assert accuracy[1] > 0.8 and abs(accuracy[0] - 0.5) < 0.12 and abs(accuracy[2] - 0.5) < 0.12
    assert np.isfinite(result.logits).all() and (result.bounds <= 1e-8).all()


@pytest.mark.parametrize("chunk", [1, 3000, 10**9])
def test_out_of_fold_scores_come_from_probes_that_did_not_see_the_row(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "CHUNK_VALUES", chunk)
    random = np.random.default_rng(0)
    activations, labels = random.normal(size=(60, 3, 7)), random.integers(0, 2, (2, 60))
    folds = random.integers(0, 3, (2, 60))
    found = out_of_fold(activations, labels, folds, penalty=0.05).logits
    for target, repeat, fold, layer in [(0, 0, 1, 0), (1, 1, 2, 2), (0, 1, 0, 1)]:
        train = folds[repeat] != fold
        probe = fit(activations[train, layer], labels[target, train], 0.05)
        expected = probe.logits(activations[~train, layer])
        np.testing.assert_allclose(found[target, repeat, ~train, layer], expected, rtol=1e-5, atol=1e-6)


def test_no_pair_leaks_through_folds() -> None:
    """Each pair has a fingerprint and a random label shared by its rows: grouped folds stay at chance."""
    random = np.random.default_rng(0)
    pairs = 100
    groups = np.repeat(np.arange(pairs), 2)
    labels = np.repeat(random.permutation(np.tile([0, 1], pairs // 2)), 2)
    activations = np.repeat(random.normal(size=(pairs, 1, 60)), 2, axis=0)
    scores = {}
    for name, by in (("grouped", groups), ("loose", np.arange(2 * pairs))):
        folds = grouped_folds(labels, by, 4, np.random.default_rng(1))
        result = out_of_fold(activations, labels[None], folds[None], penalty=0.01)
        scores[name] = ((result.logits[0, 0, :, 0] > 0) == labels).mean()
    assert scores["grouped"] < 0.65 < 0.75 < scores["loose"]
