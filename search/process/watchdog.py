"""Ends a command that a signal does not end: in native code that never returns, in code that catches everything, at
exit.

Python runs a signal's handler in the main thread, once that thread is back from native code. But the byte that Python
writes to its wakeup file when the signal arrives wakes the thread of this watchdog, provided that the native code lets
other threads run.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress

REACH = 2.0
"""Seconds to wait for a signal's handler to run; after that the main thread is taken to be stuck in native code."""
CLOSING = 20.0
"""Seconds after a signal within which its exception should have ended the command; after that somebody's code has
caught it.
"""
LEAVING = 5.0
"""Seconds that Python may take to exit after the command was interrupted; after that a child process is keeping it."""
AT_ONCE = 0.3
"""Seconds within which the handler of a second signal, which ends the process, should have run."""
STEP = 0.1


class Watchdog:
    """Watches, from a thread of its own, how the main thread takes the signals that arrive, until it is stopped.

    Args:
        is_ours: whether a signal is one that ends the command; asked when it arrives.
        reached: whether the handler of a first signal has run.
        settled: whether the command has noticed that it is ending.
        end: called with the number of the first signal to end the process.
    """

    def __init__(
        self,
        is_ours: Callable[[int], bool],
        reached: Callable[[], bool],
        settled: Callable[[], bool],
        end: Callable[[int], None],
    ) -> None:
        self._is_ours, self._reached, self._settled, self._end = is_ours, reached, settled, end
        self._come: list[int] = []
        self._again, self._over = 0, False
        self._bytes, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        threading.Thread(target=self._run, daemon=True, name="prunefront-watchdog").start()

    def stop(self) -> None:
        """Stop watching; call it from the main thread."""
        self._over = True
        now = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(self._before if now == self._writing else now)
        with suppress(OSError):
            os.close(self._writing)

    def ignore_one(self) -> None:
        """The process is about to send itself a signal, to raise a lost exception again."""
        self._again += 1

    def _run(self) -> None:
        try:
            while not self._come:
                if not self._read(None):
                    return
            if self._must_end():
                self._end(self._come[0])
        except OSError:  # the user's code closed all files
            return
        finally:
            with suppress(OSError):
                os.close(self._bytes)

    def _must_end(self) -> bool:
        """Follow the first signal until the process must be ended; False if the watch ends before."""
        came, ended = time.monotonic(), None
        while self._read(STEP):
            now = time.monotonic()
            if len(self._come) - self._again > 1:
                return self._read(AT_ONCE) and self._read(0)
            if now > came + REACH and not self._reached():
                return True
            if now > came + CLOSING and not self._settled():
                return True
            if ended is None and not threading.main_thread().is_alive():
                ended = now
            if ended is not None and now > ended + LEAVING:
                return True
        return False

    def _read(self, seconds: float | None) -> bool:
        """Wait for signals; False once the watch is over."""
        if not select.select([self._bytes], [], [], seconds)[0]:
            return not self._over
        data = os.read(self._bytes, 1024)
        self._come += [number for number in data if self._is_ours(number)]
        return bool(data) and not self._over
