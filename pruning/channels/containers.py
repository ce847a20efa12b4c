"""Tries groups of channels inside the modules that hold them, all in one forward pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pruning.channels.graph import ChannelGraph
from pruning.channels.plan import RemovalPlan
from pruning.channels.removal import comparable, difference_of, one_line, outputs_of, raise_lack, zero_removed_
from pruning.channels.structure import Structure, apply_structure
from pruning.copying import copy_model
from pruning.modules import model_tensors
from spaces.network import Network

MOST_PASSES = 4.0
"""The most multiplications that all tried modules may take together, in forward passes of the network."""


@dataclass(frozen=True)
class Verdicts:
    """What trying groups inside their modules showed; nothing is known of groups that are in neither.

    Attributes:
        failing: group -> how its module fails to run without some of its units. The network then fails too.
        suspects: groups whose module's outputs differ from those with the mask. The network's outputs may still agree.
    """

    failing: dict[int, str] = field(default_factory=dict)
    suspects: set[int] = field(default_factory=set)


def try_in_containers(
    model: nn.Module, graph: ChannelGraph, calls: Mapping[nn.Module, int], plans: Mapping[int, RemovalPlan]
) -> Verdicts:
    """Remove each group alone, from a copy of the smallest module that holds all of its tensors and runs exactly once.

    One pass of the network gives every such module its inputs.

    Args:
        model: in eval mode; half precision becomes 32 bit.
        calls: how often each of its modules runs.
        plans: group -> what to remove of this group alone; the first ones are tried first.
    """
    modules = dict(model.named_modules())
    owners: dict[int, set[str]] = {
        number: {_owner(name) for name in plan.structure.kept} for number, plan in plans.items()
    }
    containers = _within_budget({n: _container(paths, modules, calls) for n, paths in owners.items()}, graph.network)
    held: defaultdict[str, list[int]] = defaultdict(list)
    owned: defaultdict[str, list[int]] = defaultdict(list)
    for number, path in containers.items():
        held[path].append(number)
        for owner in owners[number]:
            owned[owner].append(number)
    verdicts = Verdicts()
    outside: set[int] = set()
    active: list[str] = []
    trying = False  # copies of a module have its hooks

    def enter(path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal trying
        if trying:
            return
        active.append(path)
        outside.update(number for number in owned[path] if containers[number] not in active)
        trying = True
        try:
            for number in held[path]:
                _try_in(module, path, number, plans[number], (args, kwargs), verdicts)
        finally:
            trying = False

    def leave(*_: Any) -> None:
        if not trying:
            active.pop()

    handles = []
    for path in {*held, *owned}:
        handles.append(modules[path].register_forward_pre_hook(partial(enter, path), with_kwargs=True))
        handles.append(modules[path].register_forward_hook(leave))
    try:
        outputs_of(model, graph.example_input)
    finally:
        for handle in handles:
            handle.remove()
    failing = {number: reason for number, reason in verdicts.failing.items() if number not in outside}
    return Verdicts(failing, verdicts.suspects - outside)


def _owner(tensor: str) -> str:
    return tensor.rpartition(".")[0]


def _container(paths: set[str], modules: Mapping[str, nn.Module], calls: Mapping[nn.Module, int]) -> str | None:
    """The innermost module that holds all of these and runs once; None if that is the network itself."""
    levels = zip(*(path.split(".") for path in paths), strict=False)
    common = [names[0] for names in takewhile(lambda names: len(set(names)) == 1, levels)]
    while any(common):
        path = ".".join(common)
        if calls.get(modules[path], 0) == 1:
            return path
        common = common[:-1]
    return None


def _within_budget(containers: Mapping[int, str | None], network: Network) -> dict[int, str]:
    """Containers that are cheap enough to run, group by group, until the passes are used up."""
    costs = {layer.name: layer.positions * layer.numel for layer in network.layers}
    total, left = max(sum(costs.values()), 1), MOST_PASSES
    shares = {
        path: sum(cost for name, cost in costs.items() if name.startswith(f"{path}.")) / total
        for path in {*containers.values()}
        if path is not None
    }
    chosen = {}
    for number, path in containers.items():
        if path is not None and 2 * shares[path] <= left:
            left -= 2 * shares[path]
            chosen[number] = path
    return chosen


def _try_in(
    module: nn.Module, path: str, number: int, plan: RemovalPlan, inputs: tuple[Any, Any], verdicts: Verdicts
) -> None:
    """Compare the module without the plan's channels with the module in which they are masked.

    A module that cannot be copied by itself is skipped.
    """
    failure, kept = None, {name.removeprefix(f"{path}."): dims for name, dims in plan.structure.kept.items()}
    try:
        small = apply_structure(module, Structure(kept))
        try:
            actual = _run(small, inputs)
        except Exception as error:
            raise_lack(error)
            failure = f"{type(module).__name__} {path!r} does not run with fewer of its channels: {one_line(error)}"
        masked = copy_model(module)
        zero_removed_({f"{path}.{name}": tensor for name, tensor in model_tensors(masked).items()}, plan)
        expected = _run(masked, inputs)
    except Exception as error:
        raise_lack(error)
        return
    if failure is not None:
        verdicts.failing[number] = failure
    elif [tensor.shape for tensor in expected] == [tensor.shape for tensor in actual] and difference_of(
        expected, actual
    ):
        verdicts.suspects.add(number)


def _run(module: nn.Module, inputs: tuple[Any, Any]) -> list[Tensor]:
    args, kwargs = tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, inputs)
    with torch.random.fork_rng(devices=[]):
        return comparable(module(*args, **kwargs))
