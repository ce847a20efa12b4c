"""Metrics in their own unit, and the share from 0 to 1 that a search works on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from pruning.outputs import join_batches
from pruning.trees import Tree, contents, joined
from spaces.validation import is_number

MAX, MIN = "max", "min"
SLACK = 1e-6
"""How far a value may leave its range, since single precision rounds; in parts of the range."""
DENSE_ERROR = 0.1
"""The error of the dense network by a metric without a range."""
SLOPE = 1 - DENSE_ERROR
"""The rise of that error for a value that is worse by a small part of the dense network's."""


class OutOfRange(ValueError):
    """A metric's value is outside the range that it is said to have."""


@dataclass(frozen=True)
class Metric:
    """A metric with a name, a direction and a range.

    What is shown is its value. The search works on a share from 0 to 1 of which more is better: the distance from the
    worst end of the range over its length, or, of a metric without a range, a number that falls as the value gets worse
    and is 0.9 at the dense network's.

    Attributes:
        name: as it is shown, such as `mAP`.
        function: (outputs, targets) of all examples of a split -> a number, or an object with `update(outputs,
            targets)`, `compute()` and `reset()`, as those of torchmetrics, which sees one batch after the other.
        best: `max` or `min`.
        low: the least possible value; None if there is none, or nobody knows.
        high: the largest.
        dense: the dense network's value, which a metric without a range is compared with; found by a study.

    Raises:
        ValueError: a field outside its range.

    >>> Metric("mAP", best="max", low=0, high=100).share(25.0)
    0.25
    >>> rmse = Metric("RMSE", best="min", dense=2.0)
    >>> [round(rmse.share(value), 3) for value in (1.0, 2.0, 2.2, 4.0)]
    [0.982, 0.9, 0.818, 0.45]
    >>> round(rmse.value(rmse.share(2.2)), 9)
    2.2
    """

    name: str
    function: Any = None
    best: str = MAX
    low: float | None = None
    high: float | None = None
    dense: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip() or len(self.name) > 40 or "\n" in self.name:
            raise ValueError(f"a metric's name must be a word or two, such as 'mAP', got {self.name!r}")
        if self.best not in (MAX, MIN):
            raise ValueError(f"metric {self.name!r}: best must be {MAX!r} or {MIN!r}, got {self.best!r}")
        for end in (self.low, self.high):
            if end is not None and not (is_number(end) and math.isfinite(end)):
                raise ValueError(f"metric {self.name!r}: low and high must be numbers, or None, got {end!r}")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"metric {self.name!r}: low must be below high, got {self.low:g} and {self.high:g}")

    @property
    def has_range(self) -> bool:
        return self.low is not None and self.high is not None

    def share(self, value: float) -> float:
        """The share that a value stands for; NaN of NaN, and without a range before the dense network is known.

        Raises:
            OutOfRange: a value below `low` or above `high`.
        """
        self._require_inside(value)
        if self.low is not None and self.high is not None:
            above = min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)
            return above if self.best == MAX else 1 - above
        if self.dense is None or math.isnan(value):
            return math.nan
        worse = (value - self.dense) / self._size * (1 if self.best == MIN else -1)
        if worse <= 0:
            return 1 - DENSE_ERROR / (1 - SLOPE / DENSE_ERROR * worse)
        return SLOPE / (1 + worse)

    def value(self, share: float) -> float:
        """The value that a share stands for: the inverse of `share`."""
        if self.low is not None and self.high is not None:
            return self.low + (share if self.best == MAX else 1 - share) * (self.high - self.low)
        if self.dense is None or not 0 < share < 1:
            return math.nan
        worse = SLOPE / share - 1 if share < SLOPE else (1 - DENSE_ERROR / (1 - share)) * DENSE_ERROR / SLOPE
        return self.dense + worse * self._size * (1 if self.best == MIN else -1)

    @property
    def _size(self) -> float:
        """What differences from the dense network's value are measured in."""
        return abs(self.dense or 0.0) or 1.0

    def _require_inside(self, value: float) -> None:
        length = self.high - self.low if self.low is not None and self.high is not None else abs(value) + 1
        below = self.low is not None and value < self.low - SLACK * length
        above = self.high is not None and value > self.high + SLACK * length
        if below or above:
            ends = " to ".join("any" if end is None else f"{end:g}" for end in (self.low, self.high))
            raise OutOfRange(f"metric {self.name!r} is {value:.9g}, outside its range, {ends}")


SHARE = Metric("accuracy", low=0, high=1)
"""What any other metric is taken for: a share, of which more is better."""


def named(metric: Any) -> Metric:
    """The metric with its name and range."""
    return metric if isinstance(metric, Metric) else SHARE


def function_of(metric: Any) -> Any:
    """The function or object that computes it."""
    return metric.function if isinstance(metric, Metric) else metric


def comes_in_parts(metric: Any) -> bool:
    """Whether it is an object that sees one batch after the other."""
    return all(callable(getattr(function_of(metric), name, None)) for name in ("update", "compute", "reset"))


def is_metric(metric: Any) -> bool:
    """Whether it can be computed."""
    return callable(function_of(metric)) or comes_in_parts(metric)


def computed(metric: Any, outputs: Any, targets: Any) -> Any:
    """What it returns for all outputs of a split."""
    found = tally(metric)
    found.add(outputs, targets)
    return found.value()


def share_of(metric: Any, value: Any) -> float:
    """The share that what it returned stands for.

    Raises:
        OutOfRange: a value outside its range.
        TypeError, ValueError: no number.
    """
    return named(metric).share(float(value))


def computed_share(metric: Any) -> Callable[[Any, Any], float]:
    """(outputs, targets) -> the share that the metric gives them."""
    return lambda outputs, targets: share_of(metric, computed(metric, outputs, targets))


class Tally(Protocol):
    """Takes batch after batch of a split."""

    def add(self, outputs: Any, targets: Any) -> None: ...
    def value(self) -> Any: ...


def tally(metric: Any) -> Tally:
    """What collects a metric over batches: the user's own object, or all outputs for the user's function."""
    function = function_of(metric)
    return _Running(function) if comes_in_parts(metric) else Gathering(function)


class _Running:
    def __init__(self, metric: Any) -> None:
        self._metric = metric
        metric.reset()

    def add(self, outputs: Any, targets: Any) -> None:
        self._metric.update(outputs, targets)

    def value(self) -> Any:
        return self._metric.compute()


class Gathering:
    """Keeps all outputs and targets for a function of all of them."""

    def __init__(self, metric: Callable[[Any, Any], Any]) -> None:
        self._metric = metric
        self._outputs: list[Any] = []
        self._targets: list[Any] = []

    def add(self, outputs: Any, targets: Any) -> None:
        self._outputs.append(outputs)
        self._targets.append(targets)

    def value(self) -> Any:
        return self._metric(*self.joined())

    def joined(self) -> tuple[Any, Any]:
        """Outputs and targets of all batches."""
        if len(self._outputs) == 1:
            return self._outputs[0], self._targets[0]
        trees = [Tree(targets) for targets in self._targets]
        return join_batches(self._outputs, [len(tree) for tree in trees]), contents(joined(trees))
