"""Facts about the modules of a network: which weights are prunable, and what their dimensions mean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from pruning.copying import copy_model
from pruning.devices import device_of, forked_rng
from pruning.outputs import describe, tensors_in
from pruning.trees import Tree, contents
from spaces.network import SECOND, Inputs

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
Prunable = _ConvNd | nn.Linear
"""A module whose weight masks may act on."""


@contextmanager
def observed(model: nn.Module) -> Iterator[nn.Module]:
    """A copy in eval mode to examine; the caller's model and the global random state are not changed.

    Dropout is off and BatchNorm keeps its statistics, so that the same model gives the same scores.
    """
    with torch.inference_mode(False), forked_rng(device_of(model, torch.empty(0))):
        torch.default_generator.manual_seed(0)
        yield copy_model(model).eval()


def prunable_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that masks may act on, in model order: those of convolutions (transposed ones included) and linear
    layers.
    """
    modules = {name: module for name, module in model.named_modules() if isinstance(module, (*CONVOLUTIONS, nn.Linear))}
    owners = {f"{name}.weight" if name else "weight" for name in modules}
    return {name: parameter for name, parameter in model.named_parameters() if name in owners}


def inputs_of_weights(model: nn.Module) -> dict[str, Inputs]:
    """Where the inputs of each prunable weight lie."""
    return {name: inputs_of(module_of(model, name)) for name in prunable_weights(model)}


def module_of(model: nn.Module, weight: str) -> Prunable:
    """The module of a prunable weight.

    Raises:
        ValueError: the weight belongs to another kind of module.
        AttributeError: there is no such module.
    """
    module = model.get_submodule(weight.rpartition(".")[0])
    if not isinstance(module, Prunable):
        kind = type(module).__name__
        raise ValueError(f"{weight!r} belongs to a {kind}: only weights of convolutions and linear layers are pruned")
    return module


def check_model(model: object) -> None:
    """Raise `ValueError` unless it is a `torch.nn.Module`."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def check_example(example_input: object) -> None:
    """Raise `ValueError` unless it is a batch of at least one example, all of it finite."""
    if not isinstance(example_input, Tensor | Tree):
        raise ValueError(f"the example input must be a tensor (N, ...), got {type(example_input).__name__}")
    tensors = list(tensors_in(contents(example_input)))
    if not len(tensors) or all(tensor.dim() == 0 or tensor.numel() == 0 for tensor in tensors):
        raise ValueError(f"the example input is {describe(contents(example_input))}: it needs at least one example")
    if not all(torch.isfinite(tensor).all() for tensor in tensors):
        raise ValueError("the example input holds NaN or infinite values: give a finite one")


def train_containers_(model: nn.Module) -> nn.Module:
    """Put modules that hold others into training mode, so that the model takes its training path.

    All others go into eval mode, so that norms neither need a large batch nor learn from it.
    """
    for module in model.modules():
        module.training = next(module.children(), None) is not None
    return model


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, including those outside the state dict: name -> tensor, under the first name of each."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def is_own(module: nn.Module) -> bool:
    """Whether a module is the user's: it holds tensors but is not a PyTorch layer, whose sizes are attributes."""
    first = next(cls for cls in type(module).__mro__ if cls.__module__.startswith("torch.nn."))
    return first in (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


def is_depthwise(module: _ConvNd) -> bool:
    """Whether a convolution, transposed or not, has one input and one output channel in each of its groups."""
    return module.groups == module.in_channels == module.out_channels > 1


def output_dim(module: nn.Module) -> int:
    """The dimension of a module's weight that its output channels index.

    It is 1 for transposed convolutions, whose weights are (inputs, outputs / groups, ...), so that each index is one
    channel in every group. For a depthwise one, whose only full dimension is 0, it is 0 as everywhere else.
    """
    return int(isinstance(module, _ConvNd) and module.transposed and not is_depthwise(module))


def inputs_of(module: nn.Module) -> Inputs:
    """Where the inputs of a module's weight are, along which patterns `N:M` run."""
    return Inputs(0, module.groups) if isinstance(module, _ConvNd) and output_dim(module) else SECOND
