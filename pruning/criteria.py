"""Which weights matter: one score an element, larger is kept."""

from __future__ import annotations

import torch
from torch import Tensor

from spaces.errors import unknown
from spaces.policy import CRITERIA


class NotFiniteError(ValueError):
    """Weights or scores hold NaN or infinite values, so nothing can be ranked."""


def element_scores(weight: Tensor, criterion: str, generator: torch.Generator | None = None) -> Tensor:
    """Score every element of `weight`; a unit's score is the sum over its elements.

    Args:
        weight: any shape, at least one element.
        criterion: `magnitude-l1` gives |w|, `magnitude-l2` gives w^2 (the squared L2 norm when summed),
            `random` gives uniform numbers from `generator` (default: a generator seeded with 0).

    Returns:
        A detached tensor of `weight`'s shape, float32 or wider, all values >= 0.

    Raises:
        ValueError: unknown criterion; empty weight; NaN or infinite weights (`NotFiniteError`).

    >>> element_scores(torch.tensor([1.0, -2.0]), "magnitude-l2").tolist()
    [1.0, 4.0]
    """
    if criterion not in CRITERIA:
        raise ValueError(unknown("criterion", criterion, CRITERIA))
    if weight.numel() == 0:
        raise ValueError("weight is empty: nothing to score")
    values = weight.detach()
    if values.dtype not in (torch.float32, torch.float64):
        values = values.float()
    if not torch.isfinite(values).all():
        bad = int((~torch.isfinite(values)).sum())
        raise NotFiniteError(
            f"weight has {bad} NaN or infinite elements of {values.numel()}: retrain or repair it first"
        )
    if criterion == "magnitude-l1":
        return values.abs()
    if criterion == "magnitude-l2":
        return values.square()
    generator = generator or torch.Generator().manual_seed(0)
    return torch.rand(values.shape, generator=generator, dtype=values.dtype).to(values.device)
