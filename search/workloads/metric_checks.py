"""Whether a metric is one that a search can use: a share of every network's outputs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pruning.outputs import describe, map_tensors
from search.errors import UsageError
from search.user_code.loading import call_user
from search.workloads.base import Workload

SLACK = 1e-6
"""A metric may leave [0, 1] by this much: single precision rounds."""
CERTAIN = 10.0
"""Output of the right class where outputs tell the targets, of the others minus that."""


def try_metric(workload: Workload, outputs: Any, targets: Tensor, split: str) -> None:
    """Refuse a metric that is no share of these outputs, an untrained network's.

    Where it is undefined for them, as a correlation is where all are alike, random ones and ones that tell the targets
    are tried: a metric undefined for those too is refused, and any other left to the trained network.

    Raises:
        UsageError: it is no share, or undefined for all kinds of outputs; what it did with the untrained network's.
    """
    first = None
    of = f"of the untrained network on {split} data"
    for candidate in (outputs, _random(outputs), _telling(outputs, targets)):
        try:
            metric_of(workload, candidate, targets, of)
            return
        except Undefined as undefined:
            first = first or undefined
    raise UsageError(f"{first}; nor is it one for random outputs, or for right ones")


class Undefined(UsageError):
    """A metric that raised, or is no finite number."""


def metric_of(workload: Workload, outputs: Any, targets: Tensor, of: str) -> float:
    """The metric of these outputs: the search knows errors as 1 - metric.

    Args:
        of: whose outputs they are, such as `of the dense model on validation data`.

    Raises:
        Undefined: it raises, or is no finite number.
        UsageError: it is a number outside [0, 1].
    """
    metric = f"workload {workload.name!r}: metric"
    with torch.no_grad():
        try:
            said = f"{metric} {of}, whose output is {describe(outputs)}, with targets of shape {tuple(targets.shape)},"
            returned = call_user(said, workload.metric, outputs, targets)
        except UsageError as error:
            raise Undefined(f"{error}; it must return a share, 0 to 1") from error
        try:
            share = float(returned)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            share, got = math.nan, f"a {type(returned).__name__}"
        else:
            got = f"{share:.9g}"
    if -SLACK <= share <= 1 + SLACK:
        return share
    kind = UsageError if math.isfinite(share) else Undefined
    raise kind(
        f"{metric} must return a share, 0 to 1, larger is better, got {got} {of}: "
        "divide percent by 100, rescale a value without bounds, such as an error to 1 / (1 + error)"
    )


def _random(outputs: Any) -> Any:
    """Outputs of the same form that are all different."""
    generator = torch.Generator().manual_seed(0)

    def drawn(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return torch.randn(tensor.shape, generator=generator).to(tensor)

    return map_tensors(outputs, drawn)


def _telling(outputs: Any, targets: Tensor) -> Any:
    """Outputs of the same form that are the targets where they have their shape, or say their class."""

    def told(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or not tensor.ndim or tensor.is_complex():
            return tensor
        if tensor.shape == targets.shape:
            return targets.to(tensor)
        if tensor.shape == (*targets.shape, 1):
            return targets[..., None].to(tensor)
        if tensor.ndim > 1 and targets.shape == (len(tensor), *tensor.shape[2:]):
            classes = torch.arange(tensor.shape[1]).view(1, -1, *[1] * (tensor.ndim - 2))
            return torch.where(classes == targets[:, None], CERTAIN, -CERTAIN).to(tensor)
        return tensor

    return map_tensors(outputs, told)
