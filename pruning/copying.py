"""Copies of networks, whatever they hold besides parameters and buffers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, TypeVar

from torch import Tensor, nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)

_PLAIN = (str, bytes, int, float, complex, bool, type(None), type, FunctionType, BuiltinFunctionType, ModuleType)


def copy_model(model: AnyModule, memo: dict[int, Any] | None = None) -> AnyModule:
    """A copy that shares no tensor with the original.

    Activations that a network keeps are copied without their history. What cannot be copied, such as a generator, a
    lock or an open file, is shared with the original.

    Args:
        memo: id of an object -> what to use as its copy, as in `copy.deepcopy`.
    """
    memo = dict(memo or {})
    try:
        return copy.deepcopy(model, dict(memo))
    except (RuntimeError, TypeError, NotImplementedError):
        pass
    for held in _held(model):
        if isinstance(held, Tensor):
            if not held.is_leaf:
                memo.setdefault(id(held), held.detach().clone())
        elif not _can_be_copied(held):
            memo.setdefault(id(held), held)
    return copy.deepcopy(model, memo)


def _held(model: nn.Module) -> Iterator[Any]:
    """Every tensor and other object that a network refers to, except containers and modules."""
    pending: list[Any] = [model]
    seen: set[int] = set()
    while pending:
        value = pending.pop()
        if id(value) in seen or isinstance(value, _PLAIN):
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            pending += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple, set, frozenset)):
            pending += value
        elif isinstance(value, nn.Module) or (hasattr(value, "__dict__") and vars(value)):
            pending.append(vars(value))
            if hasattr(value, "__self__"):
                pending.append(value.__self__)
        elif hasattr(value, "__self__"):
            pending.append(value.__self__)
        else:
            yield value


def _can_be_copied(value: Any) -> bool:
    try:
        copy.deepcopy(value)
    except Exception:
        return False
    return True
