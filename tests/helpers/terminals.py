"""A terminal for tests: a pseudo-terminal of so many columns, and what a command writes to it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
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


class Typed:
    """A program on a terminal, which is typed to: call it with keys, and with what to wait for."""

    def __init__(self, words: Sequence[str], folder: Path) -> None:
        self._master, slave = pty.openpty()
        resize(slave, 200)
        plain = {**os.environ, "TERM": "dumb", "PS1": "> "}
        self._program = subprocess.Popen(
            words, cwd=folder, stdin=slave, stdout=slave, stderr=slave, env=plain, start_new_session=True
        )
        os.close(slave)

    def __enter__(self) -> Typed:
        return self

    def __exit__(self, *_: object) -> None:
        self._program.kill()
        self._program.wait()
        os.close(self._master)

    def __call__(self, keys: str, until: str = "", patience: float = 30.0) -> str:
        """What was shown since, up to `until`; without it nothing is waited for."""
        os.write(self._master, keys.encode())
        shown, ends = "", time.monotonic() + patience
        while until not in shown:
            assert time.monotonic() < ends, shown
            if select.select([self._master], [], [], 0.1)[0]:
                shown += os.read(self._master, 1 << 16).decode(errors="replace")
        return shown
