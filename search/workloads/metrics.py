"""The default metric: accuracy if the shapes leave no doubt what that is; otherwise a reason and the remedy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pruning.outputs import describe

IGNORED = -100
"""Targets that count neither in cross-entropy nor in accuracy, as in PyTorch."""
DISTRIBUTION_SLACK = 1e-3
"""How far the sum of class probabilities may be from 1, since they may be in half precision."""
REMEDY = "give the workload a metric= of your own"


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Share of examples (or pixels) whose largest output is at the target.

    Args:
        outputs: (n, classes, ...), at least two classes.
        targets: class numbers (n, ...) or (n, 1, ...), or class probabilities (n, classes, ...), such as one-hot.
            Targets of -100 are not counted.

    Raises:
        ValueError: shapes or values for which this is not the accuracy; tells what to do.
    """
    labels = class_labels(outputs, targets)
    right = outputs.argmax(dim=1) == labels
    return float(right[labels != IGNORED].float().mean())


def accuracy_of_logits(outputs: Tensor, targets: Tensor) -> float:
    """Share of examples (or pixels) whose one output is above 0 exactly if the target is 1.

    Args:
        outputs: (n,), (n, 1) or (n, 1, ...); for several classes, see `accuracy`.
        targets: 0 or 1, as many as outputs.

    Raises:
        ValueError: shapes or values for which this is not the accuracy; tells what to do.
    """
    return _binary_accuracy(outputs, targets, 0.0)


def accuracy_of_probabilities(outputs: Tensor, targets: Tensor) -> float:
    """Like `accuracy_of_logits`, for outputs in [0, 1] that count as 1 if above 0.5."""
    return _binary_accuracy(outputs, targets, 0.5)


def default_metric(loss: Callable[..., Any]) -> Callable[[Tensor, Tensor], float]:
    """The accuracy that goes with a loss: after a binary cross-entropy, one output tells two classes apart."""
    if _is(loss, functional.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss):
        return accuracy_of_logits
    if _is(loss, functional.binary_cross_entropy, nn.BCELoss):
        return accuracy_of_probabilities
    return accuracy


DEFAULT_METRICS = (accuracy, accuracy_of_logits, accuracy_of_probabilities)


def is_default(metric: object) -> bool:
    """Whether it is one of the default metrics; by identity, since objects of torchmetrics equal anything."""
    return any(metric is one for one in DEFAULT_METRICS)


def class_labels(outputs: Tensor, targets: Tensor) -> Tensor:
    """The targets as class numbers, integers of shape (n, ...), which may include `IGNORED`.

    Args:
        outputs: (rows, classes, ...), of which only the shape after the first dimension matters.
        targets: as in `accuracy`.

    Raises:
        ValueError: tells what they are instead, and the remedy.
    """
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        what = "the network returns" if isinstance(targets, Tensor) else "targets are"
        held = outputs if isinstance(targets, Tensor) else targets
        raise ValueError(f"{what} {describe(held)}, not a single tensor: {REMEDY} that takes it apart")
    if outputs.ndim < 2:
        raise ValueError(f"outputs of shape {tuple(outputs.shape)} have no class dimension: {REMEDY}")
    classes, places = outputs.shape[1], (len(targets), *outputs.shape[2:])
    if classes < 2:
        raise ValueError(
            f"outputs of shape {tuple(outputs.shape)} are one number each, not scores of classes: {REMEDY}, or a loss= "
            "of torch's binary_cross_entropy_with_logits where there are two classes"
        )
    if targets.shape == places:
        labels = targets
    elif targets.shape == (len(targets), 1, *outputs.shape[2:]):
        labels = targets[:, 0]
    elif targets.shape[1:] == outputs.shape[1:]:
        return _of_shares(targets)
    else:
        raise ValueError(
            f"targets of shape {tuple(targets.shape)} do not match outputs of shape {tuple(outputs.shape)}, whose "
            f"classes are dimension 1: give targets of shape {places}, or {REMEDY}"
        )
    if labels.is_floating_point():
        if (odd := labels[labels != labels.round()]).numel():
            raise ValueError(f"targets such as {float(odd[0]):g} are not class numbers: {REMEDY}, and a loss=")
        labels = labels.long()
    counted = labels[labels != IGNORED].long()
    for label in (int(counted.min()), int(counted.max())) if counted.numel() else ():
        if not 0 <= label < classes:
            raise ValueError(
                f"target {label} is not a class of outputs of shape {tuple(outputs.shape)}: class numbers go from 0 to "
                f"{classes - 1}, and {IGNORED} leaves an example out"
            )
    return labels.long()


def _of_shares(targets: Tensor) -> Tensor:
    """The class of the largest probability."""
    sums = targets.float().sum(dim=1)
    if bool((targets < 0).any()) or not bool(((sums - 1).abs() <= DISTRIBUTION_SLACK).all()):
        raise ValueError(
            f"targets of shape {tuple(targets.shape)}, the shape of the outputs, are not class probabilities that sum "
            f"to 1: {REMEDY} (and a loss=, if an example has several classes or none)"
        )
    return targets.float().argmax(dim=1)


def _binary_accuracy(outputs: Tensor, targets: Tensor, threshold: float) -> float:
    if not isinstance(outputs, Tensor) or (outputs.ndim > 1 and outputs.shape[1] > 1):
        return accuracy(outputs, targets)
    return float(((_column(outputs) > threshold) == binary_labels(outputs, targets)).float().mean())


def binary_labels(outputs: Tensor, targets: Tensor) -> Tensor:
    """The targets of one output an example (or pixel) as bool, without a class dimension.

    Raises:
        ValueError: they are not all 0 or 1, or their number differs.
    """
    if _column(targets).shape[1:] != _column(outputs).shape[1:]:
        raise ValueError(
            f"targets of shape {tuple(targets.shape)} do not match outputs of shape {tuple(outputs.shape)}: {REMEDY}"
        )
    if (odd := targets[(targets != 0) & (targets != 1)]).numel():
        raise ValueError(f"targets such as {float(odd[0]):g} are neither 0 nor 1: {REMEDY}")
    return _column(targets) == 1


def _column(tensor: Tensor) -> Tensor:
    return tensor[:, 0] if tensor.ndim > 1 and tensor.shape[1] == 1 else tensor


def _is(loss: Callable[..., Any], function: Callable[..., Any], module: type[nn.Module]) -> bool:
    while isinstance(loss, functools.partial):
        loss = loss.func
    return loss is function or isinstance(loss, module)


def is_cross_entropy(loss: Callable[..., Any]) -> bool:
    """Whether a loss is PyTorch's own cross-entropy."""
    return _is(loss, functional.cross_entropy, nn.CrossEntropyLoss)


def check_default_metric(metric: Callable[..., Any], outputs: Any, targets: Tensor) -> None:
    """Raise a `ValueError`, with reason and remedy, if the default metric cannot score such outputs against these
    targets.
    """
    single = isinstance(outputs, Tensor) and (outputs.ndim == 1 or (outputs.ndim > 1 and outputs.shape[1] == 1))
    if metric is not accuracy and single:
        binary_labels(outputs, targets)
    else:
        class_labels(outputs, targets)


class NotForCrossEntropy(ValueError):
    """What is wrong with outputs or targets, and what to do."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}: {remedy}")
        self.problem, self.remedy = problem, remedy


def check_cross_entropy(outputs: Any, targets: Tensor, own: str = "a loss= and a metric=") -> None:
    """Raise `NotForCrossEntropy` if cross-entropy would be constant, or would fail because of a shape or type.

    Args:
        own: what a workload needs of its own whose outputs are not for cross-entropy.
    """
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        what = "the network returns" if isinstance(targets, Tensor) else "targets are"
        held = outputs if isinstance(targets, Tensor) else targets
        raise NotForCrossEntropy(
            f"{what} {describe(held)}, not a single tensor", f"give the workload {own} to take it apart"
        )
    if outputs.ndim < 2 or outputs.shape[1] < 2:
        raise NotForCrossEntropy(
            f"the cross-entropy of outputs of shape {tuple(outputs.shape)} covers one class only, and so is constant",
            f"give the workload {own} of your own",
        )
    rest = outputs.shape[2:]
    if targets.shape == (len(targets), 1, *rest):
        column = "targets[:, 0]" + ("" if targets.dtype == torch.long else ".long()")
        raise NotForCrossEntropy(
            f"cross-entropy does not take targets of shape {tuple(targets.shape)}", f"squeeze them, {column}"
        )
    if targets.shape == (len(targets), *rest) and targets.dtype not in (torch.long, torch.uint8):
        raise NotForCrossEntropy(
            f"cross-entropy does not take class numbers of type {targets.dtype}",
            f"pass targets.long(), or if they are not classes, give the workload {own} of your own",
        )
