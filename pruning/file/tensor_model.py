"""What is expected of a tensor's values, decision by decision: one code for writing and for reading.

A tensor is looked at as (rows, columns, positions): its first dimension, its second, and all others. It is coded in
rounds: round of an element by (row + column) % 32, see `ROUND_OF`; in each round elements are in row-major order. All
that was coded in earlier rounds is known; so a round's probabilities are known before any of its bits.

A decision is a bit. How likely it is 1 follows from its kind's counts of zeros and ones so far, and from how much
the counts of its row, its column and its position differ from that: see `Decisions`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from pruning.file.probabilities import HALF, bits_of, log2_steps, log_odds, probabilities
from spaces.cost.coded_size import uniform_chances

DIAGONALS = 32
ROUND_OF = np.repeat(np.arange(10, dtype=np.int8), [1, 1, 1, 1, 2, 2, 4, 4, 8, 8])
"""Round of an element by its diagonal: small ones first, so that much is known when most is coded."""
ROUNDS = 10
WEIGHTS = {"row": 96, "column": 192, "position": 32}
"""Decisions that the expectation counts for beside those seen in an element's own row, column or position."""
CARRIED = 32
"""Counts of a kind that the next tensor starts from, at most."""
CONTEXT_BITS = 3
"""Bits below a value's leading one whose probability is learnt; those further down are as likely 0 as 1."""


class Port(Protocol):
    """Where decisions go to, or come from."""

    def code(self, chances: np.ndarray, bits: np.ndarray | None) -> np.ndarray:
        """The bits (n,) of decisions with these chances (n,), in parts of 65536, to be 1.

        Args:
            bits: what is written; None when reading.
        """


class Recorder:
    """A port that keeps what is written."""

    def __init__(self) -> None:
        self._chances: list[np.ndarray] = []
        self._bits: list[np.ndarray] = []

    def code(self, chances: np.ndarray, bits: np.ndarray | None) -> np.ndarray:
        assert bits is not None
        self._chances.append(chances.astype(np.uint16))
        self._bits.append(bits.astype(bool))
        return bits

    def extend(self, other: Recorder) -> None:
        self._chances += other._chances
        self._bits += other._bits

    @property
    def bits(self) -> float:
        """What the decisions take, at the least."""
        return bits_of(*self.decisions)

    @property
    def decisions(self) -> tuple[np.ndarray, np.ndarray]:
        """Chances, int64, and bits of all decisions (t,)."""
        if not self._bits:
            return np.zeros(0, np.int64), np.zeros(0, dtype=bool)
        return np.concatenate(self._chances).astype(np.int64), np.concatenate(self._bits)


@dataclass
class Memory:
    """Counts of zeros and ones (2,) by kind of decision, handed from one tensor to the next."""

    counts: dict[tuple[object, ...], np.ndarray] = field(default_factory=dict)

    def copy(self) -> Memory:
        return Memory(dict(self.counts))

    def of(self, kind: tuple[object, ...]) -> np.ndarray:
        return self.counts.get(kind, np.ones(2, np.int64)).copy()

    def keep(self, kind: tuple[object, ...], counts: np.ndarray) -> None:
        """Scaled down to at most `CARRIED` in all, at least 1 each."""
        total = int(counts.sum())
        self.counts[kind] = counts if total <= CARRIED else np.maximum(counts * CARRIED // total, 1)


class Decisions:
    """Decisions of one kind in one tensor, and what was seen of them.

    Each counts twice. With (z, o) the counts of a kind and (z_r, o_r) those of a row, the row's term is the log odds of
    (o_r * (z + o) + W * o) to (z_r * (z + o) + W * z), less those of o to z, W being the row's weight; likewise column
    and position. The log odds of a decision are those of its kind and the three terms.
    """

    def __init__(self, shape: Sequence[int], counts: np.ndarray, weights: dict[str, int] | None = None) -> None:
        self._weights = list((WEIGHTS if weights is None else weights).values())
        self._seen = [np.zeros((2, length), np.int64) for length in shape]
        self.counts = counts

    def code(self, port: Port, places: Sequence[np.ndarray], bits: np.ndarray | None) -> np.ndarray:
        """The bits (n,) of the elements whose rows, columns and positions (n,) are `places`."""
        if not len(places[0]):
            return np.zeros(0, dtype=bool)
        bits = port.code(self._chances(places), bits)
        self._learn(places, bits)
        return bits

    def _chances(self, places: Sequence[np.ndarray]) -> np.ndarray:
        expected, total = self._expected()[:, None], int(self._expected().sum())
        looked = [n for n, seen in enumerate(self._seen) if seen.shape[1] > 1 and seen.any()]
        terms = [self._seen[n] * total + self._weights[n] * expected for n in looked]
        logarithms = log2_steps(np.concatenate([self._base()[:, None], expected, *terms], axis=1))
        odds = logarithms[1] - logarithms[0]
        found, usual, at = np.full(len(places[0]), odds[0]), odds[1], 2
        for n in looked:
            length = self._seen[n].shape[1]
            found += (odds[at : at + length] - usual)[places[n]]
            at += length
        return probabilities(found)

    def _base(self) -> np.ndarray:
        """Counts (2,) that the terms are added to the log odds of."""
        return self.counts

    def _expected(self) -> np.ndarray:
        """Counts (2,) the terms are relative to."""
        return self.counts

    def _learn(self, places: Sequence[np.ndarray], bits: np.ndarray) -> None:
        ones = int(np.count_nonzero(bits))
        self.counts += 2 * np.array([len(bits) - ones, ones])
        for own, seen in zip(places, self._seen, strict=True):
            if seen.shape[1] > 1:
                every = np.bincount(own, minlength=seen.shape[1])
                kept = np.bincount(own[bits], minlength=seen.shape[1])
                seen += 2 * np.stack([every - kept, kept])


class Places(Decisions):
    """Which elements are not zero, where it is known how many are: the base counts what is still to come."""

    def __init__(self, shape: Sequence[int], nonzero: int) -> None:
        super().__init__(shape, np.zeros(2, np.int64))
        self._all = np.array([int(np.prod(shape)) - nonzero, nonzero], np.int64)

    def _base(self) -> np.ndarray:
        return np.maximum(2 * self._all - self.counts + 1, 1)

    def _expected(self) -> np.ndarray:
        return 2 * self._all


def rounds(rows: int, columns: int, positions: int) -> Iterator[list[np.ndarray]]:
    """Rows, columns and positions of every round's elements, in order."""
    round_of = ROUND_OF[(np.arange(rows)[:, None] + np.arange(columns)) % DIAGONALS].ravel()
    for number in range(ROUNDS):
        row, column = np.divmod(np.flatnonzero(round_of == number), columns)
        position = np.tile(np.arange(positions), len(row))
        yield [np.repeat(row, positions), np.repeat(column, positions), position]


def rounds_of(kept: np.ndarray) -> Iterator[list[np.ndarray]]:
    """The same of the elements kept."""
    places = np.nonzero(kept)
    round_of = ROUND_OF[(places[0] + places[1]) % DIAGONALS]
    for number in range(ROUNDS):
        mine = round_of == number
        yield [own[mine] for own in places]


def code_places(port: Port, shape: Sequence[int], nonzero: int, kept: np.ndarray | None) -> np.ndarray:
    """Which elements of a tensor (rows, columns, positions) are not zero, bool of its shape."""
    size = int(np.prod(shape))
    if nonzero in (0, size):
        return np.full(shape, nonzero > 0)
    found, decisions = np.zeros(shape, dtype=bool), Places(shape, nonzero)
    for places in rounds(*shape):
        at = tuple(places)
        found[at] = decisions.code(port, places, None if kept is None else kept[at])
    return found


def code_flat_places(port: Port, shape: Sequence[int], nonzero: int, kept: np.ndarray | None) -> np.ndarray:
    """As `code_places`, every place as likely as any other, in row-major order."""
    size = int(np.prod(shape))
    if nonzero in (0, size):
        return np.full(shape, nonzero > 0)
    chance = probabilities(log_odds(np.array([nonzero]), np.array([size - nonzero])))
    return port.code(np.repeat(chance, size), None if kept is None else kept.ravel()).reshape(shape)


def code_flat_values(port: Port, kept: np.ndarray, largest: int, values: np.ndarray | None) -> np.ndarray:
    """As `code_values`, all values likely alike, in row-major order: signs, then levels, then the bits below."""
    count, given = int(np.count_nonzero(kept)), None if values is None else values[kept]
    found = np.zeros(kept.shape, np.int64)
    if not count:
        return found
    negative = port.code(np.full(count, HALF), None if given is None else given < 0)
    level, size = np.zeros(count, np.int64), None if given is None else np.abs(given)
    for number, chance in enumerate(uniform_chances(largest)):
        at = np.flatnonzero(level == number)
        if len(at):
            more = None if size is None else size[at] >= 2 << number
            level[at] += port.code(np.full(len(at), chance), more)
    magnitude = np.ones(count, np.int64)
    for depth in range(1, largest.bit_length()):
        at = np.flatnonzero(level >= depth)
        if len(at):
            bits = None if size is None else (size[at] >> (level[at] - depth) & 1).astype(bool)
            magnitude[at] = 2 * magnitude[at] + port.code(np.full(len(at), HALF), bits)
    found[kept] = np.where(negative, -magnitude, magnitude)
    return found


def code_values(
    port: Port, kept: np.ndarray, largest: int, memory: Memory, kind: object, values: np.ndarray | None
) -> np.ndarray:
    """The values of the elements kept: whole numbers, int64 of `kept`'s shape, at most `largest` in magnitude.

    Args:
        kind: tensors of the same kind learn from one another.
    """
    shape, found = kept.shape, np.zeros(kept.shape, np.int64)
    signs = Decisions(shape, memory.of((kind, "sign")))
    magnitudes = Magnitudes(shape, largest, memory, kind)
    for places in rounds_of(kept):
        at = tuple(places)
        negative = signs.code(port, places, None if values is None else values[at] < 0)
        size = magnitudes.code(port, places, None if values is None else np.abs(values[at]))
        found[at] = np.where(negative, -size, size)
    memory.keep((kind, "sign"), signs.counts)
    magnitudes.remember(memory)
    return found


class Magnitudes:
    """Whole numbers in [1, largest]: bits above the lowest counted one by one, then those below the leading one."""

    def __init__(self, shape: Sequence[int], largest: int, memory: Memory, kind: object) -> None:
        self._top, self._kind, self._memory = largest.bit_length() - 1, kind, memory
        self._more = [Decisions(shape, memory.of((kind, "more", level))) for level in range(self._top)]
        self._below: dict[int, np.ndarray] = {}

    def code(self, port: Port, places: Sequence[np.ndarray], values: np.ndarray | None) -> np.ndarray:
        """Magnitudes (n,) of the elements at these rows, columns and positions."""
        level = self._levels(port, places, None if values is None else np.frexp(values)[1] - 1)
        found = np.ones(len(level), np.int64)
        for depth in range(1, self._top + 1):
            left = np.flatnonzero(level >= depth)
            if not len(left):
                break
            bits = None if values is None else (values[left] >> (level[left] - depth) & 1).astype(bool)
            found[left] = 2 * found[left] + self._lower(port, depth, level[left], found[left], bits)
        return found

    def _levels(self, port: Port, places: Sequence[np.ndarray], levels: np.ndarray | None) -> np.ndarray:
        """Place of the leading one (n,)."""
        found = np.zeros(len(places[0]), np.int64)
        for level, decisions in enumerate(self._more):
            at = np.flatnonzero(found == level)
            more = decisions.code(port, [own[at] for own in places], None if levels is None else levels[at] > level)
            found[at] += more
        return found

    def _lower(
        self, port: Port, depth: int, level: np.ndarray, above: np.ndarray, bits: np.ndarray | None
    ) -> np.ndarray:
        """The next bit (n,) of values of which `above` (n,), the leading one among it, is known."""
        chances = np.full(len(level), HALF)
        if depth > CONTEXT_BITS:
            return port.code(chances, bits)
        nodes = level << CONTEXT_BITS | above
        kinds, own = np.unique(nodes, return_inverse=True)
        counts = np.stack([self._counts(int(node)) for node in kinds])
        chances = probabilities(log_odds(counts[:, 1], counts[:, 0]))[own]
        found = port.code(chances, bits)
        ones = np.bincount(own[found], minlength=len(kinds))
        counts += 2 * np.stack([np.bincount(own, minlength=len(kinds)) - ones, ones], axis=1)
        self._below |= {int(node): count for node, count in zip(kinds, counts, strict=True)}
        return found

    def _counts(self, node: int) -> np.ndarray:
        return self._below[node] if node in self._below else self._memory.of((self._kind, "below", node))

    def remember(self, memory: Memory) -> None:
        for level, decisions in enumerate(self._more):
            memory.keep((self._kind, "more", level), decisions.counts)
        for node, counts in self._below.items():
            memory.keep((self._kind, "below", node), counts)
