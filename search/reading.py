"""Reading files that may be anything: only regular ones, and never more of them than they can sensibly hold."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

MOST_JSON = 64 * 2**20
"""Bytes of a JSON file: thousands of layers with all their channels' indices take a tenth."""
_BLOCK = 2**20


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes.

    Raises:
        ValueError: it is a folder, pipe or device, or larger; nothing of it is read, and nothing waits for a writer.
        OSError: it is not there or cannot be read.
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
    """Of the content, read in blocks; raises like `read_bytes`."""
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
