"""Jobs, each to its end: what is lost begins again, until it was lost too often."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from search.executors.jobs import AnyJob, Done, Executor, Job, Lost, ScanJob, Scanned
from search.training.attempts import Attempt
from search.training.evaluate import failed


def dispatch(
    executor: Executor, jobs: Iterator[AnyJob], folder: Path, attempts: int, note: Callable[[str], None]
) -> Iterator[Done | Scanned]:
    """Results as they come, of as many jobs at once as the executor has slots.

    The next job is only asked for when a slot is free and all results before it were taken: what is proposed knows
    everything there is to know.

    Args:
        folder: the journal's, where attempts are noted.
        attempts: how often a job's worker may be lost before the job is failed.
        note: told when a job begins again.
    """
    again: deque[AnyJob] = deque()
    running = 0
    while True:
        ended: list[Done | Scanned | Lost] = []
        while running < executor.slots and (job := again.popleft() if again else next(jobs, None)):
            attempt = Attempt(folder, job.key, attempts)
            if reason := attempt.failure:
                ended.append(_failed(job, reason))
                break
            if attempt.deaths:
                note(f"{job.name} begins again, as it was cut off {attempt.deaths[-1]}")
            executor.submit(job)
            running += 1
        if not ended:
            if not running:
                return
            ended = executor.wait()
            running -= len(ended)
        for one in ended:
            if isinstance(one, Lost):
                Attempt(folder, one.job.key).lose(*one.at, one.how)
                again.append(one.job)
        yield from (one for one in ended if not isinstance(one, Lost))


def evaluations(
    executor: Executor, jobs: Iterator[Job], folder: Path, attempts: int, note: Callable[[str], None]
) -> Iterator[Done]:
    """As `dispatch`, of fine-tunes alone."""
    return (one for one in dispatch(executor, jobs, folder, attempts, note) if isinstance(one, Done))


def _failed(job: AnyJob, reason: str) -> Done | Scanned:
    """What is said of a job that may not begin again."""
    if isinstance(job, ScanJob):
        return Scanned(job, {}, reason)
    return Done(job, failed(reason).result, begun=False)
