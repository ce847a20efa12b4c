"""The allocations of least damage for every size and speed at once, where the damages of the knobs add up.

A knob moves one channel group, or one layer when masks do the pruning. Value bits are a further choice of each layer,
if the table is given several. Prices come from the solutions: at the
price where two neighbours on the hull of damage against cost tie, either a third one is found below them, or
there is none between.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np

from spaces.allocation.elimination import VariableElimination
from spaces.allocation.knobs import Damage, Knob, knobs_of
from spaces.allocation.level_costs import LevelCosts, Steps
from spaces.bits import FLOAT_BITS, check_bits
from spaces.cost.footprint import SIZE_METRICS, dense_footprint
from spaces.network import Network
from spaces.validation import unknown

ROUNDS = 4
"""The prices of a mix are tried in this many rounds; later rounds start from what earlier ones found."""
FLAT = 1e-13
"""Three solutions count as lying on one line if the hull bends less than this share of the box around it."""


@dataclass(frozen=True, eq=False)
class Allocation:
    """A level for every knob with a damage.

    Attributes:
        sparsity: knob -> its level.
        damage: summed over the knobs, and over the layers that are rounded.
        size: share of the dense size, without the notes the file's header keeps on encodings.
        macs: share of the dense MACs.
        bits: layer -> bits of its values, for every prunable layer.
    """

    sparsity: Mapping[str, float]
    damage: float
    size: float
    macs: float
    bits: Mapping[str, int]


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
        bits: of the values of all layers, or layer -> bits with 32 for those not named, as of a policy; or a tuple of
            bits that every layer chooses from by itself, in one solution with the sparsities. Below 32, bytes are the
            prediction for version 2 of the sparse file.
        rounding: layer -> bits -> damage of rounding it, see `knobs.rounding_damages`. Where a layer has no choice of
            bits, a damage that is absent counts as 0: it would be the same for every allocation.

    Raises:
        ValueError: an unknown granularity, metric or knob, mixes that do not rise within [0, 1], no price, bits below
            32 with the metric `nonzero`, or a layer that is to choose its bits without the damages.
    """

    network: Network
    granularity: str
    damages: Mapping[str, Damage | None]
    metric: str = "encoded"
    mixes: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    prices: int = 60
    bits: int | Mapping[str, int] | tuple[int, ...] = FLOAT_BITS
    rounding: Mapping[str, Mapping[int, float]] = field(default_factory=dict)

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
        if self.is_rounded and self.metric != "encoded":
            raise ValueError(f"bits {self.bits!r} do not lower the size {self.metric!r}, which counts 32 each")
        for layer, widths in self._widths.items():
            lacking = [own for own in widths if own < FLOAT_BITS and own not in self.rounding.get(layer, {})]
            if len(widths) > 1 and lacking:
                raise ValueError(f"the scan has no rounding of {layer!r} to {lacking[0]} bits: scan it with bits")

    @cached_property
    def choices(self) -> VariableElimination:
        """The model in numbers; its knobs are those with a damage, in the network's order, and behind them the bits of
        layers that choose them but have no knob of their own."""
        bits = {layer: widths[0] for layer, widths in self._widths.items()}
        costs = LevelCosts(self.network, self._steps, self.metric, self.granularity, bits, self.is_rounded)
        return costs.choices

    @cached_property
    def is_rounded(self) -> bool:
        """Whether any layer is rounded, or may be."""
        return any(width < FLOAT_BITS for widths in self._widths.values() for width in widths)

    @cached_property
    def unpruned_size(self) -> float:
        """The size with nothing removed, at the most bits; 1.0 of floats."""
        if not self.is_rounded:
            return 1.0
        return float(self.choices.cost_of(np.zeros((1, len(self._steps)), int))[0, 0] / self._dense[0])

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
        mix is taken. `spaces.allocation.budget.fit_by_shift` then meets the size exactly. Where layers choose their
        bits nothing is interpolated: the solution nearest in size says both, the sparsities here and the bits in
        `bits_at`.

        Args:
            size: share of the dense size, > 0.
            mix: share of the price that is on MACs, in [0, 1].
        """
        self._check_place(size, mix)
        sparsity = {layer: 0.0 for knob in self._knobs.values() for layer in knob.layers}
        if self._choose_bits:
            kept = self._nearest(size, mix)
            levels = [float(one.levels[level]) for one, level in zip(self._steps, kept, strict=True)]
        else:
            levels = (0.0 - np.expm1(self._between(size, mix))).tolist()
        for one, value in zip(self._steps, levels, strict=True):
            if one.knob is not None:
                sparsity |= dict.fromkeys(one.knob.layers, float(value))
        return sparsity

    def bits_at(self, size: float, mix: float = 0.0) -> dict[str, int]:
        """Layer -> bits that belong to the sparsities of `at`, for every prunable layer."""
        self._check_place(size, mix)
        return self._bits(self._nearest(size, mix))

    def _check_place(self, size: float, mix: float) -> None:
        if not 0 < size < math.inf:
            raise ValueError(f"size must be a share > 0 of the dense model, got {size!r}; nearest valid: 0.01")
        if not 0 <= mix <= 1:
            raise ValueError(f"mix must satisfy 0 <= mix <= 1, got {mix!r}; 0 is all on size, 1 all on MACs")

    def _between(self, size: float, mix: float) -> np.ndarray:
        """Logarithm of the share each of the steps keeps (steps,)."""
        rows = [_between(math.log(size), path.log_sizes, path.log_kept) for path in self._paths.values()]
        return _between(mix, np.array([*self._paths]), np.array(rows))

    def _nearest(self, size: float, mix: float) -> np.ndarray:
        """Level numbers (steps,) of the solution nearest in the logarithm of the size, of the nearest mix."""
        path = self._paths[min(self._paths, key=lambda own: abs(own - mix))]
        row: np.ndarray = path.rows[int(np.argmin(abs(path.log_sizes - math.log(size))))]
        return row

    def _bits(self, row: np.ndarray) -> dict[str, int]:
        bits = {layer: widths[0] for layer, widths in self._widths.items()}
        for one, level in zip(self._steps, row, strict=True):
            if one.layer is not None:
                bits[one.layer] = int(one.bits[level])
        return bits

    @cached_property
    def _widths(self) -> dict[str, tuple[int, ...]]:
        """Layer -> the bits it may have, falling."""
        given = self.bits
        if isinstance(given, Mapping):
            self.network.require(given)
            return {layer: (check_bits(given.get(layer, FLOAT_BITS)),) for layer in self.network.by_name}
        every = given if isinstance(given, tuple) else (given,)
        return dict.fromkeys(self.network.by_name, tuple(sorted({*map(check_bits, every)}, reverse=True)))

    @cached_property
    def _choose_bits(self) -> bool:
        return any(one.layer is not None for one in self._steps)

    @cached_property
    def _fixed_damage(self) -> float:
        """Of rounding the layers that have no choice."""
        fixed = {layer: widths[0] for layer, widths in self._widths.items() if len(widths) == 1}
        return float(sum(self.rounding.get(layer, {}).get(width, 0.0) for layer, width in fixed.items()))

    @cached_property
    def _knobs(self) -> dict[str, Knob]:
        return knobs_of(self.network, self.granularity)

    @cached_property
    def _moving(self) -> list[Knob]:
        return [knob for name, knob in self._knobs.items() if self.damages.get(name) is not None]

    @cached_property
    def _steps(self) -> list[Steps]:
        choices = {
            layer: {own: self.rounding[layer][own] if own < FLOAT_BITS else 0.0 for own in widths}
            for layer, widths in self._widths.items()
            if len(widths) > 1
        }
        steps = []
        for knob in self._moving:
            damage = self.damages[knob.name]
            assert damage is not None
            steps.append(Steps.of(knob, damage))
            if knob.group is None and knob.name in choices:
                steps[-1] = steps[-1].at_each(knob.name, choices.pop(knob.name))
        return steps + [Steps.of_bits(self.network, layer, own) for layer, own in choices.items()]

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
    def _paths(self) -> dict[float, _Path]:
        paths = {}
        for mix, weights in self._weights.items():
            hull = self._pool.hull(weights)
            sizes = self._pool.shares[hull, 0]
            falls = np.append(True, sizes[1:] < np.minimum.accumulate(sizes)[:-1])
            rows = self._pool.rows[hull[falls][::-1]]
            columns = [np.log1p(-steps.levels)[column] for steps, column in zip(self._steps, rows.T, strict=True)]
            log_kept = np.array(columns).T.reshape(len(rows), -1)
            paths[mix] = _Path(np.log(sizes[falls][::-1]), rows, log_kept)
        return paths

    def _allocation(self, row: np.ndarray) -> Allocation:
        size, macs = self.choices.cost_of(row[None])[0] / self._dense
        levels = zip(self._steps, row, strict=True)
        sparsity = {one.knob.name: float(one.levels[level]) for one, level in levels if one.knob is not None}
        damage = float(self.choices.damage_of(row[None])[0]) + self._fixed_damage
        return Allocation(sparsity, damage, float(size), float(macs), self._bits(row))


@dataclass(frozen=True, eq=False)
class _Path:
    """The solutions of one mix by rising size, each smaller than those before it on the hull.

    Attributes:
        log_sizes: logarithms of the sizes (m,).
        rows: level numbers (m, steps).
        log_kept: logarithm of the share each of the steps keeps (m, steps).
    """

    log_sizes: np.ndarray
    rows: np.ndarray
    log_kept: np.ndarray


def _between(at: float, points: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Linear interpolation of the rows (m, n) that belong to rising points (m,); outside these the nearest row."""
    part = np.interp(at, points, np.arange(len(points)))
    below = min(int(part), max(len(points) - 2, 0))
    above = min(below + 1, len(points) - 1)
    return rows[below] + (part - below) * (rows[above] - rows[below])


def _uniform(steps: Sequence[Steps]) -> np.ndarray:
    """Combinations (c, steps) at one sparsity everywhere, or the next lower level of a knob, for each of the bits that
    layers choose from; the unpruned one of most bits first."""
    every = np.unique(np.concatenate([[0.0], *(one.levels for one in steps)]))
    widths = sorted({int(own) for one in steps for own in one.bits if one.layer is not None}, reverse=True)
    found = []
    for width in widths or [FLOAT_BITS]:
        columns = []
        for one in steps:
            own = np.flatnonzero(one.bits == width) if one.layer is not None else np.arange(len(one.levels))
            columns.append(own[np.searchsorted(one.levels[own], every, side="right") - 1])
        found.append(np.array(columns, dtype=int).reshape(len(steps), len(every)).T)
    return np.concatenate(found)
