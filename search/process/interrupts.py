"""Signals that end a command, at whatever moment they fall.

What a signal handler raises can be lost: Python ignores it in a callback of the garbage collector and in `__del__`, and
a clause of somebody else's may catch it. So a signal is also noted, a lost one is raised again, and work that goes in
steps asks at each. What cannot be interrupted at all, such as native code, is ended by a watchdog.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from search.process.watchdog import Watchdog

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED, TERMINATED = 130, 143
"""Exit codes: after SIGINT, and after SIGTERM or SIGHUP."""
SOON = 0.05
"""Seconds after which a signal that was lost is raised again: by then the callback that lost it is over."""


class Interrupted(KeyboardInterrupt):
    """SIGINT, such as by Ctrl-C."""


class Terminated(SystemExit):
    """SIGTERM or SIGHUP: end like Ctrl-C, resumable."""


_received: int | None = None
_again = False
_last_words: Callable[[str | None, int], None] | None = None
_handlers: dict[int, Any] = {}
_hook: Any = None
_code: int | None = None
_later: threading.Timer | None = None
_watchdog: Watchdog | None = None
_settled = _leaving = False


def watch(last_words: Callable[[str | None, int], None]) -> None:
    """From now on a signal raises `Interrupted` or `Terminated`, and a second one ends the process at once.

    One the process was started to ignore (by `nohup`, or by a shell for what it runs in the background) stays ignored.
    Does nothing but in the main thread, where alone Python handles signals.

    Args:
        last_words: called before `end_process`, and before a second signal ends the process, with its arguments; of
            a signal there is no message.
    """
    global _received, _again, _last_words, _hook, _code, _watchdog, _settled, _leaving
    if threading.current_thread() is not threading.main_thread():
        return
    _received, _again, _last_words, _code, _settled, _leaving = None, False, last_words, None, False, False
    for number in SIGNALS:
        if (before := signal.getsignal(number)) not in (signal.SIG_IGN, _receive):
            _handlers[number] = before
            signal.signal(number, _receive)
    if _watchdog is not None:
        _watchdog.stop()
    _watchdog = Watchdog(_is_ours, lambda: bool(_received), lambda: _settled, _end_for)
    if sys.unraisablehook is not _raise_again:
        _hook, sys.unraisablehook = sys.unraisablehook, _raise_again


def unwatch() -> None:
    """Undo `watch`."""
    global _received, _watchdog
    settle()
    if _watchdog is not None:
        _watchdog.stop()
        _watchdog = None
    for number, before in _handlers.items():
        signal.signal(number, before)
    _handlers.clear()
    _received = None
    if sys.unraisablehook is _raise_again:
        sys.unraisablehook = _hook


def settle() -> None:
    """What ends the command is known: no signal raises any more, the next one ends the process."""
    global _received, _settled
    _settled = True
    if _later is not None:
        _later.cancel()
    if _received is None and _handlers:
        _received = 0


def finish(code: int) -> None:
    """All is said: a further signal ends the process with the command's own exit code."""
    global _last_words, _code
    settle()
    _last_words, _code = None, code


def can_end_process() -> bool:
    """Whether this process is a command's, and not that of a program which calls it."""
    return bool(_handlers)


def end_process(message: str, code: int) -> NoReturn:
    """From any thread, end a command whose main thread will never come back."""
    _end_at_once(message, code)


def exit_code() -> int | None:
    """130 or 143 once a signal has come, else None."""
    return (INTERRUPTED if _received == signal.SIGINT else TERMINATED) if _received else None


def check() -> None:
    """Raise what the signal that has come did, in case that was lost; called where work goes in steps."""
    if _received:
        _end()


def is_signal(error: BaseException) -> bool:
    """Whether an exception that ends a program was raised by a signal, and not by the code that it came out of."""
    if exit_code() is not None:
        return True
    if isinstance(error, KeyboardInterrupt):
        return not _handlers  # by Python's own handler, of which nothing can be seen
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    codes = {getattr(getattr(own, "__func__", own), "__code__", None) for own in handlers if callable(own)}
    step = error.__traceback__
    while step is not None:
        if step.tb_frame.f_code in codes:
            return True
        step = step.tb_next
    return False


def _receive(number: int, _frame: Any) -> None:
    global _received, _again
    if _again:
        _again = False
    elif _received is not None:
        of_signal = INTERRUPTED if (_received or number) == signal.SIGINT else TERMINATED
        _end_at_once(None, of_signal if _code is None else _code)
    else:
        _received = number
    _end()


def _end() -> NoReturn:
    raise (Interrupted() if _received == signal.SIGINT else Terminated(TERMINATED))


def _is_ours(number: int) -> bool:
    return signal.getsignal(number) is _receive


def _end_for(number: int) -> None:
    """End the process for a signal that does not."""
    global _received
    _received = _received or number
    _end_at_once(None, exit_code() if _code is None else _code)


def _end_at_once(message: str | None, code: int) -> NoReturn:
    global _leaving
    said, _leaving = _leaving, True
    try:
        if _last_words is not None and not said:
            _last_words(message, code)
    finally:
        os._exit(code)


def _raise_again(lost: Any) -> None:
    """Python's hook for exceptions that it ignores."""
    if not isinstance(lost.exc_value, Interrupted | Terminated):
        _hook(lost)
        return

    def send() -> None:
        global _again
        _again = True
        if _watchdog is not None:
            _watchdog.ignore_one()
        signal.pthread_kill(threading.main_thread().ident, _received or signal.SIGTERM)

    global _later
    _later = threading.Timer(SOON, send)
    _later.daemon = True
    try:
        _later.start()
    except RuntimeError:  # the interpreter is ending
        os._exit(exit_code() or TERMINATED)


def _in_child() -> None:
    """A process that the user's code forks is no command: its signals are its own again."""
    global _received, _watchdog
    if _handlers:
        _received, _watchdog = None, None
        signal.set_wakeup_fd(-1)
        for number, before in _handlers.items():
            if signal.getsignal(number) is _receive:
                signal.signal(number, before)
        _handlers.clear()


os.register_at_fork(after_in_child=_in_child)
