"""What a surrogate sees of a policy: numbers its error depends on smoothly."""

from __future__ import annotations

import numpy as np

from spaces.policy import Schedule
from spaces.space import Landed, Space

MOST_BUCKETS = 16
"""Neighbouring layers (or channel groups) share a feature in networks with more of them than this."""
LEAST_KEPT = 1e-3
"""Shares kept below this count as this."""


class Features:
    """Columns: (share kept)^-1/2 by masks and by removals along the network, log size, schedule.

    A layer's column is 0 where it is pruned in another way. Of the powers and the logarithm of the share kept, -1/2
    predicted fine-tuned accuracies best (`tests/benchmarks/proxies.py`).
    """

    def __init__(self, space: Space) -> None:
        network = space.network
        self._by_mask = _buckets(np.array([layer.numel for layer in network.layers], dtype=float))
        self._by_removal = _buckets(np.array([float(group.obstacle is None) for group in network.groups]))

    def of(self, landed: Landed) -> np.ndarray:
        """(p, columns)."""
        asked = landed.requests
        masked = (asked.by_mask / np.sqrt(np.maximum(1 - asked.masked, LEAST_KEPT))) @ self._by_mask
        removed = (asked.by_removal / np.sqrt(np.maximum(1 - asked.removed, LEAST_KEPT))) @ self._by_removal
        schedule = np.array([_schedule(draft.schedule) for draft in landed.drafts])
        return np.column_stack([masked, removed, np.log(landed.sizes), schedule])


def _schedule(schedule: Schedule) -> tuple[float, float]:
    one_shot = schedule.kind == "one-shot"
    return float(one_shot), 0.0 if one_shot else np.log(schedule.exponent / 3)


def _buckets(weights: np.ndarray) -> np.ndarray:
    """(n, buckets): weighted means over runs of neighbours; one bucket each where n is small."""
    count = min(len(weights), MOST_BUCKETS)
    place = np.arange(len(weights)) * count // max(len(weights), 1)
    matrix = np.zeros((len(weights), count))
    matrix[np.arange(len(weights)), place] = weights
    return matrix / np.maximum(matrix.sum(axis=0), 1e-12)
