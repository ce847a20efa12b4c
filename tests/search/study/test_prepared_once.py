"""A network is traced once a process, and what a criterion can score of it is found once."""

from __future__ import annotations

import functools
import sys
from collections import Counter

import pytest

from pruning.channels import topology, tracing
from pruning.importance.activations import activation_scores
from pruning.importance.scores import ImportanceScores
from search import SearchConfig, run_search


@pytest.fixture
def counted(monkeypatch):
    """How often each of these was called, or which networks it was called with: wherever it was imported to."""
    calls: Counter[str] = Counter()

    def count(function):
        @functools.wraps(function)
        def counting(*arguments, **options):
            calls[function.__name__] += 1
            return function(*arguments, **options)

        return counting

    for function in (tracing.trace_channels, topology.following_norms, activation_scores):
        counting = count(function)
        for module in [*sys.modules.values()]:
            if vars(module).get(function.__name__) is function:
                monkeypatch.setattr(module, function.__name__, counting)
    restricted = ImportanceScores.restricted_graph
    found = functools.cached_property(count(restricted.func))
    found.__set_name__(ImportanceScores, "restricted_graph")
    monkeypatch.setattr(ImportanceScores, "restricted_graph", found)
    return calls


@pytest.mark.slow
def test_a_study_traces_its_network_once(place, tmp_path, counted):
    spec = f"{place / 'tiny.py'}:tiny"
    run_search(
        SearchConfig(
            workload=spec,
            root=str(tmp_path),
            trials=3,
            finalists=1,
            criterion="bn-scale",
            granularity="channel",
            cost="macs",
        )
    )
    assert counted["trace_channels"] == counted["following_norms"] == 1
    assert counted["restricted_graph"] == 2  # for the trials and finals, and for the scan


def test_pictures_of_one_network_look_at_calibration_data_once(main, tmp_path, counted):
    ended = main(
        "inspect",
        "./tiny.py:tiny",
        "--pictures",
        tmp_path / "pictures",
        "--criterion",
        "activation",
        "--root",
        tmp_path,
    )
    assert ended.code == 0, ended.err
    assert counted["trace_channels"] == counted["activation_scores"] == counted["restricted_graph"] == 1


def test_a_scan_and_a_policy_trace_the_network_once_each(main, tmp_path, counted):
    (tmp_path / "policy.json").write_text('{"conv1.weight": 0.5}')
    for command in (["scan"], ["apply", tmp_path / "policy.json", "--out", tmp_path / "out"]):
        before = counted["trace_channels"]
        ended = main(*command, "--workload", "./tiny.py:tiny", "--root", tmp_path)
        assert ended.code == 0, ended.err
        assert counted["trace_channels"] == before + 1
