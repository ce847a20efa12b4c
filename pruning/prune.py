"""Carry out a policy on a model: at once, or step by step along its schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruning.calibration import Calibration
from pruning.channels import plan_by_scores, trace_channels
from pruning.codec import inputs_of_weights, prunable_weights
from pruning.copying import copy_model
from pruning.cost import check_model
from pruning.criteria import require_finite
from pruning.masks import apply_masks_, make_mask
from pruning.reconstruction import refit_next_layers
from pruning.removal import ChannelGraph, RemovalPlan, check_fits, removal_masks, shrink
from pruning.schedule import mask_updates
from pruning.scores import Scores, restrict_graph
from pruning.structure import Structure, output_dim
from spaces.cost.effect import asked_layers, mask_obstacle, require_removal, whole_layers
from spaces.criteria import criterion_word
from spaces.granularity import obstacle_to, pattern_of, units_of
from spaces.network import SECOND, Inputs
from spaces.policy import PruningPolicy
from spaces.validation import unknown

STATISTICS = ("running_mean", "running_var")
"""Of a BatchNorm's channels: those of a masked channel decay, and come back with it."""


def prune(
    model: nn.Module,
    policy: PruningPolicy,
    example_input: Tensor | None = None,
    graph: ChannelGraph | None = None,
    calibration: Calibration | None = None,
) -> nn.Module:
    """A new model with the policy's zeros, and with its removals if the channel groups are known.

    The schedule plays no part: this is the state at its end, without training.

    Args:
        model: stays as it is.
        example_input: a batch the model accepts. Without it (and without `graph`) channels asked to go
            are set to zero in their own weight, and no shape changes.
        graph: the model's traced channel groups, to save tracing again.
        calibration: what data-driven criteria look at; layers they see no data of stay whole.

    Raises:
        ValueError: the policy names a weight that is not prunable (nearest match named), NaN weights,
            a removal that cannot equal its mask, or a criterion without what it needs.
        NothingToRemove: the policy asks for something, but every layer asked stays whole. A policy that asks for
            nothing gives a copy.
    """
    check_model(model)
    if not isinstance(policy, PruningPolicy):
        raise ValueError(f"policy must be a PruningPolicy, got {type(policy).__name__}: PruningPolicy(...) makes one")
    if example_input is not None and graph is None:
        require_finite(prunable_weights(model))
        graph = trace_channels(model, example_input)
    if graph is not None:
        check_fits(model, graph.network)
        graph = restrict_graph(model, graph, policy.criterion, calibration)
    masks, plan = policy_masks(model, policy, graph=graph, calibration=calibration)
    whole = whole_layers(plan.graph.network, policy) if plan else _whole_weights(model, policy, calibration)
    require_removal(asked_layers(policy), whole)
    pruned = copy_model(model)
    apply_masks_(pruned, masks)
    if plan is None or not plan.structure.kept:
        return pruned
    small = shrink(pruned, plan)
    if policy.criterion == "reconstruction":
        small = refit_next_layers(model, small, plan, calibration)
        apply_masks_(small, _inside(masks, policy, plan))
    return small


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
    weights = prunable_weights(model)
    for name in (*policy.sparsity, *policy.removal):
        if name not in weights:
            raise ValueError(unknown("layer", name, weights))
    removals = {name: share * progress for name, share in policy.channel_requests().items()}
    scores = Scores(model, policy.criterion, graph, calibration)
    if graph is None:
        whole = scores.unseen()
        removals = {name: share for name, share in removals.items() if name not in whole}
        plan, masks = None, _channel_masks(model, removals, scores)
        left = chosen_from = _own_channels(model, masks)
        if progress < 1 and removals and policy.mask_requests():
            chosen_from = _own_channels(model, _channel_masks(model, policy.channel_requests(), scores))
    else:
        check_fits(model, graph.network)
        whole = {layer.name: layer.whole for layer in graph.network.prunable if layer.whole}
        defined = restrict_graph(model, graph, policy.criterion)
        plan = plan_by_scores(removals, defined, scores)
        masks, left = removal_masks(plan), plan.structure
        chosen_from = left
        if progress < 1 and removals and policy.mask_requests():
            chosen_from = plan_by_scores(policy.channel_requests(), defined, scores).structure
    requests, inputs = policy.mask_requests(), inputs_of_weights(model)
    for name in weights:
        if name not in requests or name in whole:
            continue
        shape, word = weights[name].shape, policy.granularity_of(name)
        stays, chosen = _staying(shape, left, name), _staying(shape, chosen_from, name)
        inside = weights[name][chosen]
        share, due = share_due(requests[name], word, inside.shape, progress, inputs[name])
        if share:
            mask = torch.zeros(shape, dtype=torch.bool, device=weights[name].device)
            mask[stays] = True
            mask[chosen] = make_mask(
                inside, share, due, scores=scores.elements(name, word)[chosen], inputs=inputs[name]
            )
            masks[name] = mask
    return masks, plan


def share_due(
    share: float, granularity: str, shape: Sequence[int], progress: float, inputs: Inputs = SECOND
) -> tuple[float, str]:
    """What a layer's mask asks for once `progress` of its share is due, and in which granularity.

    On its way to `N:M` with a fixed N every block of M loses one more place at a time. Nothing is asked of a weight
    that its granularity leaves whole.
    """
    if obstacle_to(granularity, shape, inputs):
        return 0.0, granularity
    pattern, units = pattern_of(granularity), units_of(granularity, shape, inputs)
    if progress == 1 or not pattern or pattern.keep is None:
        return share * progress, granularity
    return units.removed(share) / units.count * progress, f"*:{pattern.of}"


def _channel_masks(model: nn.Module, removals: Mapping[str, float], scores: Scores) -> dict[str, Tensor]:
    return {name: _channel_mask(model, name, share, scores) for name, share in removals.items()}


def _own_channels(model: nn.Module, masks: Mapping[str, Tensor]) -> Structure:
    """The output channels that masks of whole ones leave, each layer by itself."""
    dims = {name: output_dim(model.get_submodule(name.rpartition(".")[0])) for name in masks}
    return Structure(
        {
            name: {dims[name]: tuple(mask.movedim(dims[name], 0).flatten(1).any(dim=1).nonzero().flatten().tolist())}
            for name, mask in masks.items()
        }
    )


def _channel_mask(model: nn.Module, name: str, share: float, scores: Scores) -> Tensor:
    """Mask of one layer's output channels, alone of their group."""
    weight, dim = model.get_parameter(name), output_dim(model.get_submodule(name.rpartition(".")[0]))
    by_data = criterion_word(scores.criterion).needs_data
    elements = scores.elements(name, "channel").movedim(dim, 0) if by_data else None
    return make_mask(weight.movedim(dim, 0), share, "channel", scores.criterion, elements).movedim(0, dim)


def _whole_weights(model: nn.Module, policy: PruningPolicy, calibration: Calibration | None) -> dict[str, str]:
    """`whole_layers` where channel groups are not known: channels are those of their own weight."""
    weights, inputs, found = prunable_weights(model), inputs_of_weights(model), {}
    unseen = Scores(model, policy.criterion, calibration=calibration).unseen()
    for name, share in policy.channel_requests().items():
        dim = output_dim(model.get_submodule(name.rpartition(".")[0]))
        found[name] = mask_obstacle("channel", weights[name].movedim(dim, 0).shape, share)
    for name, share in policy.mask_requests().items():
        own = mask_obstacle(policy.granularity_of(name), weights[name].shape, share, inputs[name])
        found[name] = found.get(name, own) and own
    return {name: unseen.get(name) or reason for name, reason in found.items() if unseen.get(name) or reason}


def _inside(masks: Mapping[str, Tensor], policy: PruningPolicy, plan: RemovalPlan) -> dict[str, Tensor]:
    """The masks of what stays once the plan's channels are gone."""
    names = masks.keys() & policy.mask_requests().keys()
    return {name: masks[name][_staying(masks[name].shape, plan.structure, name)] for name in names}


def _kept_by_both(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    both = {name: first[name].to(mask.device) & mask for name, mask in second.items() if name in first}
    return {**first, **second, **both}


def _staying(shape: torch.Size, structure: Structure, name: str) -> tuple[Any, ...]:
    """Index of the elements no removal takes: an open mesh, one axis a dimension."""
    kept = structure.kept.get(name)
    if not kept:
        return (...,)
    axes = [torch.as_tensor(kept.get(dim, range(length))) for dim, length in enumerate(shape)]
    return tuple(axis.view([-1 if d == dim else 1 for d in range(len(shape))]) for dim, axis in enumerate(axes))


class GradualPruner:
    """Takes a training run along a policy's schedule.

    Channels are masked during the ramp and removed at its end; a one-shot policy is carried out before
    the first step. Masked weights never come back, unless the schedule lets them regrow: then they are scored at each
    update by the values they were masked at, and those that are chosen take these up again. Where training changes
    which channels go, the units masks are cut into can move; what is masked stays masked then, so that a layer can end
    with more zeros than its policy asks for, never with fewer. Scores are worked out
    again at every mask update, those of data-driven criteria on the `SCORE_EXAMPLES` examples of `calibration`. With
    `reconstruction`, the next layers are refitted when the channels go.

    Attributes:
        schedule: the policy's.
        model: the model to train now; another object after channels were removed.
        masks: parameter name -> bool mask on `model`.
        structure: what has been removed from the dense model so far.
        settled: whether the last mask update was made, so that nothing more is chosen.
    """

    def __init__(
        self,
        model: nn.Module,
        policy: PruningPolicy,
        steps: int,
        graph: ChannelGraph,
        calibration: Calibration | None = None,
    ) -> None:
        self.schedule, self.model = policy.schedule, model
        self.masks: Mapping[str, Tensor] = {}
        self.structure = Structure({})
        self._policy, self._graph, self._calibration = policy, graph, calibration
        self._updates = mask_updates(steps, self.schedule)
        self._masked: dict[str, Tensor] = {}
        self.settled = False

    def advance(self, step: int) -> bool:
        """Bring the model to the sparsity due before `step` (0-based); True if `model` is a new object.

        Call it for every step, and once more with `steps` after the last.
        """
        if step not in self._updates or self.settled:
            return False
        progress = self._updates[step]
        self.settled = step == max(self._updates)
        self._regrow()
        before = copy_model(self.model) if self._refits and self.settled else self.model
        chosen, plan = policy_masks(self.model, self._policy, progress, self._graph, self._calibration)
        self.masks = chosen if self.schedule.regrow else _kept_by_both(self.masks, chosen)
        self._remember()
        self.hold()
        if not self.settled or plan is None or not plan.structure.kept:
            return False
        self.model = shrink(self.model, plan)
        self.structure = plan.structure
        self.masks = _inside(self.masks, self._policy, plan)
        if self._refits:
            self.model = refit_next_layers(before, self.model, plan, self._calibration)
            self.hold()
        return True

    @torch.no_grad()
    def _regrow(self) -> None:
        """Give masked weights, and the statistics of masked channels, the values they were masked at."""
        state = self.model.state_dict()
        for name, values in self._masked.items():
            path, _, attribute = name.rpartition(".")
            mask = self.masks[f"{path}.weight" if attribute in STATISTICS else name]
            state[name].copy_(torch.where(mask.to(values.device), state[name], values))

    def _remember(self) -> None:
        if self.schedule.regrow and not self.settled:
            state = self.model.state_dict()
            norms = {name.removesuffix("weight") for name, mask in self.masks.items() if mask.dim() == 1}
            names = [*self.masks, *(norm + kind for norm in norms for kind in STATISTICS if norm + kind in state)]
            self._masked = {name: state[name].clone() for name in names}

    @property
    def _refits(self) -> bool:
        return self._policy.criterion == "reconstruction"

    def hold(self) -> None:
        """Set masked weights to zero again; call it after every optimizer step."""
        apply_masks_(self.model, self.masks)
