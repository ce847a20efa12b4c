"""Fingerprints: whether model, data and code are still what they were.

Only what decides results counts, see `search.user_code.source`: not docstrings, comments or formatting, nor where the
code is written.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from pruning.importance.own_criteria import own_function
from search.user_code.source import ADDRESS, code_of, code_of_network
from search.workloads.base import SPLITS, Workload
from search.workloads.splits import Split

_of_models: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
_TRAINING = "_training_fingerprint"


def digest(*parts: Any) -> str:
    """16 hex digits of JSON-able parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def model_fingerprint(model: nn.Module) -> str:
    """Of the architecture: names, shapes, dtypes, settings and code of the modules, and which parameters are frozen.

    The weights do not count. It is computed once, on the first call; attributes that a network changes later play no
    part.
    """
    if model not in _of_models:
        tensors = [(name, tuple(t.shape), str(t.dtype)) for name, t in tensors_of(model)]
        frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
        _of_models[model] = digest(tensors, ADDRESS.sub("", repr(model)), code_of_network(model), frozen)
    return _of_models[model]


def training_fingerprint(workload: Workload) -> str:
    """Of everything else that decides a result: the code of loss, metric and augmentation.

    It is computed once, on the first call; attributes that these functions change later play no part.
    """
    kept = vars(workload)
    if _TRAINING not in kept:
        kept[_TRAINING] = digest(code_of([workload.loss, workload.metric, workload.augment]))
    return kept[_TRAINING]


def criterion_fingerprint(criterion: str) -> list[str]:
    """Of the code of the user's own criterion; empty for built-in ones.

    Raises:
        ValueError: the criterion is not registered in this process.
    """
    function = own_function(criterion)
    return [digest(code_of([function]))] if function else []


def tensors_of(model: nn.Module) -> list[tuple[str, Tensor]]:
    """The tensors of a state dict, without its other entries."""
    return [(name, value) for name, value in model.state_dict().items() if isinstance(value, Tensor)]


def weights_fingerprint(model: nn.Module) -> str:
    """Of the values of a state dict."""
    hasher = hashlib.blake2b(digest_size=8)
    for name, tensor in tensors_of(model):
        hasher.update(name.encode())
        _update(hasher, tensor)
    return hasher.hexdigest()


def data_fingerprint(workload: Workload) -> str:
    """Of every example of every split."""
    hasher = hashlib.blake2b(digest_size=8)
    for split in SPLITS:
        _update_split(hasher, split, getattr(workload, split))
    return hasher.hexdigest()


def split_fingerprint(split: Split) -> str:
    """Of every example of one split."""
    hasher = hashlib.blake2b(digest_size=8)
    _update_split(hasher, "", split)
    return hasher.hexdigest()


def _update_split(hasher: Any, name: str, split: Split) -> None:
    for tensor in split:
        hasher.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        _update(hasher, tensor)


def _update(hasher: Any, tensor: Tensor) -> None:
    if tensor.numel():
        hasher.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
