"""Sparsities as logits, the scale on which layers are shifted together."""

from __future__ import annotations

import numpy as np

REACH = 16.0
"""Shifts lie within this many logits of 0, as in `spaces.allocation.budget.fit_by_shift`."""
LIFTED = 0.005
"""Sparsity that a layer of preference 0 asks for where the size cannot be reached without it."""


def logits_of(sparsity: np.ndarray) -> np.ndarray:
    """Logits of sparsities in [0, 1), of their shape; minus infinity for 0."""
    with np.errstate(divide="ignore"):
        return np.log(sparsity) - np.log1p(-sparsity)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Sparsities in [0, 1) of logits, of their shape; minus infinity is exactly 0."""
    return np.minimum(1 / (1 + np.exp(-np.clip(logits, -700, 40))) * (logits > -np.inf), 1 - 1e-9)


def centred(logits: np.ndarray) -> np.ndarray:
    """Logits (..., knobs) less the mean of the finite ones in each row; minus infinity stays."""
    finite = np.isfinite(logits)
    total = np.where(finite, logits, 0.0).sum(axis=-1, keepdims=True)
    return np.where(finite, logits - total / np.maximum(finite.sum(axis=-1, keepdims=True), 1), -np.inf)
