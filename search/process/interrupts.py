"""How a signal ends a command, at whatever moment it arrives.

An exception raised by a signal handler can get lost: Python ignores it inside a garbage collector callback or a
`__del__`, and somebody else's `except` clause may catch it. A signal is therefore also recorded, a lost exception is
raised again, and work that proceeds in steps checks the record at every step. A watchdog ends what cannot be
interrupted at all, such as native code.
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
"""Seconds after which the exception of a signal is raised again if it was lost; by then the callback that lost it has
returned.
"""


class Interrupted(KeyboardInterrupt):
    """SIGINT, for instance from Ctrl-C."""


class Terminated(SystemExit):
    """SIGTERM or SIGHUP; handled like Ctrl-C: the study can be resumed."""


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
    """From now on a first signal raises `Interrupted` or `Terminated`, and a second one ends the process at once.

    A signal that the process was started to ignore (by `nohup`, or by a shell for a background job) stays ignored.
    Outside the main thread, the only one in which Python handles signals, this does nothing.

    Args:
        last_words: called with the arguments of `end_process` before that function, or a second signal, ends the
            process; for a signal there is no message.
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
    """What ends the command is decided: signals raise nothing any more, and the next one ends the process."""
    global _received, _settled
    _settled = True
    if _later is not None:
        _later.cancel()
    if _received is None and _handlers:
        _received = 0


def finish(code: int) -> None:
    """Everything has been said: a further signal ends the process with the command's own exit code."""
    global _last_words, _code
    settle()
    _last_words, _code = None, code


def can_end_process() -> bool:
    """Whether this process is a prunefront command, rather than a program that calls prunefront as a library."""
    return bool(_handlers)


def end_process(message: str, code: int) -> NoReturn:
    """End a command whose main thread will never return; may be called from any thread."""
    _end_at_once(message, code)


def exit_code() -> int | None:
    """130 or 143 once a signal has come, else None."""
    return (INTERRUPTED if _received == signal.SIGINT else TERMINATED) if _received else None


def check() -> None:
    """Raise the exception of a signal that has arrived, in case it was lost; called at every step of longer work."""
    if _received:
        _end()


def is_signal(error: BaseException) -> bool:
    """Whether an exception that ends the program came from a signal, rather than from the code it passed through."""
    if exit_code() is not None:
        return True
    if isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        return True  # by Python's own handler, of which nothing can be seen
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
    """End the process because of a signal whose exception did not."""
    global _received
    _received = _received or number
    _end_at_once(None, (exit_code() or TERMINATED) if _code is None else _code)


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
        main = threading.main_thread().ident
        assert main is not None  # it has begun
        signal.pthread_kill(main, _received or signal.SIGTERM)

    global _later
    _later = threading.Timer(SOON, send)
    _later.daemon = True
    try:
        _later.start()
    except RuntimeError:  # the interpreter is ending
        os._exit(exit_code() or TERMINATED)


def _in_child() -> None:
    """A process forked by the user's code is not our command: it gets its own signal handling back."""
    global _received, _watchdog
    if _handlers:
        _received, _watchdog = None, None
        signal.set_wakeup_fd(-1)
        for number, before in _handlers.items():
            if signal.getsignal(number) is _receive:
                signal.signal(number, before)
        _handlers.clear()


os.register_at_fork(after_in_child=_in_child)
