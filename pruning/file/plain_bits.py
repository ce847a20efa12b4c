"""Bits that are stored as they are: numbers of a few bits one behind the other, lowest bit first."""

from __future__ import annotations

import numpy as np

CHUNK = 1 << 20
"""Numbers that are spread into bits at once."""


class PlainWriter:
    def __init__(self) -> None:
        self._bits: list[np.ndarray] = []

    def put(self, numbers: np.ndarray, width: int) -> None:
        """Append whole numbers (n,) in [0, 2^width)."""
        if width:
            for begin in range(0, len(numbers), CHUNK):
                part = numbers[begin : begin + CHUNK].astype(np.int64)
                self._bits.append((part[:, None] >> np.arange(width) & 1).astype(bool).ravel())

    @property
    def bytes(self) -> bytes:
        """All of it, filled up with zeros to whole bytes."""
        if not self._bits:
            return b""
        return np.packbits(np.concatenate(self._bits), bitorder="little").tobytes()


class PlainReader:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = np.frombuffer(data, np.uint8), 0

    def take(self, count: int, width: int) -> np.ndarray:
        """The next numbers (count,), int64; raises `ValueError` where they end too early."""
        if not width:
            return np.zeros(count, np.int64)
        if self._at + count * width > 8 * len(self._data):
            raise ValueError("its plain bits end too early")
        first, self._at = self._at, self._at + count * width
        bytes_of = self._data[first // 8 : -(-self._at // 8)]
        bits = np.unpackbits(bytes_of, bitorder="little")[first % 8 :][: count * width].reshape(count, width)
        found = np.zeros(count, np.int64)
        for place in range(width):
            found |= bits[:, place].astype(np.int64) << place
        return found

    def end(self) -> None:
        """Raise `ValueError` unless nothing but the last byte's filling is left, and that is zeros."""
        left = 8 * len(self._data) - self._at
        if left >= 8 or self.take(left, 1).any():
            raise ValueError("bytes follow its last plain bit")
