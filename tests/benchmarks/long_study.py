"""What a trial costs beside its evaluation as a study grows: CPU milliseconds of asking, journal, Optuna and MLflow.

    python tests/benchmarks/long_study.py --trials 2000 --sampler random

Evaluations are a stand-in that gives a network's true sizes and an accuracy drawn from its number; everything else is
a study as users run it, without finals. Time is this process's own CPU time, so that other programs do not count. A
window of trials around each place in the study gives a median. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from study import PACKAGES, hardware

import search.coordinator
from search import run_search
from search.config import make_config
from search.evaluate import Evaluation, Subject
from search.records import COMPLETE, TrialResult
from spaces.size import footprint, shares

PLACES = (125, 500, 1000, 2000)
"""Trials at which a window is looked at."""
WIDTH = 50
"""Trials of a window, which ends at its place."""


class Stand:
    """Stands in for `evaluate_policy`, and notes the CPU seconds at which each evaluation begins and ends."""

    def __init__(self) -> None:
        self.began: list[float] = []
        self.ended: list[float] = []

    def __call__(self, subject: Subject, policy: Any, *_: Any, **__: Any) -> Evaluation:
        self.began.append(time.process_time())
        if (place := len(self.began)) in PLACES:
            print(f"trial {place}: {self.median(place):.1f} CPU ms beside evaluation", file=sys.stderr, flush=True)
        cost = shares(footprint(subject.network, policy), subject.dense_cost)
        noise = np.random.default_rng([7, len(self.began)]).normal(0, 0.01)
        accuracy = float(np.clip(0.95 - 0.05 / (cost.encoded + 0.05) * 0.25 + noise, 0.15, 0.99))
        result = TrialResult(COMPLETE, accuracy=accuracy, loss=1 - accuracy, shares=cost)
        self.ended.append(time.process_time())
        return Evaluation(result)

    def median(self, place: int) -> float:
        """CPU milliseconds from the end of an evaluation to the beginning of the next, before trial `place`."""
        ends, begins = self.ended[place - WIDTH - 1 : place - 1], self.began[place - WIDTH : place]
        return 1000 * statistics.median(begin - end for end, begin in zip(ends, begins, strict=True))


def main() -> None:
    """Run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--sampler", default="random")
    options = parser.parse_args()
    if options.trials < PLACES[0]:
        parser.error(f"--trials must be at least {PLACES[0]}, got {options.trials}")
    stand = search.coordinator.evaluate_policy = Stand()
    workload = f"{Path(__file__).parents[1] / 'tiny_workload.py'}:tiny"
    with tempfile.TemporaryDirectory() as root:
        run_search(
            make_config(
                workload=workload, root=root, trials=options.trials, sampler=options.sampler, finalists=0, seeds=False,
                max_size=0.5,
            )
        )  # fmt: skip
    medians = {place: stand.median(place) for place in PLACES if place <= options.trials}
    print("| trial | CPU ms beside evaluation, median | x trial 125 |\n|---|---|---|")
    for place, median in medians.items():
        print(f"| {place} | {median:.1f} | {median / medians[PLACES[0]]:.2f} |")
    summary = {
        "sampler": options.sampler,
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
