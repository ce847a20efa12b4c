"""Metrics in their own unit, and the share from 0 to 1 that a search works on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, stdev
from typing import Any

from search.errors import OwnCodeProblem
from spaces.validation import is_number
from spaces.wording import percent

MAX, MIN = "max", "min"
SLACK = 1e-6
"""How far a value may leave its range, since single precision rounds; in parts of the range."""
DENSE_ERROR = 0.1
"""The error of the dense network by a metric without a range."""
ROUNDING = 1e-12
"""In parts of the dense network's value: what is left of a value of 0 that has been a share."""
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
        return self._compared(value)

    def _compared(self, value: float) -> float:
        """`share` of a value within the range or not."""
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
        found = self.dense + worse * self._size * (1 if self.best == MIN else -1)
        return found if abs(found) > ROUNDING * self._size else 0.0

    def value_of(self, share: float | None) -> float | None:
        """`value`, for files and tables; None where there is none."""
        return None if share is None or not math.isfinite(found := self.value(share)) else found

    def mean(self, shares: Sequence[float]) -> tuple[float, float | None]:
        """Mean and standard deviation of the values of some shares, as shares; no deviation of a single one.

        Without a range, shares are not in proportion to values. There, the mean is the share of the mean value, and
        the deviation is how far from it the share of a value is that is worse by theirs.
        """
        values = [self.value(share) for share in shares]
        if len(shares) == 1:
            return shares[0], None
        if self.has_range or not all(map(math.isfinite, values)):
            return fmean(shares), stdev(shares)
        mean, sd = fmean(values), stdev(values)
        found = self._compared(mean)
        return found, found - self._compared(mean + sd * (1 if self.best == MIN else -1))

    def sd_of(self, mean: float | None, sd: float | None) -> float | None:
        """The standard deviation of values whose `mean` was that one; None where there is none."""
        if mean is None or sd is None:
            return None
        middle, worse = self.value_of(mean), self.value_of(mean - sd)
        return None if middle is None or worse is None else abs(middle - worse)

    def shown(self, share: float | None) -> str | None:
        """The value that a share stands for, as tables show it: a share itself in percent; None stays None."""
        if share is None:
            return None
        return percent(share, 2) if self.is_share else f"{self.value(share):.5g}"

    def told(self, share: float, digits: int = 2) -> str:
        """Likewise, in a line that has named the metric: `97.25 %`, or `31.2`; `digits` are of percent."""
        return percent(share, digits) if self.is_share else f"{self.value(share):.5g}"

    def spread(self, mean: float | None, sd: float | None) -> str | None:
        """Mean and standard deviation of shares, as tables show them."""
        if mean is None or sd is None:
            return self.shown(mean)
        if self.is_share:
            return f"{mean * 100:.2f} ± {sd * 100:.2f} %"
        deviation = self.sd_of(mean, sd)
        return f"{self.shown(mean)} ± {math.nan if deviation is None else deviation:.2g}"

    def distance(self, first: float, second: float) -> str:
        """How far the values of two shares are apart, in words."""
        if self.is_share:
            return f"{abs(first - second) * 100:.2f} points"
        return f"{abs(self.value(first) - self.value(second)):.3g} {self.name}"

    def label(self, split: str = "") -> str:
        """What an axis is called on which better is up: `validation accuracy, %`, or `RMSE (less is better)`."""
        unit = ", %" if self.is_share else " (less is better)" if self.best == MIN else ""
        return f"{split} {self.name}{unit}".strip()

    def ticks(self, low: float, high: float, count: int = 6) -> dict[float, str]:
        """About so many shares between two whose values are short numbers -> the values as an axis has them.

        >>> Metric("mAP", low=0, high=100).ticks(0.62, 0.91, 3)
        {0.7: '70', 0.8: '80', 0.9: '90'}
        """
        if self.low is not None and self.high is not None:
            return self._even_ticks(low, high, count)
        step, found = (high - low) / count, {}
        for place in range(count + 1):
            share = low + place * step
            value, apart = self.value(share), abs(self.value(share + step / 2) - self.value(share - step / 2))
            if not (math.isfinite(value) and 0 < apart < math.inf):
                continue
            size = 10.0 ** math.floor(math.log10(apart))
            size *= max(part for part in (1, 2, 5) if part * size <= apart)
            rounded = round(value / size) * size
            if self._ends_around(rounded) and low <= (place_of := self._compared(rounded)) <= high:
                found[place_of] = f"{rounded:.5g}"
        return found

    def _even_ticks(self, low: float, high: float, count: int) -> dict[float, str]:
        """The same of a metric whose values are evenly apart where shares are: a step of 1, 2 or 5 with zeros."""
        ends = sorted((self.value(low), self.value(high)))
        apart = (ends[1] - ends[0]) / count
        if not 0 < apart < math.inf:
            return {}
        size = 10.0 ** math.floor(math.log10(apart))
        size *= min((part for part in (1, 2, 5) if part * size >= apart), default=10)
        steps = range(math.ceil(ends[0] / size), math.floor(ends[1] / size) + 1)
        values = [value for step in steps if self._ends_around(value := step * size)]
        return {self._compared(value): f"{value:.5g}" for value in sorted(values, reverse=self.best == MIN)}

    @property
    def is_share(self) -> bool:
        """Whether it is a share of which more is better, by whatever name, which is shown in percent."""
        return (self.low, self.high, self.best) == (0, 1, MAX)

    @property
    def _size(self) -> float:
        """What differences from the dense network's value are measured in."""
        return abs(self.dense or 0.0) or 1.0

    def _ends_around(self, value: float) -> bool:
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def _require_inside(self, value: float) -> None:
        length = self.high - self.low if self.low is not None and self.high is not None else abs(value) + 1
        below = self.low is not None and value < self.low - SLACK * length
        above = self.high is not None and value > self.high + SLACK * length
        if below or above:
            ends = " to ".join("any" if end is None else f"{end:g}" for end in (self.low, self.high))
            raise OutOfRange(f"metric {self.name!r} is {value:.9g}, outside its range, {ends}")


SHARE = Metric("accuracy", low=0, high=1)
"""What any other metric is taken for: a share, of which more is better."""


def told_share(unit: Metric, share: float, digits: int = 2) -> str:
    """A share in a line of progress: `97.25 %`, or `mAP 31.2`."""
    return unit.told(share, digits) if unit.is_share else f"{unit.name} {unit.told(share)}"


def with_values(data: Any, unit: Metric) -> Any:
    """Plain data for JSON in which each accuracy, a share or a list of shares, is followed by the value that it stands
    for, under the same name with `value` for `accuracy`; as it was where accuracy itself is the metric.

    >>> with_values({"dense_accuracy": 0.25, "loss": 0.5}, Metric("mAP", low=0, high=100))
    {'dense_accuracy': 0.25, 'dense_value': 25.0, 'loss': 0.5}
    """
    if unit == SHARE:
        return data
    if isinstance(data, Mapping):
        found: dict[str, Any] = {}
        for key, own in data.items():
            found[key] = with_values(own, unit)
            if key.endswith(SHARE.name):
                shares = own if isinstance(own, list | tuple) else [own]
                values = [unit.value_of(share) for share in shares]
                found[key.removesuffix(SHARE.name) + "value"] = values if isinstance(own, list | tuple) else values[0]
        return found
    return [with_values(one, unit) for one in data] if isinstance(data, list | tuple) else data


def metric_to_plain(metric: Metric) -> dict[str, Any]:
    """What a study writes down of its metric."""
    return {key: value for key, value in asdict(replace(metric, function=None)).items() if key != "function"}


def metric_from_plain(data: object) -> Metric:
    """The metric of a study's record; `SHARE` if it has none that can be read."""
    if not isinstance(data, Mapping):
        return SHARE
    try:
        dense = data["dense"]
        if dense is not None and not is_number(dense):
            return SHARE
        return Metric(data["name"], None, data["best"], data["low"], data["high"], dense)
    except (KeyError, TypeError, ValueError):  # of a damaged record, or a later version
        return SHARE
