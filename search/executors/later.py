"""An executor that is made for the first job: a study that has all its results needs no workers."""

from __future__ import annotations

from collections.abc import Callable

from search.executors.jobs import AnyJob, Done, Executor, Lost, Scanned


class LaterExecutor:
    """Stands for an executor until there is a job, and hands everything on to it from then on.

    Args:
        make: makes it; what that raises, the first `submit` does.
    """

    def __init__(self, make: Callable[[], Executor]) -> None:
        self._make, self._made = make, list[Executor]()

    @property
    def slots(self) -> int:
        """How many jobs run at once: one more is given before anything is known."""
        return self._made[0].slots if self._made else 1

    @property
    def shares_memory(self) -> bool:
        """As of the executor."""
        return any(made.shares_memory for made in self._made)

    def submit(self, job: AnyJob) -> None:
        """Begin a job; the first makes the executor."""
        if not self._made:
            self._made.append(self._make())
        self._made[0].submit(job)

    def wait(self) -> list[Done | Scanned | Lost]:
        """What has ended."""
        return self._made[0].wait() if self._made else []

    def close(self) -> None:
        """End whatever still runs."""
        for made in self._made:
            made.close()
