"""What is left of a network after channels were removed, as data from which it can be rebuilt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from pruning.channels import narrow_attention, narrow_norms
from pruning.copying import AnyModule, copy_model
from pruning.modules import is_depthwise, is_own, model_tensors
from spaces.validation import unknown

STRUCTURE_VERSION = 1


@dataclass(frozen=True)
class Structure:
    """The indices that stay, for every tensor dimension that shrinks.

    Attributes:
        kept: state_dict name -> dimension -> sorted kept indices of the dense tensor. Dimensions and tensors that stay
            whole are absent, so an empty mapping is the dense model. An attribute of a module that holds the length
            of such a dimension, like a number of heads, counts as a tensor of that length.

    Raises:
        ValueError: a name that is not text, or indices that are not whole numbers >= 0 in strictly rising order, at
            least one for each dimension.

    >>> Structure({"conv.weight": {0: (0, 2)}}).to_dict()
    {'version': 1, 'kept': {'conv.weight': {'0': [0, 2]}}}
    """

    kept: Mapping[str, Mapping[int, tuple[int, ...]]]

    def __post_init__(self) -> None:
        if not isinstance(self.kept, Mapping):
            raise ValueError(f"kept must map tensor names to dimensions, got {type(self.kept).__name__}")
        checked = {name: _checked_dimensions(name, dimensions) for name, dimensions in self.kept.items()}
        object.__setattr__(self, "kept", checked)

    def to_dict(self) -> dict[str, Any]:
        """Plain data with a `version`, sorted by tensor name; the inverse of `from_dict`."""
        kept = {
            name: {str(dim): list(indices) for dim, indices in sorted(dimensions.items())}
            for name, dimensions in sorted(self.kept.items())
        }
        return {"version": STRUCTURE_VERSION, "kept": kept}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Structure:
        """Read what `to_dict` wrote; unknown keys, other versions and bad indices raise `ValueError`."""
        if not isinstance(data, Mapping):
            raise ValueError(f"structure must be an object, got {type(data).__name__}")
        for key in data:
            if key not in ("version", "kept"):
                raise ValueError(unknown("structure key", key, ("version", "kept")))
        version = data.get("version")
        if isinstance(version, bool) or version != STRUCTURE_VERSION:
            raise ValueError(f"structure version must be {STRUCTURE_VERSION}, got {version!r}")
        if not isinstance(data.get("kept"), Mapping):
            raise ValueError("structure has no 'kept': add {tensor: {dimension: [indices that stay]}}")
        return cls({name: _parsed_dimensions(name, dimensions) for name, dimensions in data["kept"].items()})


def apply_structure(model: AnyModule, structure: Structure) -> AnyModule:
    """A new model whose tensors hold only the kept indices and whose modules have the new sizes.

    Applied to a newly built dense model and followed by `load_state_dict(strict=True)`, it reproduces a shrunk model.
    Data type, `requires_grad`, training flags and memory format are kept; `model` is not changed.

    Raises:
        ValueError: a tensor that the model does not have (nearest match named), a dimension or index out of range, or a
            module that cannot change its size (only convolutions, transposed ones included, linear layers, norms,
            `nn.MultiheadAttention` between other layers, what takes channels in recurrent layers, and PReLU can).
    """
    state = model_tensors(model)
    for name, dimensions in structure.kept.items():
        size = None if name in state else _size(model, name)
        if name not in state and size is None:
            raise ValueError(unknown("tensor", name, state))
        _check_range(name, tuple(state[name].shape) if size is None else (size,), dimensions)
    small = with_indices(model, structure.kept)
    for path in dict.fromkeys(name.rpartition(".")[0] for name in structure.kept if name in state):
        _update_sizes(small.get_submodule(path))
    for name, dimensions in structure.kept.items():
        if name not in state:
            path, _, attribute = name.rpartition(".")
            setattr(small.get_submodule(path), attribute, len(dimensions[0]))
    return small


def _size(model: nn.Module, name: str) -> int | None:
    """The whole number that an attribute MODULE.ATTRIBUTE of a user's module holds; None if there is none."""
    path, _, attribute = name.rpartition(".")
    module = dict(model.named_modules()).get(path)
    held = None if module is None or not is_own(module) else vars(module).get(attribute)
    return held if type(held) is int else None


def with_indices(model: AnyModule, indices: Mapping[str, Mapping[int, Sequence[int] | np.ndarray]]) -> AnyModule:
    """A copy of `model` whose tensors hold these indices, in this order; the sizes that modules store are not changed.

    Args:
        indices: state_dict name -> dimension -> indices of the tensor, within its range; other names are left out.
    """
    state = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    selected = {id(state[name]): _select(state[name], dims) for name, dims in indices.items() if name in state}
    return copy_model(model, selected)  # which takes the selected tensors for copies of the dense ones


def _checked_dimensions(name: object, dimensions: object) -> dict[int, tuple[int, ...]]:
    if not isinstance(name, str):
        raise ValueError(f"structure must have tensor names as keys, got {name!r}")
    if not isinstance(dimensions, Mapping) or not dimensions:
        raise ValueError(f"{name!r} must map at least one dimension to its kept indices, got {dimensions!r}")
    for dim, indices in dimensions.items():
        if type(dim) is not int or dim < 0:
            raise ValueError(f"{name!r} has dimension {dim!r}: use a whole number >= 0")
        if not isinstance(indices, (list, tuple)) or not indices:
            raise ValueError(f"{name!r} dimension {dim} must list at least one kept index, got {indices!r}")
        for index in indices:
            if type(index) is not int or index < 0:
                raise ValueError(f"{name!r} dimension {dim} has index {index!r}: use whole numbers >= 0")
        for before, after in pairwise(indices):
            if after <= before:
                raise ValueError(f"{name!r} dimension {dim} has {after} after {before}: sort, and name each index once")
    return {dim: tuple(indices) for dim, indices in dimensions.items()}


def _parsed_dimensions(name: object, dimensions: Any) -> Any:
    """JSON's text keys as numbers; every other check is left to `_checked_dimensions`."""
    if not isinstance(dimensions, Mapping):
        return dimensions
    for key in dimensions:
        if not (isinstance(key, str) and key.isascii() and key.isdigit() and str(int(key)) == key):
            raise ValueError(f"{name!r} has dimension {key!r}: use a whole number >= 0 as text")
    return {int(key): indices for key, indices in dimensions.items()}


def _check_range(name: str, shape: tuple[int, ...], dimensions: Mapping[int, tuple[int, ...]]) -> None:
    for dim, indices in dimensions.items():
        if dim >= len(shape):
            raise ValueError(f"{name!r} has no dimension {dim}: its shape is {shape}")
        if indices[-1] >= shape[dim]:
            raise ValueError(f"{name!r} has no index {indices[-1]} in dimension {dim}: the last is {shape[dim] - 1}")


def _select(dense: Tensor, dimensions: Mapping[int, Sequence[int] | np.ndarray]) -> Tensor:
    """The selected elements, laid out in memory in the same order of dimensions (such as channels_last)."""
    order = sorted(range(dense.ndim), key=lambda dim: (-dense.stride()[dim], dense.shape[dim] == 1))
    selected = dense.detach().permute(order)
    for dim, indices in dimensions.items():
        selected = selected.index_select(order.index(dim), torch.as_tensor(indices, device=dense.device))
    selected = selected.permute([order.index(dim) for dim in range(dense.ndim)])
    return nn.Parameter(selected, dense.requires_grad) if isinstance(dense, nn.Parameter) else selected


def _update_sizes(module: nn.Module) -> None:
    """Make a module's attributes agree with its tensors."""
    if isinstance(module, _ConvNd):
        whole, local = module.weight.shape[:2]
        if is_depthwise(module):
            module.groups = whole
        sizes = whole, local * module.groups
        module.in_channels, module.out_channels = sizes if module.transposed else reversed(sizes)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _NormBase):
        tensors = (module.weight, module.running_mean)
        module.num_features = next(len(tensor) for tensor in tensors if tensor is not None)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
    elif isinstance(module, nn.GroupNorm) and module.num_groups == module.num_channels:
        module.num_groups = module.num_channels = len(module.weight)
    elif narrow_norms.can_narrow(module):
        narrow_norms.narrow_(module)
    elif isinstance(module, nn.MultiheadAttention) and narrow_attention.can_narrow(module):
        narrow_attention.narrow_(module)
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
    elif isinstance(module, nn.RNNBase):
        module.input_size = module.all_weights[0][0].shape[1]  # `weight_ih_l0`
    elif isinstance(module, nn.RNNCellBase):
        module.input_size = module.weight_ih.shape[1]
    elif not is_own(module):
        raise ValueError(f"cannot shrink a {type(module).__name__}: rebuild it without this module's tensors")
