"""Ten seeded moments of the campaign, and whether its checks see what they are for."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
import campaign
import invariants

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_nothing_is_lost_at_ten_seeded_moments(tmp_path):
    """More of them: `python tests/faults/campaign.py kill --moments 100 --seed 0`."""
    words = [
        sys.executable,
        HERE / "campaign.py",
        "kill",
        "--moments",
        "10",
        "--seed",
        "1",
        "--keep",
        tmp_path / "kept",
    ]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=1500)
    assert ended.stdout, ended.stderr[-3000:]
    counted = json.loads(ended.stdout)
    assert counted["faults"] == [] and ended.returncode == 0
    assert counted["tried"] + counted["late"] == 10 and counted["held"] == counted["tried"] >= 5
    assert counted["whole"] == counted["studies"] >= 1


def test_every_phase_and_signal_has_its_share_of_the_moments():
    calls = {"search": {"replace": 90, "fsync": 200, "commit": 300}, "export": {"replace": 7}}
    moments = campaign.moments_of(112, random.Random(0), calls)
    phases = Counter(moment.phase for moment in moments if not moment.point)
    assert phases.keys() == set(campaign.PHASES) and set(phases.values()) == {14}
    for phase in campaign.PHASES:
        kinds = Counter(moment.kind for moment in moments if moment.phase == phase)
        assert kinds["KILL"] >= 4 and kinds["INT"] and kinds["TERM"], (phase, kinds)
    assert sum(bool(moment.point) for moment in moments) == 14
    sequences = list(campaign.sequences_of(moments))
    assert sorted(map(id, (moment for one in sequences for moment in one))) == sorted(map(id, moments))


# What the checks are for


@pytest.fixture
def study(finished, tmp_path):
    """A copy of a finished study, to be damaged."""
    root = tmp_path / "mlruns"
    root.mkdir()
    for part in ("mlflow.db", "tiny"):
        (shutil.copytree if part == "tiny" else shutil.copy)(finished.root / part, root / part)
    return root / "tiny"


def edited(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def execute(database: Path, statement: str) -> None:
    connection = sqlite3.connect(database)
    with connection:
        assert connection.execute(statement).rowcount > 0
    connection.close()


def test_a_whole_study_passes_all_checks(study):
    now = invariants.journal(study)
    assert sorted(now)[-1] == "trial-00007.json" and sum(name.startswith("final") for name in now) >= 2
    assert invariants.kept(now, now) == [] and invariants.same_results(now, now) == []
    assert invariants.optuna_agrees(study) == [] and invariants.mlflow_agrees(study) == []
    assert invariants.nothing_left_over(study.parent) == []


def test_a_lost_a_changed_and_a_skipped_trial_are_seen(study):
    before, path = invariants.journal(study), study / "journal" / "trial-00003.json"
    edited(path, target=0.25)
    assert invariants.kept(before, invariants.journal(study)) == ["trial-00003.json has changed"]
    path.unlink()
    assert invariants.kept(before, invariants.journal(study)) == [
        "trial-00003.json is lost",
        "trials are numbered [0, 1, 2, 4, 5, 6, 7]",
    ]


def test_a_doubled_trial_is_seen(study):
    shutil.copy(study / "journal" / "trial-00003.json", study / "journal" / "trial-00008.json")
    (fault, _) = invariants.kept({}, invariants.journal(study))
    assert fault == "trials are numbered [0, 1, 2, 3, 3, 4, 5, 6, 7]"


@pytest.mark.parametrize("changes", [{"origin": "sampler"}, {"scores": {"gain": 0.25}}, {"params": {}}])
def test_another_proposal_is_seen(study, changes):
    undisturbed = invariants.journal(study)
    edited(study / "journal" / "trial-00006.json", **changes)
    faults = invariants.same_results(invariants.journal(study), undisturbed)
    assert faults == [f"trial-00006.json: {next(iter(changes))} differs"]


def test_what_one_study_alone_says_is_seen():
    now, undisturbed = ({"trial-6": json.dumps(said).encode()} for said in ({"number": 6, "more": 1}, {"number": 6}))
    assert invariants.same_results(now, undisturbed) == ["trial-6: more differs"]
    assert invariants.same_results(now, {}) == ["trial-6 is in one only"]


def test_another_time_is_none(study):
    undisturbed = invariants.journal(study)
    edited(study / "journal" / "trial-00006.json", started=1.25, finished=7.5, proposing=0.25)
    assert invariants.same_results(invariants.journal(study), undisturbed) == []


@pytest.mark.parametrize(
    "statement",
    [
        "update trials set state = 'RUNNING' where number = 5",
        "delete from trials where number = 7",
    ],
)
def test_an_optuna_that_disagrees_is_seen(study, statement):
    execute(study / "study.db", statement)
    assert len(invariants.optuna_agrees(study)) == 1


TRIAL_5 = "(select run_uuid from tags where key = 'trial' and value = '5')"


@pytest.mark.parametrize(
    "statement",
    [
        f"update runs set lifecycle_stage = 'deleted' where run_uuid in {TRIAL_5}",
        f"update runs set status = 'FAILED' where run_uuid in {TRIAL_5}",
        f"update latest_metrics set value = 0.25 where key = 'accuracy' and run_uuid in {TRIAL_5}",
        f"update tags set value = '4' where key = 'trial' and run_uuid in {TRIAL_5}",
        "update runs set status = 'KILLED' where run_uuid in (select run_uuid from tags where value = 'study')",
    ],
)
def test_an_mlflow_that_disagrees_is_seen(study, statement):
    execute(study.parent / "mlflow.db", statement)
    assert len(invariants.mlflow_agrees(study)) == 1


@pytest.mark.parametrize(
    "name",
    [
        ".study.json.123.0a1b2c3d.tmp", ".export-0a1b.partial", ".write-123", "begun-trial-00003", "begun-0a-1.now",
        "pending-trial-00003.json",
        "study.db-journal", "mlflow.db-wal", ".mlflow.db.123.tmp", "mlflow.db.broken-1",
    ],
)  # fmt: skip
def test_left_overs_are_seen(study, name):
    (study / "journal" / name).write_text("")
    assert len(invariants.nothing_left_over(study.parent)) == 1


def test_a_broken_export_is_seen(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "best")
    assert invariants.export_is_whole(folder) == []
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    (folder / "notes.txt").write_text("")
    (folder / "policy.json").unlink()
    assert sorted(invariants.export_is_whole(folder)) == [
        "model.safetensors has another hash",
        "notes.txt is in the folder or in the manifest only",
        "policy.json is in the folder or in the manifest only",
    ]


@pytest.mark.parametrize(
    ("stderr", "code", "faults"),
    [
        ("trial 0: 90 %\nprunefront: interrupted; finished trials are kept\n", 130, 0),
        ("prunefront: terminated\n", 143, 0),
        ("prunefront: interrupted\n", 143, 1),
        ("", 130, 1),
        ("Traceback (most recent call last):\nprunefront: terminated\n", 143, 1),
        ("Exception ignored in: <function>\n", 0, 1),
        ("", -9, 0),
    ],
)
def test_what_is_said_at_the_end_is_looked_at(stderr, code, faults):
    assert len(invariants.said_well(stderr, code)) == faults
