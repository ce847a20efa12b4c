"""Many points of a space landed on their sizes at once, to be compared before one of them is chosen.

The point that is chosen is landed again, exactly, by `Space.read`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from spaces.costs import Costs, Requests, Shares
from spaces.policy import Schedule

if TYPE_CHECKING:
    from spaces.space import Space

REACH = 16.0
"""Shifts lie within this many logits of 0, as in `spaces.allocation.land_by_shift`."""
STEPS = 13
"""Bisections of the shift: to 1/250 of a logit."""
LIFTED = 0.005
"""A layer sampled as whole asks for this little where the size cannot be reached without it."""
EVEN = "even"
"""The base that asks the same of every layer."""


@dataclass(frozen=True)
class Draft:
    """A point of a space before it is landed.

    Attributes:
        source: how it was drawn.
        size: target.
        granularity: one, or layer -> granularity where layers may differ.
        logits: of each knob's preference (knobs,); minus infinity leaves its layers whole.
        base: allocation the knobs move; `even` in networks whose layers have a knob each.
    """

    source: str
    size: float
    granularity: str | Mapping[str, str]
    logits: np.ndarray
    schedule: Schedule
    base: str = EVEN

    @property
    def label(self) -> str:
        """The granularity in one word."""
        return self.granularity if isinstance(self.granularity, str) else "mixed"


@dataclass(frozen=True)
class Landed:
    """Points landed together: requests, and approximate sizes (p,) and speeds (p,), shares of dense."""

    drafts: tuple[Draft, ...]
    requests: Requests
    sizes: np.ndarray
    speeds: np.ndarray

    def __add__(self, other: Landed) -> Landed:
        return Landed(
            self.drafts + other.drafts,
            self.requests + other.requests,
            np.concatenate([self.sizes, other.sizes]),
            np.concatenate([self.speeds, other.speeds]),
        )


class Landing:
    """Lands points of one space.

    Args:
        space: whose limits and knobs they have.
    """

    def __init__(self, space: Space) -> None:
        self._space = space

    def land(self, drafts: Sequence[Draft]) -> Landed:
        """Shift each point's logits until its size is within its target.

        As `Space.propose` does, layers sampled as whole are asked for a little where nothing else reaches the target,
        and mixtures that cannot reach it take the granularity with the lowest floor.
        """
        space = self._space
        channel = np.stack([space.is_channel(draft.granularity) for draft in drafts])
        targets = np.array([space.reachable(draft.size, draft.granularity) for draft in drafts])
        by_layer, by_group = self._asked(drafts, targets)
        farthest = np.full(len(drafts), REACH)
        reached = self._fits(self._costs_at(by_layer, by_group, channel, farthest)[0], targets)
        least = np.where(~reached, logits_of(np.array([LIFTED])), -np.inf)[:, None]
        by_layer, by_group = np.maximum(by_layer, least), np.maximum(by_group, least)
        stuck = ~self._fits(self._costs_at(by_layer, by_group, channel, farthest)[0], targets)
        stuck &= [not isinstance(draft.granularity, str) for draft in drafts]
        if stuck.any():
            lowest = min(space.usable, key=space.floors.__getitem__)
            return self.land([replace(d, granularity=lowest) if s else d for d, s in zip(drafts, stuck, strict=True)])
        over, under = -farthest, farthest
        for _ in range(STEPS):
            middle = (over + under) / 2
            fits = self._fits(self._costs_at(by_layer, by_group, channel, middle)[0], targets)
            over, under = np.where(fits, over, middle), np.where(fits, middle, under)
        shares, requests = self._costs_at(by_layer, by_group, channel, under)
        return Landed(tuple(drafts), requests, shares.size, shares.latency if space.speed == "latency" else shares.macs)

    def _asked(self, drafts: Sequence[Draft], targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits of each layer (p, layers) and of each channel group (p, groups) before the shift."""
        logits, (own, lead) = centred(np.stack([draft.logits for draft in drafts])), self._knob_of_layer
        by_layer, by_group = logits[:, own], logits[:, lead]
        if len(self._space.bases) == 1:
            return by_layer, by_group
        pairs = zip(drafts, targets, strict=True)
        bases = np.stack([self._space.base_logits(d.base, d.granularity, target) for d, target in pairs])
        return by_layer + bases, by_group + bases[:, self._leads]

    def _fits(self, shares: Shares, sizes: np.ndarray) -> np.ndarray:
        """Which points are within all limits (p,)."""
        fits = (shares.size <= sizes) & (shares.macs <= self._space.max_macs * (1 + 1e-9))
        return fits if shares.latency is None else fits & (shares.latency <= self._space.max_latency * (1 + 1e-9))

    def _costs_at(
        self, by_layer: np.ndarray, by_group: np.ndarray, channel: np.ndarray, shift: np.ndarray
    ) -> tuple[Shares, Requests]:
        masked = np.where(channel, 0.0, sigmoid(by_layer + shift[:, None])) * self._maskable
        by_removal = (channel @ self._members == self._members.sum(axis=0)) & self._removable
        removed = np.where(by_removal, sigmoid(by_group + shift[:, None]), 0.0)
        requests = Requests(masked, removed, ~channel & self._maskable, by_removal)
        return self._costs.of(requests), requests

    @cached_property
    def _costs(self) -> Costs:
        return Costs(self._space.network, self._space.metric, self._space.latency)

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
        return np.array(members, dtype=float).reshape(len(network.layers), len(network.groups))

    @cached_property
    def _maskable(self) -> np.ndarray:
        return np.array([layer.numel > 1 for layer in self._space.network.layers])

    @cached_property
    def _removable(self) -> np.ndarray:
        return np.array([group.obstacle is None for group in self._space.network.groups], dtype=bool)


def logits_of(shares: np.ndarray) -> np.ndarray:
    """Of shares in [0, 1); minus infinity for 0."""
    with np.errstate(divide="ignore"):
        return np.log(shares) - np.log1p(-shares)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Shares in [0, 1) of logits; minus infinity is exactly 0."""
    return np.minimum(1 / (1 + np.exp(-np.clip(logits, -700, 40))) * (logits > -np.inf), 1 - 1e-9)


def centred(logits: np.ndarray) -> np.ndarray:
    """Logits (..., knobs) less the mean of the finite ones in each row; minus infinity stays."""
    finite = np.isfinite(logits)
    total = np.where(finite, logits, 0.0).sum(axis=-1, keepdims=True)
    return np.where(finite, logits - total / np.maximum(finite.sum(axis=-1, keepdims=True), 1), -np.inf)
