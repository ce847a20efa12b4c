"""Channels that no weight reads: they may be all zero, and then cost next to nothing in a file."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from pruning.channels.graph import ChannelGraph
from pruning.channels.removal import output_difference
from pruning.channels.structure import Structure
from pruning.copying import copy_model
from pruning.modules import model_tensors


@torch.no_grad()
def silence_unread_(model: nn.Module, graph: ChannelGraph, structure: Structure) -> int:
    """Set weights, biases, norm scales and shifts of channels that no weight reads to zero, in place.

    A channel is unread where everything that takes it as an input multiplies it by zero. Silencing it may leave others
    unread, which follow. Only channels that a removal could take are looked at, and nothing has changed unless the
    outputs on the graph's example input stay what they were.

    Args:
        graph: of the dense model.
        structure: what has been removed from it.

    Returns:
        The number of elements that became zero.
    """
    owners = {place: units for place, units in _left(graph, structure).items() if place[0] in model_tensors(model)}
    dims = {name: graph.network.output_dim(name) for name, _ in owners}
    buffers = {t.name for t in graph.network.tensors if not t.parameter} - graph.zeroed
    tensors, before = model_tensors(model), copy_model(model)
    kept: dict[str, Tensor] = {}
    while unread := _unread(graph, owners, dims, tensors):
        changed = False
        for (name, dim), units in owners.items():
            if dim != dims[name] or name in buffers:
                continue
            mine = [number in unread and bool(unread[number][unit]) for number, unit in units.tolist()]
            gone = torch.tensor(np.flatnonzero(mine), device=tensors[name].device)
            if tensors[name].index_select(dim, gone).any():
                kept.setdefault(name, tensors[name].clone())
                tensors[name].index_fill_(dim, gone, 0)
                changed = True
        if not changed:
            break
    if kept and output_difference(before.eval(), copy_model(model).eval(), graph.example_input) is not None:
        for name, tensor in kept.items():
            tensors[name].copy_(tensor)
        return 0
    return sum(int(((tensor != 0) & (tensors[name] == 0)).sum()) for name, tensor in kept.items())


def _left(graph: ChannelGraph, structure: Structure) -> dict[tuple[str, int], np.ndarray]:
    """The graph's owners of the indices that are left."""
    found = {}
    for (name, dim), units in graph.owners.items():
        indices = structure.kept.get(name, {}).get(dim)
        found[name, dim] = units if indices is None else units[list(indices)]
    return found


def _unread(
    graph: ChannelGraph,
    owners: Mapping[tuple[str, int], np.ndarray],
    dims: Mapping[str, int],
    tensors: Mapping[str, Tensor],
) -> dict[int, np.ndarray]:
    """Number of a group that weights read -> which of its units (units,) nothing reads, where there are some."""
    read: dict[int, np.ndarray] = {}
    for (name, dim), units in owners.items():
        if dim == dims[name]:
            continue
        some = (tensors[name] != 0).movedim(dim, 0).flatten(1).any(dim=1).cpu().numpy()
        for number in np.unique(units[units[:, 0] >= 0, 0]).tolist():
            flags = read.setdefault(number, np.zeros(graph.network.groups[number].units, dtype=bool))
            mine = units[:, 0] == number
            np.logical_or.at(flags, units[mine, 1], some[mine])
    return {number: ~flags for number, flags in read.items() if not flags.all()}
