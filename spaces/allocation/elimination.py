"""Choices with a damage that adds up and a cost that does not: which combination is least at a price.

Every knob has levels, each with a damage and a number of units kept. Size and MACs are polynomials in the units
kept, since a weight is a product of dimensions; almost every term has one or two knobs. The least of damage +
price is found by eliminating one knob after another, which on a chain is Viterbi's algorithm.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np

EXACT_WIDTH = 2
"""Knobs are eliminated together while each leaves a table over at most this many others: that is every chain,
tree and residual network. Networks that couple more (dense concatenations) are minimised block by block."""
BLOCK_WIDTH = 1
"""The same inside a block."""
CELLS = 1_000_000
"""Numbers in one table of the elimination; prices beyond that take their turn."""
LEAST_GAIN = 1e-12
"""A combination replaces another only if its energy is lower by more than this share."""

Knobs = tuple[int, ...]
"""Knobs by number; one that is listed twice counts with the square of its units kept."""


@dataclass(frozen=True, eq=False)
class VariableElimination:
    """The levels of every knob, and what a combination of them comes to.

    A combination is a row of level numbers, one a knob. Its cost is the pair (size, MACs): the sum of `fixed`,
    of each knob's `alone` at its level, and over `joint` of the pair times the units its knobs keep. Its energy
    at a pair of prices is damage + prices x cost.

    Attributes:
        damage: of each knob (k,), by level.
        kept: units of each knob (k,), by level.
        alone: of each knob (k, 2), by level.
        joint: two or more knobs in rising order -> (2,).
        fixed: (2,).
    """

    damage: tuple[np.ndarray, ...]
    kept: tuple[np.ndarray, ...]
    alone: tuple[np.ndarray, ...]
    joint: Mapping[Knobs, np.ndarray]
    fixed: np.ndarray

    def damage_of(self, rows: np.ndarray) -> np.ndarray:
        """Damage (c,) of the combinations (c, knobs)."""
        columns = zip(self.damage, rows.T, strict=True)
        return sum((values[column] for values, column in columns), np.zeros(len(rows)))

    def cost_of(self, rows: np.ndarray) -> np.ndarray:
        """Size and MACs (c, 2) of the combinations (c, knobs)."""
        cost = np.tile(np.asarray(self.fixed, float), (len(rows), 1))
        for values, column in zip(self.alone, rows.T, strict=True):
            cost += values[column]
        kept = [values[column] for values, column in zip(self.kept, rows.T, strict=True)]
        for knobs, pair in self.joint.items():
            cost += math.prod(kept[knob] for knob in knobs)[:, None] * pair
        return cost

    def energy_of(self, rows: np.ndarray, prices: np.ndarray) -> np.ndarray:
        """Energy (c,) of the combinations (c, knobs), each at its prices (c, 2)."""
        return self.damage_of(rows) + (self.cost_of(rows) * prices).sum(1)

    @cached_property
    def exact(self) -> bool:
        """Whether `minimum` finds the least energy of all, wherever it starts."""
        return len(self._blocks) == 1

    def minimum(self, prices: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Combinations (p, knobs) of low energy at the prices (p, 2), never above `start` (p, knobs).

        Exact if all knobs can be eliminated together; otherwise the exact minimum over one block of knobs with
        the others standing, block after block until nothing improves.
        """
        found, moving = start.copy(), np.arange(len(prices))
        energy = self.energy_of(start, prices)
        while len(moving):
            rows = found[moving]
            for block in self._blocks:
                rows = self._eliminate(prices[moving], block, rows)
            now = self.energy_of(rows, prices[moving])
            better = now < energy[moving] - LEAST_GAIN * np.abs(energy[moving])
            moving = moving[better]
            found[moving], energy[moving] = rows[better], now[better]
            if self.exact:
                break
        return found

    @cached_property
    def _blocks(self) -> list[list[int]]:
        """Elimination orders of knobs that move together while the others stand; every knob moves in one."""
        together: dict[int, set[int]] = {knob: set() for knob in range(len(self.damage))}
        for knobs in self.joint:
            for one, other in combinations(set(knobs), 2):
                together[one].add(other)
                together[other].add(one)
        every = elimination_order(together, EXACT_WIDTH)
        if len(every) == len(together):
            return [every]
        blocks: list[list[int]] = []
        moved: set[int] = set()
        while len(moved) < len(together):
            blocks.append(elimination_order(together, BLOCK_WIDTH, moved))
            moved.update(blocks[-1])
        return blocks

    @cached_property
    def _joint_of(self) -> dict[int, list[tuple[Knobs, np.ndarray]]]:
        """Knob -> the joint terms it is in."""
        found = defaultdict(list)
        for knobs, pair in self.joint.items():
            for knob in set(knobs):
                found[knob].append((knobs, pair))
        return found

    def _eliminate(self, prices: np.ndarray, order: Sequence[int], start: np.ndarray) -> np.ndarray:
        """The exact minimum over the knobs in `order`, the others as in `start`."""
        levels = max((len(values) for values in self.damage), default=1)
        rows = max(1, CELLS // levels ** (1 + (EXACT_WIDTH if self.exact else BLOCK_WIDTH)))
        parts = [slice(first, first + rows) for first in range(0, len(prices), rows)]
        return np.concatenate([self._eliminate_part(prices[part], order, start[part]) for part in parts])

    def _eliminate_part(self, prices: np.ndarray, order: Sequence[int], start: np.ndarray) -> np.ndarray:
        """Tables have an axis for the prices, then one a knob, those eliminated sooner later."""
        rank = {knob: number for number, knob in enumerate(order)}
        messages: dict[int, list[tuple[Knobs, np.ndarray]]] = defaultdict(list)
        steps: list[tuple[int, Knobs, np.ndarray]] = []
        for knob in order:
            terms = self._terms(knob, rank, prices, start)
            scopes = [*terms, *(scope for scope, _ in messages[knob])]
            others = sorted({other for scope in scopes for other in scope} - {knob}, key=rank.__getitem__)
            axes = (*reversed(others), knob)
            table = self.damage[knob] + prices @ self.alone[knob].T
            table = table.reshape(len(prices), *(1 for _ in others), -1)
            for scope, factor in terms.items():
                table = table + self._term_table(scope, factor, axes)
            for scope, message in messages.pop(knob):
                table = table + message[(slice(None), *(slice(None) if axis in scope else None for axis in axes))]
            level = table.argmin(-1)
            steps.append((knob, axes[:-1], level))
            if others:
                least = np.take_along_axis(table, level[..., None], -1)[..., 0]
                messages[others[0]].append((axes[:-1], least))
        result, every = start.copy(), np.arange(len(prices))
        for knob, scope, level in reversed(steps):
            result[:, knob] = level[(every, *(result[:, other] for other in scope))]
        return result

    def _terms(
        self, knob: int, rank: Mapping[int, int], prices: np.ndarray, start: np.ndarray
    ) -> dict[Knobs, np.ndarray]:
        """The joint terms in which this knob goes first: moving knobs -> factor (p,), the standing ones in it."""
        terms: dict[Knobs, np.ndarray] = {}
        for knobs, pair in self._joint_of[knob]:
            moving = tuple(other for other in knobs if other in rank)
            if min(rank[other] for other in moving) == rank[knob]:
                standing = (self.kept[other][start[:, other]] for other in knobs if other not in rank)
                terms[moving] = terms.get(moving, 0.0) + math.prod(standing, start=prices @ pair)
        return terms

    def _term_table(self, scope: Knobs, factor: np.ndarray, axes: Knobs) -> np.ndarray:
        """Factor (p,) times the units kept by the knobs in scope, broadcastable over the axes."""
        table = factor.reshape(-1, *(1 for _ in axes))
        for knob in scope:
            table = table * self.kept[knob].reshape(-1, *(1 for _ in axes[axes.index(knob) + 1 :]))
        return table


def elimination_order(neighbours: Mapping[int, Iterable[int]], width: int, moved: Iterable[int] = ()) -> list[int]:
    """Knobs in an order in which each has at most `width` neighbours left when it goes.

    Neighbours of one that went become each other's. The knob with the fewest goes next, which for width 1 or 2
    finds an order of all knobs where there is one. Where every knob has more, the one with the most is taken
    out to stand still; of `moved` ones if any is left.
    """
    left, moved = {knob: set(others) for knob, others in neighbours.items()}, set(moved)
    order = []
    while left:
        knob = min(left, key=lambda one: (len(left[one]), one in moved))
        goes = len(left[knob]) <= width
        if goes:
            order.append(knob)
        else:
            knob = max(left, key=lambda one: (one in moved, len(left[one])))
        others = left.pop(knob)
        for other in others:
            left[other].discard(knob)
            if goes:
                left[other] |= others - {other}
    return order
