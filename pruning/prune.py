"""Carry out a policy on a model: at once, or step by step along its schedule."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruning.channels import ChannelGraph, RemovalPlan, plan_removal, removal_masks, shrink, trace_channels
from pruning.codec import prunable_weights
from pruning.criteria import element_scores
from pruning.masks import apply_masks_, make_mask
from pruning.schedule import progress_at, ramp_end
from pruning.structure import Structure
from spaces.errors import unknown
from spaces.policy import PruningPolicy
from spaces.units import obstacle_to, pattern_of, units_of

MASK_UPDATES = 20
"""Mask updates along a ramp: each sorts every weight, so they are spread over the steps."""


def prune(
    model: nn.Module, policy: PruningPolicy, example_input: Tensor | None = None, graph: ChannelGraph | None = None
) -> nn.Module:
    """A new model with the policy's zeros, and with its removals if the channel groups are known.

    The schedule plays no part: this is the state at its end, without training.

    Args:
        model: stays as it is.
        example_input: a batch the model accepts. Without it (and without `graph`) channels asked to go
            are set to zero in their own weight, and no shape changes.
        graph: the model's traced channel groups, to save tracing again.

    Raises:
        ValueError: the policy names a weight that is not prunable (nearest match named), NaN weights,
            or a removal that cannot equal its mask.
    """
    if example_input is not None and graph is None:
        graph = trace_channels(model, example_input)
    masks, plan = policy_masks(model, policy, graph=graph)
    pruned = copy.deepcopy(model)
    apply_masks_(pruned, masks)
    return shrink(pruned, plan) if plan is not None and plan.structure.kept else pruned


def policy_masks(
    model: nn.Module, policy: PruningPolicy, progress: float = 1.0, graph: ChannelGraph | None = None
) -> tuple[dict[str, Tensor], RemovalPlan | None]:
    """Everything the policy sets to zero once `progress` of its shares is due.

    Args:
        progress: share of each final sparsity, in [0, 1].

    Returns:
        Bool masks of dense shape by parameter name, True = kept, and the plan of the removals (None
        without a graph). A removal's mask covers weight, bias and norm of the channels; the masks of
        what stays are chosen among what stays.
    """
    weights = prunable_weights(model)
    for name in (*policy.sparsity, *policy.removal):
        if name not in weights:
            raise ValueError(unknown("layer", name, weights))
    removals = {name: share * progress for name, share in policy.channel_requests().items()}
    if graph is None:
        plan = None
        masks = {n: make_mask(weights[n], s, "channel", policy.criterion) for n, s in removals.items()}
    else:
        plan = plan_removal(model, removals, graph.example_input, criterion=policy.criterion, graph=graph)
        masks = removal_masks(plan)
    requests = policy.mask_requests()
    for number, name in enumerate(weights):
        if name not in requests:
            continue
        generator = torch.Generator().manual_seed(number)
        scores = element_scores(weights[name], policy.criterion, generator)
        stays = _staying(weights[name].shape, plan.structure if plan else None, name)
        inside = weights[name][stays]
        share, granularity = share_due(requests[name], policy.granularity_of(name), inside.shape, progress)
        if share:
            mask = torch.zeros(weights[name].shape, dtype=torch.bool, device=weights[name].device)
            mask[stays] = make_mask(inside, share, granularity, scores=scores[stays])
            masks[name] = mask
    return masks, plan


def share_due(share: float, granularity: str, shape: Sequence[int], progress: float) -> tuple[float, str]:
    """What a layer's mask asks for once `progress` of its share is due, and in which granularity.

    On its way to `N:M` with a fixed N every block of M loses one more place at a time. Nothing is asked of a weight
    that its granularity leaves whole.
    """
    if obstacle_to(granularity, shape):
        return 0.0, granularity
    pattern, units = pattern_of(granularity), units_of(granularity, shape)
    if progress == 1 or not pattern or pattern.keep is None:
        return share * progress, granularity
    return units.removed(share) / units.count * progress, f"*:{pattern.of}"


def _staying(shape: torch.Size, structure: Structure | None, name: str) -> tuple[Any, ...]:
    """Index of the elements no removal takes: an open mesh, one axis a dimension."""
    kept = structure.kept.get(name) if structure else None
    if not kept:
        return (...,)
    axes = [torch.as_tensor(kept.get(dim, range(length))) for dim, length in enumerate(shape)]
    return tuple(axis.view([-1 if d == dim else 1 for d in range(len(shape))]) for dim, axis in enumerate(axes))


class GradualPruner:
    """Takes a training run along a policy's schedule.

    Channels are masked during the ramp and removed at its end; a one-shot policy is carried out before
    the first step. Masked weights never come back.

    Attributes:
        model: the model to train now; another object after channels were removed.
        masks: parameter name -> bool mask on `model`.
        structure: what has been removed from the dense model so far.
    """

    def __init__(self, model: nn.Module, policy: PruningPolicy, steps: int, graph: ChannelGraph) -> None:
        self.model = model
        self.masks: Mapping[str, Tensor] = {}
        self.structure = Structure({})
        self._policy, self._steps, self._graph = policy, steps, graph
        self._end = min(ramp_end(steps, policy.schedule), steps)
        self._interval = max(1, self._end // MASK_UPDATES)

    def advance(self, step: int) -> bool:
        """Bring the model to the sparsity due before `step` (0-based); True if `model` is a new object.

        Call it for every step, and once more with `steps` after the last.
        """
        if step > self._end or (step != self._end and step % self._interval):
            return False
        progress = 1.0 if step == self._end else progress_at(step, self._steps, self._policy.schedule)
        self.masks, plan = policy_masks(self.model, self._policy, progress, self._graph)
        self.hold()
        if step != self._end or plan is None or not plan.structure.kept:
            return False
        self.model = shrink(self.model, plan)
        self.structure = plan.structure
        self.masks = {
            name: mask[_staying(mask.shape, plan.structure, name)]
            for name, mask in self.masks.items()
            if name in self._policy.mask_requests()
        }
        return True

    def hold(self) -> None:
        """Set masked weights to zero again; call it after every optimizer step."""
        apply_masks_(self.model, self.masks)
