"""A plan of removal: the output channels that stay, by layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pruning.channels.graph import ChannelGraph
from pruning.channels.structure import Structure
from spaces.network import Network


@dataclass(frozen=True, eq=False)
class RemovalPlan:
    """Which output channels go, and what stays of every tensor.

    Attributes:
        graph: the traced model that the plan is for.
        structure: kept indices of every tensor dimension that shrinks.
        skipped: requested layer -> why it loses no channel.
    """

    graph: ChannelGraph
    structure: Structure
    skipped: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def kept(self) -> dict[str, tuple[int, ...]]:
        """Every weight whose dimension of output channels shrinks -> the sorted indices that stay in it.

        That is the first dimension, also of norms; of transposed convolutions it is the second.
        """
        network, dimensions = self.graph.network, self.structure.kept.items()
        found = {name: dims.get(network.output_dim(name)) for name, dims in dimensions}
        return {name: kept for name, kept in found.items() if kept and name.rpartition(".")[2] == "weight"}

    @cached_property
    def removed(self) -> dict[str, float]:
        """Every prunable layer -> the share of its output channels that is removed."""
        kept, layers = self.kept, self.graph.network.prunable
        return {x.name: 1 - len(kept[x.name]) / x.shape[x.output_dim] if x.name in kept else 0.0 for x in layers}


def plan_units(
    graph: ChannelGraph, removed_units: Mapping[int, Iterable[int]], skipped: Mapping[str, str] | None = None
) -> RemovalPlan:
    """The plan that removes the given units: number of a group -> numbers of its units.

    Raises:
        ValueError: no such group or unit, a group with an obstacle, or no unit would stay.
    """
    goes = {number: _unit_flags(graph.network, number, units) for number, units in removed_units.items()}
    kept: dict[str, dict[int, tuple[int, ...]]] = defaultdict(dict)
    for (name, dim), owners in graph.owners.items():
        stays = np.ones(len(owners), dtype=bool)
        for number, flags in goes.items():
            mine = owners[:, 0] == number
            stays[mine] = ~flags[owners[mine, 1]]
        if not stays.all():
            kept[name][dim] = tuple(np.flatnonzero(stays).tolist())
    return RemovalPlan(graph, Structure(kept), dict(skipped or {}))


def _unit_flags(network: Network, number: int, units: Iterable[int]) -> np.ndarray:
    """Bool array (units of the group,), True = goes."""
    if not 0 <= number < len(network.groups):
        raise ValueError(f"no channel group {number}: there are {len(network.groups)}, counted from 0")
    group, chosen = network.groups[number], np.asarray(list(units), dtype=np.int64)
    if group.obstacle:
        raise ValueError(f"channel group {number} ({group.layers[0]}) stays whole: {group.obstacle}")
    if chosen.size and not (chosen.min() >= 0 and chosen.max() < group.units):
        raise ValueError(f"channel group {number} has units 0 to {group.units - 1}, got {chosen.tolist()}")
    flags = np.zeros(group.units, dtype=bool)
    flags[chosen] = True
    if flags.all():
        raise ValueError(f"channel group {number} ({group.layers[0]}) would lose all {group.units} units: keep one")
    return flags
