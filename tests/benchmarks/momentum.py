"""Scores of fine-tuned networks at several momenta of BatchNorm: as the running statistics come, and refreshed.

    python tests/benchmarks/momentum.py digits mobilenet

Weights do not depend on the momentum, only the statistics they are scored with do. The dense model is trained once,
then fine-tuned at each momentum by two policies and several seeds: half of all channels, and 80 % of all weights.
Prints a table of validation accuracies, and ends with one JSON line. Nothing is tuned on these numbers.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from statistics import fmean
from typing import Any

import torch
from small_fashion import small_fashion
from study import hardware
from torch import nn

from search.training import stored
from search.training.evaluate import PreparedModel
from search.training.scoring import score
from search.training.train import fine_tune, train_dense
from search.workloads import Workload, get_workload
from spaces.network import Network
from spaces.policy import PruningPolicy
from spaces.schedule import Schedule

MOMENTA = (0.1, 0.01, 0.0003, 0.0)
"""PyTorch's default, and those of MobileNetV3 and EfficientNet, of MNASNet, and of CREPE."""
SEEDS = {"digits": 3, "mobilenet": 2}
WIDTH = 0.25
POLICIES = ("channel 50 %", "fine-grained 80 %")
PACKAGES = ("prunefront", "torch", "torchvision")


@dataclass(frozen=True)
class Row:
    """One fine-tune: accuracies on validation data, shares."""

    task: str
    policy: str
    momentum: float
    seed: int
    as_they_come: float
    refreshed: float
    kept: str | None


def main() -> None:
    """Train, fine-tune, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", choices=list(SEEDS), default=list(SEEDS))
    options = parser.parse_args()
    began, rows, dense = time.perf_counter(), [], {}
    for task in options.tasks:
        accuracy, found = measured(task, workload_of(task), range(SEEDS[task]))
        dense[task], rows = round(accuracy, 4), rows + found
    print(table(rows))
    summary = {
        "hardware": hardware(),
        "versions": {name: version(name) for name in PACKAGES},
        "threads": torch.get_num_threads(),
        "wall_seconds": round(time.perf_counter() - began, 1),
        "seeds": {task: SEEDS[task] for task in options.tasks},
        "dense": dense,
        "rows": [vars(row) for row in rows],
    }
    print(json.dumps(summary))


def workload_of(task: str) -> Workload:
    """`digits` as it is, or torchvision's MobileNetV3-small at a quarter of its width on part of Fashion-MNIST."""
    if task == "digits":
        return get_workload("digits")
    whole = small_fashion()
    parts = {name: tuple(part[:count] for part in getattr(whole, name)) for name, count in
             (("fit", 5000), ("calibration", 500), ("validation", 2000))}  # fmt: skip
    recipe = replace(whole.recipe, batch=64, dense_epochs=8, trial_epochs=1)
    return replace(whole, name="mobilenet", build_model=mobilenet, recipe=recipe, **parts)


def mobilenet() -> nn.Module:
    """For one colour and ten classes; images of 28 x 28 are not halved by the first layer."""
    from torchvision.models import mobilenet_v3_small

    model = mobilenet_v3_small(width_mult=WIDTH, num_classes=10)
    first = model.features[0][0]
    model.features[0][0] = nn.Conv2d(1, first.out_channels, 3, padding=1, bias=False)
    return model


def measured(
    task: str, workload: Workload, seeds: range, momenta: tuple[float, ...] = MOMENTA
) -> tuple[float, list[Row]]:
    """Validation accuracy of the dense model, and a row for every fine-tune of it."""
    trained = train_dense(workload, 0)
    rows = []
    for momentum in momenta:
        dense = with_momentum(trained.model, momentum)
        subject = PreparedModel.of(workload, dense)
        for name in POLICIES:
            policy = policy_of(name, subject.network)
            for seed in seeds:
                with scored_before_refreshing(workload) as came:
                    tuned = fine_tune(dense, policy, workload, subject.graph, workload.recipe.trial_epochs, seed)
                rows.append(Row(task, name, momentum, seed, came[0], tuned.scores.accuracy, tuned.statistics))
    return trained.scores.accuracy, rows


def with_momentum(model: nn.Module, momentum: float) -> nn.Module:
    """A copy whose BatchNorms have it."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    return model


def policy_of(name: str, network: Network) -> PruningPolicy:
    """Half of the channels of every layer that can lose some, or 80 % of the weights of every layer."""
    schedule = Schedule("polynomial")
    if name == "channel 50 %":
        layers = [layer for group in network.groups if group.obstacle is None for layer in group.layers]
        return PruningPolicy(dict.fromkeys(layers, 0.5), "channel", schedule=schedule)
    return PruningPolicy(dict.fromkeys(network.layer_names, 0.8), "fine-grained", schedule=schedule)


@contextmanager
def scored_before_refreshing(workload: Workload) -> Iterator[list[float]]:
    """Collects the validation accuracy of networks just before their statistics are refreshed."""
    came: list[float] = []
    refresh: Callable[..., Any] = stored.refresh_statistics_

    def scoring(model: nn.Module, of: Workload) -> Any:
        came.append(score(model, workload.validation, workload).accuracy)
        return refresh(model, of)

    stored.refresh_statistics_ = scoring
    try:
        yield came
    finally:
        stored.refresh_statistics_ = refresh


def table(rows: list[Row]) -> str:
    """Mean validation accuracy of each task, policy and momentum, with the smallest and largest."""
    lines = ["| network | policy | momentum | n | as they come % | refreshed % |", "|---|---|---|---|---|---|"]
    for key in dict.fromkeys((row.task, row.policy, row.momentum) for row in rows):
        found = [row for row in rows if (row.task, row.policy, row.momentum) == key]
        cells = [spread([getattr(row, name) for row in found]) for name in ("as_they_come", "refreshed")]
        lines.append("| " + " | ".join([*key[:2], f"{key[2]:g}", str(len(found)), *cells]) + " |")
    return "\n".join(lines)


def spread(accuracies: list[float]) -> str:
    """`97.1 (96.7 to 97.5)`."""
    low, mean, high = (100 * value for value in (min(accuracies), fmean(accuracies), max(accuracies)))
    return f"{mean:.1f} ({low:.1f} to {high:.1f})"


if __name__ == "__main__":
    main()
