"""What static allocators know of trained weights: the squared norm of every unit."""

from __future__ import annotations

import numpy as np
from torch import nn

from pruning.channels.graph import ChannelGraph
from pruning.criteria import element_scores
from pruning.modules import inputs_of_weights, prunable_weights
from pruning.scores import Scores
from pruning.units import unit_scores
from spaces.granularity import obstacle_to


def unit_evidence(model: nn.Module, graph: ChannelGraph, granularity: str) -> dict[str, np.ndarray]:
    """Layer -> squared L2 norm of each of its units (n,); of patterns `N:M`, of each of its weights.

    With granularity `channel`, all layers of a group get the group's scores, which `plan_removal` ranks by
    (norms over their layer's mean, so LAMP and global thresholds compare layers on one scale); layers that
    cannot lose channels, and those the granularity leaves whole, are left out. Whatever the criterion that masks go
    by, allocators compare magnitudes.
    """
    if granularity == "channel":
        scores = Scores(model, "magnitude-l2", graph)
        return {
            name: scores.group(number) ** 2
            for number, group in enumerate(graph.network.groups)
            if group.obstacle is None
            for name in group.layers
        }
    inputs = inputs_of_weights(model)
    return {
        name: unit_scores(element_scores(weight, "magnitude-l2"), granularity, inputs[name]).flatten().numpy()
        for name, weight in prunable_weights(model).items()
        if not (graph.network.by_name[name].whole or obstacle_to(granularity, weight.shape, inputs[name]))
    }
