"""What SQLite refuses, at the start of a study and in its middle, has its true cause and remedy in one line."""

from __future__ import annotations

import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import optuna
import pytest
import sqlalchemy

import search.storage
import search.store.optuna_file
from search.errors import EnvironmentProblem
from search.proposals.optuna_study import Objectives
from search.records import FAILED, PendingTrial, TrialRecord, TrialResult
from search.storage import check_database_path, database_problem, sqlite_url
from search.store.optuna_file import OptunaProjection, Translation, projection_in_file
from spaces.cost.footprint import RelativeCost
from spaces.policy import PruningPolicy
from spaces.search_space.space import Axis

TRANSLATION = Translation((Axis("size", 0.125, 0.5, log=True),), Objectives(), lambda seconds: 1e9 + seconds)
COST = RelativeCost(**dict.fromkeys(RelativeCost.__dataclass_fields__, 0.25) | {"macs": 0.5})


def record(number: int, state: str = "complete", layers: int = 1) -> TrialRecord:
    measured = {f"layer{place}.weight": 0.75 for place in range(layers)}
    result = TrialResult(FAILED, "error: x") if state == FAILED else TrialResult(
        state, accuracy=0.75, loss=1.0, shares=COST, achieved=measured
    )  # fmt: skip
    policy = PruningPolicy({"layer0.weight": 0.75})
    return TrialRecord(number, "lamp", {"size": 0.25}, policy, {}, 0.25, result, 1.0, 2.0, 0.0)


def written(path: Path, *records: TrialRecord) -> OptunaProjection:
    return projection_in_file(path, "s", TRANSLATION, {one.number: one for one in records})


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("optuna") / "study.db"
    written(path, record(0))
    return path.read_bytes()


@pytest.fixture
def path(made, tmp_path) -> Path:
    path = tmp_path / "study.db"
    path.write_bytes(made)
    return path


def until_refused(study: OptunaProjection) -> str:
    """Write trials until that is refused; the one line it is refused in."""
    with pytest.raises(EnvironmentProblem) as raised:
        for number in range(1, 300):
            study.add(record(number, layers=40))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def limit(study: OptunaProjection, pragma: str) -> None:
    """Limit the database as a disk would: SQLite keeps it for a connection only, so each new one gets it."""
    engine = study._storage.engine
    engine.dispose()

    @sqlalchemy.event.listens_for(engine, "connect")
    def connected(connection, _):
        connection.execute(f"PRAGMA {pragma}").fetchone()


def test_a_disk_that_gets_full_in_the_middle(path, caplog):
    study = written(path, record(0))
    limit(study, f"max_page_count = {path.stat().st_size // 4096 + 1}")
    said = until_refused(study)
    assert "study.db' (the disk is full): free space there" in said and "delete" not in said
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    known = [record(number, layers=40) for number in range(1, len(study.trials()))]
    assert len(written(path, record(0), *known).trials()) == len(known) + 1 > 1 and not caplog.records


def test_a_place_that_becomes_read_only(path):
    study = written(path, record(0))
    limit(study, "query_only = ON")
    assert "cannot be written): make it writable" in until_refused(study)


@pytest.mark.parametrize("begun", [False, True])
def test_another_programs_lock(path, monkeypatch, begun):
    monkeypatch.setattr(search.store.optuna_file, "SQLITE_TIMEOUT", 0.05)
    monkeypatch.setattr(search.storage, "TIMEOUT", 0.05)
    study = written(path, record(0)) if begun else None
    with closing(sqlite3.connect(path)) as viewer:
        viewer.execute("BEGIN EXCLUSIVE")
        with pytest.raises(EnvironmentProblem, match=r"study\.db' \(another program has it locked\)"):
            study.add(record(1)) if begun else written(path, record(0))
    assert len(written(path, record(0)).trials()) == 1


def test_a_full_disk_at_the_start_is_not_told_as_damage(tmp_path, monkeypatch):
    def full(*_, **__):
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise sqlalchemy.exc.OperationalError("CREATE TABLE studies", {}, error)

    monkeypatch.setattr(search.store.optuna_file, "RDBStorage", full)
    with pytest.raises(EnvironmentProblem, match="the disk is full") as raised:
        written(tmp_path / "study.db")
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
def test_a_damaged_one_is_kept_and_a_new_one_made_from_the_journal(path, kind, caplog):
    DAMAGE[kind](path)
    study = written(path, record(0), record(1))
    assert [trial.values for trial in study.trials()] == [[0.75, 0.25, 0.5]] * 2
    assert path.with_name("study.db.broken-1").exists() and path.is_file()
    (said,) = [record.getMessage() for record in caplog.records if record.name == "search.store.optuna_file"]
    assert said.endswith(") and is kept as study.db.broken-1; a new one is made from the journal") and "\n" not in said


def test_one_that_is_behind_or_empty_is_brought_up_in_its_place(path, caplog):
    assert len(written(path, *map(record, range(3))).trials()) == 3
    path.write_bytes(b"")
    assert len(written(path, record(0)).trials()) == 1
    assert not path.with_name("study.db.broken-1").exists() and not caplog.records


def test_one_that_has_more_than_the_journal_is_made_anew(path):
    assert written(path).trials() == []
    assert path.with_name("study.db.broken-1").exists()


def states(study: OptunaProjection) -> list[str]:
    return [trial.state.name for trial in study.trials()]


def test_a_trial_is_held_back_until_those_before_it_are_there(path):
    study = written(path, record(0), record(2, FAILED))
    assert states(study) == ["COMPLETE"]
    study.add(record(1))
    assert states(study) == ["COMPLETE", "COMPLETE", "FAIL"]
    (shown,) = optuna.load_study(study_name="s", storage=sqlite_url(path).render_as_string()).get_trials()[1:2]
    assert (shown.values, shown.params, shown.user_attrs["origin"]) == ([0.75, 0.25, 0.5], {"size": 0.25}, "lamp")


def test_a_trial_that_the_journal_lacks_waits_among_the_others_when_the_study_ends(path):
    study = written(path, record(0), record(2, FAILED))
    study.close()
    assert states(study) == ["COMPLETE", "WAITING", "FAIL"]
    again = written(
        path, record(0), record(2, FAILED), record(5), record(6)
    )  # with more trials, before the missing one
    assert states(again) == ["COMPLETE"]
    again.add(record(1))
    again.add(record(3))
    again.close()
    assert states(again) == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE", "WAITING", "COMPLETE", "COMPLETE"]


@pytest.mark.parametrize("order", [range(12), (3, 1, 0, 2, 11, 4, 6, 5, 10, 9, 8, 7)])
def test_a_trial_takes_one_transaction_in_whatever_order_results_come(path, order):
    study, commits = written(path, record(0)), []
    sqlalchemy.event.listen(study._storage.engine, "commit", commits.append)
    for number in order:
        study.add(record(number + 1, layers=20))
    assert len(commits) == 12 and states(study) == ["COMPLETE"] * 13


def test_what_an_earlier_version_began_is_pending_and_no_row_any_more(path, caplog):
    """It asked for trials in the file, and wrote each parameter as it came."""
    earlier = optuna.load_study(study_name="s", storage=sqlite_url(path).render_as_string())
    begun = earlier.ask()
    begun.suggest_float("size", 0.125, 0.5, log=True)
    begun.set_user_attr("scores", {"gain": 0.5})
    begun.set_user_attr("origin", "scan")
    study = written(path, record(0))
    assert study.pending == [PendingTrial(1, "scan", begun.params, {"gain": 0.5})]
    assert [trial.number for trial in study.trials()] == [0] and not caplog.records
    study.add(record(1))
    assert written(path, record(0), record(1)).pending == []


def test_a_database_deleted_in_the_middle_is_named(path):
    study = written(path, record(0))
    os.truncate(path, 0)
    with pytest.raises(EnvironmentProblem, match=r"study\.db"):
        study.add(record(1))


def test_a_wrong_statement_is_no_refusal_of_the_disk(path):
    storage = search.store.optuna_file.open_storage(path)
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
    assert len(written(path, record(0)).trials()) == 1 and not caplog.records
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(change)
    assert [trial.values for trial in written(path, record(0)).trials()] == [[0.75, 0.25, 0.5]]
    assert path.with_name("study.db.broken-1").is_file()
    assert "of trial 0 than the journal" in caplog.text and "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("DELETE FROM trials WHERE number = 1", "it lacks trial 1, though it has later ones"),
        (
            "UPDATE study_directions SET direction = 'MINIMIZE' WHERE objective = 0",
            "its objectives have other directions",
        ),
    ],
)
def test_what_somebody_changed_in_the_file_is_set_aside(path, caplog, damage, told):
    written(path, record(0), record(1), record(2))
    with closing(sqlite3.connect(path)) as editor, editor:
        editor.execute(damage)
    assert [trial.number for trial in written(path, record(0), record(1), record(2)).trials()] == [0, 1, 2]
    assert told in caplog.text and len(list(path.parent.glob("study.db.*"))) == 1
