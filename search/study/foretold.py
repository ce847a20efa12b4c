"""How long a study takes that has not begun, by what a few training steps take now."""

from __future__ import annotations

import statistics
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

import torch

from pruning.analysis.sensitivity_scan import BRIEF_PASSES, DEEP, SCAN_EXAMPLES, scan_keys
from search.config import SearchConfig
from search.progress import duration
from search.records import COMPLETE
from search.results.time_left import final_runs_left, short_runs_left
from search.training.evaluate import PreparedModel, evaluate_policy
from search.training.examples import epoch_steps, step_count
from search.training.train import train_dense
from search.workloads.base import Workload
from spaces.granularity import parts_in
from spaces.policy import PruningPolicy
from spaces.search_space.space import Space

TIMED_STEPS, TIMED_SECONDS, MOST_STEPS = 3, 0.3, 30
"""Training steps that are timed, after one that is not: the least, more within so many seconds, and the most."""
TUNED_STEPS, LONGEST = 16, 20.0
"""A fine-tune of so many steps is timed, of fewer where they would take longer than so many seconds; none is where its
scoring takes longer than as many seconds of training."""
SCAN_PASSES = 3
"""Forward passes of a point of a scan, which take as long as one training step on the same examples."""


@dataclass(frozen=True)
class Duration:
    """How long a study takes.

    Attributes:
        seconds: None if that is not known.
        basis: what the seconds are judged by and leave out, or why they are not known.
    """

    seconds: float | None
    basis: str


@dataclass(frozen=True)
class StepTimes:
    """What was timed, in seconds.

    Attributes:
        dense: a step of training the dense network.
        trial: a step of a fine-tune.
        besides: what a fine-tune takes besides its steps, scoring and encoding; None if that was not timed.
    """

    dense: float
    trial: float
    besides: float | None = None

    def __str__(self) -> str:
        said = f"of {_told(self.dense)}"
        if self.besides is None:
            return f"{said}, as a few steps of the dense network took now"
        return (
            f"{said}, in fine-tunes of {_told(self.trial)}, and {_told(self.besides)} to score and encode each, as a "
            "few steps took now"
        )


def _told(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 0.9995 else duration(seconds)


def foretold(
    config: SearchConfig, subject: PreparedModel, space: Space, has_dense: bool, has_scan: bool | None
) -> Duration:
    """The time of a study from nothing but what is cached.

    Args:
        subject: its network, trained or not.
        has_scan: None if it does without.
    """
    workload = subject.workload
    recipe = workload.recipe
    trial, final = step_count(workload, recipe.trial_epochs), step_count(workload, recipe.final_epochs)
    if trial is None or final is None or workload.train is not None:
        return Duration(
            None, "a training loop of your own takes as long as it takes: see `status` after the first trial"
        )
    times = times_now(config, subject, space)
    finalists = [f"finalist {n}" for n in range(min(config.finalists, config.trials))]
    finals, short = final_runs_left(config, finalists, (), None), short_runs_left(config, finalists, (), None)
    first = 0 if has_dense or config.weights else step_count(workload, recipe.dense_epochs) or 0

    def taken(runs: int, steps: int) -> float:
        return runs * (steps * times.trial + (times.besides or 0.0))

    of_trials, limited = taken(config.trials, trial) / config.workers, ""
    if config.timeout is not None and of_trials > config.timeout:
        of_trials, limited = config.timeout, f", those of trials for {config.timeout:g} s, as --timeout says"
    scan = _scan_seconds(subject, space, times.dense) if has_scan is False else 0.0
    others = (taken(short, trial) + taken(finals, final) + scan) / config.workers
    steps = first + trial * (config.trials + short) + final * finals
    left_out = "scoring and encoding, " if times.besides is None else ""
    return Duration(
        first * times.dense + of_trials + others,
        f"{steps:,} training steps {times}{limited}{'; the scan by its forward passes' if scan else ''}; {left_out}"
        "a latency table, unless cached, records in MLflow and the timing of finals come on top",
    )


def times_now(config: SearchConfig, subject: PreparedModel, space: Space) -> StepTimes:
    """Time a few steps of dense training and of a fine-tune that masks half of the weights, and how that is scored.

    The latter is left out where scoring would take long, or is the user's own code.
    """
    workload = subject.workload
    dense = _step_seconds(workload, config.dense_seed)
    scored = workload.examples("validation").count if workload.has("validation") else None
    if workload.evaluate or scored is None or dense * scored / workload.recipe.batch > LONGEST:
        return StepTimes(dense, dense)
    ends: list[float] = []
    granularity = "fine-grained" if "fine-grained" in space.usable else space.usable[0]
    half = dict.fromkeys((layer.name for layer in subject.network.prunable), 0.5)
    policy = PruningPolicy(half, granularity, bits=min(space.bits))
    steps = max(2, min(TUNED_STEPS, int(LONGEST / dense)))
    tried = evaluate_policy(
        subject, policy, steps / epoch_steps(workload), config.seed, lambda done, total: _note_end(workload, ends)
    ).result
    if tried.state != COMPLETE or len(ends) < 2:
        return StepTimes(dense, dense)
    return StepTimes(dense, _usual(ends), tried.seconds["scoring"] + tried.seconds["measuring"])


def _scan_seconds(subject: PreparedModel, space: Space, step: float) -> float:
    """Of a scan, whose points are forward passes of calibration data."""
    workload = subject.workload
    batch = workload.recipe.batch
    if len(subject.network.prunable) > DEEP:
        return BRIEF_PASSES / SCAN_PASSES / batch * step
    examples = workload.examples("calibration").count if workload.has("calibration") else None
    points = len(scan_keys(subject.graph, parts_in(space.usable), bits=space.bits))
    return points * min(examples or SCAN_EXAMPLES, SCAN_EXAMPLES) / batch * step


class _Enough(Exception):
    """Enough steps are timed."""


def _step_seconds(workload: Workload, seed: int) -> float:
    """What a step of training the dense network takes on its device."""
    ends: list[float] = []

    def progress(done: int, total: int) -> None:
        _note_end(workload, ends)
        timed = len(ends) - 1
        enough = timed >= TIMED_STEPS and ends[-1] - ends[0] >= TIMED_SECONDS
        if enough or timed >= MOST_STEPS or done == total:
            raise _Enough

    began = time.perf_counter()
    with suppress(_Enough):
        train_dense(workload, seed, progress)
    return _usual(ends) if len(ends) > 1 else ends[0] - began


def _note_end(workload: Workload, ends: list[float]) -> None:
    if not workload.placement.on_cpu:
        torch.accelerator.synchronize()  # steps are queued there
    ends.append(time.perf_counter())


def _usual(ends: list[float]) -> float:
    """The median of the times between ends, which other programs' work hardly moves."""
    return statistics.median(later - earlier for earlier, later in pairwise(ends))
