"""A trained network, whichever loop trained it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from pruning.channels.structure import Structure
from search.records import CurvePoint, WrittenFile
from search.training.own_scores import Metrics

UNSEEN = 0.5
"""Share of a training after which its passes see weights of few bits rounded; seeing them from the first step on costs
heavily pruned networks up to a point.
"""
Progress = Callable[[int, int], None]
"""Called with (steps done, total steps)."""


@dataclass(frozen=True)
class Trained:
    """A trained network: what was removed from the dense one, its loss curve, and its scores on validation data.

    `statistics` says which running statistics it is scored with, see `refresh_statistics_`. A network of a policy that
    rounds weights is in stored form, the one that `file` holds; `file` is None for others. `rate` is the peak learning
    rate of a fine-tune. `restored` counts pruned weights that the user's own loop left other than zero, and `ended_at`
    is the share of the training after which it ended, where that was before its schedule did.
    """

    model: nn.Module
    structure: Structure
    curve: tuple[CurvePoint, ...]
    scores: Metrics
    seconds_training: float
    seconds_scoring: float
    statistics: str | None = None
    file: WrittenFile | None = None
    seconds_writing: float = 0.0
    rate: float | None = None
    restored: int = 0
    ended_at: float | None = None


@contextmanager
def subnormals_as_zero() -> Iterator[None]:
    """Treat subnormal numbers as zero: decayed weights near zero slow CPU kernels down many times."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
