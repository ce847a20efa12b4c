"""What a worker's process runs: it rebuilds the network, and then evaluates one job after the other.

Messages are lines of JSON over a socket that its parent holds the other end of. When that end closes, however the
parent went, the process ends too.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

READY, REFUSED, STEP, ALIVE, RESULT = "ready", "refused", "step", "alive", "result"
"""Kinds of what a worker says: it can begin, it cannot begin or go on, how far a job is, that it computes, what came of
it."""
SECONDS_A_STEP = 0.2
"""At most so often a worker tells its step."""
SECONDS_A_SIGN, COMPUTING = 1.0, 0.02
"""How often a worker tells that it computes, and the share of a core that its process must use for that."""
_leave = os._exit  # an evaluation puts another in its place, to see who calls it


def main(number: int) -> None:
    """Talk to the parent over the file descriptor of this number until it has no more jobs."""
    os.set_inheritable(number, False)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # so that a KeyboardInterrupt is of the user's own code
    parent = socket.socket(fileno=number)
    inbox = _Inbox(parent)
    sys.stdout = sys.stderr  # what the user's code prints is no answer of the command
    outbox = _Outbox(parent)
    try:
        _work(inbox, outbox)
    except (BrokenPipeError, ConnectionResetError):
        _leave(1)


def _work(inbox: _Inbox, outbox: _Outbox) -> None:
    begin = inbox.take()
    from search.errors import EnvironmentProblem, PrunefrontError

    try:
        prepared, running = _begun(begin)
    except PrunefrontError as error:
        outbox.put({"kind": REFUSED, "message": str(error), "exit_code": error.exit_code})
        return
    from search.executors.evaluation import carry_out
    from search.executors.jobs import Job, job_from_plain
    from search.training.attempts import TIMED_OUT, Attempt

    folder, placement = Path(begin["folder"]), prepared.workload.placement
    with running:
        outbox.put({"kind": READY})
        threading.Thread(target=outbox.tell_of_life, daemon=True, name="prunefront-life").start()
        while (message := inbox.take()) is not None:
            job = job_from_plain(message)
            limit = job.limit if isinstance(job, Job) else None
            attempt = Attempt(folder, job.key)

            def give_up(attempt: Attempt = attempt, limit: float | None = limit) -> NoReturn:
                attempt.say(f"{TIMED_OUT}: longer than {limit:g} s, in native code")
                _leave(1)

            try:
                done = carry_out(prepared, job, attempt, outbox.step, None if limit is None else give_up)
            except PrunefrontError as error:  # such as a full disk, which is no fault of the job's
                outbox.put({"kind": REFUSED, "message": str(error), "exit_code": error.exit_code})
                return
            except OSError as error:
                outbox.put({"kind": REFUSED, "message": str(error), "exit_code": EnvironmentProblem.exit_code})
                return
            if begin["shares"] and not placement.on_cpu:
                placement.give_back_memory()
            outbox.put({"kind": RESULT, **done.to_plain()})


def _begun(begin: dict[str, Any]) -> tuple[Any, Any]:
    """The network, and the context in which it computes as the study asks for."""
    from search.executors.blueprint import rebuild
    from search.placement import placement_of

    config = begin["blueprint"]["config"]
    placement = placement_of(config["device"], config["precision"], config["deterministic"], config["threads"])
    running = placement.running()
    with placement.running():
        prepared = rebuild(begin["blueprint"])
    return prepared, running


class _Inbox:
    """Messages of the parent, read by a thread of its own, which ends the process when the parent is gone."""

    def __init__(self, parent: socket.socket) -> None:
        self._lines, self._there = parent.makefile("rb"), threading.Semaphore(0)
        self._messages: list[Any] = []
        threading.Thread(target=self._read, daemon=True, name="prunefront-inbox").start()

    def take(self) -> Any:
        """The next message; None is the last."""
        while not self._there.acquire(timeout=3600):
            pass
        return self._messages.pop(0)

    def _read(self) -> None:
        with suppress(OSError, ValueError):  # a line that was cut off is the last
            for line in self._lines:
                self._messages.append(json.loads(line))
                self._there.release()
        try:
            os.killpg(0, signal.SIGKILL)  # what the user's code started goes with it
        finally:
            _leave(1)


class _Outbox:
    """Messages to the parent."""

    def __init__(self, parent: socket.socket) -> None:
        self._parent, self._told, self._turn = parent, 0.0, threading.Lock()

    def put(self, message: dict[str, Any]) -> None:
        with self._turn:
            self._parent.sendall(json.dumps(message).encode() + b"\n")

    def tell_of_life(self) -> None:
        """Tell now and then that the process computes: scoring and the user's own loops tell no steps."""
        before = time.process_time()
        with suppress(OSError):  # the parent is gone, of which the inbox hears
            while True:
                time.sleep(SECONDS_A_SIGN)
                now = time.process_time()
                if now - before > COMPUTING * SECONDS_A_SIGN:
                    self.put({"kind": ALIVE})
                before = now

    def step(self, done: int, total: int) -> None:
        """Tell how far a job is, now and then."""
        now = time.monotonic()
        if now - self._told >= SECONDS_A_STEP or done in (0, total):
            self._told = now
            self.put({"kind": STEP, "done": done, "total": total})
