"""What one layer loses by each granularity at the same sparsity, before any training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn

from pruning.calibration import Calibration
from pruning.importance.activations import observe_inputs
from pruning.importance.scores import ImportanceScores
from pruning.mask_cache import MaskCache
from pruning.masks import achieved_sparsity
from pruning.modules import prunable_weights
from spaces.granularity import unpruned_reason
from spaces.network import Layer, Network
from spaces.policy import PruningPolicy
from spaces.validation import check_sparsity

FINE_TO_COARSE = ("fine-grained", "*:8", "*:4", "2:4", "1:4", "vector", "kernel", "channel")
"""Granularities from the freest choice of weights to the least free one."""
EQUAL = 0.05
"""Difference between a sparsity asked for and the one achieved up to which layers are compared: few units round far,
and a pattern with a fixed N has one sparsity only."""


@dataclass(frozen=True)
class LayerShare:
    """One layer pruned alone in one granularity, nothing trained.

    Attributes:
        sparsity: share of its units asked for.
        achieved: share of its weights that went.
        kept_importance: sum of the kept weights' magnitudes over that of all, in [0, 1].
        output_error: ||y - y'|| / ||y|| of the layer's outputs over all calibration examples, from the inputs it has
            in the dense model; None where the forward pass calls no module of the layer, or y is 0 throughout.
    """

    layer: str
    granularity: str
    sparsity: float
    achieved: float
    kept_importance: float
    output_error: float | None

    @property
    def as_asked(self) -> bool:
        """Whether the achieved sparsity is within `EQUAL`, 0.05, of the one asked for."""
        return abs(self.achieved - self.sparsity) <= EQUAL


@dataclass(frozen=True)
class MeanShare:
    """Plain means over the layers that every granularity compared brings to about this sparsity.

    Attributes:
        layers: the same for all granularities of one sparsity.
        output_error: None where a layer has none.
    """

    granularity: str
    sparsity: float
    layers: tuple[str, ...]
    kept_importance: float
    output_error: float | None


def kept_importance(weight: Tensor, mask: Tensor) -> float:
    """Sum of the kept magnitudes over that of all, in [0, 1]; 1.0 of a weight that is zero throughout.

    >>> kept_importance(torch.tensor([3.0, -1.0]), torch.tensor([True, False]))
    0.75
    """
    magnitudes = weight.detach().double().abs()
    total = float(magnitudes.sum())
    return float(magnitudes[mask].sum()) / total if total else 1.0


def layer_shares(
    importance: ImportanceScores,
    granularities: Sequence[str] = FINE_TO_COARSE,
    sparsities: Sequence[float] = (0.5, 0.75),
) -> tuple[LayerShare, ...]:
    """Every layer by itself in every granularity it can be pruned in, at every sparsity.

    With granularity `channel` the units are those of the layer's channel group, scored as the group; of them only
    the layer's own weight and bias are masked.

    Args:
        importance: what the masks go by, of the trained model, which stays as it is; with its channel groups, and the
            calibration data the errors are found on.
        sparsities: each in (0, 1).

    Returns:
        By granularity, then layer, then sparsity, in the orders given.

    Raises:
        ValueError: a sparsity outside [0, 1), or a criterion not defined for a granularity.
    """
    model, graph, calibration = importance.model, importance.restricted_graph, importance.calibration
    for sparsity in sparsities:
        check_sparsity(sparsity)
    rows = []
    for granularity in granularities:  # one at a time: the orders of a large network's units take memory
        layers = [layer for layer in graph.network.prunable if unpruned_reason(layer, granularity) is None]
        rankings = MaskCache(model, graph, calibration, importance)
        masks = {
            layer.name: [
                own_masks(rankings, graph.network, layer, granularity, s, importance.criterion) for s in sparsities
            ]
            for layer in layers
        }
        errors = output_errors(model, masks, calibration)
        weights = prunable_weights(model)
        for name, candidates in masks.items():
            for sparsity, mask, error in zip(sparsities, candidates, errors[name], strict=True):
                kept = kept_importance(weights[name], mask[name])
                rows.append(LayerShare(name, granularity, sparsity, achieved_sparsity(mask[name]), kept, error))
    return tuple(rows)


def own_masks(
    rankings: MaskCache, network: Network, layer: Layer, granularity: str, sparsity: float, criterion: str
) -> dict[str, Tensor]:
    """Masks of a layer's weight and, where channels go, of its bias: parameter name -> bool mask, True = kept."""
    group: tuple[str, ...] = (layer.name,)
    if granularity == "channel" and layer.channel_group is not None:
        group = network.groups[layer.channel_group].layers
    policy = PruningPolicy(dict.fromkeys(group, sparsity), granularity, criterion=criterion)
    bias = f"{layer.name.removesuffix('weight')}bias"
    found = {name: mask for name, mask in rankings.masks(policy).items() if name in (layer.name, bias)}
    return {layer.name: torch.ones(layer.shape, dtype=torch.bool), **found}


def output_errors(
    model: nn.Module, masks: Mapping[str, Sequence[Mapping[str, Tensor]]], calibration: Calibration
) -> dict[str, list[float | None]]:
    """Relative L2 error of each layer's output under each of its masks, all else dense.

    Args:
        masks: layer -> candidates, each parameter name -> bool mask of the layer's own weight and bias.

    Returns:
        Layer -> ||y - y'|| / ||y|| of each candidate, over all calls on all calibration examples; None where that is
        not defined.
    """
    squares = {name: torch.zeros(1 + len(candidates), dtype=torch.float64) for name, candidates in masks.items()}

    def see(name: str, module: nn.Module, inputs: Tensor) -> None:
        dense = module.forward(inputs)  # not the call, which would see itself
        squares[name][0] += _square(dense)
        for number, candidate in enumerate(masks[name], start=1):
            with _masked(module, candidate):
                squares[name][number] += _square(module.forward(inputs) - dense)

    observe_inputs(model, masks, calibration, see)
    return {name: [_relative(float(error), float(found[0])) for error in found[1:]] for name, found in squares.items()}


@contextmanager
def _masked(module: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[None]:
    parameters = {getattr(module, name.rpartition(".")[2]): mask for name, mask in masks.items()}
    before = {parameter: parameter.data for parameter in parameters}
    try:
        for parameter, mask in parameters.items():
            parameter.data = parameter.data.masked_fill(~mask.to(parameter.device), 0)
        yield
    finally:
        for parameter, values in before.items():
            parameter.data = values


def _square(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2


def _relative(error: float, of: float) -> float | None:
    found = math.sqrt(error / of) if of > 0 else math.nan
    return found if math.isfinite(found) else None


def mean_shares(rows: Iterable[LayerShare]) -> tuple[MeanShare, ...]:
    """Means by sparsity and granularity over the same layers, so that nothing but the granularity differs.

    Rows count that are `as_asked`. A granularity that has none at a sparsity (`2:4` at 0.75) is left out there, and
    so is a sparsity at which the others have no layer in common.
    """
    near = [row for row in rows if row.as_asked]
    means = []
    for sparsity in dict.fromkeys(row.sparsity for row in near):
        found: dict[str, dict[str, LayerShare]] = {}
        for row in near:
            if row.sparsity == sparsity:
                found.setdefault(row.granularity, {})[row.layer] = row
        common = [name for name in next(iter(found.values())) if all(name in layers for layers in found.values())]
        for granularity, layers in found.items() if common else ():
            chosen = [layers[name] for name in common]
            errors = [row.output_error for row in chosen if row.output_error is not None]
            error = None if len(errors) < len(chosen) else fmean(errors)
            kept = fmean(row.kept_importance for row in chosen)
            means.append(MeanShare(granularity, sparsity, tuple(common), kept, error))
    return tuple(means)
