"""What a trial costs beside its evaluation as a study grows: CPU milliseconds of asking, journal, Optuna and MLflow.

    python tests/benchmarks/long_study.py --trials 2000 --sampler random
    PYTHONPATH=OTHER_CHECKOUT python tests/benchmarks/long_study.py --trials 300 --total

Evaluations are a stand-in that gives a network's true sizes and an accuracy drawn from its number; everything else is
a study as users run it, without finals. Time is this process's own CPU time, so that other programs do not count. A
window of trials before each place in the study gives a median. Prints a table and one JSON line.

With `--total` the seconds of the whole study outside evaluations are told, by a clock and by the process's CPU time,
and nothing of windows; another checkout runs it too, so that two can be compared.

With `--jump` only the trials of the windows are run; those between are drawn at random and put where run ones would be
in memory and in Optuna's database, but not in the journal and in MLflow.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from study import PACKAGES, hardware

import search.executors.evaluation
import search.study.runner
from search import run_search
from search.config import make_config
from search.proposals.guide import GuidedProposer
from search.records import COMPLETE, TrialRecord, TrialResult
from search.store.tracker import Tracker
from search.study.runner import StudyRunner
from search.training.evaluate import Evaluation, PreparedModel
from spaces.cost.footprint import footprint, relative_cost
from spaces.search_space.space import Axis

PROJECT = Path(search.study.runner.__file__).parents[2]
"""The checkout whose code is run."""
PLACES = (125, 500, 1000, 2000)
"""Trials at which a window is looked at."""
WIDTH = 50
"""Trials of a window, which ends at its place."""
EARLIEST = 8
"""Trials that are run before the first jump, and before the window that follows each."""


class Stand:
    """Stands in for `evaluate_policy`; notes the CPU seconds at which each evaluation begins and ends."""

    def __init__(self) -> None:
        self.began: list[float] = []
        self.ended: list[float] = []
        self.number = 0
        self.medians: dict[int, float] = {}
        self.memory: dict[int, float] = {}
        self.guiding = self.inside = 0.0
        self.guided: list[float] = []
        self.jump: Callable[[int, int], None] | None = None
        self.tracker: Tracker | None = None

    def __call__(self, subject: PreparedModel, policy: Any, *_: Any, **__: Any) -> Evaluation:
        assert self.tracker is not None, "started before the first trial"
        self.tracker.wait()  # MLflow's thread works for the trials before this one
        entered = time.perf_counter()
        self.began.append(time.process_time())
        self.guided.append(self.guiding)
        self.number += 1
        if self.number in PLACES:
            self.note()
        result = result_of(subject, policy, self.number)
        behind = [place for place in PLACES if place > self.number]
        if self.jump and behind and EARLIEST <= self.number < (start := behind[0] - WIDTH - EARLIEST):
            self.jump(self.number, start)
            self.number = start
        self.ended.append(time.process_time())
        self.inside += time.perf_counter() - entered
        return Evaluation(result)

    def timed(self, function: Callable) -> Callable:
        """The same, its CPU seconds added to the guide's."""

        def run(*arguments: Any) -> Any:
            began = time.process_time()
            try:
                return function(*arguments)
            finally:
                self.guiding += time.process_time() - began

        return run

    def note(self) -> None:
        """Keep and tell what the window that ends here says, from the end of an evaluation to the next's beginning."""
        ends, begins = self.ended[-WIDTH:], self.began[-WIDTH:]
        self.medians[self.number] = 1000 * statistics.median(b - e for e, b in zip(ends, begins, strict=True))
        self.memory[self.number] = resident()
        guided = 1000 * (self.guided[-1] - self.guided[-WIDTH - 1]) / WIDTH
        print(
            f"trial {self.number}: {self.medians[self.number]:.1f} CPU ms beside evaluation, of them the guide "
            f"{guided:.1f}; {self.memory[self.number]:.0f} MB",
            file=sys.stderr, flush=True,
        )  # fmt: skip


def result_of(subject: PreparedModel, policy: Any, number: int) -> TrialResult:
    """True sizes, and an accuracy that falls with them but for noise."""
    cost = relative_cost(footprint(subject.network, policy), subject.dense_cost)
    noise = np.random.default_rng([7, number]).normal(0, 0.01)
    accuracy = float(np.clip(0.95 - 0.05 / (cost.encoded + 0.05) * 0.25 + noise, 0.15, 0.99))
    return TrialResult(COMPLETE, accuracy=accuracy, loss=1 - accuracy, shares=cost)


def resident() -> float:
    """Megabytes this process has in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def jumper(coordinator: StudyRunner) -> Callable[[int, int], None]:
    """Gives a running study the trials from one number up to another, not evaluated and not in journal and MLflow.

    The trial that is running keeps its number, which is the first.
    """

    def jump(first: int, end: int) -> None:
        random, space = np.random.default_rng([11, first]), coordinator.space
        for number in range(first, end):
            params = {axis.name: drawn(axis, random) for axis in space.axes}
            proposal = coordinator.projector.project(params)
            result = result_of(coordinator.subject, proposal.policy, number)
            record = TrialRecord(
                number, "sampler", params, proposal.policy, proposal.sampled, proposal.target, result, 0.0, 1.0, 0.0
            )
            coordinator.mlflow.records[number] = record
            coordinator.mlflow.logged.add(number)
            coordinator.state.add(record)
            coordinator.study.add(record)
            coordinator.optuna_file.add(record)

    return jump


def drawn(axis: Axis, random: np.random.Generator) -> Any:
    """A value of an axis, at random."""
    if axis.choices:
        return axis.choices[int(random.integers(len(axis.choices)))]
    if axis.log:
        return float(axis.low * (axis.high / axis.low) ** random.random())
    return float(axis.low + (axis.high - axis.low) * random.random())


def tell_total(stand: Stand, options: argparse.Namespace, seconds: float, cpu: float) -> None:
    """One JSON line: of the whole study, and from the first evaluation to the last, without dense training and scan."""
    evaluating = sum(end - begin for begin, end in zip(stand.began, stand.ended, strict=True))
    told = {
        "seconds": seconds - stand.inside,
        "cpu_seconds": cpu - evaluating,
        "cpu_seconds_between_trials": stand.ended[-1] - stand.began[0] - evaluating,
    }
    where = {"sampler": options.sampler, "trials": options.trials, "checkout": str(PROJECT)}
    print(json.dumps(where | {name: round(value, 2) for name, value in told.items()} | {"hardware": hardware()}))


def main() -> None:
    """Run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--sampler", default="random")
    parser.add_argument("--jump", action="store_true")
    parser.add_argument("--total", action="store_true", help="tell the seconds of the whole study outside evaluations")
    options = parser.parse_args()
    if not options.total and options.trials < PLACES[0]:
        parser.error(f"--trials must be at least {PLACES[0]}, got {options.trials}")
    stand = search.executors.evaluation.evaluate_policy = Stand()
    if options.jump:
        run_trials = StudyRunner._run_trials

        def with_jumps(coordinator: StudyRunner) -> None:
            stand.jump = jumper(coordinator)
            run_trials(coordinator)

        StudyRunner._run_trials = with_jumps
    start = Tracker.start

    def started(tracker: Tracker, *arguments: Any) -> None:
        stand.tracker = tracker
        start(tracker, *arguments)

    Tracker.start = started
    for name in ("suggest", "learn"):
        setattr(GuidedProposer, name, stand.timed(getattr(GuidedProposer, name)))
    workload = f"{Path(__file__).parents[1] / 'tiny_workload.py'}:tiny"
    began, worked = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as root:
        run_search(
            make_config(
                workload=workload, root=root, trials=options.trials, sampler=options.sampler, finalists=0, seeds=False,
                max_size=0.5, cost="macs",
            )
        )  # fmt: skip
    if options.total:
        tell_total(stand, options, time.perf_counter() - began, time.process_time() - worked)
        return
    medians = stand.medians
    print("| trial | CPU ms beside evaluation, median | x trial 125 | MB |\n|---|---|---|---|")
    for place, median in medians.items():
        print(f"| {place} | {median:.1f} | {median / medians[PLACES[0]]:.2f} | {stand.memory[place]:.0f} |")
    summary = {
        "sampler": options.sampler,
        "jump": options.jump,
        "trials": options.trials,
        "milliseconds": {place: round(median, 2) for place, median in medians.items()},
        "ratio": round(medians[max(medians)] / medians[PLACES[0]], 3),
        "hardware": hardware(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
