"""Metrics in their own unit, and the share from 0 to 1 that a search works on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from search.errors import OwnCodeProblem
from spaces.validation import is_number

MAX, MIN = "max", "min"
SLACK = 1e-6
"""How far a value may leave its range, since single precision rounds; in parts of the range."""
DENSE_ERROR = 0.1
"""The error of the dense network by a metric without a range."""
SLOPE = 1 - DENSE_ERROR
"""The rise of that error for a value that is worse by a small part of the dense network's."""


class OutOfRange(OwnCodeProblem, ValueError):
    """A metric's value is outside the range that it is said to have.

    Attributes:
        said: which value, and which range.
    """

    def __init__(self, said: str, remedy: str = "give it the low and high that it can have, or leave them out") -> None:
        super().__init__(f"{said}: {remedy}")
        self.said = said


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
        """Whether both ends are known."""
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

    def shown(self, share: float | None) -> str | None:
        """The value that a share stands for, as tables show it: a share itself in percent; None stays None."""
        if share is None:
            return None
        return f"{share * 100:.2f} %" if self.is_share else f"{self.value(share):.5g}"

    def spread(self, mean: float | None, sd: float | None) -> str | None:
        """Mean and standard deviation of shares, as tables show them."""
        if mean is None or sd is None:
            return self.shown(mean)
        if self.is_share:
            return f"{mean * 100:.2f} ± {sd * 100:.2f} %"
        return f"{self.shown(mean)} ± {abs(self.value(mean) - self.value(mean - sd)):.2g}"

    def distance(self, first: float, second: float) -> str:
        """How far the values of two shares are apart, in words."""
        if self.is_share:
            return f"{abs(first - second) * 100:.2f} points"
        return f"{abs(self.value(first) - self.value(second)):.3g} {self.name}"

    @property
    def is_share(self) -> bool:
        """Whether it is a share of which more is better, by whatever name, which is shown in percent."""
        return (self.low, self.high, self.best) == (0, 1, MAX)

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


def told_share(unit: Metric, share: float) -> str:
    """A share in a line of progress: `97.25%`, or `mAP 31.2`."""
    return f"{share:.2%}" if unit.is_share else f"{unit.name} {unit.shown(share)}"


def metric_to_plain(metric: Metric) -> dict[str, Any]:
    """What a study writes down of its metric."""
    return {key: value for key, value in asdict(replace(metric, function=None)).items() if key != "function"}


def metric_from_plain(data: object) -> Metric:
    """The metric of a study's record; `SHARE` if it has none that can be read."""
    if not isinstance(data, Mapping):
        return SHARE
    try:
        return Metric(data["name"], None, *(data[key] for key in ("best", "low", "high", "dense")))
    except (KeyError, TypeError, ValueError):  # of a damaged record, or a later version
        return SHARE
