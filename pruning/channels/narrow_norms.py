"""Norms over channels that lost some: the lost ones still count, as zeros, in the mean and the variance.

A mask leaves a channel in the network as zeros, and a norm over channels averages over these too. A norm that lost the
channel divides by as many as before, so that it gives what the norm with the mask gives.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NarrowLayerNorm(nn.LayerNorm):
    """A layer norm that lost channels.

    Attributes:
        dense_width: the channels that it had.
        channel_dim: the dimension of its input that they lie along: -1, or 1 of images (N, C, H, W).
    """

    dense_width: int
    channel_dim: int

    def forward(self, input: Tensor) -> Tensor:
        x = _precise(input).movedim(self.channel_dim, -1)
        y = _normalised(x, (-1,), self.dense_width, self.eps) * self.weight
        y = y if self.bias is None else y + self.bias
        return y.movedim(-1, self.channel_dim).to(input.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dense_width={self.dense_width}"


class NarrowRMSNorm(nn.RMSNorm):
    """A root mean square norm that lost channels; they lay along the last dimension of its input.

    Attributes:
        dense_width: the channels that it had.
    """

    dense_width: int

    def forward(self, input: Tensor) -> Tensor:
        x = _precise(input)
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        scale = torch.rsqrt(x.square().sum(-1, keepdim=True) / self.dense_width + eps)
        return (x * scale * self.weight).to(input.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dense_width={self.dense_width}"


class NarrowGroupNorm(nn.GroupNorm):
    """A group norm that lost channels, as many of every group.

    Attributes:
        dense_width: the channels that it had, of all groups.
    """

    dense_width: int

    def forward(self, input: Tensor) -> Tensor:
        x = _precise(input).unflatten(1, (self.num_groups, -1))
        dims = tuple(range(2, x.dim()))
        count = self.dense_width // self.num_groups * prod(input.shape[2:])
        y = _normalised(x, dims, count, self.eps).flatten(1, 2)
        shape = (-1, *(1,) * (input.dim() - 2))
        return (y * self.weight.view(shape) + self.bias.view(shape)).to(input.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dense_width={self.dense_width}"


def _precise(x: Tensor) -> Tensor:
    """In at least 32 bits, as PyTorch's norms compute."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _normalised(x: Tensor, dims: tuple[int, ...], count: int, eps: float) -> Tensor:
    """Brought to mean 0 and variance 1 along `dims`, of which there are `count` elements: those of `x`, and zeros."""
    lost = count - prod(x.shape[dim] for dim in dims)
    mean = x.sum(dims, keepdim=True) / count
    centred = x - mean
    variance = (centred.square().sum(dims, keepdim=True) + lost * mean.square()) / count
    return centred * torch.rsqrt(variance + eps)


def can_narrow(module: nn.Module) -> bool:
    """Whether a norm over channels can lose some and still give what it gives with a mask.

    It needs a scale, which a mask sets to zero together with the shift, and a way to compute that is known.
    """
    if isinstance(module, nn.GroupNorm):
        return module.affine and _computes_as(module, nn.GroupNorm, NarrowGroupNorm)
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return module.weight is not None and module.weight.dim() == 1 and _channel_dim(module) is not None
    return False


def narrow_(module: nn.Module) -> None:
    """Make the sizes that a norm holds agree with its tensors; one that lost channels goes on counting them."""
    if isinstance(module, nn.GroupNorm):
        if not isinstance(module, NarrowGroupNorm):
            _become_(module, NarrowGroupNorm, dense_width=module.num_channels)
        module.num_channels = len(module.weight)
    elif isinstance(module, nn.LayerNorm):
        if not isinstance(module, NarrowLayerNorm):
            dim = _channel_dim(module)
            _become_(module, NarrowLayerNorm, dense_width=module.normalized_shape[0], channel_dim=dim)
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.RMSNorm):
        if not isinstance(module, NarrowRMSNorm):
            _become_(module, NarrowRMSNorm, dense_width=module.normalized_shape[0])
        module.normalized_shape = tuple(module.weight.shape)


def _become_(module: nn.Module, cls: type[nn.Module], **attributes: Any) -> None:
    module.__class__ = cls
    for name, value in attributes.items():
        setattr(module, name, value)


def _computes_as(module: nn.Module, *classes: type[nn.Module]) -> bool:
    return any(type(module).forward is cls.forward for cls in classes)


def _channel_dim(module: nn.LayerNorm | nn.RMSNorm) -> int | None:
    """The dimension of its input that a norm over one dimension normalises; None if its class computes otherwise."""
    if isinstance(module, NarrowLayerNorm):
        return module.channel_dim
    if _computes_as(module, nn.LayerNorm, nn.RMSNorm, NarrowRMSNorm):
        return -1
    if isinstance(module, nn.LayerNorm):  # a class of its own, such as those that move the channels of images
        return next((dim for dim in (1, -1) if _normalises_along(module, dim)), None)
    return None


@torch.no_grad()
def _normalises_along(module: nn.LayerNorm, dim: int) -> bool:
    """Whether a norm is a layer norm along this dimension of images; tried out at the width of its scale."""
    width, dense_shape = len(module.weight), module.normalized_shape
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((2, 3, 4, width), generator=generator).to(module.weight)
    try:
        module.normalized_shape = (width,)
        found = type(module).forward(module, images.movedim(-1, dim))  # without hooks
    except Exception:  # it takes other inputs
        return False
    finally:
        module.normalized_shape = dense_shape
    wanted = F.layer_norm(images, (width,), module.weight, module.bias, module.eps).movedim(-1, dim)
    return isinstance(found, Tensor) and found.shape == wanted.shape and torch.allclose(found, wanted, 1e-3, 1e-4)
