"""Optuna's record of a study: a projection of the journal in a file that Optuna's own tools open."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.errors import EnvironmentProblem
from search.proposals.optuna_study import DIRECTIONS, STATES, Objectives, stored_params
from search.records import SAMPLED, PendingTrial, TrialRecord
from search.storage import database_problem, fault_of, is_refusal, set_aside, sqlite_url
from spaces.printable import printable
from spaces.search_space.space import Axis

ORIGIN = "origin"
"""Trial attribute: the allocator of a seed, or the source of a guided proposal; absent for other samplers."""
SCORES = "scores"
"""Trial attribute: what the guide knew of a trial before it was evaluated."""
LANDED = "landed"
"""Trial attribute: granularity, bits below 32, and where it was measured sparsity by layer and shares of size and
MACs."""
SQLITE_TIMEOUT = 30  # seconds to wait for another reader's lock
REBUILT = "delete the file, and the same command rebuilds it from the journal"
log = logging.getLogger(__name__)
_UNUSABLE = (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError)


@dataclass(frozen=True)
class Translation:
    """How a trial of the journal is written in Optuna's words.

    Attributes:
        axes: of its parameters.
        to_time: the UNIX time of a running second of the study.
    """

    axes: tuple[Axis, ...]
    objectives: Objectives
    to_time: Callable[[float], float]

    def trial(self, record: TrialRecord) -> FrozenTrial:
        """Its parameters are wishes; the attribute `landed` is what came of them."""
        params, distributions = stored_params(record.params, self.axes)
        policy = record.policy
        landed: dict[str, Any] = {"granularity": policy.granularity_label}
        if policy.is_rounded:
            landed["bits"] = policy.bits if isinstance(policy.bits, int) else dict(policy.bits)
        if shares := record.result.shares:
            size, measured = shares.of(self.objectives.metric), dict(record.result.achieved)
            landed |= {"size": size, "macs": shares.macs, "sparsity": measured}
        attributes: dict[str, Any] = {LANDED: landed}
        if record.scores:
            attributes[SCORES] = dict(record.scores)
        if record.origin != SAMPLED:
            attributes[ORIGIN] = record.origin
        trial = create_trial(
            state=STATES[record.result.state], params=params, distributions=distributions,
            values=self.objectives.of(record), user_attrs=attributes,
        )  # fmt: skip
        began, ended = (datetime.fromtimestamp(self.to_time(s)) for s in (record.started, record.finished))
        trial.datetime_start, trial.datetime_complete = began, ended
        return trial


class OptunaProjection:
    """The trials of one study in one of Optuna's storages, written by one process, each in one transaction.

    Trials are written in the order of their numbers, which Optuna deals out itself: one that has finished before its
    predecessors is held back until they have.

    Args:
        storage: any of Optuna's.

    Attributes:
        pending: trials that an earlier version began, and that `begin_anew` left out.
    """

    def __init__(self, storage: BaseStorage, study: str, translation: Translation) -> None:
        self._storage, self._name, self._translation = storage, study, translation
        self.pending: list[PendingTrial] = []
        self._held: dict[int, TrialRecord] = {}
        self._open()

    def _open(self) -> None:
        study = optuna.create_study(
            storage=self._storage, study_name=self._name, directions=list(DIRECTIONS), load_if_exists=True
        )
        self._id = self._storage.get_study_id_from_name(self._name)
        self._count = len(self.trials())
        names = self._translation.objectives.names
        if study.metric_names != names:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names(names)

    def trials(self) -> list[FrozenTrial]:
        """What is there, by number."""
        return sorted(self._storage.get_all_trials(self._id, deepcopy=False), key=lambda trial: trial.number)

    def add(self, record: TrialRecord) -> None:
        """Write a finished trial as soon as all before it are written."""
        self._held[record.number] = record
        while (number := self._count) in self._held:
            self._create(self._translation.trial(self._held[number]))
            del self._held[number]

    def close(self) -> None:
        """Write what is still held back behind trials that the journal lacks, and that wait in its place."""
        while self._held:
            first = min(self._held)
            while self._count < first:
                self._create(create_trial(state=TrialState.WAITING))
            self.add(self._held[first])

    def contradiction(self, records: Mapping[int, TrialRecord]) -> str | None:
        """What it says of a finished trial and the journal does not; None if nothing."""
        if self._storage.get_study_directions(self._id) != list(DIRECTIONS):
            return "its objectives have other directions"
        trials = self.trials()
        if lacking := sorted(set(range(len(trials))) - {trial.number for trial in trials}):
            return f"it lacks trial {lacking[0]}, though it has later ones"
        for trial in trials:
            if not trial.state.is_finished():
                continue
            if trial.number not in records:
                return f"it has trial {trial.number}, which the journal has not"
            right = self._translation.trial(records[trial.number])
            for part, found, wanted in (
                ("state", trial.state, right.state),
                ("parameters", trial.params, right.params),
                ("values", trial.values, right.values),
            ):
                if found != wanted:
                    return f"it has other {part} of trial {trial.number} than the journal"
        return None

    def begin_anew(self) -> None:
        """Leave out all that is there of the study."""
        running = [trial for trial in self.trials() if trial.state == TrialState.RUNNING]
        self.pending = [
            PendingTrial(t.number, t.user_attrs.get(ORIGIN, SAMPLED), t.params, t.user_attrs.get(SCORES, {}))
            for t in running
        ]
        self._storage.delete_study(self._id)
        self._open()

    def _create(self, trial: FrozenTrial) -> None:
        self._storage.create_new_trial(self._id, trial)
        self._count += 1


def projection_in_file(
    path: Path, study: str, translation: Translation, records: Mapping[int, TrialRecord]
) -> OptunaProjection:
    """The SQLite file of a study, brought up to the journal.

    A file that is damaged, or says something else of a finished trial, is kept under another name, and a new one takes
    its place. Trials that an earlier version began, and nobody finished, are left out of it: they are `pending`.

    Args:
        records: the journal's trials by number.

    Raises:
        EnvironmentProblem: the file cannot be used now, or is another program's.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if reason := fault_of(path):
        _keep_aside(path, reason)
    try:
        projection = _opened(path, study, translation)
        reason = projection.contradiction(records)
    except (LookupError, ValueError, TypeError, AttributeError) as error:  # rows that Optuna cannot make sense of
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
    if reason:
        _keep_aside(path, reason)
        projection = _opened(path, study, translation)
    if not all(trial.state.is_finished() for trial in projection.trials()):
        projection.begin_anew()
    for number in sorted(records.keys() - {trial.number for trial in projection.trials()}):
        projection.add(records[number])
    return projection


def _opened(path: Path, study: str, translation: Translation) -> OptunaProjection:
    storage = open_storage(path)
    try:
        return OptunaProjection(storage, study, translation)
    except _UNUSABLE as error:
        raise _refused(path, error) from None


def _keep_aside(path: Path, reason: str) -> None:
    log.warning(
        "the study's database could not be used (%s) and is kept as %s; a new one is made from the journal",
        printable(reason), set_aside(path).name,
    )  # fmt: skip


def open_storage(path: Path) -> RDBStorage:
    """Optuna's storage in a SQLite file, made if there is none.

    What SQLite refuses, now or in any later call that reaches the file, is raised as `EnvironmentProblem`.
    """
    url = sqlite_url(path).render_as_string()  # Optuna fills braces in, and these are quoted
    try:
        storage = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": SQLITE_TIMEOUT}})
    except _UNUSABLE as error:
        raise _refused(path, error) from None

    def in_our_words(context: sqlalchemy.engine.ExceptionContext) -> None:
        if is_refusal(context.original_exception):
            raise _refused(path, context.original_exception)

    sqlalchemy.event.listen(storage.engine, "handle_error", in_our_words)
    return storage


def _refused(path: Path, error: BaseException) -> EnvironmentProblem:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    plain = EnvironmentProblem(f"cannot use {str(path)!r} ({reason}): {REBUILT}")
    return database_problem(path, error, damaged=REBUILT) or plain
