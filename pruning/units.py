"""The unit removed: in which order the units of a weight go, and how decisions on units become a mask.

Runs are scored by the sum over their elements and ranked in the whole weight. Patterns `N:M` rank the elements of each
block of M inputs at one output and kernel position among themselves, so that every block keeps equally many. Where a
weight's inputs lie, which is of account to patterns only, is said by `inputs`: of transposed convolutions in the first
dimension.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from spaces.granularity import Units, pattern_of, units_of
from spaces.network import SECOND, Inputs


def units(shape: torch.Size | tuple[int, ...], granularity: str, inputs: Inputs = SECOND) -> Units:
    """Units of a weight of this shape; a number has one.

    Raises:
        ValueError: an unknown granularity, an empty weight, or a pattern whose M does not divide the inputs.
    """
    return _units(granularity, tuple(shape) or (1,), inputs)


_units = lru_cache(maxsize=1024)(units_of)
"""A mask asks three times for the units of one shape."""


def unit_scores(scores: Tensor, granularity: str, inputs: Inputs = SECOND) -> Tensor:
    """Sum element scores by unit: (units,), or of a pattern the element scores by block: (blocks, M)."""
    if pattern := pattern_of(granularity):
        units(scores.shape, granularity, inputs)
        return scores.movedim(inputs.dim, -1).reshape(-1, pattern.of)
    found = units(scores.shape, granularity)
    return scores.flatten() if found.elements == 1 else scores.reshape(found.count, -1).sum(dim=1)


def unit_ranks(scores: Tensor, granularity: str, inputs: Inputs = SECOND) -> Tensor:
    """The place of each unit in the order they go, lowest score first, ties by lowest index; as `unit_scores`."""
    by_unit = unit_scores(scores, granularity, inputs)
    order = torch.argsort(by_unit, dim=-1, stable=True)
    places = torch.arange(order.shape[-1], dtype=torch.int32, device=order.device).expand(order.shape)
    return torch.empty_like(order, dtype=torch.int32).scatter_(-1, order, places)


def staying_units(scores: Tensor, granularity: str, removed: int, inputs: Inputs = SECOND) -> Tensor:
    """`unit_ranks(scores, granularity) >= removed`, for scores without NaN: bool, True = kept; as `unit_scores`.

    Of runs one threshold and its ties are enough, found in linear time where ranks need a sort.
    """
    by_unit = unit_scores(scores, granularity, inputs)
    if removed == 0:
        return torch.ones_like(by_unit, dtype=torch.bool)
    if by_unit.dim() > 1 or by_unit.device.type != "cpu":  # no wait for another device
        return unit_ranks(scores, granularity, inputs) >= removed
    by_unit = by_unit.float() if by_unit.dtype == torch.bfloat16 else by_unit  # which NumPy has not
    values = by_unit.detach().cpu().numpy()
    threshold = np.partition(values, removed - 1)[removed - 1]
    if not math.isfinite(threshold):  # sums that overflowed: NaN equals nothing
        return unit_ranks(scores, granularity, inputs) >= removed
    kept = values >= threshold
    tied_and_gone = removed - (len(kept) - np.count_nonzero(kept))
    kept[np.flatnonzero(values == threshold)[:tied_and_gone]] = False
    return torch.from_numpy(kept).to(by_unit.device)


def expand_units(kept: Tensor, shape: torch.Size, granularity: str, inputs: Inputs = SECOND) -> Tensor:
    """Turn a bool tensor of `unit_scores`' shape into an element mask of `shape`; True = kept."""
    if pattern_of(granularity):
        moved = (*shape[: inputs.dim], *shape[inputs.dim + 1 :], shape[inputs.dim])
        return kept.reshape(moved).movedim(-1, inputs.dim)
    found = units(shape, granularity)
    return kept.reshape(found.count, 1).expand(found.count, found.elements).reshape(shape)
