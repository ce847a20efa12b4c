"""Streams that are scored: whether they come to an end, which is found before anything is spent."""

from __future__ import annotations

from collections.abc import Iterable

from search.progress import ProgressReporter
from search.workloads.base import Workload
from search.workloads.checks import read_split
from search.workloads.streams import Stream


def require_ends(workload: Workload, splits: Iterable[str], watcher: ProgressReporter) -> None:
    """Read to their ends, once, those of the splits that are streams without a length and scored here.

    Raises:
        UsageError: one may have no end, or its code raises.
    """
    for split in splits:
        examples = workload.examples(split) if workload.reads(split) else None
        if isinstance(examples, Stream) and not examples.has_length and examples.count is None:
            with watcher.stage(f"counting the {split} examples of {workload.name}, which say no length") as progress:
                read_split(workload, split, examples.require_end, progress)


def example_count(workload: Workload, split: str) -> int | None:
    """How many examples a split has, a stream by being read; None of one that only the user's own code looks at.

    Raises:
        UsageError: as of `require_ends`, also of a stream whose length is not true.
    """
    if not workload.reads(split):
        return None
    count: int = read_split(workload, split, workload.examples(split).counted)
    return count
