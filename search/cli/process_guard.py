"""Runs the command it is given until that ends, or until its own stdin does: then all of its process group ends.

Whoever starts it holds the other end of stdin, which closes however that process ends, also by SIGKILL. Run as a file
of its own in a session of its own; it needs nothing but the standard library.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

SECONDS_TO_END = 10
"""What a command asked to end may take before it is killed."""


def guard(command: list[str]) -> int:
    """Run `command`; returns its exit code."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # it outlives what it asks to end
    ward = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    alone = threading.Event()
    threading.Thread(target=_end_with_stdin, args=(alone,), daemon=True).start()
    code = ward.wait()
    if alone.is_set():
        os.killpg(0, signal.SIGKILL)  # what the command started and left behind
    return code


def _end_with_stdin(alone: threading.Event) -> None:
    while os.read(0, 1024):
        pass
    alone.set()
    os.killpg(0, signal.SIGTERM)
    time.sleep(SECONDS_TO_END)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(guard(sys.argv[1:]))
