"""The executor of several workers on one machine: spawned processes, each with a device and threads of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from search.errors import EnvironmentProblem, PrunefrontError
from search.executors.child import ALIVE, READY, REFUSED, RESULT, STEP
from search.executors.jobs import AnyJob, Done, Lost, Scanned, ended_from_plain
from search.placement import VISIBLE
from search.process.interrupts import check
from search.progress import JobsShown, ProgressReporter
from search.training.attempts import Attempt

BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from search.executors.child import main; main(int(sys.argv[1]))"
)
"""What a worker's Python is told to run: with this process's search path, so that it finds the same code. Until then
`-P` keeps it from modules in the working directory, such as a `json.py`.
"""
POLL = 0.5
"""Seconds between looks at workers that say nothing."""
LEAST_STALL, STALL_STEPS = 600.0, 20
"""A worker is taken for stalled after so many seconds without a step, or so many times its slowest one."""
MOST_STARTS = 3
"""How often a worker in a row may end before it can begin."""
SECONDS_TO_END = 5.0
"""What workers may take to end before they are killed."""

SECONDS_TO_TAKE = 60.0
"""What a worker may take to take a message in, which it does beside what it computes."""
MOST_AT_ONCE = 2**20
"""Bytes of its messages that are read at once."""


@dataclass
class _Worker:
    """One process: starting, idle, or with a job.

    Attributes:
        device: the card it sees, as `search.placement.VISIBLE` has it; None where that is left as it is.
        heard: when it last gave a sign of life.
        moved: when it last said that it came further.
        begun: of a message, whose rest is not there yet.
    """

    process: subprocess.Popen[bytes]
    parent: socket.socket
    device: str | None
    failed_starts: int = 0
    is_ready: bool = False
    job: AnyJob | None = None
    at: tuple[int, int] = (0, 0)
    heard: float = field(default_factory=time.monotonic)
    moved: float = field(default_factory=time.monotonic)
    begun: bytes = b""

    def tell(self, message: Any) -> None:
        """Send it a message. If it is gone, or takes none, that shows by what it does not say."""
        with suppress(OSError):
            self.parent.sendall(json.dumps(message).encode() + b"\n")

    def read(self) -> list[dict[str, Any]]:
        """Its messages, as far as they are there; `EOFError` if it is gone."""
        piece = self.parent.recv(MOST_AT_ONCE)
        if not piece:
            raise EOFError
        *lines, self.begun = (self.begun + piece).split(b"\n")
        return [json.loads(line) for line in lines]


class ProcessExecutor:
    """Runs jobs in spawned processes of this machine.

    A process that is killed, crashes or stalls is lost with its job, and another takes its place.

    Args:
        begin: what each worker is told first: the `blueprint` and the journal's `folder`.
        workers: how many processes there are.
        threads: PyTorch's threads in each.
        devices: cards to deal out among them, as `search.placement.VISIBLE` has them; none leaves them as they are.
        stall: seconds without a step, and without any computing, after which a worker is taken for stalled; None: 600,
            or 20 times the slowest step if that is more.

    Waiting raises `PrunefrontError` where a worker cannot begin or go on, or finds something else than its study has.
    """

    def __init__(
        self,
        begin: Mapping[str, Any],
        workers: int,
        threads: int,
        devices: Sequence[str],
        stall: float | None,
        watcher: ProgressReporter,
    ) -> None:
        self.shares_memory = workers > max(len(devices), 1)
        self._begin, self._threads, self._stall = {**begin, "shares": self.shares_memory}, threads, stall
        self._folder, self._slowest = Path(begin["folder"]), 0.0
        self._waiting: list[AnyJob] = []
        self._watcher, self._open, self._shown = watcher, ExitStack(), JobsShown()
        self._dealt = [devices[n % len(devices)] if devices else None for n in range(workers)]
        self._workers: list[_Worker] = []

    @property
    def slots(self) -> int:
        """How many jobs run at once."""
        return len(self._dealt)

    def start(self) -> None:
        """Start the processes, which the first job does otherwise."""
        while len(self._workers) < self.slots:
            self._workers.append(self._started(self._dealt[len(self._workers)]))

    def submit(self, job: AnyJob) -> None:
        """Give a job to a worker that is idle, or to the next that is."""
        self.start()
        if not self._is_busy:
            self._shown = self._open.enter_context(self._watcher.jobs())
        self._waiting.append(job)
        self._hand_out()

    def wait(self) -> list[Done | Scanned | Lost]:
        """What has ended, as soon as anything has."""
        ended: list[Done | Scanned | Lost] = []
        while not ended and self._is_busy:
            ended = self._look()
            self._hand_out()
        if not self._is_busy:
            self._open.close()
        return ended

    def wait_until_ready(self) -> None:
        """Wait until all workers can begin.

        Raises:
            PrunefrontError: as at the first job.
        """
        self.start()
        while not all(worker.is_ready for worker in self._workers):
            self._look()

    @property
    def _is_busy(self) -> bool:
        return bool(self._waiting) or any(worker.job for worker in self._workers)

    def close(self) -> None:
        """End all workers; what they were at counts as not begun."""
        with self._open:
            self._forget_running()  # now already, as another signal may leave no time for it below
            for worker in self._workers:
                worker.parent.settimeout(0)
                worker.tell(None)
                if worker.job or not worker.is_ready:
                    _signal(worker, signal.SIGTERM)
            until = time.monotonic() + SECONDS_TO_END
            for worker in self._workers:
                with suppress(subprocess.TimeoutExpired):
                    worker.process.wait(max(until - time.monotonic(), 0.1))
                _end(worker)
            self._forget_running()
            self._workers = []

    def _forget_running(self) -> None:
        for worker in self._workers:
            if worker.job:
                Attempt(self._folder, worker.job.key).forget_last()

    def _look(self) -> list[Done | Scanned | Lost]:
        """What the workers have said, or how they ended, in the next moments."""
        check()
        ended: list[Done | Scanned | Lost] = []
        heard = wait([worker.parent for worker in self._workers], POLL)
        for worker in list(self._workers):
            if worker.parent in heard:
                ended += self._heard(worker)
            elif worker.process.poll() is not None:  # something it started may hold its end of the socket
                ended += self._gone(worker)
            elif worker.job and time.monotonic() - worker.heard > self._patience:
                said = f"stalled: neither a step nor any computing for {self._patience:.0f} s (--stall)"
                ended += self._gone(worker, said)
        return ended

    def _hand_out(self) -> None:
        for worker in self._workers:
            if self._waiting and worker.is_ready and worker.job is None:
                worker.job, worker.at = self._waiting.pop(0), (0, 0)
                worker.heard = worker.moved = time.monotonic()
                self._shown.begin(worker.job.key, worker.job.label)
                worker.tell(worker.job.to_plain())

    def _heard(self, worker: _Worker) -> list[Done | Scanned | Lost]:
        """Take what a worker says, which may end in the middle of a message."""
        try:
            messages = worker.read()
        except (EOFError, OSError, ValueError):
            return self._gone(worker)
        return [one for message in messages for one in self._taken(worker, message)]

    def _taken(self, worker: _Worker, message: Mapping[str, Any]) -> list[Done | Scanned | Lost]:
        now = time.monotonic()
        if message["kind"] == REFUSED:
            raise refusal(message["message"], message["exit_code"])
        if message["kind"] == READY:
            worker.is_ready, worker.failed_starts = True, 0
        elif message["kind"] == STEP and worker.job:
            before, worker.at = worker.at, (message["done"], message["total"])
            if steps := worker.at[0] - before[0]:
                self._slowest = max(self._slowest, (now - worker.moved) / max(steps, 1))
            worker.heard = worker.moved = now
            self._shown.step(worker.job.key, *worker.at)
        elif message["kind"] == ALIVE:
            worker.heard = now
        elif message["kind"] == RESULT and worker.job:
            job, worker.job = worker.job, None
            self._shown.end(job.key)
            return [ended_from_plain(job, message, str(self._workers.index(worker) + 1))]
        return []

    def _gone(self, worker: _Worker, how: str = "") -> list[Done | Scanned | Lost]:
        """Put another in the place of a worker that has ended, or is ended now; its job is lost."""
        _end(worker)
        place = self._workers.index(worker)
        starts = 0 if worker.is_ready else worker.failed_starts + 1
        if starts >= MOST_STARTS:
            raise EnvironmentProblem(
                f"a worker ended {starts} times before it could begin, last {_said_of(worker.process.returncode)}: "
                "where that is for lack of memory, take fewer --workers"
            )
        self._workers[place] = self._started(worker.device, starts)
        if worker.job is None:
            return []
        self._shown.end(worker.job.key)
        return [Lost(worker.job, worker.at, how)]

    def _started(self, device: str | None, failed_starts: int = 0) -> _Worker:
        ours, theirs = socket.socketpair()
        ours.settimeout(SECONDS_TO_TAKE)
        said = subprocess.DEVNULL if sys.__stderr__ is None else 2  # to this process's stderr, whatever it prints to
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", BOOT, str(theirs.fileno()), json.dumps(_search_path())],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env=self._environment(device),
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for this process to tell of
            )
        worker = _Worker(process, ours, device, failed_starts)
        worker.tell(self._begin)
        return worker

    def _environment(self, device: str | None) -> dict[str, str]:
        """Threads are read when torch is imported, and so is the card."""
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self._threads))
        return {**os.environ, **threads, **({VISIBLE: device} if device is not None else {})}

    @property
    def _patience(self) -> float:
        return self._stall or max(LEAST_STALL, STALL_STEPS * self._slowest)


def refusal(message: str, exit_code: int) -> PrunefrontError:
    """The error that a worker could not begin or go on for, as it would have been raised here."""
    kinds = {kind.exit_code: kind for kind in reversed(PrunefrontError.__subclasses__())}
    return kinds.get(exit_code, PrunefrontError)(f"worker: {message}")


def _search_path() -> list[str]:
    """Without entries of other types, which Python passes over, such as a `Path` that the user's code has added."""
    return [entry for entry in sys.path if isinstance(entry, str)]


def _signal(worker: _Worker, number: int) -> None:
    """To all of its session."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(worker.process.pid, number)


def _end(worker: _Worker) -> None:
    """Kill what is left of a worker, and take note of its end."""
    _signal(worker, signal.SIGKILL)
    worker.process.wait()
    worker.parent.close()


def _said_of(code: int) -> str:
    """How a process ended, in words."""
    return f"by exit code {code}" if code >= 0 else f"by signal {-code} ({signal.Signals(-code).name})"
