"""A removal followed by masks on what stays, landed one after the other.

The size reduction of a combined word has two factors: channels land on size**part, then masks land on the size given
those channels. Masks of a pattern with a fixed N take off what they take off, so there the removal lands on the size.
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
"""No target below this many times the smallest reachable size: there, single weights are left."""
REMOVAL = (0.1, 0.9)
"""Range of the part: the share of the logarithm of the size reduction that the removal does."""
EVEN_PART = 0.5
"""The part of known allocations."""


def is_two_stage(word: object) -> bool:
    """Whether a word stands for a removal followed by masks."""
    return isinstance(word, str) and len(parts_of(word)) > 1


def fixed_share(word: str) -> float | None:
    """The sparsity that masks of a combined word have whatever the size; None where the size decides.

    >>> fixed_share("channel+1:4"), fixed_share("channel+*:4")
    (0.75, None)
    """
    pattern = pattern_of(parts_of(word)[-1])
    return None if pattern is None or pattern.keep is None else 1 - pattern.keep / pattern.of


def divided(network: Network, word: str) -> Network:
    """The network whose groups keep a multiple of M units where the masks are patterns `N:M`, so that M divides the
    inputs of the layers behind them as it did before; itself for other masks."""
    pattern = pattern_of(parts_of(word)[-1])
    if pattern is None:
        return network
    groups = tuple(replace(group, multiple=lcm(group.multiple, pattern.of)) for group in network.groups)
    return replace(network, groups=groups)


@dataclass(frozen=True, kw_only=True)
class RemovalTarget(Target):
    """What a removal lands on: its own share of the dense size, and one that leaves the masks' within their reach.

    Attributes:
        rest: the masks' target, on the same network.
        fixed: the sparsity of masks of a fixed pattern; the fullest that there are must fit by `FLOOR_MARGIN` else.
    """

    rest: Target
    fixed: float | None = None

    @property
    def aim(self) -> float:
        return self.share if self.fixed is None else min(self.rest.share / (1 - self.fixed), 1.0)

    @cached_property
    def _masks(self) -> np.ndarray:
        return np.full(len(self.sizer.places), ALMOST_ALL if self.fixed is None else self.fixed)

    def excess(self, pruned: Pruned) -> float:
        masked = self.sizer.masked(pruned.groups, self._masks, self.rest.divisions)
        margin = FLOOR_MARGIN if self.fixed is None else 1.0
        return max(super().excess(pruned), self.sizer.share(masked, self.metric) * margin / self.rest.share - 1)


@dataclass(frozen=True)
class TwoStage:
    """A size to land on by a removal and then by masks.

    Attributes:
        word: such as `channel+kernel`.
        limits: share, metric and speed limits; its network keeps to multiples (see `divided`), its granularity is the
            masks'.
        part: of the logarithm of the size reduction, what the removal does, 0 < part < 1.
        least: no removal aims at a smaller share of the dense size than this.
    """

    word: str
    limits: Target
    part: float = EVEN_PART
    least: float = 0.0

    @cached_property
    def fixed(self) -> float | None:
        return fixed_share(self.word)

    @cached_property
    def fullest_removal(self) -> dict[str, float]:
        """Every channel that can go, but one of each group."""
        return {layer.name: ALMOST_ALL for layer in self._channels.layers}

    @cached_property
    def _channels(self) -> Target:
        return replace(self.limits, granularity="channel")

    @cached_property
    def channel_share(self) -> float:
        """The share of the dense size the removal is to leave; 1.0 where the masks' size is fixed."""
        if self.fixed is not None:
            return 1.0
        return min(max(self.limits.share**self.part, self.least), 1.0)

    @cached_property
    def mask_share(self) -> float:
        """What the masks are to leave of what stays, at most 1."""
        return min(self.limits.share / self.channel_share, 1.0)

    @cached_property
    def removal(self) -> RemovalTarget:
        """What channels land on."""
        options = {name: getattr(self._channels, name) for name in Target.__dataclass_fields__}
        return RemovalTarget(**options | {"share": self.channel_share}, rest=self.limits, fixed=self.fixed)

    def masks(self, removal: Mapping[str, float]) -> Target:
        """What masks land on after this removal."""
        return replace(self.limits, removal=removal)

    def fixed_masks(self, removal: Mapping[str, float]) -> dict[str, float]:
        """The masks of a fixed pattern, in every layer that it divides."""
        if self.fixed is None:
            return {}
        return dict.fromkeys((layer.name for layer in self.masks(removal).layers), self.fixed)

    @cached_property
    def obstacle(self) -> str | None:
        """Why the word is of no use in this network; None if it is."""
        for part, target in zip(parts_of(self.word), (self._channels, self.limits), strict=True):
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


def allocate_both(name: str, target: TwoStage, evidence: Mapping[str, AllocationInputs]) -> PruningPolicy:
    """Channels by the allocator of this name, then masks by the same one on what stays.

    Args:
        evidence: by granularity; of both parts.

    Raises:
        Unreachable: one of them cannot be as small as it must.
    """
    mask = parts_of(target.word)[-1]
    removal = allocate(name, target.removal, evidence["channel"])
    if target.fixed is not None:
        return PruningPolicy(target.fixed_masks(removal), mask, removal)
    return PruningPolicy(allocate(name, target.masks(removal), evidence[mask]), mask, removal)


def preferences_of(policy: PruningPolicy) -> dict[str, float]:
    """The preferences behind an allocation: of a removal and masks, one for both, the mean of their logits.

    A layer that only one of them asks for has its preference by that one; so have all where the masks are fixed.
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
