"""Channels in the order of their importance, without a change of what the network computes.

The pruning labs first keep the first channels of every layer, then sort the channels and keep the first ones again:
`first_channels` on a model and on its sorted copy is that comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import nn

from pruning.calibration import Calibration
from pruning.channels.graph import ChannelGraph, check_fits
from pruning.channels.plan import RemovalPlan, plan_units
from pruning.channels.removal import output_difference
from pruning.channels.structure import with_indices
from pruning.copying import copy_model
from pruning.importance.scores import ImportanceScores
from spaces.cost.effect import kept_units, require_removal, skipped_layers
from spaces.validation import check_sparsity


class SortingMismatch(ValueError):
    """The reordered network computes something else; the message says by how much or why."""


@dataclass(frozen=True, eq=False)
class ChannelOrder:
    """A new order of the units of channel groups.

    Attributes:
        graph: the traced model it is for.
        units: number of a group -> the unit that comes to each place, every unit once. Groups that are
            absent stay as they are.

    Raises `ValueError` for a group that does not exist or has an obstacle, and for units that are no
    permutation of the group's.
    """

    graph: ChannelGraph
    units: Mapping[int, tuple[int, ...]]

    def __post_init__(self) -> None:
        groups = self.graph.network.groups
        for number, units in self.units.items():
            if not 0 <= number < len(groups):
                raise ValueError(f"no channel group {number}: there are {len(groups)}, counted from 0")
            if groups[number].obstacle:
                raise ValueError(f"channel group {number} stays as it is: {groups[number].obstacle}")
            if sorted(units) != list(range(groups[number].units)):
                raise ValueError(f"channel group {number} must name each of its {groups[number].units} units once")

    def indices(self) -> dict[str, dict[int, np.ndarray]]:
        """Tensor -> dimension -> the index that comes to each place (length,)."""
        found: dict[str, dict[int, np.ndarray]] = {}
        for (name, dim), owners in self.graph.owners.items():
            places = np.arange(len(owners))
            for number, units in self.units.items():
                mine = np.flatnonzero(owners[:, 0] == number)
                # indices of the group by unit: as many a unit, in rising order
                by_unit = mine[np.argsort(owners[mine, 1], kind="stable")].reshape(len(units), -1)
                places[by_unit] = by_unit[list(units)]
            if (places != np.arange(len(owners))).any():
                found.setdefault(name, {})[dim] = places
        return found


def channel_order(
    model: nn.Module,
    graph: ChannelGraph,
    criterion: str = "magnitude-l2",
    *,
    calibration: Calibration | None = None,
    seed: int = 0,
) -> ChannelOrder:
    """The most important units first, in every group that can lose channels and the criterion is defined for.

    It is the reverse of the order in which `plan_removal` lets units go, ties included: there the lowest
    index goes first, so here it comes last.

    Args:
        criterion: a word of `spaces.criteria`; a unit's score is that of `ImportanceScores.group`.
        calibration: what data-driven criteria look at.
        seed: of the criterion `random`.

    Raises:
        ValueError: unknown criterion, NaN or infinite weights, a graph of another model.
    """
    check_fits(model, graph.network)
    scores, units = ImportanceScores(model, criterion, graph, calibration, seed), {}
    for number, group in enumerate(graph.network.groups):
        if group.obstacle is None and scores.obstacle(number) is None:
            units[number] = tuple(np.argsort(scores.group(number), kind="stable")[::-1].tolist())
    return ChannelOrder(graph, units)


def reorder_channels(model: nn.Module, order: ChannelOrder) -> nn.Module:
    """A new model with its channels in this order, which computes the same up to rounding.

    Args:
        model: the traced model or one of the same architecture with other weights; stays as it is.

    Raises:
        SortingMismatch: in eval mode the outputs on the graph's example input differ by more than 1e-4 of
            the largest |output|, as where the network reads channels by their place.
        ValueError: a model of other tensors than the traced one.
    """
    check_fits(model, order.graph.network)
    reordered = with_indices(model, order.indices())
    difference = output_difference(copy_model(model), copy_model(reordered), order.graph.example_input)
    if difference is not None:
        raise SortingMismatch(f"the order of channels matters to the network: {difference}")
    return reordered


def first_channels(graph: ChannelGraph, request: Mapping[str, float]) -> RemovalPlan:
    """The plan that keeps the first units of every group, whatever they hold.

    Counts, groups and reasons are those of `plan_removal`. On a model reordered by `channel_order` it
    removes the channels `plan_removal` removes from the model itself.

    Args:
        request: layer -> share of its output channels removed, 0 <= share < 1.

    Raises:
        ValueError: unknown layer (nearest match named), or a share outside [0, 1).
        NothingToRemove: channels are asked for, but every layer asked stays whole.
    """
    shares = {name: check_sparsity(share, f"removal of {name!r}") for name, share in request.items()}
    graph.network.require(shares)
    groups = graph.network.groups
    removed = {number: range(kept, groups[number].units) for number, kept in kept_units(graph.network, shares).items()}
    skipped = skipped_layers(graph.network, shares)
    require_removal([name for name, share in shares.items() if share], skipped)
    return plan_units(graph, removed, skipped)
