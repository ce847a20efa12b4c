"""The executor of a Ray cluster that is there already: an actor a worker, on whichever nodes have room.

Nothing is run twice behind our back: Ray restarts no actor and repeats no task. A node that dies shows as an actor that
is dead, or first as one that cannot be reached; either loses its job, and the actor is killed, so that a late result of
a job that was given away comes to nobody.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from search.errors import EnvironmentProblem, PrunefrontError, UsageError
from search.executors.jobs import AnyJob, Done, Lost, Scanned, ended_from_plain
from search.executors.process import MOST_STARTS, refusal
from search.executors.ray_worker import LOST, NODE, REFUSED, VERSIONS, WEIGHTS, RayWorker, versions
from search.process.interrupts import SIGNALS, check
from search.progress import JobsShown, ProgressReporter

POLL = 0.5
"""Seconds between looks at actors that say nothing."""
SECONDS_A_LOOK = 5.0
"""Between questions how far the jobs are."""
SECONDS_A_NOTE = 60.0
"""Between notes that the cluster has no room."""
SECONDS_TO_CONNECT = 20.0
"""Within which somebody must answer at the cluster's address."""
SECONDS_TO_FETCH = 120.0
"""What the weights of a trial may take to arrive."""

SECONDS_TO_TIDY = 5.0
"""What actors may take to remove their files before they are killed."""


@dataclass
class _Actor:
    """One worker on the cluster: it begins, is idle, or has a job.

    Attributes:
        number: counts the workers from 1; an actor in the place of another has the same.
        node: the name of the machine it is on; empty until it has begun.
        called: of the call that is not answered yet.
        looked: of the question how far its job is.
    """

    number: int
    handle: Any
    called: Any
    node: str = ""
    failed_starts: int = 0
    is_ready: bool = False
    job: AnyJob | None = None
    at: tuple[int, int] = (0, 0)
    looked: Any = None


class RayExecutor:
    """Runs jobs in actors.

    Args:
        blueprint: of the study, as plain data.
        dense: the file of the dense weights.
        workers: how many actors are asked for; those that the cluster has no room for begin when it has.
        threads: cores of each, and PyTorch's threads.
        wants_card: whether each takes a card, if the cluster has any.
        stall: as in `search.executors.process.ProcessExecutor`.
        address: of the cluster; None takes that of the environment, `RAY_ADDRESS`.

    Raises:
        UsageError: no address.
        EnvironmentProblem: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(
        self,
        blueprint: Mapping[str, Any],
        dense: bytes,
        workers: int,
        threads: int,
        wants_card: bool,
        stall: float | None,
        address: str | None,
        watcher: ProgressReporter,
    ) -> None:
        self._watcher, self._open, self._shown = watcher, ExitStack(), JobsShown()
        self._ray, self._is_ours = _connected(address)
        cards = 1 if wants_card and self._ray.cluster_resources().get("GPU", 0) >= 1 else 0
        self.shares_memory = not cards  # a card is one worker's alone
        kept = {"max_restarts": 0, "max_task_retries": 0, "max_concurrency": 2, "scheduling_strategy": "SPREAD"}
        self._remote = self._ray.remote(num_cpus=threads, num_gpus=cards, **kept)(RayWorker)
        self._begin = dict(blueprint), self._ray.put(dense), threads, stall
        self._versions = versions()
        self._waiting: list[AnyJob] = []
        self._looked = self._noted = time.monotonic()
        self._wanted, self._actors = workers, list[_Actor]()

    @property
    def slots(self) -> int:
        """How many jobs run at once: more as actors begin."""
        return max(sum(actor.is_ready for actor in self._actors), 1)

    def submit(self, job: AnyJob) -> None:
        """Give a job to an actor that is idle, or to the next that is."""
        while self._wanted:  # of the first job
            self._actors.append(self._started(len(self._actors) + 1))
            self._wanted -= 1
        if not self._is_busy:
            self._shown = self._open.enter_context(self._watcher.jobs())
        self._waiting.append(job)
        self._hand_out()

    def wait(self) -> list[Done | Scanned | Lost]:
        """What has ended, as soon as anything has; nothing where an actor more has begun."""
        ended: list[Done | Scanned | Lost] = []
        before = self.slots
        while not ended and self._is_busy and self.slots <= before:
            check()
            calls = {actor.called: actor for actor in self._actors if actor.called is not None}
            answered, _ = self._ray.wait([*calls], num_returns=len(calls), timeout=0) if calls else ([], [])
            if not answered and calls:
                answered, _ = self._ray.wait([*calls], timeout=POLL)
            for call in answered:
                ended += self._heard(calls[call])
            self._look()
            self._hand_out()
        if not self._is_busy:
            self._open.close()
        return ended

    def close(self) -> None:
        """End all actors."""
        with self._open:
            tidied = [actor.handle.tidy.remote() for actor in self._actors if actor.is_ready]
            if tidied:
                self._ray.wait(tidied, num_returns=len(tidied), timeout=SECONDS_TO_TIDY)
            for actor in self._actors:
                self._kill(actor)
            self._actors = []
            if self._is_ours:
                with _own_signals():
                    self._ray.shutdown()

    @property
    def _is_busy(self) -> bool:
        return bool(self._waiting) or any(actor.job for actor in self._actors)

    def _started(self, number: int, failed_starts: int = 0) -> _Actor:
        handle = self._remote.remote()
        return _Actor(number, handle, handle.begin.remote(*self._begin), failed_starts=failed_starts)

    def _hand_out(self) -> None:
        for actor in self._actors:
            if self._waiting and actor.is_ready and actor.job is None:
                actor.job, actor.at = self._waiting.pop(0), (0, 0)
                actor.called = actor.handle.run.remote(actor.job.to_plain())
                self._shown.begin(actor.job.key, actor.job.label)

    def _heard(self, actor: _Actor) -> list[Done | Scanned | Lost]:
        """Take the answer of an actor."""
        call, actor.called = actor.called, None
        try:
            answer = self._ray.get(call)
        except self._ray.exceptions.RayTaskError:
            raise  # of our own code: what fails in a job is a result
        except self._ray.exceptions.RayError:
            return self._gone(actor)
        if not actor.is_ready:
            self._begun(actor, answer)
            return []
        job, actor.job, actor.looked = actor.job, None, None
        assert job is not None, "an actor that is ready is called for a job"
        self._shown.end(job.key)
        if REFUSED in answer:
            raise refusal(answer[REFUSED], answer["exit_code"])
        if LOST in answer:
            step, steps, how = answer[LOST]
            return [Lost(job, (step, steps), how)]
        weights = answer.pop(WEIGHTS, None)
        done = ended_from_plain(job, answer, f"{actor.number} on {actor.node}")
        if weights is not None and isinstance(done, Done):
            done = replace(done, fetch=lambda: self._fetched(weights))
        return [done]

    def _begun(self, actor: _Actor, answer: Mapping[str, Any]) -> None:
        """Take an actor in, or leave it out if it cannot evaluate what the study does."""
        found = answer.get(VERSIONS)
        if found == self._versions:
            actor.is_ready, actor.failed_starts, actor.node = True, 0, answer[NODE]
            return
        if found is None:
            problem = refusal(answer[REFUSED], answer["exit_code"])
        else:
            other = [f"{name} {found[name]} for {ours}" for name, ours in self._versions.items() if found[name] != ours]
            problem = EnvironmentProblem(f"a node has {', '.join(other)}: install the same on every node")
        self._leave_out(actor, problem)

    def _leave_out(self, actor: _Actor, problem: PrunefrontError) -> None:
        """Go on without an actor, as long as others begin."""
        self._kill(actor)
        self._actors.remove(actor)
        if not self._actors:
            raise problem
        self._watcher.note(f"a worker of the cluster is left out: {problem}")

    def _gone(self, actor: _Actor) -> list[Done | Scanned | Lost]:
        """Put another in the place of an actor that is dead or cannot be reached; its job is lost."""
        starts = 0 if actor.is_ready else actor.failed_starts + 1
        if starts >= MOST_STARTS:
            said = f"a worker of the cluster died {starts} times before it could begin: its node's logs say why"
            self._leave_out(actor, EnvironmentProblem(said))
            return []
        self._kill(actor)
        self._actors[self._actors.index(actor)] = self._started(actor.number, starts)
        if actor.job is None:
            return []
        self._shown.end(actor.job.key)
        return [Lost(actor.job, actor.at)]

    def _kill(self, actor: _Actor) -> None:
        """Let it finish nothing more, also where it cannot be reached now."""
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(actor.handle, no_restart=True)

    def _look(self) -> None:
        """Now and then ask how far the jobs are, and say where the cluster has no room."""
        now = time.monotonic()
        for actor in self._actors:
            if actor.job and actor.looked and self._ray.wait([actor.looked], timeout=0)[0]:
                with suppress(self._ray.exceptions.RayError):  # the answer to its job tells
                    actor.at = self._ray.get(actor.looked)
                    self._shown.step(actor.job.key, *actor.at)
                actor.looked = None
        if now - self._looked >= SECONDS_A_LOOK:
            self._looked = now
            for actor in self._actors:
                if actor.job and actor.looked is None:
                    actor.looked = actor.handle.at.remote()
        if not any(actor.is_ready for actor in self._actors) and now - self._noted >= SECONDS_A_NOTE:
            self._noted = now
            self._watcher.note(f"none of {len(self._actors)} workers has begun yet: the cluster may have no room")

    def _fetched(self, weights: Any) -> bytes | None:
        """The bytes of weights; None if their node is gone."""
        try:
            found: bytes = self._ray.get(weights, timeout=SECONDS_TO_FETCH)
        except self._ray.exceptions.RayError:
            return None
        return found


def require_cluster(address: str | None) -> None:
    """Raise what `RayExecutor` does where Ray is not installed, no cluster is named, or nobody listens there."""
    _reachable(address)


def _connected(address: str | None) -> tuple[Any, bool]:
    """Ray's module, connected to the cluster, and whether this made the connection."""
    ray, address = _reachable(address)
    if ray.is_initialized():
        return ray, False
    try:
        with _own_signals():
            ray.init(address=address, namespace="prunefront", log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise _unreached(address, error) from None
    return ray, True


def _reachable(address: str | None) -> tuple[Any, str | None]:
    """Ray's module, and the address of a cluster to connect to, which there need not be where Ray is connected."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise EnvironmentProblem("--executor ray needs Ray: pip install 'prunefront[ray]'") from None
    if ray.is_initialized():
        return ray, address
    address = address or os.environ.get("RAY_ADDRESS")
    if not address or address == "local":
        raise UsageError(
            "--executor ray needs --ray-address HOST:PORT of a cluster that runs, or RAY_ADDRESS; on one machine "
            "--workers N alone does the same"
        )
    try:
        _require_listener(address)
    except OSError as error:
        raise _unreached(address, error) from None
    return ray, address


def _unreached(address: str | None, error: Exception) -> EnvironmentProblem:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return EnvironmentProblem(f"cannot reach a Ray cluster at {address!r}: {reason}")


def _require_listener(address: str) -> None:
    """Raise `OSError` where nobody listens at HOST:PORT, which Ray itself would look for during many minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), SECONDS_TO_CONNECT).close()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the handlers of signals that end a command, which Ray puts its own in the place of."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        with suppress(ValueError):  # not the main thread, whose handlers are nobody else's
            for number, handler in before.items():
                signal.signal(number, handler)
