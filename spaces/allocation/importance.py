"""What allocators know of trained weights: the importance of every unit, sorted."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np

from spaces.allocation.budget import ALMOST_ALL
from spaces.allocation.histogram import UnitScores
from spaces.allocation.knobs import rounding_damages, scan_damages
from spaces.allocation.lagrangian import LagrangianAllocator
from spaces.bits import FLOAT_BITS
from spaces.network import Network
from spaces.sensitivity import Profile

Worked = TypeVar("Worked")
MOST_TABLES = 16
"""Of other bits, kept at once."""


@dataclass(frozen=True)
class AllocationInputs:
    """What allocators know of the trained weights.

    Attributes:
        scores: layer -> score of each of its units (n,), squared L2 norms, or of very many the histogram; larger is
            kept. Layers of one channel group share their scores. They must not change, since results worked out from
            them are kept.
        tradeoff: least damage over size and MACs by a sensitivity scan, if there was one, of weights that are not
            rounded; `tradeoff_at` has it at other bits.
    """

    scores: Mapping[str, UnitScores] = field(default_factory=dict)
    tradeoff: LagrangianAllocator | None = None

    @classmethod
    def of(
        cls,
        network: Network,
        granularity: str,
        scores: Mapping[str, UnitScores],
        profile: Profile | None = None,
        metric: str = "encoded",
    ) -> AllocationInputs:
        """The inputs for one granularity: scores, and with a profile its damages as a tradeoff."""
        if profile is None:
            return cls(scores)
        damages, rounding = scan_damages(profile, network, granularity), rounding_damages(profile, network)
        return cls(scores, LagrangianAllocator(network, granularity, damages, metric, rounding=rounding))

    def tradeoff_at(self, bits: int | Mapping[str, int] | tuple[int, ...]) -> LagrangianAllocator | None:
        """Least damage over size and MACs with weights stored in `bits`, by the scan; made when first asked for.

        Args:
            bits: of all layers, or layer -> bits; or a tuple that each layer chooses from, see `LagrangianAllocator`.
        """
        key = frozenset(bits.items()) if isinstance(bits, Mapping) else bits
        if self.tradeoff is None or key in (FLOAT_BITS, (FLOAT_BITS,), frozenset()):
            return self.tradeoff
        if key not in self._tables:
            if len(self._tables) >= MOST_TABLES:
                self._tables.pop(next(iter(self._tables)))
            self._tables[key] = replace(self.tradeoff, bits=bits)
        return self._tables[key]

    @cached_property
    def _tables(self) -> dict[Hashable, LagrangianAllocator]:
        return {}

    @cached_property
    def _kept(self) -> dict[str, tuple[Hashable, Any]]:
        return {}

    def worked_out(self, what: str, kind: Hashable, work: Callable[[], Worked]) -> Worked:
        """What `work` returns, kept under the name `what` until it is asked for another `kind` of target."""
        if what not in self._kept or self._kept[what][0] != kind:
            self._kept[what] = kind, work()
        return self._kept[what][1]


@dataclass(frozen=True)
class Ranking:
    """Scores of all units, sorted once, for the family of allocations that remove everything below one threshold.

    Attributes:
        ascending: layer -> its scores (n,).
        pooled: those of all layers (m,), ascending.
        below: share of all weights that lie in the units up to each of `pooled` (m,). None where every unit is one
            weight: the share then follows from the index, and the array would be larger than the network.
    """

    ascending: Mapping[str, np.ndarray]
    pooled: np.ndarray
    below: np.ndarray | None

    @classmethod
    def of(cls, scores: Mapping[str, np.ndarray], numel: Mapping[str, int]) -> Ranking:
        """Rank all units; those of a layer hold equal parts of its `numel` weights."""
        pooled = np.concatenate(list(scores.values()))
        ends = list(accumulate(map(len, scores.values())))
        ascending = dict(zip(scores, np.split(pooled, ends[:-1]), strict=True))
        for values in ascending.values():
            values.sort()
        if all(len(values) == numel[name] for name, values in ascending.items()):
            return cls(ascending, np.sort(pooled), None)
        weight = np.concatenate([np.full(len(s), numel[name] / len(s)) for name, s in ascending.items()])
        order = np.argsort(pooled, kind="stable")
        return cls(ascending, pooled[order], np.cumsum(weight[order]) / weight.sum())

    def index(self, t: float) -> int:
        """Index in `pooled` of the threshold below which the share t of all weights lies; past the end for t = 1."""
        units = len(self.pooled)
        if t >= 1:
            return units
        if self.below is not None:
            return int(self.below.searchsorted(t))
        return bisect_left(range(units), t, key=lambda index: (index + 1) / units)

    def sparsity(self, index: int) -> dict[str, float]:
        """Layer -> share of its units below the threshold at this index; almost all of them past the end.

        Units that score exactly the threshold go in part: of every layer the same share, the one that lies before the
        index.
        """
        if index >= len(self.pooled):
            return dict.fromkeys(self.ascending, ALMOST_ALL)
        threshold = self.pooled[index]
        first, last = self.pooled.searchsorted(threshold), self.pooled.searchsorted(threshold, side="right")
        tied = float(index - first) / float(last - first)

        def share(scores: np.ndarray) -> float:
            below = int(scores.searchsorted(threshold))
            equal = int(scores.searchsorted(threshold, side="right")) - below if tied else 0
            return min((below + tied * equal) / len(scores), ALMOST_ALL)

        return {name: share(scores) for name, scores in self.ascending.items()}
