"""A limit on how long a stretch of somebody else's code may run."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

AGAIN = 1.0
"""Seconds after which the alarm is raised again, in case the user's code caught it."""
GRACE = 10.0
"""Seconds beyond the limit after which code that never returned to Python is given up."""


class TimedOut(BaseException):
    """The time limit has passed. Not an `Exception`, so that the interrupted code does not take it for an error of its
    own.
    """


@contextmanager
def limited(seconds: float | None, give_up: Callable[[], None] | None = None) -> Iterator[Callable[[], None]]:
    """Raise `TimedOut` in code that runs in this context for longer than the limit; None means no limit.

    In the main thread an alarm interrupts Python code and waiting calls such as `time.sleep`. In other threads only the
    yielded function raises, when it is called after the limit. Native code is not interrupted.

    Args:
        give_up: called in a separate thread, `GRACE` seconds after the limit, if the code is still running then. Native
            code that never releases Python's interpreter lock prevents this.
    """
    if seconds is None:
        yield lambda: None
        return
    until = time.monotonic() + seconds

    def check() -> None:
        if time.monotonic() >= until:
            raise TimedOut(f"longer than {seconds:g} s")

    over = threading.Event()
    if give_up is not None:
        threading.Thread(target=lambda: over.wait(seconds + GRACE) or give_up(), daemon=True).start()
    try:
        if threading.current_thread() is threading.main_thread():
            with _alarm(seconds, check):
                yield check
        else:
            yield check
    finally:
        over.set()


@contextmanager
def _alarm(seconds: float, ring: Callable[[], None]) -> Iterator[None]:
    def handler(_number: int, _frame: Any) -> None:
        ring()

    began, before = time.monotonic(), signal.signal(signal.SIGALRM, handler)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 1e-3), interval)
