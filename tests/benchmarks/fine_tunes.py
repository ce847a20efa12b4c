"""Fine-tunes at several peak rates, by the share of weights kept: is the rate that follows from the damage a good one?

    python tests/benchmarks/fine_tunes.py

VGG9 at 1/8 width (SGD) and an MLP (AdamW) on scikit-learn's digits; policies by LAMP, one-shot; validation accuracy
after a fine-tune of a trial's length. Prints a table, and ends with one JSON line. `docs/fine-tunes.md` has these two
tasks and four others, whose data no dependency ships.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from statistics import fmean

import torch
from study import hardware
from torch import nn

from pruning.calibration import Calibration
from pruning.importance.scores import unit_importance
from search.training.evaluate import PreparedModel
from search.training.rate import peak_rate
from search.training.train import fine_tune, train_dense
from search.workloads import Workload, get_workload
from search.workloads.recipe import FIXED, Recipe
from spaces.allocation.allocators import allocate
from spaces.allocation.budget import Target
from spaces.allocation.importance import AllocationInputs
from spaces.policy import PruningPolicy
from spaces.schedule import Schedule

KEPT = (0.7, 0.5, 0.2, 0.1, 0.05)
SHARES = (1.0, 0.5, 0.2, 0.1, 1 / 30, 0.01)
"""Of the recipe's rate."""
SEEDS = 2


@dataclass(frozen=True)
class Row:
    """One fine-tune: `share` of the recipe's rate, and `rule`, the share by damage."""

    task: str
    kept: float
    share: float
    rule: float
    seed: int
    accuracy: float
    loss: float


def main() -> None:
    """Train, fine-tune, print."""
    began = time.perf_counter()
    rows = [row for workload in workloads() for row in measured(workload)]
    print(table(rows))
    summary = {
        "hardware": hardware(),
        "versions": {name: version(name) for name in ("prunefront", "torch")},
        "threads": torch.get_num_threads(),
        "wall_seconds": round(time.perf_counter() - began, 1),
        "rows": [asdict(row) for row in rows],
    }
    print(json.dumps(summary))


def workloads() -> list[Workload]:
    """The two tasks."""
    digits = get_workload("digits")
    recipe = Recipe(batch=25, dense_epochs=30, trial_epochs=3, optimizer="adamw", learning_rate=0.015)
    return [digits, replace(digits, name="mlp", build_model=mlp, recipe=recipe)]


def mlp() -> nn.Module:
    """For images of 8 x 8."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def measured(workload: Workload) -> Iterator[Row]:
    """A row for every fine-tune."""
    prepared = PreparedModel.of(workload, train_dense(workload, 0).model)
    dense, graph, recipe = prepared.dense, prepared.graph, workload.recipe
    inputs = AllocationInputs(unit_importance(dense, graph, "fine-grained"))
    for kept in KEPT:
        sparsity = allocate("lamp", Target(prepared.network, kept, metric="nonzero"), inputs)
        policy = PruningPolicy(sparsity, schedule=Schedule("one-shot"))
        calibration = Calibration(*workload.calibration, workload.loss)
        rule = peak_rate(dense, policy, workload, graph, calibration) / recipe.learning_rate
        for share in SHARES:
            fixed = replace(recipe, rate=FIXED, learning_rate=share * recipe.learning_rate)
            for seed in range(SEEDS):
                tuned = fine_tune(dense, policy, replace(workload, recipe=fixed), graph, recipe.trial_epochs, seed)
                yield Row(workload.name, kept, share, rule, seed, tuned.scores.accuracy, tuned.scores.loss)


def table(rows: list[Row]) -> str:
    """Mean validation accuracy by task, share kept and share of the rate."""
    heads = [f"{share:.2g}" for share in SHARES]
    lines = [f"| task | kept | {' | '.join(heads)} | the rule's share |", "|---" * (3 + len(heads)) + "|"]
    for task, kept in dict.fromkeys((row.task, row.kept) for row in rows):
        of = [row for row in rows if (row.task, row.kept) == (task, kept)]
        means = [fmean(100 * row.accuracy for row in of if row.share == share) for share in SHARES]
        cells = [f"{mean:.2f}" for mean in means]
        lines.append(f"| {task} | {kept:.0%} | {' | '.join(cells)} | {of[0].rule:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
