"""A scan whose points are shared out among workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise

from pruning.analysis.sensitivity_scan import Point, PointKey
from search.config import SearchConfig
from search.errors import EnvironmentProblem, UsageError
from search.executors.dispatch import dispatch
from search.executors.jobs import Executor, ScanJob, Scanned
from search.progress import ProgressReporter
from search.store.folder import StudyFolder
from search.training.attempts import Attempt
from search.training.profile_cache import Elsewhere, Scan

PARTS = 4
"""Of a scan for each worker: few, as each begins by scoring the dense model; several, so that none waits long."""


def shared_scan(
    config: SearchConfig, folder: StudyFolder, executor: Executor, watcher: ProgressReporter
) -> Elsewhere | None:
    """What scores points on workers; None where this process is the only one."""
    return partial(_points, config, folder, executor, watcher) if config.has_workers else None


def _points(
    config: SearchConfig,
    folder: StudyFolder,
    executor: Executor,
    watcher: ProgressReporter,
    scan: Scan,
    keys: Sequence[PointKey],
) -> Iterator[tuple[PointKey, Point]]:
    """Points as their parts are done; neighbours stay together, since they share what comes before their layers.

    Raises:
        EnvironmentProblem: a part lacks memory, even alone.
        UsageError: a part failed otherwise, or its worker was lost too often.
    """
    parts = min(PARTS * config.workers, len(keys))
    cuts = [len(keys) * number // parts for number in range(parts + 1)] if parts else [0]
    jobs = [
        ScanJob(f"scan-{n:03d}", f"part {n} of the scan", f"scan {n}/{parts}", scan, tuple(keys[begin:end]))
        for n, (begin, end) in enumerate(pairwise(cuts), 1)
    ]
    for ended in dispatch(executor, iter(jobs), folder.journal.folder, config.attempts, watcher.note):
        if isinstance(ended, Scanned):
            Attempt(folder.journal.folder, ended.job.key).finish()  # another scan has parts of the same names
            if ended.problem is not None:
                kind = EnvironmentProblem if ended.lacked_memory else UsageError
                raise kind(f"{ended.job.name} failed: {ended.problem}")
            yield from ended.points.items()
