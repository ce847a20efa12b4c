"""Scores of very many units as histograms, and allocations by one threshold on them.

Sorting every weight of a large network takes a multiple of its memory. Counts in narrow bins are a few hundred
kilobytes a layer, and shares read from them are off by less than a bin holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from spaces.allocation.budget import ALMOST_ALL

LOW_BITS = 16
"""Of a 32-bit float, left out of the number of its bin: 128 bins to every doubling."""
BINS = 2 ** (31 - LOW_BITS)
ZERO = -1000.0
"""Where units of score 0 begin on the logarithmic scale, far below all others; they end at `ZERO + 1`."""


@dataclass(frozen=True, eq=False)
class ScoreHistogram:
    """How many units of a layer score how much.

    Attributes:
        bins: numbers (m,) of the bins that hold a unit, rising: the upper 16 bits of the score as a 32-bit float. The
            first of all bins, 0, holds units of score 0.
        counts: of the units (m,) in each.
        sums: of their scores (m,).
    """

    bins: np.ndarray
    counts: np.ndarray
    sums: np.ndarray

    @classmethod
    def of(cls, pieces: Iterable[np.ndarray]) -> ScoreHistogram:
        """Of scores >= 0 that come in pieces (n,); what lies beyond 32-bit floats counts as the largest of them."""
        counts, sums = np.zeros(BINS, dtype=np.int64), np.zeros(BINS)
        largest = np.finfo(np.float32).max
        for piece in pieces:
            scores = np.minimum(piece, largest).astype(np.float32, copy=False)
            numbers = scores.view(np.uint32) >> LOW_BITS
            counts += np.bincount(numbers, minlength=BINS)
            sums += np.bincount(numbers, weights=scores, minlength=BINS)
        bins = np.flatnonzero(counts)
        return cls(bins, counts[bins], sums[bins])

    @cached_property
    def units(self) -> int:
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Of the scores."""
        return float(self.sums.sum()) / self.units

    def logarithms(self, factor: float = 1.0) -> np.ndarray:
        """Where the bins begin and end (m, 2): the base-2 logarithm of `factor` times the score."""
        ends = np.stack([self.bins, self.bins + 1], axis=1).astype(np.uint32) << LOW_BITS
        with np.errstate(divide="ignore"):
            found = np.log2(ends.view(np.float32).astype(float)) + np.log2(factor)
        return self._with_zeros(found)

    def lamp_logarithms(self) -> np.ndarray:
        """Likewise of the score over the sum of all that are at least as large; the largest unit is at 0."""
        not_smaller = np.cumsum(self.sums[::-1])[::-1]
        found = self.logarithms()
        with np.errstate(divide="ignore"):
            found[:, 0] -= np.log2(not_smaller)
            found[:-1, 1] -= np.log2(not_smaller[1:])
        found[-1, 1] = 0.0
        return self._with_zeros(found)

    def _with_zeros(self, logarithms: np.ndarray) -> np.ndarray:
        if self.bins[0] == 0:
            logarithms[0] = ZERO, ZERO + 1
        return logarithms


@dataclass(frozen=True, eq=False)
class HistogramRanking:
    """Histograms of all layers, for the allocations that remove everything below one threshold; see `Ranking`.

    Attributes:
        shares: layer -> rising logarithms of scores (k,), and the share of its units below each (k,).
        top: the largest logarithm.
    """

    shares: Mapping[str, tuple[np.ndarray, np.ndarray]]
    top: float

    @classmethod
    def of(cls, histograms: Mapping[str, ScoreHistogram], logarithms: Mapping[str, np.ndarray]) -> HistogramRanking:
        """Of histograms whose bins begin and end at these logarithms (m, 2)."""
        shares = {}
        for name, histogram in histograms.items():
            up_to = np.cumsum(histogram.counts) / histogram.units
            ends = np.stack([np.append(0.0, up_to[:-1]), up_to], axis=1)
            shares[name] = logarithms[name].ravel(), ends.ravel()
        return cls(shares, max(float(places[-1]) for places, _ in shares.values()))

    def sparsity(self, t: float) -> dict[str, float]:
        """Layer -> share of its units below the threshold at the share t of the way up; almost all of them for t = 1.

        Within a bin it is linear in the logarithm. Of units that score 0, each layer loses the same share.
        """
        if t >= 1:
            return dict.fromkeys(self.shares, ALMOST_ALL)
        threshold = ZERO + t * (self.top - ZERO)
        return {
            name: min(float(np.interp(threshold, places, below)), ALMOST_ALL)
            for name, (places, below) in self.shares.items()
        }


UnitScores = np.ndarray | ScoreHistogram
"""The scores of a layer's units (n,), or how many score how much."""
