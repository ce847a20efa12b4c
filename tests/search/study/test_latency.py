"""Studies by latency: where their table comes from, what they do elsewhere, and what happens where there is none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from watchers import Notes

from pruning.latency import measure_latency_table
from search import SearchConfig, run_search
from search.errors import Refused, UsageError
from search.records import TrialRecord
from search.store.folder import StudyFolder
from spaces.cost.latency_table import LatencyTable, LayerLatency, RestLatency

MEASURE = "search.training.latency_cache.measure_latency_table"


def fails(*_: object, **__: object) -> None:
    raise RuntimeError("no clock on this board")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def begin(root, place, without_mlflow, monkeypatch):
    """Run a study of few trials, whose layers take a microsecond for each pair of an output and an input channel."""

    def quick(*args: object, **options: object) -> LatencyTable:
        table = measure_latency_table(*args, **options, repeats=1, levels=())
        layers = {name: lawful(grid.outputs, grid.inputs) for name, grid in table.layers.items()}
        return replace(table, layers=layers, rest=(RestLatency(1.0, 1.0, 0.0),))

    monkeypatch.setattr(MEASURE, quick)

    def go(study: str, **options: object) -> SimpleNamespace:
        given = {"workload": f"{place / 'tiny.py'}:tiny", "study": study, "root": str(root), "trials": 2}
        given |= {"finalists": 0, "warm_start": False, "sampler": "random", "max_size": 0.5, "granularity": "channel"}
        given |= {"bits": 32}
        watcher = Notes()
        result = run_search(SearchConfig(**{**given, **options}), watcher)
        folder = StudyFolder(root, study)
        return SimpleNamespace(result=result, folder=folder, notes=watcher.notes, trials=folder.journal.trials())

    return go


def lawful(outputs: Sequence[int], inputs: Sequence[int]) -> LayerLatency:
    return LayerLatency(tuple(outputs), tuple(inputs), tuple(tuple(1e-6 * o * i for i in inputs) for o in outputs))


def predicted(trials: list[TrialRecord]) -> list[float | None]:
    return [trial.latency for trial in trials]


def test_by_default_latency_is_the_third_objective_and_its_table_stays_with_the_study(begin, root, monkeypatch):
    first = begin("mine")
    table, record = first.folder.read_latency_table(), first.folder.read_record()
    assert record["config"]["speed"] == "latency" and "latency" in record["identity"]["objectives"]
    assert all(0 < share < 1 for share in predicted(first.trials)) and first.result.front["latency"].notna().all()
    assert first.result.front["macs"].notna().all()
    said = f"latency is predicted for {table.device}, 1 thread, one example at a time"
    assert said in first.notes
    for path in (root / "cache").glob("latency-*"):
        path.unlink()
    monkeypatch.setattr(MEASURE, fails)
    again = begin("mine", trials=3)
    assert predicted(again.trials)[:2] == predicted(first.trials) and again.trials[2].latency < 1
    assert again.folder.read_latency_table() == table and not list((root / "cache").glob("latency-*"))


def test_a_study_goes_on_elsewhere_by_its_own_table(begin):
    first = begin("moved", cost="latency", max_latency=0.95)
    table = first.folder.read_latency_table()
    first.folder.write_latency_table(replace(table, device="a phone", threads=4))
    record = first.folder.read_record()
    where = {"device that latency is measured on": "a phone"}
    first.folder.write_record({**record, "identity": record["identity"] | where})
    again = begin("moved", cost="latency", max_latency=0.95, trials=3)
    assert "latency goes on being predicted for a phone, 4 threads, where the study's table was measured" in again.notes
    assert len(again.trials) == 3 and again.folder.read_record()["identity"].items() >= where.items()
    assert again.folder.read_latency_table().device == "a phone"
    first.folder.latency.unlink()  # as of an earlier version
    with pytest.raises(UsageError, match="device that latency is measured on was 'a phone', is"):
        begin("moved", trials=4)


def test_a_study_by_macs_goes_on_by_macs(begin, monkeypatch):
    monkeypatch.setattr(MEASURE, fails)
    assert predicted(begin("by-macs", cost="macs").trials) == [None, None]
    again = begin("by-macs", trials=3)
    assert predicted(again.trials) == [None] * 3 and not again.folder.latency.exists()
    assert not [note for note in again.notes if "latency" in note]
    with pytest.raises(UsageError, match="cost was 'macs', is 'latency'"):
        begin("by-macs", cost="latency")


def test_where_latency_cannot_be_measured_macs_take_its_place_unless_it_was_asked_for(begin, monkeypatch, root):
    for path in (root / "cache").glob("latency-*"):
        path.unlink()
    monkeypatch.setattr(MEASURE, fails)
    found = begin("fails")
    (said,) = (note for note in found.notes if "latency" in note)
    assert said.startswith("latency cannot be measured on ") and said.endswith(
        " (RuntimeError: no clock on this board): the third objective is MACs"
    )
    record = found.folder.read_record()
    assert record["config"]["speed"] == "macs" and set(record["identity"]["objectives"]) == {"accuracy", "size", "macs"}
    assert begin("fails", trials=3).trials[2].latency is None
    for asked, remedy in (
        ({"cost": "latency"}, "give --cost macs"),
        ({"cost": "macs", "max_latency": 0.5}, "leave out --max-latency, or limit MACs by --max-macs"),
    ):
        with pytest.raises(UsageError, match=rf"^latency cannot be measured on .*\): {remedy}$"):
            begin("asked", **asked)
    assert not (root / "asked").exists()


def test_a_table_that_is_damaged_or_of_another_network_is_refused(begin):
    found = begin("damaged", trials=1)
    text = found.folder.latency.read_text()
    found.folder.latency.write_text(text.replace('"threads": 1', '"threads": 2'))
    with pytest.raises(Refused, match=r"^damaged latency table .*latency\.json: .*checksum.*name a new --study$"):
        begin("damaged")
    found.folder.latency.write_text(text)
    table = found.folder.read_latency_table()
    found.folder.write_latency_table(replace(table, layers=dict(list(table.layers.items())[1:])))
    kept = found.folder.latency.read_bytes()
    with pytest.raises(Refused, match=r"^latency table .*latency\.json is of another network than the study's: put"):
        begin("damaged")
    assert found.folder.latency.read_bytes() == kept


def test_a_dry_run_measures_nothing(main, tmp_path, monkeypatch):
    monkeypatch.setattr(MEASURE, lambda *_, **__: pytest.fail("measured"))
    shown = main("search", "--dry-run", "--workload", "./tiny.py:tiny", "--root", tmp_path / "new", "--max-size", 0.5)
    assert shown.code == 0 and not (tmp_path / "new").exists()
    assert "Latency: predicted by a table that is measured first, in about 20 s at most" in shown.out.splitlines()


@pytest.mark.slow
def test_finals_that_cannot_be_timed_are_compared_without_latency(begin, monkeypatch):
    monkeypatch.setattr("search.training.latency_cache.time_networks", fails)
    found = begin("untimed", finalists=1, final_repeats=1)
    assert found.result.comparison.latency is None and found.result.comparison.finalists
    assert "finals are compared without latency, which cannot be measured (RuntimeError: no clock on this board)" in (
        found.notes
    )
    monkeypatch.undo()
    assert json.loads((found.folder.path / "latency.json").read_text())["version"] == 1
