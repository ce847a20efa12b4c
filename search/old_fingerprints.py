"""Fingerprints as they were taken before they left docstrings and neighbours out, for what was recorded with them.

They held the syntax of whole modules. They are taken anew for code that still stands as it did; of built-in workloads,
whose files may change, those of Python 3.11 are written down here.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from pruning.criteria import own_function
from search.fingerprint import digest, model_fingerprint, training_fingerprint
from search.workloads.base import Workload

_OUTSIDE = ("torch", "torchvision", "builtins")
BUILT_IN: Mapping[str, str] = {}
"""Fingerprint of an unchanged part of a built-in workload -> the one it had: networks of common widths, then what is
behind loss, metric and augmentation."""


def old_model_fingerprints(model: nn.Module) -> set[str]:
    """Those this network may have been recorded with."""
    tensors = [(name, tuple(t.shape), str(t.dtype)) for name, t in model.state_dict().items() if hasattr(t, "dtype")]
    found = {digest(tensors, repr(model), _codes(type(m) for m in model.modules()))}
    return found | {BUILT_IN[new] for new in [model_fingerprint(model)] if new in BUILT_IN}


def old_training_fingerprints(workload: Workload) -> set[str]:
    """Those the workload's loss, metric and augmentation may have been recorded with."""
    found = {digest(_codes([workload.loss, workload.metric, workload.augment]))}
    return found | {BUILT_IN[new] for new in [training_fingerprint(workload)] if new in BUILT_IN}


def old_criterion_fingerprint(criterion: str) -> list[str]:
    """The one a criterion of the user's own may have been recorded with; empty for built-in ones."""
    function = own_function(criterion)
    return [digest(_codes([function]))] if function else []


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
