"""Scores of a network by the user's own `evaluate`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from pruning.devices import forked_rng
from pruning.outputs import describe
from search.errors import OwnCodeProblem
from search.records import FLOAT32
from search.training.examples import given_in_order
from search.training.losses import Diverged
from search.user_code.randomness import seeded
from search.workloads.base import Workload
from search.workloads.run import SCORE, Run
from search.workloads.tally import named, share_of
from spaces.validation import unknown

SEED = 0
"""Under which every network is scored, so that one scores the same each time."""
LOSS = "loss"


@dataclass(frozen=True)
class Metrics:
    """Mean loss of a model on a split, and its metric as a share, 0 to 1."""

    loss: float
    accuracy: float


def scored_by_user(model: nn.Module, split: str, workload: Workload) -> Metrics:
    """What `evaluate` says of a split. Where it says no loss, that is the share which is missing to 1.

    Raises:
        OutOfRange: a value outside the metric's range.
        OwnCodeProblem: no number.
    """
    value, loss = evaluated(model, split, workload)
    accuracy = share_of(workload.metric, value)
    return Metrics(1 - accuracy if loss is None else loss, accuracy)


def require_finite(scores: Metrics, workload: Workload, when: str) -> None:
    """Raise `Diverged` where the loss on validation data, or what `evaluate` says of it, is not finite."""
    if workload.evaluate is not None and not math.isfinite(scores.accuracy):
        raise Diverged(f"evaluate returned {scores.accuracy} {when}: let it return a bad value where it is undefined")
    if not math.isfinite(scores.loss):
        raise Diverged(f"validation loss is {scores.loss} {when}")


def evaluated(model: nn.Module, split: str, workload: Workload) -> tuple[float, float | None]:
    """The metric in its own unit, and the loss if there is one. `evaluate` runs in eval mode, without gradients, under
    the same seed for every network; random state and training flags are restored.

    Raises:
        OwnCodeProblem: no number.
    """
    assert workload.evaluate is not None
    placement, loop = replace(workload.placement, precision=FLOAT32), _NoLoop()
    run = Run(
        SCORE, 0, SEED, 0.0, workload.recipe.batch, placement, loop,
        lambda name: given_in_order(workload, name), loop.teacher,
    )  # fmt: skip
    with torch.no_grad(), evaluating(model), forked_rng(placement.device), seeded(SEED):
        torch.manual_seed(SEED)
        returned = workload.evaluate(model, split, run)
    return _numbers(returned, split, workload)


def _numbers(returned: Any, split: str, workload: Workload) -> tuple[float, float | None]:
    name = named(workload.metric).name
    what = f"workload {workload.name!r}: evaluate on {split!r}"
    if not isinstance(returned, Mapping):
        return _number(returned, what, name), None
    if name not in returned:
        raise OwnCodeProblem(
            f"{what} returns a mapping without its metric: {unknown('entry', name, map(str, returned))}"
        )
    loss = None if returned.get(LOSS) is None else _number(returned[LOSS], what, LOSS)
    return _number(returned[name], what, name), loss


def _number(value: Any, what: str, name: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        got = describe(value) if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise OwnCodeProblem(f"{what} must return a number for {name!r}, or a mapping with one, got {got}") from None


class _NoLoop:
    """In place of a training loop, where nothing is trained."""

    steps: int | None = None
    settled = True

    def begin(self, steps: int) -> None:
        self._refuse("begin")

    def progress(self, share: float) -> None:
        self._refuse("progress")

    def report(self, loss: Tensor | float) -> None:
        self._refuse("report")

    def hold(self) -> None:
        self._refuse("hold")

    def teacher(self) -> nn.Module:
        self._refuse("teacher")

    def _refuse(self, name: str) -> NoReturn:
        raise OwnCodeProblem(f"run.{name} belongs to train(): evaluate() trains nothing")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; its training flag is restored."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
