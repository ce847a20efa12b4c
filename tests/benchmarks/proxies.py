"""How well do cheap scores predict a policy's accuracy after its fine-tune?

    python tests/benchmarks/proxies.py run [--part 0/2]
    python tests/benchmarks/proxies.py show
    python tests/benchmarks/proxies.py replay

`run` draws 30 policies in each of six cells (three size bands, two granularities) on small Fashion-MNIST, fine-tunes
each with 2 seeds and once with a quarter of the epochs, and scores it without training. Each policy is one line of
`proxies.csv` beside this file; what is there is not run again, so runs resume and can be split. `show` prints rank
correlations cell by cell; `replay` answers whether short first runs, or measuring the front again, pay.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np
import torch
from raw_rows import Row, append_rows, read_rows
from scipy.optimize import nnls
from scipy.special import expit, logit
from scipy.stats import spearmanr
from screener import Screener
from small_fashion import TRIAL_EPOCHS, small_fashion

from pruning.batchnorm import recalibrate_
from pruning.channels.tracing import trace_channels
from pruning.importance.scores import unit_importance
from pruning.prune import prune
from search.proposals.features import Features
from search.proposals.guide import CAUTION, NODES, WEIGHTS
from search.proposals.hypervolume import DominatedSpace, hypervolume, non_dominated
from search.proposals.surrogate import Surrogate
from search.training.dense_model import dense_model
from search.training.evaluate import PreparedModel, evaluate_policy
from search.training.profile_cache import cached_profile
from search.training.scoring import score
from spaces.allocation.allocators import allocate
from spaces.allocation.budget import Target, Unreachable, shifted
from spaces.allocation.importance import AllocationInputs
from spaces.network import Network
from spaces.policy import PruningPolicy
from spaces.search_space.projection import Projector
from spaces.search_space.space import SEED_SCHEDULE, Draft, Space
from spaces.sensitivity import Profile

BANDS = {"25-12 %": (0.12, 0.25), "12-7 %": (0.07, 0.12), "under 7 %": (0.025, 0.07)}
GRANULARITIES = ("fine-grained", "channel")
POLICIES, SEEDS, RUNG = 30, (1, 2), 0.25
REPLAYS, REPLAY_COSTS = 32, (14, 18, 24)
REFERENCE = np.array([0.5, math.log(0.275), 1.05])
"""Error, log encoded size, MACs."""
STATIC = ("lamp", "global", "erk", "uniform", "last-layers")
TABLE = Path(__file__).with_suffix(".csv")
COLUMNS = (
    "band", "granularity", "number", "kind", "size", "macs", "accuracy_1", "accuracy_2", "loss_1", "loss_2",
    "rung_accuracy", "rung_loss", "kl_500", "kl_2000", "zero_shot_accuracy", "seconds", "seconds_kl_500", "sparsity",
)  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """One policy to measure: `kind` says how it was drawn."""

    band: str
    granularity: str
    number: int
    kind: str
    policy: PruningPolicy


def candidates(space: Space, evidence: dict[str, AllocationInputs]) -> Iterator[Candidate]:
    """Cell by cell in turn: each third of a cell is static, jittered around static, or free."""
    for number in range(POLICIES):
        for band, (low, high) in BANDS.items():
            for granularity in GRANULARITIES:
                random = np.random.default_rng([number, list(BANDS).index(band), GRANULARITIES.index(granularity)])
                size = low * (high / low) ** random.random()
                kind = ("static", "jittered", "free")[number % 3]
                sparsity = _drawn(kind, number // 3, space.target(size, granularity), evidence[granularity], random)
                proposal = Projector(space).project(space.params(size, granularity, sparsity, SEED_SCHEDULE))
                yield Candidate(band, granularity, number, kind, proposal.policy)


def _drawn(
    kind: str, turn: int, target: Target, evidence: AllocationInputs, random: np.random.Generator
) -> dict[str, float]:
    if kind == "free":
        return {layer.name: float(1 / (1 + np.exp(-random.normal(0, 1.5)))) for layer in target.layers}
    for name in (STATIC[turn % len(STATIC)], "uniform"):
        try:
            sparsity = allocate(name, target, evidence)
            break
        except Unreachable:
            continue
    spread = 0.7 if kind == "jittered" else 0.0
    return {name: shifted({name: s}, float(random.normal(0, spread)))[name] for name, s in sparsity.items()}


def run(part: int, parts: int, root: Path) -> None:
    workload = small_fashion()
    dense = dense_model(workload, 0, root / "cache")
    subject = PreparedModel.of(workload, dense.model)
    space = Space(subject.network, max(high for _, high in BANDS.values()))
    evidence = {g: AllocationInputs(unit_importance(subject.dense, subject.graph, g)) for g in GRANULARITIES}
    inputs = workload.calibration[0]
    screener = Screener(subject.dense, subject.graph, inputs[:500])
    reference = torch.cat([subject.dense(batch) for batch in inputs.split(500)]).detach()
    for place, candidate in enumerate(candidates(space, evidence)):
        if place % parts == part and _key(candidate) not in _done():
            append_rows(TABLE, COLUMNS, [_measured(candidate, subject, screener, reference)])


def _measured(
    candidate: Candidate, subject: PreparedModel, screener: Screener, reference: torch.Tensor
) -> dict[str, object]:
    began = time.perf_counter()
    kl = screener.divergence(candidate.policy)
    seconds_kl = time.perf_counter() - began
    workload = subject.workload
    pruned = prune(subject.dense, candidate.policy, graph=subject.graph).eval()
    recalibrate_(pruned, workload.calibration[0].split(500))
    with torch.inference_mode():
        logs = torch.log_softmax(torch.cat([pruned(b) for b in workload.calibration[0].split(500)]), 1)
    kl_2000 = torch.nn.functional.kl_div(logs, torch.log_softmax(reference, 1), reduction="batchmean", log_target=True)
    began = time.perf_counter()
    runs = [evaluate_policy(subject, candidate.policy, TRIAL_EPOCHS, seed).result for seed in SEEDS]
    seconds = (time.perf_counter() - began) / len(SEEDS)
    rung = evaluate_policy(subject, candidate.policy, TRIAL_EPOCHS * RUNG, SEEDS[0]).result
    return {
        "band": candidate.band,
        "granularity": candidate.granularity,
        "number": candidate.number,
        "kind": candidate.kind,
        "size": f"{runs[0].shares.encoded:.5f}",
        "macs": f"{runs[0].shares.macs:.5f}",
        **{f"accuracy_{seed}": run.accuracy for seed, run in zip(SEEDS, runs, strict=True)},
        **{f"loss_{seed}": f"{run.loss:.5f}" for seed, run in zip(SEEDS, runs, strict=True)},
        "rung_accuracy": rung.accuracy,
        "rung_loss": f"{rung.loss:.5f}" if rung.loss is not None else "",
        "kl_500": f"{kl:.5f}",
        "kl_2000": f"{float(kl_2000):.5f}",
        "zero_shot_accuracy": f"{score(pruned, workload.calibration, workload).accuracy:.4f}",
        "seconds": f"{seconds:.1f}",
        "seconds_kl_500": f"{seconds_kl:.2f}",
        "sparsity": json.dumps({name: round(s, 5) for name, s in candidate.policy.sparsity.items()}),
    }


def _key(candidate: Candidate) -> tuple[str, str, int]:
    return candidate.band, candidate.granularity, candidate.number


def _done() -> set[tuple[str, str, int]]:
    return {(row["band"], row["granularity"], int(row["number"])) for row in read_rows(TABLE)}


SCORES: Mapping[str, Callable[[Row], float]] = {
    "size alone": lambda row: -float(row["size"]),
    "KL 500": lambda row: float(row["kl_500"]),
    "KL 2000": lambda row: float(row["kl_2000"]),
    "zero-shot accuracy": lambda row: -float(row["zero_shot_accuracy"]),
    "first rung": lambda row: -float(row["rung_accuracy"]),
}
"""Cheap scores, smaller is better. KL and zero-shot accuracy follow BatchNorm recalibration."""


def show(root: Path) -> None:
    """Rank correlations with the error after the fine-tune (mean of the seeds), cell by cell, never pooled."""
    rows = read_rows(TABLE)
    network, scores = _network(root), {name: np.array([of(row) for row in rows]) for name, of in SCORES.items()}
    profile = _profile(root)
    by_layer = np.array([_damages(profile, row) for row in rows])
    errors = logit(np.array([[1 - float(row[f"accuracy_{seed}"]) for seed in SEEDS] for row in rows]))
    scores |= {"scan, added up": by_layer.sum(axis=1), "scan, calibrated": _calibrated(by_layer, errors[:, 0], rows)}
    scores |= {"surrogate": _left_out(network, rows, errors[:, 0]), "noise ceiling": errors[:, 0]}
    cells, table = list(product(GRANULARITIES, BANDS)), {}
    print(f"{'':20}" + "".join(f"{granularity[:8]:>10} {band:<10}" for granularity, band in cells))
    for name, values in scores.items():
        found = [
            _correlation(rows, cell, values, errors[:, 1] if name == "noise ceiling" else errors.mean(1))
            for cell in cells
        ]
        table[name] = [None if math.isnan(rho) else round(rho, 2) for rho, _ in found]
        print(f"{name:20}" + "".join(f"{rho:10.2f} ({p:.3f})   " for rho, p in found))
    counts = [sum(_in(row, cell) for row in rows) for cell in cells]
    print(f"{'policies':20}" + "".join(f"{count:10d}{'':11}" for count in counts))
    print(json.dumps({"benchmark": "proxies", "cells": cells, "n": counts, "spearman": table, **environment()}))


def _in(row: Row, cell: tuple[str, str]) -> bool:
    return (row["granularity"], row["band"]) == cell


def _correlation(
    rows: Sequence[Row], cell: tuple[str, str], values: np.ndarray, errors: np.ndarray
) -> tuple[float, float]:
    """Spearman's rho in one cell, and its two-sided p."""
    chosen = np.array([_in(row, cell) for row in rows])
    found = spearmanr(values[chosen], errors[chosen])
    return float(found.statistic), float(found.pvalue)


def _network(root: Path) -> Network:
    workload = small_fashion()
    return trace_channels(dense_model(workload, 0, root / "cache").model, workload.example_input).network


def _profile(root: Path) -> Profile:
    workload = small_fashion()
    dense = dense_model(workload, 0, root / "cache")
    return cached_profile(PreparedModel.of(workload, dense.model), dense, "magnitude-l2", GRANULARITIES, root / "cache")


def _damages(profile: Profile, row: Row) -> list[float]:
    """What the scan says of each layer's sparsity alone."""
    damages = []
    sparsity = json.loads(row["sparsity"])
    for layer in profile.points["fine-grained"]:
        if layer in profile.points[row["granularity"]]:
            levels, damage = profile.damage(row["granularity"], layer)
            damages.append(float(np.interp(-np.log1p(-sparsity.get(layer, 0.0)), -np.log1p(-levels), damage)))
        else:
            damages.append(0.0)  # the output layer loses no channels
    return damages


def _calibrated(by_layer: np.ndarray, errors: np.ndarray, rows: Sequence[Row]) -> np.ndarray:
    """Non-negative weights of the layers' damages, fitted to the other policies' errors of the same granularity."""
    predicted = np.zeros(len(rows))
    words = np.array([row["granularity"] for row in rows])
    for place in range(len(rows)):
        others = (words == words[place]) & (np.arange(len(rows)) != place)
        columns = np.column_stack([by_layer[others], np.ones(others.sum()), -np.ones(others.sum())])
        weights, _ = nnls(columns, errors[others])
        predicted[place] = np.append(by_layer[place], [1.0, -1.0]) @ weights
    return predicted


def _left_out(network: Network, rows: Sequence[Row], errors: np.ndarray) -> np.ndarray:
    """The surrogate's prediction of each policy from all others, both granularities together."""
    (columns, weights), places = _columns(network, rows), np.arange(len(rows))

    def predicted(place: int) -> float:
        others = places != place
        return float(Surrogate(columns[others], errors[others], weights).predict(columns[[place]]).mean[0])

    return np.array([predicted(place) for place in places])


def _columns(network: Network, rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """What the surrogate sees of each policy, and the weights of its columns."""
    space = Space(network, 0.25)
    drafts = [
        Draft("", float(r["size"]), r["granularity"], space.logits(json.loads(r["sparsity"])), SEED_SCHEDULE)
        for r in rows
    ]
    features = Features(space)
    return features.of(Projector(space).project_batch(drafts)), features.weights


def replay(root: Path) -> None:
    """Would a short first run pay, or measuring members of the front again? Measured policies stand in for fine-tunes.

    Starting from ten random ones, the policy of largest expected gain is taken next, as the guided search would from a
    pool of just these. With a rung, a quarter of a fine-tune is paid first, and the rest only if the expected gain
    after it is at least a quarter of what it was. With repeats, every fourth fine-tune measures the member of the front
    again that holds most of the hypervolume for the times it was measured. A measurement is the mean of a policy's two
    seeds plus noise of their difference (its median where that is more). Shares of the hypervolume of all policies, at
    equal cost, of the front that the measurements choose.
    """
    rows = read_rows(TABLE)
    columns, weights = _columns(_network(root), rows)
    errors = logit(np.array([[1 - float(row[f"accuracy_{seed}"]) for seed in SEEDS] for row in rows]))
    short = logit(np.clip([1 - float(row["rung_accuracy"]) for row in rows], 0.01, 0.95))
    costs = np.array([[math.log(float(row["size"])), float(row["macs"])] for row in rows])
    pool, table = Replayed(columns, weights, errors, short, costs), {}
    for name, options in {
        "full fine-tunes": {},
        "with a rung": {"rung": True},
        "with repeats": {"repeat": True},
    }.items():
        runs = [pool.run(seed, **options) for seed in range(REPLAYS)]
        table[name] = {
            str(at): [round(float(f([run[at] for run in runs])), 4) for f in (np.mean, np.std)] for at in REPLAY_COSTS
        }
        print(f"{name:20}" + "".join(f"{at:>6}: {mean:.4f} ± {sd:.4f}" for at, (mean, sd) in table[name].items()))
    print(json.dumps({"benchmark": "proxies replay", "policies": len(rows), "n": REPLAYS, "share": table}))


@dataclass(frozen=True)
class Replayed:
    """Policies with known results, as if they were fine-tuned one after the other.

    Attributes:
        columns: (n, d) features.
        weights: (d,) of the columns.
        errors: (n, seeds) logits of errors.
        short: (n,) the same after a rung.
        costs: (n, 2) log size and MACs.
    """

    columns: np.ndarray
    weights: np.ndarray
    errors: np.ndarray
    short: np.ndarray
    costs: np.ndarray

    @cached_property
    def truth(self) -> np.ndarray:
        """(n, 3) error, log size and MACs."""
        return np.column_stack([expit(self.errors.mean(axis=1)), self.costs])

    @cached_property
    def noise(self) -> np.ndarray:
        """Standard deviation (n,) of one seed, in logits."""
        each = np.abs(np.diff(self.errors, axis=1)[:, 0]) / math.sqrt(2)
        return np.maximum(each, np.median(each))

    def run(self, seed: int, rung: bool = False, repeat: bool = False) -> dict[int, float]:
        """Cost in fine-tunes -> share of the hypervolume of all policies."""
        random = np.random.default_rng(seed)
        measured: dict[int, list[float]] = {}
        stopped: dict[int, float] = {}

        def measure(place: int) -> None:
            truth = self.errors[place].mean()
            measured.setdefault(place, []).append(truth + random.normal(0, self.noise[place]))

        for place in random.choice(len(self.errors), 10, replace=False):
            measure(int(place))
        spent, found, turn = len(measured) * (1 + RUNG * rung), {}, 0
        while spent < max(REPLAY_COSTS):
            turn += 1
            tuned, means = list(measured), np.array([np.mean(own) for own in measured.values()])
            known = [*tuned, *stopped]
            values = np.array([*means, *stopped.values()])
            surrogate = Surrogate(self.columns[known], values, self.weights)
            front = self._points(tuned, surrogate.predict(self.columns[tuned]).mean)
            if repeat and turn % 4 == 0:
                measure(tuned[_most_held(front, [len(own) for own in measured.values()])])
                spent += 1
            else:
                spent += self._tune_next(surrogate, front, measure, measured, stopped, rung)
            found |= {at: self._share(measured) for at in REPLAY_COSTS if spent <= at}
        return found

    def _tune_next(
        self,
        surrogate: Surrogate,
        front: np.ndarray,
        measure: Callable[[int], None],
        measured: Mapping[int, Sequence[float]],
        stopped: dict[int, float],
        rung: bool,
    ) -> float:
        """Measure the policy of largest expected gain, or stop it after its rung; returns the cost."""
        left = np.setdiff1d(np.arange(len(self.errors)), [*measured, *stopped])
        prediction, space = surrogate.predict(self.columns[left]), DominatedSpace(front, REFERENCE)
        gains = self._gain(space, prediction.mean, prediction.sd, left)
        chosen = int(left[np.argmax(gains)])
        if rung:
            tuned, means = list(measured), [np.mean(own) for own in measured.values()]
            line = np.polyfit(self.short[tuned], means, 1)
            spread = np.std(means - np.polyval(line, self.short[tuned]))
            after = np.polyval(line, self.short[[chosen]])
            if self._gain(space, after, np.array([spread]), np.array([chosen]))[0] < RUNG * gains.max():
                stopped[chosen] = float(after[0])
                return RUNG
        measure(chosen)
        return 1 + RUNG * rung

    def _points(self, places: Sequence[int], logits: np.ndarray) -> np.ndarray:
        return np.column_stack([expit(logits), self.costs[places]])

    def _gain(self, space: DominatedSpace, mean: np.ndarray, sd: np.ndarray, places: np.ndarray) -> np.ndarray:
        possible = expit(mean[:, None] + CAUTION * sd[:, None] * NODES)
        return space.improvement(possible, self.costs[places, 0], self.costs[places, 1]) @ WEIGHTS

    def _share(self, measured: Mapping[int, Sequence[float]]) -> float:
        places = list(measured)
        front = non_dominated(self._points(places, np.array([np.mean(own) for own in measured.values()])))
        return hypervolume(self.truth[places][front], REFERENCE) / hypervolume(self.truth, REFERENCE)


def _most_held(points: np.ndarray, times: Sequence[int]) -> int:
    """The point without which most of the hypervolume is lost, over the times it was measured."""
    whole = hypervolume(points, REFERENCE)
    lost = [(whole - hypervolume(np.delete(points, n, 0), REFERENCE)) / times[n] for n in range(len(points))]
    return int(np.argmax(lost))


def environment() -> dict[str, str]:
    return {"torch": torch.__version__, "machine": platform.processor() or platform.machine()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "show", "replay"))
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--root", type=Path, default=Path("mlruns"))
    options = parser.parse_args()
    part, parts = map(int, options.part.split("/"))
    if options.command == "run":
        run(part, parts, options.root)
    elif options.command == "show":
        show(options.root)
    else:
        replay(options.root)


if __name__ == "__main__":
    main()
