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
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
import torch_pruning as tp
from torch import Tensor, nn

from pruning.calibration import Calibration
from pruning.codec import CONVOLUTIONS, DTYPE_CODES, prunable_weights
from pruning.cost import check_example, check_model
from pruning.criteria import require_finite
from pruning.memory import out_of_memory
from pruning.multiplications import Multiplications, count_multiplications
from pruning.outputs import tensors_in
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
)
from pruning.scores import Scores, restrict_graph
from pruning.structure import is_depthwise, output_dim
from pruning.whole_weights import whole_weights
from spaces.criteria import check_criterion
from spaces.layers import ChannelGroup, Layer, Network, StoredTensor
from spaces.policy import check_sparsity
from spaces.size import kept_units
from spaces.whole import require_removal, skipped_layers

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
    "skipped_layers",
    "trace_channels",
]

_KINDS = {
    nn.Conv1d: "conv1d", nn.Conv2d: "conv2d", nn.Conv3d: "conv3d", nn.Linear: "linear",
    nn.ConvTranspose1d: "conv_transpose1d", nn.ConvTranspose2d: "conv_transpose2d",
    nn.ConvTranspose3d: "conv_transpose3d",
}  # fmt: skip
_CHANNEL_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
_NOT_REACHED = "torch-pruning's graph of the network does not reach it"


def trace_channels(model: nn.Module, example_input: Tensor) -> ChannelGraph:
    """Find the groups of output channels that can only be removed together, and try them out.

    Works on a copy in eval mode with gradients, so frozen and training models do as well, and `model`
    stays as it is. Groups that cannot lose channels, and layers outside any group, carry an obstacle;
    a model torch-pruning cannot trace has an obstacle at every layer. Layers that run only in training mode
    (auxiliary heads) are followed too. About a quarter of all units is removed once and compared with the
    mask; groups that differ, or without which training fails, get an obstacle too.

    Args:
        example_input: a batch (N, ...) the model accepts, on the model's device.

    Raises:
        ValueError: no model, an example input that is none, empty or not finite, or that the model does not run on,
            or a model that holds a tensor of a type that safetensors files do not.
    """
    check_model(model)
    check_example(example_input)
    with torch.inference_mode(False):
        example = example_input.detach().clone()
        trial = copy.deepcopy(model).eval()
        try:
            calls, counted = _observe(trial, example)
        except Exception as error:
            raise ValueError(f"the model does not run on the example input: {one_line(error)}") from error
        bare = _bare_network(trial, calls, counted)
        all_run = all(layer.positions for layer in bare.prunable)
        training_calls = Counter() if all_run else _observe_training(trial, example)
        try:
            coupling = _trace_coupling(trial, example, calls | training_calls, bool(training_calls - calls))
        except Exception as error:
            if out_of_memory(error):
                raise
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
        NothingToRemove: channels are asked for, but every layer asked stays whole; the first are named with their
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
    scores = Scores(model, criterion, graph, calibration, seed)
    plan = plan_by_scores(shares, restrict_graph(model, graph, criterion, calibration), scores)
    require_removal([name for name, share in shares.items() if share], plan.skipped)
    return plan


def plan_by_scores(shares: Mapping[str, float], graph: ChannelGraph, scores: Scores) -> RemovalPlan:
    """The plan of `plan_removal` for checked shares, from scores that may be of use for more than this."""
    removed_units = {}
    for number, kept in kept_units(graph.network, shares).items():
        order = np.argsort(scores.group(number), kind="stable")
        removed_units[number] = order[: len(order) - kept]
    return plan_units(graph, removed_units, skipped_layers(graph.network, shares))


def _observe(model: nn.Module, example: Tensor) -> tuple[Counter[nn.Module], Multiplications]:
    """How often each module runs in one forward pass, and what is multiplied in it."""
    with _counted_calls(model) as calls, torch.random.fork_rng(devices=[]):
        return calls, count_multiplications(model, example)


def _observe_training(model: nn.Module, example: Tensor) -> Counter[nn.Module]:
    """How often each module runs where the model takes its training path; none if it fails there."""
    with _counted_calls(model) as calls, torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            _train_containers_(model)(example)
        except Exception:
            return Counter()
        return calls


@contextmanager
def _counted_calls(model: nn.Module) -> Iterator[Counter[nn.Module]]:
    calls: Counter[nn.Module] = Counter()
    hooks = [m.register_forward_hook(lambda module, *_: calls.update([module])) for m in model.modules()]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _train_containers_(model: nn.Module) -> nn.Module:
    """Put modules that hold others into training mode, so that the model takes its training path, and the
    rest into eval mode, so that norms neither need a large batch nor learn from it."""
    for module in model.modules():
        module.training = next(module.children(), None) is not None
    return model


def _bare_network(model: nn.Module, calls: Mapping[nn.Module, int], counted: Multiplications) -> Network:
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
        layers.append(Layer(name, kind, shape, counted.positions.get(name, 0), groups, obstacle=obstacle))
    layers += whole_weights(model, counted.positions)
    unlisted = counted.positions.keys() - {layer.name for layer in layers}
    others = counted.others + sum(counted.positions[name] * model.get_parameter(name).numel() for name in unlisted)
    return Network(tuple(tensors), tuple(layers), (), aliases, others, counted.uncounted)


def _storage(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def _refused(layers: Iterable[Layer], reason: str) -> tuple[Layer, ...]:
    return tuple(replace(layer, obstacle=reason) if layer.prunable else layer for layer in layers)


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


def _trace_coupling(model: nn.Module, example: Tensor, calls: Mapping[nn.Module, int], auxiliary: bool) -> _Coupling:
    """The groups, and the unit each (tensor, dimension) index leaves with.

    Args:
        auxiliary: follow the training path too, which runs more layers.
    """
    modules = {name: model.get_submodule(name.rpartition(".")[0]) for name in prunable_weights(model)}
    links, reached, rooms, mixers = _Links(), {}, {}, {}
    for training in (False, True) if auxiliary else (False,):
        dependencies = _dependency_graph(model, example, training)
        starts = [_output_side(dependencies, m) for m in modules.values() if m in dependencies.module2node]
        found = _reach(dependencies, starts, links)
        rooms |= {side: _room(dependencies, side) for side in found}
        mixers |= dependencies.mixers
        reached |= found
    _join_equal_sides(reached, links)
    _join_convolution_groups(reached, links)
    outputs = {(node.module, _is_output(handler)): elements for (node, handler), elements in reached.items()}
    members, unit_of = _number_units(
        {
            name: [links.find(element) for _, element in sorted(outputs[module, True].items())]
            for name, module in modules.items()
            if (module, True) in outputs
        }
    )
    rules = _Rules(model, calls)
    obstacles: dict[int, str] = {}
    owners: dict[tuple[str, int], dict[int, _Unit]] = defaultdict(dict)
    for (node, handler), elements in reached.items():
        units = {index: unit_of[links.find(element)] for index, element in elements.items()}
        reason = mixers.get(node) or rules.obstacle(node.module)
        room = rooms[node, handler]
        if reason is None and room is not None and not 0 <= min(elements) <= max(elements) < room:
            reason = f"torch-pruning maps its channels beyond those of {node.name}"
        if reason:
            obstacles |= {number: obstacles.get(number, reason) for number, _ in units.values()}
            continue
        for tensor, dim, length in rules.dimensions(node.module, _is_output(handler)):
            owners[tensor, dim].update((index % length, unit) for index, unit in units.items())
    unequal = _unequal_groups(owners, [units for _, units in members])
    groups = []
    for number, (layers, units) in enumerate(members):
        reason = obstacles.get(number) or ("all its channels can only go together" if units < 2 else None)
        groups.append(ChannelGroup(layers, units, reason or unequal.get(number)))
    return _Coupling(tuple(groups), owners)


class _Dependencies(tp.DependencyGraph):
    """torch-pruning's graph, whose guesses at reshapes are only taken where channels are flattened.

    Attributes:
        mixers: node of a reshape that mixes channels with other dimensions -> what it does, in words. No
            channel is followed past it.
    """

    def _build_dependency(self, module2node: Mapping[Any, tp.dependency.Node]) -> None:
        self.mixers = {}
        for node in module2node.values():
            if node.type != tp.ops.OPTYPE.RESHAPE:
                continue
            (source, number), (result,) = node.grad_fn.next_functions[0], node.grad_fn._input_metadata
            before, after = tuple(source._input_metadata[number].shape), tuple(result.shape)
            keeps = _keeps_channels(before, after)
            flattens = before[0] == after[0] and min(len(before), len(after)) == 2
            if keeps or not flattens:
                node.type = tp.ops.OPTYPE.ELEMENTWISE
            if not (keeps or flattens):
                self.mixers[node] = f"a reshape from {before} to {after} mixes its channels with others"
        super()._build_dependency(module2node)


def _keeps_channels(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Whether channels are one dimension before and after a reshape.

    Channels are the second dimension of one shape, or the last of both where everything else is the batch.
    """
    longer, shorter = sorted((before, after), key=len, reverse=True)
    if [length for length in before if length > 1] == [length for length in after if length > 1]:
        return True
    if len(shorter) == 2 and shorter[-1] == longer[-1]:
        return True
    return any(
        many == other[1] and prod(one[:axis]) == other[0]
        for one, other in ((before, after), (after, before))
        for axis, many in enumerate(one)
        if len(other) > 1
    )


def _dependency_graph(model: nn.Module, example: Tensor, training: bool) -> _Dependencies:
    """The graph of the model's eval or training path. Outputs are multiplied by 1, so that a layer that ends
    the network is followed by an output node; the forward function keeps torch-pruning from unpacking the
    batch into arguments."""
    model.requires_grad_(True)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _Dependencies().build_dependency(
            model,
            example,
            forward_fn=lambda network, batch: (_train_containers_(network) if training else network)(batch),
            output_transform=lambda output: [tensor * 1 for tensor in tensors_in(output) if tensor.requires_grad],
            verbose=False,
        )


def _output_side(dependencies: tp.DependencyGraph, module: nn.Module) -> _Side:
    return dependencies.module2node[module], dependencies.get_pruner_of_module(module).prune_out_channels


def _is_output(handler: Callable[..., Any]) -> bool:
    return handler == handler.__self__.prune_out_channels


def _room(dependencies: tp.DependencyGraph, side: _Side) -> int | None:
    """Channels of this side; None for operations, which do not know theirs."""
    node, handler = side
    return dependencies.get_out_channels(node) if _is_output(handler) else dependencies.get_in_channels(node)


def _reach(dependencies: _Dependencies, starts: Iterable[_Side], links: _Links) -> dict[_Side, dict[int, int]]:
    """Follow every output channel along the dependencies: side -> channel -> element of `links`.

    torch-pruning's own walk drops a channel that is reached twice, and with it a coupling; here the two
    elements are joined. Wrong slice mappings can raise indices without end, so none is followed that its
    side has no room for.
    """
    widest = max(length for parameter in dependencies.model.parameters() for length in (*parameter.shape, 1))
    reached: dict[_Side, dict[int, int]] = defaultdict(dict)
    for start in starts:
        channels = _room(dependencies, start)
        pending = [(start, [_Index(c, links.add()) for c in range(channels) if c not in reached[start]])]
        while pending:
            (node, handler), arrived = pending.pop()
            elements, fresh = reached[node, handler], []
            room = 0 if node in dependencies.mixers else _room(dependencies, (node, handler)) or widest
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


def _join_equal_sides(reached: Mapping[_Side, Mapping[int, int]], links: _Links) -> None:
    """Couple what reaches the same channel of a module on different paths."""
    first: dict[tuple[Any, bool, int], int] = {}
    for (node, handler), elements in reached.items():
        for index, element in elements.items():
            links.join(first.setdefault((node.module, _is_output(handler), index), element), element)


def _join_convolution_groups(reached: Mapping[_Side, Mapping[int, int]], links: _Links) -> None:
    """Couple equal local indices across the groups of every grouped convolution, on both its sides."""
    for (node, handler), elements in reached.items():
        module = node.module
        if isinstance(module, CONVOLUTIONS) and module.groups > 1 and not is_depthwise(module):
            length = (module.out_channels if _is_output(handler) else module.in_channels) // module.groups
            first: dict[int, int] = {}
            for index, element in elements.items():
                links.join(first.setdefault(index % length, element), element)


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
        if not isinstance(module, (*CONVOLUTIONS, nn.Linear, *_CHANNEL_NORMS, nn.PReLU)):
            return f"{label} is not handled"
        if self._calls[module] > 1:
            return f"{label} runs {self._calls[module]} times in one forward pass"
        if any(self._holders[_storage(tensor)] > 1 for tensor in _own_tensors(module)):
            return f"{label} shares a tensor with another module"
        if isinstance(module, (*CONVOLUTIONS, nn.Linear)) and "weight" not in module._parameters:
            return f"{label} computes its weight from other parameters"
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.affine:
            return f"{label} has no scale and shift to make a removed channel zero"
        if (
            isinstance(module, CONVOLUTIONS)
            and module.groups == module.out_channels < module.in_channels
            and module.groups > 1
        ):
            return f"{label} sums {module.in_channels // module.groups} inputs in each of {module.groups} groups"
        return None

    def dimensions(self, module: nn.Module, is_output: bool) -> Iterator[tuple[str, int, int]]:
        """(tensor name, dimension, length) that channels on this side of the module index."""
        dims = {}
        if isinstance(module, (*CONVOLUTIONS, nn.Linear)):
            dims = {"weight": output_dim(module), "bias": 0} if is_output else {"weight": 1 - output_dim(module)}
        elif isinstance(module, _CHANNEL_NORMS):
            dims = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), 0)
        elif isinstance(module, nn.PReLU) and module.num_parameters > 1:
            dims = {"weight": 0}
        prefix = self._names.get(module)
        for attribute, dim in dims.items():
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
