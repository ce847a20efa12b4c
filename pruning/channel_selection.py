"""Which channels go: a plan of removal from requested sparsities and a criterion."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn

from pruning.calibration import Calibration
from pruning.channels.graph import ChannelGraph, check_fits
from pruning.channels.plan import RemovalPlan, plan_units
from pruning.channels.tracing import trace_channels
from pruning.importance.scores import ImportanceScores
from pruning.importance.weights import require_finite
from pruning.modules import check_model, prunable_weights
from pruning.trees import NetworkInputs
from spaces.cost.effect import kept_units, require_removal, skipped_layers
from spaces.criteria import check_criterion
from spaces.validation import check_sparsity


def plan_removal(
    model: nn.Module,
    request: Mapping[str, float],
    example_input: NetworkInputs,
    criterion: str = "magnitude-l2",
    graph: ChannelGraph | None = None,
    *,
    seed: int = 0,
    calibration: Calibration | None = None,
) -> RemovalPlan:
    """Choose the output channels to remove; `model` stays as it is.

    In a group the smallest request holds and a member not named asks for 0. Of n units
    `floor(share * n + 0.5)` go, but one stays; lowest score first, ties by lowest index. A unit's score
    is the mean over the group's layers of the layer's unit score over its mean in that layer, so that no
    layer dominates by its scale.

    Args:
        request: layer -> share of its output channels removed, 0 <= share < 1.
        example_input: a batch the model accepts; not looked at when `graph` is given.
        criterion: one of `spaces.criteria.CRITERIA`, or one of the user's own; groups it is not defined for
            stay unpruned.
        graph: of `trace_channels`, to save tracing again.
        seed: of the criterion `random`.
        calibration: what data-driven criteria look at.

    Raises:
        ValueError: unknown layer or criterion (nearest match named), a criterion that is not defined for
            channels or lacks its calibration data, a share outside [0, 1), NaN or infinite weights, or a
            graph of another model.
        NothingToRemove: channels are asked for, but every layer asked stays unpruned; the first are named with their
            reasons.
    """
    criterion = check_criterion(criterion, ["channel"])
    check_model(model)
    if not isinstance(request, Mapping):
        raise ValueError(f"request must map layer names to shares, got {type(request).__name__}")
    require_finite(prunable_weights(model))
    shares = {name: check_sparsity(share, f"removal of {name!r}") for name, share in request.items()}
    if graph is None:
        graph = trace_channels(model, example_input)
    graph.network.require(shares)
    check_fits(model, graph.network)
    scores = ImportanceScores(model, criterion, graph, calibration, seed)
    plan = plan_by_scores(shares, scores.restricted_graph, scores)
    require_removal([name for name, share in shares.items() if share], plan.skipped)
    return plan


def plan_by_scores(shares: Mapping[str, float], graph: ChannelGraph, scores: ImportanceScores) -> RemovalPlan:
    """The plan of `plan_removal` for checked shares, from scores that may be of use for more than this."""
    removed_units = {}
    for number, kept in kept_units(graph.network, shares).items():
        order = np.argsort(scores.group(number), kind="stable")
        removed_units[number] = order[: len(order) - kept]
    return plan_units(graph, removed_units, skipped_layers(graph.network, shares))
