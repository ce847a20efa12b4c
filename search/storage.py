"""Why a disk or a SQLite file refuses something, in one line with cause and remedy; and the URL of such a file."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from search.errors import EnvironmentProblem

if TYPE_CHECKING:
    from sqlalchemy import URL

LONGEST_DATABASE = 504
"""The longest path, in bytes, that SQLite opens: 512, less the `-journal` that it appends."""
REMEDIES = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space within your quota",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.EIO: "check the disk",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close other programs, as the machine has no file handles left",
    errno.ENAMETOOLONG: "choose a shorter path",
}
SIDECARS = ("-journal", "-wal", "-shm")
"""Endings of the files that SQLite keeps beside a database; one left behind would be applied to the next database of
that name.
"""
PASSING = (
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM,
)  # fmt: skip
"""SQLite's errors that say nothing about the file itself."""
TIMEOUT = 20.0
"""Seconds to wait for another program's lock, as in MLflow."""
AGAIN = ", then run the same command again"


def write_problem(path: Path | str, error: OSError) -> EnvironmentProblem:
    """Why `path` could not be written."""
    remedy = REMEDIES.get(error.errno or 0, "make it writable, or choose another place")
    return EnvironmentProblem(f"cannot write {str(path)!r} ({error.strerror or error}): {remedy}{AGAIN}")


def sqlite_url(path: Path) -> URL:
    """The URL of a SQLite file, whatever characters are in its path."""
    from sqlalchemy import URL  # reading a study's journal does without

    return URL.create("sqlite", database=str(path))


def connect(path: Path) -> sqlite3.Connection:
    """Connect to an existing SQLite file."""
    return sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=rw", uri=True, timeout=TIMEOUT)


def passes(error: sqlite3.Error) -> bool:
    """Whether an error says nothing about the file itself: a lock, a full disk."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in PASSING


def fault_of(path: Path) -> str | None:
    """What is wrong with a database itself; None if nothing is, if there is none, or if it cannot be read now."""
    if not os.path.lexists(path):
        return None
    if not path.is_file():
        return "it is not a file"
    try:
        with closing(connect(path)) as database:
            found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        return None if passes(error) else str(error)
    return None if found == "ok" else found.splitlines()[-1]  # the first may be a heading


def set_aside(path: Path) -> Path:
    """Rename a broken database, and the files that SQLite keeps beside it; returns the new name."""
    number = 1
    while os.path.lexists(kept := path.with_name(f"{path.name}.broken-{number}")):
        number += 1
    for end in (*SIDECARS, ""):
        with_end = path.with_name(path.name + end)
        if os.path.lexists(with_end):
            with_end.rename(kept.with_name(kept.name + end))
    return kept


def check_database_path(path: Path) -> None:
    """Refuse a path that SQLite cannot open.

    Raises:
        EnvironmentProblem: it is too long.
    """
    length = len(os.fsencode(os.path.realpath(path)))
    if length > LONGEST_DATABASE:
        raise EnvironmentProblem(
            f"the path {str(path)!r} has {length} bytes, and SQLite opens at most {LONGEST_DATABASE}: "
            "choose a shorter --root"
        )


def database_problem(path: Path, error: BaseException, damaged: str) -> EnvironmentProblem | None:
    """Why the SQLite file `path` could not be used; None if no error of SQLite's is behind `error`.

    Args:
        error: SQLite's own, or whatever a library made of it.
        damaged: the remedy if the file is not a complete database.
    """
    found = next((cause for cause in causes_of(error) if isinstance(cause, sqlite3.Error)), None)
    if found is None:
        return None
    code = (getattr(found, "sqlite_errorcode", None) or 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        said = f"the disk is full): {REMEDIES[errno.ENOSPC]}{AGAIN}"
    elif code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) or "locked" in str(found):
        said = f"another program has it locked): close that program, say a database viewer{AGAIN}"
    elif not path.parent.is_dir():
        said = f"its folder is gone): put it back, or choose another --root{AGAIN}"
    elif code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM) or not _is_writable(path):
        said = f"it, or its folder, cannot be written): make it writable, or choose another --root{AGAIN}"
    elif code == sqlite3.SQLITE_IOERR:
        said = f"{found}): check the disk, its space, quota and the limit on file sizes (ulimit -f){AGAIN}"
    elif code == sqlite3.SQLITE_CANTOPEN:
        said = f"{found}): check its folder and the limit on open files (ulimit -n){AGAIN}"
    else:
        said = f"{found}): {damaged}"
    return EnvironmentProblem(f"cannot use {str(path)!r} ({said}")


def is_refusal(error: BaseException) -> bool:
    """Whether SQLite refused the file itself. Bad statements and broken constraints do not count; missing tables do."""
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    statement = code in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH)
    return isinstance(error, sqlite3.DatabaseError) and (not statement or "no such table" in str(error))


def _is_writable(path: Path) -> bool:
    return os.access(path if path.exists() else path.parent, os.W_OK) and os.access(path.parent, os.W_OK)


def causes_of(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and the errors that it was raised from or while handling."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        if isinstance(found := getattr(error, "orig", None), BaseException):  # of SQLAlchemy's errors
            yield found
        error = error.__cause__ or error.__context__
