"""Scores of a network on a split: whole, where it is in memory, and else batch by batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pruning.batches import examples_at_once
from pruning.outputs import join_batches, on_cpu
from pruning.trees import NetworkInputs, contents, run
from search.errors import OwnCodeProblem
from search.placement import CPU, Placement
from search.training.examples import kept
from search.training.own_scores import Metrics, evaluating, scored_by_user
from search.user_code.blame import told
from search.user_code.loading import pass_signals_on
from search.workloads.base import Workload
from search.workloads.examples import Examples
from search.workloads.splits import Split, as_examples
from search.workloads.tally import comes_in_parts, share_of, tally

TRIED = 8
"""Examples by which it is found how many are scored at once, where they are not in memory."""


@torch.no_grad()
def predict(model: nn.Module, inputs: NetworkInputs, placement: Placement = CPU) -> Any:
    """Outputs of all examples of a split in eval mode, joined; the model's training flags are unchanged.

    Args:
        placement: the model's, to which batches are copied; outputs stay there.
    """
    with evaluating(model):
        batches = inputs.split(examples_at_once(model, inputs))
        return join_batches([run(model, placement.put(batch)) for batch in batches], [len(batch) for batch in batches])


@torch.no_grad()
def score(model: nn.Module, split: str | Split | Examples, workload: Workload) -> Metrics:
    """Loss and metric on a split: the loss of all examples at once if they are in memory, else the mean over batches
    weighted by their examples. Metrics are computed on the CPU, since they are the user's, and may need NumPy.

    Args:
        split: the name of one, which the workload's own `evaluate` scores if it has one, or examples, which it does not
            see.

    Raises:
        OutOfRange: the metric is outside its range.
        OwnCodeProblem: `evaluate` returned no number.
        ValueError: a stream that ended early.
    """
    if isinstance(split, str):
        if workload.evaluate is not None:
            return scored_by_user(model, split, workload)
        split = workload.examples(split)
    counted = tally(workload.metric)
    losses: list[tuple[float, int]] = []
    for one in passes(model, as_examples(split, "scored"), workload):
        losses.append((float(workload.loss(one.outputs, one.wanted)), one.examples))
        counted.add(on_cpu(one.outputs), one.targets)
    accuracy = share_of(workload.metric, counted.value())
    if len(losses) == 1:
        return Metrics(losses[0][0], accuracy)
    return Metrics(sum(loss * n for loss, n in losses) / sum(n for _, n in losses), accuracy)


def test_scores(model: nn.Module, workload: Workload) -> Metrics | str:
    """The scores of a network on test data, or why it has none."""
    try:
        found = score(model, "test", workload)
    except BaseException as error:
        pass_signals_on(error)
        return f"error on test data: {error if isinstance(error, OwnCodeProblem) else told(error)}"
    return found if math.isfinite(found.accuracy) else f"error on test data: the metric is {found.accuracy}"


@dataclass(frozen=True)
class Pass:
    """What a network returned for some examples.

    Attributes:
        outputs: on the network's device.
        targets: on the CPU.
        wanted: the same targets on the network's device.
        examples: how many.
    """

    outputs: Any
    targets: Any
    wanted: Any
    examples: int


def passes(model: nn.Module, examples: Examples, workload: Workload) -> Iterator[Pass]:
    """The outputs of a split, batch by batch; all at once of one that is in memory, unless the metric takes batches."""
    placement = workload.placement
    whole = None if comes_in_parts(workload.metric) else examples.whole
    if whole is not None:
        inputs, wanted = kept(workload, examples).whole or whole
        outputs = predict(model, inputs, placement)
        yield Pass(outputs, contents(whole[1]), contents(placement.put(wanted)), len(inputs))
        return
    size = examples_at_once(model, examples.some(TRIED)[0])
    for batch in examples.in_order(size):
        inputs, wanted = placement.put(batch)
        with torch.no_grad(), evaluating(model):
            outputs = run(model, inputs)
        yield Pass(outputs, contents(batch[1]), contents(wanted), len(inputs))
