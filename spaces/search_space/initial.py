"""Known allocations as points of a space: what a study evaluates first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from spaces.allocation.allocators import allocate
from spaces.allocation.budget import Unreachable
from spaces.allocation.importance import AllocationInputs
from spaces.allocation.two_stage import allocate_both, is_two_stage, preferences_of
from spaces.cost.effect import as_removed
from spaces.granularity import parts_of
from spaces.policy import PruningPolicy
from spaces.search_space.projection import Projector
from spaces.search_space.space import Space, allocator_names

SEED_SIZES = (0.0, 0.5, 0.25, 0.75, 0.125, 0.625)
"""Where initial points lie between the limit (0) and the smallest target (1), on a log scale; any first few spread."""


@dataclass(frozen=True)
class InitialPoint:
    """A known allocation as parameters of the space."""

    allocator: str
    granularity: str
    params: Mapping[str, Any]


def initial_points(projector: Projector) -> Iterator[InitialPoint]:
    """Static allocations and the scan's, spread over sizes and granularities; any first few spread.

    Of allocations that remove the same units, as happens with few layers or coarse units, only the first is a point.

    Args:
        projector: has the inputs of all granularities; those of a scan's allocators only if there was a scan.
    """
    space, seen = projector.space, set()
    names = allocator_names(scanned=all(inputs.tradeoff for inputs in projector.inputs.values()))
    low, high = space.size_range
    for turn in range(len(SEED_SIZES) * len(names)):
        size = high * (low / high) ** SEED_SIZES[(turn // len(names) + turn % len(names)) % len(SEED_SIZES)]
        name = names[turn % len(names)]
        for granularity in space.usable:
            if name == "scan-speed" and "channel" not in parts_of(granularity):
                continue  # masks change no MACs
            point = _point(projector, name, granularity, space.reachable(size, granularity))
            if point is not None and (key := projector.project(point.params).key) not in seen:
                seen.add(key)
                yield point


def allocated(
    space: Space, name: str, size: float, granularity: str, inputs: Mapping[str, AllocationInputs]
) -> PruningPolicy:
    """The policy of an allocator at a size; of a two-stage granularity, removal does half of the reduction.

    Args:
        size: a share of the dense model.
        inputs: by granularity, for a two-stage one by both of its parts.

    Raises:
        Unreachable: the allocator cannot give that size.
    """
    if is_two_stage(granularity):
        stages = space.two_stage(size, granularity)
        policy = as_removed(stages.limits.network, allocate_both(name, stages, inputs))
    else:
        sparsity = allocate(name, space.target(size, granularity), inputs[granularity])
        policy = PruningPolicy(sparsity, granularity)
    return replace(policy, criterion=space.criterion, schedule=space.seed_schedule)


def _point(projector: Projector, allocator: str, granularity: str, size: float) -> InitialPoint | None:
    space = projector.space
    try:
        policy = allocated(space, allocator, size, granularity, projector.inputs)
    except Unreachable:
        return None
    if len(space.base_names) > 1:
        params = space.params(size, granularity, dict.fromkeys(space.knobs, 0.5), space.seed_schedule, allocator)
    else:
        params = space.params(size, granularity, preferences_of(policy), space.seed_schedule)
    return InitialPoint(allocator, granularity, params)
