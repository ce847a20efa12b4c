"""The allocations of least damage for every size and speed at once, where the damages of the knobs add up.

A knob moves one channel group, or one layer when masks do the pruning. Prices come from the solutions: at the
price where two neighbours on the hull of damage against cost tie, either a third one is found below them, or
there is none between.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from spaces.allocation.elimination import Knobs, VariableElimination
from spaces.allocation.knobs import Damage, Knob, knobs_of
from spaces.cost.container import encoded_entry
from spaces.cost.footprint import SIZE_METRICS, dense_footprint
from spaces.cost.removal import dimensions_of
from spaces.network import ITEM_BYTES, Network, StoredTensor
from spaces.validation import unknown

ROUNDS = 4
"""The prices of a mix are tried in this many rounds; later rounds start from what earlier ones found."""
FLAT = 1e-13
"""Three solutions count as lying on one line if the hull bends less than this share of the box around it."""


@dataclass(frozen=True, eq=False)
class _Steps:
    """The levels of a knob that differ: sparsities, damages and units kept (k,)."""

    levels: np.ndarray
    damage: np.ndarray
    kept: np.ndarray

    @classmethod
    def of(cls, knob: Knob, damage: Damage) -> _Steps:
        removed, first = np.unique(knob.removed(damage.levels), return_index=True)
        return cls(damage.levels[first], damage.values[first], knob.units.count - removed)


@dataclass(frozen=True, eq=False)
class Allocation:
    """A level for every knob with a damage.

    Attributes:
        sparsity: knob -> its level.
        damage: summed over the knobs.
        size: share of the dense size, without the notes the file's header keeps on encodings.
        macs: share of the dense MACs.
    """

    sparsity: Mapping[str, float]
    damage: float
    size: float
    macs: float


@dataclass(frozen=True, eq=False)
class _Pool:
    """Combinations found so far: level numbers (c, knobs), damage (c,), size and MACs as shares (c, 2)."""

    rows: np.ndarray
    damage: np.ndarray
    shares: np.ndarray

    def hull(self, weights: np.ndarray) -> np.ndarray:
        """Indices of the combinations on the lower convex hull of damage over cost, by falling cost.

        The cost of a combination is its size and MACs (2,) times the weights (2,).
        """
        cost = self.shares @ weights
        box = max(float(np.ptp(cost)) * float(np.ptp(self.damage)), np.finfo(float).tiny)
        hull: list[int] = []
        for point in np.lexsort((self.damage, cost)):
            if hull and cost[point] == cost[hull[-1]]:
                continue
            while len(hull) > 1:
                first, second = hull[-2:]
                run, rise = cost[point] - cost[first], self.damage[point] - self.damage[first]
                bend = run * (self.damage[second] - self.damage[first]) - rise * (cost[second] - cost[first])
                if bend < -FLAT * box:
                    break
                hull.pop()
            hull.append(point)
        return np.array(hull[::-1])


@dataclass(frozen=True, eq=False)
class LagrangianAllocator:
    """Least summed damage over size and MACs, for a network pruned in one granularity.

    Attributes:
        network: what is pruned.
        granularity: of all layers. Only `channel` lowers MACs; with the others the mix changes nothing.
        damages: knob (see `knobs_of`) -> its damage; knobs that are absent or None stay unpruned. Of levels
            that ask for the same number of units the first counts.
        metric: of the size, `encoded` or `nonzero`.
        mixes: each a share of the price that is put on MACs, the rest on size; rising within [0, 1].
        prices: prices tried for each mix, >= 1.

    Raises:
        ValueError: an unknown granularity, metric or knob, mixes that do not rise within [0, 1], no price.
    """

    network: Network
    granularity: str
    damages: Mapping[str, Damage | None]
    metric: str = "encoded"
    mixes: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    prices: int = 60

    def __post_init__(self) -> None:
        knobs = self._knobs
        if self.metric not in SIZE_METRICS:
            raise ValueError(unknown("size metric", self.metric, SIZE_METRICS))
        if not self.mixes or sorted(set(self.mixes)) != [*self.mixes] or not 0 <= self.mixes[0] <= self.mixes[-1] <= 1:
            raise ValueError(f"mixes must rise within [0, 1], got {self.mixes!r}; all on size: (0.0,)")
        if self.prices < 1:
            raise ValueError(f"prices must be >= 1, got {self.prices!r}; the default is 60")
        for name in self.damages:
            if name not in knobs:
                raise ValueError(unknown("knob", name, knobs))

    @cached_property
    def choices(self) -> VariableElimination:
        """The model in numbers; its knobs are those with a damage, in the network's order."""
        return _choices(self.network, self._moving, self._steps, self.metric, self.granularity)

    @cached_property
    def solutions(self) -> tuple[Allocation, ...]:
        """The allocations on the hulls of all mixes that no other beats in damage, size and MACs at once, by falling
        size."""
        found = np.unique(np.concatenate([self._pool.hull(weights) for weights in self._weights.values()]))
        values = np.column_stack([self._pool.shares, self._pool.damage])[found]
        beaten = np.array([((values <= one).all(1) & (values < one).any(1)).any() for one in values])
        order = np.lexsort(-values[~beaten].T[::-1])
        return tuple(self._allocation(self._pool.rows[index]) for index in found[~beaten][order])

    def optimum(self, size_price: float, macs_price: float = 0.0) -> Allocation:
        """The allocation of least damage + size_price x size + macs_price x macs, with both as shares of dense.

        Exact if `choices.exact`. Otherwise no block of knobs can improve it alone, and it is no worse than any
        combination tried so far, uniform levels included. Prices are finite and >= 0.
        """
        if not (0 <= size_price < math.inf and 0 <= macs_price < math.inf):
            raise ValueError(f"prices must be finite numbers >= 0, got {size_price!r} and {macs_price!r}")
        prices = np.array([size_price, macs_price])
        start = np.argmin(self._pool.damage + self._pool.shares @ prices)
        return self._allocation(self.choices.minimum((prices / self._dense)[None], self._pool.rows[[start]])[0])

    def at(self, size: float, mix: float = 0.0) -> dict[str, float]:
        """Layer -> sparsity near this size, for every layer that can lose units in the granularity.

        Between neighbouring solutions the logarithm of each share kept is linear in the logarithm of the size, and
        between `mixes` it is linear in the mix, so that nothing jumps. Outside their ranges the nearest solution or
        mix is taken. `spaces.allocation.budget.fit_by_shift` then meets the size exactly.

        Args:
            size: share of the dense size, > 0.
            mix: share of the price that is on MACs, in [0, 1].
        """
        if not 0 < size < math.inf:
            raise ValueError(f"size must be a share > 0 of the dense model, got {size!r}; nearest valid: 0.01")
        if not 0 <= mix <= 1:
            raise ValueError(f"mix must satisfy 0 <= mix <= 1, got {mix!r}; 0 is all on size, 1 all on MACs")
        paths = [_between(math.log(size), *path) for path in self._paths.values()]
        log_kept = _between(mix, np.array([*self._paths]), np.array(paths))
        sparsity = {layer: 0.0 for knob in self._knobs.values() for layer in knob.layers}
        for knob, value in zip(self._moving, 0.0 - np.expm1(log_kept), strict=True):
            sparsity |= dict.fromkeys(knob.layers, float(value))
        return sparsity

    @cached_property
    def _knobs(self) -> dict[str, Knob]:
        return knobs_of(self.network, self.granularity)

    @cached_property
    def _moving(self) -> list[Knob]:
        return [knob for name, knob in self._knobs.items() if self.damages.get(name) is not None]

    @cached_property
    def _steps(self) -> list[_Steps]:
        damages = ((knob, self.damages[knob.name]) for knob in self._moving)
        return [_Steps.of(knob, damage) for knob, damage in damages if damage is not None]

    @cached_property
    def _dense(self) -> np.ndarray:
        """Size and MACs (2,) of the dense model."""
        dense = dense_footprint(self.network)
        return np.array([dense.encoded_bytes if self.metric == "encoded" else dense.parameters, max(dense.macs, 1)])

    @cached_property
    def _weights(self) -> dict[float, np.ndarray]:
        """Mix -> weights of size and MACs (2,) in the price; only the first mix where MACs cannot change."""
        if self.granularity != "channel":
            return {self.mixes[0]: np.array([1.0, 0.0])}
        return {mix: np.array([1 - mix, mix]) for mix in self.mixes}

    @cached_property
    def _pool(self) -> _Pool:
        """The combinations found at the prices of all mixes, and the uniform ones that the search starts from."""
        pool = self._pooled(_uniform(self._steps))
        left = dict.fromkeys(self._weights, self.prices)
        tried: set[tuple[float, int, int]] = set()
        while gaps := list(self._gaps(pool, left, tried)):
            prices = np.array([price for price, _ in gaps]) / self._dense
            found = self.choices.minimum(prices, pool.rows[[start for _, (start, _) in gaps]])
            pool = self._pooled(np.concatenate([pool.rows, found]))
        return pool

    def _pooled(self, rows: np.ndarray) -> _Pool:
        """The pool of these rows, each once, in the order they come: indices into an earlier pool stay valid."""
        first = {row.tobytes(): index for index, row in reversed([*enumerate(rows)])}
        rows = rows[sorted(first.values())]
        return _Pool(rows, self.choices.damage_of(rows), self.choices.cost_of(rows) / self._dense)

    def _gaps(
        self, pool: _Pool, left: dict[float, int], tried: set[tuple[float, int, int]]
    ) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
        """Prices (2,) of size and MACs at which two neighbours on a hull cost the same, with the neighbours' indices.

        Of each mix those neighbours come that are furthest apart in cost and were not tried before.
        """
        for mix, weights in self._weights.items():
            cost = pool.shares @ weights
            hull = [tuple(ends) for ends in pairwise(pool.hull(weights).tolist())]
            new = [ends for ends in hull if (mix, *ends) not in tried and pool.damage[ends[0]] < pool.damage[ends[1]]]
            new.sort(key=lambda ends: cost[ends[1]] / cost[ends[0]])
            for first, second in new[: min(left[mix], -(-self.prices // ROUNDS))]:
                tried.add((mix, first, second))
                left[mix] -= 1
                price = (pool.damage[second] - pool.damage[first]) / (cost[first] - cost[second])
                yield price * weights, (first, second)

    @cached_property
    def _paths(self) -> dict[float, tuple[np.ndarray, np.ndarray]]:
        """Mix -> logarithms of the sizes on its hull (m,), rising, and of the share each knob keeps (m, knobs)."""
        paths = {}
        for mix, weights in self._weights.items():
            hull = self._pool.hull(weights)
            sizes = self._pool.shares[hull, 0]
            falls = np.append(True, sizes[1:] < np.minimum.accumulate(sizes)[:-1])
            rows = self._pool.rows[hull[falls]][::-1]
            columns = [np.log1p(-steps.levels)[column] for steps, column in zip(self._steps, rows.T, strict=True)]
            paths[mix] = np.log(sizes[falls][::-1]), np.array(columns).T.reshape(len(rows), -1)
        return paths

    def _allocation(self, row: np.ndarray) -> Allocation:
        size, macs = self.choices.cost_of(row[None])[0] / self._dense
        levels = zip(self._moving, self._steps, row, strict=True)
        sparsity = {knob.name: float(steps.levels[level]) for knob, steps, level in levels}
        return Allocation(sparsity, float(self.choices.damage_of(row[None])[0]), float(size), float(macs))


def _between(at: float, points: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Linear interpolation of the rows (m, n) that belong to rising points (m,); outside these the nearest row."""
    part = np.interp(at, points, np.arange(len(points)))
    below = min(int(part), max(len(points) - 2, 0))
    above = min(below + 1, len(points) - 1)
    return rows[below] + (part - below) * (rows[above] - rows[below])


def _uniform(steps: Sequence[_Steps]) -> np.ndarray:
    """Combinations (c, knobs) at one sparsity everywhere, or the next lower level of a knob; the unpruned one first."""
    every = np.unique(np.concatenate([[0.0], *(one.levels for one in steps)]))
    columns = [np.searchsorted(one.levels, every, side="right") - 1 for one in steps]
    return np.array(columns, dtype=int).reshape(len(steps), len(every)).T


def _choices(
    network: Network, knobs: Sequence[Knob], steps: Sequence[_Steps], metric: str, granularity: str
) -> VariableElimination:
    """Size and MACs by level: what no knob changes, what one changes alone, and what several change together."""
    masked = {knob.name: index for index, knob in enumerate(knobs) if knob.group is None}
    groups = {knob.group: (index, knob.units.count) for index, knob in enumerate(knobs) if knob.group is not None}
    terms: dict[Knobs, np.ndarray] = defaultdict(lambda: np.zeros(2))
    alone = [np.zeros((len(one.kept), 2)) for one in steps]
    for tensor in network.tensors:
        unit = np.array([_unit_size(tensor, metric), network.multiplied.get(tensor.name, 0)], dtype=float)
        if tensor.name in masked:
            kept = steps[masked[tensor.name]].kept * knobs[masked[tensor.name]].units.elements
            inputs = network.by_name[tensor.name].inputs
            entries = (encoded_entry(tensor, tensor.shape, int(n), granularity, inputs) for n in kept)
            sizes = kept if metric == "nonzero" else [entry.bytes for entry in entries]
            alone[masked[tensor.name]] += np.column_stack([sizes, np.full(len(kept), unit[1] * tensor.numel)])
            continue
        for term, count in _numel_terms(network, tensor, groups).items():
            terms[term] += count * unit
    terms[()] += [0, network.other_macs]
    if metric == "encoded":
        tensors = sum(tensor.numel * ITEM_BYTES[tensor.dtype] for tensor in network.tensors)
        terms[()] += [dense_footprint(network).encoded_bytes - tensors, 0]  # the header
    for term, pair in terms.items():
        if len(set(term)) == 1:
            alone[term[0]] += (steps[term[0]].kept ** len(term))[:, None] * pair
    joint = {term: pair for term, pair in terms.items() if len(set(term)) > 1}
    every_kept = tuple(one.kept.astype(float) for one in steps)
    return VariableElimination(tuple(one.damage for one in steps), every_kept, tuple(alone), joint, terms[()])


def _unit_size(tensor: StoredTensor, metric: str) -> int:
    return ITEM_BYTES[tensor.dtype] if metric == "encoded" else int(tensor.parameter)


def _numel_terms(network: Network, tensor: StoredTensor, groups: Mapping[int, tuple[int, int]]) -> dict[Knobs, int]:
    """The tensor's elements as a polynomial in units kept; `groups`: number -> (index of its knob, units)."""
    terms: dict[Knobs, int] = {(): 1}
    for dimension in dimensions_of(network, tensor):
        factors: dict[Knobs, int] = {(): dimension.length}
        for group, per_unit in dimension.per_unit:
            if group in groups:
                knob, units = groups[group]
                factors[(knob,)] = factors.get((knob,), 0) + per_unit
                factors[()] -= per_unit * units
        product: dict[Knobs, int] = defaultdict(int)
        for knobs, count in terms.items():
            for more, times in factors.items():
                if count * times:
                    product[tuple(sorted(knobs + more))] += count * times
        terms = dict(product)
    return terms
