"""Computing the user's metric: of all outputs at once, or batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from pruning.outputs import join_batches
from pruning.trees import Tree, contents, joined
from search.metric import SHARE, Metric, OutOfRange

SHARE_REMEDY = (
    "divide percent by 100, and give any other unit as metric=search.Metric(name, function, best=, low=, high=)"
)


def named(metric: Any) -> Metric:
    """The metric with its name and range."""
    return metric if isinstance(metric, Metric) else SHARE


def function_of(metric: Any) -> Any:
    """The function or object that computes it."""
    return metric.function if isinstance(metric, Metric) else metric


def comes_in_parts(metric: Any) -> bool:
    """Whether it is an object that sees one batch after the other."""
    return all(callable(getattr(function_of(metric), name, None)) for name in ("update", "compute", "reset"))


def is_metric(metric: Any) -> bool:
    """Whether it can be computed."""
    return callable(function_of(metric)) or comes_in_parts(metric)


def computed(metric: Any, outputs: Any, targets: Any) -> Any:
    """What it returns for all outputs of a split."""
    found = tally(metric)
    found.add(outputs, targets)
    return found.value()


def share_of(metric: Any, value: Any) -> float:
    """The share that what it returned stands for.

    Raises:
        OutOfRange: a value outside its range.
        TypeError, ValueError: no number.
    """
    try:
        return named(metric).share(float(value))
    except OutOfRange as error:
        raise error if isinstance(metric, Metric) else OutOfRange(error.said, SHARE_REMEDY) from None


def computed_share(metric: Any) -> Callable[[Any, Any], float]:
    """(outputs, targets) -> the share that the metric gives them."""
    return lambda outputs, targets: share_of(metric, computed(metric, outputs, targets))


class Tally(Protocol):
    """Takes batch after batch of a split."""

    def add(self, outputs: Any, targets: Any) -> None: ...
    def value(self) -> Any: ...


def tally(metric: Any) -> Tally:
    """What collects a metric over batches: the user's own object, or all outputs for the user's function."""
    function = function_of(metric)
    return _Running(function) if comes_in_parts(metric) else Gathering(function)


class _Running:
    def __init__(self, metric: Any) -> None:
        self._metric = metric
        metric.reset()

    def add(self, outputs: Any, targets: Any) -> None:
        self._metric.update(outputs, targets)

    def value(self) -> Any:
        return self._metric.compute()


class Gathering:
    """Keeps all outputs and targets for a function of all of them."""

    def __init__(self, metric: Callable[[Any, Any], Any]) -> None:
        self._metric = metric
        self._outputs: list[Any] = []
        self._targets: list[Any] = []

    def add(self, outputs: Any, targets: Any) -> None:
        self._outputs.append(outputs)
        self._targets.append(targets)

    def value(self) -> Any:
        return self._metric(*self.joined())

    def joined(self) -> tuple[Any, Any]:
        """Outputs and targets of all batches."""
        if len(self._outputs) == 1:
            return self._outputs[0], self._targets[0]
        trees = [Tree(targets) for targets in self._targets]
        return join_batches(self._outputs, [len(tree) for tree in trees]), contents(joined(trees))
