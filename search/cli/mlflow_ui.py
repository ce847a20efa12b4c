"""MLflow's own UI on the store of a root, on this machine only, for as long as this process lives."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread

from search.cli import process_guard
from search.errors import EnvironmentProblem
from search.store.mlflow_store import artifacts_uri, store_uri

POLL = 0.2
"""Seconds between looks whether the server listens."""


def ui_command(root: Path, port: int = 5000) -> list[str]:
    """MLflow's own command for its UI on the store of `root`, on this machine only.

    One worker serves one reader, and nobody ends it for being slow to start on a busy machine, as happens to several.
    """
    return [
        "mlflow", "ui", "--backend-store-uri", store_uri(root), "--default-artifact-root", artifacts_uri(root),
        "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
    ]  # fmt: skip


def serve_ui(root: Path, port: int, when_up: Callable[[], None] = lambda: None) -> None:
    """Serve MLflow's UI on the store of `root` until this process ends, which ends the server's workers too.

    `when_up` is called by a thread once the server listens.

    The server has a session of its own: Ctrl-C reaches this process alone, and MLflow's workers print no tracebacks.

    Raises:
        EnvironmentProblem: the server ended by itself.
    """
    command = [sys.executable, "-P", process_guard.__file__, sys.executable, "-P", "-m", *ui_command(root, port)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    Thread(target=_call_once_it_listens, args=(port, when_up), daemon=True).start()
    try:
        code = server.wait()
    finally:
        _end_session(server)
    raise EnvironmentProblem(f"MLflow's UI server ended with code {code}: its own message is above; try another --port")


def _call_once_it_listens(port: int, call: Callable[[], None]) -> None:
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            break
        time.sleep(POLL)
    call()


def _end_session(server: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        server.wait(process_guard.SECONDS_TO_END)
    with suppress(ProcessLookupError):  # workers that outlive their server
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    if server.stdin:
        server.stdin.close()
