"""A limit on how long a stretch of somebody else's code may run."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

AGAIN = 1.0
"""Seconds after which the alarm is raised again, in case code of the user's caught it."""
GRACE = 10.0
"""Seconds beyond the limit after which code that never came back to Python is given up."""


class TimedOut(BaseException):
    """The limit is over; no `Exception`, so that the code it interrupts does not take it for an error of its own."""


@contextmanager
def limited(seconds: float | None, give_up: Callable[[], None] | None = None) -> Iterator[Callable[[], None]]:
    """Raise `TimedOut` in what runs here for longer; None is no limit. The function raises it if it is due.

    In the main thread an alarm interrupts Python code and what waits, such as `time.sleep`; elsewhere only the function
    tells. Native code is not interrupted.

    Args:
        give_up: called in a thread of its own, `GRACE` seconds after the limit, if that is still not over. Native code
            that never lets Python's other threads run prevents it.
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
