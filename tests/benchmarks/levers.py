"""Would distillation, or one shared fine-tune of many masks, make the trials of a study better at equal cost?

    python tests/benchmarks/levers.py run
    python tests/benchmarks/levers.py show

On policies of `proxies.csv` (small Fashion-MNIST; plain accuracies are read from there, same fine-tune seed):

- distilled: the loss is half cross-entropy, half divergence from the dense model's outputs at temperature 2;
- longer: the plain fine-tune for as many more steps as distillation costs;
- warm: a fine-tune from weights trained in one shared run instead of the dense ones, whose cost is printed and comes
  on top. In it every step trains the dense
  network, the smallest policy and two random ones on the same batch (the sandwich rule of slimmable networks).

The shared weights also score every policy without a fine-tune, BatchNorm recalibrated. Every fine-tune is one line of
`levers.csv` beside this file; what is there is not run again.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import product
from pathlib import Path

import numpy as np
import proxies
import torch
from raw_rows import Row, append_rows, read_rows
from scipy.stats import spearmanr
from small_fashion import TRIAL_EPOCHS, small_fashion
from study import hardware
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from pruning.batchnorm import recalibrate_
from pruning.importance.scores import unit_importance
from pruning.policy_masks import policy_masks
from pruning.prune import prune
from search.cli.text_tables import render
from search.proposals.pool import Pool
from search.training.dense_model import dense_model
from search.training.evaluate import PreparedModel, evaluate_policy
from search.training.examples import batches
from search.training.scoring import score
from search.workloads import Workload
from search.workloads.recipe import one_cycle
from spaces.allocation.importance import AllocationInputs
from spaces.policy import PruningPolicy
from spaces.search_space.projection import Projector
from spaces.search_space.space import SEED_SCHEDULE, Space

TABLE = Path(__file__).with_suffix(".csv")
COLUMNS = ("band", "granularity", "number", "lever", "accuracy", "plain_accuracy", "seconds")
EVERY = 6
"""One policy in so many of each cell is fine-tuned."""
SEED, TEMPERATURE = proxies.SEEDS[0], 2.0
DISTILLED_COST = 4 / 3
"""Of a step: the dense model's forward pass on top of a forward and a backward one."""
SHARED_EPOCHS, RANDOM_POLICIES, POOLED = 2, 2, 60
SCREENED = "shared weights"
"""Lever of the scores that follow no fine-tune."""


def run(root: Path) -> None:
    workload = small_fashion()
    dense = dense_model(workload, 0, root / "cache")
    subject = PreparedModel.of(workload, dense.model)
    began = time.perf_counter()
    shared = replace(subject, dense=_shared(subject))
    print(f"shared fine-tune: {time.perf_counter() - began:.0f} s")
    epochs = {"distilled": TRIAL_EPOCHS, "longer": TRIAL_EPOCHS * DISTILLED_COST, "warm": TRIAL_EPOCHS}
    subjects = {"distilled": replace(subject, workload=_distilling(subject)), "longer": subject, "warm": shared}
    done = {(_key(row), row["lever"]) for row in read_rows(TABLE)}
    cells = list(product(proxies.GRANULARITIES, proxies.BANDS))
    for row in read_rows(proxies.TABLE):
        offset = cells.index((row["granularity"], row["band"]))  # kinds of policies alternate
        policy = PruningPolicy(json.loads(row["sparsity"]), row["granularity"], schedule=SEED_SCHEDULE)
        if (_key(row), SCREENED) not in done:
            _note(row, SCREENED, lambda policy=policy: _screened(shared, policy))
        for lever in epochs if (int(row["number"]) + offset) % EVERY == 0 else ():
            if (_key(row), lever) not in done:
                _note(row, lever, lambda policy=policy, lever=lever: _tuned(subjects[lever], policy, epochs[lever]))


def _note(row: Row, lever: str, measure: Callable[[], float]) -> None:
    began = time.perf_counter()
    accuracy = measure()
    own = {"lever": lever, "accuracy": f"{accuracy:.5f}", "plain_accuracy": f"{float(row[f'accuracy_{SEED}']):.5f}"}
    own["seconds"] = f"{time.perf_counter() - began:.1f}"
    append_rows(TABLE, COLUMNS, [{name: row[name] for name in COLUMNS[:3]} | own])


def _key(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in COLUMNS[:3])


def _tuned(subject: PreparedModel, policy: PruningPolicy, epochs: float) -> float:
    return evaluate_policy(subject, policy, epochs, SEED).result.accuracy or 0.0


def _screened(subject: PreparedModel, policy: PruningPolicy) -> float:
    pruned = prune(subject.dense, policy, graph=subject.graph).eval()
    recalibrate_(pruned, subject.workload.calibration[0].split(500))
    return score(pruned, subject.workload.calibration, subject.workload).accuracy


def _distilling(subject: PreparedModel) -> Workload:
    """The workload with a loss that sees the dense model's outputs on the batch augmented last."""
    workload, seen = subject.workload, {}

    def augment(images: Tensor, generator: torch.Generator) -> Tensor:
        seen["batch"] = workload.augment(images, generator)
        return seen["batch"]

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        plain = cross_entropy(outputs, targets)
        if not outputs.requires_grad:  # scoring
            return plain
        with torch.inference_mode():
            taught = log_softmax(subject.dense.eval()(seen["batch"]) / TEMPERATURE, 1)
        own = log_softmax(outputs / TEMPERATURE, 1)
        return (plain + TEMPERATURE**2 * kl_div(own, taught.clone(), reduction="batchmean", log_target=True)) / 2

    return replace(workload, augment=augment, loss=loss)


def _shared(subject: PreparedModel) -> nn.Module:
    """The dense model's weights, trained on under many masks at once."""
    model, workload = copy.deepcopy(subject.dense), subject.workload
    policies = list(_policies(subject))
    masks = [policy_masks(subject.dense, policy, graph=subject.graph)[0] for policy in policies]
    smallest = int(np.argmin([sum(float(m.sum()) for m in own.values()) for own in masks]))
    random, recipe = np.random.default_rng(SEED), workload.recipe
    steps = SHARED_EPOCHS * (len(workload.fit[0]) // recipe.batch)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.0, momentum=recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True
    )
    model.train()
    for step, (inputs, targets) in enumerate(batches(workload, steps, SEED)):
        optimizer.param_groups[0]["lr"] = one_cycle(step, steps, recipe.learning_rate, recipe.warmup)
        optimizer.zero_grad()
        chosen = [{}, masks[smallest], *(masks[n] for n in random.choice(len(masks), RANDOM_POLICIES, replace=False))]
        for own in chosen:
            masked = {name: p * own[name] if name in own else p for name, p in model.named_parameters()}
            (cross_entropy(functional_call(model, masked, (inputs,)), targets) / len(chosen)).backward()
        optimizer.step()
    return model.eval()


def _policies(subject: PreparedModel) -> Iterator[PruningPolicy]:
    """Policies as the guided search draws them before it knows anything."""
    space = Space(subject.network, max(high for _, high in proxies.BANDS.values()))
    evidence = {g: AllocationInputs(unit_importance(subject.dense, subject.graph, g)) for g in space.usable}
    for draft in Pool(space, evidence).draw(POOLED, [], np.random.default_rng(SEED)):
        yield Projector(space).project(draft).policy


def show() -> None:
    """Paired differences to the plain fine-tune, rank correlations of the scores, one JSON line."""
    rows, body, values = read_rows(TABLE), [], {}
    cells = list(product(proxies.GRANULARITIES, proxies.BANDS))
    for lever in dict.fromkeys(row["lever"] for row in rows if row["lever"] != SCREENED):
        own = [row for row in rows if row["lever"] == lever]
        points = np.array([100 * (float(row["accuracy"]) - float(row["plain_accuracy"])) for row in own])
        error = float(points.std(ddof=1) / len(points) ** 0.5)
        seconds = float(np.mean([float(row["seconds"]) for row in own]))
        values[lever] = {"n": len(own), "points": float(points.mean()), "standard_error": error, "seconds": seconds}
        body.append(
            [lever, len(own), f"{points.mean():+.2f} ± {error:.2f}", f"{np.median(points):+.2f}", f"{seconds:.0f}"]
        )
    print("validation accuracy less that of the plain fine-tune, points; ± standard error\n")
    print(render(["lever", "n", "mean", "median", "seconds"], body))
    rhos = {f"{granularity} {band}": _rho(rows, granularity, band) for granularity, band in cells}
    print("\nSpearman's rho of the shared weights' accuracy (no fine-tune) and the fine-tuned one\n")
    print(render(list(rhos), [[f"{rho:.2f}" for rho in rhos.values()]]))
    print(
        json.dumps(
            {"benchmark": "levers", "hardware": hardware(), "torch": version("torch"), "levers": values, "rho": rhos}
        )
    )


def _rho(rows: Sequence[Row], granularity: str, band: str) -> float:
    own = [r for r in rows if (r["lever"], r["granularity"], r["band"]) == (SCREENED, granularity, band)]
    scores, truth = ([float(row[name]) for row in own] for name in ("accuracy", "plain_accuracy"))
    return round(float(spearmanr(scores, truth).statistic), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "show"))
    parser.add_argument("--root", type=Path, default=Path("mlruns"))
    options = parser.parse_args()
    if options.command == "run":
        run(options.root)
    else:
        show()


if __name__ == "__main__":
    main()
