"""Fingerprints: whether model, data or code are still what they were."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pruning.criteria import own_function
from search.workloads.base import SPLITS, Workload

_OUTSIDE = ("torch", "torchvision", "builtins")


def digest(*parts: Any) -> str:
    """16 hex digits of JSON-able parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def model_fingerprint(model: nn.Module) -> str:
    """Of the architecture: names, shapes, dtypes, module settings, and the modules the user's classes are written in.

    Comments and formatting of that code do not count, nor do the weights.
    """
    tensors = [(name, tuple(t.shape), str(t.dtype)) for name, t in model.state_dict().items()]
    return digest(tensors, repr(model), _codes(type(m) for m in model.modules()))


def training_fingerprint(workload: Workload) -> str:
    """Of what else decides a result: the code behind loss, metric and augmentation."""
    return digest(_codes([workload.loss, workload.metric, workload.augment]))


def criterion_fingerprint(criterion: str) -> list[str]:
    """Of the code behind a criterion of the user's own; empty for built-in ones.

    Raises:
        ValueError: it is not registered in this process.
    """
    function = own_function(criterion)
    return [digest(_codes([function]))] if function else []


def weights_fingerprint(model: nn.Module) -> str:
    """Of the values of a state dict."""
    hasher = hashlib.blake2b(digest_size=8)
    for name, tensor in model.state_dict().items():
        hasher.update(name.encode())
        _update(hasher, tensor)
    return hasher.hexdigest()


def data_fingerprint(workload: Workload) -> str:
    """Of every example of every split."""
    hasher = hashlib.blake2b(digest_size=8)
    for split in SPLITS:
        for tensor in getattr(workload, split):
            hasher.update(f"{split} {tuple(tensor.shape)} {tensor.dtype}".encode())
            _update(hasher, tensor)
    return hasher.hexdigest()


def _update(hasher: Any, tensor: Tensor) -> None:
    if tensor.numel():
        hasher.update(memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()))


def _codes(objects: Iterable[Any]) -> list[str]:
    """The names of functions or classes, with the whole source of the modules they are written in."""
    found = set()
    for thing in objects:
        thing = getattr(thing, "func", thing)  # of a functools.partial
        named = thing if hasattr(thing, "__qualname__") else type(thing)
        module = inspect.getmodule(named)
        found.add(named.__qualname__)
        if module is not None and module.__name__.split(".")[0] not in _OUTSIDE:
            found.add(_syntax(module))
    return sorted(found)


def _syntax(module: Any) -> str:
    try:
        return ast.dump(ast.parse(inspect.getsource(module)))
    except (OSError, TypeError, SyntaxError):
        return module.__name__
