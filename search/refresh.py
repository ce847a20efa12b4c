"""Running statistics made anew before every score that counts."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pruning.calibrate import refresh_
from pruning.calibration import Calibration
from search.workloads.base import Workload

REFRESH_EXAMPLES = 1024
"""Fit examples averaged over at most. Of VGG9 on digits and Fashion-MNIST, fine-tuned with a momentum of 0.01,
validation loss changed by 0.01 at most from 256 examples on, in either direction; 1,024 took 1 to 8 % of a trial's
time."""
REFRESHED, AS_TRAINED = "refreshed", "as trained"


def refresh_statistics_(model: nn.Module, workload: Workload) -> str | None:
    """Average BatchNorm's running statistics over fit data, in place, and keep the better by calibration loss.

    Fit data is taken without augmentation and in batches of the recipe, since those are what the weights were
    normalised by in training. The same examples are used every time, and no random state is touched.

    Returns:
        Which statistics the model has now, `refreshed` or `as trained`; None if it has none that training moves.
    """
    calibration = Calibration(*workload.calibration, workload.loss)
    with torch.random.fork_rng(devices=[]):
        refreshed = refresh_(model, fit_batches(workload), lambda: calibration.mean_loss(model))
    return {True: REFRESHED, False: AS_TRAINED, None: None}[refreshed]


def fit_batches(workload: Workload) -> Iterator[Tensor]:
    """Fit inputs of `REFRESH_EXAMPLES` examples at most, one drawn of each of as many equal stretches, then mixed.

    So every class is met whether examples are sorted by class or take turns, and no batch is of one class alone.
    A batch has at least two examples where there are as many: of a single one BatchNorm may know no variance.
    """
    inputs = workload.fit[0]
    generator = torch.Generator().manual_seed(0)
    count = min(len(inputs), REFRESH_EXAMPLES)
    within = torch.rand(count, generator=generator, dtype=torch.float64)
    drawn = ((torch.arange(count) + within) * len(inputs) / count).long().clamp_max(len(inputs) - 1)
    order = drawn[torch.randperm(count, generator=generator)]
    for part in order.tensor_split(max(1, count // max(2, workload.recipe.batch))):
        yield inputs[part]
