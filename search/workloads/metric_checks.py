"""Whether a search can use a metric: a number from 0 to 1 for every network's outputs."""

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
"""How far a metric may leave [0, 1], since single precision rounds."""
CERTAIN = 10.0
"""The output for the right class in outputs that give the targets away; other classes get its negative."""


def try_metric(workload: Workload, outputs: Any, targets: Tensor, split: str) -> None:
    """Refuse a metric that is outside [0, 1] for these outputs of an untrained network.

    If it is undefined for them, as a correlation is for constant outputs, random outputs and outputs that give the
    targets away are tried. A metric that is undefined for those too is refused; any other is checked again on the
    trained network.

    Raises:
        UsageError: it is outside [0, 1], or undefined for all of these; tells what it did with the untrained network's.
    """
    first = None
    of = f"of the untrained network on {split} data"
    for candidate in (outputs, _random(outputs), _telling(outputs, targets)):
        try:
            metric_of(workload, candidate, targets, of)
            return
        except Undefined as undefined:
            first = first or undefined
    raise UsageError(f"{first}; random outputs and correct ones give no share either")


class Undefined(UsageError):
    """A metric raised an error, or returned no finite number."""


def metric_of(workload: Workload, outputs: Any, targets: Tensor, of: str) -> float:
    """The metric of these outputs; the search takes 1 - metric as the error.

    Args:
        of: whose outputs they are, such as `of the dense model on validation data`.

    Raises:
        Undefined: it raises, or is not a finite number.
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
    """Outputs of the same form, all different."""
    generator = torch.Generator().manual_seed(0)

    def drawn(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return torch.randn(tensor.shape, generator=generator).to(tensor)

    return map_tensors(outputs, drawn)


def _telling(outputs: Any, targets: Tensor) -> Any:
    """Outputs of the same form that equal the targets if the shapes agree, and otherwise name their class."""

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
