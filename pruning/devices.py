"""Where a model is, and copies between its device and the CPU, of which each makes the program wait."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from pruning.trees import NetworkInputs

WITHOUT_FLOAT64 = {"mps"}
"""Kinds of devices that hold no float64."""


def device_of(model: nn.Module, otherwise: NetworkInputs) -> torch.device:
    """The device of a model's tensors, or of its inputs where the model has none."""
    return next(
        (tensor.device for tensor in model.state_dict().values() if isinstance(tensor, Tensor)), otherwise.device
    )


def has_float64(device: torch.device) -> bool:
    """Whether a device holds float64."""
    return device.type not in WITHOUT_FLOAT64


def wide(tensor: Tensor) -> Tensor:
    """In float64, in which long sums are exact enough; on the CPU where the tensor's device has none."""
    return (tensor if has_float64(tensor.device) else tensor.cpu()).double()


def back(values: Tensor, like: Tensor) -> Tensor:
    """What was computed from `wide` values, on the device of a tensor; in float32 where that has no float64."""
    return values if has_float64(like.device) else values.float().to(like.device)


def forked_rng(device: torch.device) -> AbstractContextManager[None]:
    """A context that leaves the CPU's random state as it was, and that of a CUDA device."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def fetched(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors on the CPU, those of another device in one copy for each of their types.

    Tensors of the CPU are not copied; of all others the values are laid out in the order of their dimensions.
    """
    found = {name: tensor.detach() for name, tensor in tensors.items()}
    types = {tensor.dtype for tensor in found.values() if tensor.device.type != "cpu"}
    for dtype in types:
        names = [name for name, one in found.items() if one.dtype == dtype and one.device.type != "cpu"]
        flat = torch.cat([found[name].reshape(-1) for name in names]).cpu()
        parts = flat.split([found[name].numel() for name in names])
        found |= {name: part.view(found[name].shape) for name, part in zip(names, parts, strict=True)}
    return found


def read_at_once(numbers: Iterable[Tensor]) -> list[float]:
    """Tensors of one number each as Python's numbers, in one wait for their device."""
    found = list(numbers)
    if not found:
        return []
    return [float(one) for one in torch.stack([one.detach().reshape(()) for one in found]).tolist()]
