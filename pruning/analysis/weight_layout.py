"""Weights as flat pictures: rows of outputs, columns of inputs, kernels as small rectangles in between."""

from __future__ import annotations

from math import prod

from torch import Tensor

CELLS = 96
"""Rows and columns at most of a picture in which single weights can still be told apart."""


def laid_out(weight: Tensor, output_dim: int = 0) -> Tensor:
    """A weight, or its mask, as a matrix of (Cout x Kh) rows and (Cin x Kw) columns.

    Element (o, i, y, x) of a convolution lies in row o * Kh + y and column i * Kw + x. Of a linear layer it is the
    weight itself; of a 1-d convolution a kernel is one row, of a 3-d one its depth and height run along the rows.

    Args:
        weight: (outputs, inputs, *kernel), or (inputs, outputs, *kernel) with `output_dim` 1.

    >>> import torch
    >>> laid_out(torch.arange(8).reshape(2, 2, 1, 2)).tolist()
    [[0, 1, 2, 3], [4, 5, 6, 7]]
    """
    outputs, inputs, *kernel = weight.movedim(output_dim, 0).shape
    along = kernel[-1] if kernel else 1
    by_axis = weight.movedim(output_dim, 0).reshape(outputs, inputs, -1, along)
    return by_axis.transpose(1, 2).reshape(-1, inputs * along)


def corner(weight: Tensor, output_dim: int = 0, cells: int = CELLS) -> Tensor:
    """The first outputs and inputs of a weight: as many whole kernels as `laid_out` has room for, at least one."""
    kernel = weight.shape[2:]
    room = {output_dim: cells // prod(kernel[:-1]), 1 - output_dim: cells // prod(kernel[-1:])}
    return weight[tuple(slice(max(room[dim], 1)) for dim in (0, 1))]
