"""Putting the weights of a file into a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruning.torch_prune import state_from_torch_prune
from search.errors import UsageError
from search.weights.misfit import misfit
from search.weights.reading import read_checkpoint
from search.weights.tensors import tensors_of
from search.weights.unwrap import COUNTER, DEEPEST, Ambiguous, Unwrapped, unwrap


def load_user_weights(model: nn.Module, path: Path, note: Callable[[str], None] | None = None) -> Mapping[str, Tensor]:
    """Load a state dict that the user trained into `model`, from safetensors or a torch file without code.

    The state dict may be an entry of a checkpoint, such as `state_dict` or `model`, and all of its names may begin with
    something that the model's names do not, such as `module.`, or the other way round. Tensors pruned by
    `torch.nn.utils.prune` are loaded as their originals times their masks.

    Args:
        path: the file, or `FILE#ENTRY` where several entries of it fit, or several that its names begin with.
        note: told in one line where in the file the state dict was found, unless the file is nothing else.

    Returns:
        Those masks, bool, by tensor name; empty for a plain state dict.

    Raises:
        EnvironmentProblem: no such file.
        Refused: a damaged file, or one that cannot be read without running code.
        UsageError: names or shapes that do not fit the model; the first are named, and all are counted.
    """
    expected = dict(tensors_of(model))
    found, masks = _found(path, expected)
    if said := misfit(found.state, expected):
        remedy = "; to train from what fits, give them as --pretrained" if _is_mostly(found.state, expected) else ""
        raise UsageError(f"weights {path.name}{said}{remedy}")
    _require_numbers(found.state, expected, path)
    _take_(model, found.state)
    if found.said and note:
        note(f"weights {path.name}: taken from {found.said}")
    return masks


def begin_with_(model: nn.Module, path: Path) -> list[str]:
    """Load what fits in name and shape of a file that `load_user_weights` could read; the rest of the model stays.

    Returns:
        The names of the model's tensors that the file has nothing for, such as those of an output layer of another
        size, without BatchNorm's counters.

    Raises:
        EnvironmentProblem, Refused: as `load_user_weights`.
        UsageError: less than half of the model's tensors are in the file, more than a fifth of the file's are unknown,
            or several state dicts in it fit as far.
    """
    expected = dict(tensors_of(model))
    found, _ = _found(path, expected, in_part=True)
    if not _is_mostly(found.state, expected):
        raise UsageError(f"weights {path.name}{misfit(found.state, expected)}")
    fitting = _fitting(found.state, expected)
    _require_numbers(fitting, expected, path)
    _take_(model, fitting)
    return [name for name in expected if name not in fitting and not name.endswith(COUNTER)]


def _fitting(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: given for name, given in state.items() if name in expected and given.shape == expected[name].shape}


def _is_mostly(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is of the network but for an output layer and the like."""
    unknown = sum(name not in expected for name in state)
    return 2 * len(_fitting(state, expected)) >= len(expected) and 5 * unknown <= len(state)


def _found(path: Path, expected: Mapping[str, Tensor], in_part: bool = False) -> tuple[Unwrapped, Mapping[str, Tensor]]:
    """What of a file fits these tensors best, and the masks of `torch.nn.utils.prune` in it."""
    content = read_checkpoint(path)
    masks: dict[str, Tensor] = {}
    try:
        return unwrap(_without_masks(content, expected, masks, DEEPEST), expected, in_part), masks
    except Ambiguous as error:
        raise UsageError(f"weights {path.name} {error}") from None
    except ValueError as error:
        raise UsageError(f"weights {path.name}: {error}") from None


def _take_(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a part of a state dict; the rest, such as extra state and BatchNorm's counters, stays."""
    left = {name: value for name, value in model.state_dict().items() if name not in state}
    model.load_state_dict({**left, **state}, strict=True)


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


def _require_numbers(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """Refuse values or types that the network cannot hold."""
    for name, given in state.items():
        needed = expected[name]
        other = given.is_complex() != needed.is_complex() or given.is_floating_point() < needed.is_floating_point()
        if other or (given.is_floating_point() and given.element_size() < 2):  # whose scale is kept elsewhere
            raise UsageError(
                f"weights {path.name}: tensor {name!r} has type {given.dtype}, the model needs {needed.dtype}: "
                "save it with that type"
            )
        if given.is_floating_point() and not torch.isfinite(given).all():
            raise UsageError(f"weights {path.name}: tensor {name!r} holds NaN or infinite values: train it again")
