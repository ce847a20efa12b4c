"""A terminal for tests: a pseudo-terminal of so many columns, and what a command writes to it."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Sequence
from pathlib import Path


def resize(descriptor: int, columns: int) -> None:
    """Make a terminal so wide."""
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))


def on_a_terminal(words: Sequence[str], folder: Path, columns: int, **environment: str) -> str:
    """What a command writes to a terminal."""
    master, slave = pty.openpty()
    resize(slave, columns)
    plain = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR")}
    plain |= {"OMP_NUM_THREADS": "1", "TERM": "xterm-256color", **environment}
    ended = subprocess.Popen(words, cwd=folder, stdin=slave, stdout=slave, stderr=slave, env=plain)
    os.close(slave)
    pieces = []
    while True:
        try:
            pieces.append(os.read(master, 1 << 16))
        except OSError:  # Linux tells so that nobody has the other end open
            break
        if not pieces[-1]:
            break
    os.close(master)
    assert ended.wait(60) == 0, b"".join(pieces)
    return b"".join(pieces).decode()
