"""Allocations that the knobs of deep networks move."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from spaces.allocation.allocators import ALLOCATORS, SCANNED, allocate
from spaces.allocation.budget import Unreachable
from spaces.allocation.two_stage import FLOOR_MARGIN, REMOVAL, TwoStage
from spaces.granularity import parts_in, parts_of
from spaces.search_space.logits import logits_of
from spaces.search_space.projection import EVEN

if TYPE_CHECKING:
    from spaces.search_space.space import Space

SIZES, REACH = 5, 8.0
"""Log-spaced sizes a base is allocated at, and the largest logit it asks of a layer."""


class BaseAllocations:
    """What layers ask for before a space's knobs move it: by name of an allocation, at any size.

    Where every layer (or channel group) has a knob of its own there is but one, `even`.
    """

    def __init__(self, space: Space) -> None:
        self._space = space

    @cached_property
    def names(self) -> tuple[str, ...]:
        """`even`, and where knobs are shared those the evidence allows."""
        if not self._space.shared or not self._space.evidence:
            return (EVEN,)
        scanned = all(e.tradeoff for e in self._space.evidence.values())
        return (EVEN, *(name for name in ALLOCATORS if scanned or name not in SCANNED))

    def logits(self, name: str, granularity: str | Mapping[str, str], size: float) -> np.ndarray:
        """Logits (layers,) a base asks for at a size, linear between its sizes in the logarithm of the size."""
        if name == EVEN:
            return np.zeros(len(self._space.network.prunable))
        if not isinstance(granularity, str):
            words = self._space.words(granularity)
            bases = (self.logits(name, word, size) for word in self._space.usable)
            places = map(self._space.granularities.index, self._space.usable)
            return sum(base * (words == place) for base, place in zip(bases, places, strict=True))
        return self._along(name, granularity, size, self._space.size_range)

    def part_logits(self, name: str, where: TwoStage) -> tuple[np.ndarray, np.ndarray]:
        """Logits (layers,) a base asks for of the removal and of the masks, each at its own share of the reduction."""
        if name == EVEN:
            nothing = np.zeros(len(self._space.network.prunable))
            return nothing, nothing
        low, high = self._space.size_range
        sizes = low ** REMOVAL[1], high ** REMOVAL[0]
        shares = (where.removal.aim, where.mask_share)
        channel, masks = (
            self._along(name, word, size, sizes) for word, size in zip(parts_of(where.word), shares, strict=True)
        )
        return channel, masks

    def _along(self, name: str, granularity: str, size: float, sizes: tuple[float, float]) -> np.ndarray:
        low, high = sizes
        place = (SIZES - 1) * (math.log(high / size) / math.log(high / low) if high > low else 0.0)
        first = int(min(max(place, 0), SIZES - 2))
        part = min(max(place - first, 0.0), 1.0)
        before, after = (self._at(name, granularity, n, sizes) for n in (first, first + 1))
        return before * (1 - part) + after * part

    def _at(self, name: str, granularity: str, place: int, sizes: tuple[float, float]) -> np.ndarray:
        """The same at one of `SIZES` sizes; `even` where the allocation cannot reach it."""
        if (key := (name, granularity, place, sizes)) not in self._found:
            low, high = sizes
            size = high * (low / high) ** (place / (SIZES - 1))
            size = min(max(size, self._part_floors[granularity] * FLOOR_MARGIN), high)
            try:
                found = allocate(name, self._space.target(size, granularity), self._space.evidence[granularity])
            except Unreachable:
                found = {}
            names, other = self._space.network.layer_names, 0.0 if found else 0.5
            shares = np.array([found.get(layer, other) for layer in names])
            self._found[key] = np.clip(logits_of(shares), -REACH, REACH)
        return self._found[key]

    @cached_property
    def _part_floors(self) -> dict[str, float]:
        return {g: self._space.target(1.0, g).floor for g in parts_in(self._space.granularities)}

    @cached_property
    def _found(self) -> dict[tuple[str, str, int, tuple[float, float]], np.ndarray]:
        return {}
