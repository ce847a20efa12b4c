"""Advisory file locks: one writer for each study, one creator for each database."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from search.errors import EnvironmentProblem
from search.storage import AGAIN, write_problem

PATIENCE = 0.3
"""Seconds for which a busy lock is tried again, since a reader that asks whether it is held holds it for an instant."""
LONG_PATIENCE = 120.0
"""Seconds to wait for a lock that is only held while something is being made."""
LONGEST_OWNER = 20
"""More bytes than any process number has."""


@contextmanager
def held_lock(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on `path`; the kernel releases it when the process ends, however it ends.

    Raises:
        EnvironmentProblem: another process holds it (its number is named), for too long if `wait` is True. Or `path` is
            a link, or a file that is not one of our locks; that file is left unchanged.
    """
    with _open_lock(path) as file:
        taken = _taken(file, fcntl.LOCK_EX, LONG_PATIENCE if wait else PATIENCE)
        owner = file.read(LONGEST_OWNER + 1).strip()
        if not taken:
            raise _in_use(path, owner or "unknown", wait)
        if owner and not owner.isdigit():
            raise _no_lock(path, "holds something other than a process number")
        _write_owner(path, file)
        yield


def require_free(path: Path) -> None:
    """Refuse, as `held_lock` does, a lock that another process holds; nothing is written, and the lock stays free."""
    if is_held(path):
        owner = path.read_text(encoding="ascii", errors="replace")[:LONGEST_OWNER].strip()
        raise _in_use(path, owner or "unknown", False)


def _in_use(path: Path, owner: str, waited: bool) -> EnvironmentProblem:
    if waited:
        return EnvironmentProblem(
            f"{str(path)!r} has been locked by process {owner} for {LONG_PATIENCE:.0f} s: wait for it, or stop it"
        )
    return EnvironmentProblem(
        f"study folder {str(path.parent)!r} is in use by process {owner}: wait for it, or name another --study"
    )


def _write_owner(path: Path, file: IO[str]) -> None:
    try:
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
    except OSError as error:
        raise write_problem(path, error) from None


@contextmanager
def held_folder(path: Path) -> Iterator[None]:
    """Hold a folder, if its file system has locks, so that `folder_is_held` says so while this process lives."""
    opened = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(opened)


def folder_is_held(path: Path) -> bool:
    """Whether a process holds the folder, or this cannot be found out."""
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
    """Whether a process holds the lock; any number of processes may ask at once."""
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        return False
    with open(opened) as file:
        return not _taken(file, fcntl.LOCK_SH)


def _open_lock(path: Path) -> IO[str]:
    """Open the lock file itself; following a link would overwrite somebody else's file."""
    try:
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _no_lock(path, "is a link") from None
        if error.errno in (errno.EISDIR, errno.ENXIO):
            raise _no_lock(path, "is not a file") from None
        raise write_problem(path, error) from None
    found = os.fstat(opened)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(opened)
        raise _no_lock(path, "is a hard link" if stat.S_ISREG(found.st_mode) else "is not a file")
    return open(opened, "r+", encoding="ascii", errors="replace")


def _no_lock(path: Path, reason: str) -> EnvironmentProblem:
    return EnvironmentProblem(f"{str(path)!r} {reason}, so it is not used as a lock: delete it{AGAIN}")


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
