"""The losses of training steps, read without waiting for the device at every step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOOK = 50
"""Steps between two looks at losses on a device that works while the program goes on; on a CPU each is looked at."""


class Diverged(Exception):
    """The loss became NaN or infinite; the message names the step."""


class StepLosses:
    """Collects the loss of every step.

    Args:
        at_once: look at each loss as it comes, which on a CPU costs nothing.
    """

    def __init__(self, at_once: bool) -> None:
        self._look_after = 1 if at_once else LOOK
        self._unread: list[Tensor] = []
        self._read: list[float] = []
        self._first = 0

    def add(self, loss: Tensor) -> None:
        """The loss of the next step; raises as `look` does where it is time to look."""
        self._unread.append(loss.detach().reshape(()))
        if len(self._unread) >= self._look_after:
            self.look()

    def look(self) -> None:
        """Read what has been collected, in one wait for the device.

        Raises:
            Diverged: the first loss that is NaN or infinite, with its step.
        """
        if not self._unread:
            return
        values = [float(value) for value in torch.stack(self._unread).tolist()]
        for place, value in enumerate(values):
            if not math.isfinite(value):
                raise Diverged(f"training loss is {value} at step {self._first + place}")
        self._read += values
        self._first += len(values)
        self._unread = []

    def mean(self) -> float:
        """Over the steps since the last call."""
        self.look()
        values, self._read = self._read, []
        return sum(values) / len(values)
