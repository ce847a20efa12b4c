"""Whether a workload trains by what was asked in place of its recipe; what would change nothing is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from pruning.copying import copy_model
from pruning.devices import forked_rng
from search.errors import UsageError
from search.training.examples import given_batches, given_in_order, step_count
from search.training.losses import StepLosses
from search.training.own_checks import Begun
from search.training.own_loop import OwnLoop, Teacher
from search.user_code.loading import call_user
from search.user_code.randomness import seeded
from search.workloads.base import Workload
from search.workloads.run import Run

FOLLOWED_BY = {
    "epochs": ("run.epochs", "run.steps", "run.loader('fit')"),
    "learning_rate": ("run.learning_rate",),
    "batch": ("run.batch", "run.loader('fit')"),
}
"""Option -> what a training loop reads to follow it."""
SEED = 0


class _Enough(BaseException):
    """The first optimizer step is taken. Not an `Exception`, which the loop may catch."""


def require_followed(
    workload: Workload, model: nn.Module, asked: Mapping[str, float], epochs: float, stage: str
) -> None:
    """Refuse options that would change nothing in this workload's fine-tunes.

    A training loop of the user's own is run up to its first optimizer step, on a copy of the model, to see what it
    reads of its run.

    Args:
        workload: with the recipe that the options make.
        model: untrained, on the workload's device.
        asked: names of `FOLLOWED_BY` with their values.
        epochs: of the fine-tune.
        stage: as of `Run.stage`.

    Raises:
        UsageError: batches are not ours to size, or smaller than asked for, or the loop does not read a value.
    """
    if "batch" in asked:
        _require_batch(workload, workload.recipe.batch)
    if not asked or workload.train is None:
        return
    read = _read_by_loop(workload, model, epochs, stage)
    for name, value in asked.items():
        if not read.intersection(FOLLOWED_BY[name]):
            raise UsageError(
                f"{name.replace('_', '-')} {value:g} has no effect on workload {workload.name!r}, whose train= reads "
                f"no {' and no '.join(FOLLOWED_BY[name])}: leave it out, or let train= follow that"
            )


def _require_batch(workload: Workload, batch: int) -> None:
    fit = workload.examples("fit") if workload.has("fit") else None
    if fit is None:
        return
    if fit.has_own_batches:
        raise UsageError(
            f"batch {batch} has no effect on workload {workload.name!r}, whose fit data come in batches of their own: "
            "leave it out, or make them of another size there"
        )
    if fit.count is not None and batch > fit.count:
        raise UsageError(
            f"batch must be at most {fit.count}, the fit examples of workload {workload.name!r}, got {batch}"
        )


def _read_by_loop(workload: Workload, model: nn.Module, epochs: float, stage: str) -> set[str]:
    """What the user's loop has read of its run by its first optimizer step, as `FOLLOWED_BY` has it."""
    assert workload.train is not None
    train = workload.train
    read: set[str] = set()
    recipe, steps = workload.recipe, step_count(workload, epochs)

    class Watched(Run):
        """A run that remembers which of its attributes were read."""

        def __getattribute__(self, name: str) -> Any:
            if name != "steps" or steps is not None:
                read.add(f"run.{name}")
            return super().__getattribute__(name)

    def stop(done: int, total: int) -> None:
        if loop.taken:
            raise _Enough

    def loader(split: str) -> Iterable[Any]:
        if split != "fit":
            return given_in_order(workload, split)
        read.add("run.loader('fit')")
        return loop.drawn(given_batches(workload, epochs, SEED))

    model = copy_model(model).train()
    losses = StepLosses(at_once=True)
    loop = OwnLoop(model, None, None, steps, losses, stop, Begun.of(model))
    run = Watched(
        stage, epochs, SEED, recipe.learning_rate, recipe.batch, workload.placement, loop, loader, Teacher(model)
    )

    def first_step() -> None:
        with suppress(_Enough):
            train(model, run)

    with forked_rng(workload.placement.device), seeded(SEED), loop.followed():
        torch.manual_seed(SEED)
        call_user(f"the first training step of {workload.name!r}", first_step)
    return read
