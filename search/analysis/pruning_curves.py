"""The three classical curves of accuracy against sparsity: prune only, prune and fine-tune, and iterative."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from search.progress import ProgressReporter
from search.training.evaluate import Evaluation, PreparedModel, evaluate_policy, evaluate_untrained
from search.training.examples import step_count
from search.training.scoring import score
from spaces.allocation.scaling import scaled
from spaces.cost.effect import as_removed
from spaces.policy import PruningPolicy
from spaces.schedule import Schedule

PRUNE_ONLY, PRUNE_AND_TUNE, ITERATIVE = METHODS = ("prune only", "prune + fine-tune", "iterative")


@dataclass(frozen=True)
class MethodPoint:
    """One network of a curve; its scores are on validation data, and None if it failed.

    Attributes:
        sparsity: the share of the pruned layers' weights that was asked to go.
        shares: layer -> its sparsity, as in a policy or a sparsity dict.
        removal: layer -> its removal, likewise.
        size_nonzero, size_encoded, macs: shares of the dense model's.
        reason: why there is no network.
    """

    method: str
    sparsity: float
    shares: Mapping[str, float]
    removal: Mapping[str, float]
    accuracy: float | None
    loss: float | None
    size_nonzero: float | None
    size_encoded: float | None
    macs: float | None
    reason: str | None


@dataclass(frozen=True)
class Curves:
    """Points by method, in order of rising sparsity.

    Attributes:
        policy: gives the layers, granularities and criterion of all points.
        schedules: method -> the schedule of its fine-tunes; `prune only` trains nothing.
        epochs, steps: of each fine-tune, the same for both methods that have one; an iterative one is divided into
            rounds. Only the user's own loop may know the steps.
    """

    policy: PruningPolicy
    schedules: Mapping[str, Schedule]
    epochs: float
    steps: int | None
    seed: int
    dense_accuracy: float
    dense_loss: float
    points: tuple[MethodPoint, ...]


def schedules_of(policy: PruningPolicy) -> dict[str, Schedule]:
    """The schedule of each method; the iterative one takes rounds, with the policy's exponent, number and regrowth."""
    own = policy.schedule
    rounds = Schedule("iterative", exponent=own.exponent, rounds=own.rounds, regrow=own.regrow)
    return {PRUNE_ONLY: Schedule("one-shot"), PRUNE_AND_TUNE: Schedule("one-shot"), ITERATIVE: rounds}


def pruning_curves(
    subject: PreparedModel,
    policy: PruningPolicy,
    sparsities: Sequence[float],
    epochs: float,
    seed: int,
    watcher: ProgressReporter,
) -> Curves:
    """Apply the policy at other sparsities by each method, from the same dense model and with the same seed.

    One shift of its logits scales the policy. BatchNorm statistics are refreshed even if nothing is trained.

    Args:
        sparsities: each in (0, 1).
        epochs: of every fine-tune.

    Raises:
        ValueError: a sparsity that the policy cannot be scaled to; raised before any training.
    """
    schedules = schedules_of(policy)
    policies = [
        (level, as_removed(subject.network, scaled(subject.network, policy, level))) for level in sorted(sparsities)
    ]
    points = []
    for method, schedule in schedules.items():
        for level, at_level in policies:
            at_level = replace(at_level, schedule=schedule)
            if method == PRUNE_ONLY:
                found = evaluate_untrained(subject, at_level)
            else:
                with watcher.stage(f"{method}, sparsity {level:g}") as progress:
                    found = evaluate_policy(subject, at_level, epochs, seed, progress)
            points.append(_point(method, level, at_level, found))
    dense = score(subject.dense, "validation", subject.workload)
    steps = step_count(subject.workload, epochs)
    return Curves(policy, schedules, epochs, steps, seed, dense.accuracy, dense.loss, tuple(points))


def _point(method: str, sparsity: float, policy: PruningPolicy, found: Evaluation) -> MethodPoint:
    result, measured = found.result, found.result.shares
    return MethodPoint(
        method=method,
        sparsity=sparsity,
        shares=dict(policy.sparsity),
        removal=dict(policy.removal),
        accuracy=result.accuracy,
        loss=result.loss,
        size_nonzero=measured.nonzero if measured else None,
        size_encoded=measured.encoded if measured else None,
        macs=measured.macs if measured else None,
        reason=result.reason,
    )
