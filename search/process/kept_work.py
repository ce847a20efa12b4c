"""What would be kept of the current work if the command ended now; its last line tells the user."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_saying: list[Callable[[], str]] = []


@contextmanager
def kept_so_far(say: Callable[[], str]) -> Iterator[None]:
    """During this work, and after it was interrupted, `what_is_kept` returns what `say` returns."""
    _saying.append(say)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        _saying.remove(say)
        raise
    _saying.remove(say)


def what_is_kept() -> str | None:
    """The answer of the innermost work that is running or was interrupted; None if there is nothing to tell."""
    return _saying[-1]() if _saying else None


def begin_anew() -> None:
    """Another command begins in this process."""
    _saying.clear()
