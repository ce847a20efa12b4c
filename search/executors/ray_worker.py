"""What runs on a node of a cluster: an actor that keeps one process of its own, which evaluates."""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from search.errors import PrunefrontError
from search.executors.jobs import Job, Lost, job_from_plain
from search.executors.process import ProcessExecutor
from search.progress import JobsShown, ProgressReporter
from search.training.attempts import Attempt

REFUSED, VERSIONS, NODE, LOST, WEIGHTS = "refused", "versions", "node", "lost", "weights"
"""Keys of what an actor answers: why it cannot begin or go on, what it runs, where it does, how its process went, where
weights are.
"""


def versions() -> dict[str, str]:
    """Of what decides a result: the same on every node."""
    return {"python": platform.python_version(), **{name: version(name) for name in ("prunefront", "torch")}}


class _Steps(ProgressReporter, JobsShown):
    """Keeps the last step."""

    at = 0, 0

    @contextmanager
    def jobs(self) -> Iterator[JobsShown]:
        self.at = 0, 0
        yield self

    def step(self, key: str, done: int, total: int) -> None:
        self.at = done, total


class RayWorker:
    """One worker. Ray calls `run` and another method side by side."""

    def __init__(self) -> None:
        self._folder, self._steps = Path(tempfile.mkdtemp(prefix="prunefront-worker-")), _Steps()
        self._executor: ProcessExecutor | None = None

    def begin(self, blueprint: Mapping[str, Any], dense: bytes, threads: int, stall: float | None) -> dict[str, Any]:
        """Rebuild the study's network in a process of its own; what the node has, or why it cannot."""
        weights = self._folder / "dense.safetensors"
        weights.write_bytes(dense)
        own = {**blueprint, "root": str(self._folder / "root"), "weights": str(weights)}
        try:
            begin = {"blueprint": own, "folder": str(self._folder)}
            self._executor = ProcessExecutor(begin, 1, threads, (), stall, self._steps)
            self._executor.wait_until_ready()
        except PrunefrontError as error:
            return {REFUSED: str(error), "exit_code": error.exit_code}
        return {VERSIONS: versions(), NODE: platform.node()}

    def run(self, plain: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out a job; weights stay on this node until they are asked for."""
        import ray

        assert self._executor is not None, "has begun"
        job = job_from_plain(plain)
        weights = None
        if isinstance(job, Job) and job.weights is not None:
            weights = self._folder / job.weights.name
            job = replace(job, weights=weights)
        self._executor.submit(job)
        try:
            (ended,) = self._executor.wait()
        except PrunefrontError as error:
            return {REFUSED: str(error), "exit_code": error.exit_code}
        if isinstance(ended, Lost):
            attempt = Attempt(self._folder, job.key)
            attempt.lose(*ended.at, ended.how)
            death = attempt.deaths[-1]
            attempt.finish()
            return {LOST: (death.step, death.steps, death.how)}
        found = ended.to_plain()
        if weights is not None and weights.is_file():
            found[WEIGHTS] = ray.put(weights.read_bytes())
            weights.unlink()
        return found

    def at(self) -> tuple[int, int]:
        """How far the job is."""
        return self._steps.at

    def tidy(self) -> None:
        """Remove what it keeps on its node, as it is killed next, and a killed process removes nothing."""
        shutil.rmtree(self._folder, ignore_errors=True)
