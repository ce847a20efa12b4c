"""Jobs, each to its end: what is lost begins again, until it was lost too often; what lacks memory is tried alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from search.executors.jobs import AnyJob, Done, Executor, Job, Lost, ScanJob, Scanned
from search.records import OUT_OF_MEMORY
from search.training.attempts import Attempt
from search.training.evaluate import failed


def dispatch(
    executor: Executor, jobs: Iterator[AnyJob], folder: Path, attempts: int, note: Callable[[str], None]
) -> Iterator[Done | Scanned]:
    """Results as they come, of as many jobs at once as the executor has slots.

    The next job is only asked for when a slot is free and all results before it were taken: what is proposed knows
    everything there is to know.

    A job that lacks memory which others share is carried out once more when these have ended, and before any
    other begins; only then its failure is a result.

    Args:
        folder: the journal's, where attempts are noted.
        attempts: how often a job's worker may be lost before the job is failed.
        note: told when a job begins again, or is tried alone.
    """
    again, alone = deque[AnyJob](), deque[AnyJob]()
    running, accompanied = set[str](), set[str]()
    while True:
        ended: list[Done | Scanned | Lost] = []
        while not alone and len(running) < executor.slots and (job := again.popleft() if again else next(jobs, None)):
            attempt = Attempt(folder, job.key, attempts)
            if reason := attempt.failure:
                ended.append(_failed(job, reason))
                break
            if attempt.deaths:
                note(f"{job.name} begins again, as it was cut off {attempt.deaths[-1]}")
            executor.submit(job)
            running.add(job.key)
            accompanied |= running if len(running) > 1 else set()
        if not ended:
            if not running and not alone:
                return
            ended = executor.wait() if running else _by_itself(executor, alone.popleft())
        results: list[Done | Scanned] = []
        for one in ended:
            key, job = one.job.key, one.job
            if isinstance(one, Lost):
                Attempt(folder, key).lose(*one.at, one.how)
                again.append(job)
            elif executor.shares_memory and key in accompanied and _lacked_memory(one):
                note(f"{job.name} is tried once more alone, as it lacked memory beside others")
                alone.append(job)
            else:
                results.append(one)
            running.discard(key)
            accompanied.discard(key)
        yield from results


def evaluations(
    executor: Executor, jobs: Iterator[Job], folder: Path, attempts: int, note: Callable[[str], None]
) -> Iterator[Done]:
    """As `dispatch`, of fine-tunes alone."""
    return (one for one in dispatch(executor, jobs, folder, attempts, note) if isinstance(one, Done))


def _by_itself(executor: Executor, job: AnyJob) -> list[Done | Scanned | Lost]:
    """What comes of a job beside which no other runs."""
    executor.submit(job)
    while not (ended := executor.wait()):
        pass
    return ended


def _lacked_memory(ended: Done | Scanned) -> bool:
    return ended.lacked_memory if isinstance(ended, Scanned) else ended.result.cause == OUT_OF_MEMORY


def _failed(job: AnyJob, reason: str) -> Done | Scanned:
    """What is said of a job that may not begin again."""
    if isinstance(job, ScanJob):
        return Scanned(job, {}, reason)
    return Done(job, failed(reason).result, begun=False)
