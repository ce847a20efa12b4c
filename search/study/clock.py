"""Running seconds of a study: from the dense model's readiness, pauses between resumes left out."""

from __future__ import annotations

import time


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
