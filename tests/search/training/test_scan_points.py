"""An interrupted scan: its points are kept, taken up again, and give the profile of an uninterrupted one."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
from torch import nn

from search.checksum import unsealed
from search.errors import UsageError
from search.metric import Metric
from search.process.kept_work import begin_anew, kept_so_far, what_is_kept
from search.progress import TerminalReporter
from search.training import profile_cache
from search.training.dense_model import dense_model
from search.training.evaluate import PreparedModel
from search.training.profile_cache import brief_note, cached_profile, recalibration_note
from search.training.scan_notes import undefined_note
from search.training.scan_points import KeptPoints
from search.workloads import get_workload
from spaces.sensitivity import Profile, ProfilePoint, RoundingPoint

KEY = ("fine-grained", "conv0.weight", 0.3)


class Counted(nn.Module):
    """Counts the passes it is asked for."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.count = inner, SimpleNamespace(calls=0)

    def __deepcopy__(self, memo):
        copied = Counted(copy.deepcopy(self.inner, memo))
        copied.count = self.count
        return copied.train(self.training)

    def forward(self, x):
        self.count.calls += 1
        return self.inner(x)


@pytest.fixture(scope="module")
def scanned(place, tmp_path_factory) -> SimpleNamespace:
    """What a scan needs, and an uninterrupted profile."""
    workload = get_workload(f"{place / 'tiny.py'}:tiny")
    cache = tmp_path_factory.mktemp("cache")
    dense = dense_model(workload, 0, cache)
    dense = replace(dense, model=Counted(dense.model).eval())
    subject = PreparedModel.of(workload, dense.model)
    before = dense.model.count.calls
    profile = cached_profile(subject, dense, "magnitude-l2", ["fine-grained", "channel"], cache)
    points = sum(len(p) for by in profile.points.values() for p in by.values())
    return SimpleNamespace(
        subject=subject, dense=dense, profile=profile, points=points, calls=dense.model.count.calls - before
    )


@pytest.fixture(autouse=True)
def anew():
    begin_anew()
    yield
    begin_anew()


def scan(scanned, cache, stop: int | None = None, with_=KeyboardInterrupt):
    """The scan into another cache, interrupted at a point; returns profile, points followed and passes made."""
    seen, before = [], scanned.dense.model.count.calls

    def progress(done, total):
        seen.append((done, total))
        if done == stop:
            raise with_

    profile = None
    try:
        profile = cached_profile(
            scanned.subject, scanned.dense, "magnitude-l2", ["fine-grained", "channel"], cache, progress
        )
    except (with_, UsageError):  # of the tests' own code, for which they are to blame
        assert stop
    return profile, seen, scanned.dense.model.count.calls - before


def only(cache, kind: str):
    (path,) = cache.glob(f"profile-*{kind}")
    return path


@pytest.mark.parametrize(("stop", "with_"), [(5, KeyboardInterrupt), (11, SystemExit), (3, ValueError)])
def test_an_interrupted_scan_goes_on(scanned, tmp_path, stop, with_):
    _, seen, first = scan(scanned, tmp_path, stop, with_)
    total = seen[0][1]
    assert len(only(tmp_path, ".points.jsonl").read_text().splitlines()) == stop
    if with_ is KeyboardInterrupt:
        assert what_is_kept() == f"{stop} of {total} points of the scan are kept"
    profile, seen, second = scan(scanned, tmp_path)
    assert replace(profile, seconds=0) == replace(scanned.profile, seconds=0)
    assert [done for done, _ in seen] == list(range(1, total + 1))
    assert first + second < scanned.calls + 30  # the dense passes twice, no point twice
    assert second < scanned.calls
    assert not list(tmp_path.glob("*.points.jsonl"))
    assert Profile.from_json(unsealed(only(tmp_path, ".json").read_text())) == profile
    assert scan(scanned, tmp_path) == (profile, [], 0)


def test_interrupted_twice_and_by_a_cut_line(scanned, tmp_path):
    """Every part of the file that is no point is passed over: what it should have said is scanned again."""
    scan(scanned, tmp_path, 4)
    path = only(tmp_path, ".points.jsonl")
    path.write_bytes(path.read_bytes()[:-20])
    scan(scanned, tmp_path, 7)
    lines = path.read_bytes().splitlines()
    assert len(lines) == 8 and not lines[3].endswith(b"}")
    foreign = [b"", b"[1]", b"5", b"{}", b"\xff\xfe", b'{"granularity": "channel"}', b"[" * 100_000]
    wrong = json.loads(lines[0])
    for change in ({"level": "a"}, {"level": [1]}, {"layer": 3}, {"seconds": None}, {"point": {}}, {"point": 4}):
        foreign.append(json.dumps({**wrong, **change}).encode())
    for change in ({"loss": "low"}, {"sparsity": 7}, {"accuracy": True}, {"more": 1}):
        foreign.append(json.dumps({**wrong, "point": {**wrong["point"], **change}}).encode())
    rounded = {"bits": 8, "loss": 1.0, "accuracy": 0.5, "recalibrated_loss": 1.0, "recalibrated_accuracy": 0.5}
    for bits, level in ((8, 4), (9, 9), (32, 32), ("8", 8)):
        line = {**wrong, "granularity": "rounding", "level": level, "point": {**rounded, "bits": bits}}
        foreign.append(json.dumps(line).encode())
    foreign.append(lines[0].replace(b'"loss": ', b'"loss": NaN, "old": '))
    path.write_bytes(b"\n".join([*foreign, *lines]))
    assert not {key for key in KeptPoints(path.with_name(path.name.split(".")[0])).known if key[0] == "rounding"}
    profile, _, _ = scan(scanned, tmp_path)
    assert replace(profile, seconds=0) == replace(scanned.profile, seconds=0)


def test_a_profile_without_rounding_is_completed_and_an_interruption_of_that_goes_on(scanned, tmp_path):
    """Nothing is scored twice, and what is known of other bits stays."""

    def completed(*bits: int, stop: int | None = None):
        before, seen = scanned.dense.model.count.calls, []

        def progress(done, total):
            seen.append((done, total))
            if done == stop:
                raise KeyboardInterrupt

        how = (scanned.subject, scanned.dense, "magnitude-l2", ["fine-grained", "channel"], tmp_path, progress)
        try:
            profile = cached_profile(*how, bits=bits)
        except KeyboardInterrupt:
            profile = None
        return profile, seen, scanned.dense.model.count.calls - before

    old, layers = scan(scanned, tmp_path)[0], len(scanned.subject.network.layer_names)
    assert completed(8, 4, stop=scanned.points + 3)[0] is None
    assert len(only(tmp_path, ".points.jsonl").read_text().splitlines()) == 3
    profile, seen, calls = completed(8, 4)
    assert seen[-1] == (len(seen), scanned_points(old) + 2 * layers)
    assert replace(profile, rounding={}, seconds=0) == replace(old, seconds=0) and profile.seconds > old.seconds
    assert {tuple(p.bits for p in points) for points in profile.rounding.values()} == {(8, 4)}
    assert calls < scanned.calls / 2 and not list(tmp_path.glob("*.points.jsonl"))
    assert completed(4) == (profile, [], 0) == completed(32) == completed()
    more = completed(3)[0]
    assert {tuple(p.bits for p in points) for points in more.rounding.values()} == {(8, 4, 3)}
    assert all(points[:2] == profile.rounding[layer] for layer, points in more.rounding.items())
    assert Profile.from_json(unsealed(only(tmp_path, ".json").read_text())) == more


def test_a_deep_network_is_scanned_briefly_until_it_was_scanned_wholly(scanned, tmp_path, monkeypatch):
    monkeypatch.setattr(profile_cache, "DEEP", len(scanned.subject.network.prunable) - 1)

    def profile(*bits: int, whole: bool = False) -> tuple[Profile, int]:
        before = scanned.dense.model.count.calls
        how = (scanned.subject, scanned.dense, "magnitude-l2", ["fine-grained", "channel"], tmp_path)
        return cached_profile(*how, bits=bits, whole=whole), scanned.dense.model.count.calls - before

    brief, calls = profile()
    assert brief.brief and 0 < calls < scanned.calls / 3
    assert {len(points) for by_layer in brief.points.values() for points in by_layer.values()} == {4}
    assert "brief scan of a network of more than" in brief_note(brief) and brief_note(scanned.profile) is None
    rounded = profile(8, 4)[0]
    assert {tuple(p.bits for p in points) for points in rounded.rounding.values()} == {(4,)}
    assert repr(rounded.points) == repr(brief.points) and rounded.reference == brief.reference
    assert [profile(*bits)[1] for bits in ((8, 4), (4, 6, 32), (32,))] == [0, 0, 0]
    both = profile(3)[0]
    assert {tuple(p.bits for p in points) for points in both.rounding.values()} == {(4, 3)}
    assert all(points[:1] == rounded.rounding[layer] for layer, points in both.rounding.items())
    whole = profile(whole=True)[0]
    assert replace(whole, seconds=0) == replace(scanned.profile, seconds=0)
    assert profile() == profile(whole=True) == (whole, 0)
    assert len([*tmp_path.glob("profile-*.json")]) == 2
    monkeypatch.undo()
    assert profile() == (whole, 0)


def scanned_points(profile: Profile) -> int:
    """Of groups each once."""
    return sum(len({*by.values()}) * len(next(iter(by.values()))) for by in profile.points.values())


def test_a_point_comes_back_as_it_was(tmp_path):
    nan, path = float("nan"), tmp_path / "profile-a.json"
    point = ProfilePoint(0.1 + 0.2, 1 / 3, 0.25, float("inf"), nan)
    with KeptPoints(path) as points:
        points.keep(KEY, point)
    found = KeptPoints(path).known[KEY]
    assert (found.sparsity, found.loss, found.accuracy) == (0.1 + 0.2, 1 / 3, 0.25)
    assert repr((found.recalibrated_loss, found.recalibrated_accuracy)) == "(nan, nan)"
    rounded, key = RoundingPoint(6, 1 / 3, 0.25, 0.5, 0.75), ("rounding", "conv0.weight", 6)
    with KeptPoints(path) as points:
        points.keep(key, rounded)
    assert KeptPoints(path).known[key] == rounded and len(KeptPoints(path).known) == 2


def test_seconds_add_up(tmp_path, monkeypatch):
    now = [10.0]
    monkeypatch.setattr("search.training.scan_points.time.perf_counter", lambda: now[0])
    path = tmp_path / "cache" / "profile-a.json"
    for _ in range(2):
        with KeptPoints(path) as points:
            now[0] += 2.5
            points.keep(KEY, ProfilePoint(0.25, 1.0, 0.5, 1.0, 0.5))
    assert KeptPoints(path).seconds == 5.0


class TestKept:
    def test_of_work_that_ended_nothing_is_said(self):
        with kept_so_far(lambda: "a"):
            with kept_so_far(lambda: "b"):
                assert what_is_kept() == "b"
            assert what_is_kept() == "a"
        with pytest.raises(ValueError, match="no"), kept_so_far(lambda: "c"):
            raise ValueError("no")
        assert what_is_kept() is None

    @pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
    def test_of_interrupted_work_it_is_still_said(self, end):
        with pytest.raises(end), kept_so_far(lambda: "a"), kept_so_far(lambda: "b"):
            raise end
        assert what_is_kept() == "b"

    @pytest.mark.parametrize("command", ["scan", "search"])
    @pytest.mark.parametrize("phase", ["dense", "scan"])
    def test_the_last_line_says_what_is_kept(self, main, place, tmp_path, monkeypatch, command, phase):
        workload = f"{place / 'tiny.py'}:tiny"
        wanted = "training the dense model" if phase == "dense" else "sensitivity scan"
        steps = []

        @contextmanager
        def stage(self, label):
            yield progress if wanted in label else lambda done, total: None

        def progress(done, total):
            steps.append(done)
            if done == 3:
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(TerminalReporter, "stage", stage)
        reply = main(command, "--workload", workload, "--root", tmp_path)
        assert reply.code == 130 and steps == [1, 2, 3]
        said = (
            "no step of the dense model's training is kept"
            if phase == "dense"
            else r"3 of \d\d points of the scan are kept"
        )
        last = reply.err.splitlines()[-1]
        if command == "search":
            assert re.match(f"prunefront: interrupted; {said}, resume with: prunefront search --workload", last)
        else:
            assert re.fullmatch(f"prunefront: interrupted; {said}: run the same command again", last)


def test_too_few_examples_are_told_in_one_line():
    few = Profile("", 32, 0.1, 1.0, {}, 0.0, 3.5, 0.0625, too_few=True)
    assert recalibration_note(few) == (
        "BatchNorm is not recalibrated in the scan: 32 calibration examples are too few, over which it takes the "
        "unpruned network from 100.0 % to 6.2 %"
    )
    said = recalibration_note(few, Metric("mAP", low=0, high=40))
    assert said.endswith("takes the unpruned network from mAP 40 to mAP 2.5")
    assert recalibration_note(replace(few, too_few=False)) is None
    assert "one" not in recalibration_note(Profile("", 1, 0.1, 1.0, {}, 0.0, too_few=True))


UNDEFINED = """
import torch
from tiny import changed

def share(outputs, targets):
    right = (outputs.argmax(1) == targets).float().mean()
    return float("nan") if len(targets) == 60 and right < 0.5 else float(right)

def loss(outputs, targets):
    lost = torch.nn.functional.cross_entropy(outputs, targets)
    return lost * float("nan") if len(targets) == 60 and lost > 2 else lost

def undefined():
    return changed(name="undefined", metric=share, loss=loss)
"""


def test_numbers_that_only_the_scan_finds_undefined_are_told_once(main, place, tmp_path):
    (place / "undefined.py").write_text(UNDEFINED)
    given = "--workload", "undefined.py:undefined", "--root", tmp_path
    for words in (("scan",), ("search", "--trials", 1, "--finalists", 0, "--max-size", 0.8)):
        reply = main(*words, *given)
        assert reply.code == 0, reply.err
        (said,) = (line for line in reply.err.splitlines() if "no finite" in line)
        assert re.match(
            r"the scan found no finite loss and accuracy with conv\d.weight pruned to \d\d\.\d % \(fine-grained\) and "
            r"at \d+ further points: ",
            said,
        )
        assert said.endswith("such a loss counts as the largest of its layer")


def test_of_finite_numbers_nothing_is_said_and_a_single_point_is_named():
    nan, fine = float("nan"), ProfilePoint(0.5, 1.0, 0.5, 1.0, 0.5)
    brief = replace(fine, loss=nan, accuracy=nan)
    points = {"channel": {"a": (brief, replace(fine, sparsity=0.75))}}
    profile = Profile("", 1, 0.1, 1.0, points, 0.0, rounding={"b": (RoundingPoint(8, nan, nan, 1.0, 0.5),)})
    assert undefined_note(profile) is None
    found = replace(profile, rounding={"b": (RoundingPoint(4, 1.0, 0.5, float("inf"), 0.5),)})
    assert undefined_note(found) == (
        "the scan found no finite loss with b rounded to 4 bits: let it be a bad number where it is undefined; such a "
        "loss counts as the largest of its layer"
    )
    found = replace(profile, points={"channel": {"a": (fine, replace(fine, sparsity=0.75, recalibrated_accuracy=nan))}})
    assert undefined_note(found, Metric("mAP", low=0, high=40)) == (
        "the scan found no finite mAP with a pruned to 75.0 % (channel): let it be a bad number where it is undefined"
    )


def _a_link(place):
    place.with_name("thesis.txt").write_text("my thesis")
    place.symlink_to("thesis.txt")


@pytest.mark.parametrize("plant", [_a_link, os.mkfifo, os.mkdir], ids=["link", "pipe", "folder"])
def test_what_is_no_file_of_points_is_put_aside_and_never_written(tmp_path, plant):
    profile = tmp_path / "profile-1.json"
    plant(tmp_path / "profile-1.points.jsonl")
    with KeptPoints(profile) as points:
        assert points.known == {}
        points.keep(KEY, ProfilePoint(0.25, 0.5, 0.75, 0.5, 0.75))
    assert list(KeptPoints(profile).known) == [KEY]
    assert not (tmp_path / "thesis.txt").exists() or (tmp_path / "thesis.txt").read_text() == "my thesis"
