"""What a study's coordinator can keep up with: results and proposals a second of its CPU, with simulated workers.

    python tests/benchmarks/many_workers.py --sampler random
    python tests/benchmarks/many_workers.py --workers 1000 --trials 1500 --sampler guided

Runner, dispatch, journal, Optuna's file and MLflow's are those of a study as users run it; only the executor and its
time are made up. Trials last as long as a log-normal draw says, in a time that costs nothing; some fail, some workers
are lost in the middle of a trial, and some hang until the stall rule ends them. Results are true sizes and an accuracy
drawn from the trial's number. CPU seconds are those of threads, so that other programs do not count, and waits for the
disk are told apart. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import heapq
import json
import logging
import platform
import sqlite3
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from long_study import result_of
from study import PACKAGES, hardware

import search.study.runner
from search import run_search
from search.config import make_config
from search.executors.jobs import Done, Job, Lost
from search.progress import ProgressReporter
from search.proposals.optuna_study import OptunaStudy
from search.results.state import StudyState
from search.store.journal import Journal
from search.store.mlflow_record import MlflowRecord
from search.store.optuna_file import OptunaProjection
from search.study.runner import StudyRunner
from search.training.attempts import Attempt
from search.training.evaluate import PreparedModel, failed
from spaces.search_space.projection import Projector

WORKERS, TRIALS = (10, 100, 1000), (200, 300, 1500)
"""How many workers there are, and how many trials are run by so many."""
MEAN, SPREAD = 600.0, 0.6
"""Seconds a trial lasts, and the standard deviation of their logarithm."""
FAILS, LOST, HANGS = 0.02, 0.01, 0.005
"""Shares of trials begun that fail, whose worker is lost, and whose worker says nothing any more."""
STALL = 600.0
"""Seconds after which a worker that says nothing is ended."""
PARTS: dict[str, list[tuple[type, str]]] = {
    "proposal": [(StudyRunner, "_propose"), (Projector, "project")],
    "journal": [(Journal, "write_pending"), (Journal, "write_trial"), (Attempt, "__init__"), (Attempt, "finish")],
    "Optuna's file": [(OptunaProjection, "add")],
    "MLflow": [(MlflowRecord, "log")],
    "sampler told, tables": [(OptunaStudy, "tell"), (StudyState, "add"), (StudyRunner, "_show")],
}
"""What the coordinator's time goes into: methods. Where one calls another, the time is the outer one's."""


class Spent:
    """CPU seconds, and seconds in which the CPU did something else or nothing, by part."""

    def __init__(self) -> None:
        self.cpu, self.waited = Counter[str](), Counter[str]()
        self._within = threading.local()

    def in_part(self, part: str, function: Callable) -> Callable:
        """The same function, its time added to that of a part."""

        def run(*arguments: Any, **options: Any) -> Any:
            if getattr(self._within, "a_part", False):
                return function(*arguments, **options)
            self._within.a_part = True
            began, worked = time.perf_counter(), time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                self._within.a_part = False
                cpu = time.thread_time() - worked
                self.cpu[part] += cpu
                self.waited[part] += time.perf_counter() - began - cpu

        return run


class SimulatedExecutor:
    """Workers in a time of their own."""

    shares_memory = False

    def __init__(self, slots: int, subject: PreparedModel) -> None:
        self.slots, self.now, self.told = slots, 0.0, Counter[str]()
        self._subject = subject
        self._busy: list[tuple[float, int, str, Job]] = []
        self._random, self._begun = np.random.default_rng(5), 0

    def submit(self, job: Job) -> None:
        """Draw how the job ends, and when."""
        lasts = MEAN * float(np.exp(SPREAD * self._random.normal() - SPREAD**2 / 2))
        fate = str(
            self._random.choice(["fails", "lost", "hangs", "done"], p=[FAILS, LOST, HANGS, 1 - FAILS - LOST - HANGS])
        )
        share = 1.0 if fate == "done" else float(self._random.random())
        self._begun += 1
        heapq.heappush(self._busy, (self.now + share * lasts + STALL * (fate == "hangs"), self._begun, fate, job))

    def wait(self) -> list[Done | Lost]:
        """The next that ends."""
        if not self._busy:
            return []
        self.now, _, fate, job = heapq.heappop(self._busy)
        self.told[fate] += 1
        if fate in ("lost", "hangs"):
            return [Lost(job, (7, 30), f"stalled: no step for {STALL:.0f} s" if fate == "hangs" else "")]
        if fate == "fails":
            return [Done(job, failed("diverged: loss is nan").result)]
        return [Done(job, result_of(self._subject, job.policy, int(job.name.split()[-1])))]

    def close(self) -> None:
        """Nothing runs on."""


class SimulatedClock:
    """Running seconds of a study, by its executor's time."""

    executor: SimulatedExecutor | None = None

    def __init__(self, offset: float = 0.0) -> None:
        self._offset = offset

    @property
    def seconds(self) -> float:
        return self._offset + (self.executor.now if self.executor else 0.0)

    def to_time(self, seconds: float) -> float:
        """UNIX time of a running second."""
        return 1.7e9 + seconds


def run(workers: int, trials: int, sampler: str) -> dict[str, Any]:
    """One study: what its coordinator needed."""
    spent, made = Spent(), []

    def make_executor(_config: Any, _folder: Any, subject: PreparedModel, *_: Any) -> SimulatedExecutor:
        made.append(SimulatedExecutor(workers, subject))
        SimulatedClock.executor = made[0]
        return made[0]

    began: list[float] = []
    run_trials = StudyRunner._run_trials

    def timed(runner: StudyRunner) -> None:
        worked = time.thread_time()
        run_trials(runner)
        began.append(time.thread_time() - worked)

    changed: list[tuple[Any, str, Any]] = [
        (search.study.runner, "make_executor", make_executor),
        (search.study.runner, "StudyClock", SimulatedClock),
        (StudyRunner, "_run_trials", timed),
    ]
    changed += [(o, name, spent.in_part(part, getattr(o, name))) for part, ms in PARTS.items() for o, name in ms]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changed]
    for owner, name, function in changed:
        setattr(owner, name, function)
    workload = f"{Path(__file__).parents[1] / 'tiny_workload.py'}:tiny"
    try:
        with tempfile.TemporaryDirectory() as root:
            options = {
                "finalists": 0,
                "seeds": False,
                "max_size": 0.5,
                "root": root,
                "sampler": sampler,
                "cost": "macs",
            }
            run_search(make_config(workload=workload, trials=trials, **options), ProgressReporter())
            check(Path(root), trials)
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)
    (executor,), (main,) = made, began
    cpu = dict(spent.cpu)
    cpu["rest"] = main - sum(seconds for part, seconds in cpu.items() if part != "MLflow")
    whole = sum(cpu.values())
    return {
        "workers": workers,
        "trials": trials,
        "ends": dict(executor.told),
        "hours": round(executor.now / 3600, 2),
        "cpu_milliseconds": {part: round(1000 * seconds / trials, 2) for part, seconds in cpu.items()},
        "waited_milliseconds": {part: round(1000 * seconds / trials, 1) for part, seconds in spent.waited.items()},
        "results_a_cpu_second": round(trials / whole, 2),
        "proposals_a_cpu_second": round(trials / cpu["proposal"], 2),
        "workers_kept_busy": int(MEAN * trials / whole),
    }


def check(root: Path, trials: int) -> None:
    """Nothing is lost and nothing doubled."""
    (study,) = (path.parent for path in root.glob("*/study.json"))
    assert [record.number for record in Journal(study / "journal").trials()] == list(range(trials))
    assert not list((study / "journal").glob("[!t]*")), "a trial is pending still"
    with closing(sqlite3.connect(study / "study.db")) as optuna:
        assert optuna.execute("SELECT count(*) FROM trials WHERE state != 'WAITING'").fetchone() == (trials,)
    with closing(sqlite3.connect(root / "mlflow.db")) as mlflow:
        logged = mlflow.execute("SELECT count(*), count(DISTINCT value) FROM tags WHERE key = 'trial'").fetchone()
    assert logged == (trials, trials), logged


def main() -> None:
    """Run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=list(WORKERS))
    parser.add_argument("--trials", type=int, nargs="+", default=list(TRIALS), help="as many as there are --workers")
    parser.add_argument("--sampler", default="guided")
    options = parser.parse_args()
    if len(options.workers) != len(options.trials):
        parser.error(f"--trials must name {len(options.workers)} numbers, got {len(options.trials)}")
    logging.disable(logging.WARNING)
    rows = [
        run(workers, trials, options.sampler) for workers, trials in zip(options.workers, options.trials, strict=True)
    ]
    parts = [*PARTS, "rest"]
    print(f"| workers | trials | {' | '.join(parts)} | all | results / CPU s | proposals / CPU s | workers kept busy |")
    print("|" + "---|" * (len(parts) + 6))
    for row in rows:
        cpu = row["cpu_milliseconds"]
        cells = [row["workers"], row["trials"], *(f"{cpu[part]:.1f}" for part in parts), f"{sum(cpu.values()):.1f}"]
        cells += [row["results_a_cpu_second"], row["proposals_a_cpu_second"], row["workers_kept_busy"]]
        print("| " + " | ".join(map(str, cells)) + " |")
    where = {"hardware": hardware(), "python": platform.python_version()}
    versions = {name: version(name) for name in PACKAGES}
    print(json.dumps({"sampler": options.sampler, "studies": rows, **where, "versions": versions}))


if __name__ == "__main__":
    main()
