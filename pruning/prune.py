"""Carry out a policy on a model at once."""

from __future__ import annotations

from torch import nn

from pruning.calibration import Calibration
from pruning.channels.graph import ChannelGraph, check_fits
from pruning.channels.removal import shrink
from pruning.channels.tracing import trace_channels
from pruning.copying import copy_model
from pruning.file.stored_form import round_weights_
from pruning.importance.reconstruction import refit_next_layers
from pruning.importance.scores import ImportanceScores
from pruning.importance.weights import require_finite
from pruning.masks import apply_masks_
from pruning.modules import check_model, inputs_of_weights, output_dim, prunable_weights
from pruning.policy_masks import masks_by_scores, masks_inside, require_layers
from pruning.trees import NetworkInputs
from spaces.cost.effect import asked_layers, mask_obstacle, require_removal, unpruned_layers
from spaces.policy import PruningPolicy


def prune(
    model: nn.Module,
    policy: PruningPolicy,
    example_input: NetworkInputs | None = None,
    graph: ChannelGraph | None = None,
    calibration: Calibration | None = None,
) -> nn.Module:
    """A new model with the policy's zeros and rounded weights, and with its removals if the channel groups are known.

    The schedule plays no part: this is the state at its end, without training. Weights of fewer than 32 bits are
    rounded last; zeros stay zeros, and norms and biases are as they were.

    Args:
        model: stays as it is.
        example_input: a batch the model accepts. Without it (and without `graph`) channels asked to go
            are set to zero in their own weight, and no shape changes.
        graph: the model's traced channel groups, to save tracing again.
        calibration: what data-driven criteria look at; layers they find nothing about in it stay unpruned.

    Raises:
        ValueError: the policy names a weight that is not prunable (nearest match named), NaN weights,
            a removal that cannot equal its mask, or a criterion without what it needs.
        NothingToRemove: the policy asks for something, but every layer asked stays unpruned. A policy that asks for
            nothing gives a copy, its weights rounded where it says so.
    """
    check_model(model)
    if not isinstance(policy, PruningPolicy):
        raise ValueError(f"policy must be a PruningPolicy, got {type(policy).__name__}: PruningPolicy(...) makes one")
    if example_input is not None and graph is None:
        require_finite(prunable_weights(model))
        graph = trace_channels(model, example_input)
    if graph is not None:
        check_fits(model, graph.network)
    require_layers(policy, model)
    scores = ImportanceScores(model, policy.criterion, graph, calibration)
    masks, plan = masks_by_scores(scores, None if graph is None else scores.restricted_graph, policy)
    unpruned = unpruned_layers(plan.graph.network, policy) if plan else _unpruned_weights(policy, scores)
    require_removal(asked_layers(policy), unpruned)
    pruned = copy_model(model)
    apply_masks_(pruned, masks)
    if plan is not None and plan.structure.kept:
        pruned = shrink(pruned, plan)
        if policy.criterion == "reconstruction" and calibration is not None:
            pruned = refit_next_layers(model, pruned, plan, calibration)
            apply_masks_(pruned, masks_inside(masks, policy, plan))
    round_weights_(pruned, policy.bits)
    return pruned


def _unpruned_weights(policy: PruningPolicy, scores: ImportanceScores) -> dict[str, str]:
    """`unpruned_layers` where channel groups are not known: channels are those of their own weight."""
    model, unseen = scores.model, scores.unseen()
    weights, inputs = prunable_weights(model), inputs_of_weights(model)
    found: dict[str, str | None] = {}
    for name, share in policy.channel_requests().items():
        dim = output_dim(model.get_submodule(name.rpartition(".")[0]))
        found[name] = mask_obstacle("channel", weights[name].movedim(dim, 0).shape, share)
    for name, share in policy.mask_requests().items():
        own = mask_obstacle(policy.granularity_of(name), weights[name].shape, share, inputs[name])
        found[name] = found.get(name, own) and own
    return {name: why for name, reason in found.items() if (why := unseen.get(name) or reason)}
