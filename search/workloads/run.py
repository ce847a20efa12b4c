"""What the user's own training loop and scoring are given."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from search.placement import Placement

DENSE, TRIAL, FINAL, SCORE = "dense", "trial", "final", "score"
STAGES = (DENSE, TRIAL, FINAL, SCORE)


class Loop(Protocol):
    """What follows a training loop from outside."""

    @property
    def steps(self) -> int | None: ...
    @property
    def settled(self) -> bool: ...
    def begin(self, steps: int) -> None: ...
    def progress(self, share: float) -> None: ...
    def report(self, loss: Tensor | float) -> None: ...
    def hold(self) -> None: ...


@dataclass(frozen=True, eq=False)
class Run:
    """One training, or one scoring, as the user's code is asked for it.

    Attributes:
        stage: `dense` (the network before pruning is trained), `trial` (a short fine-tune), `final` (one of full
            length), or `score` (in `evaluate`, which is called alike for all networks, as they are compared).
        epochs: of this training, by the recipe; may be a fraction. 0 in `evaluate`.
        seed: of this training. The global generators of torch, NumPy and Python have it when the function is called,
            and are as they were after it.
        learning_rate: the peak, by the recipe and what pruning did to the network.
        batch: examples a step, by the recipe.
        placement: device and precision.
    """

    stage: str
    epochs: float
    seed: int
    learning_rate: float
    batch: int
    placement: Placement
    _loop: Loop
    _loader: Callable[[str], Iterable[Any]]
    _teacher: Callable[[], nn.Module]

    @property
    def steps(self) -> int | None:
        """Optimizer steps that this training is to take; None where nobody knows: then `begin` or `progress` says."""
        return self._loop.steps

    @property
    def device(self) -> torch.device:
        """Where the network is, and where its inputs are to be."""
        return self.placement.device

    @property
    def precision(self) -> str:
        """Of forward passes in training: `fp32`, `bf16` or `fp16`."""
        return self.placement.precision

    def put(self, batch: Any) -> Any:
        """A batch with all its tensors on the device, in tuples, lists and mappings, however nested."""
        return self.placement.put(batch)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of forward passes: PyTorch's autocast in 16 bits, or none in `fp32` and in `evaluate`."""
        return self.placement.autocast()

    def scaler(self) -> GradScaler:
        """A `GradScaler`, which `fp16` needs; of any other precision it does nothing."""
        return self.placement.scaler() or GradScaler(self.device.type, enabled=False)

    def loader(self, split: str) -> Iterable[Any]:
        """Batches of one of the workload's splits, on the device, as the split was given: pairs, mappings, lists.

        In `train`, those of `fit` are the batches of the whole training, `steps` of them: shuffled by the seed, in
        epochs one after the other, with `augment` applied to the inputs of pairs. Any other split, and any in
        `evaluate`, is gone through once, in order.

        Raises:
            ValueError: no such split, or a stream that is empty or ends early.
        """
        return self._loader(split)

    @property
    def teacher(self) -> nn.Module:
        """The dense network in eval mode, frozen, to learn from; made when it is first asked for.

        Raises:
            UsageError: in the stage `dense` there is none.
        """
        return self._teacher()

    @property
    def settled(self) -> bool:
        """Whether nothing more is chosen to be pruned: from here on the best weights so far are worth keeping."""
        return self._loop.settled

    def begin(self, steps: int) -> None:
        """Say, before the first optimizer step, how many there will be, where `steps` is None or something else."""
        self._loop.begin(steps)

    def progress(self, share: float) -> None:
        """Say which share of the training is done, 0 to 1, before a step, in place of steps that are counted."""
        self._loop.progress(share)

    def report(self, loss: Tensor | float) -> None:
        """Tell a training loss, for the record. One that is NaN or infinite ends the training, as does a time limit."""
        self._loop.report(loss)

    def hold(self) -> None:
        """Set pruned weights to zero again, and count a step: for optimizers that are not PyTorch's.

        Those have to be called by hand after each step; rounding is then seen at the end of the training only.
        """
        self._loop.hold()
