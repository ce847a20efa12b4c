"""Which output channels belong together, read from the labels of a followed pass."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from pruning.channels import narrow_attention, narrow_norms
from pruning.channels.call import PassNotes
from pruning.channels.following import Follower, followed, settle
from pruning.channels.labels import Labels
from pruning.modules import CONVOLUTIONS, is_own, model_tensors, output_dim, prunable_weights, train_containers_
from pruning.outputs import tensors_in
from pruning.trees import NetworkInputs, run
from spaces.network import ChannelGroup

_CHANNEL_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
Unit = tuple[int, int]
"""Number of a group, and number of a unit in it."""


@dataclass(frozen=True)
class Coupling:
    """Groups of output channels that can only be removed together.

    Attributes:
        groups: in the order of their first layers.
        owners: (tensor, dimension) -> index in it -> the unit it leaves with.
        lengths: (tensor, dimension) -> its number of indices.
        hints: number of a group -> the likely cause if its removal goes wrong.
        sizes: attribute of a module -> index below the number that it holds -> the unit it leaves with.
        divided: number of a group -> the modules with attention that divide its channels.
        unused: layer in no group -> why its outputs are not known.
        zeroed: buffers that become zero where channels are masked.
    """

    groups: tuple[ChannelGroup, ...]
    owners: Mapping[tuple[str, int], Mapping[int, Unit]]
    lengths: Mapping[tuple[str, int], int]
    hints: Mapping[int, str]
    sizes: Mapping[tuple[str, int], Mapping[int, Unit]]
    divided: Mapping[int, frozenset[str]]
    unused: Mapping[str, str]
    zeroed: frozenset[str]


def couple(
    model: nn.Module,
    example: NetworkInputs,
    calls: Mapping[nn.Module, int],
    auxiliary: bool,
    schemes: Mapping[str, int],
) -> Coupling:
    """Follow the channels of a model through its pass in eval mode.

    Args:
        calls: how often each module runs.
        auxiliary: also follow the training path, which runs more layers.
        schemes: name of a module -> which part of the dimensions that it divides shrinks (see `pruning.channels.call`).
    """
    modules = {name: model.get_submodule(name.rpartition(".")[0]) for name in prunable_weights(model)}
    labels = Labels()
    follower = Follower(model_tensors(model), labels, schemes)
    for training in (False, True) if auxiliary else (False,):
        network = train_containers_(model) if training else model.eval()
        with followed(network, follower), torch.random.fork_rng(devices=[]):
            output = run(network, example)
        for tensor in tensors_in(output):
            known = follower.notes.elements_of(tensor)
            if known is not None:
                labels.block(known, "its outputs are the network's outputs")
    notes = follower.notes
    settle(notes)
    places = list(notes.tensors.of_indices())
    outputs = {
        name: notes.tensors.index_roots(name, output_dim(module))
        for name, module in modules.items()
        if output_dim(module) in notes.emitted.get(name, ())
    }
    members, unit_of = _number_units(outputs)
    rules = _Rules(model, calls)
    reasons = labels.blocks()
    obstacles = _by_group(reasons, unit_of)
    owners: dict[tuple[str, int], dict[int, Unit]] = {}
    for name, dim, roots in places:
        units = {index: unit_of[root] for index, root in enumerate(roots.tolist()) if root in unit_of}
        reason = rules.obstacle(name, dim) if units else None
        if reason:
            obstacles |= {number: obstacles.get(number, reason) for number, _ in units.values()}
        elif units:
            owners[name, dim] = units
    hints = _by_group(labels.hints(), unit_of)
    sizes = _sizes(notes, unit_of)
    unequal = _unequal_groups(owners, [units for _, units in members])
    groups = []
    for number, (layers, count) in enumerate(members):
        reason = obstacles.get(number)
        if reason is None and count < 2:
            reason = "all its channels can only go together" + (f": {hints[number]}" if number in hints else "")
        groups.append(ChannelGroup(layers, count, reason or unequal.get(number)))
    unused = {name: f"its weight is not used as it is{notes.computed[name]}" for name in notes.computed}
    divisors = {label for array in notes.divisors for label in np.unique(array.numpy()).tolist()}
    zeroed = frozenset(
        name
        for name, buffer in model.named_buffers()
        if isinstance(buffer, Tensor) and not rules.is_norm(name) and not notes.tensors.any_of(name, divisors)
    )
    lengths = {(name, dim): len(roots) for name, dim, roots in places}
    lengths |= {place: len(units) for place, units in sizes.items()}
    divided = _divided(notes, unit_of)
    return Coupling(tuple(groups), owners, lengths, hints, sizes, divided, unused, zeroed)


def _sizes(notes: PassNotes, unit_of: Mapping[int, Unit]) -> dict[tuple[str, int], dict[int, Unit]]:
    """Attributes whose number is the length of dimensions that all lose the same units."""
    found = {}
    for name, size in notes.sizes.items():
        first, *others = (notes.labels.roots(line) for line in size.lines)
        roots = first.tolist()
        if all(root in unit_of for root in roots) and all(torch.equal(first, other) for other in others):
            found[name, 0] = {index: unit_of[root] for index, root in enumerate(roots)}
    return found


def _divided(notes: PassNotes, unit_of: Mapping[int, Unit]) -> dict[int, frozenset[str]]:
    found: defaultdict[int, set[str]] = defaultdict(set)
    for split in notes.splits:
        if split.module in notes.attending:
            for root in np.unique(notes.labels.roots(split.labels).numpy()).tolist():
                if root in unit_of:
                    found[unit_of[root][0]].add(split.module)
    return {number: frozenset(modules) for number, modules in found.items()}


def _by_group(reasons: Mapping[int, str], unit_of: Mapping[int, Unit]) -> dict[int, str]:
    found: dict[int, str] = {}
    for root, reason in reasons.items():
        if root in unit_of:
            found.setdefault(unit_of[root][0], reason)
    return found


def _number_units(outputs: Mapping[str, list[int]]) -> tuple[list[tuple[tuple[str, ...], int]], dict[int, Unit]]:
    """Put layers that share a component into one group, and number its components in order of appearance.

    Args:
        outputs: layer -> component of each of its output channels.

    Returns:
        (layers, units) of each group, in the order of its first layer, and the unit of each component.
    """
    number_of: dict[int, int] = {}
    members: dict[int, list[str]] = {}
    for number, (name, components) in enumerate(outputs.items()):
        members[number] = [name]
        for old in sorted({number_of[c] for c in components if c in number_of}):
            first, second = sorted((old, number))
            members[first] += members.pop(second)
            number_of |= {c: first for c, n in number_of.items() if n == second}
            number = first
        number_of |= dict.fromkeys(components, number)
    groups: list[tuple[tuple[str, ...], int]] = []
    unit_of: dict[int, Unit] = {}
    order = {name: place for place, name in enumerate(outputs)}
    in_order = [sorted(names, key=order.__getitem__) for names in members.values()]
    for names in sorted(in_order, key=lambda n: order[n[0]]):
        of_group = dict.fromkeys(component for name in names for component in outputs[name])
        unit_of |= {component: (len(groups), unit) for unit, component in enumerate(of_group)}
        groups.append((tuple(names), len(of_group)))
    return groups, unit_of


def _unequal_groups(owners: Mapping[tuple[str, int], Mapping[int, Unit]], groups: list[int]) -> dict[int, str]:
    """Groups whose units do not own equally many indices of some tensor dimension -> the reason."""
    reasons: dict[int, str] = {}
    for (tensor, dim), units in owners.items():
        sizes = Counter(units.values())
        for number in {number for number, _ in sizes}:
            of_units = {sizes[number, unit] for unit in range(groups[number])}
            if len(of_units) > 1:
                reason = f"its units own {min(of_units)} to {max(of_units)} indices of {tensor!r} dimension {dim}"
                reasons.setdefault(number, f"{reason}: unequal units cannot be counted")
    return reasons


class _Rules:
    """What each kind of module means for the channels that index its tensors."""

    def __init__(self, model: nn.Module, calls: Mapping[nn.Module, int]) -> None:
        self._calls = calls
        self._modules = dict(model.named_modules())
        self._holders = Counter(id(t) for module in self._modules.values() for t in _own_tensors(module))

    def is_norm(self, tensor: str) -> bool:
        return isinstance(self._modules[tensor.rpartition(".")[0]], _CHANNEL_NORMS)

    def obstacle(self, tensor: str, dim: int) -> str | None:
        """Why indices of this dimension cannot be removed; None if they can. Dimension -1 stands for mixed elements."""
        path, _, attribute = tensor.rpartition(".")
        module = self._modules[path]
        label = f"{type(module).__name__} {path!r}" if path else type(module).__name__
        if dim < 0:
            return f"elements of {tensor!r} follow its channels in no single dimension"
        if any(self._holders[id(own)] > 1 for own in _own_tensors(module)):
            return f"{label} shares a tensor with another module"
        handled = self._handled(module, attribute, dim)
        if handled is False:
            return f"{label} is not handled"
        if handled and self._calls[module] > 1:
            return f"{label} runs {self._calls[module]} times in one forward pass"
        if isinstance(module, CONVOLUTIONS):
            return self._of_convolution(module, label)
        return None

    @staticmethod
    def _handled(module: nn.Module, attribute: str, dim: int) -> bool | None:
        """None for modules that are not library layers, since their operations were followed."""
        if isinstance(module, (*CONVOLUTIONS, nn.Linear)):
            return dim < 2 and attribute in ("weight", "bias")
        if isinstance(module, nn.RNNBase):
            return attribute.startswith("weight_ih_l0") and dim == 1
        if isinstance(module, nn.RNNCellBase):
            return attribute == "weight_ih" and dim == 1
        if isinstance(module, nn.Embedding):
            return dim == 1 and module.max_norm is None
        if isinstance(module, (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)):
            return narrow_norms.can_narrow(module)
        if isinstance(module, nn.MultiheadAttention):
            return attribute == "in_proj_weight" and dim == 1 and narrow_attention.can_narrow(module)
        if isinstance(module, (*_CHANNEL_NORMS, nn.PReLU)):
            return True
        return None if is_own(module) else False

    @staticmethod
    def _of_convolution(module: _ConvNd, label: str) -> str | None:
        if module.groups == module.out_channels < module.in_channels and module.groups > 1:
            return f"{label} sums {module.in_channels // module.groups} inputs in each of {module.groups} groups"
        return None


def _own_tensors(module: nn.Module) -> Iterator[Tensor]:
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        if tensor.numel():
            yield tensor
