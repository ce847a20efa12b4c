"""MLflow's database under a root: created completely or not at all, checked at every start, and moved with its root.

It is built in memory and put in place by one rename, so that an interruption leaves no half-made file. A broken
database is kept under another name, and a new one takes its place.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from search.errors import EnvironmentProblem
from search.files import remove_temporaries, write_durably
from search.process.interrupts import check
from search.progress import ProgressReporter
from search.storage import (
    SIDECARS,
    check_database_path,
    connect,
    database_problem,
    passes,
    set_aside,
    sqlite_url,
    write_problem,
)
from search.store.locks import held_lock

if TYPE_CHECKING:  # importing MLflow takes seconds
    from mlflow import MlflowClient

EXPERIMENT = "prunefront"
DATABASE, ARTIFACTS, LOCK = "mlflow.db", "artifacts", "mlflow.lock"
POOL = ("POOLCLASS", "POOL_SIZE", "MAX_OVERFLOW", "POOL_RECYCLE")
"""Endings of MLflow's environment variables that say how connections are kept."""
NOISY = ("mlflow", "alembic")
"""Loggers of libraries that tell of errors by tracebacks."""
log = logging.getLogger(__name__)
_opened_before: set[str] = set()
"""URIs of stores whose connections MLflow keeps, in this process, as it should."""


class _Broken(Exception):
    """Why a database cannot be used as it is and is set aside."""


def store_uri(root: Path) -> str:
    """The tracking URI of the store under a root folder."""
    path = (root / DATABASE).resolve()
    plain = sqlite_url(path).render_as_string()
    if plain == f"sqlite:///{path}":
        return plain
    # MLflow makes the folders it reads in the text of the URI: with every slash quoted it finds none
    return f"sqlite:///{quote(str(path), safe='')}"


def artifacts_uri(root: Path) -> str:
    """Where MLflow keeps the files of a root."""
    return (root / ARTIFACTS).resolve().as_uri()


def artifacts_place(root: Path, run: str) -> Path:
    """The folder with the files of one of our runs."""
    return root / ARTIFACTS / run / "artifacts"


class RootStore:
    """The store under a root."""

    attempts = 1  # what is locked has been waited for

    def __init__(self, root: Path) -> None:
        self._root = root

    def open(self) -> tuple[MlflowClient, str]:
        """A client, and the id of the experiment; raises as `open_store` does."""
        client = open_store(self._root)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        assert experiment is not None, "made with the store"
        return client, experiment.experiment_id

    def write(self, client: MlflowClient, run: str, files: Mapping[str, bytes]) -> None:
        """Write files (name -> content) where MLflow looks for them; its own client would use the place that a moved
        root had earlier in this process.
        """
        folder = artifacts_place(self._root, run)
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    def has(self, run: str, name: str) -> bool:
        """Whether a run has a file of this name."""
        return (artifacts_place(self._root, run) / name).is_file()

    def problem_of(self, error: Exception) -> EnvironmentProblem:
        """An error of MLflow, SQLite or a disk concerning this store, in our words."""
        return error if isinstance(error, EnvironmentProblem) else _unusable(self._root / DATABASE, error)


def open_store(root: Path, watcher: ProgressReporter | None = None) -> MlflowClient:
    """An `MlflowClient` for the store of `root`, whose database is created, repaired or set aside if necessary.

    Telemetry is switched off before MLflow is imported.

    Raises:
        EnvironmentProblem: the store is intact but cannot be used now: a full disk, a lock, or a newer MLflow's
            database.
    """
    root.mkdir(parents=True, exist_ok=True)
    path = root / DATABASE
    check_database_path(path)
    with held_lock(root / LOCK, wait=True), silenced():
        remove_temporaries(root)
        try:
            return _opened(root, watcher or ProgressReporter())
        except _libraries_errors() as error:
            raise _unusable(path, error) from None


class _Silence(logging.Filter):
    """Drops what MLflow and alembic say in a silenced thread, but not what user code makes them say elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.here = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        return not (getattr(self.here, "depth", 0) and record.name.partition(".")[0] in NOISY)


_silence = _Silence()


@contextmanager
def silenced() -> Iterator[None]:
    """Keep MLflow and alembic from printing, in this thread, tracebacks of errors that we tell in one line.

    Both are imported, with telemetry switched off before.
    """
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["DO_NOT_TRACK"] = "true"
    import mlflow  # noqa: F401 - it gives its loggers their handlers

    for name in NOISY:
        for handler in _handlers(logging.getLogger(name)):
            handler.addFilter(_silence)  # once, however often
    depth = getattr(_silence.here, "depth", 0)
    _silence.here.depth = depth + 1
    try:
        yield
    finally:
        _silence.here.depth = depth


def _handlers(logger: logging.Logger) -> list[logging.Handler]:
    """All that get what is told to a logger."""
    found: list[logging.Handler] = []
    at: logging.Logger | None = logger
    while at is not None:
        found += at.handlers
        at = at.parent if at.propagate else None
    return found or [logging.lastResort] if logging.lastResort else found


def _libraries_errors() -> tuple[type[Exception], ...]:
    from alembic.util import CommandError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, CommandError, sqlite3.Error, OSError


def _unusable(path: Path, error: Exception) -> EnvironmentProblem:
    remedy = f"move {DATABASE} away; every study writes its record again when it is next started"
    if isinstance(error, OSError):
        return write_problem(error.filename or path, error)
    if problem := database_problem(path, error, damaged=remedy):
        return problem
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return EnvironmentProblem(f"cannot use {str(path)!r} ({reason}): {remedy}")


def _opened(root: Path, watcher: ProgressReporter) -> Any:
    from mlflow import MlflowClient
    from mlflow.entities import LifecycleStage, ViewType

    path = root / DATABASE
    try:
        whole = path.stat().st_size > 0 if path.is_file() else os.path.lexists(path)
        if whole:
            _mend(path, watcher)
    except _Broken as reason:
        _set_aside(root, str(reason))
        whole = False
    if not whole:
        with watcher.stage("making MLflow's database"):
            _put(path, _empty_database())
    _follow(root)
    uri = store_uri(root)
    # each use opens the file anew: it may be set aside or replaced in between
    with nullcontext() if uri in _opened_before else _connections("NullPool"):
        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            client.create_experiment(EXPERIMENT, artifact_location=artifacts_uri(root))
        elif experiment.lifecycle_stage == LifecycleStage.DELETED:
            _restore(client, experiment.experiment_id, ViewType.ACTIVE_ONLY)
    _opened_before.add(uri)  # from now on the environment, which other threads may be reading, is left alone
    return client


def _restore(client: Any, experiment: str, active: Any) -> None:
    """Restore an experiment that was deleted in MLflow's UI, but not its runs, which would otherwise return with it."""
    client.restore_experiment(experiment)
    while runs := client.search_runs([experiment], run_view_type=active, max_results=1000):
        for run in runs:
            client.delete_run(run.info.run_id)


def _mend(path: Path, watcher: ProgressReporter) -> None:
    """Check an existing database, and bring one of an older MLflow up to date.

    Raises:
        _Broken: it is not a complete MLflow database.
        EnvironmentProblem: it belongs to a newer MLflow.
    """
    if not path.is_file():
        raise _Broken("it is not a file")
    head, known = _schemas()
    with closing(connect(path)) as store:
        try:
            fault = store.execute("PRAGMA quick_check(1)").fetchone()[0]
            columns = _columns(store)
            versions = [row[0] for row in store.execute("SELECT version_num FROM alembic_version")]
        except sqlite3.Error as error:
            if passes(error):
                raise
            raise _Broken(str(error)) from None
        if fault != "ok":
            raise _Broken(fault.splitlines()[-1])  # the first may be a heading
        if len(versions) != 1:
            raise _Broken(f"it names {len(versions)} versions of its schema")
        lacking = _lacking(columns)
        if versions[0] == head:
            if lacking:
                raise _Broken(f"it lacks {lacking}")
            return
        if versions[0] not in known:
            if lacking:
                raise _Broken(f"its schema {versions[0]!r} is unknown, and it lacks {lacking}")
            raise EnvironmentProblem(
                f"{str(path)!r} was written by a newer MLflow (its schema {versions[0]} is unknown here): install that "
                f"MLflow, or move {DATABASE} away; every study writes its record again when it is next started"
            )
        with watcher.stage("bringing MLflow's database up to date"):
            try:
                upgraded = _in_memory(_upgrade, store)
            except _libraries_errors() as error:
                check()
                raise _Broken((str(error).splitlines() or ["it cannot be brought up to date"])[0]) from None
    _put(path, upgraded)


def _set_aside(root: Path, reason: str) -> None:
    """Keep a broken database under a name of its own, and tell which records come back, and when."""
    kept = set_aside(root / DATABASE)
    studies = sorted(record.parent.name for record in root.glob("*/study.json"))
    again = f": {', '.join(studies)}" if studies else ""
    log.warning(
        "MLflow's database could not be used (%s) and is kept as %s; a new one takes its place, and the record of each "
        "study comes back when that study is next started%s",
        reason, kept.name, again,
    )  # fmt: skip


def _put(path: Path, content: bytes) -> None:
    for end in SIDECARS:
        path.with_name(path.name + end).unlink(missing_ok=True)
    write_durably(path, content)


@cache
def _empty_database() -> bytes:
    """The bytes of a store without runs, as this version of MLflow creates it."""
    from mlflow import MlflowClient

    return _in_memory(lambda uri: MlflowClient(tracking_uri=uri).get_experiment_by_name(EXPERIMENT))


def _upgrade(uri: str) -> None:
    from mlflow.db import upgrade

    assert upgrade.callback is not None  # of a command of click's
    upgrade.callback(uri)


def _in_memory(change: Callable[[str], Any], store: sqlite3.Connection | None = None) -> bytes:
    """The bytes of an in-memory database: a copy of `store` after `change` was called with its URI."""
    place = f"file:prunefront-{uuid.uuid4().hex}?mode=memory&cache=shared"
    with closing(sqlite3.connect(place, uri=True)) as ours, _connections("StaticPool"):
        if store is not None:
            store.backup(ours)
        change(f"sqlite:///{place}&uri=true")
        return ours.serialize()


@contextmanager
def _connections(pool: str) -> Iterator[None]:
    """Make MLflow keep its connections in this way, whatever the environment says about other stores."""
    names = [f"MLFLOW_SQLALCHEMYSTORE_{end}" for end in POOL]
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ[names[0]] = pool
    try:
        yield
    finally:
        del os.environ[names[0]]
        os.environ.update(before)


def _schemas() -> tuple[str, frozenset[str]]:
    """The schema revision of this version of MLflow, and all those that it can upgrade."""
    import mlflow
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    head = scripts.get_current_head()
    assert head is not None, "MLflow brings no schema"
    return head, frozenset(script.revision for script in scripts.walk_revisions())


def _columns(store: sqlite3.Connection) -> dict[str, set[str]]:
    tables = [row[0] for row in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return {name: {row[1] for row in store.execute("SELECT * FROM pragma_table_xinfo(?)", [name])} for name in tables}


def _lacking(columns: dict[str, set[str]]) -> str:
    """The first table or column that this version of MLflow needs and a database lacks; empty if it has all."""
    import mlflow.store.db.utils  # noqa: F401 - it makes every table known
    from mlflow.store.db.base_sql_model import Base

    for name, table in Base.metadata.tables.items():
        if name not in columns:
            return f"table {name}"
        for column in table.columns:
            if column.name not in columns[name]:
                return f"column {column.name} of table {name}"
    return ""


def _follow(root: Path) -> None:
    """Let a root that was moved, renamed or copied find its files, since MLflow stores absolute paths."""
    here = artifacts_uri(root)
    with closing(connect(root / DATABASE)) as store, store:
        found = store.execute(
            "SELECT experiment_id, artifact_location FROM experiments WHERE name = ?", [EXPERIMENT]
        ).fetchone()
        if found:
            ours, before = found
            uri = "? || '/' || run_uuid || '/artifacts'"
            if before != here:
                _replace_start(store, "experiments", "artifact_location", before, here)
                _replace_start(store, "runs", "artifact_uri", before, here)
            store.execute(
                f"UPDATE runs SET artifact_uri = {uri} WHERE experiment_id = ? AND artifact_uri != {uri}",
                [here, ours, here],
            )
        default = f"{here}/0"  # of the experiment MLflow makes by itself, in the working directory of that time
        store.execute(
            "UPDATE experiments SET artifact_location = ? WHERE experiment_id = 0 AND artifact_location != ? AND NOT "
            "EXISTS (SELECT 1 FROM runs WHERE runs.experiment_id = 0)",
            [default, default],
        )


def _replace_start(store: sqlite3.Connection, table: str, column: str, before: str, now: str) -> None:
    store.execute(
        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
        [now, len(before) + 1, len(before), before],
    )
