"""Floats of fewer bits, still floats: what the file stores smaller."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.devices import wide


def rounded_floats(values: Tensor, mantissa: int, distance: int | None = None, up: bool | None = None) -> Tensor:
    """`values` with so many bits behind the leading one; the relative error is at most 2^-(mantissa + 1).

    Args:
        distance: with it, what is 2^(2^distance) or more below the largest becomes 0.
        up: False cuts off instead (relative error below 2^-mantissa).

    >>> rounded_floats(torch.tensor([1.0, 1.3, -5.2, 1e-9]), 2, 4).tolist()
    [1.0, 1.25, -5.0, 0.0]
    """
    fraction, exponent = torch.frexp(wide(values))
    steps = fraction * 2.0 ** (mantissa + 1)
    steps = steps.trunc() if up is False else steps.round()
    found = torch.ldexp(steps, exponent - (mantissa + 1))
    if distance is not None and found.numel():
        lowest = torch.frexp(found.abs().max())[1] - 2**distance
        found = torch.where(torch.frexp(found)[1] > lowest, found, 0)
    return found.to(values.dtype).to(values.device)
