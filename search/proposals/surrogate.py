"""A Gaussian process that predicts a policy's error after its fine-tune from what it asks of each layer."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_triangular

LENGTHS = (0.7, 2.0, 6.0)
"""Length scales tried, in standard deviations of the features' distances."""
LINEAR_SHARES = (0.2, 0.8)
"""Shares of the prior variance that a linear trend takes."""
NOISES = (0.002, 0.02, 0.15)
"""Noise variances tried, over the prior variance."""


@dataclass(frozen=True)
class Prediction:
    """Mean (p,) and standard deviation (p,) of the noiseless value."""

    mean: np.ndarray
    sd: np.ndarray

    def __add__(self, other: Prediction) -> Prediction:
        return Prediction(np.concatenate([self.mean, other.mean]), np.concatenate([self.sd, other.sd]))


class Surrogate:
    """Bayesian linear trend plus a Matern 5/2 residual; scale, lengths and noise by marginal likelihood.

    Every combination of `LENGTHS`, `LINEAR_SHARES` and `NOISES` is fitted in closed form and the predictions are
    averaged by their likelihoods, so a handful of observations does not fix the model (Rasmussen and Williams 2006,
    2.7 and 5.4).

    Args:
        features: (n, d), n >= 2; columns that do not vary are ignored.
        values: (n,), finite.
        weights: (d,) of the columns in distances and trends, all 1 by default.
        anchors: features (a, d) and values (a,) known without an observation, far from all of these: they count like
            the others but for the columns' centres and spreads.
    """

    def __init__(
        self,
        features: np.ndarray,
        values: np.ndarray,
        weights: np.ndarray | None = None,
        anchors: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        features, values = np.asarray(features, dtype=float), np.asarray(values, dtype=float)
        self._centre, spread = features.mean(axis=0), features.std(axis=0)
        weights = np.where(spread > 1e-9, 1.0 if weights is None else weights, 0.0)
        self._scale = np.sqrt(weights / max(weights.sum(), 1e-9)) / np.maximum(spread, 1e-9)
        if anchors is not None:
            features, values = np.concatenate([features, anchors[0]]), np.concatenate([values, anchors[1]])
        self._x = (features - self._centre) * self._scale
        self._mean, self._sd = float(values.mean()), float(values.std()) or 1.0
        y = (values - self._mean) / self._sd
        linear, distance = self._x @ self._x.T, _distances(self._x, self._x)
        residuals = {length: _matern(distance / length) for length in LENGTHS}
        self._models = []
        logs = []
        for length, share, level in product(LENGTHS, LINEAR_SHARES, NOISES):
            kernel = share * (linear + 1) + (1 - share) * residuals[length]
            factor = cho_factor(kernel + (level + 1e-8) * np.eye(len(y)), lower=True)
            weights = cho_solve(factor, y)
            scale = max(float(y @ weights) / len(y), 1e-6)
            logs.append(-0.5 * len(y) * np.log(scale) - np.log(np.diag(factor[0])).sum())
            self._models.append((length, share, factor, weights, scale))
        likelihood = np.exp(np.array(logs) - max(logs))
        self._shares = likelihood / likelihood.sum()

    def predict(self, features: np.ndarray) -> Prediction:
        """Mean and standard deviation at `features` (p, d)."""
        x = (np.asarray(features, dtype=float) - self._centre) * self._scale
        linear, own, distance = x @ self._x.T, (x**2).sum(axis=1), _distances(x, self._x)
        residuals = {length: _matern(distance / length) for length in LENGTHS}
        mean, second = np.zeros(len(x)), np.zeros(len(x))
        for part, (length, share, factor, weights, scale) in zip(self._shares, self._models, strict=True):
            if part < 1e-3:
                continue
            cross = share * (linear + 1) + (1 - share) * residuals[length]
            at = cross @ weights
            solved = solve_triangular(factor[0], cross.T, lower=True, check_finite=False)
            variance = np.maximum(share * (own + 1) + 1 - share - (solved**2).sum(axis=0), 1e-10) * scale
            mean += part * at
            second += part * (variance + at**2)
        variance = np.maximum(second - mean**2, 1e-12)
        return Prediction(mean * self._sd + self._mean, np.sqrt(variance) * self._sd)


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0))


def _matern(distance: np.ndarray) -> np.ndarray:
    scaled = np.sqrt(5) * distance
    return (1 + scaled + scaled**2 / 3) * np.exp(-scaled)
