"""A workload's examples, where its networks run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pruning.calibration import Calibration
from pruning.outputs import on_cpu
from search.workloads.base import Workload


def epoch_steps(workload: Workload) -> int:
    """Optimizer steps in one epoch."""
    return max(1, len(workload.fit[0]) // workload.recipe.batch)


def batches(workload: Workload, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches in the same order, with the same augmentation, for the same seed, whatever is trained and wherever.

    Order and draws are the CPU's. Examples are picked on the device where fit data is kept there; else each batch is
    copied to it.
    """
    generator, placement = torch.Generator().manual_seed(seed), workload.placement
    inputs, targets = placement.keep(workload.fit)
    per_epoch = epoch_steps(workload)
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
        place = step % per_epoch * workload.recipe.batch
        picked = order[place : place + workload.recipe.batch]
        batch, wanted = placement.put((inputs[picked], targets[picked]))
        if workload.augment is not None:
            batch = workload.augment(batch, generator)
        yield batch, wanted


def calibration_of(workload: Workload) -> Calibration:
    """What data-driven criteria look at."""
    return Calibration(*workload.calibration, workload.loss).on(workload.placement.device)


def metric_on_cpu(workload: Workload, outputs: Any, targets: Tensor) -> float:
    """The workload's metric of outputs from anywhere; metrics are the user's, and may need NumPy."""
    return float(workload.metric(on_cpu(outputs), on_cpu(targets)))
