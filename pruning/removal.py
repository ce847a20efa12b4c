"""Removing output channels from a model, and the mask every removal must equal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import gcd, lcm

import numpy as np
import torch
from torch import Tensor, nn

from pruning.copying import copy_model
from pruning.memory import out_of_memory
from pruning.modules import model_tensors
from pruning.multiplications import eager
from pruning.outputs import tensors_in
from pruning.structure import Structure, apply_structure
from spaces.network import Network

TOLERANCE = 1e-4
"""Largest difference between mask and removal, relative to the largest |output|."""
NOT_RUNNING = "the new network does not run"
NEVER_RUNS = "no call of its module was seen in the forward pass"
"""Obstacle of layers that only training uses, whose weight is used without their module, or nothing at all."""


class RemovalMismatch(ValueError):
    """Removing the channels would not equal masking them; the message says by how much or why."""


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """What removing output channels would touch, and a batch to check it on.

    Attributes:
        network: tensors, layers and channel groups as plain data.
        owners: (tensor name, dimension) -> int array (length, 2): number of the group and of the unit
            each index leaves with; (-1, -1) where it always stays. Only groups without an obstacle own.
        example_input: a copy of the batch the model was traced on.
        zeroed: buffers, such as a frozen norm's scale and shift, that a mask sets to zero as it does parameters.
    """

    network: Network
    owners: Mapping[tuple[str, int], np.ndarray]
    example_input: Tensor
    zeroed: frozenset[str] = frozenset()


def refuse_groups(graph: ChannelGraph, reasons: Mapping[int, str]) -> ChannelGraph:
    """The same graph in which the groups with these numbers carry an obstacle and own nothing."""
    if not reasons:
        return graph
    network = graph.network
    groups = tuple(replace(g, obstacle=reasons.get(n, g.obstacle)) for n, g in enumerate(network.groups))
    layers = tuple(replace(x, obstacle=reasons.get(x.channel_group, x.obstacle)) for x in network.layers)
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
    """The same graph in which no mask and no removal takes anything of these layers: layer -> why."""
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
    """The same graph, whose layers keep a multiple of `round_to` output channels wherever they lose some.

    Counts are rounded up, so that nothing more goes than was asked for; a layer of fewer channels stays whole.

    Raises:
        ValueError: `round_to` is no whole number >= 1.
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


@dataclass(frozen=True, eq=False)
class RemovalPlan:
    """Which output channels go, worked out to the last tensor.

    Attributes:
        graph: the traced model the plan is for.
        structure: kept indices of every tensor dimension that shrinks.
        skipped: requested layer -> why it loses no channel.
    """

    graph: ChannelGraph
    structure: Structure
    skipped: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def kept(self) -> dict[str, tuple[int, ...]]:
        """Every weight whose dimension of output channels shrinks -> the sorted indices of it that stay.

        That is the first dimension (of norms too), but for transposed convolutions the second.
        """
        network, dimensions = self.graph.network, self.structure.kept.items()
        found = {name: dims.get(network.output_dim(name)) for name, dims in dimensions}
        return {name: kept for name, kept in found.items() if kept and name.rpartition(".")[2] == "weight"}

    @cached_property
    def removed(self) -> dict[str, float]:
        """Every prunable layer -> achieved share of its output channels removed."""
        kept, layers = self.kept, self.graph.network.prunable
        return {x.name: 1 - len(kept[x.name]) / x.shape[x.output_dim] if x.name in kept else 0.0 for x in layers}


def plan_units(
    graph: ChannelGraph, removed_units: Mapping[int, Iterable[int]], skipped: Mapping[str, str] | None = None
) -> RemovalPlan:
    """The plan that removes the given units: number of a group -> numbers of its units.

    Raises:
        ValueError: no such group or unit, a group with an obstacle, or no unit left.
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


def shrink(model: nn.Module, plan: RemovalPlan) -> nn.Module:
    """A new model with the plan's channels gone, checked against the mask on the plan's example input.

    Args:
        model: the traced model or one of the same architecture with other weights; stays as it is.

    Raises:
        RemovalMismatch: in eval mode the outputs differ by more than 1e-4 of the largest |output|.
        ValueError: a model of other tensors than the traced one.
    """
    masked = mask_removed(model, plan)
    small = apply_structure(model, plan.structure)
    difference = output_difference(masked, copy_model(small), plan.graph.example_input)
    if difference is not None:
        raise RemovalMismatch(f"removal does not equal the mask: {difference}")
    return small


def mask_removed(model: nn.Module, plan: RemovalPlan) -> nn.Module:
    """A new model of dense shape with everything of the removed channels zero; statistics of norms stay.

    That is: weights of the channel, its bias, norm scale and shift, buffers too. Raises `ValueError` for a model of
    other tensors than the traced one.
    """
    check_fits(model, plan.graph.network)
    masked = copy_model(model)
    zero_removed_(model_tensors(masked), plan)
    return masked


def zero_removed_(tensors: Mapping[str, Tensor], plan: RemovalPlan) -> None:
    """Set everything of the removed channels to zero in tensors of dense shape, by their names in the traced model."""
    gone = [(name, dim, torch.nonzero(~stays).flatten()) for name, dim, stays in _staying_outputs(plan)]
    for (name, dim), owners in plan.graph.owners.items():
        if name in plan.graph.zeroed and dim in plan.structure.kept.get(name, {}):
            left = set(range(len(owners))) - set(plan.structure.kept[name][dim])
            gone.append((name, dim, torch.tensor(sorted(left))))
    with torch.no_grad():
        for name, dim, indices in gone:
            tensors[name].index_fill_(dim, indices.to(tensors[name].device), 0)


def removal_masks(plan: RemovalPlan) -> dict[str, Tensor]:
    """Parameter name -> bool mask of its dense shape, False on what `mask_removed` sets to zero."""
    shapes = {tensor.name: tensor.shape for tensor in plan.graph.network.tensors}
    masks = {}
    for name, dim, stays in _staying_outputs(plan):
        masks[name] = torch.zeros(shapes[name], dtype=torch.bool)
        masks[name].index_fill_(dim, torch.nonzero(stays).flatten(), True)
    return masks


def _staying_outputs(plan: RemovalPlan) -> Iterator[tuple[str, int, Tensor]]:
    """(parameter, its dimension of output channels, bool tensor of that length: stays), where some go."""
    network = plan.graph.network
    for tensor in network.tensors:
        dim = network.output_dim(tensor.name)
        kept = plan.structure.kept.get(tensor.name, {}).get(dim)
        if tensor.parameter and kept is not None:
            stays = torch.zeros(tensor.shape[dim], dtype=torch.bool)
            stays[list(kept)] = True
            yield tensor.name, dim, stays


def output_difference(first: nn.Module, second: nn.Module, example: Tensor) -> str | None:
    """How the second model's outputs differ from the first's in eval mode, in one line; None if they agree.

    They agree within 1e-4 of the largest |output| of the first. Changes the mode of both. A lack of memory is raised:
    it says nothing about the networks.
    """
    expected = outputs_of(first, example)
    try:
        actual = outputs_of(second, example)
    except Exception as error:
        raise_lack(error)
        return f"{NOT_RUNNING}, {one_line(error)}"
    return difference_of(expected, actual)


def difference_of(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> str | None:
    """How outputs differ from those expected, in one line; None if they agree within 1e-4 of the largest expected."""
    if not expected:
        return "the network gives no tensors that could be compared"
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in actual]:
        return "the shape of the network's outputs changes"
    for wanted, got in zip(expected, actual, strict=True):
        largest, error = float(wanted.abs().max()), float((wanted - got).abs().max())
        if not error <= TOLERANCE * largest:
            return f"outputs differ by {error:.2g}, the largest is {largest:.2g}"
    return None


def outputs_of(model: nn.Module, example: Tensor, training: bool = False) -> list[Tensor]:
    """The nonempty output tensors as float64, in at least 32-bit precision; changes the mode of `model`."""
    model.train(training)
    if example.dtype in (torch.float16, torch.bfloat16):
        model, example = model.float(), example.float()
    device = next((tensor.device for tensor in model.state_dict().values()), example.device)
    exact = torch.backends.cudnn.flags(enabled=False)  # cuDNN may compute in TF32, too coarse for TOLERANCE
    with torch.no_grad(), torch.random.fork_rng(devices=[]), exact, eager():
        return comparable(model(example.to(device)))


def comparable(output: object) -> list[Tensor]:
    """The nonempty tensors of an output as float64."""
    return [tensor.double() for tensor in tensors_in(output) if tensor.numel()]


def raise_lack(error: Exception) -> None:
    """Lack of memory says nothing about a removal."""
    if out_of_memory(error):
        raise error


def one_line(error: Exception) -> str:
    """An exception's type and the first line of its message."""
    first_line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line[:120]}"


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


def check_fits(model: nn.Module, network: Network) -> None:
    """Raise `ValueError` if `model` lacks a tensor of the traced network or has it in another shape."""
    state = model.state_dict()
    for tensor in network.tensors:
        shape = tuple(state[tensor.name].shape) if tensor.name in state else None
        if shape != tensor.shape:
            raise ValueError(f"not the traced model: {tensor.name!r} has shape {shape}, traced was {tensor.shape}")
