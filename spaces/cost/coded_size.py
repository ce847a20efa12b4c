"""Bytes of the sparse file, version 2, before anything is trained: a bound that holds for any values."""

from __future__ import annotations

import math

import numpy as np

PARTS = 1 << 16


def uniform_chances(largest: int) -> list[int]:
    """For magnitudes in [1, largest], all likely alike: by level l, the chance, in parts of 65536, that one is at
    least 2^(l + 1), of those that are at least 2^l.

    >>> uniform_chances(7)
    [56174, 43691]
    """
    return [
        round(PARTS * (largest + 1 - (2 << level)) / (largest + 1 - (1 << level)))
        for level in range(largest.bit_length() - 1)
    ]
