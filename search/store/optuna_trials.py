"""The Optuna side of a study: trials asked, told and found again after an interruption."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from search.errors import EnvironmentProblem
from search.proposals.guide import GuidedProposer
from search.proposals.sampler import make_sampler
from search.records import COMPLETE, FAILED, STOPPED_EARLY
from search.storage import database_problem, fault_of, is_refusal, set_aside, sqlite_url
from spaces.printable import printable
from spaces.search_space.space import Axis

DIRECTIONS = ("maximize", "minimize", "minimize")
"""Of accuracy, size and speed."""
ORIGIN = "origin"
"""Trial attribute: the allocator of a seed, or the source of a guided proposal; absent for other samplers."""
SCORES = "scores"
"""Trial attribute: what the guide knew of a trial before it was evaluated."""
LANDED = "landed"
"""Trial attribute: granularity, and where it was measured sparsity by layer and shares of size and MACs."""
SQLITE_TIMEOUT = 30  # seconds to wait for another reader's lock
REBUILT = "delete the file, and the same command rebuilds it from the journal"
log = logging.getLogger(__name__)
_UNUSABLE = (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError)
_STATES = {COMPLETE: TrialState.COMPLETE, STOPPED_EARLY: TrialState.PRUNED, FAILED: TrialState.FAIL}


@dataclass(frozen=True)
class Finished:
    """A trial of the journal as Optuna should have it; without `values` unless it is complete."""

    state: str
    params: Mapping[str, Any]
    values: Sequence[float] | None


class OptunaTrials:
    """One multi-objective Optuna study in one SQLite file, written by one process.

    It is a projection of the journal: a damaged file is kept under another name, and an empty one takes its place.

    Args:
        sampler: by name; see `search.proposals.sampler`.
        guide: of the sampler `guided`, with the axes of its space.
        speed: the third objective, see `spaces.search_space.space`.
        known: trials in the journal by number; a file that has other finished ones, or has them otherwise, counts as
            damaged.

    Raises:
        EnvironmentProblem: the file cannot be used now, or is another program's.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        sampler: str,
        seed: int,
        guide: GuidedProposer | None = None,
        axes: tuple[Axis, ...] = (),
        known: Mapping[int, Finished] | None = None,
        speed: str = "macs",
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._causes: dict[int, str | None] = {}
        self._sampler, self._seed, self._guide, self._axes = sampler, seed, guide, axes
        if reason := fault_of(path):
            _begin_anew(path, reason)
        try:
            self._study = _opened(path, name)
        except (LookupError, ValueError, TypeError, AttributeError) as error:  # rows that Optuna cannot make sense of
            _begin_anew(path, f"{type(error).__name__}: {error}".splitlines()[0])
            self._study = _opened(path, name)
        if known is not None and (reason := _contradiction(self._study, known)):
            _begin_anew(path, reason)
            self._study = _opened(path, name)

        self._count = len(self._study.get_trials(deepcopy=False))
        names = ["accuracy", "size", speed]
        if self._study.metric_names != names:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self._study.set_metric_names(names)

    @property
    def trial_count(self) -> int:
        """Trials of any state; the next new trial has this number."""
        return self._count

    def unfinished(self) -> list[Trial]:
        """Trials that were begun and neither told nor failed, by number."""
        trials = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [self._trial(trial._trial_id, trial.number) for trial in trials]

    def ask(self, params: Mapping[str, Any] | None = None, origin: str | None = None) -> Trial:
        """The next trial; with `params` it takes those values. An enqueued trial not begun yet goes first."""
        waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if params is not None and not waiting:
            self._study.enqueue_trial(dict(params), user_attrs={ORIGIN: origin} if origin else None)
        self._take_sampler(waiting[0].number if waiting else self._count)
        trial = self._study.ask()
        self._count = max(self._count, trial.number + 1, *(one.number + 1 for one in waiting))
        return trial

    def tell(
        self,
        number: int,
        state: str,
        values: Sequence[float] | None = None,
        cause: str | None = None,
        landed: Mapping[str, Any] | None = None,
    ) -> None:
        """Finish a trial, of a failed one with its cause; telling a finished one again changes nothing in the file.

        Its parameters are wishes; `landed` is what came of them, and is kept as an attribute.
        """
        self._causes[number] = cause
        trial = self._found(number)
        if trial is not None and trial.state.is_finished():
            return
        if trial is not None and landed:
            self._study._storage.set_trial_user_attr(trial._trial_id, LANDED, dict(landed))
        self._study.tell(number, values if state == COMPLETE else None, state=_STATES[state], skip_if_finished=True)

    def explain(self, trial: Trial) -> None:
        """Write down why the guide proposed a sampled trial, also one that was cut off before that was written."""
        if self._guide is None or ORIGIN in trial.user_attrs:
            return
        if self._guide.suggested(trial.number) is None:
            _ = trial.relative_params  # sampled again: all that was known then is known now
        why = self._guide.suggested(trial.number)
        if all(why.params[name] == value for name, value in trial.params.items()):
            trial.set_user_attr(SCORES, dict(why.scores))
            trial.set_user_attr(ORIGIN, why.source)  # last: where it is, the other is

    @staticmethod
    def origin(trial: Trial) -> str:
        """The allocator behind a seed trial, the source of a guided proposal, else `sampler`."""
        return trial.user_attrs.get(ORIGIN, "sampler")

    @staticmethod
    def scores(trial: Trial) -> dict[str, float]:
        """What the guide knew of a trial before it was evaluated."""
        return trial.user_attrs.get(SCORES, {})

    def _found(self, number: int) -> FrozenTrial | None:
        """One trial, without listing all of them, which Optuna sorts each time."""
        study, storage = self._study, self._study._storage
        try:
            return storage.get_trial(storage.get_trial_id_from_study_id_trial_number(study._study_id, number))
        except KeyError:
            return None

    def _trial(self, trial_id: int, number: int) -> Trial:
        self._take_sampler(number)
        return Trial(self._study, trial_id)

    def _take_sampler(self, number: int) -> None:
        self._study.sampler = make_sampler(self._sampler, self._seed, number, self._guide, self._axes, self._causes)


def _opened(path: Path, name: str) -> optuna.Study:
    storage = open_storage(path)
    try:
        study = optuna.create_study(storage=storage, study_name=name, directions=list(DIRECTIONS), load_if_exists=True)
        study.get_trials(deepcopy=False)
    except _UNUSABLE as error:
        raise _refused(path, error) from None
    return study


def _contradiction(study: optuna.Study, known: Mapping[int, Finished]) -> str | None:
    """What a database says of a finished trial and the journal does not; None if nothing."""
    for trial in study.get_trials(deepcopy=False):
        if not trial.state.is_finished():
            continue
        if trial.number not in known:
            return f"it has trial {trial.number}, which the journal has not"
        right = known[trial.number]
        values = None if right.values is None else list(right.values)
        for part, found, wanted in (
            ("state", trial.state, _STATES[right.state]),
            ("parameters", trial.params, dict(right.params)),
            ("values", trial.values, values),
        ):
            if found != wanted:
                return f"it has other {part} of trial {trial.number} than the journal"
    return None


def _begin_anew(path: Path, reason: str) -> None:
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
