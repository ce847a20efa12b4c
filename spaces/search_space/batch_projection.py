"""Many points of a space fitted to their sizes at once, to be compared before one of them is chosen.

Sizes are those of `spaces.cost.batched` and shifts have fewer steps, so that this is a little less exact than
`spaces.search_space.projection`, by which the point that is chosen is fitted again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce

import numpy as np

from spaces.allocation.budget import ALMOST_ALL
from spaces.allocation.two_stage import FLOOR_MARGIN, TwoStage, is_two_stage
from spaces.bits import FLOAT_BITS
from spaces.cost.batched import BatchCosts, Costs, Requests
from spaces.granularity import obstacle_to, parts_of
from spaces.search_space.base_allocations import BaseAllocations
from spaces.search_space.logits import LIFTED, REACH, centred
from spaces.search_space.space import Draft, Space

STEPS = 13
"""Bisections of the shift: to 1/250 of a logit."""


@dataclass(frozen=True)
class _Asked:
    """What p points ask before their shifts.

    Attributes:
        by_layer, by_group: odds of keeping, over those of removing: (p, layers) and (p, groups); infinite keeps all.
        masked, removed: which of them count: (p, layers) and (p, groups), bool.
        by_mask: layers whose granularity is a mask's (p, layers), bool, also those that it leaves unpruned.
        granularities: index of each layer's granularity (p, layers) among the space's.
        bits: of each layer's stored values (p, layers).
    """

    by_layer: np.ndarray
    by_group: np.ndarray
    masked: np.ndarray
    removed: np.ndarray
    by_mask: np.ndarray
    granularities: np.ndarray
    bits: np.ndarray

    def lifted(self, points: np.ndarray) -> _Asked:
        """The same, but of these points (p,), bool, every layer asks for at least `LIFTED`."""
        most = np.where(points, 1 / LIFTED - 1, np.inf)[:, None]
        return replace(self, by_layer=np.minimum(self.by_layer, most), by_group=np.minimum(self.by_group, most))

    def shifted(self, shift: np.ndarray) -> Requests:
        """All logits of a point moved by its shift (p,)."""
        odds = np.exp(-shift)[:, None]
        masked = np.where(self.masked, np.minimum(1 / (1 + self.by_layer * odds), ALMOST_ALL), 0.0)
        removed = np.where(self.removed, np.minimum(1 / (1 + self.by_group * odds), ALMOST_ALL), 0.0)
        return Requests(masked, removed, self.by_mask, self.removed, self.granularities, self.bits)


@dataclass(frozen=True)
class ProjectedBatch:
    """Points fitted together: requests, and approximate sizes (p,) and speeds (p,), shares of the dense model's."""

    drafts: tuple[Draft, ...]
    requests: Requests
    sizes: np.ndarray
    speeds: np.ndarray

    def __add__(self, other: ProjectedBatch) -> ProjectedBatch:
        return ProjectedBatch(
            self.drafts + other.drafts,
            self.requests + other.requests,
            np.concatenate([self.sizes, other.sizes]),
            np.concatenate([self.speeds, other.speeds]),
        )

    def ordered(self, indices: Sequence[int]) -> ProjectedBatch:
        """The points at these indices, in this order."""
        drafts = tuple(self.drafts[index] for index in indices)
        return ProjectedBatch(drafts, self.requests.at(indices), self.sizes[indices], self.speeds[indices])


class BatchProjector:
    """Fits many points of a space to their sizes, within its limits."""

    def __init__(self, space: Space, base_allocations: BaseAllocations) -> None:
        self._space, self._base_allocations = space, base_allocations

    def project(self, drafts: Sequence[Draft]) -> ProjectedBatch:
        """Shift each point's logits until its size is within its target.

        As in `Projector.fit`, layers of preference 0 are asked for a little where nothing else reaches the target, and
        mixtures that cannot reach it take the granularity that goes lowest, and a granularity that is not within the
        limit at its bits takes fewer. Where bits alone meet all limits, nothing is removed.
        """
        drafts = [replace(d, bits=self._space.bits_within(d.granularity, d.bits)) for d in drafts]
        two_stage = [draft.label if is_two_stage(draft.granularity) else "" for draft in drafts]
        if not any(two_stage):
            return self._in_one_stage(drafts)
        kinds = {kind: [n for n, own in enumerate(two_stage) if own == kind] for kind in dict.fromkeys(two_stage)}
        projected = [
            self._in_two_stages(kind, [drafts[index] for index in indices])
            if kind
            else self._in_one_stage([drafts[index] for index in indices])
            for kind, indices in kinds.items()
        ]
        together = reduce(ProjectedBatch.__add__, projected)
        return together.ordered(np.argsort([index for indices in kinds.values() for index in indices]).tolist())

    def _in_one_stage(self, drafts: Sequence[Draft]) -> ProjectedBatch:
        """Points of any granularities but two-stage ones."""
        space = self._space
        targets = np.array([space.reachable(draft.size, draft.granularity, draft.bits) for draft in drafts])
        asked, farthest = self._asked(drafts, targets), np.full(len(drafts), REACH)
        reached = self._fits(asked.shifted(farthest), targets)
        if not reached.all():
            asked = asked.lifted(~reached)
            reached = self._fits(asked.shifted(farthest), targets)
        stuck = ~reached & [not isinstance(draft.granularity, str) for draft in drafts]
        if stuck.any():
            lowest = min(space.usable, key=space.floors.__getitem__)
            return self.project(
                [replace(d, granularity=lowest) if s else d for d, s in zip(drafts, stuck, strict=True)]
            )
        requests = asked.shifted(_smallest_shifts(farthest, lambda shift: self._fits(asked.shifted(shift), targets)))
        requests = _spared(requests, lambda nothing: self._fits(nothing, targets))
        return self._batch(drafts, self._costs.achieved(requests), self._costs.of(requests))

    def _in_two_stages(self, granularity: str, drafts: Sequence[Draft]) -> ProjectedBatch:
        """Points of one two-stage granularity: first their removals, then their masks."""
        space, costs = self._space, self._two_stage_costs[granularity]
        stages = [
            space.two_stage(space.reachable(d.size, granularity, d.bits), granularity, d.channel_fraction, d.bits)
            for d in drafts
        ]
        sizes, channel_sizes = (
            np.array(each) for each in zip(*((s.limits.share, s.channel_share) for s in stages), strict=True)
        )
        asked, fixed = self._asked_in_two_stages(granularity, drafts, stages), stages[0].fixed
        fullest, margin = (ALMOST_ALL, FLOOR_MARGIN) if fixed is None else (fixed, 1.0)

        def removes_enough(removed: Requests) -> np.ndarray:
            full = replace(removed, masked=np.full_like(removed.masked, fullest))
            return self._fits(removed, channel_sizes, costs) & (costs.of(full).size * margin <= sizes)

        def fits(masked: Requests) -> np.ndarray:
            return self._fits(masked, sizes, costs)

        requests = _fitted(replace(asked, masked=np.zeros_like(asked.masked)), removes_enough)
        if fixed is None:
            requests = _fitted(asked, fits, requests.removed)
        else:
            requests = replace(requests, masked=np.full_like(requests.masked, fixed))
        requests = _spared(requests, fits)
        return self._batch(drafts, costs.achieved(requests, in_turn=True), costs.of(requests))

    def _batch(self, drafts: Sequence[Draft], achieved: Requests, costs: BatchCosts) -> ProjectedBatch:
        speeds = costs.macs if self._space.speed == "macs" or costs.latency is None else costs.latency
        return ProjectedBatch(tuple(drafts), achieved, costs.size, speeds)

    def _asked_in_two_stages(self, granularity: str, drafts: Sequence[Draft], stages: Sequence[TwoStage]) -> _Asked:
        logits, (own, first) = centred(np.stack([draft.logits for draft in drafts])), self._knob_indices
        pairs = [
            self._base_allocations.two_stage_logits(draft.base, one) for draft, one in zip(drafts, stages, strict=True)
        ]
        channels, masks = (np.stack(one) for one in zip(*pairs, strict=True))
        by_layer, by_group = logits[:, own] + masks, logits[:, first] + channels[:, self._first_layers]
        every = np.ones(by_layer.shape, dtype=bool)
        removed = np.broadcast_to(self._removable, by_group.shape)
        indices = np.stack([self._space.granularity_indices(granularity)] * len(drafts))
        return _Asked(np.exp(-by_layer), np.exp(-by_group), every, removed, every, indices, self._bits(drafts))

    def _asked(self, drafts: Sequence[Draft], targets: np.ndarray) -> _Asked:
        logits, (own, first) = centred(np.stack([draft.logits for draft in drafts])), self._knob_indices
        by_layer, by_group = logits[:, own], logits[:, first]
        if len(self._space.base_names) > 1:
            pairs = zip(drafts, targets, strict=True)
            logits_at = self._base_allocations.logits
            below = np.stack([logits_at(d.base, d.granularity, target, d.bits) for d, target in pairs])
            by_layer, by_group = by_layer + below, by_group + below[:, self._first_layers]
        indices = np.stack([self._space.granularity_indices(draft.granularity) for draft in drafts])
        channel = indices == self._channel
        removed = (channel @ self._members == self._members.sum(axis=0)) & self._removable
        masked = ~channel & np.take_along_axis(self._maskable, indices, axis=0)
        return _Asked(np.exp(-by_layer), np.exp(-by_group), masked, removed, ~channel, indices, self._bits(drafts))

    def _bits(self, drafts: Sequence[Draft]) -> np.ndarray:
        return np.stack([self._space.layer_bits(draft.bits) for draft in drafts])

    def _fits(self, requests: Requests, sizes: np.ndarray, costs: Costs | None = None) -> np.ndarray:
        """Which points are within all limits (p,)."""
        found = (costs or self._costs).of(requests)
        fits = (found.size <= sizes) & (found.macs <= self._space.max_macs * (1 + 1e-9))
        return fits if found.latency is None else fits & (found.latency <= self._space.max_latency * (1 + 1e-9))

    @cached_property
    def _costs(self) -> Costs:
        space = self._space
        return Costs(space.network, space.metric, space.latency, space.granularities)

    @cached_property
    def _two_stage_costs(self) -> Mapping[str, Costs]:
        """By two-stage granularity."""
        space = self._space
        return {
            granularity: Costs(network, space.metric, space.latency, space.granularities)
            for granularity, network in space.two_stage_networks.items()
        }

    @cached_property
    def _knob_indices(self) -> tuple[np.ndarray, np.ndarray]:
        """Index of the knob of each layer (layers,), and of each channel group's first layer (groups,)."""
        index = {knob: n for n, knob in enumerate(self._space.knobs)}
        layers = np.array([index.get(knob, 0) for knob in self._space.knob_of_layer])
        return layers, layers[self._first_layers]

    @cached_property
    def _first_layers(self) -> np.ndarray:
        """Index of the first layer of each channel group (groups,)."""
        return np.array([self._space.layer_index[group.layers[0]] for group in self._space.network.groups], dtype=int)

    @cached_property
    def _members(self) -> np.ndarray:
        """Which layer belongs to which channel group (layers, groups)."""
        network = self._space.network
        members = [[name in group.layers for group in network.groups] for name in network.layer_names]
        return np.array(members, dtype=float).reshape(len(network.prunable), len(network.groups))

    @cached_property
    def _maskable(self) -> np.ndarray:
        """Which layers can lose units in each granularity (granularities, layers)."""
        space = self._space
        return np.array(
            [
                [
                    not (layer.whole or obstacle_to(parts_of(granularity)[-1], layer.shape, layer.inputs))
                    for layer in space.network.prunable
                ]
                for granularity in space.granularities
            ]
        )

    @cached_property
    def _channel(self) -> int:
        """Index of `channel` among the granularities; -1 if it is none of them."""
        return self._space.granularities.index("channel") if "channel" in self._space.granularities else -1

    @cached_property
    def _removable(self) -> np.ndarray:
        """Which channel groups can lose channels (groups,)."""
        return np.array([group.obstacle is None for group in self._space.network.groups], dtype=bool)


def _smallest_shifts(farthest: np.ndarray, fits: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Smallest shift of each point (p,) that satisfies `fits`, to a step of the bisection.

    Args:
        farthest: of each point (p,), the largest shift; it is assumed to fit.
    """
    over, under = -farthest, farthest
    for _ in range(STEPS):
        middle = (over + under) / 2
        found = fits(middle)
        over, under = np.where(found, over, middle), np.where(found, middle, under)
    return under


def _fitted(asked: _Asked, fits: Callable[[Requests], np.ndarray], removed: np.ndarray | None = None) -> Requests:
    """What is asked, shifted until it fits; layers of preference 0 are asked for a little where they must.

    Args:
        removed: share of its units each group has lost before (p, groups).
    """

    def at(shift: np.ndarray) -> Requests:
        requests = asked.shifted(shift)
        return requests if removed is None else replace(requests, removed=removed)

    farthest = np.full(len(asked.granularities), REACH)
    reached = fits(at(farthest))
    if not reached.all():
        asked = asked.lifted(~reached)
    return at(_smallest_shifts(farthest, lambda shift: fits(at(shift))))


def _spared(requests: Requests, fits: Callable[[Requests], np.ndarray]) -> Requests:
    """Requests that remove nothing of the points whose bits alone fit."""
    rounded = (requests.bits < FLOAT_BITS).any(axis=1)
    if not rounded.any():
        return requests
    nothing = replace(
        requests, masked=np.zeros_like(requests.masked), removed=np.zeros_like(requests.removed, dtype=float)
    )
    pruned = ~(rounded & fits(nothing))[:, None]
    return replace(requests, masked=requests.masked * pruned, removed=requests.removed * pruned)
