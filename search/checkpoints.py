"""Weights on disk: safetensors with the structure beside them, and users' weight files, never unpickled code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor, nn

from pruning.structure import Structure, apply_structure
from pruning.torch_prune import state_from_torch_prune
from search.errors import EnvironmentProblem, Refused, UsageError
from search.fingerprint import tensors_of
from search.journal import write_durably
from spaces.errors import unknown

CHECKSUM = "sha256"
"""Key of the checksum in the metadata of weights; files from before it lack it."""


def save_model(model: nn.Module, structure: Structure, path: Path) -> None:
    """Write a model's state dict, with what was removed from the dense model and a checksum as metadata; durable."""
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors_of(model)}
    metadata = {"structure": json.dumps(structure.to_dict()), CHECKSUM: _checksum(state)}
    write_durably(path, save(state, metadata=metadata))


def load_model(dense: nn.Module, path: Path) -> tuple[nn.Module, Structure]:
    """Rebuild the model saved at `path` from a dense one of the same architecture; eval mode.

    Raises:
        Refused: the file is damaged or belongs to another architecture.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        structure = Structure.from_dict(json.loads(metadata["structure"]))
        state = load(path.read_bytes())
        if metadata.get(CHECKSUM, _checksum(state)) != _checksum(state):
            raise ValueError("its numbers are not those that were written (checksum)")
        return restore(dense, structure, state), structure
    except (SafetensorError, KeyError, ValueError, RuntimeError, OSError) as error:
        raise Refused(f"damaged weights {path}: {_first_line(error)}") from None


def _checksum(state: Mapping[str, Tensor]) -> str:
    """Of names, shapes, types and values."""
    hasher = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        hasher.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        if tensor.numel():
            hasher.update(memoryview(tensor.flatten().view(torch.uint8).numpy()))
    return hasher.hexdigest()


def restore(dense: nn.Module, structure: Structure, state: Mapping[str, Tensor]) -> nn.Module:
    """A dense model shrunk by `structure` with `state` loaded strictly; eval mode."""
    model = apply_structure(dense, structure)
    model.load_state_dict(state, strict=True)
    return model.eval()


def load_user_weights(model: nn.Module, path: Path) -> Mapping[str, Tensor]:
    """Load a state dict the user trained into `model`: safetensors, or a torch file without code.

    Tensors pruned by `torch.nn.utils.prune` are taken as their originals times their masks; returned are these masks,
    bool by tensor name, none for a plain state dict.

    Raises:
        EnvironmentProblem: no such file.
        Refused: a file that would need unpickling code, or is damaged.
        UsageError: names or shapes that do not fit the model; the first is named.
    """
    if not path.is_file():
        raise EnvironmentProblem(f"no weights file {str(path)!r}: check --weights")
    expected = model.state_dict()
    try:
        masked = state_from_torch_prune(_read_state(path), keep=expected)
    except ValueError as error:
        raise UsageError(f"weights {path.name}: {error}") from None
    state = masked.state
    for name in state:
        if name not in expected:
            raise UsageError(f"weights {path.name}: {unknown('tensor', name, expected)}")
    for name, tensor in expected.items():
        if name not in state:
            raise UsageError(f"weights {path.name} lack tensor {name!r} of shape {tuple(tensor.shape)}")
        if state[name].shape != tensor.shape:
            raise UsageError(
                f"weights {path.name}: tensor {name!r} has shape {tuple(state[name].shape)}, "
                f"the model needs {tuple(tensor.shape)}"
            )
        if state[name].is_floating_point() and not torch.isfinite(state[name]).all():
            raise UsageError(f"weights {path.name}: tensor {name!r} holds NaN or infinite values: train it again")
    model.load_state_dict(state, strict=True)
    return masked.masks


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        return load(path.read_bytes())
    except SafetensorError as safetensors_error:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # garbage makes readers raise anything
            raise Refused(
                f"weights {path} are neither safetensors ({_first_line(safetensors_error)}) nor a torch file that "
                f"loads without running code ({_first_line(error)}); save model.state_dict() with safetensors"
            ) from None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise Refused(f"weights {path} hold no plain state dict: save model.state_dict()")
    return dict(state)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
