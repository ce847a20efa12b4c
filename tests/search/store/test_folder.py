"""The study folder, its config, its lock and its clock."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from search.config import SearchConfig, make_config, read_study_file
from search.errors import EnvironmentProblem, Refused, UsageError
from search.files import open_root
from search.progress import ProgressReporter
from search.store.folder import StudyFolder, find_study
from search.store.locks import held_lock, is_held
from search.store.study_record import new_record, refuse_changes, resumed_config
from search.study.checks import checked_study
from search.study.clock import StudyClock


@pytest.fixture
def folder(tmp_path) -> StudyFolder:
    made = StudyFolder(tmp_path, "mine")
    identity = {"data": "abc", "pair": (1, 2), "recipe": {"trial_epochs": 1, "final_epochs": 2.5}}
    made.write_record(new_record(make_config(study="mine", max_size=0.3, trials=6), identity))
    return made


def test_a_record_comes_back(folder, tmp_path):
    assert folder.exists and find_study(tmp_path, "mine") == folder
    assert folder.config == SearchConfig(study="mine", max_size=0.3, trials=6, root=str(tmp_path))
    record = folder.read_record()
    assert (
        record["identity"]["data"] == "abc" and record["identity"]["pair"] == [1, 2] and "root" not in record["config"]
    )
    assert len(record["study_id"]) == 32


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "{}", '{"version": 2}', '{"version": null, "config": {}}'])
def test_a_damaged_record_is_refused(folder, text):
    (folder.path / "study.json").write_text(text)
    with pytest.raises(Refused, match=r"study\.json"):
        folder.read_record()


@pytest.mark.parametrize("word", ["prefrence", 5, []])
def test_names_of_parameters_that_nobody_knows_are_refused(folder, word):
    folder.write_record({**folder.read_record(), "knob_word": word})
    with pytest.raises(Refused, match="knob_word"):
        folder.read_record()


@pytest.mark.parametrize("config", [None, 5, {"trials": 0}, {"unheard": 1}])
def test_a_record_with_a_damaged_config_is_refused(folder, config):
    folder.write_record({**folder.read_record(), "config": config})
    with pytest.raises(Refused, match="damaged"):
        _ = folder.config


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/b", "", ".", "..", "-x", "x" * 101, "artifacts", "cache", "a\0b", "a\n"]
)
def test_study_names_cannot_leave_the_root(tmp_path, name):
    with pytest.raises(UsageError, match="study"):
        make_config(study=name)
    with pytest.raises(UsageError, match="study name"):
        find_study(tmp_path, name)


@pytest.mark.parametrize("name", ["x" * 100, "a.b-c_d", "0", "Ab"])
def test_plain_study_names_are_taken(name):
    assert make_config(study=name).study == name


def test_not_given_options_keep_the_stored_values(folder):
    record = folder.read_record()
    asked = make_config(study="mine", root=str(folder.root), trials=9, timeout=5)
    resumed = resumed_config(asked, record, "mine")
    assert (resumed.trials, resumed.timeout, resumed.max_size) == (9, 5.0, 0.3)
    same = make_config(study="mine", max_size=0.3)
    assert resumed_config(same, record, "mine").trials == 6


def test_a_difference_is_shown_from_both_sides():
    with pytest.raises(UsageError) as raised:
        refuse_changes({"a_b": 1, "gone": 2, "same": 3}, {"a_b": 4, "new": 5, "same": 3}, "mine")
    for said in ("'mine'", "a-b was 1, is 4", "gone was 2, is None", "new was None, is 5", "--study"):
        assert said in str(raised.value)
    assert "same" not in str(raised.value)
    refuse_changes({"a": 1}, {"a": 1}, "mine")


def test_a_study_without_a_trial_may_be_deleted(folder):
    record, other = folder.read_record(), make_config(study="mine", max_size=0.35)
    assert folder.untried == folder.path
    remedy = f"may change; delete its folder {folder.path}, which has no trial, or name a new --study"
    with pytest.raises(UsageError, match=rf"max-size was 0.3, is 0.35\).*{re.escape(remedy)}$"):
        resumed_config(other, record, "mine", folder.untried)
    asked = SearchConfig(study="mine", root=str(folder.root), max_size=0.35)
    with pytest.raises(UsageError, match=f"{re.escape(remedy)}$"):
        checked_study(asked, ProgressReporter())
    with held_lock(folder.lock), pytest.raises(UsageError, match=r"may change; name a new --study$"):
        checked_study(asked, ProgressReporter())
    (folder.path / "journal").mkdir()
    (folder.path / "journal" / "trial-00000.json").write_text("{}")
    assert folder.untried is None
    with pytest.raises(UsageError, match=r"may change; name a new --study$"):
        resumed_config(other, record, "mine", folder.untried)


def test_a_study_file_takes_dashes_and_underscores(tmp_path):
    file = tmp_path / "s.toml"
    file.write_text('max-size = 0.1\nfinal_seeds = 2\ngranularity = ["channel"]\n')
    assert read_study_file(file) == {"max_size": 0.1, "final_seeds": 2, "granularity": ["channel"]}
    assert make_config(**read_study_file(file)).granularity == ("channel",)


def test_a_root_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="file"):
        open_root(tmp_path / "file" / "below")
    made = open_root(tmp_path / "a" / "b")
    assert made.is_dir() and not list(made.iterdir())


HOLDER = (
    "import sys, time\nfrom pathlib import Path\nfrom search.store.locks import held_lock\n"
    "with held_lock(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
)


def test_a_lock_names_its_owner_and_dies_with_it(tmp_path):
    path = tmp_path / "study.lock"
    assert not is_held(path) and not path.exists()
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True) as owner:
        try:
            assert owner.stdout.readline() == "held\n"
            assert is_held(path)
            with pytest.raises(EnvironmentProblem, match=str(owner.pid)), held_lock(path):
                pass
        finally:
            owner.kill()
    assert not is_held(path)
    with held_lock(path):
        assert path.read_text().strip().isdigit() and is_held(path)
    assert not is_held(path)


@pytest.mark.parametrize("plant", [Path.symlink_to, Path.hardlink_to])
def test_a_link_planted_as_a_lock_leads_nowhere(tmp_path, plant):
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("two years of work")
    lock = tmp_path / "study.lock"
    plant(lock, thesis)
    with pytest.raises(EnvironmentProblem, match=r"study\.lock' is a (hard )?link.*delete it"), held_lock(lock):
        pass
    with pytest.raises(EnvironmentProblem, match="delete it"), held_lock(lock, wait=True):
        pass
    assert thesis.read_text() == "two years of work"


def test_a_link_to_a_file_that_is_not_there_makes_none(tmp_path):
    (tmp_path / "study.lock").symlink_to(tmp_path / "new")
    with pytest.raises(EnvironmentProblem, match="is a link"), held_lock(tmp_path / "study.lock"):
        pass
    assert not (tmp_path / "new").exists() and not is_held(tmp_path / "study.lock")


def _text(path):
    path.write_text("dear diary")


@pytest.mark.parametrize("make", [_text, Path.mkdir, os.mkfifo])
def test_what_is_no_lock_of_ours_is_not_written_over(tmp_path, make):
    lock = tmp_path / "study.lock"
    make(lock)
    with pytest.raises(EnvironmentProblem, match="so it is not used as a lock: delete it"), held_lock(lock):
        pass
    assert lock.is_dir() or lock.is_fifo() or lock.read_text() == "dear diary"


def test_a_lock_that_stays_taken_is_not_waited_for_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr("search.store.locks.LONG_PATIENCE", 0.05)
    path = tmp_path / "mlflow.lock"
    said = f"locked by process {os.getpid()}"
    with held_lock(path), pytest.raises(EnvironmentProblem, match=said), held_lock(path, wait=True):
        pass


def test_a_root_is_absolute_whatever_the_working_directory_becomes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_root("runs") == tmp_path / "runs" and (tmp_path / "runs").is_dir()


@pytest.mark.parametrize("name", ["nul\0", "no text \udcff", "x" * 300, "/".join(["deep" * 20] * 6)])
def test_a_root_no_database_can_lie_in_is_refused(tmp_path, name):
    with pytest.raises(EnvironmentProblem, match=r"choose (another folder with|a shorter) --root"):
        open_root(f"{tmp_path}/{name}")


def test_a_cache_that_cannot_be_written_is_told_before_anything_is_computed(tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir()
    refused = {tmp_path / "cache": "Read-only file system"}
    monkeypatch.setattr("search.files.unwritable", refused.get)
    with pytest.raises(EnvironmentProblem, match="Read-only file system"):
        open_root(tmp_path)


def test_the_clock_leaves_pauses_and_changed_system_time_out(monkeypatch):
    now = {"monotonic": 100.0, "wall": 5000.0}
    monkeypatch.setattr(time, "monotonic", lambda: now["monotonic"])
    monkeypatch.setattr(time, "time", lambda: now["wall"])
    clock = StudyClock(30.0)
    assert clock.seconds == 30.0
    now["monotonic"] += 12.0
    now["wall"] -= 86400.0  # somebody set the clock back by a day
    assert clock.seconds == 42.0
    assert clock.to_time(42.0) - clock.to_time(30.0) == 12.0 and clock.to_time(30.0) == 5000.0


def test_reading_a_record_leaves_it_as_it_is(folder):
    before = (folder.path / "study.json").read_bytes()
    folder.read_record().pop("config")
    _ = folder.config
    assert (folder.path / "study.json").read_bytes() == before and json.loads(before)["version"] == 1
