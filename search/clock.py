"""Running seconds of a study: from the dense model's readiness, pauses between resumes left out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from search.config import SearchConfig
from search.records import FinalRecord, TrialRecord


class StudyClock:
    """Counts on from `offset` on a monotonic clock, so that changed system time does not matter."""

    def __init__(self, offset: float = 0.0) -> None:
        self._start = time.monotonic() - offset
        self._wall = time.time() - offset

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def to_time(self, seconds: float) -> float:
        """UNIX time of a running second, as if the study had not paused."""
        return self._wall + seconds


def seconds_left(
    config: SearchConfig,
    recipe: Mapping[str, Any],
    trials: Sequence[TrialRecord],
    finals: Sequence[FinalRecord],
    final_runs: int,
) -> float | None:
    """Running seconds a study still needs at its pace so far, finals included; None before the first finished trial.

    Trials end at the time limit. Before the first full-length fine-tune, one is taken to last as many times longer than
    a trial's as it has epochs.

    Args:
        recipe: of its workload, as plain data.
        final_runs: full-length fine-tunes still to come.
    """
    if not trials:
        return None
    spent = fmean(trial.finished - trial.started for trial in trials)
    stretch = 1.0 if finals else recipe["final_epochs"] / recipe["trial_epochs"]
    final = stretch * fmean(sum(run.result.seconds.values()) for run in finals or trials)
    of_trials = spent * max(config.trials - len(trials), 0)
    if config.timeout is not None:
        of_trials = min(of_trials, max(config.timeout - max(trial.finished for trial in trials), 0.0))
    return of_trials + final * final_runs
