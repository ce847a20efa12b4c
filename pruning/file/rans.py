"""Bits as bytes: an rANS coder (Duda, arXiv 1311.2540) for bits whose probabilities both sides know.

Decision t belongs to state t % lanes. The reader holds each state x in [2^32, 2^48). With c, the parts of 65536 that
a 1 has, it reads a bit by

    low = x % 65536; bit = low < c
    x = c * (x / 65536) + low              if bit, else
    x = (65536 - c) * (x / 65536) + low - c
    if x < 2^32: x = x * 65536 + the next word

Bytes: the states' first values, 6 bytes each, then words of 16 bits, all little-endian. After the last decision every
state is 2^32 and no word is left, or the bytes are damaged.
"""

from __future__ import annotations

import numpy as np

from pruning.file.probabilities import PARTS

LOWEST = 1 << 32
STATE_BYTES, WORD_BYTES = 6, 2
LANE_BYTES = 2048
"""A further state for so many bytes: it costs 5 bytes, and makes long files quick to code for NumPy."""
LEAST_LANES, MOST_LANES = 8, 4096
"""With fewer than 8 states there is one."""
FEW_LANES = 64
"""With fewer states than this plain Python is quicker than NumPy."""
AT_ONCE = 1 << 16
"""Decisions that plain Python holds at a time."""


def lanes_for(bits: float) -> int:
    """States for decisions that take so many bits."""
    lanes = int(min(bits // (8 * LANE_BYTES), MOST_LANES))
    return lanes if lanes >= LEAST_LANES else 1


def encode(chances: np.ndarray, bits: np.ndarray, lanes: int) -> bytes:
    """The bytes of decisions (t,), `chances` being parts of 65536 in [1, 65535] that a bit is 1."""
    starts = np.where(bits, 0, chances)
    parts = np.where(bits, chances, PARTS - chances)
    states, words = (_encode_few if lanes < FEW_LANES else _encode_lanes)(starts, parts, lanes)
    return b"".join(state.to_bytes(STATE_BYTES, "little") for state in states) + words.astype("<u2").tobytes()


def _encode_few(starts: np.ndarray, parts: np.ndarray, lanes: int) -> tuple[list[int], np.ndarray]:
    states, words = [LOWEST] * lanes, []
    for end in range(len(starts), 0, -AT_ONCE):
        own = slice(max(end - AT_ONCE, 0), end)
        lane = (end - 1) % lanes
        for start, part in zip(starts[own][::-1].tolist(), parts[own][::-1].tolist(), strict=True):
            x = states[lane]
            if x >= part << 32:
                words.append(x & 0xFFFF)
                x >>= 16
            quotient = x // part
            states[lane] = (quotient << 16) + x - quotient * part + start
            lane = lane - 1 if lane else lanes - 1
    return states, np.array(words[::-1], dtype=np.int64)


def _encode_lanes(starts: np.ndarray, parts: np.ndarray, lanes: int) -> tuple[list[int], np.ndarray]:
    x, words = np.full(lanes, LOWEST, np.int64), []
    for begin in range((len(starts) - 1) // lanes * lanes, -1, -lanes):
        start, part = starts[begin : begin + lanes], parts[begin : begin + lanes]
        own = x[: len(part)]
        full = own >= part << 32
        words.append((own[full] & 0xFFFF)[::-1])
        quotient, rest = np.divmod(np.where(full, own >> 16, own), part)
        x[: len(part)] = (quotient << 16) + rest + start
    return x.tolist(), np.concatenate(words)[::-1] if words else np.zeros(0, np.int64)


class Decoder:
    """Reads the bits of one `encode`, in as many pieces as wanted.

    Raises:
        ValueError: here for bytes that cannot be such; by `end` for those that do not end as they must.
    """

    def __init__(self, data: bytes, lanes: int) -> None:
        if len(data) < lanes * STATE_BYTES or (len(data) - lanes * STATE_BYTES) % WORD_BYTES:
            raise ValueError(f"{len(data)} coded bytes do not hold {lanes} states and words")
        states = [data[at : at + STATE_BYTES] for at in range(0, lanes * STATE_BYTES, STATE_BYTES)]
        self._x = np.array([int.from_bytes(state, "little") for state in states], dtype=np.int64)
        self._words = np.frombuffer(data, "<u2", offset=lanes * STATE_BYTES).astype(np.int64)
        self._listed = self._words.tolist() if lanes < FEW_LANES else []
        self._lanes, self._turn, self._read = lanes, 0, 0
        if (self._x < LOWEST).any():
            raise ValueError("a coded state is too small")

    def bits(self, chances: np.ndarray) -> np.ndarray:
        """The next bits (n,), bool."""
        if self._lanes < FEW_LANES:
            parts = [self._from_few(chances[at : at + AT_ONCE]) for at in range(0, len(chances), AT_ONCE)]
            return np.concatenate(parts) if parts else np.zeros(0, dtype=bool)
        found, at = np.empty(len(chances), dtype=bool), 0
        while at < len(chances):
            count = min(self._lanes - self._turn, len(chances) - at)
            own = slice(self._turn, self._turn + count)
            found[at : at + count] = self._from_lanes(own, chances[at : at + count])
            at, self._turn = at + count, (self._turn + count) % self._lanes
        return found

    def _from_lanes(self, own: slice, chances: np.ndarray) -> np.ndarray:
        x = self._x[own]
        low = x & 0xFFFF
        bits = low < chances
        x = np.where(bits, chances, PARTS - chances) * (x >> 16) + low - np.where(bits, 0, chances)
        empty = x < LOWEST
        count = int(np.count_nonzero(empty))
        if self._read + count > len(self._words):
            raise ValueError("the coded bytes end too early")
        x[empty] = x[empty] << 16 | self._words[self._read : self._read + count]
        self._read += count
        self._x[own] = x
        return bits

    def _from_few(self, chances: np.ndarray) -> np.ndarray:
        states, words, read, lane, bits = self._x.tolist(), self._listed, self._read, self._turn, []
        for chance in chances.tolist():
            x = states[lane]
            low = x & 0xFFFF
            bit = low < chance
            x = chance * (x >> 16) + low if bit else (PARTS - chance) * (x >> 16) + low - chance
            if x < LOWEST:
                if read == len(words):
                    raise ValueError("the coded bytes end too early")
                x = x << 16 | words[read]
                read += 1
            states[lane] = x
            bits.append(bit)
            lane = lane + 1 if lane + 1 < self._lanes else 0
        self._x[:], self._read, self._turn = states, read, lane
        return np.array(bits, dtype=bool)

    def end(self) -> None:
        """Raise `ValueError` unless all bytes were used, to the last state."""
        if self._read != len(self._words) or (self._x != LOWEST).any():
            raise ValueError("the coded bytes do not end with the last value")
