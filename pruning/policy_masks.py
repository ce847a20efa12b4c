"""The masks of a policy on a model's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pruning.calibration import Calibration
from pruning.channel_selection import plan_by_scores
from pruning.channels.graph import ChannelGraph, check_fits
from pruning.channels.plan import RemovalPlan
from pruning.channels.removal import removal_masks
from pruning.channels.structure import Structure
from pruning.importance.scores import ImportanceScores
from pruning.importance.weights import are_finite
from pruning.masks import make_mask, mask_of_finite
from pruning.modules import inputs_of_weights, output_dim, prunable_weights
from spaces.criteria import criterion_word
from spaces.granularity import obstacle_to, pattern_of, units_of
from spaces.network import SECOND, Inputs
from spaces.policy import PruningPolicy
from spaces.validation import unknown


def policy_masks(
    model: nn.Module,
    policy: PruningPolicy,
    progress: float = 1.0,
    graph: ChannelGraph | None = None,
    calibration: Calibration | None = None,
) -> tuple[dict[str, Tensor], RemovalPlan | None]:
    """Everything the policy sets to zero once `progress` of its shares is due.

    Args:
        progress: share of each final sparsity, in [0, 1].
        calibration: what data-driven criteria look at.

    Returns:
        Bool masks of dense shape by parameter name, True = kept, and the plan of the removals (None
        without a graph). A removal's mask covers weight, bias and norm of the channels; the masks of
        what stays are chosen among what stays in the end, so that the units they are cut into do not move on the way.
    """
    require_layers(policy, model)
    if graph is not None:
        check_fits(model, graph.network)
    return masks_by_scores(ImportanceScores(model, policy.criterion, graph, calibration), graph, policy, progress)


def require_layers(policy: PruningPolicy, model: nn.Module) -> None:
    """Raise `ValueError`, with the nearest match, if the policy names a weight the model cannot be pruned in."""
    weights = prunable_weights(model)
    for name in (*policy.sparsity, *policy.removal, *(policy.bits if isinstance(policy.bits, Mapping) else ())):
        if name not in weights:
            raise ValueError(unknown("layer", name, weights))


def masks_by_scores(
    scores: ImportanceScores, graph: ChannelGraph | None, policy: PruningPolicy, progress: float = 1.0
) -> tuple[dict[str, Tensor], RemovalPlan | None]:
    """`policy_masks` for checked layers, from scores that may be of use for more than this.

    Args:
        graph: what the policy's criterion can score of the model's channel groups, see `defined_groups` and
            `ImportanceScores.restricted_graph`.
    """
    model, weights = scores.model, prunable_weights(scores.model)
    removals = {name: share * progress for name, share in policy.channel_requests().items()}
    if graph is None:
        unpruned = scores.unseen()
        removals = {name: share for name, share in removals.items() if name not in unpruned}
        plan, masks = None, _channel_masks(model, removals, scores)
        left = chosen_from = _own_channels(model, masks)
        if progress < 1 and removals and policy.mask_requests():
            chosen_from = _own_channels(model, _channel_masks(model, policy.channel_requests(), scores))
    else:
        unpruned = {layer.name: layer.whole for layer in graph.network.prunable if layer.whole}
        plan = plan_by_scores(removals, graph, scores)
        masks, left = removal_masks(plan), plan.structure
        chosen_from = left
        if progress < 1 and removals and policy.mask_requests():
            chosen_from = plan_by_scores(policy.channel_requests(), graph, scores).structure
    requests, inputs = policy.mask_requests(), inputs_of_weights(model)
    asked: dict[str, _Asked] = {}
    for name in weights:
        if name not in requests or name in unpruned:
            continue
        shape, word = weights[name].shape, policy.granularity_of(name)
        stays, chosen = staying(shape, left, name), staying(shape, chosen_from, name)
        inside = weights[name][chosen]
        share, due = share_due(requests[name], word, inside.shape, progress, inputs[name])
        if share:
            asked[name] = _Asked(inside, scores.elements(name, word)[chosen], share, due, stays, chosen)
    on_device = any(weight.device.type != "cpu" for weight in weights.values())
    looked = on_device and are_finite(one.scores for one in asked.values())  # at all in one wait
    for name, one in asked.items():
        mask = torch.zeros(weights[name].shape, dtype=torch.bool, device=weights[name].device)
        mask[one.stays] = True
        mask[one.chosen] = (
            mask_of_finite(one.scores, one.share, one.granularity, inputs[name])
            if looked
            else make_mask(one.weight, one.share, one.granularity, scores=one.scores, inputs=inputs[name])
        )
        masks[name] = mask
    tensors = dict(model.named_parameters())
    return {name: mask.to(tensors[name].device) for name, mask in masks.items()}, plan


@dataclass(frozen=True, eq=False)
class _Asked:
    """What is asked of one weight: a share of the units of what is chosen from, by their scores."""

    weight: Tensor
    scores: Tensor
    share: float
    granularity: str
    stays: tuple[Any, ...]
    chosen: tuple[Any, ...]


def share_due(
    share: float, granularity: str, shape: Sequence[int], progress: float, inputs: Inputs = SECOND
) -> tuple[float, str]:
    """What a layer's mask asks for once `progress` of its share is due, and in which granularity.

    On its way to `N:M` with a fixed N every block of M loses one more place at a time. Nothing is asked of a weight
    that its granularity leaves unpruned.
    """
    if obstacle_to(granularity, shape, inputs):
        return 0.0, granularity
    pattern, units = pattern_of(granularity), units_of(granularity, shape, inputs)
    if progress == 1 or not pattern or pattern.keep is None:
        return share * progress, granularity
    return units.removed(share) / units.count * progress, f"*:{pattern.of}"


def _channel_masks(model: nn.Module, removals: Mapping[str, float], scores: ImportanceScores) -> dict[str, Tensor]:
    return {name: _channel_mask(model, name, share, scores) for name, share in removals.items()}


def _own_channels(model: nn.Module, masks: Mapping[str, Tensor]) -> Structure:
    """The output channels that stay where masks zero entire channels, for each layer by itself."""
    dims = {name: output_dim(model.get_submodule(name.rpartition(".")[0])) for name in masks}
    return Structure(
        {
            name: {dims[name]: tuple(mask.movedim(dims[name], 0).flatten(1).any(dim=1).nonzero().flatten().tolist())}
            for name, mask in masks.items()
        }
    )


def _channel_mask(model: nn.Module, name: str, share: float, scores: ImportanceScores) -> Tensor:
    """Mask of one layer's output channels, alone of their group."""
    weight, dim = model.get_parameter(name), output_dim(model.get_submodule(name.rpartition(".")[0]))
    by_data = criterion_word(scores.criterion).needs_data
    elements = scores.elements(name, "channel").movedim(dim, 0) if by_data else None
    return make_mask(weight.movedim(dim, 0), share, "channel", scores.criterion, elements).movedim(0, dim)


def masks_inside(masks: Mapping[str, Tensor], policy: PruningPolicy, plan: RemovalPlan) -> dict[str, Tensor]:
    """The masks of what stays once the plan's channels are gone."""
    names = masks.keys() & policy.mask_requests().keys()
    return {name: masks[name][staying(masks[name].shape, plan.structure, name)] for name in names}


def staying(shape: torch.Size, structure: Structure, name: str) -> tuple[Any, ...]:
    """Index of the elements no removal takes: an open mesh, one axis a dimension."""
    kept = structure.kept.get(name)
    if not kept:
        return (...,)
    axes = [torch.as_tensor(kept.get(dim, range(length))) for dim, length in enumerate(shape)]
    return tuple(axis.view([-1 if d == dim else 1 for d in range(len(shape))]) for dim, axis in enumerate(axes))
