"""Weights as whole numbers of few bits, with one scale an output channel; zero stays zero, so masks survive."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from numbers import Integral

import torch
from torch import Tensor

from pruning.file.precision import rounded_floats
from spaces.printable import LONGEST_WORD, shortened
from spaces.validation import is_number

LEAST_BITS, MOST_BITS = 2, 16
SCALE_MANTISSA, SCALE_DISTANCE = 3, 4
"""Scales have so many bits behind the leading one, and lie within 2^(2^4) of one another: their steps of 6 to 12 % cost
less in rounding than finer ones cost in bytes."""
CANDIDATES = 21
"""Scales looked at, downwards from the one that clips nothing: two and a half octaves."""
OCTAVE = 2**SCALE_MANTISSA
"""Scales from one power of two to the next."""
LEAST_EXPONENT = -125
"""Scales are 2^-126 or more, so that all of them are normal numbers."""
LARGEST = torch.finfo(torch.bfloat16).max
AT_ONCE = 2**18
"""Weights looked at together, few enough for a processor's cache."""


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

    A weight that is rounded already stays what it is: rounding it again gives the same whole numbers and scales.

    Args:
        weight: floats, of one dimension or more, all finite.
        bits: 2 to 16.
        mask: bool, True = kept, of its shape; what is not kept becomes 0.
        dim: that output channels index: 0, or 1 for transposed convolutions but depthwise ones.

    Raises:
        ValueError: bits that are no such number, or a weight that is not finite.
    """
    bits = _checked(bits)
    own = weight.detach().cpu().to(torch.float64)
    if not torch.isfinite(own).all():
        raise ValueError("a weight with NaN or infinite values cannot be rounded")
    rows = (own if mask is None else own * mask.cpu()).movedim(dim, 0)
    flat, largest = rows.reshape(len(rows), prod(rows.shape[1:])), 2 ** (bits - 1) - 1
    scales = _exact_scales(flat, largest, weight.dtype)
    if scales is None:
        scales = _nearest_scales(flat, largest, weight.dtype)
        flat = _products(flat, scales, largest, weight.dtype)
        scales = _exact_scales(flat, largest, weight.dtype)
        assert scales is not None  # what has just been rounded
    integers = _to_integers(flat, scales, largest)
    held = integers.reshape(rows.shape).movedim(0, dim).contiguous().to(torch.int8 if bits <= 8 else torch.int16)
    return Rounded(held, scales.to(torch.bfloat16), bits, dim)


def _checked(bits: object) -> int:
    if isinstance(bits, Integral) and not isinstance(bits, bool) and LEAST_BITS <= int(bits) <= MOST_BITS:
        return int(bits)
    nearest = min(max(round(bits), LEAST_BITS), MOST_BITS) if is_number(bits) else MOST_BITS
    raise ValueError(
        f"bits of a rounded weight must be a whole number from {LEAST_BITS} to {MOST_BITS}, "
        f"got {shortened(repr(bits), LONGEST_WORD)}; nearest valid: {nearest}; 32 leaves it as it is"
    )


def _to_integers(flat: Tensor, scales: Tensor, largest: int) -> Tensor:
    """Whole numbers (rows, n), float64; scales (rows,) may be 0."""
    return (flat / torch.where(scales > 0, scales, 1)[:, None]).round_().clamp_(-largest, largest)


def _products(flat: Tensor, scales: Tensor, largest: int, dtype: torch.dtype) -> Tensor:
    """What a network of this type computes with, float64 of `flat`'s shape."""
    return _to_integers(flat, scales, largest).mul_(scales[:, None]).to(dtype).to(torch.float64)


def _peaks(flat: Tensor) -> Tensor:
    return flat.abs().amax(dim=1) if flat.shape[1] else flat.new_zeros(len(flat))


def _least_scale(peaks: Tensor, largest: int) -> float:
    """A power of two that no scale is below where these (rows,) are the largest values of the channels.

    The scale of the largest may be in the octave above that of peak / largest, and has to be near enough to the least.
    """
    top = 1 + int(torch.frexp(peaks.max() / largest)[1]) if len(peaks) else 0
    return 2.0 ** (max(top + 1 - 2**SCALE_DISTANCE, LEAST_EXPONENT) - 1)


def _exact_scales(flat: Tensor, largest: int, dtype: torch.dtype) -> Tensor | None:
    """The smallest scales (rows,), float64, that change no value; 0 for rows of zeros, None where a row has none.

    Halving a scale and doubling the whole numbers changes nothing until these are too large; so the smallest lies
    within an octave of peak / largest, or of the least scale.
    """
    peaks = _peaks(flat)
    scales = torch.zeros_like(peaks)
    candidate = rounded_floats(peaks / largest, SCALE_MANTISSA, up=False).clamp_min(_least_scale(peaks, largest))
    todo = peaks.nonzero().flatten()
    for _ in range(OCTAVE + 1):
        own = candidate[todo]
        fits = (_products(peaks[todo, None], own, largest, dtype)[:, 0] == peaks[todo]) & (own <= LARGEST)
        for part in fits.nonzero().flatten().split(max(1, AT_ONCE // max(flat.shape[1], 1))):
            rows = flat[todo[part]]
            fits[part] = (_products(rows, own[part], largest, dtype) == rows).all(dim=1)
        scales[todo[fits]] = own[fits]
        todo = todo[~fits]
        candidate = candidate + torch.ldexp(torch.ones_like(candidate), torch.frexp(candidate)[1] - 1 - SCALE_MANTISSA)
    return None if len(todo) else scales


def _nearest_scales(flat: Tensor, largest: int, dtype: torch.dtype) -> Tensor:
    """The scales (rows,), float64, of the least error a row."""
    peaks = _peaks(flat)
    least = 2 * _least_scale(peaks, largest)  # rounding may double the largest value
    most = rounded_floats(peaks.new_tensor(min(torch.finfo(dtype).max, LARGEST) / largest), SCALE_MANTISSA, up=False)
    first = rounded_floats(peaks / largest * (1 + 1 / OCTAVE), SCALE_MANTISSA, up=False).clamp(least, most.item())
    parts = max(1, AT_ONCE // max(flat.shape[1], 1))
    return torch.cat(
        [
            _nearest_of_few(*part, largest, least)
            for part in zip(flat.split(parts), peaks.split(parts), first.split(parts), strict=True)
        ]
        or [first]
    )


def _nearest_of_few(flat: Tensor, peaks: Tensor, candidate: Tensor, largest: int, least: float) -> Tensor:
    """Walks down from `candidate` (rows,), until what clipping does to a row's peak alone is worse than the best."""
    best, scales = torch.full_like(candidate, float("inf")), candidate
    rows = torch.arange(len(flat))
    for _ in range(CANDIDATES):
        open_ = ((peaks - largest * candidate).clamp_min(0) ** 2 < best)[rows] & (candidate[rows] >= least)
        if not open_.all():
            flat, rows = flat[open_], rows[open_]
        if not len(rows):
            break
        own = candidate[rows]
        error = _to_integers(flat, own, largest).mul_(own[:, None]).sub_(flat).square_().sum(dim=1)
        better = error < best[rows]
        best[rows[better]], scales = error[better], scales.index_copy(0, rows[better], own[better])
        candidate = rounded_floats(candidate * (1 - 0.25 / OCTAVE), SCALE_MANTISSA, up=False)
    return scales
