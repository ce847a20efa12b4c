"""What a hand or a disk may do to the entries of a journal and to a study's record: refused by name, or repaired."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from search.config import make_config
from search.errors import Refused, UsageError
from search.files import read_bytes
from search.records import to_plain
from search.results.comparison import read_comparison
from search.store.folder import StudyFolder, find_study
from search.store.journal import Journal
from search.store.study_record import new_record
from search.study.start import run_search
from search.training.attempts import Attempt
from spaces.sensitivity import Profile

GOLDEN = Path(__file__).parents[1] / "golden"
TRIAL = json.loads((GOLDEN / "journal-trial-v1.json").read_text())
FINAL = json.loads((GOLDEN / "journal-final-v1.json").read_text())
STUDY = json.loads((GOLDEN / "study-v1.json").read_text())
DELETED = object()


def changed(data: dict, path: str, value: object) -> dict:
    """A copy of the data with one place changed; `path` is `result.accuracy` and the like."""
    data = json.loads(json.dumps(data))
    *way, last = path.split("/")
    inner = data
    for step in way:
        inner = inner[int(step) if isinstance(inner, list) else step]
    last = int(last) if isinstance(inner, list) else last
    if value is DELETED:
        del inner[last]
    else:
        inner[last] = value
    return data


HAND_EDITS = {
    "another number": ("number", 8, "its content is that of trial-00008.json"),
    "number true": ("number", True, "number must be a whole number from 0 to 999999, got True"),
    "number below 0": ("number", -1, "got -1"),
    "number of text": ("number", "7", "got '7'"),
    "number without end": ("number", 10**400, "number must be a whole number"),
    "percent": ("result/accuracy", 5.0, "accuracy must be a share, 0 to 1, got 5.0"),
    "below nothing": ("result/accuracy", -0.25, "got -0.25"),
    "no accuracy": ("result/accuracy", None, "accuracy must be a share, 0 to 1, got None"),
    "text": ("result/accuracy", "0.875", "got '0.875'"),
    "true": ("result/accuracy", True, "got True"),
    "huge": ("result/accuracy", 10**400, "accuracy must be a share"),
    "loss": ("result/loss", "low", "loss must be a number, got 'low'"),
    "not a number": ("result/accuracy", float("nan"), "got nan"),
    "no shares": ("result/shares", None, "it is complete and has no shares"),
    "share of text": ("result/shares/encoded", "0.24", "share encoded must be from 0 to 2, got '0.24'"),
    "share too large": ("result/shares/nonzero", 7, "share nonzero must be from 0 to 2, got 7"),
    "share below 0": ("result/shares/macs", -0.5, "share macs"),
    "unknown state": ("result/state", "completed", "unknown state 'completed': did you mean 'complete'"),
    "state of a list": ("result/state", [], "unknown state []"),
    "curve of text": ("result/curve", ["x"], "damaged record"),
    "curve of words": ("result/curve/0/accuracy", "x", "curve's accuracy must be a number, got 'x'"),
    "no reason": ("result/reason", 5, "reason must be text, got 5"),
    "seconds": ("result/seconds", {"training": -1}, "seconds of 'training' must be a number >= 0, got -1"),
    "achieved": ("result/achieved", {"conv0.weight": 1.5}, "achieved of 'conv0.weight' must be a share"),
    "achieved list": ("result/achieved", [], "achieved must be an object, got []"),
    "ended late": ("result/ended_at", 1.5, "ended_at must be a share, 0 to 1, got 1.5"),
    "file of text": ("result/file", "x", "damaged record"),
    "file without bound": ("result/file", {"bytes": 5, "planned": 6}, "damaged record"),
    "file of parts": ("result/file", {"bytes": 5.5, "planned": 6, "bound": 7}, "file's bytes must be a whole number"),
    "empty file": ("result/file", {"bytes": 0, "planned": 0, "bound": 0}, "file's bytes must be at least 1"),
    "file too large": ("result/file", {"bytes": 8, "planned": 6, "bound": 7}, "rising order, got 8, 6, 7"),
    "given up": ("result/file", {"bytes": 5, "planned": 6, "bound": 7, "given_up": -1}, "file's given_up must be"),
    "sparsity": ("policy/sparsity", {"conv0.weight": 1.25}, "0 <= sparsity < 1, got 1.25"),
    "sampled": ("sampled", {"conv0.weight": None}, "sampled of 'conv0.weight' must be a share"),
    "params": ("params", [1], "params must be an object, got [1]"),
    "scores": ("scores", {"predicted": "x"}, "score 'predicted' must be a number, got 'x'"),
    "target": ("target", 25, "target must be a share, 0 to 1, got 25"),
    "before": ("started", -5, "started must be a number >= 0, got -5"),
    "never": ("finished", float("inf"), "finished must be a number >= 0, got inf"),
    "latency": ("latency", "fast", "latency must be a number >= 0, got 'fast'"),
    "rounds": ("policy/schedule/rounds", 10**9, "schedule rounds must be at most 1000, got 1000000000"),
    "nested": ("params", json.loads("[" * 70 + "]" * 70), "nested too deeply"),
    "worker": ("worker", 2, "worker must be text, got 2"),
    "without result": ("result", DELETED, "damaged record: 'result'"),
    "policy of numbers": ("policy", [1], "a policy must be a mapping"),
    "knew of text": ("knew", "0-3", "knew must be an object of finished and running"),
    "knew of half": ("knew", {"finished": "0-3"}, "knew must be an object of finished and running"),
    "knew of numbers": ("knew", {"finished": [0, 1], "running": ""}, "knew's finished must be rising numbers"),
    "knew backwards": ("knew", {"finished": "3-0", "running": ""}, "rising numbers such as '0-3,7', got '3-0'"),
    "knew in parts": ("knew", {"finished": "0-3,4", "running": ""}, "got '0-3,4'"),
    "knew one as two": ("knew", {"finished": "3-3", "running": ""}, "got '3-3'"),
    "knew with gaps": ("knew", {"finished": "1,,3", "running": ""}, "got '1,,3'"),
    "knew without end": ("knew", {"finished": "0-6", "running": "9-1000000"}, "running ends with must be a whole"),
    "knew itself": ("knew", {"finished": "0-6", "running": "7"}, "knew's running must be other trials than 7 itself"),
    "knew both": ("knew", {"finished": "0-5", "running": "2,6"}, "finished and running must be different trials"),
}


@pytest.mark.parametrize("edit", HAND_EDITS)
def test_a_hand_edited_trial_is_refused_by_name(tmp_path, edit):
    path, value, said = HAND_EDITS[edit]
    (tmp_path / "trial-00007.json").write_text(json.dumps(changed(TRIAL, path, value)))
    with pytest.raises(Refused) as raised:
        Journal(tmp_path).trials()
    text = str(raised.value)
    assert said in text and "trial-00007.json" in text and "delete it" in text and "\n" not in text


def test_losses_that_are_no_numbers_are_what_a_study_writes(tmp_path):
    entry = changed(changed(TRIAL, "result/curve/0/train_loss", float("nan")), "result/loss", float("inf"))
    (tmp_path / "trial-00007.json").write_text(json.dumps(entry))
    (record,) = Journal(tmp_path).trials()
    assert record.result.loss == float("inf") and record.result.curve[0].train_loss != record.result.curve[0].train_loss


@pytest.mark.parametrize(
    ("path", "value"),
    [("number", 0), ("result/accuracy", 0), ("result/accuracy", 1 + 5e-7), ("result/shares/macs", 0), ("started", 0),
     ("result/shares/encoded", 2.0), ("result/loss", -0.25), ("result/ended_at", 0.0), ("latency", None),
     ("scores", {}), ("knew", {"finished": "", "running": ""}), ("knew", {"finished": "0-4,6", "running": "5,8"}),
     ("result/file", {"bytes": 5, "planned": 5, "bound": 5, "given_up": 0})],
)  # fmt: skip
def test_values_at_the_ends_of_their_ranges_are_read(tmp_path, path, value):
    entry = changed(TRIAL, path, value)
    (tmp_path / f"trial-{entry['number']:05d}.json").write_text(json.dumps(entry))
    (record,) = Journal(tmp_path).trials()
    found = json.loads(json.dumps(to_plain(record)))
    for step in path.split("/"):
        found = found[step]
    assert found == value


FINAL_EDITS = {
    "digest": ("digest", "0123456789abcdef", "its content is that of final-0123456789abcdef-3.json"),
    "climbing digest": ("digest", "../../x", "its content is that of final-../../x-3.json"),
    "seed": ("seed", 4, "final-2140c9f9a7c700a0-4.json"),
    "huge seed": ("seed", 2**40, "seed must be a whole number"),
    "finished": ("finished", None, "finished must be a number >= 0, got None"),
    "worker": ("worker", 2, "worker must be text, got 2"),
    "reason": ("result/reason", 5, "damaged record: "),
    "complete": ("result/state", "complete", "accuracy must be a share, 0 to 1, got None"),
}


@pytest.mark.parametrize("edit", FINAL_EDITS)
def test_a_hand_edited_final_is_refused_by_name(tmp_path, edit):
    path, value, said = FINAL_EDITS[edit]
    (tmp_path / "final-2140c9f9a7c700a0-3.json").write_text(json.dumps(changed(FINAL, path, value)))
    with pytest.raises(Refused, match=re.escape(said)) as raised:
        Journal(tmp_path).finals()
    assert "final-2140c9f9a7c700a0-3.json: " in str(raised.value)


def test_a_complete_final_has_a_test_accuracy(tmp_path):
    entry = {**FINAL, "result": TRIAL["result"], "test_accuracy": 1.75, "test_loss": 0.5}
    (tmp_path / "final-2140c9f9a7c700a0-3.json").write_text(json.dumps(entry))
    with pytest.raises(Refused, match=r"test_accuracy must be a share, 0 to 1, got 1\.75"):
        Journal(tmp_path).finals()


def numbered(folder: Path, *numbers: int) -> Journal:
    for number in numbers:
        (folder / f"trial-{number:05d}.json").write_text(json.dumps({**TRIAL, "number": number}))
    return Journal(folder)


def test_an_entry_twice_or_far_beyond_the_others_is_refused(tmp_path):
    journal = numbered(tmp_path, 0, 1, 3)  # an entry deleted to be run again is no damage
    assert [trial.number for trial in journal.trials()] == [0, 1, 3]
    (tmp_path / "trial-00003 (copy).json").write_text((tmp_path / "trial-00003.json").read_text())
    with pytest.raises(Refused, match=r"trial-00003 \(copy\)\.json: its content is that of trial-00003\.json"):
        journal.trials()
    (tmp_path / "trial-00003 (copy).json").unlink()
    numbered(tmp_path, 999_999)
    with pytest.raises(
        Refused, match=r"trial-999999\.json exists, but 999,996 trials before it are missing; delete it"
    ):
        journal.trials()


def test_numbers_of_six_digits_come_behind_those_of_five(tmp_path, monkeypatch):
    monkeypatch.setattr("search.store.journal.FEW", 10**6)
    assert [trial.number for trial in numbered(tmp_path, 100_000, 99_999).trials()] == [99_999, 100_000]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"x", b"\xff\xfe", b"-5", b"9" * 5000, b"1.5", b"[" * 100_000, b"[{}]",
        b'[{"step": 1e999, "steps": 5, "how": "killed"}]',
    ],
    ids=["empty", "letter", "bytes", "negative", "long", "fraction", "nested", "part", "infinite"],
)  # fmt: skip
def test_marks_of_begun_evaluations_that_cannot_be_read_count_as_none(tmp_path, content):
    (tmp_path / "begun-0123456789abcdef-3").write_bytes(content)
    assert Attempt(tmp_path, "0123456789abcdef-3").deaths == ()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file_is_refused_and_waits_for_nobody(tmp_path, make):
    make(tmp_path / "trial-00007.json")
    with pytest.raises(Refused, match="it is a folder, pipe or device, not a file"):
        Journal(tmp_path).trials()


def test_a_file_of_holes_is_refused_unread(tmp_path):
    with (tmp_path / "trial-00007.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(Refused, match=r"1,099,511,627,776 bytes, and can have at most"):
        Journal(tmp_path).trials()


STUDY_EDITS = {
    "no id": ("study_id", DELETED, "'study_id' is missing or of a wrong type"),
    "id": ("study_id", "x' or '1' = '1", "'study_id' is not valid"),
    "identity": ("identity", [], "'identity' is missing or of a wrong type"),
    "recipe": ("identity/recipe", 5, "'recipe' is missing or has no epochs"),
    "no recipe": ("identity/recipe", DELETED, "'recipe' is missing or has no epochs"),
    "epochs": ("identity/recipe/trial_epochs", 0, "'recipe' is missing or has no epochs"),
    "seeds": ("seeds", "four", "'seeds' is missing or of a wrong type"),
    "seeds below 0": ("seeds", -1, "'seeds' must be from 0"),
    "seeds true": ("seeds", True, "'seeds' is missing or of a wrong type"),
    "place": ("criterion_place", 5, "'criterion_place' is missing or of a wrong type"),
    "accuracy": ("least_accuracy", "x", "'least_accuracy' is missing or of a wrong type"),
    "environment": ("environment", {"threads": "1"}, "'environment' has no number of 'threads'"),
    "later version": ("version", 2, "version is not 1"),
    "nested": ("identity", json.loads("[" * 70 + "]" * 70), "nested too deeply"),
}


@pytest.mark.parametrize("edit", STUDY_EDITS)
def test_a_hand_edited_record_is_refused_with_the_remedy(tmp_path, edit):
    path, value, said = STUDY_EDITS[edit]
    folder = StudyFolder(tmp_path, "mine")
    folder.path.mkdir()
    (folder.path / "study.json").write_text(json.dumps(changed(STUDY, path, value)))
    with pytest.raises(Refused) as raised:
        folder.read_record()
    assert said in str(raised.value) and "put back a copy of it" in str(raised.value)


def test_parts_that_may_be_missing_may_be_null(tmp_path):
    folder = StudyFolder(tmp_path, "mine")
    folder.path.mkdir()
    (folder.path / "study.json").write_text(
        json.dumps({**STUDY, "environment": None, "least_accuracy": None, "seeds": 0})
    )
    assert "environment" not in folder.read_record() and folder.config.trials == 8


def test_results_without_a_record_are_nobodys(tmp_path):
    """A study.json that is gone is never made anew over the results of what it was of."""
    folder = StudyFolder(tmp_path, "mine")
    folder.write_record(new_record(make_config(study="mine"), STUDY["identity"]))
    folder.journal.folder.mkdir()
    (folder.path / "study.json").unlink()
    final = folder.journal.folder / "final-2140c9f9a7c700a0-3.json"
    final.write_text(json.dumps(FINAL))
    with pytest.raises(Refused, match="holds results without"):
        folder.refuse_orphan()
    final.unlink()
    numbered(folder.journal.folder, 0)
    for begin in (
        lambda: find_study(tmp_path, "mine"),
        lambda: run_search(make_config(study="mine", root=str(tmp_path), trials=1)),
    ):
        with pytest.raises(Refused, match=r"holds results without the .*study\.json.*or name a new --study"):
            begin()
    assert not folder.exists
    (folder.journal.folder / "trial-00000.json").unlink()
    with pytest.raises(UsageError, match="unknown study"):
        find_study(tmp_path, "mine")


COMPARED = json.loads((GOLDEN / "comparison-v4.json").read_text())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("references/dense/test_accuracy", "x"), ("references/dense/test_accuracy", 5.0),
        ("references/dense at 8 bits/size_encoded", None), ("references", []), ("references/dense at 5.5 bits", {}),
        ("references/x", COMPARED["references"]["dense"]), ("bits", {"uniform": 9}), ("bits", {"uniform": "8"}),
        ("baselines", ["uniform"]), ("baselines", {"uniform": 5}), ("finalists", [5]), ("finalists", 5),
        ("granularity", {}), ("latency/dense/seconds", 10**400), ("latency/networks", 5), ("test_examples", 0),
        ("test_examples", 37.5), ("references/dense/size_nonzero", -0.25), ("references/dense/test_accuracy", True),
        ("references", DELETED), ("bits", [8]), ("matched", 5), ("matched", {"fedcba9876543210": {"rule": "lamp"}}),
        ("matched", {"fedcba9876543210": {"rule": 5, "digest": "a"}}),
        ("matched", {"a": {"rule": "lamp", "digest": "a"}}),
        ("named", ["a"]), ("named", 5),
    ],
)  # fmt: skip
def test_a_hand_edited_comparison_is_refused(tmp_path, path, value):
    folder = StudyFolder(tmp_path, "mine")
    folder.path.mkdir()
    (folder.path / "comparison.json").write_text(json.dumps(changed(COMPARED, path, value)))
    with pytest.raises(Refused, match=r"damaged .*comparison\.json.*delete it"):
        read_comparison(folder)


def test_a_result_of_another_network_is_refused_by_name(tmp_path):
    """Before anything is trained: a hand-edited policy, or another network under the same study."""
    from pruning import trace_channels
    from search import get_workload

    workload = get_workload("digits")
    network = trace_channels(workload.build_model(), workload.example_input).network
    journal = Journal(tmp_path)
    name = network.layers[0].name
    own = changed(changed(TRIAL, "policy/sparsity", {name: 0.25}), "policy/granularity", "fine-grained")
    (tmp_path / "trial-00007.json").write_text(json.dumps(own))
    journal.require_layers(network)
    for part in ("sparsity", "removal"):
        (tmp_path / "trial-00007.json").write_text(json.dumps(changed(own, f"policy/{part}", {f"{name}x": 0.25})))
        with pytest.raises(
            Refused, match=rf"trial-00007\.json: unknown layer '{name}x': did you mean '{name}'.*delete"
        ):
            journal.require_layers(network)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="a file whose size is told as 0")
def test_no_more_than_the_most_bytes_are_read(tmp_path):
    (tmp_path / "five").write_bytes(b"12345")
    assert read_bytes(tmp_path / "five", 5) == b"12345"
    with pytest.raises(ValueError, match="it has 5 bytes, and can have at most 4"):
        read_bytes(tmp_path / "five", 4)
    with pytest.raises(ValueError, match="it has more than 4 bytes"):
        read_bytes(Path("/proc/self/environ"), 4)


CACHED = json.loads((GOLDEN / "profile-v1.json").read_text())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("points", 5), ("points", {"fine-grained": []}), ("examples", "x"), ("dense_accuracy", -1), ("model", 5),
        ("dense_loss", "x"), ("seconds", True), ("more", 1), ("points/fine-grained/conv0.weight", []),
        ("points/fine-grained/conv0.weight/0/sparsity", 1.5), ("points/fine-grained/conv0.weight/0/loss", "x"),
        ("points/fine-grained/conv0.weight/0/sparsity", None), ("points/fine-grained/conv0.weight/0", [1]),
        ("dense_recalibrated_loss", 0.25), ("dense_recalibrated_accuracy", 0.25), ("too_few", 1),
        ("points/fine-grained/conv0.weight/0/sparsity", 0.95), ("points", DELETED),
    ],
)  # fmt: skip
def test_a_hand_edited_profile_is_no_profile(path, value):
    first = next(iter(CACHED["points"]["fine-grained"]))
    with pytest.raises(ValueError, match="scan again"):
        Profile.from_json(json.dumps(changed(CACHED, path.replace("conv0.weight", first), value)))


def test_a_profile_of_other_layers_or_granularities_is_refused():
    golden, own = Profile.from_json(json.dumps(CACHED)), CACHED["points"]
    golden.require(own, {name for by in own.values() for name in by})
    with pytest.raises(ValueError, match=r"unknown layer.*: scan again"):
        golden.require(own, {"other.weight"})
    with pytest.raises(ValueError, match=r"the profile is of .*: scan again"):
        golden.require(["kernel"], {})


def test_what_a_scan_may_find_is_a_profile():
    more = {"dense_recalibrated_loss": None, "dense_recalibrated_accuracy": 0.25, "too_few": True}
    assert Profile.from_json(json.dumps({**CACHED, **more})).too_few
    first = next(iter(CACHED["points"]["fine-grained"]))
    twice = changed(CACHED, f"points/fine-grained/{first}/0/sparsity", 0.9)  # two levels of a small layer are one
    assert [point.sparsity for point in Profile.from_json(json.dumps(twice)).points["fine-grained"][first]] == [0.9] * 2
