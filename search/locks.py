"""Advisory file locks: one writer a study, one maker a database."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from search.errors import EnvironmentProblem


@contextmanager
def held_lock(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on `path`; the kernel drops it when the process ends, however it ends.

    Raises:
        EnvironmentProblem: another process holds it and `wait` is False; its process number is named.
    """
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise EnvironmentProblem(
                f"study folder {str(path.parent)!r} is in use by process {owner}: wait for it, or name another --study"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
