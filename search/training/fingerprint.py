"""Fingerprints: whether model, data and code are still what they were.

Only what decides results counts, see `search.user_code.source`: not docstrings, comments or formatting, nor where the
code is written.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pruning.importance.own_criteria import own_function
from pruning.outputs import output_names, tensors_in
from pruning.trees import ModelInputs, Tree, contents
from search.metric import Metric
from search.user_code.source import ADDRESS, code_of, code_of_network
from search.weights.tensors import tensors_of
from search.workloads.base import SPLITS, Workload
from search.workloads.examples import Examples, Indexed, InMemory
from search.workloads.streams import Stream
from search.workloads.tally import function_of

_of_models: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
_TRAINING = "_training_fingerprint"
OWN_CODE = ("train", "evaluate")
SAMPLED = 64
"""How many examples of a split stand for it where reading all would take long, or gives others each time."""


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
    """Of everything else that decides a result: the code of loss, metric, augmentation and `forward`, and of the user's
    own `train` and `evaluate`.

    It is computed once, on the first call; attributes that these functions change later play no part.
    """
    kept = vars(workload)
    if _TRAINING not in kept:
        forward = [] if workload.forward is None else [workload.forward]
        own = {name: getattr(workload, name) for name in OWN_CODE if getattr(workload, name) is not None}
        metric = workload.metric
        said: list[Any] = [] if workload.steps_per_epoch is None else [workload.steps_per_epoch]
        said += [[metric.best, metric.low, metric.high]] if isinstance(metric, Metric) else []
        said += [[*own]] if own else []
        code = code_of([workload.loss, function_of(metric), workload.augment, *forward, *own.values()])
        kept[_TRAINING] = digest(code, *said)
    return kept[_TRAINING]


def criterion_fingerprint(criterion: str) -> list[str]:
    """Of the code of the user's own criterion; empty for built-in ones.

    Raises:
        ValueError: the criterion is not registered in this process.
    """
    function = own_function(criterion)
    return [digest(code_of([function]))] if function else []


def weights_fingerprint(model: nn.Module) -> str:
    """Of the values of a state dict."""
    hasher = hashlib.blake2b(digest_size=8)
    for name, tensor in tensors_of(model):
        hasher.update(name.encode())
        _update(hasher, tensor)
    return hasher.hexdigest()


def data_fingerprint(workload: Workload) -> str:
    """Of all splits, as studies used to record it."""
    hasher = hashlib.blake2b(digest_size=8)
    for split in SPLITS:
        _update_split(hasher, split, workload, split)
    return hasher.hexdigest()


def split_fingerprint(workload: Workload, split: str) -> str:
    """Of one split: of every example of tensors and of small data sets that do not change; of anything else, of some
    that are spread over it, or the first of a stream, and of their number where it is known. Examples that differ each
    time count by their shapes. The workload's `data_version` counts if it has one. A split that was not given is told
    by this alone; one that only the user's own code looks at, by one batch of it.
    """
    hasher = hashlib.blake2b(digest_size=8)
    if workload.data_version is not None:
        hasher.update(f"version {workload.data_version!r}".encode())
    _update_split(hasher, "", workload, split)
    return hasher.hexdigest()


class SplitFingerprints(Mapping[str, str]):
    """Split -> fingerprint, each found when it is first asked for, since data is read for it."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._found: dict[str, str] = {}

    def __getitem__(self, split: str) -> str:
        if split not in self._found:
            self._found[split] = split_fingerprint(self._workload, split)
        return self._found[split]

    def __iter__(self) -> Iterator[str]:
        return iter(SPLITS)

    def __len__(self) -> int:
        return len(SPLITS)


def _update_split(hasher: Any, name: str, workload: Workload, split: str) -> None:
    if not workload.has(split):
        hasher.update(f"{name} not given".encode())
        return
    examples = workload.examples(split)
    if not workload.reads(split) and not isinstance(examples, InMemory):
        _update_given(hasher, name, examples)
        return
    if (batch := examples.whole) is None:
        batch = examples.some(SAMPLED)
        hasher.update(f"{SAMPLED} of {examples.count if isinstance(examples, Indexed) else 'a stream'}".encode())
    same = examples.repeats_itself
    if isinstance(examples, Stream) and same:
        hasher.update(examples.batching.encode())
    for part in batch:
        if isinstance(part, ModelInputs | Tree):
            hasher.update(" ".join(output_names(part.tree)).encode())
        for tensor in tensors_in(contents(part)):
            hasher.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            if same:
                _update(hasher, tensor)


def _update_given(hasher: Any, name: str, examples: Examples) -> None:
    """By the tensors of one batch as the user's code makes it, and their number."""
    one, other = ([*tensors_in(examples.some_given(SAMPLED))] for _ in range(2))
    same = len(one) == len(other) and all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(one, other, strict=True)
    )
    hasher.update(f"{SAMPLED} of {examples.count if isinstance(examples, Indexed) else 'a stream'} as given".encode())
    for tensor in one:
        hasher.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if same:
            _update(hasher, tensor)


def _update(hasher: Any, tensor: Tensor) -> None:
    if tensor.numel():
        hasher.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
