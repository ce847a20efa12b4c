"""The user's own norm classes: buffers `running_mean` and `running_var` that training moves by a `momentum`."""

from __future__ import annotations

import re
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from pruning.copying import copy_model
from pruning.devices import device_of, forked_rng, wide
from pruning.memory import out_of_memory
from pruning.trees import NetworkInputs, run

STATISTICS = ("running_mean", "running_var")
HALF = 0.5
"""At this momentum it does not matter whether momentum is the share of the new or of the old value."""
TOLERANCE = 1e-3
"""By how much a moved statistic may differ from the mean of old and new, relative to the larger of that mean and 1."""
_NAMES = re.compile(r"running|moving|mean|var|avg|std")


class OwnNorm(nn.Module):
    """The interface that `has_own_statistics` finds in a module; for type checkers only."""

    momentum: float
    num_batches_tracked: object
    running_mean: Tensor
    running_var: Tensor


def has_own_statistics(module: nn.Module) -> TypeGuard[OwnNorm]:
    """Whether a module has the interface of a norm and is not one of PyTorch's."""
    kept = [module._buffers.get(name) for name in STATISTICS]
    return (
        not isinstance(module, _NormBase)
        and type(vars(module).get("momentum")) in (int, float)
        and all(isinstance(one, Tensor) and one.is_floating_point() and not is_lazy(one) for one in kept)
    )


class OwnStatistics:
    """The plain average, over all passes, of what a norm computes in its own way and shape.

    At a momentum of a half, its statistics end halfway between the former ones and the batch's, whichever of the two
    momentum is the share of. The first pass checks this; a norm that moves otherwise, or not at all, is left alone.
    """

    def __init__(self, norm: OwnNorm) -> None:
        self._norm, self._momentum, self._calls, self._fits = norm, norm.momentum, 0, True
        self._sums: dict[str, Tensor] = {}
        others = ((name, one) for name, one in norm.named_buffers(recurse=False) if name not in STATISTICS)
        self._others = {name: one.clone() for name, one in others}
        self._hooks = [
            norm.register_forward_pre_hook(self._before, with_kwargs=True),
            norm.register_forward_hook(self._after, with_kwargs=True),
        ]

    def _before(self, norm: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        self._start(0.0)
        if self._calls == 0:
            norm.forward(*args, **kwargs)
            from_nothing = self._now()
            self._start(1.0)
            norm.forward(*args, **kwargs)
            from_one = self._now()
            self._fits = all(_apart_by_half(from_nothing[name], from_one[name]) for name in STATISTICS)
            self._start(0.0)

    def _after(self, norm: nn.Module, args: object, kwargs: object, output: object) -> None:
        self._calls += 1
        for name, found in self._now().items():
            self._sums[name] = self._sums.get(name, 0) + wide(found) / HALF

    def _start(self, value: float) -> None:
        self._norm.momentum = HALF
        for name in STATISTICS:
            getattr(self._norm, name).fill_(value)

    def _now(self) -> dict[str, Tensor]:
        return {name: getattr(self._norm, name).clone() for name in STATISTICS}

    def take_(self) -> bool:
        """Give the norm the average; returns whether there was one."""
        if not self._calls or not self._fits:
            return False
        for name, total in self._sums.items():
            getattr(self._norm, name).copy_(total / self._calls)
        return True

    def leave(self) -> None:
        """Stop watching; momentum and other buffers, such as counters, are restored."""
        for hook in self._hooks:
            hook.remove()
        self._norm.momentum = self._momentum
        for name, one in self._others.items():
            getattr(self._norm, name).copy_(one)


def _apart_by_half(from_nothing: Tensor, from_one: Tensor) -> bool:
    """Whether values that started one apart are now a half apart."""
    slack = TOLERANCE * from_nothing.abs().clamp_min(1)
    return bool((((from_one - from_nothing) - HALF).abs() <= slack).all())


@torch.no_grad()
def left_as_trained(model: nn.Module, example_input: NetworkInputs) -> list[str]:
    """Names of modules with statistics that training moves and `OwnStatistics` cannot average; `model` is not changed.

    Statistics are buffers with those names in classes that are not PyTorch's norms. A model that fails in training mode
    tells nothing.
    """
    names = [
        name for name, one in model.named_modules() if not isinstance(one, _NormBase | torch.jit.ScriptModule)
        and not type(one).__module__.startswith("torch.nn.") and _statistics(one)
    ]  # fmt: skip
    if not names:
        return []
    trial = copy_model(model)
    modules = {name: trial.get_submodule(name) for name in names}
    before = {name: _statistics(module) for name, module in modules.items()}
    with forked_rng(device_of(trial, example_input)):
        try:
            run(trial.train(), example_input)
            moved = {name: module for name, module in modules.items() if _moved(module, before[name])}
            watched = {name: OwnStatistics(module) for name, module in moved.items() if has_own_statistics(module)}
            run(trial, example_input)
        except Exception as error:
            if out_of_memory(error):
                raise
            return []
    return [name for name in moved if name not in watched or not watched[name].take_()]


def _statistics(module: nn.Module) -> dict[str, Tensor]:
    found = module.named_buffers(recurse=False)
    return {name: one.clone() for name, one in found if one.is_floating_point() and _NAMES.search(name)}


def _moved(module: nn.Module, before: dict[str, Tensor]) -> bool:
    now = dict(module.named_buffers(recurse=False))
    return any(name in now and not torch.equal(now[name], old) for name, old in before.items())
