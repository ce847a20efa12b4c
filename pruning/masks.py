"""Masks: bool tensors, True = kept, held outside the model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pruning.criteria import NotFiniteError, element_scores
from pruning.granularity import expand_units, unit_ranks, units
from spaces.policy import check_sparsity


def make_mask(
    weight: Tensor,
    sparsity: float,
    granularity: str = "fine-grained",
    criterion: str = "magnitude-l1",
    scores: Tensor | None = None,
) -> Tensor:
    """Choose the units of one weight that stay.

    Exactly `floor(sparsity * units + 0.5)` units go, but at least one stays; lowest score first, ties by
    lowest index. Of a pattern with a fixed N, M - N of every M inputs go or none, whichever is nearer to the sparsity;
    of `*:M` the same number in every block. `weight` is not changed.

    Args:
        weight: any shape with at least one element.
        sparsity: share of units removed, 0 <= sparsity < 1.
        granularity: the unit; see `pruning.granularity`.
        criterion: ignored when `scores` are given.
        scores: one score an element, of `weight`'s shape, finite; larger is kept.

    Returns:
        Bool tensor of `weight`'s shape and device; True = kept.

    Raises:
        ValueError: sparsity outside [0, 1), unknown words, empty weight, NaN weights or scores,
            scores of another shape, a pattern whose M does not divide the inputs.

    >>> make_mask(torch.tensor([3.0, -1.0, 2.0, 0.5]), sparsity=0.25).tolist()
    [True, True, True, False]
    """
    if scores is None:
        scores = element_scores(weight, criterion)
    elif scores.shape != weight.shape:
        raise ValueError(f"scores must have the weight's shape {tuple(weight.shape)}, got {tuple(scores.shape)}")
    elif not torch.isfinite(scores).all():
        raise NotFiniteError("scores hold NaN or infinite values: every element needs a finite score")
    removed = units(weight.shape, granularity).removed(check_sparsity(sparsity))
    return expand_units(unit_ranks(scores, granularity) >= removed, weight.shape, granularity)


@torch.no_grad()
def apply_masks_(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the masked parameters of `model` to zero in place; names as in `named_parameters()`."""
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        parameter = parameters[name]
        parameter.masked_fill_(~mask.to(parameter.device), 0)  # a product would leave NaN and -0.0


def achieved_sparsity(mask: Tensor) -> float:
    """Share of False elements, read back from a mask."""
    return 1.0 - float(mask.sum()) / mask.numel()
