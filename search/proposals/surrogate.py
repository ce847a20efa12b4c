"""A Gaussian process that predicts a policy's error after its fine-tune from what it asks of each layer."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from scipy.linalg import cho_factor, cho_solve, cholesky, solve_triangular

LENGTHS = (0.7, 2.0, 6.0)
"""Length scales tried, in standard deviations of the features' distances."""
LINEAR_SHARES = (0.2, 0.8)
"""Shares of the prior variance that a linear trend takes."""
NOISES = (0.002, 0.02, 0.15)
"""Noise variances tried, over the prior variance."""
LEAST_SHARE = 1e-3
"""Combinations less likely than this, of all together, are left out of predictions."""


@dataclass(frozen=True)
class Prediction:
    """Mean and standard deviation of the noiseless value, (p,) each; (draws, p) of a surrogate given several draws."""

    mean: np.ndarray
    sd: np.ndarray

    def __add__(self, other: Prediction) -> Prediction:
        return Prediction(np.concatenate([self.mean, other.mean], -1), np.concatenate([self.sd, other.sd], -1))

    @property
    def each(self) -> list[Prediction]:
        """Those of single draws, (p,) each; of one (p,) that one."""
        return [Prediction(mean, sd) for mean, sd in zip(np.atleast_2d(self.mean), np.atleast_2d(self.sd), strict=True)]


@dataclass(frozen=True)
class _Model:
    """One combination of length, linear share and noise, fitted to n rows.

    Attributes:
        factor: lower Cholesky factor (n, n) of the rows' kernel with noise; what is above its diagonal means nothing.
        weights: of the rows (n,), or (n, draws).
        scale: variance of the prior.
    """

    length: float
    share: float
    level: float
    factor: np.ndarray
    weights: np.ndarray
    scale: float

    @property
    def noise(self) -> float:
        """Over the prior variance, with what keeps the factor regular."""
        return self.level + 1e-8

    def kernel(self, linear: np.ndarray, distance: np.ndarray) -> np.ndarray:
        """Covariances over the scale, of dot products and distances."""
        return self.share * (linear + 1) + (1 - self.share) * _matern(distance / self.length)


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
        self._y, self._models = y, list[_Model]()
        logs = []
        for length, share, level in product(LENGTHS, LINEAR_SHARES, NOISES):
            kernel = share * (linear + 1) + (1 - share) * residuals[length]
            factor = cho_factor(kernel + (level + 1e-8) * np.eye(len(y)), lower=True)
            weights = cho_solve(factor, y)
            scale = max(float(y @ weights) / len(y), 1e-6)
            logs.append(-0.5 * len(y) * np.log(scale) - np.log(np.diag(factor[0])).sum())
            self._models.append(_Model(length, share, level, factor[0], weights, scale))
        likelihood = np.exp(np.array(logs) - max(logs))
        self._shares = likelihood / likelihood.sum()

    def predict(self, features: np.ndarray) -> Prediction:
        """Mean and standard deviation at `features` (p, d)."""
        x = self._scaled(features)
        linear, own, distance = x @ self._x.T, (x**2).sum(axis=1), _distances(x, self._x)
        residuals = {length: _matern(distance / length) for length in LENGTHS}
        mean, second = np.zeros(len(x)), np.zeros(len(x))
        for part, model in zip(self._shares, self._models, strict=True):
            if part < LEAST_SHARE:
                continue
            cross = model.share * (linear + 1) + (1 - model.share) * residuals[model.length]
            at = (cross @ model.weights).T
            solved = solve_triangular(model.factor, cross.T, lower=True, check_finite=False)
            variance = model.share * (own + 1) + 1 - model.share - (solved**2).sum(axis=0)
            variance = np.maximum(variance, 1e-10) * model.scale
            mean = mean + part * at
            second = second + part * (variance + at**2)
        variance = np.maximum(second - mean**2, 1e-12)
        return Prediction(mean * self._sd + self._mean, np.sqrt(variance) * self._sd)

    def draw(self, features: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
        """What observations at `features` (q, d) may turn out to be (count, q), noise included.

        Each draw is of one of the combinations, by its likelihood, and of all places together.
        """
        x = self._scaled(features)
        chosen = random.choice(len(self._models), size=count, p=self._shares)
        spread = {}
        for n in set(chosen.tolist()):
            model = self._models[n]
            mean = model.kernel(x @ self._x.T, _distances(x, self._x)) @ model.weights
            spread[n] = mean, np.sqrt(model.scale) * self._appended(model, x)[1]
        drawn = [spread[n][0] + spread[n][1] @ random.normal(size=len(x)) for n in chosen.tolist()]
        return np.array(drawn) * self._sd + self._mean

    def given(self, features: np.ndarray, values: np.ndarray) -> Surrogate:
        """This surrogate with rows at `features` (q, d) added, once for each draw of their `values` (draws, q).

        The factors are extended, which is exact; scales, likelihoods, centres and spreads stay those of what was
        observed. A draw costs no more than another column of weights.
        """
        x, values = self._scaled(features), (np.asarray(values, dtype=float) - self._mean) / self._sd
        y = np.vstack([np.repeat(self._y[:, None], len(values), axis=1), values.T])
        found = copy(self)
        kept = [n for n, part in enumerate(self._shares) if part >= LEAST_SHARE]
        found._shares, found._models = self._shares[kept], []
        for model in (self._models[n] for n in kept):
            solved, corner = self._appended(model, x)
            factor = np.block([[model.factor, np.zeros_like(solved)], [solved.T, corner]])
            found._models.append(replace(model, factor=factor, weights=cho_solve((factor, True), y)))
        found._x, found._y = np.vstack([self._x, x]), y
        return found

    def _scaled(self, features: np.ndarray) -> np.ndarray:
        return (np.asarray(features, dtype=float) - self._centre) * self._scale

    def _appended(self, model: _Model, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What further rows `x` (q, d) add to a model's factor: (n, q), transposed, and the lower corner (q, q).

        The corner times itself is the rows' posterior covariance with noise, over the scale.
        """
        cross = model.kernel(self._x @ x.T, _distances(self._x, x))
        solved = solve_triangular(model.factor, cross, lower=True, check_finite=False)
        own = model.kernel(x @ x.T, _distances(x, x)) + model.noise * np.eye(len(x))
        return solved, cholesky(own - solved.T @ solved, lower=True, check_finite=False)


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0))


def _matern(distance: np.ndarray) -> np.ndarray:
    scaled = np.sqrt(5) * distance
    return (1 + scaled + scaled**2 / 3) * np.exp(-scaled)
