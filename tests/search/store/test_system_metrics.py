"""What the machine does while a study runs, read back from MLflow."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace

import pytest

from search import SearchConfig, run_search
from search.errors import EnvironmentProblem
from search.store import mlflow_record
from search.store.mlflow_place import mlflow_place
from search.store.mlflow_record import LoggedStudy, MlflowRecord
from search.store.mlflow_store import open_store
from search.store.system_metrics import INTERVAL, NODE, SAMPLES, Sample, require_system_metrics, sampled_machine
from search.store.tracker import Tracker

pytest.importorskip("psutil", reason="no psutil: pip install -e '.[system-metrics]'")
CPU = "system/cpu_utilization_percentage"
READ = {
    CPU, "system/system_memory_usage_megabytes", "system/disk_usage_percentage", "system/network_receive_megabytes"
}  # fmt: skip


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setenv(INTERVAL, "0.05")
    for variable in (SAMPLES, NODE):
        monkeypatch.delenv(variable, raising=False)


def threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("prunefront-s")]


def taken(count: int) -> list[Sample]:
    """As many samples, and that of the end."""
    found: list[Sample] = []
    enough = threading.Event()
    with sampled_machine(lambda sample: (found.append(sample), len(found) >= count and enough.set())):
        assert enough.wait(60)
    return found


def begun(root) -> tuple[MlflowRecord, Tracker]:
    record = MlflowRecord(LoggedStudy(root, "mine", "id", float), mlflow_place(root))
    tracker = Tracker(record)
    tracker.start({}, {})
    return record, tracker


def histories(root, name: str) -> dict[str, list]:
    """Of each system metric of a study's own run: what was logged, in order."""
    client = open_store(root)
    experiment = client.get_experiment_by_name("prunefront").experiment_id
    (run,) = client.search_runs([experiment], f"tags.study = '{name}' and tags.kind = 'study'")
    names = [key for key in run.data.metrics if key.startswith("system/")]
    return {key: client.get_metric_history(run.info.run_id, key) for key in names}


def test_a_study_that_is_asked_for_them_keeps_them_and_no_other(finished, tmp_path):
    """As at a resume, of a study that has all its trials: there is one last sample at least."""
    root = shutil.copytree(finished.root, tmp_path, dirs_exist_ok=True)
    assert histories(root, "tiny") == {}
    run_search(SearchConfig(study="tiny", root=str(root), system_metrics=True))
    found = histories(root, "tiny")
    assert found.keys() >= READ and threads() == []
    for points in found.values():
        assert [point.step for point in points] == list(range(len(points)))
        assert all(first.timestamp <= second.timestamp for first, second in pairwise(points))
    assert all(0 <= point.value <= 100 for point in found[CPU])
    assert json.loads((root / "tiny" / "study.json").read_text())["config"]["system_metrics"] is True


def test_samples_go_on_behind_those_of_before_when_a_study_is_resumed(tmp_path):
    lengths = []
    for _ in range(2):
        record, tracker = begun(tmp_path)
        with sampled_machine(lambda one, to=(record, tracker): (to[0].samples.append(one), to[1].nudge())):
            time.sleep(0.2)
        tracker.finish("KILLED")
        points = histories(tmp_path, "mine")[CPU]
        assert [point.step for point in points] == list(range(len(points)))
        lengths.append(len(points))
    assert 0 < lengths[0] < lengths[1]


def test_samples_end_with_the_block_however_that_ends(monkeypatch):
    monkeypatch.setenv(INTERVAL, "3600")
    found: list[Sample] = []
    with pytest.raises(KeyboardInterrupt), sampled_machine(found.append):
        assert len(threads()) == 1
        raise KeyboardInterrupt
    assert threads() == [] and [sample.number for sample in found] == [0]


def test_a_sample_is_of_as_many_looks_as_mlflow_is_asked_for(monkeypatch):
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor

    looks: list[int] = []
    real = CPUMonitor.collect_metrics
    monkeypatch.setattr(CPUMonitor, "collect_metrics", lambda self: (looks.append(1), real(self)))
    monkeypatch.setenv(SAMPLES, "3")
    monkeypatch.setenv(NODE, "../7|" + 300 * "a")
    found = taken(2)
    assert [sample.number for sample in found] == list(range(len(found))) and 3 * 2 < len(looks) <= 3 * len(found) + 1
    assert all(key.startswith(f"system/___7_{95 * 'a'}/") for key in found[0].values)


def test_a_part_of_the_machine_that_cannot_be_read_is_left_out_with_a_line(monkeypatch, caplog):
    monkeypatch.setattr("psutil.net_io_counters", lambda: None)  # of a machine without a network
    calls = iter(range(10**6))
    monkeypatch.setattr(
        "psutil.disk_usage", lambda _: SimpleNamespace(percent=1.0, used=2e6, free=3e6 / (next(calls) < 2))
    )
    found = taken(3)
    assert CPU in found[-1].values and "system/disk_usage_percentage" in found[0].values
    assert not [key for key in found[-1].values if "network" in key or "disk" in key]
    assert [line.split(" (")[0].rpartition(" ")[2] for line in caplog.messages] == ["NetworkMonitor", "DiskMonitor"]


@pytest.fixture
def tracked(tmp_path) -> Iterator[tuple[MlflowRecord, Tracker]]:
    record, tracker = begun(tmp_path)
    yield record, tracker
    tracker._thread.join(60)


def sample(number: int, **values: float) -> Sample:
    return Sample(number, 1e9 + number, {f"system/{key}": value for key, value in values.items()})


def test_samples_wait_for_a_store_that_is_away(tracked, tmp_path, monkeypatch, caplog):
    """Also one that wrote and did not answer: the same again changes nothing."""
    record, tracker = tracked
    monkeypatch.setattr(mlflow_record, "BATCH", 2)
    done = record._client.log_batch

    def unanswered(*arguments, **options):
        done(*arguments, **options)
        raise OSError("gone")

    with monkeypatch.context() as away:
        away.setattr(record._client, "log_batch", unanswered)
        for number in range(5):
            record.samples.append(sample(number, a=number + 0.25, b=1.0))
            tracker.nudge()
        tracker.wait()
        assert len(record.samples) == 5
    tracker.finish("FINISHED")
    points = histories(tmp_path, "mine")["system/a"]
    assert [(point.step, point.value, point.timestamp) for point in points] == [
        (n, n + 0.25, 1000 * (10**9 + n)) for n in range(5)
    ]
    assert len(caplog.messages) == 2 and "is written again" in caplog.messages[-1]


def test_a_study_that_ends_waits_for_no_samples(tracked, monkeypatch, caplog):
    """Its run is closed before they are written, and the oldest are dropped where there are too many."""
    record, tracker = tracked
    tracker.wait()
    order: list[str] = []
    for call in ("log_batch", "set_terminated"):
        monkeypatch.setattr(record._client, call, lambda *_, call=call, **__: order.append(call))
    monkeypatch.setattr(mlflow_record, "BATCH", 1)
    for number in range(mlflow_record.MOST_SAMPLES + 3):
        record.samples.append(sample(number, a=1.0))
    assert record.samples[0].number == 3
    while len(record.samples) > 4:
        record.samples.popleft()
    tracker.finish("KILLED")
    assert order == ["log_batch", "set_terminated", *["log_batch"] * 3] and not caplog.messages


def test_sampling_does_not_wait_for_the_record(tracked):
    record, tracker = tracked
    tracker.wait()
    with tracker._lock:  # as long as something is written
        began = time.monotonic()
        with sampled_machine(lambda one: (record.samples.append(one), tracker.nudge())):
            time.sleep(0.2)
        assert time.monotonic() - began < 30 and len(record.samples) > 0 and threads() == []
    tracker.finish("FINISHED")


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        (INTERVAL, "often", "must be seconds, > 0 and <= 1000000, got 'often': correct it, or unset it for 10"),
        (INTERVAL, "0", "got '0'"),
        (INTERVAL, "nan", "got 'nan'"),
        (INTERVAL, "1e10", "got '1e10'"),
        (SAMPLES, "1.5", "must be a whole number, > 0 and <= 1000000, got '1.5': correct it, or unset it for 1"),
    ],
)
def test_a_wrong_rhythm_is_refused_before_anything_is_computed(main, monkeypatch, tmp_path, variable, value, said):
    monkeypatch.setenv(variable, value)
    ended = main("search", "--workload", "./tiny.py:tiny", "--system-metrics", "--root", tmp_path, "--json")
    assert ended.code == 2 and said in json.loads(ended.out)["error"] and [*tmp_path.iterdir()] == []


def test_a_machine_without_the_extra_is_told_before_anything_is_computed(main, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "psutil", None)
    ended = main("search", "--workload", "./tiny.py:tiny", "--system-metrics", "--root", tmp_path)
    assert ended.code == 3 and "pip install 'prunefront[system-metrics]', or leave it out" in ended.err
    assert [*tmp_path.iterdir()] == []
    with pytest.raises(EnvironmentProblem):
        require_system_metrics()
