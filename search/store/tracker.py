"""A projection of a study, kept up by a thread of its own: it may lag behind the journal, and catches up.

A store that fails costs a warning, never a trial; what is missing is logged as soon as the store can be written again.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any

from search.process.interrupts import check
from search.progress import ProgressReporter
from search.records import TrialRecord
from search.store.projection import Projection, Summary

FIRST_PAUSE, LONGEST_PAUSE = 10.0, 600.0
"""Seconds before a store that failed is tried again; doubled each time, up to the longest."""
POLL = 0.2
"""Seconds between looks at a signal, or at a thread that is gone, while it is waited for."""
PATIENCE = 120.0
"""Seconds for which a study that has ended waits for a record in which nothing more is written."""
BRIEFLY = 2.0
"""Seconds of writing that a study that was interrupted still waits for; no more than as many again for the last."""
log = logging.getLogger(__name__)
_writing: defaultdict[tuple[str, str], Lock] = defaultdict(Lock)
"""By program and study: held while something is written, since the thread of a study that ended may still be at its
last run.
"""


class _LeftBehind(BaseException):
    """The study has ended without the thread, which ends too."""


@dataclass(frozen=True)
class _Order:
    """What the thread is asked for.

    Attributes:
        records: trials that have finished.
        status: of the study that has ended; None while it runs.
        is_due: whether a store that failed is tried at once.
        attempts: how often it is tried before that counts as a failure.
        answer: gets one entry when all was tried.
    """

    records: Mapping[int, TrialRecord] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    summary: Summary | None = None
    status: str | None = None
    is_due: bool = False
    attempts: int = 1
    answer: SimpleQueue[None] = field(default_factory=SimpleQueue)


class Tracker:
    """Writes one study to another program; no method but `start`, `wait` and `finish` waits for it.

    After a failure, the next write that is due looks what is there, repairs it and logs everything that is missing.
    """

    def __init__(self, record: Projection, watcher: ProgressReporter | None = None) -> None:
        """The watcher is told when a store is waited for."""
        self._record, self._watcher = record, watcher or ProgressReporter()
        self._lock = _writing[record.title, record.key]
        self._orders: SimpleQueue[_Order] = SimpleQueue()
        self._given, self._there = set[int](), 0
        self._failing, self._pause, self._due = False, FIRST_PAUSE, 0.0
        self._until, self._is_left = float("inf"), False
        self._thread = Thread(target=self._run, daemon=True, name=f"prunefront-{record.title.lower()}")

    def start(self, params: Mapping[str, Any], records: Mapping[int, TrialRecord]) -> None:
        """Make what is there of the study match its settings and `records`."""
        self._given |= records.keys()
        self._thread.start()
        self._ask(_Order(records=dict(records), params=dict(params), is_due=True, attempts=2))

    def log_trial(self, record: TrialRecord) -> None:
        """Log a finished trial; one that is already there is left unchanged."""
        self._given.add(record.number)
        self._orders.put(_Order(records={record.number: record}))

    def log_summary(self, summary: Summary) -> None:
        """Log what is known of the whole study."""
        self._orders.put(_Order(summary=summary, is_due=True))

    def nudge(self) -> None:
        """Say that the projection itself has something new to write."""
        self._orders.put(_Order())

    def wait(self) -> None:
        """Wait until all that was given is written, or could not be."""
        self._ask(_Order())

    def finish(self, status: str) -> None:
        """Close the study as `FINISHED`, `KILLED` or `FAILED`, after logging what is still missing.

        What was killed waits briefly; what was not, as long as more and more is written.
        """
        killed, order = status == "KILLED", _Order(status=status, is_due=status == "FINISHED")
        if killed:
            self._until = time.monotonic() + BRIEFLY
            self._orders.put(order)
            answered = self._answered(order, 2 * BRIEFLY)
        else:
            answered = self._ask(order, PATIENCE)
        self._is_left = True
        missing = len(self._given) - self._there
        if self._failing or missing or not answered:
            log.warning(
                "%s's record of this study is not complete%s: the same command completes it%s",
                self._record.title,
                f" (up to {missing} of {len(self._given)} trials are missing)" if missing else "",
                "" if killed else " without training",
            )  # fmt: skip

    # What the main thread does while it waits

    def _answered(self, order: _Order, seconds: float) -> bool:
        with suppress(Empty):
            order.answer.get(timeout=seconds)
            return True
        return not self._thread.is_alive()

    def _ask(self, order: _Order, patience: float = float("inf")) -> bool:
        """Whether the thread answers before it has written nothing more for so many seconds; shown if that takes long.

        A signal ends the wait.
        """
        self._orders.put(order)
        try:
            if self._answered(order, POLL):
                return True
            with self._watcher.stage(f"{self._record.title}'s record") as progress:
                there, since = self._there, time.monotonic()
                while not self._answered(order, POLL):
                    check()
                    progress(self._there, len(self._given))
                    if self._there != there:
                        there, since = self._there, time.monotonic()
                    if time.monotonic() - since > patience:
                        return False
            return True
        except BaseException:
            self._is_left = True
            raise

    # What the thread does

    def _run(self) -> None:
        ended = False
        while not ended:
            orders = self._taken()
            for order in orders:
                self._record.records |= order.records
                self._record.params |= order.params
                self._record.summary = order.summary or self._record.summary
            status = next((order.status for order in orders if order.status), None)
            is_due = not orders or any(order.is_due for order in orders) or time.monotonic() >= self._due
            if self._record.logged is not None or is_due:
                self._write(status, max(self._record.attempts, *(order.attempts for order in orders), 1))
            for order in orders:
                order.answer.put(None)
            ended = status is not None or self._is_left

    def _taken(self) -> list[_Order]:
        """What was ordered, as soon as anything is; nothing when it is time to try again."""
        orders: list[_Order] = []
        with suppress(Empty):
            orders.append(self._orders.get(timeout=max(self._due - time.monotonic(), 0) if self._failing else None))
            while True:
                orders.append(self._orders.get_nowait())
        return orders

    def _write(self, status: str | None, attempts: int) -> None:
        """Bring the projection up to date with the records; a failure is told once and tried again after a pause."""
        try:
            self._bring_up(status)
        except BaseException as error:  # a signal is for the main thread, and raises there too
            self._record.forget()
            if attempts > 1:
                self._write(status, attempts - 1)
            else:
                self._fail(error)
        else:
            if self._failing and self._there == len(self._record.records):
                log.warning("%s is written again, and lacks nothing", self._record.title)
            self._failing, self._pause = False, FIRST_PAUSE

    def _bring_up(self, status: str | None) -> None:
        record = self._record
        if record.logged is None:
            self._step(record.match)
        missing = record.missing()
        for place, number in enumerate(missing):
            self._there = len(record.records) - len(missing) + place
            if time.monotonic() > self._until:
                break
            self._step(record.log, number)
        else:
            self._there = len(record.records)
        self._step(record.log_summary)
        if status is not None:
            self._step(record.terminate, status)

    def _step(self, action: Callable[..., None], *arguments: Any) -> None:
        """One thing that is written whole, unless nobody waits for this thread any more."""
        with self._lock:
            if self._is_left:
                raise _LeftBehind
            action(*arguments)

    def _fail(self, error: BaseException) -> None:
        self._due, self._pause = time.monotonic() + self._pause, min(2 * self._pause, LONGEST_PAUSE)
        if not self._failing and isinstance(error, Exception):
            reason = self._record.problem_of(error)
            log.warning(
                "%s could not be written, the study goes on without it and tries again: %s", self._record.title, reason
            )
        self._failing = True
