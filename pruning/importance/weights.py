"""Which weights matter: formulas that need nothing but the weights, and the criteria of the user's own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from pruning.devices import back, read_at_once, wide
from pruning.importance.own_criteria import own_function
from pruning.units import expand_units, unit_scores
from spaces.criteria import SPELLINGS, criterion_word

SUMS_OF_ELEMENTS = ("magnitude-l1", "magnitude-l2", "random")
"""Criteria whose units score the sum of what `element_scores` gives their elements, whatever the unit."""
FROM_WEIGHTS = (*SUMS_OF_ELEMENTS, "lamp", "fpgm")
"""Built-in criteria that need no model."""


class NotFiniteError(ValueError):
    """Weights or scores hold NaN or infinite values, so nothing can be ranked."""


def element_scores(
    weight: Tensor,
    criterion: str,
    generator: torch.Generator | None = None,
    granularity: str = "fine-grained",
) -> Tensor:
    """Score every element of `weight`; a unit's score is the sum over its elements.

    Unless the criterion is one of `SUMS_OF_ELEMENTS`, only sums over units of this granularity mean something. A unit
    of a channel group, which may have several channels of a layer, scores the sum of theirs.

    Args:
        weight: any shape, at least one element.
        criterion: `magnitude-l1` gives |w|, `magnitude-l2` gives w^2 (the squared L2 norm when summed),
            `random` gives uniform numbers from `generator` (default: a generator seeded with 0); `lamp` and
            `fpgm` give each element its part of the unit's score; or one of the user's own that needs no data.
        granularity: the unit that is scored, of account for `lamp` and `fpgm` only.

    Returns:
        A detached tensor of `weight`'s shape, float32 or wider, all values >= 0.

    Raises:
        ValueError: unknown criterion, or one that needs more than a weight; `fpgm` of other units than
            channels; empty weight; NaN or infinite weights (`NotFiniteError`).

    >>> element_scores(torch.tensor([1.0, -2.0]), "magnitude-l2").tolist()
    [1.0, 4.0]
    """
    criterion = SPELLINGS.get(criterion, criterion)
    word, own = criterion_word(criterion), own_function(criterion)
    if word.needs_data or (own is None and criterion not in FROM_WEIGHTS):
        needed = "calibration data" if word.needs_data else "an example_input"
        raise ValueError(
            f"criterion {criterion!r} needs more than a weight: prune a model with {needed}, or give scores"
        )
    return scores_of_finite(_checked_weight(weight), criterion, generator, granularity)


def scores_of_finite(
    values: Tensor, criterion: str, generator: torch.Generator | None = None, granularity: str = "fine-grained"
) -> Tensor:
    """`element_scores` of a detached weight in 32 bits or more that is known to be finite, which is not checked."""
    own = own_function(criterion)
    if criterion == "magnitude-l1":
        return values.abs()
    if criterion == "magnitude-l2":
        return values.square()
    if criterion == "random":
        generator = generator or torch.Generator().manual_seed(0)
        return torch.rand(values.shape, generator=generator, dtype=values.dtype).to(values.device)
    if own is not None:
        return zeros_first(checked_scores(own(values.clone()), criterion, values.shape), values)
    if criterion == "lamp":
        units = lamp_scores(unit_sums(values.square(), granularity))
    elif criterion == "fpgm":
        if granularity != "channel":
            raise ValueError(f"criterion 'fpgm' is defined for granularity channel only, got {granularity!r}")
        units = fpgm_scores(values)
    else:
        raise NotImplementedError(f"criterion {criterion!r} is named in FROM_WEIGHTS and has no formula: add it here")
    return spread(units, values, granularity)


def lamp_scores(squares: Tensor) -> Tensor:
    """LAMP (arXiv 2010.07611): a unit's w^2 over the sum of all w^2 that are not smaller; at most 1.

    Args:
        squares: squared norms of a layer's units (n,). Of equal ones the lower index counts as smaller.

    Returns:
        (n,) in float64, in the order of `squares`; the largest scores 1 unless all are 0.

    >>> lamp_scores(torch.tensor([3.0, 1.0, 4.0])).tolist()
    [0.42857142857142855, 0.125, 1.0]
    """
    ordered, order = torch.sort(wide(squares), stable=True)
    not_smaller = ordered.flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(ordered)
    scores[order] = torch.where(not_smaller > 0, ordered / not_smaller, 0.0)
    return back(scores, squares)


def fpgm_scores(weight: Tensor) -> Tensor:
    """Sum of each filter's L2 distances to all filters (n, ...) of the layer, (n,) in float64 (arXiv 1811.00250).

    The filter nearest to the others can be replaced by them and goes first. Filters are taken as they are: moved by
    the same amount, all of them score the same.
    """
    filters = wide(weight).flatten(1)
    filters = filters - filters.mean(0)  # distances stay; squares of long common parts would cancel badly
    distances = torch.cdist(filters, filters)
    return back(distances.fill_diagonal_(0.0).sum(1), weight)


def unit_sums(elements: Tensor, granularity: str) -> Tensor:
    """Sums of what is chosen as one (n,); an N:M pattern chooses single elements."""
    return elements.flatten() if ":" in granularity else unit_scores(elements, granularity)


def spread(units: Tensor, weight: Tensor, granularity: str) -> Tensor:
    """Scores of the weight's units (n,) as scores of elements, equal parts that sum to them; units of zeros first."""
    units = zeros_first(units, unit_sums(weight.abs(), granularity))
    if len(units) == weight.numel():
        return units.reshape(weight.shape)
    elements = unit_sums(torch.ones_like(weight, dtype=units.dtype), granularity)
    return expand_units(units / elements, weight.shape, granularity)


def zeros_first(scores: Tensor, weight: Tensor) -> Tensor:
    """Scores under which every unit of zeros goes before all others: what is masked stays masked along a ramp.

    Zeros score 0, everything else at least the smallest normal number.
    """
    return torch.where(weight == 0, 0.0, scores.clamp_min(torch.finfo(scores.dtype).tiny))


def checked_scores(scores: object, criterion: str, shape: torch.Size) -> Tensor:
    """Scores from a user's function or from data, detached.

    Raises:
        ValueError: no tensor of this shape, or a negative score.
        NotFiniteError: NaN or infinite scores.
    """
    if not isinstance(scores, Tensor) or scores.shape != shape:
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"criterion {criterion!r} must give scores of the weight's shape {tuple(shape)}, got {got}")
    scores = scores.detach()
    scores = scores if scores.dtype in (torch.float32, torch.float64) else scores.float()
    if not all_finite(scores):
        raise NotFiniteError(f"criterion {criterion!r} gave NaN or infinite scores: every element needs a finite one")
    if (scores < 0).any():
        raise ValueError(f"criterion {criterion!r} gave the score {float(scores.min()):g}: scores must be >= 0")
    return scores


def all_finite(values: Tensor) -> bool:
    """Whether no element is NaN or infinite; a finite sum, much the cheaper to look at, is enough to know."""
    return math.isfinite(values.sum().item()) or bool(torch.isfinite(values).all())


def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether `all_finite` holds for all of them, in one wait for their device where it does."""
    found = list(tensors)
    sums = read_at_once(tensor.detach().sum().float() for tensor in found)
    return all(map(math.isfinite, sums)) or all(map(all_finite, found))


def require_finite(weights: Mapping[str, Tensor]) -> None:
    """Raise `NotFiniteError`, naming the layer, if a weight holds NaN or infinite elements."""
    for name, weight in weights.items():
        if not all_finite(weight):
            bad = int((~torch.isfinite(weight)).sum())
            raise NotFiniteError(
                f"{name}: weight has {bad} NaN or infinite elements of {weight.numel()}: retrain or repair it first"
            )


def in_32_bits(weight: Tensor) -> Tensor:
    """The detached values in at least 32 bit."""
    values = weight.detach()
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def _checked_weight(weight: Tensor) -> Tensor:
    """The detached values in at least 32 bit; raises `ValueError` as `element_scores` does."""
    if not isinstance(weight, Tensor):
        raise ValueError(f"weight must be a tensor, got {type(weight).__name__}: torch.as_tensor makes one")
    if weight.is_complex():
        raise ValueError(f"weight must be real, got {weight.dtype}: prune its real and imaginary parts as two weights")
    if weight.numel() == 0:
        raise ValueError("weight is empty: nothing to score")
    values = in_32_bits(weight)
    if not all_finite(values):
        bad = int((~torch.isfinite(values)).sum())
        raise NotFiniteError(
            f"weight has {bad} NaN or infinite elements of {values.numel()}: retrain or repair it first"
        )
    return values
