"""Optuna's record of a study in a PostgreSQL database that others share: one more projection of the journal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage

from search.errors import EnvironmentProblem, UsageError
from search.masking import masked
from search.records import TrialRecord
from search.store.optuna_file import OptunaProjection, Translation
from search.store.projection import Summary

OWNER = "prunefront_study_id"
"""Attribute of a study in Optuna's record: which study of ours it is."""
STATUS = "prunefront_status"
"""Attribute: `FINISHED`, `KILLED` or `FAILED`, or `RUNNING`."""
CONNECTION = {
    "application_name": "prunefront",
    "connect_timeout": 10,  # seconds
    "keepalives_idle": 30,
    "tcp_user_timeout": 60_000,  # milliseconds for which the other machine may leave what was sent unanswered
}
"""Of libpq."""
LOCK = 7_235_091
"""Of PostgreSQL's advisory locks, that which is held while Optuna's tables are made."""
MISSING = "cannot write to PostgreSQL (psycopg is not installed): pip install 'prunefront[postgresql]'"


def require_storage(url: str, study: str, study_id: str | None) -> None:
    """Make sure that a study can be written to a database, before anything is computed.

    Args:
        study_id: of a study that has begun.

    Raises:
        EnvironmentProblem: it cannot be reached, does not let us in, or has tables of another version of Optuna.
        UsageError: it has a study of this name that is not this one.
    """
    try:
        with _storage(url) as storage:
            _refuse_strangers(storage, url, study, study_id)
    except (UsageError, EnvironmentProblem):
        raise
    except Exception as error:
        raise _unusable(url, error) from None


def require_reachable(url: str) -> None:
    """Make sure that a database lets us in, without writing to it.

    Raises:
        EnvironmentProblem: it cannot be reached, does not let us in, or psycopg is not installed.
    """
    try:
        with _engine(url).connect():
            pass
    except EnvironmentProblem:
        raise
    except Exception as error:
        raise _unusable(url, error) from None


class OptunaServer:
    """One study in a PostgreSQL database; a `Projection`.

    Args:
        url: of `search.config.storage_url`.
    """

    title = "PostgreSQL"
    attempts = 1  # a connection that was cut in the meantime is made again by its pool

    def __init__(self, url: str, study: str, study_id: str, translation: Translation) -> None:
        self.key, self._url, self._name, self._translation = study_id, url, study, translation
        self.records: dict[int, TrialRecord] = {}
        self.params: dict[str, Any] = {}
        self.summary: Summary | None = None
        self.logged: set[int] | None = None
        self._storage: RDBStorage | None = None
        self._projection: OptunaProjection | None = None

    def match(self) -> None:
        """Open the database; a study there that says something else than the journal is written anew."""
        self.forget()
        self._storage = storage = _opened(self._url)
        _refuse_strangers(storage, self._url, self._name, self.key)
        self._projection = projection = OptunaProjection(storage, self._name, self._translation)
        if projection.contradiction(self.records) or not all(t.state.is_finished() for t in projection.trials()):
            projection.begin_anew()
        self._set(OWNER, self.key)
        self._set(STATUS, "RUNNING")
        self.logged = {trial.number for trial in projection.trials()}

    def forget(self) -> None:
        """Close the connection: it is unknown again what is there."""
        self.logged, storage = None, self._storage
        self._storage = self._projection = None
        if storage is not None:
            with suppress(Exception):  # it may be cut
                _close(storage)

    def missing(self) -> list[int]:
        """Trials that are neither there nor held back behind one that has not finished."""
        assert self.logged is not None, "known before anything is written"
        return sorted(self.records.keys() - self.logged)

    def log(self, number: int) -> None:
        """Log a trial, as soon as all before it are there."""
        assert self._projection is not None and self.logged is not None, "known before anything is written"
        self._projection.add(self.records[number])
        self.logged.add(number)

    def log_summary(self) -> None:
        """Optuna has no place for one."""
        self.summary = None

    def terminate(self, status: str) -> None:
        """Say how the study ended; what is held back behind trials that the journal lacks is written."""
        assert self._projection is not None, "open"
        if status == "FINISHED":
            self._projection.close()
        self._set(STATUS, status)
        self.forget()

    def problem_of(self, error: Exception) -> EnvironmentProblem:
        """Why the database could not be used."""
        if isinstance(error, UsageError):
            return EnvironmentProblem(str(error))
        return error if isinstance(error, EnvironmentProblem) else _unusable(self._url, error)

    def _set(self, attribute: str, value: str) -> None:
        assert self._storage is not None, "open"
        study = self._storage.get_study_id_from_name(self._name)
        if self._storage.get_study_user_attrs(study).get(attribute) != value:
            self._storage.set_study_user_attr(study, attribute, value)


def _refuse_strangers(storage: RDBStorage, url: str, study: str, study_id: str | None) -> None:
    """Raise `UsageError` if a study of this name is there that is not ours.

    One without trials may be ours: a process that was killed made it, and had not said so yet.
    """
    try:
        found = storage.get_study_id_from_name(study)
    except KeyError:
        return
    owner = storage.get_study_user_attrs(found).get(OWNER)
    if owner == study_id is not None or (owner is None and storage.get_n_trials(found) == 0):
        return
    raise UsageError(
        f"{masked(url)!r} has a study {study!r} that is another one: choose another --study, or delete it there "
        "(optuna delete-study)"
    )


@contextmanager
def _storage(url: str) -> Iterator[RDBStorage]:
    storage = _opened(url)
    try:
        yield storage
    finally:
        _close(storage)


def _close(storage: RDBStorage) -> None:
    storage.remove_session()
    storage.engine.dispose()


def _engine(url: str) -> sqlalchemy.Engine:
    try:
        return sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args=CONNECTION)
    except ModuleNotFoundError:
        raise EnvironmentProblem(MISSING) from None


def _opened(url: str) -> RDBStorage:
    """Optuna's storage in a database, its tables made by one process at a time."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with _engine(url).connect() as connection:
        connection.execute(sqlalchemy.text("SET lock_timeout = '30s'"))
        connection.execute(sqlalchemy.text(f"SELECT pg_advisory_lock({LOCK})"))  # until the connection is closed
        quoted = url.replace("{", "%7B").replace("}", "%7D")  # Optuna fills braces in
        storage = RDBStorage(
            quoted, engine_kwargs={"pool_size": 1, "max_overflow": 1, "pool_pre_ping": True, "connect_args": CONNECTION}
        )

    def in_our_words(context: sqlalchemy.engine.ExceptionContext) -> None:
        """Optuna would write a trial again without looking whether the first time was in vain, and draw the pause
        between from the generator that a user's code may draw from at the same time.
        """
        is_refusal = isinstance(context.sqlalchemy_exception, sqlalchemy.exc.OperationalError)
        if is_refusal and not context.is_pre_ping:
            raise _unusable(url, context.original_exception)

    sqlalchemy.event.listen(storage.engine, "handle_error", in_our_words)
    return storage


def _unusable(url: str, error: BaseException) -> EnvironmentProblem:
    """An error of the database, its driver or Optuna, in one line without a password."""
    said = str(getattr(error, "orig", None) or error)
    reason = " ".join(masked(said).split()) or type(error).__name__
    if "storage upgrade" in said:
        remedy = "run `optuna storage upgrade --storage URL`"
    elif "does not exist" in said and "database" in said:
        remedy = "make it (createdb), or correct --optuna-storage"
    elif "password" in said or "authentication" in said or "permission" in said:
        remedy = "set PGUSER and PGPASSWORD"
    else:
        remedy = "start it, or correct --optuna-storage"
    return EnvironmentProblem(f"cannot use {masked(url)!r} ({reason}): {remedy}")
