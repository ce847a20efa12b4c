"""What allocators know of trained weights: the importance of every unit, sorted."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np

from spaces.allocation.budget import ALMOST_ALL
from spaces.allocation.knobs import scan_damages
from spaces.allocation.lagrangian import LagrangianAllocator
from spaces.network import Network
from spaces.sensitivity import Profile

Worked = TypeVar("Worked")


@dataclass(frozen=True)
class AllocationInputs:
    """What allocators know of the trained weights.

    Attributes:
        scores: layer -> score of each of its units (n,), squared L2 norms; larger is kept. Layers of one
            channel group share their scores. They must not change: what allocators work out is kept.
        tradeoff: least damage over size and MACs by a sensitivity scan, if there was one.
    """

    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    tradeoff: LagrangianAllocator | None = None

    @classmethod
    def of(
        cls,
        network: Network,
        granularity: str,
        scores: Mapping[str, np.ndarray],
        profile: Profile | None = None,
        metric: str = "encoded",
    ) -> AllocationInputs:
        """Evidence of one granularity, with the tradeoff a profile gives."""
        if profile is None:
            return cls(scores)
        return cls(
            scores, LagrangianAllocator(network, granularity, scan_damages(profile, network, granularity), metric)
        )

    @cached_property
    def _kept(self) -> dict[str, tuple[Hashable, Any]]:
        return {}

    def worked_out(self, what: str, kind: Hashable, work: Callable[[], Worked]) -> Worked:
        """What `work` gives, kept until the same is asked for another `kind` of target."""
        if what not in self._kept or self._kept[what][0] != kind:
            self._kept[what] = kind, work()
        return self._kept[what][1]


@dataclass(frozen=True)
class Ranking:
    """Scores of all units, sorted once: the family that removes everything below one threshold.

    Attributes:
        ascending: layer -> its scores (n,).
        pooled: those of all layers (m,), ascending.
        below: share of all weights in the units up to each of `pooled` (m,); None where every unit is one
            weight: these shares are easily counted, and would outgrow the network.
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

    def place(self, t: float) -> int:
        """Place in `pooled` of the threshold below which the share t of all weights lies; past the end for t = 1."""
        units = len(self.pooled)
        if t >= 1:
            return units
        if self.below is not None:
            return int(self.below.searchsorted(t))
        return bisect_left(range(units), t, key=lambda place: (place + 1) / units)

    def sparsity(self, place: int) -> dict[str, float]:
        """Layer -> share of its units below the threshold at this place; almost all of them past the end.

        Of units that score the threshold itself, every layer gives the share that lies before the place.
        """
        if place >= len(self.pooled):
            return dict.fromkeys(self.ascending, ALMOST_ALL)
        threshold = self.pooled[place]
        first, last = self.pooled.searchsorted(threshold), self.pooled.searchsorted(threshold, side="right")
        tied = float(place - first) / float(last - first)

        def share(scores: np.ndarray) -> float:
            below = int(scores.searchsorted(threshold))
            equal = int(scores.searchsorted(threshold, side="right")) - below if tied else 0
            return min((below + tied * equal) / len(scores), ALMOST_ALL)

        return {name: share(scores) for name, scores in self.ascending.items()}
