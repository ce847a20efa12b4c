"""A workload's examples, where its networks run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import torch

from pruning.analysis.sensitivity_scan import SCAN_EXAMPLES
from pruning.calibration import Calibration
from pruning.outputs import describe, map_tensors
from pruning.trees import ModelInputs
from search.user_code.randomness import seed_of
from search.workloads.base import Workload
from search.workloads.batch_form import Batch, tensors_of
from search.workloads.examples import Examples, InMemory
from search.workloads.streams import Stream


def epoch_steps(workload: Workload) -> int:
    """Optimizer steps in one epoch."""
    return workload.examples("fit").epoch_steps(workload.recipe.batch)


def step_count(workload: Workload, epochs: float) -> int | None:
    """The number of optimizer steps in that many epochs, at least 1; None where only the user's own loop knows."""
    fit = workload.examples("fit") if workload.has("fit") else None
    if fit is None or (isinstance(fit, Stream) and not fit.has_length):
        return None
    return max(1, round(epochs * epoch_steps(workload)))


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


def given_batches(workload: Workload, epochs: float, seed: int) -> Iterator[Any]:
    """The batches of a training as the user gave them, for a loop of the user's own: in the order of `batches`, with
    the same augmentation. Of a stream whose length nobody knows they are as many passes as there are whole epochs.

    Raises:
        ValueError: no fit split, or one that ends early; `augment` and batches that are no pairs.
    """
    generator, placement, size = torch.Generator().manual_seed(seed), workload.placement, workload.recipe.batch
    fit, steps = workload.examples("fit"), step_count(workload, epochs)
    if isinstance(workload.fit, tuple):
        fit = kept(workload, fit)
    passes = max(1, round(epochs)) if steps is None else -(-steps // epoch_steps(workload))
    left = steps
    for epoch in range(passes):
        for batch in islice(fit.given(size, generator, seed_of(seed, epoch)), left):
            left = None if left is None else left - 1
            yield _augmented(placement.put(batch), workload, generator)


def _augmented(batch: Any, workload: Workload, generator: torch.Generator) -> Any:
    if workload.augment is None:
        return batch
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise ValueError(
            f"split 'fit' yields {describe(batch)}, and augment= takes the inputs of pairs (inputs, targets): leave it "
            "out, and let train= do it"
        )
    return workload.augment(batch[0], generator), batch[1]


def given_in_order(workload: Workload, split: str) -> Iterator[Any]:
    """One pass over a split, in order, as the user gave it, on the networks' device.

    Raises:
        ValueError: no such split.
    """
    examples, placement = workload.examples(split), workload.placement
    return (placement.put(batch) for batch in examples.given(workload.recipe.batch))


def calibration_data(workload: Workload) -> Batch:
    """Calibration data in memory: all of it, or of a split that is not there as many examples as a scan uses."""
    return workload.examples("calibration").held(SCAN_EXAMPLES)


def calibration_of(workload: Workload) -> Calibration | None:
    """What data-driven criteria look at; None where the workload has no calibration data for them."""
    if not workload.has("calibration"):
        return None
    return Calibration(*calibration_data(workload), workload.loss).on(workload.placement.device)
