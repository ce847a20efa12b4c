"""Running seconds of a study: from the dense model's readiness, pauses between resumes left out."""

from __future__ import annotations

import time
from collections.abc import Iterable

from search.records import TrialRecord


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


class Pace:
    """What finished trials took, added up as they come.

    Attributes:
        trials: how many.
        spent: running seconds from their starts to their ends.
        worked: seconds of the phases of their evaluations.
        latest: running second at which the last of them ended.
    """

    def __init__(self, trials: Iterable[TrialRecord] = ()) -> None:
        self.trials, self.spent, self.worked, self.latest = 0, 0.0, 0.0, 0.0
        for trial in trials:
            self.add(trial)

    def add(self, trial: TrialRecord) -> None:
        self.trials += 1
        self.spent += trial.finished - trial.started
        self.worked += sum(trial.result.seconds.values())
        self.latest = max(self.latest, trial.finished)
