"""A decoder of version-2 files written from docs/formats.md alone: plain Python, one decision after the other.

It shares no code with the writer and trusts its input: an oracle for tests, and a model for readers in other languages.
"""

from __future__ import annotations

import math
import struct
import zlib
from itertools import pairwise

ENDINGS = ("", ".weight", ".bias", ".running_mean", ".running_var", ".num_batches_tracked")
TYPES = ("F32", "F16", "BF16", "F64", "I64", "I32", "I16", "I8", "U8", "BOOL")
BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
FLOATS = {"F32": (8, 23), "F16": (5, 10), "BF16": (8, 7), "F64": (11, 52)}
STARTS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
LOGARITHMS = [round(256 * math.log2(1 + n / 2048)) for n in range(2048)]


def log2(number: int) -> int:
    length = number.bit_length()
    leading = number << 12 >> length if length <= 12 else number >> (length - 12)
    return 256 * (length - 1) + LOGARITHMS[leading - 2048]


def chance(odds: int) -> int:
    return round(65536 / (1 + 2 ** (-max(-3072, min(odds, 3072)) / 256)))


class Coded:
    """The coded bytes, bit by bit."""

    def __init__(self, data: bytes, lanes: int) -> None:
        self.x = [int.from_bytes(data[6 * n : 6 * n + 6], "little") for n in range(lanes)]
        self.words = list(struct.unpack(f"<{(len(data) - 6 * lanes) // 2}H", data[6 * lanes :]))[::-1]
        self.turn = 0

    def bit(self, c: int) -> int:
        x, lane = self.x[self.turn], self.turn
        low, bit = x % 65536, x % 65536 < c
        x = c * (x >> 16) + low if bit else (65536 - c) * (x >> 16) + low - c
        self.x[lane] = x if x >= 1 << 32 else x << 16 | self.words.pop()
        self.turn = (lane + 1) % len(self.x)
        return int(bit)


class Plain:
    """The plain bits."""

    def __init__(self, data: bytes) -> None:
        self.bits, self.at = int.from_bytes(data, "little"), 0

    def take(self, width: int) -> int:
        self.at += width
        return self.bits >> (self.at - width) & (1 << width) - 1


class Kind:
    """Decisions of one kind in one tensor, with the counts of zeros and ones of every row, column and position."""

    def __init__(self, shape: tuple[int, int, int], start: list[int], total: list[int] | None = None) -> None:
        self.counts, self.total = list(start), total
        self.seen = [[[0, 0] for _ in range(length)] for length in shape]

    def begin(self) -> None:
        """Fix what is known at the start of a batch."""
        if self.total:
            zeros, ones = (2 * t - c + 1 for t, c in zip(self.total, self.counts, strict=True))
            self.base, self.expected = log2(max(ones, 1)) - log2(max(zeros, 1)), [2 * t for t in self.total]
        else:
            self.base, self.expected = log2(self.counts[1]) - log2(self.counts[0]), list(self.counts)
        self.known = [[list(pair) for pair in places] for places in self.seen]

    def bit(self, coded: Coded, place: tuple[int, int, int]) -> int:
        odds, (zeros, ones) = self.base, self.expected
        for weight, own, places in zip((96, 192, 32), place, self.known, strict=True):
            if len(places) > 1 and any(map(any, places)):
                z, o = places[own]
                odds += log2(o * (zeros + ones) + weight * ones) - log2(z * (zeros + ones) + weight * zeros)
                odds -= log2(ones) - log2(zeros)
        bit = coded.bit(chance(odds))
        self.counts[bit] += 2
        for own, places in zip(place, self.seen, strict=True):
            places[own][bit] += 2
        return bit


def rounds(shape: tuple[int, int, int]) -> list[list[tuple[int, int, int]]]:
    found = []
    for low, high in pairwise(STARTS):
        found.append(
            [
                (r, c, p)
                for r in range(shape[0])
                for c in range(shape[1])
                if low <= (r + c) % 32 < high
                for p in range(shape[2])
            ]
        )
    return found


def every(shape: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    return [(r, c, p) for r in range(shape[0]) for c in range(shape[1]) for p in range(shape[2])]


class File:
    def __init__(self, content: bytes) -> None:
        assert content[:4] == b"PRF2"
        assert struct.unpack("<I", content[4:8])[0] == zlib.crc32(content[8:])
        self.data, self.at = content, 8
        self.memory: dict[tuple, list[int]] = {}

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def number(self) -> int:
        byte = self.byte()
        return byte if byte < 128 else byte - 128 + 128 * self.number()

    def take(self, count: int) -> bytes:
        self.at += count
        return self.data[self.at - count : self.at]

    def form(self, full: bool, size: int) -> list[int]:
        return [self.byte(), self.byte(), self.number(), size if full else self.number()]

    def records(self) -> list[dict]:
        found, path, shape = [], b"", ()
        for _ in range(self.number()):
            first = self.byte()
            kind = first & 7
            if not first & 64:
                common, more = self.number(), self.number()
                path = path[:common] + self.take(more)
            if not first & 128:
                shape = tuple(self.number() for _ in range(self.number()))
            one = {"kind": kind, "name": path.decode() + ENDINGS[first >> 3 & 7], "shape": shape}
            size = math.prod(shape)
            if kind in (0, 1, 2, 3):
                code = self.byte()
                one |= {"type": TYPES[code & 15], "flags": code >> 4}
            if kind == 1:
                doubled = self.number()
                one["value"] = doubled // 2 if doubled % 2 == 0 else -(doubled + 1) // 2
            if kind == 2:
                one["form"] = self.form(bool(one["flags"] & 2), size)
            if kind == 3:
                one |= {"bits": self.byte(), "nonzero": self.number(), "form": self.form(True, 0)}
            if kind == 4:
                one["target"] = self.number()
            if kind == 5:
                flags = one["flags"] = self.byte()
                one["batches"] = self.number()
                one["forms"] = [self.form(bool(flags & 2), size), self.form(bool(flags & 8), size)]
            found.append(one)
        return found

    def decode(self) -> dict[str, list]:
        """Name -> elements in row-major order; floats of float32 and smaller as Python's."""
        self.number()
        records, lanes = self.records(), self.number()
        length = self.number()
        self.coded = Coded(self.take(length), lanes) if lanes else None
        self.plain, found = Plain(self.data[self.at :]), {}
        for one in records:
            name, shape = one["name"], one["shape"]
            size, grid = math.prod(shape), ((*shape, 1, 1)[0], (*shape, 1, 1)[1], math.prod(shape[2:]))
            if one["kind"] == 0:
                found[name] = [self.plain.take(8) for _ in range(size * BYTES[one["type"]])]
            elif one["kind"] == 1:
                found[name] = [one["value"]] * size
            elif one["kind"] == 2:
                kept = self.places(grid, one["form"][3], one["flags"] & 1)
                role = "weights" if len(shape) > 1 else "shifts"
                found[name] = self.floats(grid, kept, one["type"], one["form"], one["flags"] & 1, role)
            elif one["kind"] == 3:
                found[name] = self.integers(one, grid)
            elif one["kind"] == 4:
                found[name] = list(found.values())[one["target"]]
            else:
                for ending, form, flags, role in zip(
                    ENDINGS[1:3], one["forms"], (one["flags"], one["flags"] >> 2), ("gains", "shifts"), strict=True
                ):
                    kept = self.places(grid, form[3], flags & 1)
                    found[name + ending] = self.floats(grid, kept, "F32", form, flags & 1, role)
                found[name + ".running_mean"], found[name + ".running_var"] = [0] * size, [1] * size
                found[name + ".num_batches_tracked"] = [one["batches"]]
        return found

    def places(self, grid: tuple[int, int, int], nonzero: int, flat: int) -> set:
        size = math.prod(grid)
        if nonzero in (0, size):
            return set(every(grid)) if nonzero else set()
        if flat:
            c = chance(log2(nonzero) - log2(size - nonzero))
            return {place for place in every(grid) if self.coded.bit(c)}
        kind, found = Kind(grid, [0, 0], [size - nonzero, nonzero]), set()
        for places in rounds(grid):
            kind.begin()
            found |= {place for place in places if kind.bit(self.coded, place)}
        return found

    def start(self, key: tuple) -> list[int]:
        return list(self.memory.get(key, [1, 1]))

    def keep(self, key: tuple, counts: list[int]) -> None:
        total = sum(counts)
        self.memory[key] = counts if total <= 32 else [max(count * 32 // total, 1) for count in counts]

    def values(self, grid: tuple[int, int, int], kept: set, largest: int, role: tuple) -> dict:
        top = largest.bit_length() - 1
        signs = Kind(grid, self.start((role, "sign")))
        more = [Kind(grid, self.start((role, "more", level))) for level in range(top)]
        below: dict[int, list[int]] = {}
        found = {}
        for places in rounds(grid):
            own = [place for place in places if place in kept]
            signs.begin()
            negative = {place for place in own if signs.bit(self.coded, place)}
            level = dict.fromkeys(own, 0)
            for number, kind in enumerate(more):
                kind.begin()
                for place in own:
                    if level[place] == number:
                        level[place] += kind.bit(self.coded, place)
            size = dict.fromkeys(own, 1)
            for depth in range(1, top + 1):
                left = [place for place in own if level[place] >= depth]
                nodes = {place: level[place] << 3 | size[place] for place in left}
                for node in set(nodes.values()) if depth <= 3 else ():
                    below.setdefault(node, self.start((role, "below", node)))
                known = {node: log2(o) - log2(z) for node, (z, o) in below.items()}
                for place in left:
                    bit = self.coded.bit(chance(known[nodes[place]]) if depth <= 3 else 32768)
                    size[place] = 2 * size[place] + bit
                    if depth <= 3:
                        below[nodes[place]][bit] += 2
            found |= {place: -size[place] if place in negative else size[place] for place in own}
        self.keep((role, "sign"), signs.counts)
        for number, kind in enumerate(more):
            self.keep((role, "more", number), kind.counts)
        for node, counts in below.items():
            self.keep((role, "below", node), counts)
        return found

    def flat_values(self, grid: tuple[int, int, int], kept: set, largest: int) -> dict:
        own = [place for place in every(grid) if place in kept]
        negative = {place for place in own if self.coded.bit(32768)}
        level = dict.fromkeys(own, 0)
        for number in range(largest.bit_length() - 1):
            c = round(65536 * (largest + 1 - (2 << number)) / (largest + 1 - (1 << number)))
            for place in own:
                if level[place] == number:
                    level[place] += self.coded.bit(c)
        size = dict.fromkeys(own, 1)
        for depth in range(1, largest.bit_length()):
            for place in own:
                if level[place] >= depth:
                    size[place] = 2 * size[place] + self.coded.bit(32768)
        return {place: -size[place] if place in negative else size[place] for place in own}

    def floats(self, grid: tuple, kept: set, dtype: str, form: list[int], flat: int, role: str) -> list[float]:
        mantissa, distance, top, _ = form
        exponent_bits = FLOATS[dtype][0]
        own = [place for place in every(grid) if place in kept]
        if flat:
            taken = [self.plain.take(1 + distance) for _ in own]
            steps = {p: (-1 if t & 1 else 1) * ((t >> 1) + 1) for p, t in zip(own, taken, strict=True)}
        else:
            steps = self.values(grid, kept, 1 << distance, (role, dtype))
        found = {}
        for place in own:
            exponent = top + 1 - abs(steps[place])
            fraction = self.plain.take(mantissa) / 2**mantissa if mantissa else 0.0
            bias = 2 ** (exponent_bits - 1) - 1
            size = math.ldexp(1 + fraction, exponent - bias) if exponent else math.ldexp(fraction, 1 - bias)
            if exponent == 2**exponent_bits - 1:
                size = math.nan if fraction else math.inf
            found[place] = -size if steps[place] < 0 else size
        return [found.get(place, 0.0) for place in every(grid)]

    def integers(self, one: dict, grid: tuple[int, int, int]) -> list[float]:
        flat, dim, largest = one["flags"] & 1, one["flags"] >> 1 & 1, 2 ** (one["bits"] - 1) - 1
        kept = self.places(grid, one["nonzero"], flat)
        if flat:
            values = self.flat_values(grid, kept, largest)
        else:
            values = self.values(grid, kept, largest, ("integers", one["bits"]))
        channels = grid[dim], 1, 1
        alive = {(place[dim], 0, 0) for place in kept}
        scales = self.floats(channels, alive, "BF16", one["form"], one["flags"] >> 2 & 1, "scales")
        return [values.get(place, 0) * scales[place[dim]] for place in every(grid)]
