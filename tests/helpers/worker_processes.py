"""Processes that evaluate for a study, found in /proc, and waiting for what they do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path


def workers_of(process: int) -> list[int]:
    """Workers of a process."""
    return [
        number
        for number, _, parent, _ in _processes()
        if parent == process and b"executors.child" in Path(f"/proc/{number}/cmdline").read_bytes()
    ]


def group_of(leader: int) -> list[int]:
    """Processes of a group, without its leader."""
    return [number for number, _, _, group in _processes() if group == leader != number]


def runs(process: int) -> bool:
    """Whether a process is there, and does not only wait for its parent to hear of its end."""
    return any(number == process and state != "Z" for number, state, _, _ in _processes())


def wait_until(holds: Callable[[], bool], seconds: float = 120.0) -> bool:
    """Whether a condition holds within so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if holds():
            return True
        time.sleep(0.05)
    return False


def _processes() -> Iterator[tuple[int, str, int, int]]:
    """Number, state, parent and group of each."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, group, *_ = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        yield int(path.parent.name), state, int(parent), int(group)
