"""The executor of one worker: this process."""

from __future__ import annotations

from pathlib import Path

from search.executors.evaluation import carry_out
from search.executors.jobs import AnyJob, Done, Job, Lost, Scanned
from search.progress import ProgressReporter
from search.training.attempts import Attempt, give_up_on
from search.training.evaluate import PreparedModel


class LocalExecutor:
    """Carries out a job while it is waited for.

    Args:
        prepared: the network that jobs prune.
        folder: the journal's, where attempts are noted.
    """

    slots, shares_memory = 1, False

    def __init__(self, prepared: PreparedModel, folder: Path, watcher: ProgressReporter) -> None:
        self._prepared, self._folder, self._watcher = prepared, folder, watcher
        self._job: AnyJob | None = None

    def submit(self, job: AnyJob) -> None:
        """Take a job."""
        self._job = job

    def wait(self) -> list[Done | Scanned | Lost]:
        """Carry out the job that was taken."""
        job, self._job = self._job, None
        if job is None:
            return []
        attempt = Attempt(self._folder, job.key)
        with self._watcher.stage(job.label) as progress:
            limit = job.limit if isinstance(job, Job) else None
            return [carry_out(self._prepared, job, attempt, progress, give_up_on(attempt, job.name, limit))]

    def close(self) -> None:
        """Nothing runs on."""
