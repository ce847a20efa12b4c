"""Base allocations: what layers ask for before the knobs of a deep network move it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property

import numpy as np

from spaces.allocation.allocators import allocate
from spaces.allocation.budget import Unreachable
from spaces.allocation.importance import AllocationInputs
from spaces.allocation.two_stage import FLOOR_MARGIN, REMOVAL, TwoStage
from spaces.granularity import parts_in, parts_of
from spaces.search_space.logits import logits_of
from spaces.search_space.space import EVEN, Space

SIZES, REACH = 5, 8.0
"""Log-spaced sizes a base allocation is worked out at, and the largest logit it asks of a layer."""


class BaseAllocations:
    """The allocations that a space's knobs move, at any size.

    Where every layer (or channel group) has a knob of its own there is but one, `even`.

    Args:
        inputs: by granularity, for two-stage ones by both of their parts, what allocators know of the trained weights.
    """

    def __init__(self, space: Space, inputs: Mapping[str, AllocationInputs]) -> None:
        self._space, self._inputs = space, inputs

    def logits(self, name: str, granularity: str | Mapping[str, str], size: float) -> np.ndarray:
        """Logits (layers,) that an allocation asks for at a size, a share of dense.

        Between the sizes it is worked out at, they are linear in the logarithm of the size.
        """
        if name == EVEN:
            return np.zeros(len(self._space.network.prunable))
        if not isinstance(granularity, str):
            chosen, usable = self._space.granularity_indices(granularity), self._space.usable
            found = (self.logits(name, one, size) for one in usable)
            indices = map(self._space.granularities.index, usable)
            return sum(one * (chosen == index) for one, index in zip(found, indices, strict=True))
        return self._between(name, granularity, size, self._space.size_range)

    def two_stage_logits(self, name: str, stages: TwoStage) -> tuple[np.ndarray, np.ndarray]:
        """Logits (layers,) that an allocation asks for of the channels, and of the masks on what stays.

        Each at the size that its stage is to leave of what it begins with.
        """
        if name == EVEN:
            nothing = np.zeros(len(self._space.network.prunable))
            return nothing, nothing
        low, high = self._space.size_range
        ends = low ** REMOVAL[1], high ** REMOVAL[0]
        sizes = (stages.removal.aim, stages.mask_share)
        channel, masks = (
            self._between(name, part, size, ends)
            for part, size in zip(parts_of(stages.granularity), sizes, strict=True)
        )
        return channel, masks

    def _between(self, name: str, granularity: str, size: float, ends: tuple[float, float]) -> np.ndarray:
        """The logits at a size between two of the `SIZES` from the larger of `ends` down to the smaller."""
        low, high = ends
        position = (SIZES - 1) * (math.log(high / size) / math.log(high / low) if high > low else 0.0)
        first = int(min(max(position, 0), SIZES - 2))
        further = min(max(position - first, 0.0), 1.0)
        before, after = (self._at(name, granularity, n, ends) for n in (first, first + 1))
        return before * (1 - further) + after * further

    def _at(self, name: str, granularity: str, number: int, ends: tuple[float, float]) -> np.ndarray:
        """The logits at one of the sizes; the same for all layers where the allocation cannot reach it."""
        if (key := (name, granularity, number, ends)) not in self._found:
            low, high = ends
            size = high * (low / high) ** (number / (SIZES - 1))
            size = min(max(size, self._floors[granularity] * FLOOR_MARGIN), high)
            try:
                found = allocate(name, self._space.target(size, granularity), self._inputs[granularity])
            except Unreachable:
                found = {}
            names, other = self._space.network.layer_names, 0.0 if found else 0.5
            sparsity = np.array([found.get(layer, other) for layer in names])
            self._found[key] = np.clip(logits_of(sparsity), -REACH, REACH)
        return self._found[key]

    @cached_property
    def _floors(self) -> dict[str, float]:
        """Granularity, of two-stage ones each part -> the smallest size that it reaches by itself."""
        return {part: self._space.target(1.0, part).floor for part in parts_in(self._space.granularities)}

    @cached_property
    def _found(self) -> dict[tuple[str, str, int, tuple[float, float]], np.ndarray]:
        return {}
