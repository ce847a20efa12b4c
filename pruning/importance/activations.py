"""What layers take in: their inputs on calibration data, seen as the columns of a linear layer.

A convolution is a linear layer on patches: row i of its patches holds the input values one output position is
computed from, in the order of `weight.flatten(1)`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv1d_weight, conv2d_weight, conv3d_weight
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode

from pruning.batches import examples_at_once
from pruning.calibration import SCORE_BATCH, Calibration
from pruning.devices import wide
from pruning.modules import Prunable, module_of, observed, prunable_weights
from pruning.multiplications import eager
from pruning.trees import run

_GRADIENTS_OF_WEIGHTS = {1: conv1d_weight, 2: conv2d_weight, 3: conv3d_weight}
See = Callable[[str, Prunable, Tensor], None]
"""Told of a layer, its module, and the module's input."""


def observe_inputs(
    model: nn.Module,
    layers: Collection[str],
    calibration: Calibration,
    see: See,
    in_parts: bool = False,
) -> None:
    """Call `see(layer, its module, its input)` for every call of these layers on every batch, in eval mode.

    Of linear layers whose module is never called, such as attention's output projection, it is called for every product
    with their weight instead. With `in_parts`, batches of large examples are taken in parts, for what is summed over
    examples anyway.
    """
    called = set()

    def hook_of(name: str) -> Callable[[Prunable, tuple[Tensor, ...]], None]:
        def meet(module: Prunable, inputs: tuple[Tensor, ...]) -> None:
            called.add(name)
            see(name, module, inputs[0].detach())

        return meet

    with observed(model) as network, torch.no_grad(), eager():
        at_once = examples_at_once(network, calibration.inputs, SCORE_BATCH) if in_parts else SCORE_BATCH
        parts = [part for inputs, _ in calibration.batches() for part in inputs.split(at_once)]
        modules = {name: module_of(network, name) for name in layers}
        hooks = [module.register_forward_pre_hook(hook_of(name)) for name, module in modules.items()]
        for part in parts:
            run(network, part)
        for hook in hooks:
            hook.remove()
        rest = {name: m for name, m in modules.items() if name not in called and isinstance(m, nn.Linear)}
        if rest:
            with _Products(rest, see):
                for part in parts:
                    run(network, part)


class _Products(TorchDispatchMode):
    """Calls `see(layer, its module, what its weight is multiplied with)` for every matrix product with one of them."""

    def __init__(self, modules: Mapping[str, nn.Linear], see: See) -> None:
        super().__init__()
        self._of = {module.weight.data_ptr(): (name, module) for name, module in modules.items()}
        self._see = see

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if function.overloadpacket.__name__ in ("mm", "addmm"):
            inputs, factor = args[-2:]
            found = self._of.get(factor.data_ptr())
            if found is not None and factor.shape == found[1].weight.shape[::-1]:
                self._see(*found, inputs.detach())
        return out


def activation_scores(model: nn.Module, calibration: Calibration) -> dict[str, Tensor]:
    """|w| times the L2 norm of what it multiplies over all examples and positions (Wanda, arXiv 2306.11695).

    Returns layer -> tensor of the weight's shape; 0 where the forward pass does not multiply it.
    """
    weights = prunable_weights(model)
    energies = {name: torch.zeros_like(wide(weight.detach())) for name, weight in weights.items()}

    def see(name: str, module: Prunable, inputs: Tensor) -> None:
        energies[name] += wide(input_energy(module, inputs))

    observe_inputs(model, list(weights), calibration, see, in_parts=True)
    return {name: weights[name].detach().abs() * energies[name].sqrt().to(weights[name]) for name in weights}


def input_energy(module: Prunable, inputs: Tensor) -> Tensor:
    """Sum of squares of the values each element of the weight multiplies (of the weight's shape, at least 32 bit).

    Of a convolution it is the derivative, by the weight, of the outputs' sum on squared inputs. Of a transposed one it
    is the sum over the input channel, whatever the padding cuts off.
    """
    squares = inputs.to(torch.promote_types(inputs.dtype, torch.float32)).square()
    if isinstance(module, nn.Linear):
        return squares.reshape(-1, module.in_features).sum(0).expand(module.weight.shape)
    dimensions = module.weight.ndim - 2
    if module.transposed:  # each input multiplies the whole kernel of its channel
        channels = squares.movedim(-1 - dimensions, 0).flatten(1).sum(1)
        return channels.reshape(-1, *[1] * (dimensions + 1)).expand(module.weight.shape)
    squares = _padded(module, squares if squares.ndim == dimensions + 2 else squares[None])
    shape = (module.groups, *module.weight.shape[1:])  # all output channels of a group read the same
    positions = [
        (size - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel, stride, dilation in zip(
            squares.shape[2:], module.kernel_size, module.stride, module.dilation, strict=True
        )
    ]
    ones = squares.new_ones(len(squares), module.groups, *positions)
    of_group = _GRADIENTS_OF_WEIGHTS[dimensions](squares, shape, ones, module.stride, 0, module.dilation, module.groups)
    return of_group.repeat_interleave(module.out_channels // module.groups, dim=0)


class Patches:
    """The rows a layer multiplies its weight with, over examples, then output positions.

    Only rows asked for are gathered. Not for convolutions in several groups.

    Attributes:
        count: how many rows there are.
    """

    def __init__(self, module: Prunable, inputs: Tensor) -> None:
        if isinstance(module, nn.Linear):
            self._patches = inputs.reshape(-1, module.in_features)
            self._shape: tuple[int, ...] = (len(self._patches),)
            self.count = len(self._patches)
            return
        dimensions = module.weight.ndim - 2
        view = _padded(module, inputs if inputs.ndim == dimensions + 2 else inputs[None])
        for dim in range(dimensions):
            reach = module.dilation[dim] * (module.kernel_size[dim] - 1) + 1
            view = view.unfold(2 + dim, reach, module.stride[dim])[..., :: module.dilation[dim]]
        self._patches = view  # (examples, channels, *positions, *kernel), no copy
        self._shape = (len(view), *view.shape[2 : 2 + dimensions])
        self.count = prod(self._shape)

    def rows(self, numbers: Tensor) -> Tensor:
        """The rows of these numbers (m,), as (m, weight.flatten(1).shape[1])."""
        example, *positions = torch.unravel_index(numbers, self._shape)
        index: tuple[Tensor | slice, ...] = (example, slice(None), *positions)
        return self._patches[index].flatten(1)


def _padded(module: _ConvNd, inputs: Tensor) -> Tensor:
    """The inputs with the convolution's own padding around them."""
    padding = module.padding
    if padding == "valid":
        return inputs
    around: list[int] = []
    for dim in reversed(range(module.weight.ndim - 2)):
        if isinstance(padding, str):  # "same"
            total = module.dilation[dim] * (module.kernel_size[dim] - 1)
            around += [total // 2, total - total // 2]
        else:
            around += [padding[dim]] * 2
    return F.pad(inputs, around, mode="constant" if module.padding_mode == "zeros" else module.padding_mode)
