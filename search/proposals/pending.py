"""Points that other trials are evaluating while the next one is proposed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from search.proposals.features import Features, Landed
from spaces.search_space.projection import Projector

DRAWS = 4
"""How many draws of what pending trials may turn out to be a gain is averaged over."""
MOST_PENDING = 64
"""Most pending trials that a surrogate is given: of more, those that were proposed last."""


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
    def points(self) -> list[Landed]:
        """Where they landed, by number; of more than `MOST_PENDING` the last."""
        return [one.point for one in self._known.values()][-MOST_PENDING:]
