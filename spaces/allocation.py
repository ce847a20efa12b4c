"""How much of each layer goes, for any size: allocators that give a plain sparsity dict.

An allocator is a family of sparsity dicts along one number, from nothing removed to as much as it can;
`land` walks the family until the exact size fits the target. Everything here is pure and deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import numpy as np

from spaces.errors import unknown
from spaces.layers import Layer, Network
from spaces.policy import PruningPolicy, Schedule
from spaces.profile import Profile
from spaces.size import Footprint, dense_footprint, footprint, shares

BISECTIONS = 40
"""Halvings of a family's number: far below one weight in any network."""
LOGIT_REACH = 16.0
"""A shift of this many logits empties or fills a layer up to its last unit."""
ALMOST_ALL = 1 - 1e-9
"""Asks for everything; the count rule leaves one unit."""
LAST_LAYERS_SHARE = 0.85
"""`last-layers-only` starts from the fewest last layers that hold this share of the weights."""

Family = Callable[[float], dict[str, float]]
"""t in [0, 1] -> sparsity by layer, growing with t in every layer."""


class Unreachable(ValueError):
    """No member of the family is as small as the target; the message names the smallest size."""


@dataclass(frozen=True)
class Target:
    """The size a sparsity dict is landed on, with all that fixes a size but the sparsities.

    Attributes:
        share: of the dense model in the measure `metric`, 0 < share <= 1.
        granularity: one for all layers, or layer -> granularity.
        metric: `encoded` or `nonzero`.
    """

    network: Network
    share: float
    granularity: str | Mapping[str, str] = "fine-grained"
    metric: str = "encoded"

    @cached_property
    def dense(self) -> Footprint:
        return dense_footprint(self.network)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The layers that can lose units in their granularity."""
        frame, removable = PruningPolicy({}, self.granularity), set(self.network.removable)
        return tuple(
            layer
            for layer in self.network.layers
            if layer.numel > 1 and (frame.granularity_of(layer.name) != "channel" or layer.name in removable)
        )

    def size(self, sparsity: Mapping[str, float]) -> float:
        """Exact share of the dense size under these sparsities."""
        policy = PruningPolicy(sparsity, self.granularity, schedule=Schedule("one-shot"))
        return shares(footprint(self.network, policy), self.dense).of(self.metric)

    @cached_property
    def floor(self) -> float:
        """The smallest reachable share: one unit left everywhere."""
        return self.size({layer.name: ALMOST_ALL for layer in self.layers})


def land(family: Family, target: Target) -> dict[str, float]:
    """The largest member of the family whose size is at most `target.share`.

    Raises:
        Unreachable: even `family(1.0)` is larger.
    """
    if target.size(family(0.0)) <= target.share:
        return family(0.0)
    smallest = target.size(family(1.0))
    if smallest > target.share:
        raise Unreachable(f"size {target.share:.4g} cannot be reached: the smallest is {smallest:.4g}")
    over, under = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (over + under) / 2
        if target.size(family(middle)) <= target.share:
            under = middle
        else:
            over = middle
    return family(under)


def shifted(sparsity: Mapping[str, float], shift: float) -> dict[str, float]:
    """Add `shift` to the logit of every sparsity: one monotone move that keeps the layers' order.

    Layers at 0 stay whole.

    >>> {name: round(s, 3) for name, s in shifted({"a": 0.5, "b": 0.9, "c": 0.0}, 1.0).items()}
    {'a': 0.731, 'b': 0.961, 'c': 0.0}
    """
    return {
        name: min(s / (s + (1 - s) * math.exp(-shift)), ALMOST_ALL) if s > 0 else 0.0 for name, s in sparsity.items()
    }


def land_by_shift(sparsity: Mapping[str, float], target: Target) -> dict[str, float]:
    """Shift all sparsities together until the size is just within the target.

    Raises:
        Unreachable: the layers with sparsity above 0 cannot free enough.
    """
    return land(lambda t: shifted(sparsity, (2 * t - 1) * LOGIT_REACH), target)


def centred(sparsity: Mapping[str, float]) -> dict[str, float]:
    """Shift so that the mean logit of the pruned layers is 0: the preference behind an allocation.

    `land_by_shift` of the result at the allocation's own size gives the allocation back.
    """
    logits = [math.log(s / (1 - s)) for s in sparsity.values() if s > 0]
    return shifted(sparsity, -sum(logits) / len(logits)) if logits else dict(sparsity)


@dataclass(frozen=True)
class Evidence:
    """What allocators know of the trained weights.

    Attributes:
        scores: layer -> score of each of its units (n,), squared L2 norms; larger is kept. Layers of one
            channel group share their scores.
        profile: of a sensitivity scan, if there was one.
    """

    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    profile: Profile | None = None


def uniform(target: Target, evidence: Evidence) -> dict[str, float]:
    """The same sparsity in every layer."""
    return land(lambda t: {layer.name: t * ALMOST_ALL for layer in target.layers}, target)


def global_magnitude(target: Target, evidence: Evidence) -> dict[str, float]:
    """One threshold on the magnitude of all units; channels are compared after division by their layer's mean."""
    scores = {layer.name: evidence.scores[layer.name] for layer in target.layers}
    if target.granularity == "channel":
        scores = {name: s / max(float(s.mean()), np.finfo(float).tiny) for name, s in scores.items()}
    return _by_threshold(scores, target)


def lamp(target: Target, evidence: Evidence) -> dict[str, float]:
    """One threshold on w_u^2 / sum of w_v^2 over the layer's units v at least as large (LAMP, arXiv 2010.07611).

    Each layer's largest unit scores 1, so no layer is emptied.
    """
    scores = {}
    for layer in target.layers:
        ascending = np.sort(evidence.scores[layer.name])
        tail = np.cumsum(ascending[::-1])[::-1]
        scores[layer.name] = ascending / np.maximum(tail, np.finfo(float).tiny)
    return _by_threshold(scores, target)


def erdos_renyi_kernel(target: Target, evidence: Evidence) -> dict[str, float]:
    """Keep shares proportional to (sum of a weight's dimensions) / (their product) (ERK, arXiv 1911.11134)."""
    density = {layer.name: sum(layer.shape) / layer.numel for layer in target.layers}
    top, low = 1 / min(density.values()), 1e-9 / max(density.values())

    def family(t: float) -> dict[str, float]:
        scale = top ** (1 - t) * low**t
        return {name: min(1 - min(1.0, scale * d), ALMOST_ALL) for name, d in density.items()}

    return land(family, target)


def last_layers_only(target: Target, evidence: Evidence) -> dict[str, float]:
    """One sparsity for the last layers, the others and the output layer whole.

    The fewest last layers that hold `LAST_LAYERS_SHARE` of the weights; more of them when they cannot
    free enough, the output layer last of all.
    """
    output = target.network.layers[-1].name
    from_last = target.layers[::-1]
    order = sorted(from_last, key=lambda layer: layer.name == output)
    held = list(accumulate(layer.numel for layer in order))
    enough = next(n for n, weights in enumerate(held, 1) if weights >= LAST_LAYERS_SHARE * held[-1])
    for count in range(enough, len(order) + 1):
        names = [layer.name for layer in order[:count]]
        try:
            return land(lambda t, names=names: dict.fromkeys(names, t * ALMOST_ALL), target)
        except Unreachable:
            if count == len(order):
                raise
    raise AssertionError("unreachable: the loop returns or raises")


def scan_lagrangian(target: Target, evidence: Evidence) -> dict[str, float]:
    """Least summed damage of the scan for the size: each layer minimises damage + price x bytes.

    Damages are read off the profile between its levels by the logarithm of the share kept; bytes of a
    layer are those with only this layer pruned. The price is bisected, and the remaining gap to the
    target closed by one shift.
    """
    if evidence.profile is None:
        raise ValueError("scan_lagrangian needs a profile: scan the model first")
    levels, choices = 1 - np.geomspace(1, 0.005, 33), {}
    for layer in target.layers:
        granularity = PruningPolicy({}, target.granularity).granularity_of(layer.name)
        scanned, damage = evidence.profile.damage(granularity, layer.name)
        damages = np.interp(-np.log1p(-levels), -np.log1p(-scanned), damage)
        choices[layer.name] = damages, np.array([target.size({layer.name: float(s)}) for s in levels])
    scale = max((float(d.max()) for d, _ in choices.values()), default=1.0) or 1.0
    steepest = max(1.0, 1 / min(float(np.ptp(b)) or 1.0 for _, b in choices.values())) * 1e3

    def family(t: float) -> dict[str, float]:
        price = scale * steepest * (math.expm1(40 * t) / math.expm1(40))
        return {
            name: float(min(levels[np.argmin(damages + price * sizes)], ALMOST_ALL))
            for name, (damages, sizes) in choices.items()
        }

    try:
        rough = land(family, target)
    except Unreachable:
        rough = family(1.0)
    return land_by_shift(rough, target)


def _by_threshold(scores: Mapping[str, np.ndarray], target: Target) -> dict[str, float]:
    """Remove everything below one threshold; t is the share of all weights below it."""
    ascending = {name: np.sort(s) for name, s in scores.items()}
    numel = {layer.name: layer.numel for layer in target.layers}
    pooled = np.concatenate(list(ascending.values()))
    weight = np.concatenate([np.full(len(s), numel[name] / len(s)) for name, s in ascending.items()])
    order = np.argsort(pooled, kind="stable")
    pooled, below = pooled[order], np.cumsum(weight[order]) / weight.sum()

    def family(t: float) -> dict[str, float]:
        if t >= 1:
            return dict.fromkeys(ascending, ALMOST_ALL)
        threshold = pooled[np.searchsorted(below, t)]
        return {name: min(float(np.searchsorted(s, threshold)) / len(s), ALMOST_ALL) for name, s in ascending.items()}

    return land(family, target)


Allocator = Callable[[Target, Evidence], dict[str, float]]
ALLOCATORS: Mapping[str, Allocator] = {
    "scan": scan_lagrangian,
    "lamp": lamp,
    "global": global_magnitude,
    "last-layers": last_layers_only,
    "erk": erdos_renyi_kernel,
    "uniform": uniform,
}


def allocate(name: str, target: Target, evidence: Evidence) -> dict[str, float]:
    """Sparsity by layer for the target's size, by the allocator of this name.

    Raises:
        Unreachable: the size is below what this allocator can give.
        ValueError: unknown name, or `scan` without a profile.
    """
    if name not in ALLOCATORS:
        raise ValueError(unknown("allocator", name, ALLOCATORS))
    return ALLOCATORS[name](target, evidence)
