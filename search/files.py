"""Files: read with caution, whatever they hold, and written so that a crash leaves no half-written file."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import tempfile
import uuid
from contextlib import suppress
from pathlib import Path

from search.errors import EnvironmentProblem, UsageError
from search.storage import check_database_path, write_problem

MOST_JSON = 64 * 2**20
"""The largest JSON file read, in bytes; thousands of layers with the indices of all their channels take a tenth of it.
"""
_BLOCK = 2**20
_being_written: set[str] = set()
_TEMPORARY = re.compile(r"\..+\.([0-9]+)\.[0-9a-f]{8}\.tmp")


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes.

    Raises:
        ValueError: it is a folder, pipe or device, or is larger. None of it is read, and a pipe is not waited for.
        OSError: it does not exist or cannot be read.
    """
    with os.fdopen(_opened(path, most), "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:  # it grew meanwhile
        raise ValueError(f"it has more than {most:,} bytes")
    return content


def read_text(path: Path, most: int = MOST_JSON) -> str:
    """The same as text in UTF-8, with or without a byte order mark; other bytes raise `ValueError`."""
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not a text file in UTF-8 (byte {error.start})") from None


def sha256_of(path: Path, most: int) -> str:
    """The hash of the content, read in blocks; raises like `read_bytes`."""
    hasher = hashlib.sha256()
    with os.fdopen(_opened(path, most), "rb") as file:
        while block := file.read(_BLOCK):
            hasher.update(block)
    return hasher.hexdigest()


def _opened(path: Path, most: int) -> int:
    opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(opened)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is a folder, pipe or device, not a file")
        if found.st_size > most:
            raise ValueError(f"it has {found.st_size:,} bytes, and can have at most {most:,}")
    except BaseException:
        os.close(opened)
        raise
    return opened


def open_root(root: str | Path, create: bool = True) -> Path:
    """The root folder, created if necessary and known to be writable; absolute, since the user's code may change the
    working directory.

    Args:
        create: otherwise it, or the folder that it would be created in, is only known to be writable.

    Raises:
        EnvironmentProblem: it cannot be created or written, or its path is too long for databases in it.
    """
    try:
        path = Path(root).absolute()
        if create:
            path.mkdir(parents=True, exist_ok=True)
        os.fsencode(path).decode()
    except (OSError, ValueError) as error:
        raise _no_root(root, getattr(error, "strerror", None) or str(error)) from None
    nearest = next(one for one in (path, *path.parents) if os.path.lexists(one))
    if not nearest.is_dir():
        raise _no_root(root, os.strerror(errno.EEXIST if nearest == path else errno.ENOTDIR))
    for folder in (nearest, path / "cache"):
        if folder.is_dir() and (reason := unwritable(folder)):
            raise _no_root(root, reason)
    check_database_path(path / "mlflow.db")
    return path


def _no_root(root: str | Path, reason: str) -> EnvironmentProblem:
    return EnvironmentProblem(f"cannot write to root {str(root)!r} ({reason}): choose another folder with --root")


def check_writable(folder: str | Path | None, option: str = "--out") -> None:
    """Refuse a folder that could not be created or written, before anything is computed; None is accepted.

    A link stands for what it points to.

    Raises:
        UsageError: it is a file, or lies below one.
        EnvironmentProblem: no file can be created in its nearest existing parent.
    """
    place = Path(os.path.realpath(folder)) if folder else None
    for path in (place, *place.parents) if place else ():
        if path.is_dir():
            if reason := unwritable(path):
                raise EnvironmentProblem(f"cannot write to {option} {str(folder)!r} ({reason}): name another folder")
            return
        if os.path.lexists(path):  # a link that leads to itself is there, and exists nowhere
            below = "" if path == place else f"lies below {str(path)!r}, which "
            raise UsageError(f"{option} {str(folder)!r} {below}is a file: name a folder")


def unwritable(folder: Path) -> str | None:
    """Why no file can be created in an existing folder; None if one can."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def write_durably(path: Path, data: bytes) -> None:
    """Write, fsync, rename, fsync the folder: after a crash the file is complete or absent.

    Raises:
        EnvironmentProblem: the disk is full or the place cannot be written. An earlier file is unchanged, and nothing
            is left over.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
    _being_written.add(temporary.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        flush(path.parent)
    except OSError as error:
        raise write_problem(path, error) from None
    finally:
        with suppress(OSError):  # after the rename there is none
            temporary.unlink()
        _being_written.discard(temporary.name)


def remove_temporaries(folder: Path, of_dead_only: bool = False) -> None:
    """Remove the files that `write_durably` left in a folder when its process was killed.

    Args:
        of_dead_only: keep the files of running processes, which may still be writing them.
    """
    for path in folder.glob(".*.tmp"):
        owner = _TEMPORARY.fullmatch(path.name)
        if owner is None or path.name in _being_written or (of_dead_only and _lives(int(owner[1]))):
            continue
        with suppress(OSError):  # what cannot be removed does no harm
            path.unlink()


def _lives(process: int) -> bool:
    """Whether it is another, running process; in a container, a killed one may have had our number."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return process != os.getpid()


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, have reached the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
