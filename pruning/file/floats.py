"""Floats taken apart: sign, how far the exponent is below the tensor's largest, and the mantissa's leading bits."""

from __future__ import annotations

import numpy as np

from spaces.cost.coded_header import FLOAT_FORMS, FloatForm

PATTERNS = {"F32": np.uint32, "F16": np.uint16, "BF16": np.uint16, "F64": np.uint64}
"""The unsigned type that holds a float's bits."""


def form_of(patterns: np.ndarray, dtype: str) -> FloatForm:
    """The form of floats (n,), all but zeros stored exactly by it.

    Args:
        patterns: their bits, of the type in `PATTERNS`.
    """
    exponent_bits, mantissa_bits = FLOAT_FORMS[dtype]
    kept = patterns[magnitude(patterns, dtype) != 0].astype(np.uint64)
    if not len(kept):
        return FloatForm(0, 0, 0, 0)
    used = int(np.bitwise_or.reduce(kept)) & (1 << mantissa_bits) - 1
    trailing = (used & -used).bit_length() - 1 if used else mantissa_bits
    exponents = (kept >> np.uint64(mantissa_bits)) & np.uint64((1 << exponent_bits) - 1)
    top, low = int(exponents.max()), int(exponents.min())
    return FloatForm(mantissa_bits - trailing, (top - low).bit_length(), top, len(kept))


def magnitude(patterns: np.ndarray, dtype: str) -> np.ndarray:
    """Bits without the sign: 0 for zeros of either sign."""
    return patterns & patterns.dtype.type((1 << sum(FLOAT_FORMS[dtype])) - 1)


def take_apart(patterns: np.ndarray, dtype: str, form: FloatForm) -> tuple[np.ndarray, np.ndarray]:
    """Signed steps (n,) and mantissas (n,), int64: 1 + the exponent's distance from the top, negative as the float is;
    and the stored bits of the mantissa."""
    exponent_bits, mantissa_bits = FLOAT_FORMS[dtype]
    bits = patterns.astype(np.uint64)
    exponents = (bits >> np.uint64(mantissa_bits) & np.uint64((1 << exponent_bits) - 1)).astype(np.int64)
    negative = (bits >> np.uint64(exponent_bits + mantissa_bits)).astype(bool)
    mantissas = (bits & np.uint64((1 << mantissa_bits) - 1)) >> np.uint64(mantissa_bits - form.mantissa)
    steps = form.top - exponents + 1
    return np.where(negative, -steps, steps), mantissas.astype(np.int64)


def put_together(steps: np.ndarray, mantissas: np.ndarray, dtype: str, form: FloatForm) -> np.ndarray:
    """The patterns (n,) that `take_apart` took apart.

    Raises:
        ValueError: an exponent below 0.
    """
    exponent_bits, mantissa_bits = FLOAT_FORMS[dtype]
    exponents = form.top + 1 - np.abs(steps)
    if (exponents < 0).any():
        raise ValueError("a float's exponent is below 0")
    bits = (steps < 0).astype(np.uint64) << np.uint64(exponent_bits + mantissa_bits)
    bits |= exponents.astype(np.uint64) << np.uint64(mantissa_bits)
    bits |= mantissas.astype(np.uint64) << np.uint64(mantissa_bits - form.mantissa)
    return bits.astype(PATTERNS[dtype])
