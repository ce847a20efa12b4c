"""The cache of latency tables: what is read again, and what makes a new measurement."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from pruning.latency import measure_latency_table
from search import Workload
from search.checksum import unsealed
from search.training.evaluate import PreparedModel
from search.training.latency_cache import cached_latency_table, latency_path, time_finals
from spaces.cost.latency_table import LatencyTable
from spaces.cost.timing import TimedNetwork, TimedNetworks


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.head = nn.Linear(6, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(images).relu().mean(dim=(2, 3)))


class Viewed(nn.Module):
    """Runs in PyTorch's default layout only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(len(x), -1)


@pytest.fixture(scope="module")
def subject() -> PreparedModel:
    torch.manual_seed(0)
    split = torch.randn(4, 1, 6, 6), torch.tensor([0, 1, 2, 0])
    workload = Workload("tiny", Tiny, split, split, split, split)
    return PreparedModel.of(workload, Tiny().eval())


@pytest.fixture(scope="module")
def architecture() -> str:
    """The architecture's fingerprint."""
    return "architecture"


@pytest.fixture
def measured(monkeypatch) -> list[LatencyTable]:
    """Every table measured, in few rounds; its spread is that of a quiet machine."""
    tables: list[LatencyTable] = []

    def quick(*args: object, **options: object) -> LatencyTable:
        table = measure_latency_table(*args, **options, repeats=1, levels=())
        tables.append(replace(table, spread=0.01))
        return tables[-1]

    monkeypatch.setattr("search.training.latency_cache.measure_latency_table", quick)
    return tables


def test_measured_once(subject, architecture, measured, tmp_path):
    seen = []
    first = cached_latency_table(subject, architecture, tmp_path / "cache", lambda *numbers: seen.append(numbers))
    assert seen[-1][0] == seen[-1][1] > 0
    second = cached_latency_table(subject, architecture, tmp_path / "cache")
    assert measured == [first]
    assert second == first
    assert (first.model, first.batch) == ("architecture", 1)
    text = latency_path(subject, architecture, tmp_path / "cache").read_text()
    assert LatencyTable.from_json(unsealed(text)) == first
    path = latency_path(subject, architecture, tmp_path / "cache")
    assert '"spread": 0.01' in text
    path.write_text(text.replace('"spread": 0.01', '"spread": 0.02'))
    cached_latency_table(subject, architecture, tmp_path / "cache")
    assert len(measured) == 2  # a changed number is noticed


def test_what_makes_another_table(subject, architecture, monkeypatch):
    cache = Path("cache")
    paths = [latency_path(subject, architecture, cache), latency_path(subject, architecture, cache, batch=2)]
    paths.append(latency_path(subject, "other", cache))
    wider = replace(subject.workload, example_input=torch.zeros(2, 1, 6, 7))
    paths.append(latency_path(replace(subject, workload=wider), architecture, cache))
    halves = copy.deepcopy(subject.dense).to(torch.bfloat16)
    paths.append(latency_path(replace(subject, dense=halves), architecture, cache))
    last = nn.Sequential(nn.Conv2d(3, 4, 3))
    paths += [
        latency_path(replace(subject, dense=model), architecture, cache)
        for model in (last, copy.deepcopy(last).to(memory_format=torch.channels_last))
    ]
    with monkeypatch.context() as patch:
        patch.setattr("search.training.latency_cache.describe_device", lambda _: "another processor")
        paths.append(latency_path(subject, architecture, cache))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 77)
        paths.append(latency_path(subject, architecture, cache))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "1.0")
        paths.append(latency_path(subject, architecture, cache))
    assert len(set(paths)) == len(paths)
    assert paths[0] == latency_path(subject, architecture, cache)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ('{"version": 1}', "damaged latency table"),
        (
            '{"version": 1, "model": "", "device": "", "threads": 1, "batch": 1, "layers": {}, "dense_seconds": 1.0, '
            '"rest": [{"activations": 1, "weights": 1, "seconds": 0.1}], "spread": 0.1}',
            "the latency table lacks layer 'conv.weight'",
        ),
    ],
)
def test_damaged_files_are_measured_again(subject, architecture, measured, tmp_path, caplog, text, message):
    path = latency_path(subject, architecture, tmp_path)
    path.write_text(text)
    table = cached_latency_table(subject, architecture, tmp_path)
    assert [table] == measured
    [record] = caplog.records
    assert message in record.getMessage()
    assert "\n" not in record.getMessage()
    assert LatencyTable.from_json(unsealed(path.read_text())) == table


def test_a_busy_machine_is_told(subject, architecture, measured, monkeypatch, tmp_path, caplog):
    cached_latency_table(subject, architecture, tmp_path / "quiet")
    assert not caplog.records
    busy = replace(measured[0], spread=0.5)
    monkeypatch.setattr("search.training.latency_cache.measure_latency_table", lambda *_, **__: busy)
    for _ in range(2):  # measured, and from the cache for a later study
        assert cached_latency_table(subject, architecture, tmp_path / "busy") == busy
        [record] = caplog.records
        assert record.levelno == logging.WARNING
        assert "spread 50 %): the study keeps this table; for another one, delete" in record.getMessage()
        assert (
            f"{latency_path(subject, architecture, tmp_path / 'busy')} and begin a new --study" in record.getMessage()
        )
        caplog.clear()


def test_finals_run_in_the_layout_of_fine_tunes_and_a_busy_machine_is_told(subject, monkeypatch, caplog):
    layouts, steady = [], [TimedNetwork(1.0, 0.1, 1.0, 1.0, 1.0)] * 2

    def timed(_dense, networks, _example, progress):
        layouts.extend(network[1].weight.is_contiguous() for network in networks.values())
        return TimedNetworks("cpu", 1, 1, 30, *steady, {})

    monkeypatch.setattr("search.training.latency_cache.time_networks", timed)
    free, viewed = (nn.Sequential(nn.Conv2d(1, 6, 3), nn.Conv2d(6, 2, 3), last) for last in (nn.Flatten(), Viewed()))
    time_finals(subject, {"free": free, "viewed": viewed})
    assert layouts == [False, True] and not caplog.records
    steady[0] = replace(steady[0], spread=0.5)
    time_finals(subject, {})
    [record] = caplog.records
    assert "busy" in record.getMessage() and "spread 50 %" in record.getMessage()
