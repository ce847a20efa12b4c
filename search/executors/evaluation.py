"""One job carried out in this process."""

from __future__ import annotations

from collections.abc import Callable

from pruning.analysis.sensitivity_scan import Point, PointKey
from pruning.memory import out_of_memory
from search.errors import PrunefrontError
from search.executors.jobs import AnyJob, Done, Job, Scanned
from search.training.attempts import Attempt, Progress
from search.training.checkpoints import save_model
from search.training.evaluate import Evaluation, PreparedModel, evaluate_policy, failed
from search.training.own_scores import Metrics
from search.training.profile_cache import scanned_points
from search.training.scoring import test_scores
from search.user_code.blame import told
from search.user_code.loading import pass_signals_on


def carry_out(
    prepared: PreparedModel, job: AnyJob, attempt: Attempt, progress: Progress, give_up: Callable[[], None] | None
) -> Done | Scanned:
    """Carry out a job of either kind, see `evaluate_job`.

    Raises:
        PrunefrontError: what would end any other job too, such as a disk that is full.
    """
    if isinstance(job, Job):
        return evaluate_job(prepared, job, attempt, progress, give_up)
    found: dict[PointKey, Point] = {}
    try:
        with attempt.running(progress) as step:
            scanned_points(prepared, job.scan, only={*job.points}, keep=found.__setitem__, progress=step)
    except PrunefrontError as error:
        if not out_of_memory(error):
            raise
        return Scanned(job, {}, str(error), lacked_memory=True)
    except ValueError as error:
        return Scanned(job, {}, str(error))
    except BaseException as error:
        pass_signals_on(error)
        return Scanned(job, {}, told(error))
    return Scanned(job, found)


def evaluate_job(
    prepared: PreparedModel, job: Job, attempt: Attempt, progress: Progress, give_up: Callable[[], None] | None
) -> Done:
    """Carry out a job, and write its weights where it asks for them.

    Args:
        attempt: notes how far it comes, in case it ends the process.
        give_up: called if it stays in native code beyond its limit, see `search.process.time_limit.limited`.
    """
    with attempt.running(progress) as step:
        evaluation = evaluate_policy(
            prepared, job.policy, job.epochs, job.seed, step, seconds=job.limit, give_up=give_up, stage=job.stage
        )
        evaluation, tested = _tested(evaluation, prepared) if job.is_tested else (evaluation, None)
    if evaluation.model is not None and job.weights is not None:
        save_model(*evaluation.network, job.weights)
    return Done(job, evaluation.result, tested)


def _tested(evaluation: Evaluation, prepared: PreparedModel) -> tuple[Evaluation, Metrics | None]:
    """With its scores on test data; failed where it has none."""
    if evaluation.model is None:
        return evaluation, None
    tested = test_scores(evaluation.model, prepared.workload)
    return (failed(tested), None) if isinstance(tested, str) else (evaluation, tested)
