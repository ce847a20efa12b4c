"""Fingerprints as they used to be computed, to recognise what was recorded with them.

They hashed whole modules, docstrings and neighbouring code included. For the user's code they are computed again, which
matches as long as its file is unchanged. Our own files do change, so the former fingerprints of built-in workloads (as
Python 3.11 gave them) are listed here.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from pruning.importance.own_criteria import own_function
from search.training.fingerprint import data_fingerprint, digest, training_fingerprint
from search.workloads.base import Workload

_OUTSIDE = ("torch", "torchvision", "builtins")
BUILT_IN: Mapping[str, str] = {
    "7216db4c5d0b715a": "924f78aa5d0ab67a",  # digits, width 1/16
    "c0ac9c6a7df2455f": "762187aa12b95c8a",  # 1/8
    "ba557621a090a8b3": "66ebb53941b9b158",  # 1/4
    "455c68db1d3f3852": "743b2ea5d8538bae",  # 1/2
    "dfc218d62ac691f4": "383eb49bea26c1e0",  # 1
    "5b21a59e30a8cec6": "d74bcd76442d20ed",  # fashion-mnist, width 1/16
    "da999cc864f6d951": "6f9b2fcdb78bc91c",  # 1/8
    "b206564e71597c6a": "afacd8b18dbb817d",  # 1/4
    "8d35ced678544569": "4a34f94b1aa92b88",  # 1/2
    "2eebee43fbc66727": "52f71eb7e41ceec7",  # 1
    "d264e8fd4d1e8b80": "cc84388a7002aeb5",  # digits, and whatever has the default loss and metric
    "6d9abe38afea25e9": "8366e46c79077b9b",  # fashion-mnist
}
"""Today's fingerprint -> the former one of the same thing: first architectures by width, then training code (loss,
metric, augmentation).
"""


def old_model_fingerprints(model: nn.Module, architecture: str) -> set[str]:
    """Former fingerprints of this network; `architecture` is today's."""
    tensors = [(name, tuple(t.shape), str(t.dtype)) for name, t in model.state_dict().items() if hasattr(t, "dtype")]
    found = {digest(tensors, repr(model), _codes(type(m) for m in model.modules()))}
    return found | {BUILT_IN[new] for new in [architecture] if new in BUILT_IN}


def old_training_fingerprints(workload: Workload) -> set[str]:
    """The fingerprints that the workload's loss, metric and augmentation may have been recorded with; none where it has
    a `train` or `evaluate` of its own, which they did not tell.
    """
    if workload.train is not None or workload.evaluate is not None:
        return set()
    found = {digest(_codes([workload.loss, workload.metric, workload.augment]))}
    return found | {BUILT_IN[new] for new in [training_fingerprint(workload)] if new in BUILT_IN}


def old_dense_key(architecture: str, workload: Workload, recipe: Mapping[str, Any], seed: int) -> str | None:
    """The key under which a built-in workload's dense model may be cached; None for any other workload."""
    code = training_fingerprint(workload)
    if architecture not in BUILT_IN or code not in BUILT_IN:
        return None
    return digest(BUILT_IN[architecture], BUILT_IN[code], data_fingerprint(workload), recipe, seed)


def old_criterion_fingerprint(criterion: str) -> list[str]:
    """The fingerprint that the user's own criterion may have been recorded with; empty for built-in ones."""
    function = own_function(criterion)
    return [digest(_codes([function]))] if function else []


def _codes(objects: Iterable[Any]) -> list[str]:
    """The names of functions or classes, with the whole source of their modules."""
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
