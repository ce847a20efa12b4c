"""Known allocations as points of a space: what a study evaluates first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from spaces.allocation.allocators import ALLOCATORS, SCANNED, allocate
from spaces.allocation.budget import Unreachable
from spaces.allocation.importance import AllocationInputs
from spaces.allocation.two_stage import allocate_both, is_two_stage, preferences_of
from spaces.cost.effect import as_removed, fine_tune_key
from spaces.granularity import parts_of
from spaces.policy import PruningPolicy
from spaces.search_space.space import Space

SEED_SIZES = (0.0, 0.5, 0.25, 0.75, 0.125, 0.625)
"""Where seeds lie between the limit (0) and the smallest target (1), on a log scale; any first few spread."""


@dataclass(frozen=True)
class InitialPoint:
    """A known allocation as parameters of the space."""

    allocator: str
    granularity: str
    params: Mapping[str, Any]


def initial_points(space: Space, evidence: Mapping[str, AllocationInputs]) -> Iterator[InitialPoint]:
    """Static allocations and the scan's, spread over sizes and granularities; any first few spread.

    Of allocations that remove the same units, as few layers or coarse units make them, the first alone is one.

    Args:
        evidence: by granularity, for combined words by both of theirs.
    """
    scanned = all(e.tradeoff for e in evidence.values())
    names = [name for name in ALLOCATORS if scanned or name not in SCANNED]
    low, high = space.size_range
    seen = set()
    for turn in range(len(SEED_SIZES) * len(names)):
        size = high * (low / high) ** SEED_SIZES[(turn // len(names) + turn % len(names)) % len(SEED_SIZES)]
        name = names[turn % len(names)]
        for granularity in space.usable:
            if name == "scan-speed" and "channel" not in parts_of(granularity):
                continue  # masks change no MACs
            seed = _seed(space, name, granularity, space.reachable(size, granularity), evidence)
            if seed is not None and (key := fine_tune_key(space.network, space.read(seed.params).policy)) not in seen:
                seen.add(key)
                yield seed


def allocated(
    space: Space, name: str, size: float, granularity: str, evidence: Mapping[str, AllocationInputs]
) -> PruningPolicy:
    """The policy of an allocator at a size; of a combined word its removal does half of the reduction.

    Raises:
        Unreachable: the allocator cannot give that size.
    """
    if is_two_stage(granularity):
        where = space.combined(size, granularity)
        policy = as_removed(where.limits.network, allocate_both(name, where, evidence))
    else:
        sparsity = allocate(name, space.target(size, granularity), evidence[granularity])
        policy = PruningPolicy(sparsity, granularity)
    return replace(policy, criterion=space.criterion, schedule=space.seed_schedule)


def _seed(
    space: Space, allocator: str, granularity: str, size: float, evidence: Mapping[str, AllocationInputs]
) -> InitialPoint | None:
    try:
        policy = allocated(space, allocator, size, granularity, evidence)
    except Unreachable:
        return None
    if len(space.bases.names) > 1:
        params = space.params(size, granularity, dict.fromkeys(space.knobs, 0.5), space.seed_schedule, allocator)
    else:
        params = space.params(size, granularity, preferences_of(policy), space.seed_schedule)
    return InitialPoint(allocator, granularity, params)
