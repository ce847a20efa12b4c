"""Training by a loop of the user's own: masks, the schedule and rounding are kept up by hooks on optimizer steps."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pruning.channels.structure import Structure
from pruning.copying import copy_model
from pruning.devices import forked_rng
from pruning.gradual import GradualPruner
from pruning.holding import Given, around_steps
from pruning.straight_through import StraightThrough
from search.errors import OwnCodeProblem
from search.records import CurvePoint
from search.training.examples import given_batches, given_in_order, step_count
from search.training.losses import StepLosses
from search.training.optimizers import forget_masked_
from search.training.own_checks import Begun, restored_
from search.training.own_scores import require_finite
from search.training.scoring import score
from search.training.stored import Finish
from search.training.trained import UNSEEN, Progress, Trained, subnormals_as_zero
from search.user_code.randomness import seeded
from search.workloads.base import Workload
from search.workloads.run import Run
from spaces.validation import is_number
from spaces.wording import counted

PARTS = 1000
"""Into how many parts a training is divided whose number of steps nobody knows."""


class OwnLoop:
    """Follows a loop that is not ours, step by step.

    How far it is, is what `progress` says, or else counted: in batches of `run.loader("fit")` if it takes them and did
    not call `begin`, and in optimizer steps otherwise, where several optimizers that take turns count as one.

    Args:
        pruner: with masks in place; None in the dense model's training.
        seen: what rounds weights for the last half; None if nothing does.
        steps: that the training is to take; None if nobody knows.
        begun: the network as it was given.

    Attributes:
        taken: optimizer steps so far.
        versions: of the parameters after the last step; PyTorch counts changes in place.
    """

    def __init__(
        self,
        model: nn.Module,
        pruner: GradualPruner | None,
        seen: StraightThrough | None,
        steps: int | None,
        losses: StepLosses,
        progress: Progress | None,
        begun: Begun,
    ) -> None:
        self.model, self.pruner, self._seen, self._steps, self._begun = model, pruner, seen, steps, begun
        self._losses, self._progress = losses, progress
        self.taken, self._done, self._drawn = 0, 0, 0
        self._share: float | None = None
        self._draws, self._counts, self.reported = False, False, False
        self._turn: set[int] = set()
        self._view = ExitStack()
        self.versions: dict[str, int] = {}
        self.problem: OwnCodeProblem | None = None

    @property
    def steps(self) -> int | None:
        return self._steps

    @property
    def settled(self) -> bool:
        return self.pruner is None or self.pruner.settled

    @property
    def _length(self) -> int:
        return PARTS if self._share is not None or self._steps is None else self._steps

    def begin(self, steps: int) -> None:
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise self._problem(f"run.begin(steps=) takes a whole number >= 1, got {steps!r}")
        if self.taken:
            raise self._problem("run.begin(steps=) comes before the first optimizer step, and one was taken")
        self._steps, self._counts, self._draws = steps, True, False
        if self.pruner:
            self.pruner.of_length(steps)

    def progress(self, share: float) -> None:
        if not (is_number(share) and 0 <= share <= 1):
            raise self._problem(f"run.progress() takes the share of the training that is done, 0 to 1, got {share!r}")
        if self._share is None:
            if self.taken:
                raise self._problem("run.progress() begins before the first optimizer step, and one was taken")
            if self.pruner:
                self.pruner.of_length(PARTS)
        self._share = share
        self._tell()

    def report(self, loss: Tensor | float) -> None:
        """Collect a loss; raises `Diverged` at one that is not finite."""
        if isinstance(loss, Tensor) and loss.numel() != 1:
            raise self._problem(f"run.report(loss=) takes one number, got a tensor of shape {tuple(loss.shape)}")
        self.reported = True
        self._losses.add(loss if isinstance(loss, Tensor) else torch.tensor(float(loss)))
        self._tell()

    def hold(self) -> None:
        self._view.close()
        self._seen = None
        self.taken += 1
        self._after_step(None)

    def drawn(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches, counted as they are taken."""
        self._draws, self._drawn = self._steps is not None and not self._counts, 0
        for batch in batches:
            self._drawn += 1
            yield batch

    @contextmanager
    def followed(self) -> Iterator[None]:
        """The context in which the loop runs."""
        with around_steps(self.model, self._before_step, self._after_any_step), self._view:
            yield

    def _before_step(self, optimizer: Optimizer, given: Given) -> Given | None:
        """Let the step find weights that are not rounded, and the closure that it calls rounded ones."""
        self._view.close()
        args, kwargs = given
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None or not self._rounds:
            return None

        def seen_rounded() -> Any:
            assert self._seen is not None
            with self._seen.seen_by(self.model):
                return closure()

        if "closure" in kwargs:
            return args, {**kwargs, "closure": seen_rounded}
        return (args[0], seen_rounded, *args[2:]), kwargs

    def _after_any_step(self, optimizer: Optimizer) -> None:
        if not self._turn or id(optimizer) in self._turn:
            self.taken += 1
            self._turn.clear()
        self._turn.add(id(optimizer))
        self._after_step(optimizer)

    def _after_step(self, optimizer: Optimizer | None) -> None:
        if self.taken == 1:
            self._require_length_and_names()
        if self._share is None:
            self._done = min(self._drawn if self._draws else self.taken, self._length)
        else:
            self._done = round(self._share * PARTS)
        if self.pruner:
            self.pruner.hold()
            if self.pruner.schedule.regrow and optimizer is not None:
                forget_masked_(optimizer, self.model, self.pruner.masks)
            self._catch_up(self._done)
        if self._rounds and self._seen:
            self._view.enter_context(self._seen.seen_by(self.model))
        self.versions = {name: one._version for name, one in self.model.named_parameters()}
        self._tell()

    @property
    def _rounds(self) -> bool:
        """Whether the next pass is to see rounded weights."""
        return self._seen is not None and UNSEEN * self._length <= self._done < self._length

    def _catch_up(self, step: int) -> None:
        assert self.pruner is not None
        try:
            self.pruner.catch_up(step)
        except ValueError:
            self._losses.look()  # which tells the step at which the loss was lost, if that was first
            raise

    @property
    def ended_at(self) -> float | None:
        """The share of the training after which the loop ended, if something of its schedule or all of its rounding was
        left to do.
        """
        unseen = self._seen is not None and self._done <= UNSEEN * self._length
        return self._done / self._length if unseen or not self.settled else None

    def complete(self, model: nn.Module) -> nn.Module:
        """The network that the loop left, with the rest of the schedule carried out and all chosen channels removed."""
        if self.pruner is None:
            return model
        self.pruner.model = model
        self.pruner.hold()
        self._catch_up(self._length)
        self.pruner.remove()
        return self.pruner.model

    def _require_length_and_names(self) -> None:
        """Refuse, at the first step of a dense training already, what no trial could be trained by."""
        if self._steps is None and self._share is None:
            raise self._problem(
                "nobody says how long the training is, which schedules depend on: let train() call run.begin(steps=) "
                "before the first optimizer step, or run.progress(share) before each"
            )
        if renamed := self._begun.renamed(self.model):
            raise self._problem(renamed)

    def _problem(self, said: str) -> OwnCodeProblem:
        """Remembered, in case the loop catches it."""
        self.problem = OwnCodeProblem(said)
        return self.problem

    def _tell(self) -> None:
        """Show how far it is; this is also where a time limit ends the loop."""
        if self._progress:
            known = self._steps is not None or self._share is not None
            self._progress(self._done if known else self.taken, self._length if known else max(self.taken, 1))


class Teacher:
    """A frozen copy of the dense network, made when it is asked for."""

    def __init__(self, dense: nn.Module | None) -> None:
        self._dense = dense

    def __call__(self) -> nn.Module:
        return self._copy

    @cached_property
    def _copy(self) -> nn.Module:
        if self._dense is None:
            raise OwnCodeProblem("run.teacher is the dense network, and it is being trained: ask for run.stage first")
        return copy_model(self._dense).eval().requires_grad_(False)


@subnormals_as_zero()
def trained_by_user(
    model: nn.Module,
    pruner: GradualPruner | None,
    seen: StraightThrough | None,
    finish: Finish,
    workload: Workload,
    epochs: float,
    peak: float,
    seed: int,
    progress: Progress | None,
    stage: str,
    dense: nn.Module | None,
) -> Trained:
    """Train by the workload's own `train`; what it leaves is checked, completed and scored.

    Raises:
        Diverged: a reported loss, a weight or the validation loss is NaN or infinite.
        OwnCodeProblem: no parameter moved, or the network is not the one given any more.
        ValueError: a removal that cannot equal its mask.
    """
    assert workload.train is not None
    steps, began = step_count(workload, epochs), time.perf_counter()
    losses = StepLosses(at_once=workload.placement.on_cpu)
    if pruner:
        pruner.catch_up(0)
        model = pruner.model
    begun = Begun.of(model.train())
    loop = OwnLoop(model, pruner, seen, steps, losses, progress, begun)

    def loader(split: str) -> Iterable[Any]:
        if split != "fit":
            return given_in_order(workload, split)
        workload.examples(split)  # which refuses one that is not there
        return loop.drawn(given_batches(workload, epochs, seed))

    run = Run(stage, epochs, seed, peak, workload.recipe.batch, workload.placement, loop, loader, Teacher(dense))
    with forked_rng(workload.placement.device), seeded(seed):
        torch.manual_seed(seed)
        with loop.followed():
            returned = workload.train(model, run)
    if loop.problem is not None:
        raise loop.problem
    losses.look()
    model = begun.checked(model if returned is None else returned, loop.taken, loop.steps)
    model = model.to(workload.placement.device)
    restored = restored_(model, pruner.masks, begun, loop.versions) if pruner else 0
    ended_at, model = loop.ended_at, loop.complete(model)
    structure = pruner.structure if pruner else Structure({})
    training = time.perf_counter() - began
    done = finish(model, structure)
    scores = score(model, "validation", workload)
    require_finite(scores, workload, f"after {counted(loop.taken, 'step')}")
    scoring = time.perf_counter() - began - training - done.seconds_writing
    curve = (CurvePoint(epochs, losses.mean(), scores.loss, scores.accuracy),) if loop.reported else ()
    return Trained(
        model.eval(), structure, curve, scores, training, scoring, restored=restored, ended_at=ended_at, **vars(done)
    )
