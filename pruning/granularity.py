"""The unit removed: how element scores become unit scores, and unit decisions become a mask.

A granularity is a view of the weight as (units, elements of a unit); everything else follows from it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spaces.errors import unknown

_UNIT_VIEWS: dict[str, Callable[[torch.Size], tuple[int, int]]] = {
    "fine-grained": lambda shape: (shape.numel(), 1),
    "channel": lambda shape: (shape[0], shape.numel() // shape[0]),
}


def unit_count(shape: torch.Size | tuple[int, ...], granularity: str) -> int:
    """Number of units of a weight of this shape."""
    return _view(torch.Size(shape), granularity)[0]


def unit_scores(scores: Tensor, granularity: str) -> Tensor:
    """Sum element scores by unit: shape (units,)."""
    return scores.reshape(_view(scores.shape, granularity)).sum(dim=1)


def expand_units(kept: Tensor, shape: torch.Size, granularity: str) -> Tensor:
    """Turn a bool tensor (units,) into an element mask of `shape`; True = kept."""
    units, elements = _view(shape, granularity)
    return kept.reshape(units, 1).expand(units, elements).reshape(shape)


def _view(shape: torch.Size, granularity: str) -> tuple[int, int]:
    if granularity not in _UNIT_VIEWS:
        raise ValueError(unknown("granularity", granularity, _UNIT_VIEWS))
    if shape.numel() == 0:
        raise ValueError(f"weight of shape {tuple(shape)} is empty: nothing to prune")
    return _UNIT_VIEWS[granularity](shape if len(shape) else torch.Size([1]))
