"""What a network returns: one tensor, or several in mappings, tuples, lists and dataclasses, however nested."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

_CONSTANTS = (type(None), str, bytes, bool, int, float, complex, torch.dtype, torch.device)
"""Parts of outputs that hold no examples."""


def tensors_in(output: object) -> Iterator[Tensor]:
    """Every tensor of an output, in order."""
    if isinstance(output, Tensor):
        yield output
    elif (parts := _parts(output)) is not None:
        for part in parts.values():
            yield from tensors_in(part)


def output_names(output: object) -> list[str]:
    """A name for every tensor of an output: its keys and positions, joined by `_`."""
    return [name or "output" for name, _ in _named(output, "")]


def _named(output: object, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(output, Tensor):
        yield name, output
        return
    for key, part in (_parts(output) or {}).items():
        own = f"output_{key}" if isinstance(key, int) else str(key)
        yield from _named(part, f"{name}_{key}" if name else own)


def map_tensors(output: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same output with `change` applied to every tensor."""
    if isinstance(output, Tensor):
        return change(output)
    parts = _parts(output)
    return output if parts is None else _rebuilt(output, {k: map_tensors(part, change) for k, part in parts.items()})


def on_cpu(output: Any) -> Any:
    """The output with its tensors on the CPU, where metrics of the user's are computed, which may need NumPy."""
    away = any(tensor.device.type != "cpu" for tensor in tensors_in(output))
    return map_tensors(output, lambda tensor: tensor.cpu()) if away else output


def describe(output: object) -> str:
    """A description in a few words: the shape of one tensor, or the kind of container and its parts."""
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    parts = _parts(output)
    kind = type(output).__name__
    if parts is None:
        return f"a {kind}"
    named = not isinstance(output, (list, tuple)) or hasattr(output, "_fields")
    shown = [f"{key} " if named else "" for key in parts]
    sizes = [tuple(p.shape) if isinstance(p, Tensor) else type(p).__name__ for p in parts.values()]
    return f"a {kind} of {', '.join(f'{name}{size}' for name, size in zip(shown, sizes, strict=True)) or 'nothing'}"


def join_batches(outputs: Sequence[Any], rows: Sequence[int]) -> Any:
    """The output for all examples, joined from the outputs of batches, in order.

    A single tensor is joined along its first dimension. In a container, a tensor is joined along the first dimension
    that has an equal number of entries for each example in every batch. A tensor without such a dimension (a table that
    all examples share) is taken from the first batch, and a single number is averaged over examples. Lists with one
    entry for each example are concatenated.

    Args:
        outputs: one for each batch, at least one, all of the same form.
        rows: number of examples in each batch.

    Raises:
        ValueError: outputs of different forms, or of a kind that cannot be taken apart.
    """
    first = outputs[0]
    if isinstance(first, Tensor):
        return torch.cat(list(outputs))
    return _joined(outputs, rows)


def _joined(outputs: Sequence[Any], rows: Sequence[int]) -> Any:
    first = outputs[0]
    if isinstance(first, Tensor):
        return _joined_tensor(outputs, rows)
    every = [_parts(output) for output in outputs]
    wanted = every[0]
    if wanted is None:
        if not isinstance(first, _CONSTANTS):
            raise ValueError(
                f"the network returns a {type(first).__name__}, which cannot be taken apart: return tensors, alone or "
                "in dicts, tuples, lists and dataclasses"
            )
        if isinstance(first, float):
            return sum(value * n for value, n in zip(outputs, rows, strict=True)) / sum(rows)
        return first
    if type(first) is list and _one_an_example(outputs, rows):
        return [entry for output in outputs for entry in output]
    alike = [parts for parts in every if parts is not None and parts.keys() == wanted.keys()]
    if len(alike) < len(every):
        raise ValueError(f"the network returns {describe(first)} for one batch and something else for another")
    return _rebuilt(first, {key: _joined([parts[key] for parts in alike], rows) for key in wanted})


def _one_an_example(outputs: Sequence[Any], rows: Sequence[int]) -> bool:
    """Whether these are lists with one entry for each example, rather than lists of tensors that hold all examples."""
    if any(not isinstance(output, list) or len(output) != n for output, n in zip(outputs, rows, strict=True)):
        return False
    return not all(
        isinstance(entry, Tensor) and entry.ndim and len(entry) == n
        for output, n in zip(outputs, rows, strict=True)
        for entry in output
    )


def _joined_tensor(tensors: Sequence[Any], rows: Sequence[int]) -> Tensor:
    first = tensors[0]
    if len(tensors) > 1 and all(tensor is first for tensor in tensors[1:]):
        return first
    if any(not isinstance(tensor, Tensor) or tensor.ndim != first.ndim for tensor in tensors):
        raise ValueError(f"the network returns {describe(first)} for one batch and something else for another")
    if not first.ndim:
        if not first.is_floating_point():
            return first
        return sum(tensor * n for tensor, n in zip(tensors, rows, strict=True)) / sum(rows)
    for dim in range(first.ndim):
        each = [tensor.shape[dim] // n for tensor, n in zip(tensors, rows, strict=True)]
        whole = all(tensor.shape[dim] == each[0] * n for tensor, n in zip(tensors, rows, strict=True))
        alike = len({(*tensor.shape[:dim], *tensor.shape[dim + 1 :]) for tensor in tensors}) == 1
        if whole and alike and each[0] and (each[0] == 1 or max(rows) > 1):
            return torch.cat(list(tensors), dim=dim)
    if any(tensor.shape != first.shape for tensor in tensors):
        raise ValueError(
            f"outputs of different batches cannot be joined: shapes {tuple(first.shape)} of {rows[0]} examples and "
            f"{next(tuple(t.shape) for t in tensors if t.shape != first.shape)}"
        )
    return first


def _parts(output: object) -> dict[Any, Any] | None:
    """The parts of a container by key, name or position; None for anything else."""
    if isinstance(output, Mapping):
        return dict(output.items())
    if isinstance(output, (list, tuple)):
        names = getattr(output, "_fields", None)
        return dict(zip(names or range(len(output)), output, strict=True))
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    return dict(vars(output)) if isinstance(output, SimpleNamespace) else None


def _rebuilt(like: Any, parts: Mapping[Any, Any]) -> Any:
    """A container of the same type with other parts."""
    kind: Callable[..., Any] = type(like)
    if isinstance(like, tuple):
        return kind(*parts.values()) if hasattr(like, "_fields") else kind(parts.values())
    if isinstance(like, list):
        return kind(parts.values())
    if isinstance(like, Mapping):
        if not hasattr(like, "__setitem__"):
            return kind(parts)
        try:
            made = copy.copy(like)
        except TypeError:  # its constructor takes the parts by name
            return kind(**parts)
        for key, part in parts.items():
            made[key] = part
        return made
    made = copy.copy(like)
    for name, part in parts.items():
        object.__setattr__(made, name, part)
    return made
