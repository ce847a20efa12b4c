"""Probabilities in whole numbers, the same on every machine: logarithms and odds from two small tables.

All logarithms are of base 2 and in steps of 1/256. A decision (one bit) has a probability of being 1, in parts of
65536, from its log odds.
"""

from __future__ import annotations

import math

import numpy as np

STEPS = 256
"""Steps of a logarithm in one doubling."""
PARTS = 1 << 16
"""What probabilities are parts of."""
HALF = PARTS // 2
MOST_ODDS = 12 * STEPS
"""Log odds beyond this are taken as this: no bit is less likely than 1 in 4097."""
MANTISSA = 11
"""Bits behind the leading one that a logarithm looks at."""

_LOGARITHMS = np.array(
    [round(STEPS * math.log2(1 + place / 2**MANTISSA)) for place in range(2**MANTISSA)], dtype=np.int64
)
_PROBABILITIES = np.array(
    [round(PARTS / (1 + 2 ** (-odds / STEPS))) for odds in range(-MOST_ODDS, MOST_ODDS + 1)], dtype=np.int64
)


def log2_steps(numbers: np.ndarray) -> np.ndarray:
    """Logarithms of whole numbers in [1, 2^63), int64 of their shape; what is behind the 12 leading bits is cut off.

    >>> log2_steps(np.array([1, 2, 3, 4096])).tolist()
    [0, 256, 406, 3072]
    """
    large = numbers >> 52 > 0  # and no longer exact as a float
    fraction, exponent = np.frexp(np.where(large, numbers >> 12, numbers))
    leading = (fraction * 2 ** (MANTISSA + 1)).astype(np.int64)
    return (exponent.astype(np.int64) - 1 + 12 * large) * STEPS + _LOGARITHMS[leading - 2**MANTISSA]


def probabilities(log_odds: np.ndarray) -> np.ndarray:
    """Parts of 65536 for log odds, int64 of their shape, each in [16, 65520].

    >>> probabilities(np.array([0, 256, -10_000])).tolist()
    [32768, 43691, 16]
    """
    return _PROBABILITIES[np.minimum(np.maximum(log_odds, -MOST_ODDS), MOST_ODDS) + MOST_ODDS]


def log_odds(ones: np.ndarray, zeros: np.ndarray) -> np.ndarray:
    """Of counts >= 1 that are in proportion to how often a bit was 1 and 0."""
    return log2_steps(ones) - log2_steps(zeros)


def bits_of(chance: np.ndarray, bits: np.ndarray) -> float:
    """What bits (n,) with these chances (n,) of being 1 take, at the least."""
    taken = np.where(bits, chance, PARTS - chance)
    return float(16 * len(taken) - np.log2(taken).sum())
