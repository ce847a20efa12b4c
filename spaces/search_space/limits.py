"""What a policy may cost, and which granularities can be that cheap."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil

from spaces.allocation.budget import Target, Unreachable
from spaces.allocation.two_stage import EVEN_PART, FLOOR_MARGIN, TwoStage, divided, is_two_stage
from spaces.bits import BITS, FLOAT_BITS, check_bits
from spaces.cost.footprint import SIZE_METRICS
from spaces.cost.latency_predictor import Predictor
from spaces.granularity import CHOICES, parts_of, pattern_of
from spaces.network import Network
from spaces.validation import check_limit, check_words, is_number, unknown

SIZE_SPAN = 10.0
"""The smallest size target is the limit divided by this, but no smaller than a granularity can reach."""
LARGEST_TARGET = 0.9
"""Largest size target where there is no limit, for at a target of 1 nothing would be removed; larger only where some
granularity does not go as low. Of rounded weights, what is left by the least pruning that is worth a fine-tune."""

REMEMBERED = 2048
"""Sizes that are kept before those of layers with different bits begin anew: more than a proposal asks for."""


@dataclass(frozen=True)
class Limits:
    """Limits on a network's size and speed, and what each granularity can do within them.

    Attributes:
        max_size: the limit, a share of the dense model in `metric`.
        granularities: to choose from. A policy has one for all its layers, or when `mixed`, one for each layer.
            Two-stage ones such as `channel+kernel`, a removal and then masks on what stays, are for all layers only.
        min_size: the smallest size target; by default `max_size` / `SIZE_SPAN`.
        max_macs: a further limit, a share of the dense MACs.
        max_latency: a further limit, a share of the dense latency as `latency` predicts it.
        latency: predicts it; needed by a limit on it.
        bits: widths of stored values to choose from. A policy has one for all its layers, or when `mixed`, one for each
            layer. Below 32 they lower the encoded size alone.

    Raises:
        ValueError: a granularity is unknown or repeated, a limit is no share in (0, 1], or bits are no widths, repeated
            or without effect on the metric.
        Unreachable: no granularity reaches the limits; the message names the reachable range.
    """

    network: Network
    max_size: float
    granularities: tuple[str, ...] = ("fine-grained", "channel")
    metric: str = "encoded"
    mixed: bool = False
    min_size: float | None = None
    max_macs: float = 1.0
    max_latency: float = 1.0
    latency: Predictor | None = None
    bits: tuple[int, ...] = (FLOAT_BITS,)

    def __post_init__(self) -> None:
        if self.metric not in SIZE_METRICS:
            raise ValueError(unknown("size metric", self.metric, SIZE_METRICS))
        for name in ("max_size", "max_macs", "max_latency"):
            check_limit(name, getattr(self, name))
        if self.min_size is not None and not (is_number(self.min_size) and 0 < self.min_size <= self.max_size):
            raise ValueError(f"min_size must satisfy 0 < min_size <= {self.max_size:g}, got {self.min_size!r}")
        if self.max_size == 1 and self.min_size is not None and self.min_size > LARGEST_TARGET:
            raise ValueError(f"min_size without a limit is at most {LARGEST_TARGET:g}, got {self.min_size!r}")
        check_words("granularity", self.granularities, CHOICES)
        check_mixable(self.granularities, self.mixed)
        check_bit_choices(self.bits, self.metric)
        if self.latency is None and self.max_latency < 1:
            raise ValueError("a limit of latency needs a predictor: measure a latency table first")
        names = ", ".join(self.granularities)
        speeds = {"MACs": (self.max_macs, self._macs_floors), "latency": (self.max_latency, self._latency_floors)}
        for name, (limit, floors) in speeds.items():
            if (smallest := min(floors.values())) > limit:
                least = f"{ceil(smallest * 1e4) / 1e4:.4f}"
                raise Unreachable(
                    f"{name} limit {limit:g} cannot be reached by {names}: reachable is {least} to 1, and only "
                    f"removed channels lower it; set --max-{name.lower()} to at least {least}"
                )
        if not self.usable:
            raise Unreachable(self._why_unreachable())

    def _why_unreachable(self) -> str:
        removing = [g for g in self.granularities if not self._blocked_reason(g)]
        fast = [g for g in removing if self._macs_floors[g] <= self.max_macs]
        fast = [g for g in fast if self._latency_floors[g] <= self.max_latency]
        if not removing:
            names = ", ".join(self.granularities)
            return f"{names} can remove nothing of this network: every layer stays whole, `prunefront inspect` says why"
        if not fast:
            reasons = "; ".join(f"{granularity}: {reason}" for granularity, reason in self.left_out.items())
            return f"no granularity is within all limits ({reasons}): raise one of them"
        least = f"{ceil(min(self.floors[g] for g in fast) * 1e4) / 1e4:.4f}"
        largest = self.unpruned_size(max(self.bits))
        return (
            f"size limit {self.max_size:g} cannot be reached by {self.metric} size, {', '.join(fast)}"
            f"{self._at_fewest_bits}: reachable is {least} to {1 if largest == 1 else f'{largest:.4f}'}; "
            f"set --max-size to at least {least}"
        )

    @property
    def _at_fewest_bits(self) -> str:
        """Said of the smallest sizes, where these are of rounded weights."""
        return "" if self.bits == (FLOAT_BITS,) else f" at {min(self.bits)} bits"

    def target(
        self, share: float, granularity: str | Mapping[str, str], bits: int | Mapping[str, int] | None = None
    ) -> Target:
        """A size in this space, a share of the dense model, to be met in one stage.

        Args:
            bits: of stored values; by default the largest of the space, here as in all methods.
        """
        limits = self.max_macs, self.max_latency, self.latency
        width = max(self.bits) if bits is None else bits
        return Target(self.network, share, granularity, self.metric, *limits, bits=width)

    def two_stage(
        self,
        share: float,
        granularity: str,
        channel_fraction: float = EVEN_PART,
        bits: int | Mapping[str, int] | None = None,
    ) -> TwoStage:
        """A size in this space to be met by a removal of channels, then by masks on what stays.

        Args:
            channel_fraction: share of the logarithm of the size reduction that the removal does, within (0, 1).
        """
        limits = self.target(share, parts_of(granularity)[-1], bits)
        limits = replace(limits, network=self.two_stage_networks[granularity])
        return TwoStage(granularity, limits, channel_fraction, self._smallest_removal(granularity, limits.bits))

    @cached_property
    def two_stage_networks(self) -> dict[str, Network]:
        """Two-stage granularity -> the network whose groups keep to the multiples that its masks need."""
        return {one: divided(self.network, one) for one in self.granularities if is_two_stage(one)}

    def _smallest_removal(self, granularity: str, bits: int | Mapping[str, int]) -> float:
        """The smallest sensible size of the removal alone of a two-stage granularity."""

        def worked_out() -> float:
            dense = self.target(1.0, parts_of(granularity)[-1], bits)
            dense = replace(dense, network=self.two_stage_networks[granularity])
            return TwoStage(granularity, dense).channel_floor * FLOOR_MARGIN

        return self._known(("removal", granularity), bits, worked_out)

    def _known(self, what: Hashable, bits: int | Mapping[str, int], work: Callable[[], float]) -> float:
        """What `work` finds, kept for later."""
        key = what, bits if isinstance(bits, int) else tuple(bits.items())
        if key not in self._sizes:
            if not isinstance(bits, int) and len(self._sizes) >= REMEMBERED:
                self._sizes.clear()
            self._sizes[key] = work()
        return self._sizes[key]

    @cached_property
    def _sizes(self) -> dict[tuple[Hashable, Hashable], float]:
        return {}

    @cached_property
    def has_two_stage(self) -> bool:
        """Whether a two-stage granularity is among the usable ones."""
        return any(map(is_two_stage, self.usable))

    def _unlimited(self, granularity: str, bits: int | Mapping[str, int] | None = None) -> Target | TwoStage:
        """The dense size as a target: what the granularity could do."""
        if is_two_stage(granularity):
            return self.two_stage(1.0, granularity, bits=bits)
        return self.target(1.0, granularity, bits)

    def _blocked_reason(self, granularity: str) -> str | None:
        """Why a granularity can remove nothing; None if it can remove something."""
        target = self._unlimited(granularity)
        if isinstance(target, TwoStage):
            return target.obstacle
        return None if target.layers else "it can remove nothing of this network"

    @cached_property
    def floors(self) -> dict[str, float]:
        """Granularity -> smallest reachable share of the dense size, at the fewest bits of the space."""
        return {granularity: self.floor(granularity, min(self.bits)) for granularity in self.granularities}

    def floor(self, granularity: str, bits: int | Mapping[str, int]) -> float:
        """The smallest reachable share of the dense size of a granularity for all layers."""
        return self._known(granularity, bits, lambda: self._unlimited(granularity, bits).floor)

    def unpruned_size(self, bits: int | Mapping[str, int]) -> float:
        """The share of the dense size where weights are rounded, and nothing is removed."""
        return self._known(None, bits, lambda: self.target(1.0, "fine-grained", bits).unpruned_size)

    @cached_property
    def usable(self) -> tuple[str, ...]:
        """Granularities that can be within the limits by themselves."""
        return tuple(g for g in self.granularities if g not in self.left_out)

    @cached_property
    def choices(self) -> tuple[str, ...]:
        """Granularities that a layer can have: the usable ones, and in mixtures fixed patterns that meet the limits
        only where other layers are pruned further than the pattern can be."""
        return tuple(g for g in self.granularities if g in self.usable or (self.mixed and self._joins(g)))

    def _joins(self, granularity: str) -> bool:
        """Whether a fixed pattern on one layer meets the limits, the others in the granularity that goes lowest."""
        pattern, lowest = pattern_of(granularity), min(self.usable, key=self.floors.__getitem__)
        able = self.target(1.0, granularity).layers if pattern and pattern.keep else ()
        frame = dict.fromkeys(self.network.layer_names, lowest)
        mixtures = (frame | {layer.name: granularity} for layer in sorted(able, key=lambda layer: layer.numel))
        return any(self._within_limits(self.target(1.0, mixture, min(self.bits))) for mixture in mixtures)

    def _within_limits(self, target: Target) -> bool:
        within = target.floor <= self.max_size and target.macs_floor <= self.max_macs
        return within and target.latency_floor <= self.max_latency

    @cached_property
    def left_out(self) -> dict[str, str]:
        """Granularity that cannot be within the limits by itself -> the first reason."""
        reasons = {}
        for granularity in self.granularities:
            if reason := self._blocked_reason(granularity):
                reasons[granularity] = reason
            elif (floor := self.floors[granularity]) > self.max_size:
                reasons[granularity] = f"its smallest size is {floor:.4f}{self._at_fewest_bits}"
            elif (floor := self._macs_floors[granularity]) > self.max_macs:
                reasons[granularity] = f"its fewest MACs are {floor:.4f} of dense"
            elif (floor := self._latency_floors[granularity]) > self.max_latency:
                reasons[granularity] = f"its lowest latency is {floor:.4f} of dense"
        return reasons

    @cached_property
    def _macs_floors(self) -> dict[str, float]:
        return {g: self._unlimited(g).macs_floor for g in self.granularities}

    @cached_property
    def _latency_floors(self) -> dict[str, float]:
        return {g: self._unlimited(g).latency_floor for g in self.granularities}

    @cached_property
    def size_range(self) -> tuple[float, float]:
        """Smallest and largest size target, shares of the dense size; none is larger than nothing removed at the most
        bits of the space."""
        floors = [self.floors[g] * FLOOR_MARGIN for g in self.usable]
        high = min(self.max_size, self.unpruned_size(max(self.bits)))
        low = max(self.min_size or high / SIZE_SPAN, min(floors))
        if high == 1:
            high = min(max(LARGEST_TARGET, *floors), high)
        return min(low, high), high

    def pruned_range(self, bits: int | Mapping[str, int]) -> tuple[float, float]:
        """Of the `size_range`, the part in which something is to be removed at these bits."""
        low, high = self.size_range
        if high >= (unpruned := self.unpruned_size(bits)) < 1:
            high = LARGEST_TARGET * unpruned
        return min(low, high), high

    def reachable(
        self, size: float, granularity: str | Mapping[str, str], bits: int | Mapping[str, int] | None = None
    ) -> float:
        """The size, or the nearest that is sensible: no smaller than one granularity for all layers can go at these
        bits, and no larger than nothing removed."""
        width = self.bits_within(granularity, max(self.bits) if bits is None else bits)
        if isinstance(granularity, str):
            size = min(max(size, self.floor(granularity, width) * FLOOR_MARGIN), self.max_size)
        return min(size, self.unpruned_size(width))

    def bits_within(
        self, granularity: str | Mapping[str, str], bits: int | Mapping[str, int]
    ) -> int | Mapping[str, int]:
        """The bits, or where one granularity for all layers cannot be within the size limit at them, the most of the
        space at which it can."""
        if not isinstance(granularity, str) or self.floor(granularity, bits) <= self.max_size:
            return bits
        within = (width for width in self.bits if self.floor(granularity, width) <= self.max_size)
        return max(within, default=min(self.bits))


def check_mixable(granularities: Sequence[str], mixed: bool) -> None:
    """Raise `ValueError` if layers may differ and a granularity among the choices is for all layers only."""
    two_stage = [granularity for granularity in granularities if is_two_stage(granularity)]
    if mixed and two_stage:
        raise ValueError(
            f"granularity {two_stage[0]!r} is for a whole policy, not for mixed layers: leave one of them out"
        )


def check_bit_choices(bits: Sequence[int], metric: str = "encoded") -> None:
    """Raise `ValueError` unless these are one or more of `BITS`, none twice, that lower sizes by this metric.

    >>> check_bit_choices((8, 4), "nonzero")
    Traceback (most recent call last):
    ValueError: bits (8, 4) do not lower nonzero size, which counts 32 each: set bits to 32, or size metric encoded
    """
    choices = () if isinstance(bits, str) or not isinstance(bits, Sequence) else tuple(map(check_bits, bits))
    if not choices or len(set(choices)) < len(choices):
        known = ", ".join(map(str, BITS))
        raise ValueError(f"bits must be a tuple of one or more of {known}, none twice, got {bits!r}")
    if metric == "nonzero" and min(choices) < FLOAT_BITS:
        raise ValueError(
            f"bits {choices} do not lower nonzero size, which counts 32 each: set bits to 32, or size metric encoded"
        )
