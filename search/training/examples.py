"""A workload's examples, where its networks run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import torch

from pruning.analysis.sensitivity_scan import SCAN_EXAMPLES
from pruning.calibration import Calibration
from pruning.outputs import map_tensors
from pruning.trees import ModelInputs
from search.user_code.randomness import seed_of
from search.workloads.base import Workload
from search.workloads.batch_form import Batch, tensors_of
from search.workloads.examples import Examples, InMemory


def epoch_steps(workload: Workload) -> int:
    """Optimizer steps in one epoch."""
    return workload.examples("fit").epoch_steps(workload.recipe.batch)


def kept(workload: Workload, examples: Examples) -> Examples:
    """The examples, on the device of the workload's networks if they are in memory and fit there."""
    whole = examples.whole
    if whole is None or workload.placement.on_cpu:
        return examples
    there = iter(workload.placement.keep(tuple(tensors_of(whole))))
    inputs, targets = (map_tensors(part, lambda _: next(there)) for part in whole)
    return InMemory(examples.name, inputs, targets)


def batches(workload: Workload, steps: int, seed: int) -> Iterator[Batch]:
    """Batches in the same order, with the same augmentation, for the same seed, whatever is trained and wherever.

    Order and draws are the CPU's. Examples are picked on the device where fit data is kept there; else each batch is
    copied to it. Data sets that draw at random draw anew in every epoch, by a seed that follows from this one and the
    epoch.
    """
    generator, placement = torch.Generator().manual_seed(seed), workload.placement
    fit, per_epoch = kept(workload, workload.examples("fit")), epoch_steps(workload)
    for epoch in range(-(-steps // per_epoch)):
        taken = fit.epoch(workload.recipe.batch, generator, seed_of(seed, epoch))
        for batch in islice(taken, steps - epoch * per_epoch):
            inputs, targets = placement.put(batch)
            if workload.augment is None:
                yield inputs, targets
            elif isinstance(inputs, ModelInputs):
                yield replace(inputs, tree=workload.augment(inputs.tree, generator)), targets
            else:
                yield workload.augment(inputs, generator), targets


def calibration_data(workload: Workload) -> Batch:
    """Calibration data in memory: all of it, or of a split that is not there as many examples as a scan uses."""
    return workload.examples("calibration").held(SCAN_EXAMPLES)


def calibration_of(workload: Workload) -> Calibration:
    """What data-driven criteria look at."""
    return Calibration(*calibration_data(workload), workload.loss).on(workload.placement.device)
