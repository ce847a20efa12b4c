"""Advisory file locks: one writer a study, one maker a database."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from search.errors import EnvironmentProblem

PATIENCE = 0.3
"""Seconds a busy lock is tried again: a reader that asks whether it is held does so for an instant."""


@contextmanager
def held_lock(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on `path`; the kernel drops it when the process ends, however it ends.

    Raises:
        EnvironmentProblem: another process holds it and `wait` is False; its process number is named.
    """
    with path.open("a+") as file:
        if wait:
            fcntl.flock(file, fcntl.LOCK_EX)
        elif not _taken(file, fcntl.LOCK_EX, PATIENCE):
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise EnvironmentProblem(
                f"study folder {str(path.parent)!r} is in use by process {owner}: wait for it, or name another --study"
            )
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextmanager
def held_folder(path: Path) -> Iterator[None]:
    """Hold a folder, where its file system has locks, so that `folder_is_held` says so while this process lives."""
    opened = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(opened)


def folder_is_held(path: Path) -> bool:
    """Whether a process holds the folder, or it cannot be told."""
    try:
        opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return True
    try:
        fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(opened)


def is_held(path: Path) -> bool:
    """Whether a process holds the lock; any number may ask at once."""
    if not path.is_file():
        return False
    with path.open() as file:
        return not _taken(file, fcntl.LOCK_SH)


def _taken(file: IO[str], kind: int, patience: float = 0.0) -> bool:
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.02)
