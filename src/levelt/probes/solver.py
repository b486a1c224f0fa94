"""L2 logistic regression with a certificate of optimality.

The loss is mean log-loss + penalty/2 |w|^2 on features standardised with the training rows; the intercept is not
penalised. scikit-learn solves it; what is added here is the proof: with the intercept minimised out, the objective is
penalty-strongly convex in w, so |gradient|^2 / (2 penalty) bounds the distance from the optimal loss. A probe whose
bound is too large is refused, never reported.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

Floats = npt.NDArray[np.float64]

NEWTON_LIMIT = 512
"""Most features for which Newton's d x d systems are cheaper than L-BFGS (measured: 64 features, 3 ms a probe)."""


class ConvergenceError(RuntimeError):
    """A probe did not reach the certified bound; the message says how far it got."""


@dataclass(frozen=True)
class Probe:
    """A fitted probe. ``weights`` and ``intercept`` act on raw features (the standardisation is folded in)."""

    weights: Floats
    intercept: float
    bound: float

    def logits(self, features: npt.ArrayLike) -> Floats:
        """Log-odds of class 1 for rows [n, d]."""
        value: Floats = np.asarray(features, dtype=np.float64) @ self.weights + self.intercept
        return value


def fit(features: npt.ArrayLike, labels: npt.ArrayLike, penalty: float, bound: float = 1e-8) -> Probe:
    """Fit one binary probe in float64.

    Args:
        features: [n, d]; standardised here with these rows only. A constant feature gets weight 0.
        labels: [n], 0 or 1, both present.
        penalty: strength on standardised weights; scikit-learn's C is 1 / (penalty * n).
        bound: largest accepted certified distance from the optimal loss, in nats.

    Raises:
        ConvergenceError: the certificate exceeds ``bound``.
        ValueError: a feature is not finite, or a label is missing.
    """
    raw = np.asarray(features, dtype=np.float64)
    target = np.asarray(labels, dtype=np.float64)
    if not np.isfinite(raw).all():
        raise ValueError("features contain nan or infinity")
    if set(np.unique(target)) != {0.0, 1.0}:
        raise ValueError(f"labels must contain both 0 and 1, found {sorted(set(target.tolist()))}")
    centre, spread = raw.mean(axis=0), raw.std(axis=0)
    constant = spread <= 1e-12 * np.maximum(1.0, np.abs(centre))
    spread = np.where(constant, 1.0, spread)
    scaled = np.where(constant, 0.0, (raw - centre) / spread)
    weights = _solve(scaled, target, penalty)
    intercept, certificate = _certify(scaled, target, weights, penalty)
    if not certificate <= bound:
        raise ConvergenceError(
            f"probe not converged: certified {certificate:.1e} nats from the optimum, {bound:.0e} allowed "
            f"(n={len(target)}, d={raw.shape[1]}, penalty={penalty:g}); raise probes.penalty or probes.bound"
        )
    unscaled = weights / spread
    return Probe(unscaled, float(intercept - centre @ unscaled), float(certificate))


def _solve(scaled: Floats, target: Floats, penalty: float) -> Floats:
    rows, width = scaled.shape
    if width > rows:  # the optimum lies in the row space: solve there exactly, with `rows` features
        left, values, right = np.linalg.svd(scaled, full_matrices=False)
        kept = values > values[0] * 1e-12
        reduced = _solve(left[:, kept] * values[kept], target, penalty)
        lifted: Floats = right[kept].T @ reduced
        return lifted
    solver = "newton-cholesky" if width <= NEWTON_LIMIT else "lbfgs"
    model = LogisticRegression(C=1 / (penalty * rows), solver=solver, tol=1e-10, max_iter=2000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the certificate decides, not the iteration count
        model.fit(scaled, target)
    found: Floats = model.coef_[0]
    return found


def _certify(scaled: Floats, target: Floats, weights: Floats, penalty: float) -> tuple[float, float]:
    """The intercept that is optimal for ``weights`` (1-D Newton), and |gradient|^2 / (2 penalty) at it."""
    scores = scaled @ weights
    intercept = 0.0
    for _ in range(100):
        probability = expit(scores + intercept)
        slope = float((probability - target).mean())
        curvature = float((probability * (1 - probability)).mean())
        if abs(slope) < 1e-15 or curvature < 1e-300:
            break
        intercept -= np.clip(slope / curvature, -2.0, 2.0)
    residual = expit(scores + intercept) - target
    gradient = scaled.T @ residual / len(target) + penalty * weights
    return intercept, float(gradient @ gradient) / (2 * penalty)
