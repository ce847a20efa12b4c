"""The candidates for the next trial, before the surrogate chooses among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from spaces.allocation.allocators import SCANNED
from spaces.allocation.budget import Unreachable
from spaces.allocation.importance import AllocationInputs
from spaces.allocation.two_stage import EVEN_PART, REMOVAL, is_two_stage, preferences_of
from spaces.granularity import parts_of
from spaces.schedule import Schedule
from spaces.search_space.initial import allocated
from spaces.search_space.logits import centred
from spaces.search_space.space import EVEN, EXPONENTS, MIXED, SEED_SCHEDULE, Draft, Space

PRIOR, STATIC, SWAP, CROSSOVER, FREE = "prior", "static", "swap", "crossover", "free"
FRACTIONS = {PRIOR: 0.25, STATIC: 0.15, SWAP: 0.25, CROSSOVER: 0.15, FREE: 0.2}
"""What part of a pool comes from where. Without a scan the prior's part is free; without parents swaps and crossovers
are static."""
ALLOCATIONS = ("lamp", "global", "erk", "uniform", "last-layers")
AT_LIMIT = 0.25
"""Fraction of the candidates whose size target is the limit itself."""
GRID = 7
"""Log-spaced sizes that static allocations are worked out at; for others the nearest of these is taken."""
FREE_DEVIATION, SWAP_DEVIATION, JITTERS = 1.5, 0.7, (0.0, 0.15, 0.4, 0.8)
"""Standard deviations in logits of a free candidate's knobs, of a swapped knob, and of moves around an allocation."""
SIZE_DEVIATION = 0.15
"""Standard deviation of the logarithm of a swapped candidate's size, over its parent's."""
CHANNEL_DEVIATION = 0.1
"""Standard deviation of a swapped candidate's channel fraction."""
LOWEST = -4.0
"""Where a knob that leaves its layers unpruned starts from when it is moved."""
NEW_SCHEDULE = 0.15
"""Chance that a candidate has another schedule than its parent."""
NEW_BITS = 0.3
"""Chance that a candidate has other bits than its parent."""
UNPRUNED = 0.2
"""Of candidates at the limit whose bits alone meet it, the part that removes nothing."""

Bits = int | Mapping[str, int]
"""Bits of stored values: one for all layers, or layer -> bits."""


class Pool:
    """Draws candidates of a space.

    Args:
        space: whose axes every candidate lies on.
        inputs: by granularity, for two-stage ones by both of their parts, what allocations start from.

    Attributes:
        least: by kind (`kind_of`), the size below which nothing is drawn; without one, the space's smallest.
    """

    def __init__(self, space: Space, inputs: Mapping[str, AllocationInputs]) -> None:
        self._space, self._inputs = space, inputs
        self._static: dict[tuple[str, str, int, int], tuple[np.ndarray, str] | None] = {}
        self.least: Mapping[str, float] = {}

    def draw(self, count: int, parents: Sequence[Draft], random: np.random.Generator) -> list[Draft]:
        """`count` candidates from all sources; `parents` are the best points known, in any order."""
        sources = [self._source(at, parents) for at in random.permutation(np.linspace(0, 1, count, False))]
        return [self._draw(source, parents, random) for source in sources]

    def swap(self, parent: Draft, random: np.random.Generator) -> Draft:
        """A parent with one to three knobs moved; the shift that fits a draft to its size gives the size back."""
        logits = centred(parent.logits)
        moved = random.choice(len(logits), size=min(len(logits), int(random.integers(1, 4))), replace=False)
        logits[moved] = np.maximum(logits[moved], LOWEST) + random.normal(0, SWAP_DEVIATION, len(moved))
        granularity = self._other_granularity(parent.granularity, random)
        bits = self._other_bits(parent.bits, random)
        size = parent.size * np.exp(random.normal(0, SIZE_DEVIATION))
        schedule = self._schedule(parent.schedule, random)
        fraction = self._moved_fraction(parent, random)
        size = self._raised(self._within(size, bits, random), granularity, bits)
        return Draft(SWAP, size, granularity, logits, schedule, parent.base, fraction, bits)

    def _source(self, at: float, parents: Sequence[Draft]) -> str:
        """The source that this number in [0, 1) belongs to, by the `FRACTIONS`."""
        ends = np.cumsum(list(FRACTIONS.values()))
        source = list(FRACTIONS)[min(int(np.searchsorted(ends, at, side="right")), len(FRACTIONS) - 1)]
        if source == PRIOR and not all(inputs.tradeoff for inputs in self._inputs.values()):
            return FREE
        return STATIC if source in (SWAP, CROSSOVER) and not parents else source

    def _draw(self, source: str, parents: Sequence[Draft], random: np.random.Generator) -> Draft:
        if source == SWAP:
            return self.swap(parents[int(random.integers(len(parents)))], random)
        if source == CROSSOVER:
            return self._crossover(parents, random)
        bits = self._one_width(random)
        size, granularity = self._size(bits, random), self._one_granularity(random)
        if source == FREE:
            logits = random.normal(0, FREE_DEVIATION, len(self._space.knobs))
            chosen, base = self._of_layers(granularity, random), str(random.choice(self._space.base_names))
            by_layer = self._bits_of_layers(bits, random)
            size, schedule = self._raised(size, chosen, by_layer), self._schedule(None, random)
            return Draft(FREE, size, chosen, logits, schedule, base, self._fraction(granularity, random), by_layer)
        size = self._raised(size, granularity, bits)
        logits, base, by_layer = self._allocation(source, granularity, size, bits, random)
        logits = logits + random.normal(0, random.choice(JITTERS), len(logits))
        schedule = self._schedule(self._space.seed_schedule, random)
        return Draft(source, size, granularity, logits, schedule, base, self._fraction(granularity, random), by_layer)

    def _allocation(
        self, source: str, granularity: str, size: float, bits: int, random: np.random.Generator
    ) -> tuple[np.ndarray, str, Bits]:
        """Knobs, base and bits of a known allocation, one of the scan's where that is the source."""
        if source == PRIOR and (both := self._from_joint_table(granularity, size, random)):
            return both[0], EVEN, both[1]
        found = self._from_table(granularity, size, bits, random) if source == PRIOR else None
        while found is None:
            found = self._allocated(str(random.choice(ALLOCATIONS)), granularity, size, bits)
        return *found, self._bits_of_layers(bits, random)

    def _crossover(self, parents: Sequence[Draft], random: np.random.Generator) -> Draft:
        """Each knob from one of two parents of neighbouring sizes, equal granularity and equal base.

        Bits come with the knobs where layers may differ; else the parents' bits are equal, too.
        """
        first = parents[int(random.integers(len(parents)))]
        mates = [p for p in parents if p is not first and self._mates(p, first)]
        if not mates:
            return self.swap(first, random)
        mates.sort(key=lambda p: abs(np.log(p.size / first.size)))
        second = mates[min(int(random.exponential(1.0)), len(mates) - 1)]
        take = random.random(len(first.logits)) < 0.5
        logits = np.where(take, centred(first.logits), centred(second.logits))
        size = np.exp(random.uniform(*sorted([np.log(first.size), np.log(second.size)])))
        bits = self._crossed_bits(first.bits, second.bits, take)
        size = self._raised(self._within(size, bits, random), first.granularity, bits)
        fraction = second.channel_fraction
        return Draft(CROSSOVER, size, first.granularity, logits, first.schedule, first.base, fraction, bits)

    def _mates(self, one: Draft, other: Draft) -> bool:
        alike = (one.granularity, one.base) == (other.granularity, other.base)
        return alike and (self._space.mixed or one.bits == other.bits)

    def _crossed_bits(self, first: Bits, second: Bits, take: np.ndarray) -> Bits:
        """Of each layer, the first's where `take` (knobs,) says so of its knob, else the second's."""
        if first == second:
            return first
        taken = dict(zip(self._space.knobs, take.tolist(), strict=True))
        pairs = zip(self._space.layer_bits(first).tolist(), self._space.layer_bits(second).tolist(), strict=True)
        return {
            layer: own if taken.get(knob, True) else others
            for layer, knob, (own, others) in zip(
                self._space.network.layer_names, self._space.knob_of_layer, pairs, strict=True
            )
        }

    def _size(self, bits: int, random: np.random.Generator) -> float:
        low, high = self._space.pruned_range(bits)
        if random.random() < AT_LIMIT:
            return self._largest(bits, random)
        return float(low * (high / low) ** random.random())

    def _within(self, size: float, bits: Bits, random: np.random.Generator) -> float:
        low, high = self._space.pruned_range(bits)
        return self._largest(bits, random) if random.random() < AT_LIMIT else float(min(max(size, low), high))

    def _largest(self, bits: Bits, random: np.random.Generator) -> float:
        """The limit, or where bits alone meet it, mostly the largest size at which something is removed."""
        limit, pruned = self._space.size_range[1], self._space.pruned_range(bits)[1]
        return limit if pruned == limit or random.random() < UNPRUNED else pruned

    def _raised(self, size: float, granularity: str | Mapping[str, str], bits: Bits) -> float:
        """The size, or one above the least of its kind, spread as sizes below it would have been."""
        least = self.least.get(kind_of(self._space, granularity, bits), 0.0)
        if size >= least:
            return size
        low, high = self._space.pruned_range(bits)
        return float(least * (high / least) ** (np.log(size / low) / np.log(least / low)))

    def _fraction(self, granularity: str, random: np.random.Generator) -> float:
        """A channel fraction; nothing is drawn where masks do not follow a removal."""
        return float(random.uniform(*REMOVAL)) if is_two_stage(granularity) else EVEN_PART

    def _moved_fraction(self, parent: Draft, random: np.random.Generator) -> float:
        if not is_two_stage(parent.granularity):
            return parent.channel_fraction
        low, high = REMOVAL
        return float(min(max(parent.channel_fraction + random.normal(0, CHANNEL_DEVIATION), low), high))

    def _schedule(self, parent: Schedule | None, random: np.random.Generator) -> Schedule:
        if parent is not None and random.random() >= NEW_SCHEDULE:
            return parent
        kinds = self._space.schedules
        gradual = [kind for kind in kinds if kind != "one-shot"]
        if not gradual or ("one-shot" in kinds and random.random() < 0.25):
            return Schedule("one-shot", SEED_SCHEDULE.exponent)
        kind = gradual[0] if len(gradual) == 1 else str(random.choice(gradual))
        low, high = EXPONENTS
        return Schedule(kind, float(low * (high / low) ** random.random()))

    def _one_granularity(self, random: np.random.Generator) -> str:
        return str(random.choice(self._space.usable))

    def _of_layer(self, random: np.random.Generator) -> str:
        return str(random.choice(self._space.choices))

    def _of_layers(self, granularity: str, random: np.random.Generator) -> str | dict[str, str]:
        """The granularity for all layers, or where layers may differ, often one a layer."""
        if not self._space.mixed or random.random() < 0.5:
            return granularity
        return {name: self._of_layer(random) for name in self._space.network.layer_names}

    def _other_granularity(self, granularity: str | Mapping[str, str], random: np.random.Generator) -> Any:
        """Where layers may differ, in half of the cases another granularity for one channel group or layer."""
        if not self._space.mixed or random.random() < 0.5:
            return granularity
        network = self._space.network
        names = network.layer_names
        before = dict.fromkeys(names, granularity) if isinstance(granularity, str) else dict(granularity)
        layer = network.by_name[names[random.integers(len(names))]]
        together = network.groups[layer.channel_group].layers if layer.channel_group is not None else (layer.name,)
        return before | dict.fromkeys(together, self._of_layer(random))

    def _one_width(self, random: np.random.Generator) -> int:
        """Bits for all layers; nothing is drawn where there is no choice."""
        choices = self._space.bits
        return choices[int(random.integers(len(choices)))] if len(choices) > 1 else choices[0]

    def _bits_of_layers(self, bits: int, random: np.random.Generator) -> Bits:
        """The bits for all layers, or where layers may differ, often others for some."""
        if len(self._space.bits) == 1 or not self._space.mixed or random.random() < 0.5:
            return bits
        part, names = random.random(), self._space.network.layer_names
        return {name: self._one_width(random) if random.random() < part else bits for name in names}

    def _other_bits(self, bits: Bits, random: np.random.Generator) -> Bits:
        """Sometimes other bits; where layers may differ, in half of the cases for one to three layers."""
        if len(self._space.bits) == 1:
            return bits
        if not self._space.mixed:
            return self._one_width(random) if random.random() < NEW_BITS else bits
        if random.random() < 0.5:
            return bits
        names = self._space.network.layer_names
        before = dict(zip(names, self._space.layer_bits(bits).tolist(), strict=True))
        moved = random.choice(len(names), size=min(len(names), int(random.integers(1, 4))), replace=False)
        return before | dict.fromkeys([names[n] for n in moved], self._one_width(random))

    def _from_table(
        self, granularity: str, size: float, bits: int, random: np.random.Generator
    ) -> tuple[np.ndarray, str] | None:
        """Knobs and base of one of the scan's allocations at a size; None without a scan."""
        parts = parts_of(granularity)
        tables = [table for part in parts if (table := self._inputs[part].tradeoff_at(bits)) is not None]
        if len(tables) < len(parts):
            return None
        if len(self._space.base_names) > 1:
            return np.zeros(len(self._space.knobs)), str(random.choice(SCANNED))
        if len(tables) > 1:
            return self._allocated(str(random.choice(SCANNED)), granularity, size, bits)
        return self._space.logits(tables[0].at(size, float(random.choice(tables[0].mixes)))), EVEN

    def _from_joint_table(
        self, granularity: str, size: float, random: np.random.Generator
    ) -> tuple[np.ndarray, Bits] | None:
        """Knobs and bits of one of the scan's allocations that trade sparsity against bits, at a size.

        None where layers have no bits of their own or share knobs, without a scan of rounding, and every other time.
        """
        space = self._space
        if not space.mixed or len(space.bits) == 1 or len(space.base_names) > 1 or random.random() < 0.5:
            return None
        table = self._inputs[granularity].tradeoff_at(space.bits) if self._rounding_scanned(granularity) else None
        if table is None:
            return None
        mix = float(random.choice(table.mixes))
        return space.logits(table.at(size, mix)), table.bits_at(size, mix)

    def _rounding_scanned(self, granularity: str) -> bool:
        table = self._inputs[granularity].tradeoff
        return table is not None and bool(table.rounding)

    @cached_property
    def _grids(self) -> dict[int, np.ndarray]:
        """By bits, the sizes that static allocations are worked out at."""
        ranges = {bits: self._space.pruned_range(bits) for bits in self._space.bits}
        return {
            bits: np.geomspace(low, high, GRID) if high > low else np.array([high])
            for bits, (low, high) in ranges.items()
        }

    def _allocated(self, name: str, granularity: str, size: float, bits: int) -> tuple[np.ndarray, str] | None:
        """Knobs and base of a static allocation at the grid's nearest size; None where it cannot be reached."""
        if len(self._space.base_names) > 1:
            return np.zeros(len(self._space.knobs)), name
        grid = self._grids[bits]
        nearest = int(np.argmin(np.abs(np.log(grid / size))))
        if (key := (name, granularity, bits, nearest)) not in self._static:
            wanted = self._space.reachable(float(grid[nearest]), granularity, bits)
            try:
                found = allocated(self._space, name, wanted, granularity, self._inputs, bits)
                self._static[key] = self._space.logits(preferences_of(found) if found.removal else found.sparsity), EVEN
            except Unreachable:
                self._static[key] = None
        return self._static[key]


def kind_of(space: Space, granularity: str | Mapping[str, str], bits: Bits) -> str:
    """The word for points whose smallest living size is one: their granularity, and their bits where these differ."""
    if space.mixed or not isinstance(granularity, str):
        return MIXED
    return granularity if len(space.bits) == 1 else f"{granularity} at {space.bits_within(granularity, bits)} bits"
