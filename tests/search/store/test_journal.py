"""The journal and its records: golden files, round trips, damage, and a crash in the middle of a write."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from search.errors import EnvironmentProblem, Refused
from search.files import remove_temporaries, write_durably
from search.knew import Knew, Numbers
from search.records import CurvePoint, FinalRecord, PendingTrial, TrialRecord, TrialResult
from search.results.comparison import Baseline, Comparison, Reference, read_comparison, write_comparison
from search.store.folder import StudyFolder
from search.store.journal import Journal
from spaces.cost.footprint import RelativeCost
from spaces.cost.timing import TimedNetwork, TimedNetworks
from spaces.policy import PruningPolicy
from spaces.schedule import Schedule

GOLDEN = Path(__file__).parents[2] / "golden"
SHARES = {"encoded": 0.24, "nonzero": 0.125, "macs": 0.5}


def shares() -> RelativeCost:
    return RelativeCost(**{name: SHARES.get(name, 0.0625) for name in RelativeCost.__dataclass_fields__})


def trial_record() -> TrialRecord:
    return TrialRecord(
        number=7,
        origin="lamp",
        params={"size": 0.25, "granularity": "channel", "sparsity.conv0.weight": 0.5},
        policy=PruningPolicy(
            {"conv0.weight": 0.5, "head.weight": 0.0}, "channel", schedule=Schedule("polynomial", 1.5)
        ),
        sampled={"conv0.weight": 0.625},
        target=0.25,
        result=TrialResult(
            "complete",
            None,
            0.875,
            0.5,
            shares(),
            {"conv0.weight": 0.5},
            (CurvePoint(1.0, 0.75, 0.5, 0.875),),
            {"training": 1.5},
        ),
        started=2.0,
        finished=4.5,
        proposing=0.25,
        latency=0.75,
        scores={"predicted": 0.875},
    )


def final_record() -> FinalRecord:
    policy = trial_record().policy
    return FinalRecord(
        policy.digest, 3, policy, TrialResult("failed", "diverged: nan", cause="diverged"), None, None, 9.5
    )


def test_a_trial_is_written_as_in_version_1(tmp_path):
    Journal(tmp_path).write_trial(trial_record())
    (path,) = tmp_path.iterdir()
    assert path.name == "trial-00007.json"
    assert json.loads(path.read_text()) == json.loads((GOLDEN / "journal-trial-v1.json").read_text())


def test_a_final_is_written_as_in_version_1(tmp_path):
    Journal(tmp_path).write_final(final_record())
    (path,) = tmp_path.iterdir()
    assert path.name == f"final-{final_record().digest}-3.json"
    written = json.loads(path.read_text())
    assert written["result"].pop("cause") == "diverged"  # a field of later days, derived where it is missing
    assert written == json.loads((GOLDEN / "journal-final-v1.json").read_text())


def test_records_of_version_1_are_read(tmp_path):
    (tmp_path / "trial-00007.json").write_bytes((GOLDEN / "journal-trial-v1.json").read_bytes())
    (tmp_path / "final-2140c9f9a7c700a0-3.json").write_bytes((GOLDEN / "journal-final-v1.json").read_bytes())
    assert Journal(tmp_path).trials() == [trial_record()]
    assert Journal(tmp_path).finals() == [final_record()]


def test_results_say_which_worker_they_came_from(tmp_path):
    journal = Journal(tmp_path)
    trial, final = replace(trial_record(), worker="2 on node-b"), replace(final_record(), worker="3")
    journal.write_trial(trial)
    journal.write_final(final)
    assert journal.trials() == [trial] and journal.finals() == [final]


def pending_trial() -> PendingTrial:
    params = {"size": 0.25, "granularity": "channel", "preference.conv0.weight": 0.5}
    return PendingTrial(7, "lamp", params, {"predicted": 0.875})


def test_a_pending_trial_is_written_and_read_as_in_version_1_until_its_result_is_there(tmp_path):
    journal, golden = Journal(tmp_path), json.loads((GOLDEN / "pending-trial-v1.json").read_text())
    journal.write_pending(pending_trial())
    (path,) = tmp_path.iterdir()
    assert path.name == "pending-trial-00007.json" and json.loads(path.read_text()) == golden
    assert journal.pending() == [pending_trial()] and journal.trials() == [] and journal.is_empty
    journal.write_trial(trial_record())
    assert journal.pending() == [] and [entry.name for entry in tmp_path.iterdir()] == ["trial-00007.json"]


def test_what_a_trial_knew_is_kept_from_its_proposal_to_its_result(tmp_path):
    journal, knew = Journal(tmp_path), Knew(Numbers.of([0, 1, 2, 5]), Numbers.of([3, 4, 6]))
    journal.write_pending(replace(pending_trial(), knew=knew))
    assert [trial.knew for trial in journal.pending()] == [knew]
    journal.write_trial(replace(trial_record(), knew=knew))
    assert [trial.knew for trial in journal.trials()] == [knew]
    (path,) = tmp_path.iterdir()
    assert json.loads(path.read_text())["knew"] == {"finished": "0-2,5", "running": "3-4,6"}


@pytest.mark.parametrize(
    "text", ["", "{", "5", '{"version": 2}', '{"version": 1, "number": 7}', "\udcff" * 9, '"version": 1, "number": 8']
)
def test_a_pending_trial_that_cannot_be_read_is_none(tmp_path, text):
    whole = (GOLDEN / "pending-trial-v1.json").read_text()
    said = whole.replace('"version": 1,\n "number": 7', text) if 'number": 8' in text else text
    (tmp_path / "pending-trial-00007.json").write_text(said, errors="surrogateescape")
    assert Journal(tmp_path).pending() == []


def test_a_short_run_of_a_static_allocation_is_no_final(tmp_path):
    journal, final = Journal(tmp_path), final_record()
    untested = replace(final, test_accuracy=None, test_loss=None)
    journal.write_short_run(untested)
    assert [path.name for path in tmp_path.iterdir()] == [f"static-{final.digest}.json"]
    assert journal.short_runs() == [untested] and journal.finals() == []
    (tmp_path / f"static-{final.digest}.json").rename(tmp_path / "static-0.json")
    with pytest.raises(Refused, match=r"static-0\.json"):
        journal.short_runs()


def comparison() -> Comparison:
    timed = TimedNetworks(
        "AMD EPYC (AVX2)", 1, 1, 30,
        dense=TimedNetwork(0.5, 0.0625, 1.0, 1.0, 1.0),
        copy=TimedNetwork(0.5, 0.0625, 1.0, 0.9375, 1.125),
        networks={"fedcba9876543210": TimedNetwork(0.25, 0.125, 0.5, 0.4375, 0.625)},
    )  # fmt: skip
    return Comparison(
        {
            "dense": Reference(0.9375, 0.875, 1.0, 1.0),
            "dense at 8 bits": Reference(0.90625, 0.84375, 0.1875, 0.96875),
            "dense at 4 bits": Reference(0.8125, 0.75, 0.09375, 0.78125),
        },
        {"uniform": "0123456789abcdef"}, "fine-grained", ("fedcba9876543210",), timed, 359, {"uniform": 6},
        {"fedcba9876543210": Baseline("lamp", "00112233445566aa")}, ("fedcba9876543210",),
    )  # fmt: skip


def test_a_comparison_is_written_and_read_as_in_version_4(tmp_path):
    folder, golden = StudyFolder(tmp_path, "study"), (GOLDEN / "comparison-v4.json").read_text()
    write_comparison(folder, comparison())
    assert json.loads((folder.path / "comparison.json").read_text()) == json.loads(golden)
    (folder.path / "comparison.json").write_text(golden)
    assert read_comparison(folder) == comparison()


def test_a_comparison_of_version_3_has_all_baselines_at_the_limit(tmp_path):
    folder = StudyFolder(tmp_path, "study")
    folder.path.mkdir()
    (folder.path / "comparison.json").write_bytes((GOLDEN / "comparison-v3.json").read_bytes())
    found = read_comparison(folder)
    assert found == replace(comparison(), matched={}, named=())
    assert found.static == [Baseline("uniform", "0123456789abcdef")]


@pytest.mark.parametrize("version", [1, 2])
def test_comparisons_of_earlier_versions_are_read(tmp_path, version):
    folder = StudyFolder(tmp_path, "study")
    folder.path.mkdir()
    (folder.path / "comparison.json").write_bytes((GOLDEN / f"comparison-v{version}.json").read_bytes())
    found = read_comparison(folder)
    assert (found.dense.test_accuracy, found.granularity) == (0.875, "fine-grained")
    assert found.rounded == {"dense int8": Reference(0.90625, 0.84375, 0.3125, 0.25)}
    assert dict(found.baselines) == {"uniform": "0123456789abcdef"} and found.finalists == ("fedcba9876543210",)
    same = replace(comparison(), references=found.references, test_examples=None, bits={}, matched={}, named=())
    assert found == (replace(same, latency=None) if version == 1 else same)


DAMAGED = (GOLDEN / "comparison-v2.json").read_text().replace('"share": 0.5', '"share": 0.75')
LISTED = json.dumps({**json.loads(DAMAGED), "latency": {**json.loads(DAMAGED)["latency"], "networks": []}})


@pytest.mark.parametrize("text", ["", "{", "[1]", "5", '{"version": 1}', '{"version": 1, "dense": 5}', DAMAGED, LISTED])
def test_a_damaged_comparison_is_refused(tmp_path, text):
    folder = StudyFolder(tmp_path, "study")
    folder.path.mkdir()
    (folder.path / "comparison.json").write_text(text)
    with pytest.raises(Refused, match=r"comparison\.json"):
        read_comparison(folder)


LATER = {
    "statistics", "measuring", "file", "bits", "rate", "device", "precision", "deterministic", "threads", "network",
    "pretrained", "min_score", "workers", "executor", "ray_address", "attempts", "stall", "comparison",
    "epochs", "learning_rate", "batch", "system_metrics",
}  # fmt: skip
"""Keys that records did not have at first: optional on reading."""


def shape(data: object) -> object:
    """Keys down to the leaves; what lies below a layer's or baseline's name, and what came later, does not count."""
    free = {"files", "policy", "params", "sampled", "achieved", "seconds", "baselines", "references", "bits", "matched",
            "shares", "scores", "latency"}  # fmt: skip
    if isinstance(data, dict):
        return {key: None if key in free else shape(value) for key, value in data.items() if key not in LATER}
    return [shape(data[0])] if isinstance(data, list) and data and isinstance(data[0], dict) else None


@pytest.mark.parametrize(
    ("pattern", "golden"),
    [
        ("journal/trial-00000.json", "journal-trial-v1.json"),
        ("comparison.json", "comparison-v4.json"),
        ("study.json", "study-v1-splits.json"),
        ("../../best/manifest.json", "manifest-v1.json"),
    ],
)
def test_a_real_study_writes_the_golden_keys(finished, exported, pattern, golden):
    written = json.loads((finished.path / pattern).read_text())
    assert shape(written) == shape(json.loads((GOLDEN / golden).read_text()))


def test_entries_come_back_by_number(tmp_path):
    journal = Journal(tmp_path)
    for number in (10, 2, 100, 0):
        journal.write_trial(TrialRecord(**{**trial_record().__dict__, "number": number}))
    assert [trial.number for trial in journal.trials()] == [0, 2, 10, 100]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "", lambda text: text[: len(text) // 2], lambda text: "[1]", lambda text: "5",
        lambda text: text.replace('"version": 1', '"version": 2'), lambda text: text.replace('"origin"', '"orgin"'),
        lambda text: text.replace('"policy"', '"polcy"'), lambda text: text.replace('"accuracy"', '"acuracy"'),
        lambda text: '{"version": 1}', lambda text: '{"version": 1, "result": 5}',
        lambda text: text.replace("0.625", "NaN").replace('"sparsity"', '"sparsty"'),
    ],
)  # fmt: skip
def test_a_damaged_entry_is_refused_by_name(tmp_path, damage):
    journal = Journal(tmp_path)
    journal.write_trial(trial_record())
    path = tmp_path / "trial-00007.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(Refused, match=r"trial-00007\.json"):
        journal.trials()


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "trial-00000.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Refused, match=r"trial-00000\.json"):
        Journal(tmp_path).trials()


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_crash_in_the_middle_of_a_write_leaves_the_old_file(tmp_path, monkeypatch, broken):
    path = tmp_path / "journal" / "trial-00000.json"
    write_durably(path, b"old")

    def crash(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, broken, crash)
    with pytest.raises(EnvironmentProblem, match=r"trial-00000\.json.*No space left on device.*free space"):
        write_durably(path, b"new and longer")
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]  # nothing half-written stays, which would fill the disk further


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free space there"), (errno.EDQUOT, "quota"), (errno.EFBIG, "ulimit -f"),
        (errno.EROFS, "choose another place"), (errno.EACCES, "make it writable"), (errno.EIO, "check the disk"),
        (errno.EMFILE, "ulimit -n"), (errno.ENAMETOOLONG, "shorter path"),
    ],
)  # fmt: skip
def test_what_the_disk_refuses_is_said_with_its_cause_and_remedy(tmp_path, monkeypatch, number, remedy):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(EnvironmentProblem) as raised:
        write_durably(tmp_path / "study.json", b"{}")
    said = str(raised.value)
    assert os.strerror(number) in said and remedy in said and "study.json" in said and "\n" not in said
    assert not list(tmp_path.iterdir())


def test_a_file_size_limit_is_no_crash(tmp_path):
    """In a process of its own, since a limit that was lowered stays."""
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom search.files import write_durably\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    write_durably(Path(sys.argv[1], 'entry.json'), b'x' * 2000)\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=60)
    assert ended.stdout.startswith("EnvironmentProblem cannot write") and "ulimit -f" in ended.stdout, ended.stderr
    assert not list(tmp_path.iterdir())


def test_what_killed_processes_left_half_written_is_removed(tmp_path):
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    dead, own = tmp_path / f".a.json.{killed.pid}.0123abcd.tmp", tmp_path / f".b.{os.getpid()}.0123abcd.tmp"
    alive = tmp_path / f".c.{os.getppid()}.0123abcd.tmp"
    others = [tmp_path / ".editor.tmp", tmp_path / "a.json", tmp_path / f".d.json.{killed.pid}.partial"]
    for path in (dead, own, alive, *others):
        path.touch()
    remove_temporaries(tmp_path, of_dead_only=True)
    assert sorted(tmp_path.iterdir()) == sorted([alive, *others])
    remove_temporaries(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(others)
    remove_temporaries(tmp_path / "absent")


def test_a_file_being_written_by_another_thread_is_left_to_it(tmp_path, monkeypatch):
    synced = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (remove_temporaries(tmp_path), synced(fd)))
    write_durably(tmp_path / "entry.json", b"data")
    assert (tmp_path / "entry.json").read_bytes() == b"data"


def test_content_is_synced_before_it_gets_its_name(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(os, "fsync", lambda fd: order.append(os.readlink(f"/proc/self/fd/{fd}")))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("rename"), replace(a, b)))
    write_durably(tmp_path / "entry.json", b"data")
    assert len(order) == 3 and order[1] == "rename"
    assert Path(order[0]).name != "entry.json" and Path(order[2]) == tmp_path.resolve()
