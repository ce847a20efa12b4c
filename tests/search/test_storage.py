"""What SQLite refuses, at the start of a study and in its middle, has its true cause and remedy in one line."""

from __future__ import annotations

import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy

import search.storage
import search.store.optuna_trials
from search.errors import EnvironmentProblem
from search.storage import check_database_path, database_problem, sqlite_url
from search.store.optuna_trials import Finished, OptunaTrials


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("optuna") / "study.db"
    OptunaTrials(path, "s", "random", 0).ask({"size": 0.25}, "lamp")
    return path.read_bytes()


@pytest.fixture
def path(made, tmp_path) -> Path:
    path = tmp_path / "study.db"
    path.write_bytes(made)
    return path


def until_refused(study: OptunaTrials) -> str:
    """Ask, sample and tell until that is refused; the one line it is refused in."""
    with pytest.raises(EnvironmentProblem) as raised:
        for _ in range(300):
            trial = study.ask({"size": 0.25, "word": "x" * 400})
            trial.suggest_float("size", 0.125, 0.5)
            trial.set_user_attr("note", "y" * 500)
            study.tell(trial.number, "complete", (0.75, 0.25, 0.5))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def limit(study: OptunaTrials, pragma: str) -> None:
    """Limit the database as a disk would: SQLite keeps it for a connection only, so each new one gets it."""
    engine = study._study._storage._backend.engine
    engine.dispose()

    @sqlalchemy.event.listens_for(engine, "connect")
    def connected(connection, _):
        connection.execute(f"PRAGMA {pragma}").fetchone()


def test_a_disk_that_gets_full_in_the_middle(path, caplog):
    study = OptunaTrials(path, "s", "random", 0)
    pages = path.stat().st_size // 4096
    limit(study, f"max_page_count = {pages + 1}")
    said = until_refused(study)
    assert "study.db' (the disk is full): free space there" in said and "delete" not in said
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert OptunaTrials(path, "s", "random", 0).trial_count > 1


def test_a_place_that_becomes_read_only(path):
    study = OptunaTrials(path, "s", "random", 0)
    limit(study, "query_only = ON")
    assert "cannot be written): make it writable" in until_refused(study)


@pytest.mark.parametrize("begun", [False, True])
def test_another_programs_lock(path, monkeypatch, begun):
    monkeypatch.setattr(search.store.optuna_trials, "SQLITE_TIMEOUT", 0.05)
    monkeypatch.setattr(search.storage, "TIMEOUT", 0.05)
    study = OptunaTrials(path, "s", "random", 0) if begun else None
    with closing(sqlite3.connect(path)) as viewer:
        viewer.execute("BEGIN EXCLUSIVE")
        with pytest.raises(EnvironmentProblem, match=r"study\.db' \(another program has it locked\)"):
            study.ask({}) if begun else OptunaTrials(path, "s", "random", 0)
    assert OptunaTrials(path, "s", "random", 0).trial_count == 1


def test_a_full_disk_at_the_start_is_not_told_as_damage(tmp_path, monkeypatch):
    def full(*_, **__):
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise sqlalchemy.exc.OperationalError("CREATE TABLE studies", {}, error)

    monkeypatch.setattr(search.store.optuna_trials, "RDBStorage", full)
    with pytest.raises(EnvironmentProblem, match="the disk is full") as raised:
        OptunaTrials(tmp_path / "study.db", "s", "random", 0)
    assert "delete" not in str(raised.value)


def _overwritten(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:20480] = b"A" * 16384
    path.write_bytes(content)


def _values_of_no_kind(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE trials SET state = 'SLEEPING'")


def _a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE = {
    "text": lambda path: path.write_bytes(b"no database " * 400),
    "header only": lambda path: path.write_bytes(b"SQLite format 3\0" + b"\xff" * 4000),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "overwritten": _overwritten,
    "values of no kind": _values_of_no_kind,
    "a folder": _a_folder,
    "a pipe": _a_pipe,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_one_is_kept_and_a_new_one_made(path, kind, caplog):
    DAMAGE[kind](path)
    study = OptunaTrials(path, "s", "random", 0)
    assert study.trial_count == 0 and study.ask({"size": 0.25}).number == 0
    assert path.with_name("study.db.broken-1").exists() and path.is_file()
    (said,) = [record.getMessage() for record in caplog.records if record.name == "search.store.optuna_trials"]
    assert said.endswith(") and is kept as study.db.broken-1; a new one is made from the journal") and "\n" not in said


def test_a_whole_or_half_made_one_is_kept_in_place(path):
    assert OptunaTrials(path, "s", "random", 0).trial_count == 1
    path.write_bytes(b"")
    assert OptunaTrials(path, "s", "random", 0).trial_count == 0
    assert not path.with_name("study.db.broken-1").exists()


def test_one_that_has_more_than_the_journal_is_made_anew(path):
    study = OptunaTrials(path, "s", "random", 0)
    study.tell(0, "failed")
    assert OptunaTrials(path, "s", "random", 0, known={0: Finished("failed", {}, None)}).trial_count == 1
    assert OptunaTrials(path, "s", "random", 0, known={}).trial_count == 0
    assert path.with_name("study.db.broken-1").exists()


def test_a_database_deleted_in_the_middle_is_named(path):
    study = OptunaTrials(path, "s", "random", 0)
    os.truncate(path, 0)
    with pytest.raises(EnvironmentProblem, match=r"study\.db"):
        study.ask({})


def test_a_wrong_statement_is_no_refusal_of_the_disk(path):
    storage = search.store.optuna_trials.open_storage(path)
    with storage.engine.connect() as connection, pytest.raises(sqlalchemy.exc.OperationalError, match="syntax"):
        connection.execute(sqlalchemy.text("SELEKT 1"))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (sqlite3.SQLITE_FULL, "(the disk is full): free space there"),
        (sqlite3.SQLITE_BUSY, "(another program has it locked): close that program"),
        (sqlite3.SQLITE_LOCKED, "(another program has it locked): close that program"),
        (sqlite3.SQLITE_READONLY, "cannot be written): make it writable"),
        (sqlite3.SQLITE_PERM, "cannot be written): make it writable"),
        (sqlite3.SQLITE_IOERR_WRITE, "(no): check the disk, its space"),
        (sqlite3.SQLITE_CANTOPEN, "(no): check its folder and the limit on open files"),
        (sqlite3.SQLITE_CORRUPT, "(no): delete it"),
    ],
)
def test_each_refusal_has_its_remedy(tmp_path, code, said):
    error, library = sqlite3.OperationalError("no"), RuntimeError("of a library")
    error.sqlite_errorcode, library.__cause__ = code, error
    assert said in str(database_problem(tmp_path / "x.db", library, damaged="delete it"))


def test_errors_of_others_have_no_database_behind_them(tmp_path):
    assert database_problem(tmp_path / "x.db", ValueError("other"), damaged="") is None
    circle = ValueError("one")
    circle.__context__ = KeyError("two")
    circle.__context__.__context__ = circle
    assert database_problem(tmp_path / "x.db", circle, damaged="") is None


@pytest.mark.parametrize("length", [504, 505])
def test_the_longest_path_is_what_sqlite_opens(tmp_path, length):
    folder = tmp_path / ("x" * 200) / ("y" * 150)
    path = folder / ("z" * (length - len(str(folder)) - 1))
    folder.mkdir(parents=True)
    try:
        with closing(sqlite3.connect(path)) as store, store:
            store.execute("CREATE TABLE a (b)")
        opened = True
    except sqlite3.OperationalError:
        opened = False
    try:
        check_database_path(path)
        taken = True
    except EnvironmentProblem:
        taken = False
    assert opened == taken == (length == 504)


@pytest.mark.parametrize("name", ["a?b", "a%20b", "a#b", "a{b}", "a;b", "ä b"])
def test_a_url_stands_for_the_very_path(tmp_path, name):
    path = tmp_path / name
    assert sqlalchemy.make_url(sqlite_url(path).render_as_string()).database == str(path)


CHANGES = {
    "another state": "UPDATE trials SET state = 'FAIL' WHERE number = 0",
    "another value": "UPDATE trial_values SET value = 0.875 WHERE objective = 0",
    "lost values": "DELETE FROM trial_values",
    "a lost table": "DROP TABLE trial_values",
    "other parameters": "UPDATE trial_params SET param_value = 0.375",
    "lost parameters": "DELETE FROM trial_params",
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_database_that_contradicts_the_journal_is_made_anew(path, change, caplog):
    """What the sampler learns from, and what Optuna's own tools show, is what was measured."""
    study = OptunaTrials(path, "s", "random", 0)
    study.unfinished()[0].suggest_float("size", 0.125, 0.5)
    study.tell(0, "complete", (0.75, 0.25, 0.5))
    known = {0: Finished("complete", {"size": 0.25}, (0.75, 0.25, 0.5))}
    assert OptunaTrials(path, "s", "random", 0, known=known).trial_count == 1 and not caplog.records
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(change)
    assert OptunaTrials(path, "s", "random", 0, known=known).trial_count == 0
    assert path.with_name("study.db.broken-1").is_file()
    assert "of trial 0 than the journal" in caplog.text and "Traceback" not in caplog.text
