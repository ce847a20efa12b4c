"""The workload: a model with its data, recipe, metric and example input."""

from __future__ import annotations

import logging
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from pruning.outputs import on_cpu
from search.placement import CPU, Placement
from search.workloads.metrics import accuracy, default_metric
from search.workloads.recipe import Recipe
from search.workloads.splits import Split, as_tensors

AnySplit = Split | Dataset[Any] | DataLoader[Any]
"""How a split may be given: a pair of tensors, a map-style data set of pairs, or a `DataLoader` over one."""
log = logging.getLogger(__name__)
SPLITS = ("fit", "calibration", "validation", "test")
_FIRST_TWO: Any = None
"""For `example_input`: the first two fit inputs."""


@dataclass(frozen=True)
class Workload:
    """What a study searches on.

    Attributes:
        name: short; letters, digits, `.`, `_` and `-`.
        build_model: makes the untrained model; two calls give the same names and shapes.
        fit: data that weights are trained on: (inputs (n, ...), targets (n, ...)), or a map-style dataset of such
            pairs, or a `DataLoader` over one, which is read once, in order, into tensors.
        calibration: the data that scans and data-driven criteria use.
        validation: the data that trials are compared on.
        test: read once for each finalist, and by nothing else.
        recipe: how networks are trained and fine-tuned.
        loss: (outputs, targets) -> scalar tensor; default cross-entropy. Outputs are what the network returns: a
            tensor, or tensors in dicts, tuples, lists and dataclasses.
        metric: (outputs, targets) of all examples of a split -> float in [0, 1], larger is better. The default is
            accuracy; with a binary cross-entropy, that of one output. Outputs of batches are joined along their first
            dimension. The metric is tried before any training: one outside [0, 1], or undefined for every kind of
            outputs, is refused.
        weights: a file of trained weights (`.safetensors`, or `.pt` that loads with weights_only), or `as built` if
            `build_model` returns the trained network. Without it the dense model is trained once, on `fit` only, and
            cached, unless it turns out to be trained already: the same weights under every seed, which do the task
            well.
        train_dense: train the dense model even if it is trained already, as when fine-tuning a pretrained network.
        example_input: a batch for tracing; default the first two fit inputs.
        augment: (inputs, generator) -> inputs, applied to each training batch, on the placement's device; the generator
            is the CPU's, so that draws are equal everywhere.
        placement: where its networks are trained and scored; commands set it by their `--device`, see `placed`.

    Raises:
        ValueError: an empty split, or one whose inputs and targets differ in length.
    """

    name: str
    build_model: Callable[[], nn.Module]
    fit: Split
    calibration: Split
    validation: Split
    test: Split
    recipe: Recipe = field(default_factory=Recipe)
    loss: Callable[[Any, Tensor], Tensor] = nn.functional.cross_entropy
    metric: Callable[[Any, Tensor], float] = accuracy
    weights: str | Path | None = None
    train_dense: bool = False
    example_input: Tensor = _FIRST_TWO
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    placement: Placement = CPU

    if TYPE_CHECKING:  # a split is held as tensors, however it was given, and there is always an example input

        def __init__(
            self,
            name: str,
            build_model: Callable[[], nn.Module],
            fit: AnySplit,
            calibration: AnySplit,
            validation: AnySplit,
            test: AnySplit,
            recipe: Recipe = ...,
            loss: Callable[[Any, Tensor], Tensor] = ...,
            metric: Callable[[Any, Tensor], float] = ...,
            weights: str | Path | None = None,
            train_dense: bool = False,
            example_input: Tensor | None = None,
            augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
            placement: Placement = ...,
        ) -> None: ...

    def __post_init__(self) -> None:
        if not self.name or not all(c.isalnum() or c in "._-" for c in self.name) or self.name[0] in ".-":
            raise ValueError(f"workload name may hold letters, digits, '.', '_' and '-', got {self.name!r}")
        drawn = []
        for split in SPLITS:
            tensors, changes = as_tensors(getattr(self, split), split)
            object.__setattr__(self, split, on_cpu(tensors))  # the placement says where they are used
            drawn += [split] if changes else []
        if drawn:
            log.warning(
                "workload %r: examples of %s change each time they are read; they are read once, under fixed seeds, "
                "and stay as they are then: give random changes of training inputs as augment=",
                self.name,
                ", ".join(drawn),
            )
        if self.train_dense and self.weights is not None:
            raise ValueError(
                f"train_dense trains what build_model returns, so weights {str(self.weights)!r} have no use: leave one "
                "of them out"
            )
        if self.metric is accuracy:
            object.__setattr__(self, "metric", default_metric(self.loss))
        if self.example_input is None:
            object.__setattr__(self, "example_input", self.fit[0][:2].clone())


def placed(workload: Workload, placement: Placement) -> Workload:
    """The workload whose networks are made, trained and scored there; its splits stay where they are until used.

    A loss that is a module, such as one with weights of classes, goes with them; metrics are computed on the CPU.
    """
    if placement == workload.placement and workload.example_input.device == placement.device:
        return workload
    loss = workload.loss
    if isinstance(loss, nn.Module):
        loss = deepcopy(loss).to(placement.device)
    placement.refuse_types(f"workload {workload.name!r}: the example input", [workload.example_input])
    example = workload.example_input.to(placement.device)
    return replace(workload, placement=placement, loss=loss, example_input=example)
