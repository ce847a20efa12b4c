"""Bits of a stored weight value: which widths there are, and what a user may give for one."""

from __future__ import annotations

import re
from numbers import Integral

from spaces.printable import LONGEST_WORD, shortened
from spaces.validation import is_number

FLOAT_BITS = 32
"""The width of a weight that is not rounded: a float, as the network was trained."""
BITS = (FLOAT_BITS, 16, 8, 7, 6, 5, 4, 3, 2)
"""Widths of a stored value; below 32 it is a whole number in [-(2^(bits - 1) - 1), 2^(bits - 1) - 1] times a scale."""


def check_bits(value: object, where: str = "bits") -> int:
    """Return `value` as an int if it is one of `BITS`, otherwise raise `ValueError` with the nearest that is.

    >>> check_bits(4)
    4
    >>> check_bits(33)
    Traceback (most recent call last):
    ValueError: bits must be one of 32, 16, 8, 7, 6, 5, 4, 3, 2, got 33; nearest valid: 32
    """
    if isinstance(value, Integral) and not isinstance(value, bool) and value in BITS:
        return int(value)
    digits = re.search(r"\d+(\.\d+)?", value) if isinstance(value, str) else None  # of "3.5", or "int8"
    number = float(digits[0]) if digits else value
    nearest = min(BITS, key=lambda bits: abs(bits - float(number))) if is_number(number) else FLOAT_BITS
    valid, said = ", ".join(map(str, BITS)), shortened(repr(value), LONGEST_WORD)
    raise ValueError(f"{where} must be one of {valid}, got {said}; nearest valid: {nearest}")
