"""How much of each layer goes, for any size: allocators that give a plain sparsity dict.

An allocator is a family of sparsity dicts along one number, from nothing removed to as much as it can;
`land` walks the family until the exact size fits the target. Everything here is pure and deterministic.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np

from spaces.cost.effect import remaining
from spaces.cost.exact import Pruned, Sizer, sizer_of
from spaces.cost.footprint import Footprint, Shares, shares
from spaces.cost.latency_predictor import Predictor
from spaces.granularity import Divisions, stays_whole
from spaces.network import Layer, Network
from spaces.policy import PruningPolicy
from spaces.sensitivity import Profile
from spaces.tradeoff import Tradeoff, scan_damages
from spaces.validation import check_limit, unknown

BISECTIONS = 40
"""Halvings of a family's number: far below one weight in any network."""
LOGIT_REACH = 16.0
"""A shift of this many logits empties or fills a layer up to its last unit."""
ALMOST_ALL = 1 - 1e-9
"""Asks for everything; the count rule leaves one unit."""
SPEED_MIX = 0.5
"""Share of the price on MACs in the allocation for speed."""
LEAST_LIFTED = 0.005
"""Layers the scan would leave whole ask for this little where its size cannot be reached without them."""
LAST_LAYERS_SHARE = 0.85
"""`last-layers-only` starts from the fewest last layers that hold this share of the weights."""

Family = Callable[[float], dict[str, float]]
"""t in [0, 1] -> sparsity by layer, growing with t in every layer."""

Worked = TypeVar("Worked")


class Unreachable(ValueError):
    """No member of the family is as small as the target; the message names the smallest size."""


@dataclass(frozen=True)
class Target:
    """The size a sparsity dict is landed on, with all that fixes a size but the sparsities.

    Attributes:
        share: of the dense model in the measure `metric`, 0 < share <= 1.
        granularity: one for all layers, or layer -> granularity.
        metric: `encoded` or `nonzero`.
        max_macs: share of the dense MACs to stay within as well, 0 < max_macs <= 1.
        max_latency: share of the dense latency to stay within as well, by `latency`, 0 < max_latency <= 1.
        removal: layer -> share of its output channels that are gone before; the granularity is a mask's then, and
            allocators by evidence compare the units of the dense layers.
    """

    network: Network
    share: float
    granularity: str | Mapping[str, str] = "fine-grained"
    metric: str = "encoded"
    max_macs: float = 1.0
    max_latency: float = 1.0
    latency: Predictor | None = None
    removal: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def sizer(self) -> Sizer:
        """Shared by all targets of one network object."""
        return sizer_of(self.network)

    @property
    def dense(self) -> Footprint:
        return self.sizer.dense

    @cached_property
    def kind(self) -> Hashable:
        """All of the target but its share and removal."""
        granularity = self.granularity if isinstance(self.granularity, str) else frozenset(self.granularity.items())
        return self.sizer, granularity, self.metric

    @cached_property
    def channel(self) -> np.ndarray:
        """Which layers have granularity `channel` (n,), bool, in the network's order."""
        frame = PruningPolicy({}, self.granularity)
        return np.array([frame.granularity_of(name) == "channel" for name in self.sizer.places], dtype=bool)

    @cached_property
    def divisions(self) -> Divisions | None:
        """The units of the masks; None if every unit is one weight."""
        frame = PruningPolicy({}, self.granularity)
        return self.sizer.divisions([frame.granularity_of(name) for name in self.sizer.places])

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The layers that can lose units in their granularity, as the removal leaves them."""
        frame = PruningPolicy({}, self.granularity)
        words = {layer: frame.granularity_of(layer.name) for layer in remaining(self.network, self.removal)}
        return tuple(layer for layer, word in words.items() if layer.numel > 1 and not stays_whole(layer, word))

    def vector(self, sparsity: Mapping[str, float]) -> np.ndarray:
        """Sparsity of every layer of the network (n,), 0 for those not named.

        Raises:
            ValueError: a share outside [0, 1), or a layer the network does not have (nearest match named).
        """
        vector = np.zeros(len(self.sizer.places))
        if not isinstance(sparsity, Mapping) or not set(map(type, sparsity.values())) <= {float}:
            sparsity = PruningPolicy(sparsity).sparsity
        vector[self.places(sparsity)] = list(sparsity.values())
        if not (vector >= 0).all() or not (vector < 1).all():
            PruningPolicy(sparsity)
        return vector

    def places(self, names: Mapping[str, float]) -> list[int]:
        """Places of these layers in a `vector`; `ValueError` with the nearest match for an unknown one."""
        if not names.keys() <= self.sizer.places.keys():
            self.network.require(PruningPolicy(names).sparsity)
        return [self.sizer.places[name] for name in names]

    def pruned(self, vector: np.ndarray) -> Pruned:
        """What the network keeps under a `vector` of sparsities."""
        if self.removal:
            return self.sizer.masked(self._lost, vector, self.divisions)
        return self.sizer.prune(vector, self.channel, self.divisions)

    @cached_property
    def _lost(self) -> np.ndarray:
        return self.sizer.lost(replace(self, granularity="channel", removal={}).vector(self.removal))

    @cached_property
    def aim(self) -> float:
        """The share of what the removal left; of the dense model without one."""
        return self.share / self.size({}) if self.removal else self.share

    def size(self, sparsity: Mapping[str, float]) -> float:
        """Exact share of the dense size under these sparsities."""
        return self.sizer.share(self.pruned(self.vector(sparsity)), self.metric)

    def macs(self, sparsity: Mapping[str, float]) -> float:
        """Exact share of the dense MACs under these sparsities; masks change nothing."""
        return self.cost(sparsity).macs

    def cost(self, sparsity: Mapping[str, float]) -> Shares:
        """Both sizes and the MACs under these sparsities, exact, as shares of the dense network's."""
        return shares(self.sizer.footprint(self.pruned(self.vector(sparsity))), self.dense)

    @cached_property
    def floor(self) -> float:
        """The smallest reachable share: one unit left everywhere."""
        return self.size(self._least)

    @cached_property
    def macs_floor(self) -> float:
        """The smallest reachable share of the dense MACs."""
        return self.macs(self._least)

    @cached_property
    def latency_floor(self) -> float:
        """The smallest reachable share of the dense latency; 1.0 without a predictor."""
        pruned = self.pruned(self.vector(self._least))
        return float(self.latency.share_after(self.sizer.removed(pruned))) if self.latency else 1.0

    @property
    def _least(self) -> dict[str, float]:
        return {layer.name: ALMOST_ALL for layer in self.layers}

    def excess(self, pruned: Pruned) -> float:
        """How far beyond the tighter limit, as a factor less 1; 0 or below is within both."""
        ratios = [self.sizer.share(pruned, self.metric) / self.share]
        if self.max_macs < 1:
            ratios.append(self.sizer.macs(pruned) / self.max_macs)
        if self.max_latency < 1 and self.latency:
            ratios.append(float(self.latency.share_after(self.sizer.removed(pruned))) / self.max_latency)
        return max(ratios) - 1


def land(family: Family, target: Target) -> dict[str, float]:
    """The largest member of the family within all the target's limits.

    Raises:
        Unreachable: even `family(1.0)` is larger.
    """
    return family(_landing(lambda t: target.vector(family(t)), target))


def _landing(family: Callable[[float], np.ndarray], target: Target) -> float:
    """The number of that member, in a family of vectors; members with equal counts are sized once."""
    sized: dict[bytes, float] = {}

    def excess(t: float) -> float:
        pruned = target.pruned(family(t))
        if pruned.key not in sized:
            sized[pruned.key] = target.excess(pruned)
        return sized[pruned.key]

    if excess(0.0) <= 0:
        return 0.0
    if excess(1.0) > 0:
        smallest = target.sizer.share(target.pruned(family(1.0)), target.metric)
        limits = {"MACs": target.max_macs, "latency": target.max_latency}
        also = "".join(f" with {name} {limit:.4g}" for name, limit in limits.items() if limit < 1)
        raise Unreachable(f"size {target.share:.4g}{also} cannot be reached: the smallest is {smallest:.4g}")
    over, under = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (over + under) / 2
        if excess(middle) <= 0:
            under = middle
        else:
            over = middle
    return under


def shifted(sparsity: Mapping[str, float], shift: float) -> dict[str, float]:
    """Add `shift` to the logit of every sparsity: one monotone move that keeps the layers' order.

    Layers at 0 stay whole.

    >>> {name: round(s, 3) for name, s in shifted({"a": 0.5, "b": 0.9, "c": 0.0}, 1.0).items()}
    {'a': 0.731, 'b': 0.961, 'c': 0.0}
    """
    return dict(zip(sparsity, _shifted(_values(sparsity), shift).tolist(), strict=True))


def _shifted(values: np.ndarray, shift: float) -> np.ndarray:
    moved = np.zeros_like(values)
    np.divide(values, values + (1 - values) * math.exp(-shift), out=moved, where=values > 0)
    return np.minimum(moved, ALMOST_ALL)


def _values(sparsity: Mapping[str, float]) -> np.ndarray:
    return np.array(list(sparsity.values()), dtype=float)


def land_by_shift(sparsity: Mapping[str, float], target: Target) -> dict[str, float]:
    """Shift all sparsities together until the size is just within the target.

    Raises:
        Unreachable: the layers with sparsity above 0 cannot free enough.
    """
    values, places, nothing = _values(sparsity), target.places(sparsity), np.zeros(len(target.sizer.places))

    def shift(t: float) -> float:
        return (2 * t - 1) * LOGIT_REACH

    def family(t: float) -> np.ndarray:
        vector = nothing.copy()
        vector[places] = _shifted(values, shift(t))
        return vector

    return shifted(sparsity, shift(_landing(family, target)))


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
            channel group share their scores. They must not change: what allocators work out is kept.
        tradeoff: least damage over size and MACs by a sensitivity scan, if there was one.
    """

    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    tradeoff: Tradeoff | None = None

    @classmethod
    def of(
        cls,
        network: Network,
        granularity: str,
        scores: Mapping[str, np.ndarray],
        profile: Profile | None = None,
        metric: str = "encoded",
    ) -> Evidence:
        """Evidence of one granularity, with the tradeoff a profile gives."""
        if profile is None:
            return cls(scores)
        return cls(scores, Tradeoff(network, granularity, scan_damages(profile, network, granularity), metric))

    @cached_property
    def _kept(self) -> dict[str, tuple[Hashable, Any]]:
        return {}

    def worked_out(self, what: str, kind: Hashable, work: Callable[[], Worked]) -> Worked:
        """What `work` gives, kept until the same is asked for another `kind` of target."""
        if what not in self._kept or self._kept[what][0] != kind:
            self._kept[what] = kind, work()
        return self._kept[what][1]


@dataclass(frozen=True)
class Ranking:
    """Scores of all units, sorted once: the family that removes everything below one threshold.

    Attributes:
        ascending: layer -> its scores (n,).
        pooled: those of all layers (m,), ascending.
        below: share of all weights in the units up to each of `pooled` (m,); None where every unit is one
            weight: these shares are easily counted, and would outgrow the network.
    """

    ascending: Mapping[str, np.ndarray]
    pooled: np.ndarray
    below: np.ndarray | None

    @classmethod
    def of(cls, scores: Mapping[str, np.ndarray], numel: Mapping[str, int]) -> Ranking:
        """Rank all units; those of a layer hold equal parts of its `numel` weights."""
        pooled = np.concatenate(list(scores.values()))
        ends = list(accumulate(map(len, scores.values())))
        ascending = dict(zip(scores, np.split(pooled, ends[:-1]), strict=True))
        for values in ascending.values():
            values.sort()
        if all(len(values) == numel[name] for name, values in ascending.items()):
            return cls(ascending, np.sort(pooled), None)
        weight = np.concatenate([np.full(len(s), numel[name] / len(s)) for name, s in ascending.items()])
        order = np.argsort(pooled, kind="stable")
        return cls(ascending, pooled[order], np.cumsum(weight[order]) / weight.sum())

    def place(self, t: float) -> int:
        """Place in `pooled` of the threshold below which the share t of all weights lies; past the end for t = 1."""
        units = len(self.pooled)
        if t >= 1:
            return units
        if self.below is not None:
            return int(self.below.searchsorted(t))
        return bisect_left(range(units), t, key=lambda place: (place + 1) / units)

    def sparsity(self, place: int) -> dict[str, float]:
        """Layer -> share of its units below the threshold at this place; almost all of them past the end.

        Of units that score the threshold itself, every layer gives the share that lies before the place.
        """
        if place >= len(self.pooled):
            return dict.fromkeys(self.ascending, ALMOST_ALL)
        threshold = self.pooled[place]
        first, last = self.pooled.searchsorted(threshold), self.pooled.searchsorted(threshold, side="right")
        tied = float(place - first) / float(last - first)

        def share(scores: np.ndarray) -> float:
            below = int(scores.searchsorted(threshold))
            equal = int(scores.searchsorted(threshold, side="right")) - below if tied else 0
            return min((below + tied * equal) / len(scores), ALMOST_ALL)

        return {name: share(scores) for name, scores in self.ascending.items()}


def uniform(target: Target, evidence: Evidence) -> dict[str, float]:
    """The same sparsity in every layer."""
    return land(lambda t: {layer.name: t * ALMOST_ALL for layer in target.layers}, target)


def global_magnitude(target: Target, evidence: Evidence) -> dict[str, float]:
    """One threshold on the mean square of all units; channels are compared after division by their layer's mean."""

    def score(squares: np.ndarray, numel: int) -> np.ndarray:
        if target.granularity != "channel":
            return squares * (len(squares) / numel)
        return squares / max(float(squares.mean()), np.finfo(float).tiny)

    return _by_threshold("global", score, target, evidence)


def lamp(target: Target, evidence: Evidence) -> dict[str, float]:
    """One threshold on w_u^2 / sum of w_v^2 over the layer's units v at least as large (LAMP, arXiv 2010.07611).

    Each layer's largest unit scores 1, so no layer is emptied.
    """

    def score(squares: np.ndarray, numel: int) -> np.ndarray:
        ascending = np.sort(squares)
        tail = np.cumsum(ascending[::-1])[::-1]
        return ascending / np.maximum(tail, np.finfo(float).tiny)

    return _by_threshold("lamp", score, target, evidence)


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
    output = target.network.prunable[-1].name
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


def scan(target: Target, evidence: Evidence) -> dict[str, float]:
    """Least summed damage of the scan for the size; see `spaces.tradeoff`."""
    return _least_damage(target, evidence, 0.0)


def scan_for_speed(target: Target, evidence: Evidence) -> dict[str, float]:
    """Least summed damage of the scan for the size, where MACs cost as much as bytes."""
    return _least_damage(target, evidence, SPEED_MIX)


def _least_damage(target: Target, evidence: Evidence, mix: float) -> dict[str, float]:
    if evidence.tradeoff is None:
        raise ValueError("an allocation by the scan needs a profile: scan the model first")
    rough = evidence.tradeoff.at(target.aim, mix)
    try:
        return land_by_shift(rough, target)
    except Unreachable:
        return land_by_shift({x.name: max(rough.get(x.name, 0.0), LEAST_LIFTED) for x in target.layers}, target)


def _by_threshold(
    name: str, score: Callable[[np.ndarray, int], np.ndarray], target: Target, evidence: Evidence
) -> dict[str, float]:
    """Remove everything below one threshold on the `score`, of squared norms and a layer's weights, of all units."""

    def rank() -> Ranking:
        names = evidence.scores if target.removal else [layer.name for layer in target.layers]
        numel = {name: target.network.by_name[name].numel for name in names}
        return Ranking.of({name: score(evidence.scores[name], numel[name]) for name in names}, numel)

    ranking = evidence.worked_out(name, target.kind, rank)
    at = cache(ranking.sparsity)
    return land(lambda t: at(ranking.place(t)), target)


Allocator = Callable[[Target, Evidence], dict[str, float]]
ALLOCATORS: Mapping[str, Allocator] = {
    "scan": scan,
    "lamp": lamp,
    "global": global_magnitude,
    "last-layers": last_layers_only,
    "erk": erdos_renyi_kernel,
    "uniform": uniform,
    "scan-speed": scan_for_speed,
}
SCANNED = ("scan", "scan-speed")
"""Allocators that need a profile."""


def allocate(name: str, target: Target, evidence: Evidence) -> dict[str, float]:
    """Sparsity by layer for the target's size, by the allocator of this name.

    Raises:
        Unreachable: the size is below what this allocator can give.
        ValueError: unknown name, `scan` without a profile, or a share of the target outside (0, 1].
    """
    check_limit("share", target.share)
    if name not in ALLOCATORS:
        raise ValueError(unknown("allocator", name, ALLOCATORS))
    return ALLOCATORS[name](target, evidence)
