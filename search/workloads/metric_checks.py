"""Whether a search can use a metric: a number within its range, for every network's outputs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pruning.outputs import describe, map_tensors
from pruning.trees import contents
from search.errors import UsageError
from search.metric import MIN, SLACK, Metric, OutOfRange
from search.user_code.loading import call_user
from search.workloads.base import Workload
from search.workloads.tally import SHARE_REMEDY, computed, named

CERTAIN = 10.0
"""The output for the right class in outputs that give the targets away; other classes get its negative."""


def try_metric(workload: Workload, outputs: Any, targets: Any, split: str) -> None:
    """Refuse a metric that is outside its range for these outputs of an untrained network.

    If it is undefined for them, as a correlation is for constant outputs, random outputs and outputs that give the
    targets away are tried. A metric that is undefined for those too is refused; any other is checked again on the
    trained network.

    Raises:
        UsageError: it is outside its range, or undefined for all of these; tells what it did with the untrained
            network's.
    """
    first = None
    of = f"of the untrained network on {split} data"
    for candidate in (outputs, _random(outputs), _telling(outputs, targets)):
        try:
            metric_of(workload, candidate, targets, of)
            return
        except Undefined as undefined:
            first = first or undefined
    what = "number" if isinstance(workload.metric, Metric) else "share"
    raise UsageError(f"{first}; random outputs and correct ones give no {what} either")


def shape_of(part: Any) -> str:
    """`of shape (2, 3)`, or what a tree holds."""
    return f"of shape {tuple(part.shape)}" if isinstance(part, Tensor) else f"of {describe(contents(part))}"


class Undefined(UsageError):
    """A metric raised an error, or returned no finite number."""


def metric_of(workload: Workload, outputs: Any, targets: Any, of: str) -> float:
    """The metric of these outputs, in its own unit.

    Args:
        of: whose outputs they are, such as `of the dense model on validation data`.

    Raises:
        Undefined: it raises, or is not a finite number.
        UsageError: it is a number outside its range.
    """
    with torch.no_grad():
        try:
            said = f"{_told(workload)} {of}, whose output is {describe(outputs)}, with targets {shape_of(targets)},"
            returned = call_user(said, computed, workload.metric, outputs, targets)
        except UsageError as error:
            wanted = "a number" if isinstance(workload.metric, Metric) else "a share, 0 to 1"
            raise Undefined(f"{error}; it must return {wanted}") from error
    return checked_value(workload, returned, of)


def checked_value(workload: Workload, returned: Any, of: str) -> float:
    """What the metric returned, as a number in its own unit.

    Raises:
        Undefined: no finite number.
        UsageError: a number outside its range.
    """
    try:
        value = float(returned)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        value, got, remedy = math.nan, f"a {type(returned).__name__}", "let it return one number"
    else:
        got, remedy = f"{value:.9g}", f"where it is undefined, let it return {_worst(workload.metric)}"
    if isinstance(workload.metric, Metric):
        if not math.isfinite(value):
            raise Undefined(f"{_told(workload)} must return a finite number, got {got} {of}: {remedy}")
        try:
            workload.metric.share(value)
        except OutOfRange as error:
            raise OutOfRange(f"workload {workload.name!r}: {error.said}, {of}") from None
        return value
    if -SLACK <= value <= 1 + SLACK:
        return value
    kind, remedy = (UsageError, SHARE_REMEDY) if math.isfinite(value) else (Undefined, remedy)
    raise kind(f"{_told(workload)} must return a share, 0 to 1, larger is better, got {got} {of}: {remedy}")


def _worst(metric: object) -> str:
    """The worst value that a metric has, in words."""
    unit = named(metric)
    end = unit.high if unit.best == MIN else unit.low
    return "a bad value" if end is None else f"{end:g}, its worst"


def _told(workload: Workload) -> str:
    if workload.evaluate is not None:
        return f"workload {workload.name!r}: evaluate"
    name = f" {workload.metric.name!r}" if isinstance(workload.metric, Metric) else ""
    return f"workload {workload.name!r}: metric{name}"


def _random(outputs: Any) -> Any:
    """Outputs of the same form, all different."""
    generator = torch.Generator().manual_seed(0)

    def drawn(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return torch.randn(tensor.shape, generator=generator).to(tensor)

    return map_tensors(outputs, drawn)


def _telling(outputs: Any, targets: Any) -> Any:
    """Outputs of the same form that equal the targets if the shapes agree, and otherwise name their class."""

    if not isinstance(targets, Tensor):
        return outputs

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
