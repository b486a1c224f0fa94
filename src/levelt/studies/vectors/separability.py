"""Are the vectors of different instructions linearly separable? Probes and LDA on rephrased instructions.

One row per instruction and wording: the residual at the last token of the instruction. Classes are the instructions of
all tasks. Wordings are held out as a whole: the same wording of another instruction is never in training. With more
dimensions than rows anything can be separated in sample, so that is shown too, with shuffled labels beside it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from levelt.config import Statistics, Vectors
from levelt.models.loading import Decoder
from levelt.randomness import generator
from levelt.statistics.resampling import Floats, cluster_draws, mean_interval
from levelt.studies.vectors.cases import Case, instruction_states
from levelt.studies.vectors.columns import MEAN_OF_LAYERS

FOLDS = 4
PENALTY = 0.01
"""Of the logistic probe, on standardised features: mean log-loss + PENALTY / 2 |w|^2, as the study's other probes."""
METHODS = ("logistic", "lda")


def instruction_vectors(decoder: Decoder, cases: Sequence[Case]) -> tuple[pd.DataFrame, Floats]:
    """The vector of every wording of every instruction.

    Returns:
        Rows (task, instruction_id, wording) and vectors [rows, layers + 1, d]; entry 0 is the embedding.
    """
    rows, vectors = [], []
    for case in cases:
        for side in case.sides:
            states = instruction_states(decoder, case, side, range(len(side.wordings)))
            rows += [(case.task, side.instruction_id, wording) for wording in range(len(states))]
            vectors += [state[-1].numpy() for state in states]
    return pd.DataFrame(rows, columns=["task", "instruction_id", "wording"]), np.stack(vectors).astype(np.float64)


def separability_table(
    rows: pd.DataFrame, vectors: Floats, settings: Vectors, statistics: Statistics, seed: int
) -> pd.DataFrame:
    """Accuracy of a logistic probe and of LDA, by layer: out of fold, with shuffled labels, and in sample as released.

    Returns:
        method, labels (true, shuffled), split (held_out: over wordings; in_sample: fitted and scored on the same
        vectors, as the released LDA is shown), layer (0: embedding; -1: mean over layers from 1 on), n, classes,
        accuracy, ci_low, ci_high: over wordings (true labels) or over draws of shuffled labels, their lowest and
        highest. Empty with fewer wordings than folds.
    """
    columns = ["method", "labels", "split", "layer", "n", "classes", "accuracy", "ci_low", "ci_high"]
    labels = (rows["task"] + "/" + rows["instruction_id"]).to_numpy()
    wordings, groups = np.unique(rows["wording"], return_inverse=True)
    if len(wordings) < FOLDS:
        return pd.DataFrame(columns=columns)
    drawn = generator(seed, "vectors", "separability")
    fold = (drawn.permutation(len(wordings)) % FOLDS)[groups]
    draws = cluster_draws(len(wordings), statistics.draws, drawn)
    shuffled = [_shuffled(labels, groups, drawn) for _ in range(settings.shuffles)]
    found: list[dict[str, Any]] = []
    over_layers: dict[tuple[str, str], list[Floats]] = {}
    for layer in range(vectors.shape[1]):
        features = vectors[:, layer]
        for method in METHODS:
            base = {"method": method, "layer": layer, "n": len(rows), "classes": len(set(labels))}
            for split, of in (("held_out", fold), ("in_sample", None)):
                hits = _hits(method, features, labels, of)
                over_layers.setdefault((method, split), []).append(hits)
                mean, low, high = mean_interval(hits[:, None], groups, draws, statistics.level)
                measured = {"accuracy": mean[0], "ci_low": low[0], "ci_high": high[0]}
                found.append(base | {"labels": "true", "split": split} | measured)
                chance = [_hits(method, features, other, of).mean() for other in shuffled]
                measured = {"accuracy": np.mean(chance), "ci_low": min(chance), "ci_high": max(chance)}
                found.append(base | {"labels": "shuffled", "split": split} | measured)
    for (method, split), every in over_layers.items():
        mean, low, high = mean_interval(np.mean(every[1:], axis=0)[:, None], groups, draws, statistics.level)
        of_method = {"method": method, "labels": "true", "split": split, "layer": MEAN_OF_LAYERS, "n": len(rows)}
        measured = {"accuracy": mean[0], "ci_low": low[0], "ci_high": high[0]}
        found.append(of_method | {"classes": len(set(labels))} | measured)
    return pd.DataFrame(found, columns=columns)


def _shuffled(labels: np.ndarray, groups: np.ndarray, drawn: np.random.Generator) -> np.ndarray:
    """Labels exchanged within each wording, so that every fold keeps its classes."""
    found = labels.copy()
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        found[rows] = labels[drawn.permutation(rows)]
    return found


def _hits(method: str, features: Floats, labels: np.ndarray, fold: np.ndarray | None) -> Floats:
    """Whether each row is classified rightly: by a model that has not seen its fold, or (None) by one that has."""
    if fold is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a separation that is perfect, or vectors of few kinds
            return np.asarray(
                _predicted(_model(method, len(labels), True), features, labels, features) == labels, float
            )
    hits = np.zeros(len(labels))
    for number in np.unique(fold):
        train, test = fold != number, fold == number
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)  # a probe that did not converge is no measurement
            found = _predicted(_model(method, int(train.sum()), False), features[train], labels[train], features[test])
        hits[test] = found == labels[test]
    return hits


def _predicted(model: Any, features: Floats, labels: np.ndarray, others: Floats) -> np.ndarray:
    """Labels of other vectors. Where vectors of a class do not differ (embeddings of one token), no classifier is
    defined: then the label of the nearest class mean, the first one of several.
    """
    names = np.unique(labels)
    means = np.stack([features[labels == name].mean(0) for name in names])
    spread = np.abs(features - means[np.searchsorted(names, labels)]).max()
    if spread <= 1e-9 * np.abs(features).max():
        return np.asarray(names[np.square(others[:, None] - means).sum(-1).round(9).argmin(1)])
    return np.asarray(model.fit(features, labels).predict(others))


def _model(method: str, count: int, released: bool) -> Any:
    if method == "logistic":
        return make_pipeline(StandardScaler(), LogisticRegression(C=1 / (PENALTY * count), max_iter=5000))
    if released:
        return LinearDiscriminantAnalysis(solver="svd")
    return LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")


def projection_table(rows: pd.DataFrame, vectors: Floats) -> pd.DataFrame:
    """Two principal components of all vectors of a layer together, so that positions can be compared.

    Principal components know no labels, and so cannot invent a separation.

    Returns:
        task, instruction_id, wording, layer, first, second, explained (share of variance of both together).
    """
    frames = []
    for layer in range(vectors.shape[1]):
        model = PCA(2, svd_solver="full")
        with np.errstate(invalid="ignore"):  # embeddings of one token do not differ at all
            places = model.fit_transform(vectors[:, layer])
        signs = np.sign(places[np.abs(places).argmax(0), range(2)])  # the sign of a component means nothing
        frames.append(
            rows.assign(
                layer=layer,
                first=places[:, 0] * (signs[0] or 1),
                second=places[:, 1] * (signs[1] or 1),
                explained=float(np.nan_to_num(model.explained_variance_ratio_).sum()),
            )
        )
    return pd.concat(frames, ignore_index=True)
