"""What the guided search loses where it proposes while other trials run, and what the proposal then costs.

    python tests/benchmarks/pending_trials.py run world --seeds 0-19
    python tests/benchmarks/pending_trials.py run table --seeds 0-11
    python tests/benchmarks/pending_trials.py run many --seeds 0-2
    python tests/benchmarks/pending_trials.py show
    python tests/benchmarks/pending_trials.py cost

Workers are simulated: each takes a proposal, holds it for some seconds and tells its result; nothing is trained.
`world` is the closed form of `made_up_world.py`, with noise of 0.1 in logits and lognormal durations: 60 trials, the
first 12 of them a study's first points. `table` are the 180 policies of `proxies.csv`, small Fashion-MNIST, with their
own durations and the noise of two seeds: there the guide chooses among the policies it has not proposed yet,
beginning with ten random ones. A run is a few lines of `pending_trials.csv` beside this file, and what is there is not
run again. Volumes are of the true errors of the front that measurements choose.

Ways of looking at pending trials: `draws` is what is built, four draws of what is predicted, with the part of the
deviation that the guide counts in gains; `whole draws` have all of the deviation, and `one draw` is one of those;
`believer` is the predicted mean; `unknown` trials are only not proposed again; a `liar` takes the worst error that was
seen. `many` is the closed form with 256 workers and 512 trials.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import torch
from made_up_world import DENSE_ERROR, REFERENCE, World
from raw_rows import append_rows, read_rows, seed_range
from scipy.special import expit, logit
from study import hardware

from pruning.channels.tracing import trace_channels
from pruning.importance.scores import unit_importance
from search.cli.text_tables import render
from search.proposals import guide
from search.proposals.guide import GuidedProposer
from search.proposals.hypervolume import hypervolume, non_dominated
from search.proposals.pending import PendingPoints
from search.proposals.surrogate import Surrogate
from search.workloads.vgg import VGG9
from spaces.allocation.importance import AllocationInputs
from spaces.cost.footprint import dense_footprint, footprint, relative_cost
from spaces.search_space.initial import initial_points
from spaces.search_space.projection import Projector
from spaces.search_space.space import SEED_SCHEDULE, Draft, Space

TABLE = Path(__file__).with_suffix(".csv")
COLUMNS = ("truth", "mode", "workers", "way", "seed", "at", "volume", "repeated")
DENSE_TABLE_ERROR = 0.0925
"""Of the table's dense network."""
DRAWS, WHOLE, ONE_DRAW, BELIEVER = "draws", "whole draws", "one draw", "believer"
UNKNOWN, LIAR = "unknown", "liar"
ASYNCHRONOUS, WAVES = "asynchronous", "in waves"
COSTS, FINISHED, REPEATS = (0, 16, 64, 256, 1000), 120, 24
"""Pending trials, finished ones and repetitions when the cost of a proposal is measured."""


class WholeDraws(Surrogate):
    """Pending trials end anywhere within the predicted deviation, of which the guide counts a part."""

    def draw(self, features: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
        return self._undone(features, super().draw(features, count, random))

    def _undone(self, features: np.ndarray, values: np.ndarray) -> np.ndarray:
        """What the guide makes these values of."""
        mean = self.predict(features).mean
        return mean + (values - mean) / guide.CAUTION


class Believer(Surrogate):
    """Pending trials end as predicted."""

    def draw(self, features: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
        return self.predict(features).mean[None]


class Liar(WholeDraws):
    """Pending trials end as the worst that was seen."""

    def draw(self, features: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
        return self._undone(features, np.full((1, len(features)), self._y.max() * self._sd + self._mean))


class OnlyAsked(PendingPoints):
    """Pending trials are not proposed again, and that is all."""

    points = ()


CHANGES: Mapping[str, Mapping[str, Any]] = {
    DRAWS: {}, WHOLE: {"Surrogate": WholeDraws}, ONE_DRAW: {"Surrogate": WholeDraws, "DRAWS": 1},
    BELIEVER: {"Surrogate": Believer}, UNKNOWN: {"PendingPoints": OnlyAsked}, LIAR: {"Surrogate": Liar},
}  # fmt: skip
"""What each way replaces in the guide's module."""


@dataclass(frozen=True)
class Outcome:
    """What comes of a trial: how long it takes, its measured error, and its true error, log size and MACs."""

    seconds: float
    measured: float
    point: tuple[float, float, float]


@dataclass(frozen=True)
class Ended:
    """A trial that has finished, and when."""

    number: int
    second: float
    outcome: Outcome
    digest: str


Point = tuple[Mapping[str, Any], str]
"""Values of all axes, and where a proposal came from."""


class Truth:
    """The closed form, with the network of `digits`, untrained.

    Attributes:
        trials: of a run.
        first: what is tried before the guide is asked.
        marks: trials after which the volume is taken.
        durations: and how many mean durations of a trial after which it is, if it is.
    """

    trials, marks = 60, (60,)
    durations: tuple[int, ...] = ()
    seconds = 1.0
    changes: ClassVar[Mapping[str, Any]] = {}

    def __init__(self) -> None:
        torch.manual_seed(0)
        model = VGG9(width=1 / 8, inputs=1, pools=3).eval()
        graph = trace_channels(model, torch.zeros(2, 1, 8, 8))
        self.world = World(graph.network)
        scores = {word: unit_importance(model, graph, word) for word in ("fine-grained", "channel")}
        profile = self.world.profile()
        inputs = {word: AllocationInputs.of(graph.network, word, scores[word], profile) for word in scores}
        self.projector = Projector(Space(graph.network, 0.25), inputs)

    def guide(self, seed: int) -> GuidedProposer:
        return GuidedProposer(self.projector, DENSE_ERROR, seed)

    def first(self, seed: int) -> list[Point]:
        return [(point.params, point.allocator) for point in islice(initial_points(self.projector), 12)]

    def outcome(self, seed: int, number: int, point: Point) -> Outcome:
        network, policy = self.world.network, self.projector.project(point[0]).policy
        error = self.world.error(policy)
        measured = expit(logit(error) + 0.1 * np.random.default_rng([5, seed, number]).normal())
        cost = relative_cost(footprint(network, policy), dense_footprint(network))
        seconds = float(np.random.default_rng([7, seed, number]).lognormal(0, 0.3))
        return Outcome(seconds, float(measured), (error, math.log(cost.encoded), cost.macs))

    def volume(self, ended: Sequence[Ended]) -> float:
        """Of the true points of the front that measurements choose."""
        if not ended:
            return 0.0
        points = np.array([one.outcome.point for one in ended])
        front = non_dominated(np.column_stack([[one.outcome.measured for one in ended], points[:, 1:]]))
        return hypervolume(points[front], REFERENCE)


class MeasuredTruth(Truth):
    """The table of policies that were fine-tuned with two seeds. A point's source is the number of its line."""

    trials, marks, durations = 96, (24, 48, 96), (3, 6, 12, 24)
    changes: ClassVar[Mapping[str, Any]] = {"ROUNDS": 0}

    def __init__(self) -> None:
        self.rows = read_rows(TABLE.with_name("proxies.csv"))
        self.seconds = float(np.mean([float(row["seconds"]) for row in self.rows]))
        each = logit(np.array([[1 - float(row[f"accuracy_{seed}"]) for seed in (1, 2)] for row in self.rows]))
        apart = np.abs(np.diff(each, axis=1)[:, 0]) / math.sqrt(2)
        self.errors, self.noise = each.mean(axis=1), np.maximum(apart, np.median(apart))
        self.costs = np.array([[math.log(float(row["size"])), float(row["macs"])] for row in self.rows])
        self.whole = hypervolume(np.column_stack([expit(self.errors), self.costs]), REFERENCE)
        model = VGG9(width=1 / 8, inputs=1).eval()
        self.projector = Projector(Space(trace_channels(model, torch.zeros(2, 1, 28, 28)).network, 0.25))
        logits = self.projector.space.logits
        self.drafts = [
            Draft(str(n), float(row["size"]), row["granularity"], logits(json.loads(row["sparsity"])), SEED_SCHEDULE)
            for n, row in enumerate(self.rows)
        ]

    def guide(self, seed: int) -> GuidedProposer:
        """One whose pool is the table's policies in random order, and that moves none of them."""
        found = GuidedProposer(self.projector, DENSE_TABLE_ERROR, seed)
        found._pool = SimpleNamespace(
            draw=lambda count, parents, random: [self.drafts[n] for n in random.permutation(len(self.drafts))]
        )
        return found

    def first(self, seed: int) -> list[Point]:
        chosen = np.random.default_rng([3, seed]).choice(len(self.rows), 10, replace=False)
        return [(self.projector.space.params_of(self.drafts[n]), str(n)) for n in chosen]

    def outcome(self, seed: int, number: int, point: Point) -> Outcome:
        line = int(point[1])
        noise = self.noise[line] * np.random.default_rng([5, seed, line]).normal()
        error, (size, macs) = float(expit(self.errors[line])), self.costs[line]
        seconds, measured = float(self.rows[line]["seconds"]), float(expit(self.errors[line] + noise))
        return Outcome(seconds, measured, (error, float(size), float(macs)))

    def volume(self, ended: Sequence[Ended]) -> float:
        """Over the volume of the whole table."""
        return super().volume(ended) / self.whole


class ManyTruth(Truth):
    """The closed form for more trials."""

    trials, marks = 512, (512,)


TRUTHS: Mapping[str, Callable[[], Truth]] = {"world": Truth, "many": ManyTruth, "table": MeasuredTruth}


@dataclass(frozen=True)
class Cell:
    """What is simulated, but for the seed."""

    truth: str
    mode: str
    workers: int
    way: str


def simulated(truth: Truth, cell: Cell, seed: int) -> list[Ended]:
    """All trials of a study, by number."""
    with ExitStack() as changes:
        for name, value in {**truth.changes, **CHANGES[cell.way]}.items():
            changes.enter_context(mock.patch.object(guide, name, value))
        return _simulated(truth, cell, seed)


def _simulated(truth: Truth, cell: Cell, seed: int) -> list[Ended]:
    proposer, first, free, now = truth.guide(seed), truth.first(seed), cell.workers, 0.0
    params: list[Mapping[str, Any]] = []
    running: list[tuple[float, int, Outcome]] = []
    ended: list[Ended] = []

    def start() -> None:
        number = len(params)
        if number < len(first):
            point = first[number]
        else:
            suggestion = proposer.suggest(number, {n: params[n] for _, n, _ in running})
            point = suggestion.params, suggestion.source
        params.append(point[0])
        outcome = truth.outcome(seed, number, point)
        heapq.heappush(running, (now + outcome.seconds, number, outcome))

    while len(ended) < truth.trials:
        while free and len(params) < truth.trials:
            start()
            free -= 1
        for _ in range(len(running) if cell.mode == WAVES else 1):
            now, number, outcome = heapq.heappop(running)
            proposer.learn(number, params[number], outcome.measured)
            ended.append(Ended(number, now, outcome, truth.projector.project(params[number]).key))
            free += 1
    return sorted(ended, key=lambda one: one.number)


def cells_of(truth: str) -> Iterator[Cell]:
    """One worker, and what is held against it."""
    yield Cell(truth, ASYNCHRONOUS, 1, DRAWS)
    ways = (DRAWS, WHOLE, ONE_DRAW, BELIEVER, UNKNOWN, LIAR)
    if truth == "world":
        yield from (Cell(truth, mode, 16, way) for mode, way in product((ASYNCHRONOUS, WAVES), ways))
    elif truth == "many":
        yield from (Cell(truth, ASYNCHRONOUS, 256, way) for way in (DRAWS, UNKNOWN))
    else:
        for workers in (2, 4, 8, 16, 64):
            yield from (
                Cell(truth, ASYNCHRONOUS, workers, way) for way in (ways if workers == 16 else (DRAWS, UNKNOWN))
            )


def run(name: str, seeds: Sequence[int], ways: Sequence[str] | None) -> None:
    truth, done = TRUTHS[name](), {_key(row) for row in read_rows(TABLE)}
    for seed, cell in product(seeds, cells_of(name)):
        if (*map(str, vars(cell).values()), str(seed)) in done or (ways and cell.way not in ways):
            continue
        ended = simulated(truth, cell, seed)
        marks = {f"{n} trials": [one for one in ended if one.number < n] for n in truth.marks}
        for count in truth.durations:
            marks[f"{count} durations"] = [one for one in ended if one.second <= count * truth.seconds]
        repeated = len(ended) - len({one.digest for one in ended})
        rows = [
            {**vars(cell), "seed": seed, "at": at, "volume": f"{truth.volume(own):.5f}", "repeated": repeated}
            for at, own in marks.items()
        ]
        append_rows(TABLE, COLUMNS, rows)


def _key(row: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in COLUMNS[:5])


def show() -> None:
    """Volumes as they are, and over those of one worker after as many trials of the same seed."""
    rows = read_rows(TABLE)
    found: dict[tuple[str, ...], dict[int, float]] = {}
    for row in rows:
        found.setdefault((*_key(row)[:4], row["at"]), {})[int(row["seed"])] = float(row["volume"])
    places = {way: place for place, way in enumerate(CHANGES)}
    cells = [_compared(cell, own, found) for cell, own in found.items()]
    cells.sort(key=lambda one: (one["truth"], one["mode"], one["workers"], places[one["way"]]))
    columns = ["workers", "mode", "way", "n", "volume", "of one worker's", "least"]
    for truth in ("world", "many"):
        own = [one for one in cells if one["truth"] == truth and one["at"].endswith("trials")]
        body = [[one["workers"], one["mode"], one["way"], one["n"], f"{one['volume']:.3f}", *_told(one)] for one in own]
        print(f"{truth}\n\n{render(columns, body)}\n")
    marks = list(dict.fromkeys(one["at"] for one in cells if one["truth"] == "table"))
    by_cell: dict[tuple[int, str], dict[str, Any]] = {}
    for one in cells:
        if one["truth"] == "table":
            by_cell.setdefault((one["workers"], one["way"]), {})[one["at"]] = one
    body = [
        [workers, way, *(f"{own[at]['volume']:.1%} ± {own[at]['volume_error']:.1%}" for at in marks)]
        for (workers, way), own in by_cell.items()
    ]
    print(f"table\n\n{render(['workers', 'way', *marks], body)}\n")
    repeated: dict[str, int] = {}
    for row in {_key(row): row for row in rows}.values():
        repeated[row["truth"]] = repeated.get(row["truth"], 0) + int(row["repeated"])
    print(json.dumps({"benchmark": "pending trials", "repeated": repeated, "cells": cells}))


def _compared(
    cell: tuple[str, ...], own: Mapping[int, float], found: Mapping[tuple[str, ...], Mapping[int, float]]
) -> dict[str, Any]:
    """Means over the seeds, their standard errors, and the least; ratios only at equal trials."""
    truth, mode, workers, way, at = cell
    alone = found[truth, ASYNCHRONOUS, "1", DRAWS, at]
    seeds = sorted(own.keys() & alone.keys())
    values = {"volume": np.array([own[seed] for seed in seeds])}
    if at.endswith("trials"):
        values["ratio"] = values["volume"] / [alone[seed] for seed in seeds]
    told: dict[str, Any] = {}
    for name, each in values.items():
        error = each.std(ddof=1) / math.sqrt(len(each)) if len(each) > 1 else math.nan
        told |= {name: float(each.mean()), f"{name}_error": float(error), f"{name}_least": float(each.min())}
    told = {name: round(value, 4) for name, value in told.items()}
    return {"truth": truth, "mode": mode, "workers": int(workers), "way": way, "at": at, "n": len(seeds), **told}


def _told(one: Mapping[str, Any]) -> list[str]:
    return [f"{one['ratio']:.1%} ± {one['ratio_error']:.1%}", f"{one['ratio_least']:.1%}"]


def cost() -> None:
    """CPU seconds of a proposal, in turn with none and more pending, after a first one that fits the pending points."""
    truth, random = Truth(), np.random.default_rng(0)
    points = [_random_point(truth.projector.space, random) for _ in range(FINISHED + max(COSTS))]
    sides: dict[int, tuple[GuidedProposer, dict[int, Mapping[str, Any]]]] = {}
    for count in COSTS:
        sides[count] = truth.guide(0), dict(enumerate(points[FINISHED : FINISHED + count], FINISHED))
        for number in range(FINISHED):
            sides[count][0].learn(number, points[number], truth.outcome(0, number, (points[number], "")).measured)
        sides[count][0].suggest(2 * max(COSTS), sides[count][1])
    rounds = []
    for turn in range(1, REPEATS + 1):
        rounds.append([])
        for proposer, pending in sides.values():
            began = time.process_time()
            proposer.suggest(2 * max(COSTS) + turn, pending)
            rounds[-1].append(time.process_time() - began)
    seconds = np.array(rounds)
    milliseconds = np.median(seconds, axis=0) * 1000
    ratios = np.quantile(seconds / seconds[:, :1], [0.25, 0.5, 0.75], axis=0).T
    body = [
        [count, round(own), f"{middle:.2f} ({low:.2f} to {high:.2f})"]
        for count, own, (low, middle, high) in zip(COSTS, milliseconds, ratios, strict=True)
    ]
    print(render(["pending", "CPU ms a proposal", "over none pending (quartiles)"], body))
    found = {str(count): round(float(middle), 2) for count, (_, middle, _) in zip(COSTS, ratios, strict=True)}
    told = {"finished": FINISHED, "n": REPEATS, "ratios": found}
    print(json.dumps({"benchmark": "pending cost", "hardware": hardware(), **told}))


def _random_point(space: Space, random: np.random.Generator) -> dict[str, Any]:
    size = float(np.exp(random.uniform(*np.log(space.size_range))))
    preferences = {knob: float(random.random()) for knob in space.knobs}
    return space.params(size, str(random.choice(space.usable)), preferences, SEED_SCHEDULE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    own = commands.add_parser("run")
    own.add_argument("truth", choices=TRUTHS)
    own.add_argument("--seeds", type=seed_range, default=range(1))
    own.add_argument("--ways", type=lambda text: text.split(","))
    commands.add_parser("show")
    commands.add_parser("cost")
    options = parser.parse_args()
    if options.command == "run":
        run(options.truth, options.seeds, options.ways)
    else:
        {"show": show, "cost": cost}[options.command]()


if __name__ == "__main__":
    main()
