"""The workload: a model with its data, recipe, metric and example input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from pruning.outputs import tensors_in
from pruning.trees import NetworkInputs, contents
from search.metric import Metric
from search.placement import CPU, Placement
from search.workloads.batch_form import BatchForm, Forward
from search.workloads.examples import Examples
from search.workloads.metrics import accuracy, default_metric
from search.workloads.recipe import Recipe
from search.workloads.run import Run
from search.workloads.splits import Split, as_examples, split_of
from spaces.validation import unknown

AnySplit = tuple[Any, ...] | Mapping[str, Any] | Dataset[Any] | DataLoader[Any] | Callable[[], Iterable[Any]] | Examples
"""How a split may be given, see `Workload`."""
SPLITS = ("fit", "calibration", "validation", "test")
Train = Callable[[nn.Module, Run], nn.Module | None]
"""A training loop of the user's, see `Workload.train`."""
Evaluate = Callable[[nn.Module, str, Run], Any]
"""(model, split, run) -> a number, or a mapping of names to numbers."""
_FIRST_TWO: Any = None
"""For `example_input`: the first two fit inputs."""
_THEIRS: Any = None
"""For a split that only the user's own `train` and `evaluate` know."""


@dataclass(frozen=True)
class Workload:
    """What a study searches on.

    Attributes:
        name: short; letters, digits, `.`, `_` and `-`.
        build_model: makes the untrained model; two calls give the same names and shapes.
        fit: data that weights are trained on: (inputs (n, ...), targets (n, ...)), a map-style dataset of such pairs, a
            `DataLoader`, or a function that returns the batches of one pass. Batches may also be (several, inputs,
            targets) or mappings, see `forward` and `targets`. Networks are trained in an order, and in batches, of our
            own, but those of a stream (a function, an iterable dataset, a loader with a sampler of its own or of a
            class derived from `DataLoader`) are taken as they come. Datasets are read where they are needed; small ones
            that do not change are kept in memory.
        calibration: the data that scans and data-driven criteria use.
        validation: the data that trials are compared on.
        test: read once for each finalist, by `apply` for the networks that it compares, and by nothing else.
        recipe: how networks are trained and fine-tuned.
        loss: (outputs, targets) -> scalar tensor, the mean over examples; default cross-entropy. Outputs are what the
            network returns: a tensor, or tensors in dicts, tuples, lists and dataclasses.
        metric: (outputs, targets) of all examples of a split -> float in [0, 1], larger is better; or an object with
            `update(outputs, targets)`, `compute()` and `reset()`; or either in a `Metric` that says unit and range. The
            default is accuracy; with a binary cross-entropy, that of one output. Outputs of batches are joined along
            their first dimension, on the CPU. The metric is tried before any training: one outside its range, or
            undefined for every kind of outputs, is refused.
        weights: a file of trained weights (`.safetensors`, or `.pt` that loads with weights_only), or `as built` if
            `build_model` returns the trained network. Without it the dense model is trained once, on `fit` only, and
            cached, unless it turns out to be trained already: the same weights under every seed, which do the task
            well.
        train_dense: train the dense model even if it is trained already, as when fine-tuning a pretrained network.
        example_input: a batch for tracing; default the first two fit inputs.
        augment: (inputs, generator) -> inputs, applied to each training batch, on the placement's device; the generator
            is the CPU's, so that draws are equal everywhere.
        placement: where its networks are trained and scored; commands set it by their `--device`, see `placed`.
        forward: (model, batch) -> outputs, where the network is not called on the inputs as they are: by a mapping's
            entries as named arguments, by several inputs in their order. It is given whole batches, targets included.
        targets: the name of the targets, or names of several, in batches that are mappings; default `labels`, `label`,
            `targets`, `target` or `y`. Of several, loss and metric get a mapping.
        steps_per_epoch: batches that count as one epoch where `fit` is a stream without a length.
        data_version: any word that is changed when the data behind the splits does. Of tensors and small datasets every
            example is compared on resuming, of everything else 64 examples, or the first of a stream, and this word.
        train: a training loop of the user's own, `train(model, run)`, in place of the one here. It trains the network
            that it is given, in place, as a `Run` says, and returns None or a copy of that network, such as an average
            of its weights. Pruned weights stay zero by themselves, after every step of a `torch.optim.Optimizer`.
        evaluate: the user's own scoring, `evaluate(model, split, run)`, in place of `metric`'s function: the value of
            the metric, in its unit, or a mapping that holds it under the metric's name and may hold `loss`. It is
            called with `validation`, `test` and, by the scan, `calibration`.

    Who brings `train` need not give `fit`, and who brings `evaluate` none of the others: what is None is theirs to
    read. Without `fit` or `calibration`, BatchNorm's statistics stay as the loop leaves them. What is given of
    `calibration` is looked at here too, by data-driven criteria and for the rate of fine-tunes, and then both it and
    `fit` hold inputs and targets as `loss` takes them; splits that nobody else looks at may hold anything, and are
    handed on by `run.loader`.

    Raises:
        ValueError: an empty split, one whose inputs and targets differ in length, batches of no known form, or a split
            that is missing.
    """

    name: str
    build_model: Callable[[], nn.Module]
    fit: Split | Examples = _THEIRS
    calibration: Split | Examples = _THEIRS
    validation: Split | Examples = _THEIRS
    test: Split | Examples = _THEIRS
    recipe: Recipe = field(default_factory=Recipe)
    loss: Callable[[Any, Any], Tensor] = nn.functional.cross_entropy
    metric: Any = accuracy
    weights: str | Path | None = None
    train_dense: bool = False
    example_input: NetworkInputs = _FIRST_TWO
    augment: Callable[[Any, torch.Generator], Any] | None = None
    placement: Placement = CPU
    forward: Forward | None = None
    targets: str | tuple[str, ...] | None = None
    steps_per_epoch: int | None = None
    data_version: str | None = None
    train: Train | None = None
    evaluate: Evaluate | None = None

    if TYPE_CHECKING:  # a split is held in one of two ways, however it was given, and there is always an example input

        def __init__(
            self,
            name: str,
            build_model: Callable[[], nn.Module],
            fit: AnySplit | None = None,
            calibration: AnySplit | None = None,
            validation: AnySplit | None = None,
            test: AnySplit | None = None,
            recipe: Recipe = ...,
            loss: Callable[[Any, Any], Tensor] = ...,
            metric: Any = ...,
            weights: str | Path | None = None,
            train_dense: bool = False,
            example_input: Any = None,
            augment: Callable[[Any, torch.Generator], Any] | None = None,
            placement: Placement = ...,
            forward: Forward | None = None,
            targets: str | tuple[str, ...] | None = None,
            steps_per_epoch: int | None = None,
            data_version: str | None = None,
            train: Train | None = None,
            evaluate: Evaluate | None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        if not self.name or not all(c.isalnum() or c in "._-" for c in self.name) or self.name[0] in ".-":
            raise ValueError(f"workload name may hold letters, digits, '.', '_' and '-', got {self.name!r}")
        form = self._form()
        self._require_splits()
        for split in SPLITS:
            steps = self.steps_per_epoch if split == "fit" else None
            if (given := getattr(self, split)) is not None:
                found = split_of(given, split, form, steps, endless=self.train is not None)
                object.__setattr__(self, split, found)
        if self.train_dense and self.weights is not None:
            raise ValueError(
                f"train_dense trains what build_model returns, so weights {str(self.weights)!r} have no use: leave one "
                "of them out"
            )
        if self.metric is accuracy:
            object.__setattr__(self, "metric", default_metric(self.loss))
        example: Any = self.example_input
        if example is None and not self.reads("fit"):
            raise ValueError(
                "example_input= is missing: a batch of inputs as the network takes them, since nothing is read of fit "
                "data that only train= looks at"
            )
        if example is None:
            example = self.fit[0][:2].clone() if isinstance(self.fit, tuple) else self.fit.example()
        elif self.forward is not None or (
            isinstance(example, tuple | list | Mapping) and any(True for _ in tensors_in(example))
        ):
            example = form.inputs(example)
        object.__setattr__(self, "example_input", example)

    def _form(self) -> BatchForm:
        """How its batches are taken apart, after a look at what says so."""
        if self.forward is not None and not callable(self.forward):
            raise ValueError(f"forward must be a function (model, batch) -> outputs, got {self.forward!r}")
        names = self.targets if isinstance(self.targets, tuple | list) else (self.targets,)
        if self.targets is not None and not (names and all(isinstance(name, str) and name for name in names)):
            raise ValueError(f"targets must name entries of mappings, such as 'labels', got {self.targets!r}")
        steps, version = self.steps_per_epoch, self.data_version
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
            raise ValueError(f"steps_per_epoch must be a whole number >= 1, got {steps!r}")
        if version is not None and not isinstance(version, str):
            raise ValueError(f"data_version must be a word, such as '2026-11', got {version!r}")
        return BatchForm(self.forward, tuple(names) if isinstance(self.targets, list) else self.targets)

    def _require_splits(self) -> None:
        """Raise `ValueError` for a split that is missing and that nobody of the user's reads in its place."""
        for name, given in (("train", self.train), ("evaluate", self.evaluate)):
            if given is not None and not callable(given):
                raise ValueError(f"{name} must be a function, got {given!r}")
        owners = {"fit": "train", **dict.fromkeys(SPLITS[1:], "evaluate")}
        for split, owner in owners.items():
            if getattr(self, split) is None and getattr(self, owner) is None:
                raise ValueError(f"split {split!r} is missing: give {split}=, or leave it to {owner}= of your own")
        if self.fit is None and self.steps_per_epoch is not None:
            raise ValueError(
                f"steps_per_epoch={self.steps_per_epoch} is for a stream in fit=, and there is none: leave it out, and "
                "let train call run.begin(steps=)"
            )

    def has(self, split: str) -> bool:
        """Whether a split was given."""
        return getattr(self, split) is not None

    def reads(self, split: str) -> bool:
        """Whether a split was given and anything but the user's own `train` and `evaluate` looks at its examples."""
        if split == "fit":
            return self.has(split) and (self.train is None or self.has("calibration"))
        return self.has(split) and (self.evaluate is None or split == "calibration")

    def examples(self, split: str) -> Examples:
        """The examples of one of `SPLITS`.

        Raises:
            ValueError: it was not given, or there is no such split.
        """
        if split not in SPLITS:
            raise ValueError(unknown("split", split, SPLITS))
        if not self.has(split):
            raise ValueError(f"workload {self.name!r} has no split {split!r}: give it {split}=")
        return as_examples(getattr(self, split), split)


def with_dense_value(workload: Workload, metric: object) -> Workload:
    """The workload whose metric compares with the dense network's value that another metric knows, if it needs one."""
    own = workload.metric
    if not (isinstance(own, Metric) and isinstance(metric, Metric)) or own.has_range or metric.dense is None:
        return workload
    made = replace(workload, metric=replace(own, dense=metric.dense))
    vars(made).update({key: value for key, value in vars(workload).items() if key not in vars(made)})
    return made


def placed(workload: Workload, placement: Placement) -> Workload:
    """The workload whose networks are made, trained and scored there; its splits stay where they are until used.

    A loss that is a module, such as one with weights of classes, goes with them; metrics are computed on the CPU.
    """
    if placement == workload.placement and workload.example_input.device == placement.device:
        return workload
    loss = workload.loss
    if isinstance(loss, nn.Module):
        loss = deepcopy(loss).to(placement.device)
    placement.refuse_types(
        f"workload {workload.name!r}: the example input", tensors_in(contents(workload.example_input))
    )
    example = workload.example_input.to(placement.device)
    return replace(workload, placement=placement, loss=loss, example_input=example)
