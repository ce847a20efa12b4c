"""Weights on disk: safetensors with the network's structure beside them, and the user's weight files, read without
running any code.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor, nn

from pruning.channels.structure import Structure, apply_structure
from pruning.sparse_file import LATER
from pruning.torch_prune import state_from_torch_prune
from search.errors import EnvironmentProblem, Refused, UsageError
from search.files import write_durably
from search.training.fingerprint import tensors_of
from search.training.unwrap import COUNTER, DEEPEST, Ambiguous, unwrap
from spaces.validation import unknown

CHECKSUM = "sha256"
"""Key of the checksum in the metadata of a weights file; older files lack it."""


def save_model(model: nn.Module, structure: Structure, path: Path) -> None:
    """Write a model's state dict, what was removed from the dense model and a checksum; it survives a crash of the
    machine.
    """
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
            hasher.update(tensor.flatten().view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def restore(dense: nn.Module, structure: Structure, state: Mapping[str, Tensor]) -> nn.Module:
    """A dense model shrunk by `structure` with `state` loaded strictly; eval mode."""
    model = apply_structure(dense, structure)
    extra = {name: value for name, value in model.state_dict().items() if not isinstance(value, Tensor)}
    model.load_state_dict({**extra, **state}, strict=True)
    return model.eval()


def load_user_weights(model: nn.Module, path: Path, note: Callable[[str], None] | None = None) -> Mapping[str, Tensor]:
    """Load a state dict that the user trained into `model`, from safetensors or a torch file without code.

    The state dict may be an entry of a checkpoint, such as `state_dict` or `model`, and all of its names may begin with
    something that the model's names do not, such as `module.`, or the other way round. Tensors pruned by
    `torch.nn.utils.prune` are loaded as their originals times their masks.

    Args:
        note: told in one line where in the file the state dict was found, unless the file is nothing else.

    Returns:
        Those masks, bool, by tensor name; empty for a plain state dict.

    Raises:
        EnvironmentProblem: no such file.
        Refused: a damaged file, or one that cannot be read without running code.
        UsageError: names or shapes that do not fit the model; the first is named.
    """
    if not path.is_file():
        raise EnvironmentProblem(f"no weights file {str(path)!r}: check --weights")
    expected = dict(tensors_of(model))
    content = _read_content(path)
    masks: dict[str, Tensor] = {}
    try:
        found = unwrap(_without_masks(content, expected, masks, DEEPEST), expected)
    except Ambiguous as error:
        raise UsageError(f"weights {path.name} {error}") from None
    except ValueError as error:
        raise UsageError(f"weights {path.name}: {error}") from None
    state = found.state
    _require_fit(state, expected, path)
    own = model.state_dict()
    left = {name: value for name, value in own.items() if name not in state}  # extra state and BatchNorm's counters
    model.load_state_dict({**left, **state}, strict=True)
    if found.said and note:
        note(f"weights {path.name}: taken from {found.said}")
    return masks


def _without_masks(content: Any, expected: Mapping[str, Tensor], masks: dict[str, Tensor], depth: int) -> Any:
    """The same content with each state dict in its plain form; the masks that tensors were multiplied by are added to
    `masks`.
    """
    if not isinstance(content, Mapping) or not depth:
        return content
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    rest = {key: _without_masks(content[key], expected, masks, depth - 1) for key in content if key not in tensors}
    masked = state_from_torch_prune(tensors, keep=expected)
    masks.update(masked.masks)
    return {**rest, **masked.state}


def _require_fit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    for name in state:
        if name not in expected:
            raise UsageError(f"weights {path.name}: {unknown('tensor', name, expected)}")
    for name, tensor in expected.items():
        if name not in state and name.endswith(COUNTER):
            continue
        if name not in state:
            raise UsageError(f"weights {path.name} lack the tensor {name!r} of shape {tuple(tensor.shape)}")
        given = state[name]
        if given.shape != tensor.shape:
            raise UsageError(
                f"weights {path.name}: tensor {name!r} has shape {tuple(given.shape)}, "
                f"the model needs {tuple(tensor.shape)}"
            )
        if given.is_floating_point() and not torch.isfinite(given).all():
            raise UsageError(f"weights {path.name}: tensor {name!r} holds NaN or infinite values: train it again")
        if given.is_complex() != tensor.is_complex() or given.is_floating_point() < tensor.is_floating_point():
            raise UsageError(
                f"weights {path.name}: tensor {name!r} has type {given.dtype}, the model needs {tensor.dtype}: "
                "save it with that type"
            )


def _read_content(path: Path) -> Mapping[Any, Any]:
    """The mapping in a weights file, its tensors checked to be plain ones."""
    try:
        content = path.read_bytes()
        if content.startswith(LATER):
            raise Refused(f"weights {path} are a sparse file: give the model.safetensors that was exported beside it")
        return load(content)
    except SafetensorError as safetensors_error:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # garbage makes readers raise anything
            raise Refused(
                f"weights {path} are neither safetensors ({_first_line(safetensors_error)}) nor a torch file that "
                f"loads without running code ({_first_line(error)}); save model.state_dict() with safetensors"
            ) from None
    if not isinstance(content, Mapping):
        raise Refused(f"weights {path} hold a {type(content).__name__}, not a state dict: save model.state_dict()")
    _require_plain(content, path, DEEPEST)
    if not any(True for _ in _tensors_in(content, DEEPEST)):
        raise Refused(f"weights {path} hold no named tensor: save model.state_dict()")
    return content


def _tensors_in(content: Any, depth: int) -> Iterator[Tensor]:
    for key, value in content.items() if isinstance(content, Mapping) else ():
        if isinstance(value, Tensor) and isinstance(key, str):
            yield value
        elif depth:
            yield from _tensors_in(value, depth - 1)


def _require_plain(content: Mapping[Any, Any], path: Path, depth: int) -> None:
    for tensor in _tensors_in(content, depth):
        kind = (
            "on the device meta, without numbers" if tensor.is_meta
            else "quantized" if tensor.is_quantized
            else "sparse" if tensor.layout != torch.strided
            else "a view of more elements than it stores"
            if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
            else None
        )  # fmt: skip
        if kind:
            raise Refused(
                f"weights {path} hold a tensor of shape {tuple(tensor.shape)} that is {kind}: save plain ones"
            )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
