"""What a study stores: frozen records with a version, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

from search.knew import Knew
from spaces.cost.footprint import RelativeCost
from spaces.policy import PruningPolicy

RECORD_VERSION = 1
MEASURING = 2
"""How accuracy, size and MACs of a result are found. Version 1: with BatchNorm's running statistics as training left
them, and only the MACs of convolutions and linear layers called as modules. Version 2: with statistics averaged anew,
and the MACs of every multiplication the dispatcher sees. `search.identity.measuring` says by what earlier results may
differ.
"""
FLOAT32 = "fp32"
"""The precision of trainings that say no other, and that scores always have."""
PRECISIONS = (FLOAT32, "bf16", "fp16")
COMPLETE, STOPPED_EARLY, FAILED = "complete", "stopped-early", "failed"
FINISHED_STATES = (COMPLETE, STOPPED_EARLY, FAILED)
SAMPLED = "sampler"
"""Origin of a trial that one of Optuna's samplers proposed."""
DIVERGED, REFUSED, OUT_OF_MEMORY, ERROR, CRASHED = "diverged", "refused", "out-of-memory", "error", "crashed"
"""Causes of a failed trial: training without finite numbers, a policy that cannot be applied, too little memory, an
exception in the workload's own code, an end of the process itself. Another is `timed-out`. Only the first says anything
about a policy's accuracy.
"""


@dataclass(frozen=True)
class CurvePoint:
    """Scores at one point of a fine-tune; `epoch` may be a fraction at the end."""

    epoch: float
    train_loss: float
    validation_loss: float
    accuracy: float


class Measured(NamedTuple):
    """What a complete result has, see `TrialResult`."""

    accuracy: float
    loss: float
    shares: RelativeCost


@dataclass(frozen=True)
class WrittenFile:
    """The file of a network with rounded weights, and what was known of its size before training.

    Attributes:
        bytes: of the file; at most `planned`.
        planned: what the policy was said to take; at most `bound`.
        bound: what no file of the policy exceeds, whatever its values.
        given_up: values that were set to zero so that the file is no larger than planned.
    """

    bytes: int
    planned: int
    bound: int
    given_up: int = 0


@dataclass(frozen=True)
class TrialResult:
    """The outcome of evaluating one policy.

    Attributes:
        state: `complete`, `stopped-early` or `failed`.
        reason: why it is not complete; None if it is.
        accuracy: metric on validation data after the last step; None unless complete.
        loss: on validation data after the last step; None unless complete.
        shares: sizes and MACs over the dense model's; `encoded` is the written file's. None if failed.
        achieved: layer -> sparsity read back from the model's shapes and zeros.
        curve: one point an epoch.
        seconds: phase -> seconds (`training`, `scoring`, `measuring`).
        statistics: BatchNorm's running statistics in this network: `refreshed` over fit data or `as trained`, whichever
            had the smaller loss on calibration data; None if it has none, and in older records.
        cause: why it failed, in one word: `diverged`, `refused`, `out-of-memory`, `error`, ...; None unless failed.
        measuring: the version of how it was measured, see `MEASURING`; 1 in records that do not say.
        file: the written file of a network with rounded weights; None of others.
        rate: the peak learning rate of the fine-tune; None of other trainings, and in older records.
        device: the name of the device that trained and scored it; None of a CPU.
        precision: of the training's forward passes, `fp32`, `bf16` or `fp16`.
        restored: pruned weights that the user's own training loop left other than zero, and that were set to zero.
        ended_at: the share of its training after which the user's own loop ended, where that was before its schedule
            did, so that the rest was done at once; else None.
    """

    state: str
    reason: str | None = None
    accuracy: float | None = None
    loss: float | None = None
    shares: RelativeCost | None = None
    achieved: Mapping[str, float] = field(default_factory=dict)
    curve: tuple[CurvePoint, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    statistics: str | None = None
    cause: str | None = None
    measuring: int = 1
    file: WrittenFile | None = None
    rate: float | None = None
    device: str | None = None
    precision: str = FLOAT32
    restored: int = 0
    ended_at: float | None = None

    @property
    def measured(self) -> Measured:
        """Accuracy, loss and shares of a complete result; `ValueError` of any other."""
        if self.accuracy is None or self.loss is None or self.shares is None:
            raise ValueError(f"nothing was measured, the result is {self.state}: {self.reason}")
        return Measured(self.accuracy, self.loss, self.shares)


def cause_of(reason: str | None) -> str | None:
    """The cause that a reason begins with, for old records that store no cause.

    >>> cause_of("error: ValueError: no"), cause_of("out-of-memory"), cause_of(None)
    ('error', 'out-of-memory', None)
    """
    return reason.partition(":")[0] if reason else None


@dataclass(frozen=True)
class TrialRecord:
    """A finished trial of a study.

    Attributes:
        number: Optuna's, from 0 without gaps.
        origin: the allocator of an initial point, the source of a guided proposal, or `sampler`.
        params: what Optuna sampled.
        policy: the policy that the parameters were fitted to.
        sampled: layer -> sparsity before the common shift.
        target: the sampled size.
        started: running seconds since the dense model was ready, without pauses.
        finished: likewise.
        proposing: seconds spent on sampling and fitting.
        latency: predicted share of the dense model's; None if it plays no part.
        scores: what the guided sampler predicted before the evaluation, by name; empty for other samplers.
        knew: what was known of other trials when it was proposed; None if what one worker's study would have known, and
            of initial points, which depend on no other trial.
        worker: which one evaluated it, such as `2`, or `2 on node-b` of a cluster; None if the study's own process did,
            or none did. It is no part of the result.
    """

    number: int
    origin: str
    params: Mapping[str, Any]
    policy: PruningPolicy
    sampled: Mapping[str, float]
    target: float
    result: TrialResult
    started: float
    finished: float
    proposing: float
    latency: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    knew: Knew | None = None
    worker: str | None = None


@dataclass(frozen=True)
class PendingTrial:
    """A trial that was proposed, and has no result yet.

    Attributes:
        number: of the trial.
        origin: as of a `TrialRecord`.
        params: likewise.
        scores: likewise.
        knew: likewise.
    """

    number: int
    origin: str
    params: Mapping[str, Any]
    scores: Mapping[str, float] = field(default_factory=dict)
    knew: Knew | None = None


@dataclass(frozen=True)
class FinalRecord:
    """One fine-tune of the recipe's final length, of a finalist or a static baseline, tested once; or one of a trial's
    length, of a static baseline, by which its bits are chosen: that one is not tested.

    Attributes:
        digest: of the policy; finals are recognised by it.
        seed: of the fine-tune.
        result: on validation data.
        test_accuracy: None if the fine-tune failed, or was not tested.
        test_loss: likewise.
        finished: running seconds since the dense model was ready.
        worker: as of a `TrialRecord`.
    """

    digest: str
    seed: int
    policy: PruningPolicy
    result: TrialResult
    test_accuracy: float | None
    test_loss: float | None
    finished: float
    worker: str | None = None


def to_plain(record: TrialRecord | FinalRecord | PendingTrial) -> dict[str, Any]:
    """Data for JSON, with a `version`."""
    data = {f.name: getattr(record, f.name) for f in fields(record)}
    if not isinstance(record, PendingTrial):
        data["policy"] = record.policy.to_dict()
        data["result"] = result_to_plain(record.result)
    for key in ("params", "sampled", "scores"):
        if key in data:
            data[key] = dict(data[key])
    if (knew := data.pop("knew", None)) is not None:
        data["knew"] = knew.to_plain()
    if data.get("worker", "") is None:
        del data["worker"]
    return {"version": RECORD_VERSION, **data}


def result_to_plain(result: TrialResult) -> dict[str, Any]:
    """Data for JSON."""
    return {
        "state": result.state,
        "reason": result.reason,
        "accuracy": result.accuracy,
        "loss": result.loss,
        "shares": asdict(result.shares) if result.shares else None,
        "achieved": dict(result.achieved),
        "curve": [asdict(point) for point in result.curve],
        "seconds": dict(result.seconds),
        **({"statistics": result.statistics} if result.statistics else {}),
        **({"cause": result.cause} if result.cause else {}),
        **({"measuring": result.measuring} if result.measuring > 1 else {}),
        **({"file": asdict(result.file)} if result.file else {}),
        **({"rate": result.rate} if result.rate else {}),
        **({"device": result.device} if result.device else {}),
        **({"precision": result.precision} if result.precision != FLOAT32 else {}),
        **({"restored": result.restored} if result.restored else {}),
        **({"ended_at": result.ended_at} if result.ended_at is not None else {}),
    }


def result_from_plain(data: Mapping[str, Any]) -> TrialResult:
    """The inverse of `result_to_plain`; raises `KeyError`, `TypeError` or `AttributeError` of anything else."""
    result = dict(data)
    result["shares"] = RelativeCost(**result["shares"]) if result["shares"] else None
    result["cause"] = result.get("cause") or (cause_of(result["reason"]) if result["state"] == FAILED else None)
    result["file"] = WrittenFile(**result["file"]) if result.get("file") is not None else None
    result["curve"] = tuple(CurvePoint(**point) for point in result["curve"])
    return TrialResult(**result)


def trial_from_plain(data: Mapping[str, Any]) -> TrialRecord:
    """The inverse of `to_plain`; raises `ValueError` for another version or missing fields."""
    return _built(TrialRecord, data)


def final_from_plain(data: Mapping[str, Any]) -> FinalRecord:
    """The inverse of `to_plain`; raises `ValueError` for another version or missing fields."""
    return _built(FinalRecord, data)


def pending_from_plain(data: Mapping[str, Any]) -> PendingTrial:
    """Undo `to_plain`; raises `ValueError` on another version or missing fields."""
    try:
        return PendingTrial(**_versioned(data))
    except TypeError as error:
        raise ValueError(f"damaged record: {error}") from None


def _versioned(data: Mapping[str, Any]) -> dict[str, Any]:
    data = dict(data)
    if data.pop("version", None) != RECORD_VERSION:
        raise ValueError(f"record version must be {RECORD_VERSION}")
    if "knew" in data:
        data["knew"] = Knew.from_plain(data["knew"])
    return data


def _built(kind: Any, data: Mapping[str, Any]) -> Any:
    try:
        data = _versioned(data)
        policy, result = PruningPolicy.from_dict(data["policy"]), result_from_plain(data["result"])
        return kind(**{**data, "policy": policy, "result": result})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"damaged record: {error}") from None
