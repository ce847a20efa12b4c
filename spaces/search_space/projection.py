"""Many points of a space landed on their sizes at once, to be compared before one of them is chosen.

The point that is chosen is landed again, exactly, by `Space.read`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import TYPE_CHECKING

import numpy as np

from spaces.allocation.budget import ALMOST_ALL
from spaces.allocation.two_stage import EVEN_PART, FLOOR_MARGIN, TwoStage, is_two_stage
from spaces.cost.batched import Costs, Requests
from spaces.granularity import obstacle_to, parts_of
from spaces.schedule import Schedule
from spaces.search_space.logits import LIFTED, REACH, centred

if TYPE_CHECKING:
    from spaces.search_space.space import Space

STEPS = 13
"""Bisections of the shift: to 1/250 of a logit."""
EVEN = "even"
"""The base that asks the same of every layer."""
MIXED = "mixed"
"""What a draft's granularity is called where layers differ."""


@dataclass(frozen=True)
class Draft:
    """A point of a space before it is landed.

    Attributes:
        source: how it was drawn.
        size: target.
        granularity: one, or layer -> granularity where layers may differ.
        logits: of each knob's preference (knobs,); minus infinity leaves its layers whole.
        base: allocation the knobs move; `even` in networks whose layers have a knob each.
        part: of the logarithm of the size reduction, what the removal of a combined word does.
    """

    source: str
    size: float
    granularity: str | Mapping[str, str]
    logits: np.ndarray
    schedule: Schedule
    base: str = EVEN
    part: float = EVEN_PART

    @property
    def label(self) -> str:
        """The granularity in one word."""
        return self.granularity if isinstance(self.granularity, str) else MIXED


@dataclass(frozen=True)
class _Asked:
    """What p points ask before their shifts.

    Attributes:
        by_layer, by_group: odds of keeping, over those of removing: (p, layers) and (p, groups); infinite is whole.
        masked, removed: which of them count: (p, layers) and (p, groups), bool.
        by_mask: layers whose granularity is a mask's (p, layers), also those it leaves whole.
        words: each layer's granularity (p, layers), its place in the space's.
    """

    by_layer: np.ndarray
    by_group: np.ndarray
    masked: np.ndarray
    removed: np.ndarray
    by_mask: np.ndarray
    words: np.ndarray

    def lifted(self, points: np.ndarray) -> _Asked:
        """The same, but of these points (p,) no layer is left whole."""
        most = np.where(points, 1 / LIFTED - 1, np.inf)[:, None]
        return replace(self, by_layer=np.minimum(self.by_layer, most), by_group=np.minimum(self.by_group, most))

    def shifted(self, shift: np.ndarray) -> Requests:
        """All logits of a point moved by its shift (p,)."""
        odds = np.exp(-shift)[:, None]
        masked = np.where(self.masked, np.minimum(1 / (1 + self.by_layer * odds), ALMOST_ALL), 0.0)
        removed = np.where(self.removed, np.minimum(1 / (1 + self.by_group * odds), ALMOST_ALL), 0.0)
        return Requests(masked, removed, self.by_mask, self.removed, self.words)


@dataclass(frozen=True)
class ProjectedBatch:
    """Points landed together: requests, and approximate sizes (p,) and speeds (p,), shares of dense."""

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

    def ordered(self, places: Sequence[int]) -> ProjectedBatch:
        """The points at these places, in this order."""
        drafts = tuple(self.drafts[place] for place in places)
        return ProjectedBatch(drafts, self.requests.at(places), self.sizes[places], self.speeds[places])


class BatchProjector:
    """Lands points of one space.

    Args:
        space: whose limits and knobs they have.
    """

    def __init__(self, space: Space) -> None:
        self._space = space

    def land(self, drafts: Sequence[Draft]) -> ProjectedBatch:
        """Shift each point's logits until its size is within its target.

        As `Space.propose` does, layers sampled as whole are asked for a little where nothing else reaches the target,
        and mixtures that cannot reach it take the granularity with the lowest floor.
        """
        words = [draft.granularity if is_two_stage(draft.granularity) else "" for draft in drafts]
        if not any(words):
            return self._land(drafts)
        kinds = {kind: [place for place, word in enumerate(words) if word == kind] for kind in dict.fromkeys(words)}
        landed = [
            self._land_in_turn(kind, [drafts[place] for place in places])
            if kind
            else self._land([drafts[place] for place in places])
            for kind, places in kinds.items()
        ]
        together = reduce(ProjectedBatch.__add__, landed)
        return together.ordered(np.argsort([place for places in kinds.values() for place in places]))

    def _land(self, drafts: Sequence[Draft]) -> ProjectedBatch:
        space = self._space
        targets = np.array([space.reachable(draft.size, draft.granularity) for draft in drafts])
        asked, farthest = self._asked(drafts, targets), np.full(len(drafts), REACH)
        reached = self._fits(asked.shifted(farthest), targets)
        if not reached.all():
            asked = asked.lifted(~reached)
            reached = self._fits(asked.shifted(farthest), targets)
        stuck = ~reached & [not isinstance(draft.granularity, str) for draft in drafts]
        if stuck.any():
            lowest = min(space.usable, key=space.floors.__getitem__)
            return self.land([replace(d, granularity=lowest) if s else d for d, s in zip(drafts, stuck, strict=True)])
        requests = asked.shifted(_bisected(farthest, lambda shift: self._fits(asked.shifted(shift), targets)))
        shares = self._costs.of(requests)
        requests = self._costs.achieved(requests)
        return ProjectedBatch(
            tuple(drafts), requests, shares.size, shares.latency if space.speed == "latency" else shares.macs
        )

    def _land_in_turn(self, word: str, drafts: Sequence[Draft]) -> ProjectedBatch:
        """Points of one combined word: first their removals, then their masks."""
        space, costs = self._space, self._costs_of[word]
        targets = [space.combined(space.reachable(d.size, word), word, d.part) for d in drafts]
        sizes, channel_sizes = (
            np.array(each) for each in zip(*((t.limits.share, t.channel_share) for t in targets), strict=True)
        )
        asked, fixed = self._asked_in_turn(word, drafts, targets), targets[0].fixed
        fullest, margin = (ALMOST_ALL, FLOOR_MARGIN) if fixed is None else (fixed, 1.0)

        def removes_enough(removed: Requests) -> np.ndarray:
            full = replace(removed, masked=np.full_like(removed.masked, fullest))
            return self._fits(removed, channel_sizes, costs) & (costs.of(full).size * margin <= sizes)

        def fits(masked: Requests) -> np.ndarray:
            return self._fits(masked, sizes, costs)

        requests = _landed(replace(asked, masked=np.zeros_like(asked.masked)), removes_enough)
        if fixed is None:
            requests = _landed(asked, fits, requests.removed)
        else:
            requests = replace(requests, masked=np.full_like(requests.masked, fixed))
        shares, requests = costs.of(requests), costs.achieved(requests, in_turn=True)
        return ProjectedBatch(
            tuple(drafts), requests, shares.size, shares.latency if space.speed == "latency" else shares.macs
        )

    def _asked_in_turn(self, word: str, drafts: Sequence[Draft], targets: Sequence[TwoStage]) -> _Asked:
        logits, (own, lead) = centred(np.stack([draft.logits for draft in drafts])), self._knob_of_layer
        bases = self._space.bases
        pairs = [bases.part_logits(draft.base, target) for draft, target in zip(drafts, targets, strict=True)]
        channels, masks = (np.stack(part) for part in zip(*pairs, strict=True))
        by_layer, by_group = logits[:, own] + masks, logits[:, lead] + channels[:, self._leads]
        every = np.ones(by_layer.shape, dtype=bool)
        removed = np.broadcast_to(self._removable, by_group.shape)
        words = np.stack([self._space.words(word)] * len(drafts))
        return _Asked(np.exp(-by_layer), np.exp(-by_group), every, removed, every, words)

    def _asked(self, drafts: Sequence[Draft], targets: np.ndarray) -> _Asked:
        logits, (own, lead) = centred(np.stack([draft.logits for draft in drafts])), self._knob_of_layer
        by_layer, by_group = logits[:, own], logits[:, lead]
        if len(self._space.bases.names) > 1:
            pairs = zip(drafts, targets, strict=True)
            bases = np.stack([self._space.bases.logits(d.base, d.granularity, target) for d, target in pairs])
            by_layer, by_group = by_layer + bases, by_group + bases[:, self._leads]
        words = np.stack([self._space.words(draft.granularity) for draft in drafts])
        channel = words == self._channel
        removed = (channel @ self._members == self._members.sum(axis=0)) & self._removable
        masked = ~channel & np.take_along_axis(self._maskable, words, axis=0)
        return _Asked(np.exp(-by_layer), np.exp(-by_group), masked, removed, ~channel, words)

    def _fits(self, requests: Requests, sizes: np.ndarray, costs: Costs | None = None) -> np.ndarray:
        """Which points are within all limits (p,)."""
        shares = (costs or self._costs).of(requests)
        fits = (shares.size <= sizes) & (shares.macs <= self._space.max_macs * (1 + 1e-9))
        return fits if shares.latency is None else fits & (shares.latency <= self._space.max_latency * (1 + 1e-9))

    @cached_property
    def _costs(self) -> Costs:
        space = self._space
        return Costs(space.network, space.metric, space.latency, space.granularities)

    @cached_property
    def _costs_of(self) -> dict[str, Costs]:
        """By combined word."""
        space = self._space
        return {
            word: Costs(network, space.metric, space.latency, space.granularities)
            for word, network in space.divided.items()
        }

    @cached_property
    def _knob_of_layer(self) -> tuple[np.ndarray, np.ndarray]:
        """Place of the knob of each layer (layers,), and of each channel group's first (groups,)."""
        place = {knob: n for n, knob in enumerate(self._space.knobs)}
        layers = np.array([place.get(knob, 0) for knob in self._space.knob_names])
        return layers, layers[self._leads]

    @cached_property
    def _leads(self) -> np.ndarray:
        """Place of the first layer of each channel group (groups,)."""
        return np.array([self._space.place[group.layers[0]] for group in self._space.network.groups], dtype=int)

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
                    not (layer.whole or obstacle_to(parts_of(word)[-1], layer.shape, layer.inputs))
                    for layer in space.network.prunable
                ]
                for word in space.granularities
            ]
        )

    @cached_property
    def _channel(self) -> int:
        """Place of `channel` among the granularities; -1 if it is none of them."""
        return self._space.granularities.index("channel") if "channel" in self._space.granularities else -1

    @cached_property
    def _removable(self) -> np.ndarray:
        return np.array([group.obstacle is None for group in self._space.network.groups], dtype=bool)


def _bisected(farthest: np.ndarray, fits: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The smallest shifts (p,) that fit, up to the farthest, which are taken to."""
    over, under = -farthest, farthest
    for _ in range(STEPS):
        middle = (over + under) / 2
        found = fits(middle)
        over, under = np.where(found, over, middle), np.where(found, middle, under)
    return under


def _landed(asked: _Asked, fits: Callable[[Requests], np.ndarray], removed: np.ndarray | None = None) -> Requests:
    """What is asked, shifted until it fits; layers sampled as whole are asked for a little where they must.

    Args:
        removed: share of its units each group has lost before (p, groups).
    """

    def at(shift: np.ndarray) -> Requests:
        requests = asked.shifted(shift)
        return requests if removed is None else replace(requests, removed=removed)

    farthest = np.full(len(asked.words), REACH)
    reached = fits(at(farthest))
    if not reached.all():
        asked = asked.lifted(~reached)
    return at(_bisected(farthest, lambda shift: fits(at(shift))))
