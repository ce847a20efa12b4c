"""The channel graph of a network: its groups, and the layers whose channels stay, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import gcd, lcm

import numpy as np
from torch import nn

from pruning.trees import NetworkInputs
from spaces.network import Network

NEVER_RUNS = "no call of its module was seen in the forward pass"
"""Reason for layers that only training uses, whose weight is used without their module, or that nothing uses."""


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """What removing output channels would change, and a batch to check it on.

    Attributes:
        network: tensors, layers and channel groups as plain data.
        owners: (tensor name, dimension) -> int array (length, 2): the numbers of the group and of the unit that each
            index leaves with; (-1, -1) where it always stays. Only groups without an obstacle own indices.
        example_input: a copy of the batch that the model was traced on.
        zeroed: buffers that a mask sets to zero as it does parameters, such as a frozen norm's scale and shift.
        norms: layer -> the BatchNorm with a scale that follows it, see `pruning.channels.topology.following_norms`.
    """

    network: Network
    owners: Mapping[tuple[str, int], np.ndarray]
    example_input: NetworkInputs
    zeroed: frozenset[str] = frozenset()
    norms: Mapping[str, str] = field(default_factory=dict)


def refuse_groups(graph: ChannelGraph, reasons: Mapping[int, str]) -> ChannelGraph:
    """The same graph, in which the groups with these numbers have an obstacle and own nothing."""
    if not reasons:
        return graph
    network = graph.network
    groups = tuple(replace(g, obstacle=reasons.get(n, g.obstacle)) for n, g in enumerate(network.groups))
    layers = tuple(
        x if x.channel_group is None else replace(x, obstacle=reasons.get(x.channel_group, x.obstacle))
        for x in network.layers
    )
    owners = {}
    for place, units in graph.owners.items():
        left = np.where(np.isin(units[:, :1], list(reasons)), -1, units)
        if (left >= 0).any():
            owners[place] = left
    tensors = tuple(
        replace(t, owners=tuple(tuple(pair for pair in dim if pair[0] not in reasons) for dim in t.owners))
        for t in network.tensors
    )
    return replace(graph, network=replace(network, tensors=tensors, layers=layers, groups=groups), owners=owners)


def leave_whole(graph: ChannelGraph, reasons: Mapping[str, str]) -> ChannelGraph:
    """The same graph, in which neither masks nor removals touch these layers: layer -> why."""
    if not reasons:
        return graph
    refused = {}
    for number, group in enumerate(graph.network.groups):
        unknown = next((name for name in group.layers if name in reasons), None)
        if unknown is not None and group.obstacle is None:
            refused[number] = reasons[unknown] if len(group.layers) == 1 else f"{unknown!r}: {reasons[unknown]}"
    graph = refuse_groups(graph, refused)
    layers = tuple(replace(x, whole=reasons[x.name]) if x.name in reasons else x for x in graph.network.layers)
    return replace(graph, network=replace(graph.network, layers=layers))


def round_groups(graph: ChannelGraph, round_to: int) -> ChannelGraph:
    """The same graph, whose layers keep a multiple of `round_to` output channels if they lose any.

    Counts are rounded up, so that no more goes than was asked for; a layer with fewer channels stays whole.

    Raises:
        ValueError: `round_to` is not a whole number >= 1.
    """
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise ValueError(f"round_to must be a whole number >= 1, got {round_to!r}; 1 changes nothing, 8 is usual")
    network = graph.network
    groups = []
    for group in network.groups:
        layers = [network.by_name[name] for name in group.layers]
        multiples = [round_to // gcd(round_to, layer.output_channels // max(group.units, 1)) for layer in layers]
        groups.append(replace(group, multiple=lcm(*multiples)))
    rounded = replace(graph, network=replace(network, groups=tuple(groups)))
    narrow = {n: g for n, g in enumerate(groups) if g.obstacle is None and 1 < g.multiple >= g.units}
    reason = "its {} units are no more than what counts are rounded to"
    return refuse_groups(rounded, {n: reason.format(g.units) for n, g in narrow.items()})


def check_fits(model: nn.Module, network: Network) -> None:
    """Raise `ValueError` if `model` lacks a tensor of the traced network or has it in another shape."""
    state = model.state_dict()
    for tensor in network.tensors:
        shape = tuple(state[tensor.name].shape) if tensor.name in state else None
        if shape != tensor.shape:
            raise ValueError(f"not the traced model: {tensor.name!r} has shape {shape}, traced was {tensor.shape}")
