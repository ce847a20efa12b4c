"""Points that other trials are evaluating while the next one is proposed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from search.proposals.features import Features, Landed
from search.proposals.surrogate import Surrogate
from spaces.search_space.projection import Projector

DRAWS = 4
"""How many draws of what pending trials may turn out to be a gain is averaged over."""
MOST_PENDING = 64
"""Most pending trials that a surrogate is given; of more, those most like the best candidates."""


@dataclass(frozen=True)
class _Pending:
    """A trial without a result: its values of all axes, where they landed, and what tells its fine-tune from others."""

    params: Mapping[str, Any]
    point: Landed
    key: str


class PendingPoints:
    """The trials that are being evaluated, each fitted once for all the proposals that are made meanwhile."""

    def __init__(self, projector: Projector, features: Features) -> None:
        self._projector, self._features = projector, features
        self._known: dict[int, _Pending] = {}

    def update(self, pending: Mapping[int, Mapping[str, Any]]) -> None:
        """These are pending now, by number, and no others."""
        self._known = {number: self._of(number, params) for number, params in sorted(pending.items())}

    def _of(self, number: int, params: Mapping[str, Any]) -> _Pending:
        known = self._known.get(number)
        if known is not None and known.params == params:
            return known
        point, key = self._features.landed(self._projector, params), self._projector.project(params).key
        return _Pending(dict(params), point, key)

    @property
    def keys(self) -> set[str]:
        """What tells their fine-tunes from others'."""
        return {one.key for one in self._known.values()}

    @property
    def are_many(self) -> bool:
        """Whether there are more than a surrogate is given."""
        return len(self._known) > MOST_PENDING

    @property
    def points(self) -> list[Landed]:
        """All of them, by number."""
        return [one.point for one in self._known.values()]

    def nearest(self, surrogate: Surrogate, best: np.ndarray) -> list[Landed]:
        """The `MOST_PENDING` that are nearest to any of the best candidates' features (p, columns), by number."""
        points = self.points
        distances = surrogate.distances(np.array([point.features for point in points]), best).min(axis=1)
        return [points[n] for n in sorted(np.argsort(distances, kind="stable")[:MOST_PENDING])]
