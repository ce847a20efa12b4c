"""Weights as whole numbers of few bits, with one scale an output channel; zero stays zero, so masks survive."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from pruning.file.precision import rounded_floats

LEAST_BITS, MOST_BITS = 2, 16
SCALE_MANTISSA, SCALE_DISTANCE = 3, 4
"""Scales have so many bits behind the leading one, and lie within 2^(2^4) of one another: their steps of 6 to 12 % cost
less in rounding than finer ones cost in bytes."""
CANDIDATES = 21
"""Scales looked at, downwards from the one that clips nothing: two and a half octaves."""


@dataclass(frozen=True)
class Rounded:
    """A rounded weight.

    Attributes:
        integers: of the weight's shape, in [-(2^(bits - 1) - 1), 2^(bits - 1) - 1]; int8 up to 8 bits, else int16.
        scales: bfloat16, one for each index of dimension `dim`; 0 where all integers are.
        bits: of the integers, 2 to 16.
    """

    integers: Tensor
    scales: Tensor
    bits: int
    dim: int = 0

    def weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """What a network computes with: the products, rounded to `dtype`."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        by_channel = [-1 if d == self.dim else 1 for d in range(self.integers.dim())]
        return (self.integers.to(wide) * self.scales.to(wide).view(by_channel)).to(dtype)


@torch.no_grad()
def round_weight(weight: Tensor, bits: int, mask: Tensor | None = None, dim: int = 0) -> Rounded:
    """The rounded weight with the least mean square error a channel, of scales that clip nothing and smaller ones.

    Args:
        weight: floats, of one dimension or more, all finite.
        bits: 2 to 16.
        mask: bool, True = kept, of its shape; what is not kept becomes 0.
        dim: that output channels index: 0, or 1 for transposed convolutions but depthwise ones.

    Raises:
        ValueError: bits that are no such number, or a weight that is not finite.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not LEAST_BITS <= bits <= MOST_BITS:
        raise ValueError(
            f"bits of a rounded weight must be a whole number from {LEAST_BITS} to {MOST_BITS}, got {bits!r}; "
            "32 leaves it as it is"
        )
    own = weight.detach().cpu().to(torch.float64)
    if not torch.isfinite(own).all():
        raise ValueError("a weight with NaN or infinite values cannot be rounded")
    rows = (own if mask is None else own * mask.cpu()).movedim(dim, 0)
    flat, largest = rows.reshape(len(rows), prod(rows.shape[1:])), 2 ** (bits - 1) - 1
    scales = _scales(flat, largest)
    integers = _to_integers(flat, scales, largest)
    kept = (integers != 0).any(dim=1)
    held = integers.reshape(rows.shape).movedim(0, dim).contiguous().to(torch.int8 if bits <= 8 else torch.int16)
    return Rounded(held, torch.where(kept, scales, 0).to(torch.bfloat16), bits, dim)


def _to_integers(flat: Tensor, scales: Tensor, largest: int) -> Tensor:
    """Whole numbers (rows, n), float64; scales (rows,) may be 0."""
    return (flat / torch.where(scales > 0, scales, 1)[:, None]).round().clamp(-largest, largest)


def _scales(flat: Tensor, largest: int) -> Tensor:
    """Scales (rows,), float64, on the grid that the file stores."""
    peak = flat.abs().amax(dim=1) if flat.shape[1] else flat.new_zeros(len(flat))
    first = rounded_floats(peak / largest * (1 + 2.0**-SCALE_MANTISSA), SCALE_MANTISSA, up=False)
    least = first.max() * 2.0 ** (2 - 2**SCALE_DISTANCE) if len(first) else 0
    first = torch.where(peak > 0, first.clamp_min(least), 0)
    best, scales = torch.full_like(first, float("inf")), first
    candidate = first
    for _ in range(CANDIDATES):
        error = ((_to_integers(flat, candidate, largest) * candidate[:, None] - flat) ** 2).sum(dim=1)
        scales, best = torch.where(error < best, candidate, scales), torch.minimum(error, best)
        candidate = rounded_floats(candidate * (1 - 2.0 ** -(SCALE_MANTISSA + 2)), SCALE_MANTISSA, up=False)
        candidate = torch.where(candidate >= least / 2, candidate, scales)
    return scales
