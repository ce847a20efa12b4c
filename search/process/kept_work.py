"""What is kept of the work under way if the command ends now: its last line says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_saying: list[Callable[[], str]] = []


@contextmanager
def kept_so_far(say: Callable[[], str]) -> Iterator[None]:
    """While this work lasts, and after it was interrupted, `what_is_kept` is what `say` returns."""
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
    """Of the innermost work under way, or interrupted; None if there is nothing to say of it."""
    return _saying[-1]() if _saying else None


def begin_anew() -> None:
    """Another command begins in this process."""
    _saying.clear()
