"""Two-stage granularities such as `channel+kernel`: channels are removed, then what stays is masked.

Each stage is fitted to a size of its own: the removal to size**part, the masks then to the size itself. Masks of a
pattern with a fixed N have no size to choose, so there the removal is fitted such that the masks end at the size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import lcm

import numpy as np

from spaces.allocation.allocators import allocate
from spaces.allocation.budget import ALMOST_ALL, Target, centred
from spaces.allocation.importance import AllocationInputs
from spaces.cost.exact import Pruned
from spaces.granularity import parts_of, pattern_of
from spaces.network import Network
from spaces.policy import PruningPolicy

FLOOR_MARGIN = 1.2
"""No target is smaller than the smallest reachable size times this: at that size, layers keep single weights."""
REMOVAL = (0.1, 0.9)
"""Range of the part: which share of the size reduction, on a log scale, the removal brings about."""
EVEN_PART = 0.5
"""The part of known allocations."""


def is_two_stage(granularity: object) -> bool:
    """Whether a granularity is a removal followed by masks."""
    return isinstance(granularity, str) and len(parts_of(granularity)) > 1


def fixed_share(granularity: str) -> float | None:
    """The sparsity of masks whose pattern has a fixed N; None for other masks, whose size can be chosen.

    >>> fixed_share("channel+1:4"), fixed_share("channel+*:4")
    (0.75, None)
    """
    pattern = pattern_of(parts_of(granularity)[-1])
    return None if pattern is None or pattern.keep is None else 1 - pattern.keep / pattern.of


def divided(network: Network, granularity: str) -> Network:
    """The network for a removal before masks of this two-stage granularity.

    Before patterns `N:M` its groups keep multiples of M units, so that M still divides the inputs of the layers that
    follow; before other masks it is `network` itself.
    """
    pattern = pattern_of(parts_of(granularity)[-1])
    if pattern is None:
        return network
    groups = tuple(replace(group, multiple=lcm(group.multiple, pattern.of)) for group in network.groups)
    return replace(network, groups=groups)


@dataclass(frozen=True, kw_only=True)
class RemovalTarget(Target):
    """What a removal is fitted to: a share of the dense size, and enough removed for the masks to reach theirs.

    Attributes:
        rest: the masks' target, on the same network.
        fixed: sparsity of the masks where their pattern has a fixed N: with it, the masks' target must be met. None for
            other masks: with all but one unit of every layer masked, the size must be below the masks' target by
            `FLOOR_MARGIN`.
    """

    rest: Target
    fixed: float | None = None

    @property
    def aim(self) -> float:
        share = self.share if self.fixed is None else min(self.rest.share / (1 - self.fixed), 1.0)
        return min(share / self.unpruned_size, 1.0)

    @cached_property
    def _masks(self) -> np.ndarray:
        return np.full(len(self.sizer.layer_index), ALMOST_ALL if self.fixed is None else self.fixed)

    def excess(self, pruned: Pruned) -> float:
        masked = self.sizer.masked(pruned.groups, self._masks, self.rest.divisions)
        margin = FLOOR_MARGIN if self.fixed is None else 1.0
        return max(super().excess(pruned), self.size_of(masked) * margin / self.rest.share - 1)


@dataclass(frozen=True)
class TwoStage:
    """A size to reach by a removal and then by masks.

    Attributes:
        granularity: such as `channel+kernel`.
        limits: share, metric and speed limits, with the network of `divided` and the granularity of the masks.
        part: which share of the size reduction, on a log scale, the removal brings about, 0 < part < 1.
        least: no removal aims at a smaller share of the dense size than this.
    """

    granularity: str
    limits: Target
    part: float = EVEN_PART
    least: float = 0.0

    @cached_property
    def fixed(self) -> float | None:
        return fixed_share(self.granularity)

    @cached_property
    def fullest_removal(self) -> dict[str, float]:
        """Every channel that can go, but one of each group."""
        return {layer.name: ALMOST_ALL for layer in self._channels.layers}

    @cached_property
    def _channels(self) -> Target:
        return replace(self.limits, granularity="channel")

    @cached_property
    def channel_share(self) -> float:
        """The share of the dense size the removal is to leave; 1.0 where the masks' size is fixed.

        The reduction begins at what nothing removed takes, which is less than 1 of rounded weights.
        """
        if self.fixed is not None:
            return 1.0
        whole = self.limits.unpruned_size
        return min(max(whole * (self.limits.share / whole) ** self.part, self.least), 1.0)

    @cached_property
    def mask_share(self) -> float:
        """What the masks are to leave of what stays, at most 1."""
        return min(self.limits.share / self.channel_share, 1.0)

    @cached_property
    def removal(self) -> RemovalTarget:
        """What the removal is fitted to."""
        options = {name: getattr(self._channels, name) for name in Target.__dataclass_fields__}
        return RemovalTarget(**options | {"share": self.channel_share}, rest=self.limits, fixed=self.fixed)

    def masks(self, removal: Mapping[str, float]) -> Target:
        """What masks are fitted to after this removal."""
        return replace(self.limits, removal=removal)

    def fixed_masks(self, removal: Mapping[str, float]) -> dict[str, float]:
        """Sparsity by layer of masks of a fixed pattern, for every layer whose inputs M divides; 0 where rounding alone
        meets all limits."""
        if self.fixed is None:
            return {}
        masks = self.masks(removal)
        return dict.fromkeys((layer.name for layer in masks.layers), 0.0 if masks.met_by_rounding else self.fixed)

    @cached_property
    def obstacle(self) -> str | None:
        """Why the granularity cannot be used with this network; None if it can."""
        for part, target in zip(parts_of(self.granularity), (self._channels, self.limits), strict=True):
            if not target.layers:
                return f"its {part} part can remove nothing of this network"
        return None

    @cached_property
    def floor(self) -> float:
        """The smallest reachable share."""
        return self.masks(self.fullest_removal).floor

    @property
    def channel_floor(self) -> float:
        """The smallest share of the dense size that a removal alone reaches."""
        return self._channels.floor

    @property
    def macs_floor(self) -> float:
        return self._channels.macs_floor

    @property
    def latency_floor(self) -> float:
        return self._channels.latency_floor


def allocate_both(name: str, target: TwoStage, inputs: Mapping[str, AllocationInputs]) -> PruningPolicy:
    """Channels by the allocator of this name, then masks by the same one on what stays.

    Args:
        inputs: by granularity, for both stages.

    Raises:
        Unreachable: one of them cannot be as small as it must.
    """
    mask = parts_of(target.granularity)[-1]
    removal = allocate(name, target.removal, inputs["channel"])
    if target.fixed is not None:
        return PruningPolicy(target.fixed_masks(removal), mask, removal)
    return PruningPolicy(allocate(name, target.masks(removal), inputs[mask]), mask, removal)


def preferences_of(policy: PruningPolicy) -> dict[str, float]:
    """The preferences behind an allocation, by layer.

    Where a layer has both a removal and a mask, the mean of their logits is its preference. Masks of a fixed pattern do
    not count.
    """
    parts = [part for part in (policy.removal, {} if _is_fixed(policy) else policy.sparsity) if part]
    if len(parts) < 2:
        return centred(*parts or [{}])
    shares = [centred(part) for part in parts]
    names = {**policy.sparsity, **policy.removal}
    return {name: _between([part[name] for part in shares if part.get(name, 0.0) > 0]) for name in names}


def _is_fixed(policy: PruningPolicy) -> bool:
    granularity = policy.granularity
    return bool(policy.removal) and isinstance(granularity, str) and fixed_share(granularity) is not None


def _between(shares: list[float]) -> float:
    """The share whose logit is the mean of theirs; 0 for none."""
    if not shares:
        return 0.0
    odds = np.prod([share / (1 - share) for share in shares]) ** (1 / len(shares))
    return float(odds / (1 + odds))
