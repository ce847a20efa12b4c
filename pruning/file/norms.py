"""BatchNorm as the file stores it smallest: a gain and a shift a channel, statistics of 0 and 1, few bits each.

In evaluation a BatchNorm multiplies by weight / sqrt(variance + eps) and adds bias - mean * that: two numbers a channel
say all that its four vectors do.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pruning.file.precision import rounded_floats

MANTISSA, DISTANCE = 5, 4
"""Gains and shifts are within 1.6 % of what they were; those below 2^-15 of the largest become 0."""


def foldable(model: nn.Module) -> dict[str, _BatchNorm]:
    """The BatchNorms, by path, whose evaluation is a gain and a shift: with weight, bias and statistics in float32."""
    found = {}
    for path, norm in model.named_modules():
        tensors = [getattr(norm, name, None) for name in ("weight", "bias", "running_mean", "running_var")]
        if isinstance(norm, _BatchNorm) and all(t is not None and t.dtype == torch.float32 for t in tensors):
            found[path] = norm
    return found


@torch.no_grad()
def fold_norms_(model: nn.Module, mantissa: int = MANTISSA, distance: int = DISTANCE) -> int:
    """Give every foldable BatchNorm the statistics 0 and 1, and rounded weights and biases to match, in place.

    What the network computes in evaluation mode changes by the rounding alone. Recalibrate before, not after.

    Args:
        mantissa: bits behind the leading one; 23 keeps float32 as it is.
        distance: what is 2^(2^distance) or more below a norm's largest gain or shift becomes 0.

    Returns:
        The number of norms folded.
    """
    norms = foldable(model)
    for norm in norms.values():
        gain = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
        shift = norm.bias.double() - norm.running_mean.double() * gain
        norm.weight.copy_(rounded_floats((gain * (1 + norm.eps) ** 0.5).float(), mantissa, distance))
        norm.bias.copy_(rounded_floats(shift.float(), mantissa, distance))
        norm.running_mean.zero_()
        norm.running_var.fill_(1)
    return len(norms)
