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
from spaces.granularity import parts_of
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

    def logits(
        self, name: str, granularity: str | Mapping[str, str], size: float, bits: int | Mapping[str, int]
    ) -> np.ndarray:
        """Logits (layers,) that an allocation asks for at a size, a share of dense.

        Between the sizes it is worked out at, they are linear in the logarithm of the size. Where layers differ, each
        takes what it is asked if all have its granularity or its bits; at other bits, the size is as much smaller than
        with nothing removed.
        """
        space = self._space
        if name == EVEN:
            return np.zeros(len(space.network.prunable))
        if not isinstance(bits, int):
            chosen, reduction = space.layer_bits(bits), size / space.unpruned_size(bits)
            alike = (self.logits(name, granularity, reduction * space.unpruned_size(n), n) for n in space.bits)
            return sum(one * (chosen == width) for one, width in zip(alike, space.bits, strict=True))
        if not isinstance(granularity, str):
            indices, usable = space.granularity_indices(granularity), space.usable
            found = (self.logits(name, one, size, bits) for one in usable)
            places = map(space.granularities.index, usable)
            return sum(one * (indices == index) for one, index in zip(found, places, strict=True))
        return self._between(name, granularity, size, bits, space.pruned_range(bits))

    def two_stage_logits(self, name: str, stages: TwoStage) -> tuple[np.ndarray, np.ndarray]:
        """Logits (layers,) that an allocation asks for of the channels, and of the masks on what stays.

        Each at the size that its stage is to leave of what it begins with.
        """
        if name == EVEN:
            nothing = np.zeros(len(self._space.network.prunable))
            return nothing, nothing
        bits, unpruned = stages.limits.bits, stages.limits.unpruned_size
        if not isinstance(bits, int):
            raise ValueError("two-stage granularities are for layers of the same bits")
        low, high = (size / unpruned for size in self._space.pruned_range(bits))
        ends = low ** REMOVAL[1] * unpruned, high ** REMOVAL[0] * unpruned
        sizes = (stages.removal.aim * unpruned, stages.mask_share * unpruned)
        channel, masks = (
            self._between(name, part, size, bits, ends)
            for part, size in zip(parts_of(stages.granularity), sizes, strict=True)
        )
        return channel, masks

    def _between(self, name: str, granularity: str, size: float, bits: int, ends: tuple[float, float]) -> np.ndarray:
        """The logits at a size between two of the `SIZES` from the larger of `ends` down to the smaller."""
        low, high = ends
        position = (SIZES - 1) * (math.log(high / size) / math.log(high / low) if high > low else 0.0)
        first = int(min(max(position, 0), SIZES - 2))
        further = min(max(position - first, 0.0), 1.0)
        before, after = (self._at(name, granularity, n, bits, ends) for n in (first, first + 1))
        return before * (1 - further) + after * further

    def _at(self, name: str, granularity: str, number: int, bits: int, ends: tuple[float, float]) -> np.ndarray:
        """The logits at one of the sizes; the same for all layers where the allocation cannot reach it."""
        if (key := (name, granularity, number, bits, ends)) not in self._found:
            low, high = ends
            size = high * (low / high) ** (number / (SIZES - 1))
            size = min(max(size, self._floor(granularity, bits) * FLOOR_MARGIN), high)
            try:
                found = allocate(name, self._space.target(size, granularity, bits), self._inputs[granularity])
            except Unreachable:
                found = {}
            names, other = self._space.network.layer_names, 0.0 if found else 0.5
            sparsity = np.array([found.get(layer, other) for layer in names])
            self._found[key] = np.clip(logits_of(sparsity), -REACH, REACH)
        return self._found[key]

    def _floor(self, granularity: str, bits: int) -> float:
        """The smallest size that a granularity reaches by itself."""
        if (key := (granularity, bits)) not in self._floors:
            self._floors[key] = self._space.target(1.0, granularity, bits).floor
        return self._floors[key]

    @cached_property
    def _floors(self) -> dict[tuple[str, int], float]:
        return {}

    @cached_property
    def _found(self) -> dict[tuple[str, str, int, int, tuple[float, float]], np.ndarray]:
        return {}
