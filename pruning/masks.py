"""Masks: bool tensors, True = kept, held outside the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from pruning.importance.weights import NotFiniteError, all_finite, element_scores
from pruning.units import expand_units, staying_units, units
from spaces.counting import removed_count
from spaces.granularity import Units
from spaces.network import SECOND, Inputs
from spaces.validation import check_sparsity, unknown


def make_mask(
    weight: Tensor,
    sparsity: float | None = None,
    granularity: str = "fine-grained",
    criterion: str = "magnitude-l1",
    scores: Tensor | None = None,
    *,
    count: int | None = None,
    inputs: Inputs = SECOND,
) -> Tensor:
    """Choose the units of one weight that stay.

    Exactly `floor(sparsity * units + 0.5)` units go, but at least one stays; lowest score first, ties by lowest index.
    With a pattern of fixed N, either M - N of every M inputs go or none, whichever is nearer to the sparsity; with
    `*:M`, the same number in every block. `weight` is not changed.

    Args:
        weight: any shape with at least one element; a bias as well.
        sparsity: share of units removed, 0 <= sparsity < 1.
        count: number of units to remove, in place of `sparsity`, 0 <= count < units; for a pattern `*:M`, of every M.
        granularity: the unit; see `pruning.units`.
        criterion: ignored if `scores` are given.
        scores: one score an element, of `weight`'s shape, finite; larger is kept.
        inputs: where patterns find the inputs: in the second dimension, or as `pruning.modules.inputs_of` says of a
            module (for transposed convolutions in the first).

    Returns:
        Bool tensor of `weight`'s shape and device; True = kept.

    Raises:
        ValueError: sparsity outside [0, 1), a count that is not a whole number or leaves no unit, both or neither of
            them, an unknown granularity or criterion, empty weight, NaN or complex weights or scores, scores of another
            shape, a pattern whose M does not divide the inputs.

    >>> make_mask(torch.tensor([3.0, -1.0, 2.0, 0.5]), sparsity=0.25).tolist()
    [True, True, True, False]
    """
    if scores is None:
        scores = element_scores(weight, criterion, granularity=granularity)
    elif not (isinstance(weight, Tensor) and isinstance(scores, Tensor)):
        got = f"{type(weight).__name__} and {type(scores).__name__}"
        raise ValueError(f"weight and scores must be tensors, got {got}: torch.as_tensor makes them")
    elif weight.is_complex() or scores.is_complex():
        raise ValueError(f"weight and scores must be real, got {weight.dtype} and {scores.dtype}: score real numbers")
    elif scores.shape != weight.shape:
        raise ValueError(f"scores must have the weight's shape {tuple(weight.shape)}, got {tuple(scores.shape)}")
    elif not all_finite(scores):
        raise NotFiniteError("scores hold NaN or infinite values: every element needs a finite score")
    elif not all_finite(weight):
        raise NotFiniteError("weight holds NaN or infinite elements: retrain or repair it first")
    removed = _removed(units(weight.shape, granularity, inputs), sparsity, count)
    return expand_units(staying_units(scores, granularity, removed, inputs), weight.shape, granularity, inputs)


def mask_of_finite(scores: Tensor, sparsity: float, granularity: str, inputs: Inputs) -> Tensor:
    """`make_mask` by scores that are known to be finite, which is not checked."""
    removed = _removed(units(scores.shape, granularity, inputs), sparsity, None)
    return expand_units(staying_units(scores, granularity, removed, inputs), scores.shape, granularity, inputs)


def _removed(found: Units, sparsity: float | None, count: int | None) -> int:
    if (sparsity is None) == (count is None):
        raise ValueError(f"give one of sparsity, 0 <= sparsity < 1, and count, got {sparsity!r} and {count!r}")
    if count is None:
        return found.removed(check_sparsity(sparsity))
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count < found.count:
        raise ValueError(f"count must be a whole number of units, 0 to {found.count - 1} here, got {count!r}")
    if found.keep is not None and count not in (0, found.count - found.keep):
        raise ValueError(f"a pattern that keeps {found.keep} removes 0 or {found.count - found.keep}, got {count!r}")
    return count


@torch.no_grad()
def apply_masks_(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the masked parameters of `model` to zero in place; names as in `named_parameters()`.

    Raises:
        ValueError: an unknown name (nearest match named), or a mask of another shape or not of bools.
    """
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        parameter = parameters.get(name)
        if parameter is None:
            raise ValueError(unknown("parameter", name, parameters))
        if mask.shape != parameter.shape or mask.dtype != torch.bool:
            got = f"{str(mask.dtype).removeprefix('torch.')} of shape {tuple(mask.shape)}"
            raise ValueError(f"mask of {name!r} must be bool of shape {tuple(parameter.shape)}, got {got}")
        parameter.masked_fill_(~mask.to(parameter.device), 0)  # a product would leave NaN and -0.0


def achieved_sparsity(mask: Tensor) -> float:
    """Share of False elements, read back from a mask."""
    return 1.0 - float(mask.sum()) / mask.numel()


def global_masks(scores: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]], sparsity: float) -> dict[str, Tensor]:
    """Masks by one threshold over the elements of all layers, as `torch.nn.utils.prune.global_unstructured` has them.

    `floor(sparsity * elements + 0.5)` elements of all layers together go, lowest score first, ties by the first layer
    and the lowest index. At least one stays in each layer: where a layer would be emptied, its highest score stays
    (of equal ones the last) and the next element of another layer goes instead, while there is one.

    Args:
        scores: layer -> one score an element, finite; larger is kept. All on one device.
        sparsity: share of all elements removed, 0 <= sparsity < 1.

    Returns:
        Layer -> bool mask of its scores' shape, True = kept.

    Raises:
        ValueError: sparsity outside [0, 1), no layers or an empty one, NaN or infinite scores.

    >>> scores = {"a": torch.tensor([4.0, 1.0]), "b": torch.tensor([3.0, 2.0])}
    >>> {name: mask.tolist() for name, mask in global_masks(scores, 0.25).items()}
    {'a': [True, False], 'b': [True, True]}
    """
    scores = dict(scores)
    flat = [layer.flatten() for layer in scores.values()]
    if not flat or not all(map(len, flat)):
        raise ValueError("nothing to prune: scores need at least one layer, and each layer one element")
    pooled = torch.cat(flat)
    if not all_finite(pooled):
        raise NotFiniteError("scores hold NaN or infinite values: every element needs a finite score")
    may_go = torch.cat([torch.arange(len(part), device=part.device) != _last_of_highest(part) for part in flat])
    order = torch.argsort(pooled, stable=True)
    kept = torch.ones(len(pooled), dtype=torch.bool, device=pooled.device)
    kept[order[may_go[order]][: removed_count(sparsity, len(pooled))]] = False
    parts = kept.split([len(part) for part in flat])
    return {name: part.view(scores[name].shape) for name, part in zip(scores, parts, strict=True)}


def _last_of_highest(scores: Tensor) -> Tensor:
    return len(scores) - 1 - scores.flip(0).argmax()
