"""Weights on disk, as prunefront writes them: safetensors with the network's structure beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor, nn

from pruning.channels.structure import Structure, apply_structure
from search.errors import Refused
from search.files import write_durably
from search.weights.reading import first_line
from search.weights.tensors import tensors_of

CHECKSUM = "sha256"
"""Key of the checksum in the metadata of a weights file; older files lack it."""


def save_model(model: nn.Module, structure: Structure, path: Path, said: Mapping[str, str] | None = None) -> None:
    """Write a model's state dict, what was removed from the dense model, a checksum, and what else is `said` of it; it
    survives a crash of the machine.
    """
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors_of(model)}
    metadata = {**(said or {}), "structure": json.dumps(structure.to_dict()), CHECKSUM: _checksum(state)}
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
        raise Refused(f"damaged weights {path}: {first_line(error)}") from None


def metadata_of(path: Path) -> dict[str, str]:
    """What the weights file at `path` says beside its tensors."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def _checksum(state: Mapping[str, Tensor]) -> str:
    """Of names, shapes, types and values."""
    hasher = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        hasher.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        if tensor.numel():
            hasher.update(tensor.flatten().view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def restore(dense: nn.Module, structure: Structure, state: Mapping[str, Tensor]) -> nn.Module:
    """A dense model shrunk by `structure` with `state` loaded strictly; eval mode."""
    model = apply_structure(dense, structure)
    extra = {name: value for name, value in model.state_dict().items() if not isinstance(value, Tensor)}
    model.load_state_dict({**extra, **state}, strict=True)
    return model.eval()
