"""The front of a study, kept up trial by trial."""

from __future__ import annotations

import numpy as np

from search.records import COMPLETE, TrialRecord

SLACK = 1 + 1e-9
"""Proposals lie on the limits of a search as nearly as that: within the study's own limit are all of its trials."""


class Front:
    """The complete trials within a limit that no other one beats: accuracy up, size and cost down.

    Equal points stay together. Each trial costs what the front's length does.

    Args:
        max_size: the limit, a share of the dense size by the measure `metric`.
        cost: the third objective, `macs` or `latency`.
        chance: accuracy up to which a network is dead and on no front, see `search.training.chance`; None if unknown.
        max_macs, max_latency: further limits, see `is_fast_enough`.
    """

    def __init__(
        self,
        max_size: float,
        metric: str = "encoded",
        cost: str = "macs",
        chance: float | None = None,
        max_macs: float | None = None,
        max_latency: float | None = None,
    ) -> None:
        self._max_size, self._metric, self._cost, self._chance = max_size, metric, cost, chance
        self._max_macs, self._max_latency = max_macs, max_latency
        self._points = np.empty((0, 3))
        self.numbers: list[int] = []

    def add(self, record: TrialRecord) -> list[int]:
        """Take a finished trial in; returns the numbers that are not on the front, of it and of what it pushed off."""
        point = self._point(record)
        if point is None or np.isnan(point).any():
            return [record.number]
        not_larger, smaller = self._points <= point, self._points < point
        if (not_larger.all(axis=1) & smaller.any(axis=1)).any():
            return [record.number]
        beaten = np.all(self._points >= point, axis=1) & np.any(self._points > point, axis=1)
        gone = [number for number, worse in zip(self.numbers, beaten, strict=True) if worse]
        self.numbers = [number for number in self.numbers if number not in gone] + [record.number]
        self._points = np.vstack([self._points[~beaten], point])
        return gone

    def finalists(self, count: int, least_accuracy: float | None = None) -> list[int]:
        """The most accurate trials by falling accuracy, then rising size; the first is the best so far.

        With `least_accuracy` they are the smallest at least that accurate; the most accurate if none is.
        """
        numbers, (falling, sizes) = np.array(self.numbers, dtype=int), self._points[:, :2].T
        order = np.lexsort((numbers, sizes, falling))
        if least_accuracy is not None and len(enough := order[-falling[order] >= least_accuracy]):
            order = enough[np.argsort(sizes[enough], kind="stable")]
        return numbers[order[:count]].tolist()

    def _point(self, record: TrialRecord) -> np.ndarray | None:
        """Falling accuracy, size and cost (3,); None if the trial cannot be on the front."""
        result = record.result
        accuracy, shares = result.accuracy, result.shares
        if result.state != COMPLETE or accuracy is None or shares is None:
            return None
        size = shares.of(self._metric)
        if size > self._max_size or (self._chance is not None and accuracy <= self._chance):
            return None
        if not is_fast_enough(record, self._max_macs, self._max_latency):
            return None
        cost = record.latency if self._cost == "latency" else shares.macs
        return np.array([-accuracy, size, np.nan if cost is None else cost], dtype=float)


def is_fast_enough(record: TrialRecord, max_macs: float | None, max_latency: float | None) -> bool:
    """Whether a trial keeps limits on MACs and predicted latency, shares of the dense model's; None limits nothing.

    What is not known of a trial keeps no limit.
    """
    shares = record.result.shares
    of_each = ((max_macs, None if shares is None else shares.macs), (max_latency, record.latency))
    return all(limit is None or (cost is not None and cost <= limit * SLACK) for limit, cost in of_each)
