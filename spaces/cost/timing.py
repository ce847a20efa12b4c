"""How long complete networks took, timed side by side, with the spread of what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from spaces.cost.latency_table import check_seconds
from spaces.validation import is_number


@dataclass(frozen=True)
class TimedNetwork:
    """A complete network, timed in rounds in which the dense one runs too.

    Attributes:
        seconds: of one forward pass, median over the rounds.
        spread: of these seconds, interquartile range over median.
        share: of the dense network's seconds in the same round, median over the rounds.
        low: lower end of the interval of `share`, see `median_interval`.
        high: upper end.

    Raises `ValueError` for numbers that are not finite or below 0, and a share outside its interval.
    """

    seconds: float
    spread: float
    share: float
    low: float
    high: float

    def __post_init__(self) -> None:
        for value in (self.seconds, self.spread, self.low):
            check_seconds(value)
        if not (is_number(self.share) and is_number(self.high) and self.low <= self.share <= self.high):
            raise ValueError(f"share must lie in its interval, got {self.share!r} of [{self.low!r}, {self.high!r}]")


@dataclass(frozen=True)
class TimedNetworks:
    """Networks timed together on one device.

    Attributes:
        device: the processor's name.
        threads: that PyTorch computed with.
        batch: examples of one forward pass.
        rounds: that counted.
        dense: the dense network; its share is exactly 1.
        copy: the dense network once more (A/A control): how far apart equal networks come out.
        networks: name -> what it took.
        command: of the user's own that timed them, on a device and with threads that only it knows; None if none did.
    """

    device: str
    threads: int
    batch: int
    rounds: int
    dense: TimedNetwork
    copy: TimedNetwork
    networks: Mapping[str, TimedNetwork]
    command: str | None = None

    def within_noise(self, name: str) -> bool:
        """Whether a network's interval meets that of the dense copy: it is not shown to be faster or slower."""
        network = self.networks[name]
        return network.low <= self.copy.high and self.copy.low <= network.high


def timed_network(seconds: Sequence[float], dense: Sequence[float]) -> TimedNetwork:
    """Sum up a network's seconds and the dense one's, round by round.

    Raises `ValueError` for other counts of rounds, for none, and for a dense network that takes no time.
    """
    if len(seconds) != len(dense) or not len(dense) or min(dense) <= 0:
        raise ValueError(f"a share needs seconds above 0 of the dense network in every round, got {dense!r}")
    shares = np.asarray(seconds, dtype=float) / np.asarray(dense, dtype=float)
    low, middle, high = np.quantile(seconds, (0.25, 0.5, 0.75))
    spread = float((high - low) / middle) if middle else 0.0
    return TimedNetwork(float(middle), spread, float(np.median(shares)), *median_interval(shares.tolist()))


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """A 95 % interval of the median that holds for any distribution; of fewer than 6 values the smallest and largest.

    From the k-th smallest to the k-th largest value, k as large as leaves at most 5 % outside by the sign test
    (Conover, Practical Nonparametric Statistics, 3rd edition, 3.2).

    >>> median_interval([8.0, 1.0, 2.0, 3.0, 5.0, 4.0, 7.0, 6.0, 9.0])
    (2.0, 8.0)
    """
    ordered, count, outside, k = sorted(values), len(values), 0, 0
    while 40 * (outside + math.comb(count, k)) <= 2**count:  # in integers: 2**1024 is no float
        outside, k = outside + math.comb(count, k), k + 1
    low = max(k - 1, 0)
    return ordered[low], ordered[count - 1 - low]
