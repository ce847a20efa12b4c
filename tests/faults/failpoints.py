"""End this process at the N-th call of a function that changes what is on disk."""

from __future__ import annotations

import os
import signal
from collections import Counter

POINTS = ("replace", "fsync", "unlink", "commit")
"""`os.replace`, `os.fsync`, `os.unlink`, and each commit to a database."""


def count_calls() -> Counter[str]:
    """Counts from now on, for a run that nothing disturbs."""
    calls: Counter[str] = Counter()
    _before_each(calls.update)
    return calls


def kill_at(point: str, number: int, after: bool = False) -> None:
    """SIGKILL this process before (or after) the `number`-th call, the first being 1."""
    seen = Counter()

    def count(called: list[str]) -> None:
        seen.update(called)
        if called == [point] and seen[point] == number + after:
            os.kill(os.getpid(), signal.SIGKILL)

    _before_each(count)


def _before_each(tell) -> None:
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def wrapped(name: str, function):
        def call(*arguments, **options):
            tell([name])
            return function(*arguments, **options)

        return call

    for name in ("replace", "fsync", "unlink"):
        setattr(os, name, wrapped(name, getattr(os, name)))
    event.listen(Engine, "commit", lambda _connection: tell(["commit"]))
