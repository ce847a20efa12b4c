"""What is given to an executor, and what comes back from it: plain data in both directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

from pruning.analysis.sensitivity_scan import ROUNDING, Point, PointKey
from search.files import write_durably
from search.records import TrialResult, result_from_plain, result_to_plain
from search.training.own_scores import Metrics
from search.training.profile_cache import Scan
from search.workloads.run import TRIAL
from spaces.policy import PruningPolicy
from spaces.sensitivity import ProfilePoint, RoundingPoint


@dataclass(frozen=True)
class Job:
    """One fine-tune of a study.

    Attributes:
        key: names it in the study, and the files that say how far it came.
        name: the same for people, such as `trial 7`.
        label: what a progress bar says of it.
        policy: what is carried out.
        epochs: how long it trains.
        seed: of data order and augmentation.
        stage: what a training loop of the user's own is told that it is for.
        limit: seconds after which it fails; None is no limit.
        is_tested: whether the network is scored on test data too.
        weights: where its weights are written; None writes none.
    """

    key: str
    name: str
    label: str
    policy: PruningPolicy
    epochs: float
    seed: int
    stage: str = TRIAL
    limit: float | None = None
    is_tested: bool = False
    weights: Path | None = None

    def to_plain(self) -> dict[str, Any]:
        """Data for JSON."""
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        return data | {"policy": self.policy.to_dict(), "weights": self.weights and str(self.weights)}

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Job:
        """The inverse of `to_plain`."""
        weights, policy = data["weights"], PruningPolicy.from_dict(data["policy"])
        return cls(**{**data, "policy": policy, "weights": Path(weights) if weights else None})


@dataclass(frozen=True)
class Done:
    """A job that came to a result, be it a failure.

    Attributes:
        tested: scores on test data; None of a job that asks for none, or that failed.
        begun: whether it was evaluated at all: one that ended too many processes is failed without.
        worker: which one carried it out, see `search.records.TrialRecord`; None if this process did, or none did.
        fetch: gets the bytes of weights that are still where it ran, None if they are gone; None if they are written.
    """

    job: Job
    result: TrialResult
    tested: Metrics | None = None
    begun: bool = True
    worker: str | None = None
    fetch: Callable[[], bytes | None] | None = None

    def keep_weights(self) -> bool:
        """Have the weights on this disk; False if they are gone with where they were."""
        if self.fetch is None or self.job.weights is None:
            return True
        content = self.fetch()
        if content is None:
            return False
        write_durably(self.job.weights, content)
        return True

    def to_plain(self) -> dict[str, Any]:
        """Data for JSON, without the job."""
        return {"result": result_to_plain(self.result), "tested": asdict(self.tested) if self.tested else None}

    @classmethod
    def from_plain(cls, job: Job, data: Mapping[str, Any]) -> Done:
        """The inverse of `to_plain`."""
        tested = data["tested"]
        return cls(job, result_from_plain(data["result"]), Metrics(**tested) if tested else None)


@dataclass(frozen=True)
class ScanJob:
    """Some points of a study's scan; `key`, `name` and `label` are as of a `Job`."""

    key: str
    name: str
    label: str
    scan: Scan
    points: tuple[PointKey, ...]

    def to_plain(self) -> dict[str, Any]:
        """Data for JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"scan": asdict(self.scan)}

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> ScanJob:
        """The inverse of `to_plain`."""
        scan: dict[str, Any] = {key: tuple(one) if isinstance(one, list) else one for key, one in data["scan"].items()}
        return cls(**{**data, "scan": Scan(**scan), "points": tuple(tuple(key) for key in data["points"])})


@dataclass(frozen=True)
class Scanned:
    """The points of a scan that a job found; or none, the line that says why, and whether that is a lack of memory."""

    job: ScanJob
    points: Mapping[PointKey, Point]
    problem: str | None = None
    lacked_memory: bool = False

    def to_plain(self) -> dict[str, Any]:
        """Data for JSON, without the job."""
        points = [[*key, asdict(point)] for key, point in self.points.items()]
        return {"points": points, "problem": self.problem, "lacked_memory": self.lacked_memory}

    @classmethod
    def from_plain(cls, job: ScanJob, data: Mapping[str, Any]) -> Scanned:
        """The inverse of `to_plain`."""
        found = {
            (kind, layer, level): (RoundingPoint if kind == ROUNDING else ProfilePoint)(**values)
            for kind, layer, level, values in data["points"]
        }
        return cls(job, found, data["problem"], data["lacked_memory"])


AnyJob = Job | ScanJob


def job_from_plain(data: Mapping[str, Any]) -> AnyJob:
    """A job of either kind, from its plain data."""
    return ScanJob.from_plain(data) if "scan" in data else Job.from_plain(data)


def ended_from_plain(job: AnyJob, data: Mapping[str, Any], worker: str) -> Done | Scanned:
    """What came of a job, from its plain data, and which worker carried it out."""
    if isinstance(job, ScanJob):
        return Scanned.from_plain(job, data)
    return replace(Done.from_plain(job, data), worker=worker)


@dataclass(frozen=True)
class Lost:
    """A job whose worker went without a result. It may begin again.

    Attributes:
        at: the step it had come to, and the number of steps; (0, 0) before the first.
        how: what the job itself did to its worker, as far as that is known; empty if it was killed from outside.
    """

    job: AnyJob
    at: tuple[int, int] = (0, 0)
    how: str = ""


class Executor(Protocol):
    """Runs jobs, each in one of its slots."""

    @property
    def slots(self) -> int:
        """How many jobs run at once."""

    @property
    def shares_memory(self) -> bool:
        """Whether several of them take from the same memory, of a card or of the machine."""

    def submit(self, job: AnyJob) -> None:
        """Begin a job; no more are given than there are slots."""

    def wait(self) -> list[Done | Scanned | Lost]:
        """What has ended, as soon as anything has; nothing where there are more slots than before."""

    def close(self) -> None:
        """End whatever still runs; its jobs count as not begun."""
