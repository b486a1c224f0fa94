"""Probes with hidden layers, through scikit-learn: what a linear probe misses. Slow, and without a certificate."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from levelt.probes.grid import Floats, Labels

UNITS = 100
"""Units of a hidden layer."""


def hidden_out_of_fold(
    activations: npt.ArrayLike,
    labels: Labels,
    assignments: Labels,
    layers: int,
    penalty: float,
    generator: np.random.Generator,
) -> Floats:
    """Out-of-fold log-odds of class 1, [repeats, n, layers of the model].

    Args:
        activations: [n, layers, d].
        labels: 0 or 1, [n].
        assignments: test fold of every row in each repeat, [repeats, n].
        layers: hidden layers of the probe.
        penalty: on all weights, as for the linear probes.
    """
    values = np.asarray(activations, dtype=np.float64)
    found = np.full((len(assignments), *values.shape[:2]), np.nan)
    for repeat, assignment in enumerate(assignments):
        for fold in range(int(assignment.max()) + 1):
            test = assignment == fold
            for layer in range(values.shape[1]):
                scaler = StandardScaler().fit(values[~test, layer])
                model = MLPClassifier(
                    (UNITS,) * layers,
                    solver="lbfgs",
                    alpha=penalty * int((~test).sum()),
                    max_iter=500,
                    random_state=int(generator.integers(2**31)),
                )
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ConvergenceWarning)
                    model.fit(scaler.transform(values[~test, layer]), labels[~test])
                probability = model.predict_proba(scaler.transform(values[test, layer]))[:, 1]
                found[repeat, test, layer] = np.log(probability + 1e-300) - np.log1p(-probability + 1e-16)
    return found
