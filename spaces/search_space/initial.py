"""Known allocations as points of a space: what a study evaluates first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from spaces.allocation.allocators import allocate
from spaces.allocation.budget import Unreachable
from spaces.allocation.importance import AllocationInputs
from spaces.allocation.two_stage import allocate_both, is_two_stage, preferences_of
from spaces.cost.effect import as_removed
from spaces.granularity import parts_of
from spaces.policy import PruningPolicy
from spaces.search_space.projection import Projector
from spaces.search_space.space import EVEN, Space, allocator_names

SEED_SIZES = (0.0, 0.5, 0.25, 0.75, 0.125, 0.625)
"""Where initial points lie between the limit (0) and the smallest target (1), on a log scale; any first few spread."""


UNPRUNED = "unpruned"
"""What points are called that remove nothing: their bits alone are within the limits."""


@dataclass(frozen=True)
class InitialPoint:
    """A known allocation as parameters of the space.

    Attributes:
        allocator: its name, or `UNPRUNED`.
        bits: of the stored values of all layers.
    """

    allocator: str
    granularity: str
    bits: int
    params: Mapping[str, Any]


def initial_points(projector: Projector) -> Iterator[InitialPoint]:
    """Bits without pruning, then static allocations and the scan's, spread over sizes, granularities and bits.

    Of the allocations, any first few spread.

    Of allocations that remove the same units, as happens with few layers or coarse units, only the first is a point.

    Args:
        projector: has the inputs of all granularities; those of a scan's allocators only if there was a scan.
    """
    seen = set()
    for point in chain(_unpruned(projector.space), _allocations(projector)):
        if (key := projector.project(point.params).key) not in seen:
            seen.add(key)
            yield point


def _unpruned(space: Space) -> Iterator[InitialPoint]:
    low, high = space.size_range
    even = dict.fromkeys(space.knobs, 0.5)
    for bits in sorted(space.bits, reverse=True):
        size, able = space.unpruned_size(bits), [g for g in space.usable if space.bits_within(g, bits) == bits]
        if able and low <= size <= high and space.target(size, "fine-grained", bits).met_by_rounding:
            yield InitialPoint(
                UNPRUNED, able[0], bits, space.params(size, able[0], even, space.seed_schedule, bits=bits)
            )


def _allocations(projector: Projector) -> Iterator[InitialPoint]:
    scanned = all(inputs.tradeoff for inputs in projector.inputs.values())
    for turn in allocations_in_turn(projector.space, scanned):
        point = _point(projector, turn.allocator, turn.granularity, turn.size, turn.bits)
        if point is not None:
            yield point


@dataclass(frozen=True)
class Turn:
    """What is tried of an allocation: a size, a share of the dense model, that the granularity reaches at the bits."""

    allocator: str
    granularity: str
    bits: int
    size: float


def allocations_in_turn(space: Space, scanned: bool) -> Iterator[Turn]:
    """The allocations behind initial points, before it is known which give the size, and which remove the same units.

    Args:
        scanned: whether those of a sensitivity scan are among them.
    """
    names = allocator_names(scanned)
    low, high = space.pruned_range(max(space.bits))
    for turn in range(len(SEED_SIZES) * len(names)):
        lap, place = divmod(turn, len(names))
        size, name = high * (low / high) ** SEED_SIZES[(lap + place) % len(SEED_SIZES)], names[place]
        for granularity in space.usable:
            if name == "scan-speed" and "channel" not in parts_of(granularity):
                continue  # masks change no MACs
            bits = _bits_in_turn(space, granularity, size, lap, place)
            yield Turn(name, granularity, bits, float(space.reachable(size, granularity, bits)))


def _bits_in_turn(space: Space, granularity: str, size: float, lap: int, place: int) -> int:
    """The bits of an allocation: the fewest in every second turn, all others in between.

    At small sizes, more weights of few bits lose less than fewer weights of many. Passed over are bits that the
    granularity cannot have within the limit, and those at which nothing would be removed. Of three bits, every
    allocator and every size meets all.
    """
    fewest, *others = sorted(space.bits)
    order = [bits for other in others for bits in (fewest, other)] or [fewest]
    turns = [order[((place + 3 * lap) // 2 + n) % len(order)] for n in range(len(order))]
    pruned = (n for n in turns if space.bits_within(granularity, n) == n and size < space.unpruned_size(n))
    return next(pruned, max(space.bits))


def allocated(
    space: Space,
    name: str,
    size: float,
    granularity: str,
    inputs: Mapping[str, AllocationInputs],
    bits: int | None = None,
) -> PruningPolicy:
    """The policy of an allocator at a size; of a two-stage granularity, removal does half of the reduction.

    Where bits alone meet the size, nothing is removed.

    Args:
        size: a share of the dense model.
        inputs: by granularity, for a two-stage one by both of its parts.
        bits: of the space's, by default its largest; fewer where the granularity cannot be within the limit at them.

    Raises:
        Unreachable: the allocator cannot give that size.
    """
    width = space.bits_within(granularity, max(space.bits) if bits is None else bits)
    if is_two_stage(granularity):
        stages = space.two_stage(size, granularity, bits=width)
        policy = as_removed(stages.limits.network, allocate_both(name, stages, inputs))
    else:
        sparsity = allocate(name, space.target(size, granularity, width), inputs[granularity])
        policy = PruningPolicy(sparsity, granularity)
    return replace(policy, criterion=space.criterion, schedule=space.seed_schedule, bits=width)


def _point(projector: Projector, allocator: str, granularity: str, size: float, bits: int) -> InitialPoint | None:
    space = projector.space
    try:
        policy = allocated(space, allocator, size, granularity, projector.inputs, bits)
    except Unreachable:
        return None
    if len(space.base_names) > 1:
        preferences, base = dict.fromkeys(space.knobs, 0.5), allocator
    else:
        preferences, base = preferences_of(policy), EVEN
    params = space.params(size, granularity, preferences, space.seed_schedule, base, bits=bits)
    return InitialPoint(allocator, granularity, bits, params)
