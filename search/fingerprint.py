"""Fingerprints: whether model, data or code are still what they were."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import textwrap
from typing import Any

from torch import Tensor, nn

from search.workloads.base import SPLITS, Workload

_OUTSIDE = ("torch", "torchvision", "builtins")


def digest(*parts: Any) -> str:
    """16 hex digits of JSON-able parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def model_fingerprint(model: nn.Module) -> str:
    """Of the architecture: names, shapes, dtypes, module settings, and the code of the user's own modules.

    Comments and formatting of that code do not count, nor do the weights.
    """
    tensors = [(name, tuple(t.shape), str(t.dtype)) for name, t in model.state_dict().items()]
    classes = {type(m) for m in model.modules() if type(m).__module__.split(".")[0] not in _OUTSIDE}
    code = sorted(_code(cls) for cls in classes)
    return digest(tensors, repr(model), code)


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
    hasher.update(memoryview(tensor.detach().cpu().contiguous().numpy()).cast("B") if tensor.numel() else b"")


def _code(cls: type) -> str:
    try:
        return ast.dump(ast.parse(textwrap.dedent(inspect.getsource(cls))))
    except (OSError, TypeError, SyntaxError):
        return cls.__qualname__
