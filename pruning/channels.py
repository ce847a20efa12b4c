"""Which output channels belong together, and which go first.

Coupling is read from torch-pruning's dependency graph, edge by edge; units, scores and counts are ours. Every
removal is compared with its mask on the example input (see `pruning.removal`), so that a fault of the graph
ends in a stated obstacle or a `RemovalMismatch`, never in a wrong network.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch_pruning as tp
from torch import Tensor, nn

from pruning.calibration import Calibration
from pruning.codec import DTYPE_CODES, prunable_weights
from pruning.cost import output_positions
from pruning.removal import (
    NEVER_RUNS,
    ChannelGraph,
    RemovalMismatch,
    RemovalPlan,
    check_fits,
    find_offenders,
    mask_removed,
    one_line,
    plan_units,
    removal_masks,
    shrink,
    tensors_in,
)
from pruning.scores import Scores, restrict_graph
from spaces.criteria import check_criterion
from spaces.layers import ChannelGroup, Layer, Network, StoredTensor
from spaces.policy import check_sparsity, removed_count

__all__ = [
    "ChannelGraph",
    "RemovalMismatch",
    "RemovalPlan",
    "mask_removed",
    "plan_by_scores",
    "plan_removal",
    "plan_units",
    "removal_masks",
    "shrink",
    "trace_channels",
]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_KINDS = {nn.Conv1d: "conv1d", nn.Conv2d: "conv2d", nn.Conv3d: "conv3d", nn.Linear: "linear"}
_CHANNEL_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
_NOT_REACHED = "torch-pruning's graph of the network does not reach it"


def trace_channels(model: nn.Module, example_input: Tensor) -> ChannelGraph:
    """Find the groups of output channels that can only be removed together, and try them out.

    Works on a copy in eval mode with gradients, so frozen and training models do as well, and `model`
    stays as it is. Groups that cannot lose channels, and layers outside any group, carry an obstacle;
    a model torch-pruning cannot trace has an obstacle at every layer. About a quarter of all units is
    removed once and compared with the mask; groups that differ, or that layers run only in training mode
    (auxiliary heads) depend on, get an obstacle too.

    Args:
        example_input: a batch (N, ...) the model accepts, on the model's device.

    Raises:
        ValueError: the model does not run on the example input, or holds a tensor of a type that
            safetensors files do not.
    """
    with torch.inference_mode(False):
        example = example_input.detach().clone()
        trial = copy.deepcopy(model).eval()
        try:
            calls, positions = _observe(trial, example)
        except Exception as error:
            raise ValueError(f"the model does not run on the example input: {one_line(error)}") from error
        bare = _bare_network(trial, calls, positions)
        try:
            coupling = _trace_coupling(trial, example, calls)
        except Exception as error:
            reason = f"torch-pruning cannot trace the network: {one_line(error)}"
            return ChannelGraph(replace(bare, layers=_refused(bare.layers, reason)), {}, example)
        graph = _build_graph(bare, coupling, example)
        offenders = find_offenders(trial, graph)
    if not offenders:
        return graph
    groups = enumerate(coupling.groups)
    groups = tuple(replace(group, obstacle=offenders.get(number, group.obstacle)) for number, group in groups)
    return _build_graph(bare, replace(coupling, groups=groups), example)


def plan_removal(
    model: nn.Module,
    request: Mapping[str, float],
    example_input: Tensor,
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
            stay whole.
        graph: of `trace_channels`, to save tracing again.
        seed: of the criterion `random`.
        calibration: what data-driven criteria look at.

    Raises:
        ValueError: unknown layer or criterion (nearest match named), a criterion that is not defined for
            channels or lacks its calibration data, a share outside [0, 1), NaN or infinite weights, or a
            graph of another model.
    """
    criterion = check_criterion(criterion, ["channel"])
    shares = {name: check_sparsity(share, f"removal of {name!r}") for name, share in request.items()}
    if graph is None:
        graph = trace_channels(model, example_input)
    graph.network.require(shares)
    check_fits(model, graph.network)
    return plan_by_scores(
        shares, restrict_graph(model, graph, criterion), Scores(model, criterion, graph, calibration, seed)
    )


def plan_by_scores(shares: Mapping[str, float], graph: ChannelGraph, scores: Scores) -> RemovalPlan:
    """The plan of `plan_removal` for checked shares, from scores that may be of use for more than this."""
    removed_units, skipped = {}, {}
    for number, group in enumerate(graph.network.groups):
        share = min(shares.get(name, 0.0) for name in group.layers)
        count = 0 if group.obstacle else removed_count(share, group.units)
        if count:
            removed_units[number] = np.argsort(scores.group(number), kind="stable")[:count]
        else:
            skipped |= {n: _why_whole(graph.network, number, shares, n) for n in group.layers if shares.get(n, 0.0)}
    for layer in graph.network.layers:
        if layer.channel_group is None and shares.get(layer.name, 0.0):
            skipped[layer.name] = layer.obstacle
    return plan_units(graph, removed_units, skipped)


def _why_whole(network: Network, number: int, shares: Mapping[str, float], name: str) -> str:
    """Why a layer of this group, though requested, loses no channel."""
    group = network.groups[number]
    if group.obstacle:
        return group.obstacle
    smallest = min(group.layers, key=lambda member: shares.get(member, 0.0))
    if not shares.get(smallest, 0.0):
        return f"the smallest request of its group holds, and {smallest!r} asks for 0"
    return f"{shares[smallest]:g} of {group.units} units rounds to none"


def _observe(model: nn.Module, example: Tensor) -> tuple[Counter[nn.Module], dict[str, int]]:
    """How often each module runs in one forward pass, and the output positions of each layer."""
    calls: Counter[nn.Module] = Counter()
    hooks = [m.register_forward_hook(lambda module, *_: calls.update([module])) for m in model.modules()]
    with torch.random.fork_rng(devices=[]):
        positions = output_positions(model, example)
    for hook in hooks:
        hook.remove()
    return calls, positions


def _bare_network(model: nn.Module, calls: Mapping[nn.Module, int], positions: Mapping[str, int]) -> Network:
    """Tensors and layers with no group yet; every layer has the obstacle of being in none."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    tensors, aliases, first_names = [], {}, {}
    for name, tensor in model.state_dict().items():
        first = first_names.setdefault(_storage(tensor), name) if tensor.numel() else name
        if first != name:
            aliases[name] = first
        elif tensor.dtype not in DTYPE_CODES:
            raise ValueError(f"tensor {name!r} has type {tensor.dtype}, which model files here cannot hold")
        else:
            tensors.append(StoredTensor(name, tuple(tensor.shape), DTYPE_CODES[tensor.dtype], name in parameters))
    layers = []
    for name, weight in prunable_weights(model).items():
        module = model.get_submodule(name.rpartition(".")[0])
        kind = next(word for cls, word in _KINDS.items() if isinstance(module, cls))
        obstacle = _NOT_REACHED if calls[module] else NEVER_RUNS
        shape, groups = tuple(weight.shape), getattr(module, "groups", 1)
        layers.append(Layer(name, kind, shape, positions[name], groups, obstacle=obstacle))
    return Network(tuple(tensors), tuple(layers), aliases=aliases)


def _storage(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def _refused(layers: Iterable[Layer], reason: str) -> tuple[Layer, ...]:
    return tuple(replace(layer, obstacle=reason) for layer in layers)


class _Index(NamedTuple):
    """What torch-pruning's index mappings read: a channel, and the element it was reached from."""

    idx: int
    root_idx: int


class _Links:
    """Union-find over numbered elements."""

    def __init__(self) -> None:
        self._parents: list[int] = []

    def add(self) -> int:
        self._parents.append(len(self._parents))
        return len(self._parents) - 1

    def find(self, element: int) -> int:
        while self._parents[element] != element:
            self._parents[element] = self._parents[self._parents[element]]
            element = self._parents[element]
        return element

    def join(self, first: int, second: int) -> None:
        self._parents[self.find(second)] = self.find(first)


_Side = tuple[tp.dependency.Node, Callable[..., Any]]
"""A node and the pruning function of one of its sides; nodes that pass channels on have only one."""
_Unit = tuple[int, int]
"""Number of a group, and of a unit in it."""


@dataclass(frozen=True)
class _Coupling:
    groups: tuple[ChannelGroup, ...]
    owners: Mapping[tuple[str, int], Mapping[int, _Unit]]


def _trace_coupling(model: nn.Module, example: Tensor, calls: Mapping[nn.Module, int]) -> _Coupling:
    """The groups, and the unit each (tensor, dimension) index leaves with."""
    dependencies = _dependency_graph(model, example)
    modules = {name: model.get_submodule(name.rpartition(".")[0]) for name in prunable_weights(model)}
    sides = {name: _output_side(dependencies, m) for name, m in modules.items() if m in dependencies.module2node}
    links = _Links()
    widest = max(length for parameter in model.parameters() for length in (*parameter.shape, 1))
    reached = _reach(dependencies, sides.values(), links, widest)
    _join_convolution_groups(reached, links)
    members, unit_of = _number_units(
        {name: [links.find(element) for _, element in sorted(reached[side].items())] for name, side in sides.items()}
    )
    rules = _Rules(model, calls)
    obstacles: dict[int, str] = {}
    owners: dict[tuple[str, int], dict[int, _Unit]] = defaultdict(dict)
    for (node, handler), elements in reached.items():
        units = {index: unit_of[links.find(element)] for index, element in elements.items()}
        reason = rules.obstacle(node.module)
        if reason is None and not 0 <= min(elements) <= max(elements) < _room(dependencies, (node, handler), widest):
            reason = f"torch-pruning maps its channels beyond those of {node.name}"
        if reason:
            obstacles |= {number: obstacles.get(number, reason) for number, _ in units.values()}
            continue
        for tensor, dim, length in rules.dimensions(node.module, dependencies.is_out_channel_pruning_fn(handler)):
            owners[tensor, dim].update((index % length, unit) for index, unit in units.items())
    unequal = _unequal_groups(owners, [units for _, units in members])
    groups = []
    for number, (layers, units) in enumerate(members):
        reason = obstacles.get(number) or ("all its channels can only go together" if units < 2 else None)
        groups.append(ChannelGroup(layers, units, reason or unequal.get(number)))
    return _Coupling(tuple(groups), owners)


def _dependency_graph(model: nn.Module, example: Tensor) -> tp.DependencyGraph:
    """torch-pruning's graph. Outputs are multiplied by 1, so that a layer that ends the network is followed
    by an output node; the forward function keeps torch-pruning from unpacking the batch into arguments."""
    model.requires_grad_(True)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tp.DependencyGraph().build_dependency(
            model,
            example,
            forward_fn=lambda network, batch: network(batch),
            output_transform=lambda output: [tensor * 1 for tensor in tensors_in(output) if tensor.requires_grad],
            verbose=False,
        )


def _output_side(dependencies: tp.DependencyGraph, module: nn.Module) -> _Side:
    return dependencies.module2node[module], dependencies.get_pruner_of_module(module).prune_out_channels


def _room(dependencies: tp.DependencyGraph, side: _Side, widest: int) -> int:
    """Channels of this side; `widest` for operations, which do not know theirs."""
    node, handler = side
    is_output = dependencies.is_out_channel_pruning_fn(handler)
    return (dependencies.get_out_channels(node) if is_output else dependencies.get_in_channels(node)) or widest


def _reach(
    dependencies: tp.DependencyGraph, sides: Iterable[_Side], links: _Links, widest: int
) -> dict[_Side, dict[int, int]]:
    """Follow every output channel along the dependencies: side -> channel -> element of `links`.

    torch-pruning's own walk drops a channel that is reached twice, and with it a coupling; here the two
    elements are joined. Wrong slice mappings can raise indices without end, so none is followed that its
    side has no room for.
    """
    reached: dict[_Side, dict[int, int]] = defaultdict(dict)
    for start in sides:
        channels = start[0].module.weight.shape[0]
        pending = [(start, [_Index(c, links.add()) for c in range(channels) if c not in reached[start]])]
        while pending:
            (node, handler), arrived = pending.pop()
            elements, fresh = reached[node, handler], []
            room = _room(dependencies, (node, handler), widest)
            for index in arrived:
                if index.idx in elements:
                    links.join(elements[index.idx], index.root_idx)
                else:
                    elements[index.idx] = index.root_idx
                    if 0 <= index.idx < room:
                        fresh.append(index)
            for edge in node.dependencies if fresh else ():
                if edge.is_triggered_by(handler):
                    mapped = fresh
                    for mapping in filter(None, edge.index_mapping):
                        mapped = mapping(mapped)
                    if mapped:
                        pending.append(((edge.target, edge.handler), mapped))
    return reached


def _join_convolution_groups(reached: Mapping[_Side, Mapping[int, int]], links: _Links) -> None:
    """Couple equal local indices across the groups of every grouped convolution, on both its sides."""
    for (node, handler), elements in reached.items():
        module = node.module
        if isinstance(module, _CONVOLUTIONS) and module.groups > 1 and not _is_depthwise(module):
            is_output = handler == handler.__self__.prune_out_channels
            length = (module.out_channels if is_output else module.in_channels) // module.groups
            first: dict[int, int] = {}
            for index, element in elements.items():
                links.join(first.setdefault(index % length, element), element)


def _is_depthwise(module: nn.Module) -> bool:
    return module.groups == module.in_channels == module.out_channels


def _number_units(
    outputs: Mapping[str, list[int]],
) -> tuple[list[tuple[tuple[str, ...], int]], dict[int, _Unit]]:
    """Put layers that share a component into one group and number its components as they appear.

    Args:
        outputs: layer -> component of each of its output channels.

    Returns:
        (layers, units) of each group, in the order of its first layer, and the unit of each component.
    """
    links, first = _Links(), {}
    for components in outputs.values():
        layer = links.add()
        for component in components:
            links.join(first.setdefault(component, layer), layer)
    members: dict[int, list[str]] = defaultdict(list)
    for layer, name in enumerate(outputs):
        members[links.find(layer)].append(name)
    groups, unit_of = [], {}
    for number, names in enumerate(members.values()):
        components = dict.fromkeys(component for name in names for component in outputs[name])
        groups.append((tuple(names), len(components)))
        unit_of |= {component: (number, unit) for unit, component in enumerate(components)}
    return groups, unit_of


def _unequal_groups(owners: Mapping[tuple[str, int], Mapping[int, _Unit]], groups: list[int]) -> dict[int, str]:
    """Groups whose units do not own equally many indices of some tensor dimension -> the reason."""
    reasons = {}
    for (tensor, dim), units in owners.items():
        sizes = Counter(units.values())
        for number in {number for number, _ in sizes}:
            of_units = {sizes[number, unit] for unit in range(groups[number])}
            if len(of_units) > 1:
                reason = f"its units own {min(of_units)} to {max(of_units)} indices of {tensor!r} dimension {dim}"
                reasons.setdefault(number, f"{reason}: unequal units cannot be counted")
    return reasons


class _Rules:
    """What each kind of module means for the channels that pass it."""

    def __init__(self, model: nn.Module, calls: Mapping[nn.Module, int]) -> None:
        self._calls = calls
        self._names = {module: name for name, module in model.named_modules()}
        self._parameters = {id(parameter): name for name, parameter in model.named_parameters()}
        self._holders = Counter(_storage(tensor) for module in model.modules() for tensor in _own_tensors(module))

    def obstacle(self, module: nn.Module | nn.Parameter) -> str | None:
        """Why channels that reach this module or operation cannot go; None if it lets them."""
        if tp.ops.module2type(module) == tp.ops.OPTYPE.OUTPUT:
            return "its outputs are the network's outputs"
        if isinstance(module, nn.Parameter):
            return f"parameter {self._parameters.get(id(module))!r}, of no known layer, acts on its channels"
        if module not in self._names:
            return None
        label = f"{type(module).__name__} {self._names[module]!r}"
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            return f"{label} normalises over the channels"
        if not isinstance(module, (*_CONVOLUTIONS, nn.Linear, *_CHANNEL_NORMS, nn.PReLU)):
            return f"{label} is not handled"
        if self._calls[module] > 1:
            return f"{label} runs {self._calls[module]} times in one forward pass"
        if any(self._holders[_storage(tensor)] > 1 for tensor in _own_tensors(module)):
            return f"{label} shares a tensor with another module"
        if isinstance(module, (*_CONVOLUTIONS, nn.Linear)) and "weight" not in module._parameters:
            return f"{label} computes its weight from other parameters"
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.affine:
            return f"{label} has no scale and shift to make a removed channel zero"
        if (
            isinstance(module, _CONVOLUTIONS)
            and module.groups == module.out_channels < module.in_channels
            and module.groups > 1
        ):
            return f"{label} sums {module.in_channels // module.groups} inputs in each of {module.groups} groups"
        return None

    def dimensions(self, module: nn.Module, is_output: bool) -> Iterator[tuple[str, int, int]]:
        """(tensor name, dimension, length) that channels on this side of the module index."""
        weighted = isinstance(module, (*_CONVOLUTIONS, nn.Linear))
        if weighted and not is_output:
            attributes, dim = ("weight",), 1
        elif weighted or isinstance(module, _CHANNEL_NORMS):
            attributes, dim = ("weight", "bias", "running_mean", "running_var"), 0
        else:
            shared = isinstance(module, nn.PReLU) and module.num_parameters == 1
            attributes, dim = ("weight",) if isinstance(module, nn.PReLU) and not shared else (), 0
        prefix = self._names.get(module)
        for attribute in attributes:
            tensor = getattr(module, attribute, None)
            if tensor is not None:
                yield f"{prefix}.{attribute}" if prefix else attribute, dim, tensor.shape[dim]


def _own_tensors(module: nn.Module) -> Iterator[Tensor]:
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        if tensor.numel():
            yield tensor


def _build_graph(bare: Network, coupling: _Coupling, example: Tensor) -> ChannelGraph:
    """Fill groups into the bare network; groups with an obstacle own nothing."""
    group_of = {name: number for number, group in enumerate(coupling.groups) for name in group.layers}
    layers = tuple(
        replace(layer, channel_group=group_of[layer.name], obstacle=coupling.groups[group_of[layer.name]].obstacle)
        if layer.name in group_of
        else layer
        for layer in bare.layers
    )
    owners, tensors = {}, []
    for tensor in bare.tensors:
        counts = []
        for dim, length in enumerate(tensor.shape):
            units = {
                index: unit
                for index, unit in coupling.owners.get((tensor.name, dim), {}).items()
                if coupling.groups[unit[0]].obstacle is None
            }
            if units:
                owners[tensor.name, dim] = np.full((length, 2), -1, dtype=np.int64)
                owners[tensor.name, dim][list(units)] = list(units.values())
            counts.append(tuple(sorted(Counter(number for number, _ in units.values()).items())))
        tensors.append(replace(tensor, owners=tuple(counts)))
    network = replace(bare, tensors=tuple(tensors), layers=layers, groups=coupling.groups)
    return ChannelGraph(network, owners, example)
