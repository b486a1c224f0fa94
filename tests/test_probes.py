"""The probe solver against scikit-learn, its invariances, its certificate, and the folds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from levelt.probes import solver
from levelt.probes.folds import FoldError, grouped_folds
from levelt.probes.grid import out_of_fold
from levelt.probes.solver import ConvergenceError, fit

Arrays = tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]


def data(rows: int, width: int, seed: int = 0) -> Arrays:
    """Features of very different scales with a planted direction."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(rows, width)) * 10.0 ** random.uniform(-3, 3, width)
    score = features[:, 0] / features[:, 0].std() + 0.7 * random.normal(size=rows)
    return features, (score > 0).astype(np.int64)


@pytest.mark.parametrize(("rows", "width"), [(300, 20), (60, 200), (700, 600)])
def test_equals_scikit_learn_converged(rows: int, width: int) -> None:
    features, labels = data(rows, width)
    penalty = 0.02
    probe = fit(features, labels, penalty)
    scaler = StandardScaler().fit(features)
    peer = LogisticRegression(C=1 / (penalty * rows), tol=1e-12, max_iter=100_000).fit(
        scaler.transform(features), labels
    )
    expected = peer.decision_function(scaler.transform(features))
    # two solvers, both within 1e-8 nats of one strictly convex optimum
    np.testing.assert_allclose(probe.logits(features), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert probe.bound <= 1e-8
    assert not np.allclose(fit(features, labels, 2 * penalty).logits(features), expected, rtol=1e-2)


def test_invariances() -> None:
    features, labels = data(200, 15)
    base = fit(features, labels, 0.01).logits(features)
    rescaled = features * np.geomspace(1e-3, 1e3, 15) + 5
    np.testing.assert_allclose(fit(rescaled, labels, 0.01).logits(rescaled), base, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(fit(features, 1 - labels, 0.01).logits(features), -base, rtol=1e-5, atol=1e-6)
    doubled = fit(np.repeat(features, 2, axis=0), np.repeat(labels, 2), 0.01).logits(features)
    np.testing.assert_allclose(doubled, base, rtol=1e-5, atol=1e-6)


def test_certificate_bounds_the_true_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the solver early: the certificate must still be at least the real excess loss."""
    features, labels = data(300, 10)
    scaled = (features - features.mean(0)) / features.std(0)
    target = labels.astype(float)

    def loss(weights: npt.NDArray[np.float64]) -> float:
        intercept, _ = solver._certify(scaled, target, weights, 0.01)
        margins = np.where(labels == 1, 1, -1) * (scaled @ weights + intercept)
        return float(np.logaddexp(0, -margins).mean() + 0.005 * weights @ weights)

    best = solver._solve(scaled, target, 0.01)
    for step in (0.5, 0.1, 0.01):
        shifted = best + step * np.random.default_rng(1).normal(size=10)
        _, certificate = solver._certify(scaled, target, shifted, 0.01)
        assert certificate >= loss(shifted) - loss(best) > 0
    monkeypatch.setattr(solver, "_solve", lambda *_: best + 0.1)
    with pytest.raises(ConvergenceError, match="certified"):
        fit(features, labels, 0.01)


def test_refuses_what_it_cannot_probe() -> None:
    features, labels = data(50, 5)
    with pytest.raises(ValueError, match="both 0 and 1"):
        fit(features, np.ones(50), 0.01)
    features[3, 2] = np.nan
    with pytest.raises(ValueError, match="nan"):
        fit(features, labels, 0.01)


def test_constant_features_are_ignored() -> None:
    features, labels = data(100, 5)
    with_constant = np.column_stack([features, np.full(100, 7.0)])
    probe = fit(with_constant, labels, 0.01)
    assert probe.weights[-1] == 0
    np.testing.assert_allclose(probe.logits(with_constant), fit(features, labels, 0.01).logits(features), rtol=1e-6)


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


def test_out_of_fold_finds_a_planted_layer_and_nothing_in_noise() -> None:
    random = np.random.default_rng(0)
    pairs = 150
    labels, groups = np.tile([0, 1], pairs), np.repeat(np.arange(pairs), 2)
    activations = random.normal(size=(2 * pairs, 3, 8))
    activations[:, 1, 4] += 2.5 * labels
    settings = {"folds": 4, "repeats": 2, "penalty": 0.01, "bound": 1e-8}
    result = out_of_fold(activations, labels, groups, generator=np.random.default_rng(1), **settings)
    accuracy = ((result.logits > 0) == labels[None, :, None]).mean(axis=(0, 1))
    # standard error of an accuracy of 300 rows is 0.03
    assert accuracy[1] > 0.8 and abs(accuracy[0] - 0.5) < 0.12 and abs(accuracy[2] - 0.5) < 0.12
    assert np.isfinite(result.logits).all() and (result.bounds <= 1e-8).all()


def test_no_pair_leaks_through_folds() -> None:
    """Each pair has a fingerprint and a random label shared by its rows: grouped folds stay at chance."""
    random = np.random.default_rng(0)
    pairs = 100
    groups = np.repeat(np.arange(pairs), 2)
    labels = np.repeat(random.permutation(np.tile([0, 1], pairs // 2)), 2)
    activations = np.repeat(random.normal(size=(pairs, 1, 60)), 2, axis=0)
    settings = {"folds": 4, "repeats": 1, "penalty": 0.01, "bound": 1e-8}
    scores = {}
    for name, by in (("grouped", groups), ("loose", np.arange(2 * pairs))):
        result = out_of_fold(activations, labels, by, generator=np.random.default_rng(1), **settings)
        scores[name] = ((result.logits[0, :, 0] > 0) == labels).mean()
    assert scores["grouped"] < 0.65 < 0.75 < scores["loose"]
