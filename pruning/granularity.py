"""The unit removed: in which order the units of a weight go, and how decisions on units become a mask.

Runs are scored by the sum over their elements and ranked in the whole weight. Patterns `N:M` rank the elements of each
block of M inputs at one output and kernel position among themselves, so that every block keeps equally many. Where a
weight's inputs lie, which is of account to patterns only, is said by `inputs`: of transposed convolutions in the first
dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spaces.layers import SECOND, Inputs
from spaces.units import Units, pattern_of, units_of


def unit_count(shape: torch.Size | tuple[int, ...], granularity: str, inputs: Inputs = SECOND) -> int:
    """Number of units of a weight of this shape."""
    return units(shape, granularity, inputs).count


def units(shape: torch.Size | tuple[int, ...], granularity: str, inputs: Inputs = SECOND) -> Units:
    """Units of a weight of this shape; a number has one.

    Raises:
        ValueError: an unknown granularity, an empty weight, or a pattern whose M does not divide the inputs.
    """
    return units_of(granularity, tuple(shape) or (1,), inputs)


def unit_scores(scores: Tensor, granularity: str, inputs: Inputs = SECOND) -> Tensor:
    """Sum element scores by unit: (units,), or of a pattern the element scores by block: (blocks, M)."""
    if pattern := pattern_of(granularity):
        units(scores.shape, granularity, inputs)
        return scores.movedim(inputs.dim, -1).reshape(-1, pattern.of)
    return scores.reshape(units(scores.shape, granularity).count, -1).sum(dim=1)


def unit_ranks(scores: Tensor, granularity: str, inputs: Inputs = SECOND) -> Tensor:
    """The place of each unit in the order they go, lowest score first, ties by lowest index; as `unit_scores`."""
    by_unit = unit_scores(scores, granularity, inputs)
    order = torch.argsort(by_unit, dim=-1, stable=True)
    places = torch.arange(order.shape[-1], dtype=torch.int32, device=order.device).expand(order.shape)
    return torch.empty_like(order, dtype=torch.int32).scatter_(-1, order, places)


def expand_units(kept: Tensor, shape: torch.Size, granularity: str, inputs: Inputs = SECOND) -> Tensor:
    """Turn a bool tensor of `unit_scores`' shape into an element mask of `shape`; True = kept."""
    if pattern_of(granularity):
        moved = (*shape[: inputs.dim], *shape[inputs.dim + 1 :], shape[inputs.dim])
        return kept.reshape(moved).movedim(-1, inputs.dim)
    found = units(shape, granularity)
    return kept.reshape(found.count, 1).expand(found.count, found.elements).reshape(shape)
