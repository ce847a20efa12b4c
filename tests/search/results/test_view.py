"""Readers of a study write nothing, and a database that cannot be read stops none of them."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from hand_made_study import study, trial
from refusals import MISSPELT, refuse

from search import load_front
from search.errors import Refused, UsageError
from search.metric import Metric, metric_to_plain
from search.results import view as reading
from search.results.view import begun_trials, open_study
from search.store.folder import StudyFolder
from search.store.locks import held_lock


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    shutil.copytree(finished.path, tmp_path / "tiny")
    return tmp_path


def half_made(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE studies (study_id INTEGER, study_name TEXT)")
        database.commit()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not a database" * 99),
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
        Path.unlink,
        half_made,
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["empty", "foreign", "cut", "missing", "half-made", "folder"],
)
def test_a_damaged_database_changes_nothing_for_readers_and_stays_as_it_is(copy, finished, damage):
    path = copy / "tiny" / "study.db"
    damage(path)
    before = path.read_bytes() if path.is_file() else path.exists()
    view = open_study(copy, "tiny")
    assert [row.trial for row in view.state.front] == [row["trial"] for row in finished.reply["front"]]
    assert view.counts == finished.reply["trials"]
    assert (path.read_bytes() if path.is_file() else path.exists()) == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:200]),
        lambda path: path.write_bytes(b"\xff\x00" * 99),
        lambda path: path.write_text(path.read_text().replace('"validation_accuracy": 0', '"validation_accuracy": 7')),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["empty", "cut", "binary", "no share", "folder"],
)
def test_a_damaged_comparison_is_named_and_all_else_is_shown(copy, finished, main, caplog, damage):
    path = copy / "tiny" / "comparison.json"
    damage(path)
    shown = main("front", "tiny", "--root", copy, "--json")
    assert shown.code == 0 and json.loads(shown.out)["front"] == finished.reply["front"]
    told = main("status", "tiny", "--root", copy)
    assert told.code == 0 and f"Best: trial {finished.reply['best']}" in told.out
    assert len(caplog.messages) == 2  # which go to stderr
    for line in caplog.messages:
        assert f"damaged {path}" in line and "resume the study" in line and "\n" not in line
    assert path.exists() and len(list(path.parent.glob("comparison.json*"))) == 1
    refused = main("export", "tiny", "--root", copy, "--trial", "baseline:lamp", "--out", copy / "out")
    assert refused.code == 4 and f"damaged {path}" in refused.err


@pytest.mark.slow
def test_a_study_sets_a_damaged_comparison_aside_and_compares_again(copy, finished, main, caplog):
    shutil.copytree(finished.root / "cache", copy / "cache")
    path = copy / "tiny" / "comparison.json"
    whole = json.loads(path.read_text())
    path.write_text("{")
    finals = {entry.name: entry.read_bytes() for entry in (copy / "tiny" / "journal").glob("final-*")}
    ended = main("search", "--study", "tiny", "--root", copy, "--json")
    assert ended.code == 0 and "kept as comparison.json.broken-1" in caplog.text
    assert json.loads(path.read_text()) == whole and (path.parent / "comparison.json.broken-1").read_text() == "{"
    assert {entry.name: entry.read_bytes() for entry in (copy / "tiny" / "journal").glob("final-*")} == finals
    assert json.loads(ended.out)["finals"] == finished.reply["finals"]


def test_a_locked_database_stops_no_reader(copy, monkeypatch):
    monkeypatch.setattr(reading, "PATIENCE", 0.01)
    with closing(sqlite3.connect(copy / "tiny" / "study.db")) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        assert open_study(copy, "tiny").counts["complete"] == 8


def test_trials_begun_are_told_from_the_database_and_from_the_journal(copy):
    folder = StudyFolder(copy, "tiny")
    assert begun_trials(folder) == list(range(8))
    with closing(sqlite3.connect(folder.database)) as database:
        study = database.execute("SELECT study_id FROM studies").fetchone()
        database.execute("INSERT INTO trials (number, study_id, state) VALUES (8, ?, 'RUNNING')", study)
        database.commit()
    (folder.path / "journal" / "begun-trial-00009.now").write_bytes(b"0 0")
    (folder.path / "journal" / "pending-trial-00010.json").write_bytes(b"")
    (folder.path / "journal" / "pending-trial-00007.json").write_bytes(b"")  # a kill right behind the result left it
    view = open_study(copy, "tiny")
    assert view.counts["waiting"] == 3 and [row.trial for row in view.rows][-3:] == [8, 9, 10]
    folder.database.unlink()
    assert open_study(copy, "tiny").counts["waiting"] == 2


def test_of_a_database_only_numbers_of_the_studys_own_trials_count(tmp_path):
    folder = study(tmp_path)
    rows = [(4, 1), (2, 1), (7, 2), (-1, 1), (10**7, 1), ("9", 1), (b"8", 1), (2.5, 1)]
    with closing(sqlite3.connect(folder.database)) as database:
        database.execute("CREATE TABLE studies (study_id INTEGER, study_name TEXT)")
        database.execute("CREATE TABLE trials (number, study_id INTEGER)")
        database.executemany("INSERT INTO studies VALUES (?, ?)", [(1, "hand"), (2, "other")])
        database.executemany("INSERT INTO trials VALUES (?, ?)", rows)
        database.commit()
    folder.journal.folder.mkdir()
    ours = ("begun-trial-0000003.now", "begun-trial-00016.now", "pending-trial-00006.json")
    for name in (*ours, "begun-trial-00000005.now", "pending-trial-0008.json", "a-trial-00010.x"):
        (folder.journal.folder / name).touch()
    assert begun_trials(folder) == [2, 3, 4, 6, 16]


def test_trials_begun_run_while_the_study_does_and_wait_else(tmp_path):
    folder = study(tmp_path)
    folder.journal.write_trial(trial(5, 0.75, 0.125))
    (folder.journal.folder / "begun-trial-00002.now").touch()
    view = open_study(tmp_path, "hand")
    assert [(row.trial, row.state) for row in view.rows] == [(5, "complete"), (2, "waiting")]
    assert (view.counts["waiting"], view.counts["complete"], view.running) == (1, 1, False)
    with held_lock(folder.lock):
        view = open_study(tmp_path, "hand")
    assert [(row.trial, row.state) for row in view.rows] == [(5, "complete"), (2, "running")]
    assert (view.counts["running"], view.running) == (1, True)


def test_what_a_record_holds_beside_the_options_is_read(tmp_path):
    folder = study(tmp_path)
    unit = Metric("mAP", low=0, high=50)
    record = folder.read_record() | {"criterion_place": "/a/b.py:c", "metric": metric_to_plain(unit)}
    for share, found in ((0, 0.0), (1, 1.0), (-0.125, None), (1.125, None)):
        folder.write_record(record | {"dense_accuracy": share, "chance": share, "least_accuracy": 0.625})
        view = open_study(tmp_path, "hand")
        assert (view.state.dense_accuracy, view.state.chance, view.state.least_accuracy) == (found, found, 0.625)
    assert (view.criterion_place, view.state.unit) == ("/a/b.py:c", unit)


def test_the_dense_accuracy_is_read_where_it_was_written_down(copy):
    path = copy / "tiny" / "study.json"
    record = json.loads(path.read_text())
    assert open_study(copy, "tiny").state.dense_accuracy == record["dense_accuracy"] > 0.25
    for odd in (None, "high", True, 7.5):
        path.write_text(json.dumps(record | {"dense_accuracy": odd, "chance": odd}))
        assert open_study(copy, "tiny").state.dense_accuracy is None


def test_a_front_leaves_out_what_is_no_better_than_chance(copy):
    path = copy / "tiny" / "study.json"
    whole = open_study(copy, "tiny")
    least = min(row.accuracy for row in whole.state.front)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chance": least}))
    view = open_study(copy, "tiny")
    assert 0 < view.state.front_length < whole.state.front_length + whole.state.dead_within(0.5)
    assert all(row.accuracy > least for row in view.state.front)
    assert view.state.dead_within(0.5) > whole.state.dead_within(0.5)


def test_front_and_status_import_no_library_that_only_a_search_needs(finished):
    code = (
        "import json, sys\n"
        "from search.cli.entry import main\n"
        "codes = [main([*words, '--root', sys.argv[1], '--json']) for words in json.loads(sys.argv[2])]\n"
        "print(json.dumps([codes, sorted({name.partition('.')[0] for name in sys.modules})]))\n"
    )
    asked = [["status", "tiny"], ["front", "tiny"], ["front", "tiny", "--all", "--max-size", "0.4"]]
    asked += [["front", "tiny", "--format", word] for word in ("json", "csv")]
    ended = subprocess.run(
        [sys.executable, "-c", code, str(finished.root), json.dumps(asked)], capture_output=True, text=True, timeout=60
    )
    codes, modules = json.loads(ended.stdout.splitlines()[-1])
    assert codes == [0] * len(asked), ended.stderr
    assert "search" in modules
    assert not {"pandas", "torch", "optuna", "mlflow", "matplotlib", "sklearn", "scipy", "sqlalchemy"} & {*modules}


def test_studies_that_are_absent_or_damaged_are_named(tmp_path):
    refuse(lambda: load_front("mine", tmp_path), "unknown study 'mine': there is none yet", UsageError)
    refuse(lambda: load_front(None, tmp_path), "got None", UsageError)
    refuse(lambda: load_front("../mine", tmp_path), "got '../mine'", UsageError)
    record = tmp_path / "mine" / "study.json"
    record.parent.mkdir()
    for content, said in {"{": "damaged", '{"version": 99}': "version is not 1", "[]": "damaged"}.items():
        record.write_text(content)
        refuse(lambda: load_front("mine", tmp_path), said, Refused)
    refuse(lambda: load_front("mime", tmp_path), f"{MISSPELT} 'mine'", UsageError)
