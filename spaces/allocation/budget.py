"""Meeting a budget: the least sparse member of a family of sparsity dicts that costs no more than asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from spaces.bits import FLOAT_BITS
from spaces.cost.coded_file import CodedFile, coded_file
from spaces.cost.effect import remaining
from spaces.cost.exact import Pruned, Sizer, sizer_of
from spaces.cost.footprint import Footprint, RelativeCost, relative_cost
from spaces.cost.latency_predictor import Predictor
from spaces.granularity import Divisions, unpruned_reason
from spaces.network import Layer, Network
from spaces.policy import PruningPolicy

BISECTIONS = 40
"""Halvings of a family's number: far below one weight in any network."""
LOGIT_REACH = 16.0
"""A shift of this many logits empties or fills a layer up to its last unit."""
ALMOST_ALL = 1 - 1e-9
"""Asks for everything; the count rule leaves one unit."""

Family = Callable[[float], dict[str, float]]
"""t in [0, 1] -> sparsity by layer, growing with t in every layer."""


class Unreachable(ValueError):
    """No member of the family is as small as the target; the message names the smallest size."""


@dataclass(frozen=True)
class Target:
    """A size to fit a sparsity dict to, with everything else that its size depends on.

    Attributes:
        share: of the dense model in the measure `metric`, 0 < share <= 1.
        granularity: one for all layers, or layer -> granularity.
        metric: `encoded` or `nonzero`.
        max_macs: share of the dense MACs to stay within as well, 0 < max_macs <= 1.
        max_latency: share of the dense latency to stay within as well, by `latency`, 0 < max_latency <= 1.
        removal: layer -> share of its output channels that are gone before; the granularity is a mask's then, and
            allocators that rank units compare those of the dense layers.
        bits: of stored values, one for all layers, or layer -> bits; the measure `nonzero` does not count by them.
    """

    network: Network
    share: float
    granularity: str | Mapping[str, str] = "fine-grained"
    metric: str = "encoded"
    max_macs: float = 1.0
    max_latency: float = 1.0
    latency: Predictor | None = None
    removal: Mapping[str, float] = field(default_factory=dict)
    bits: int | Mapping[str, int] = FLOAT_BITS

    @cached_property
    def sizer(self) -> Sizer:
        """Shared by all targets of one network object."""
        return sizer_of(self.network)

    @property
    def dense(self) -> Footprint:
        return self.sizer.dense

    @cached_property
    def kind(self) -> Hashable:
        """Equal for targets that differ only in share, speed limits, removal and bits."""
        granularity = self.granularity if isinstance(self.granularity, str) else frozenset(self.granularity.items())
        return self.sizer, granularity, self.metric

    @cached_property
    def _frame(self) -> PruningPolicy:
        return PruningPolicy({}, self.granularity, bits=self.bits)

    @cached_property
    def file(self) -> CodedFile | None:
        """What rounded weights are stored as; None where nothing is rounded, or only nonzero weights count."""
        return coded_file(self.network, self._frame) if self.metric == "encoded" else None

    @cached_property
    def channel(self) -> np.ndarray:
        """Which layers have granularity `channel` (n,), bool, in the network's order."""
        return np.array([self._frame.granularity_of(name) == "channel" for name in self.sizer.layer_index], dtype=bool)

    @cached_property
    def divisions(self) -> Divisions | None:
        """The units of the masks; None if every unit is one weight."""
        return self.sizer.divisions([self._frame.granularity_of(name) for name in self.sizer.layer_index])

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The layers that can lose units in their granularity, as the removal leaves them."""
        words = {layer: self._frame.granularity_of(layer.name) for layer in remaining(self.network, self.removal)}
        return tuple(layer for layer, word in words.items() if layer.numel > 1 and not unpruned_reason(layer, word))

    def vector(self, sparsity: Mapping[str, float]) -> np.ndarray:
        """Sparsity of every layer of the network (n,), 0 for those not named.

        Raises:
            ValueError: a share outside [0, 1), or a layer the network does not have (nearest match named).
        """
        vector = np.zeros(len(self.sizer.layer_index))
        if not isinstance(sparsity, Mapping) or not set(map(type, sparsity.values())) <= {float}:
            sparsity = PruningPolicy(sparsity).sparsity
        vector[self.indices(sparsity)] = list(sparsity.values())
        if not (vector >= 0).all() or not (vector < 1).all():
            PruningPolicy(sparsity)
        return vector

    def indices(self, names: Mapping[str, float]) -> list[int]:
        """Indices of these layers in a `vector`; `ValueError` with the nearest match for an unknown one."""
        if not names.keys() <= self.sizer.layer_index.keys():
            self.network.require(PruningPolicy(names).sparsity)
        return [self.sizer.layer_index[name] for name in names]

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
        """The size to allocate for: a share of what is left by the removal and by rounding, or of the dense model if
        there is neither."""
        return min(self.share / self.unpruned_size, 1.0) if self.file else self.share / self.unpruned_size

    @cached_property
    def unpruned_size(self) -> float:
        """The share of the dense size with nothing removed but the removal."""
        return self.size({}) if self.removal or self.file else 1.0

    @cached_property
    def met_by_rounding(self) -> bool:
        """Whether weights are rounded, and all limits are met without any further removal."""
        return self.file is not None and self.excess(self.pruned(self.vector({}))) <= 0

    def size(self, sparsity: Mapping[str, float]) -> float:
        """Share of the dense size under these sparsities: exact, but predicted of rounded weights."""
        return self.size_of(self.pruned(self.vector(sparsity)))

    def size_of(self, pruned: Pruned) -> float:
        """Share of the dense size of what is left."""
        return self.sizer.share(pruned, self.metric, self.file)

    def macs(self, sparsity: Mapping[str, float]) -> float:
        """Exact share of the dense MACs under these sparsities; masks change nothing."""
        return self.cost(sparsity).macs

    def cost(self, sparsity: Mapping[str, float]) -> RelativeCost:
        """Both sizes and the MACs under these sparsities, as shares of the dense network's."""
        return relative_cost(self.sizer.footprint(self.pruned(self.vector(sparsity)), self.file), self.dense)

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
        return float(self.latency.share_after(pruned.groups)) if self.latency else 1.0

    @property
    def _least(self) -> dict[str, float]:
        return {layer.name: ALMOST_ALL for layer in self.layers}

    def excess(self, pruned: Pruned) -> float:
        """By which factor the tightest limit is exceeded, less 1; 0 or below is within all limits."""
        ratios = [self.size_of(pruned) / self.share]
        if self.max_macs < 1:
            ratios.append(self.sizer.macs(pruned) / self.max_macs)
        if self.max_latency < 1 and self.latency:
            ratios.append(float(self.latency.share_after(pruned.groups)) / self.max_latency)
        return max(ratios) - 1


def fit_to_budget(family: Family, target: Target) -> dict[str, float]:
    """The largest member of the family within all the target's limits; sparsities of 0 where rounding meets them.

    Raises:
        Unreachable: even `family(1.0)` is larger.
    """
    if target.met_by_rounding:
        return dict.fromkeys(family(0.0), 0.0)
    return family(_fitting_shift(lambda t: target.vector(family(t)), target))


def _fitting_shift(family: Callable[[float], np.ndarray], target: Target) -> float:
    """The smallest t whose member of a family of vectors is within all limits, to `BISECTIONS` halvings.

    Members with equal counts are measured once.
    """
    sized: dict[bytes, float] = {}

    def excess(t: float) -> float:
        pruned = target.pruned(family(t))
        if pruned.key not in sized:
            sized[pruned.key] = target.excess(pruned)
        return sized[pruned.key]

    if excess(0.0) <= 0:
        return 0.0
    if excess(1.0) > 0:
        smallest = target.size_of(target.pruned(family(1.0)))
        limits = {"MACs": target.max_macs, "latency": target.max_latency}
        also = "".join(f" with {name} {limit:.4g}" for name, limit in limits.items() if limit < 1)
        raise Unreachable(f"size {target.share:.4g}{also} cannot be reached: the smallest is {smallest:.4g}")
    return least_fitting(lambda t: excess(t) <= 0, 0.0, 1.0, BISECTIONS)


def least_fitting(fits: Callable[[float], bool], over: float, under: float, halvings: int) -> float:
    """The smallest number that fits, from an interval whose end `over` does not fit and whose end `under` does.

    Args:
        fits: true from some number of the interval on.
        halvings: of the interval; the result is `under` at the end, which fits.

    >>> round(least_fitting(lambda number: number**2 >= 2, 0.0, 2.0, 50), 6)
    1.414214
    """
    for _ in range(halvings):
        middle = (over + under) / 2
        if fits(middle):
            under = middle
        else:
            over = middle
    return under


def shifted(sparsity: Mapping[str, float], shift: float) -> dict[str, float]:
    """Add `shift` to the logit of every sparsity: one monotone move that keeps the layers' order.

    Layers at 0 stay unpruned.

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


def fit_by_shift(sparsity: Mapping[str, float], target: Target) -> dict[str, float]:
    """Shift all sparsities together until the size is just within the target; all are 0 where rounding meets it.

    Raises:
        Unreachable: the layers with sparsity above 0 cannot free enough.
    """
    if target.met_by_rounding:
        target.indices(sparsity)  # refuses unknown layers
        return dict.fromkeys(sparsity, 0.0)
    values, indices, nothing = _values(sparsity), target.indices(sparsity), np.zeros(len(target.sizer.layer_index))

    def shift(t: float) -> float:
        return (2 * t - 1) * LOGIT_REACH

    def family(t: float) -> np.ndarray:
        vector = nothing.copy()
        vector[indices] = _shifted(values, shift(t))
        return vector

    return shifted(sparsity, shift(_fitting_shift(family, target)))


def centred(sparsity: Mapping[str, float]) -> dict[str, float]:
    """Shift so that the mean logit of the pruned layers is 0, which leaves the preferences behind an allocation.

    `fit_by_shift` of the result at the allocation's own size gives the allocation back.
    """
    logits = [math.log(s / (1 - s)) for s in sparsity.values() if s > 0]
    return shifted(sparsity, -sum(logits) / len(logits)) if logits else dict(sparsity)
