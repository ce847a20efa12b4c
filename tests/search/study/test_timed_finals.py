"""When the latency of finals is measured again, and what stays where it cannot be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from watchers import Notes

from pruning.latency import describe_device, measure_latency_table
from search.config import SearchConfig
from search.results.closing import closing_rows
from search.results.comparison import Comparison, read_comparison
from search.store.folder import StudyFolder
from search.study import finals
from search.study.finals import _timed
from search.training.latency_cache import Unmeasured
from spaces.cost.timing import TimedNetwork, TimedNetworks

ONE = TimedNetwork(0.25, 0.0, 1.0, 1.0, 1.0)
HERE = TimedNetworks("this CPU", torch.get_num_threads(), 1, 30, ONE, ONE, {"a": ONE, "b": ONE, "old": ONE})
BENCH, OTHER = "bench {file}", "other {file}"
BY_BENCH = replace(HERE, device="", threads=1, command=BENCH)


@pytest.fixture
def time(tmp_path, monkeypatch):
    """What is asked for where finals `a` and `b` have weights: a name of what times them, or what was known before."""
    for name in "ab":
        (tmp_path / name).touch()
    monkeypatch.setattr(finals, "build_model", lambda *_: None)
    monkeypatch.setattr(finals, "load_model", lambda _, path: (path.name,))

    def go(before: TimedNetworks | None, command: str | None = None, fails: bool = False) -> tuple[object, list[str]]:
        def measured(how: str, networks: dict[str, str]) -> object:
            assert networks == {"a": "a", "b": "b"}
            if fails:
                raise Unmeasured("no clock")
            return how

        monkeypatch.setattr(finals, "timed_by_command", lambda command, _, networks, *rest: measured(command, networks))
        monkeypatch.setattr(finals, "time_finals", lambda _, networks, progress: measured("here", networks))
        scores = dict.fromkeys(("a", "b", "without weights"), SimpleNamespace(best_seed=1))
        study = SimpleNamespace(
            config=SearchConfig(latency_command=command),
            folder=SimpleNamespace(final_weights=lambda digest, seed: Path(tmp_path, digest)),
            subject=SimpleNamespace(workload=SimpleNamespace(placement=SimpleNamespace(name="this CPU"))),
            state=SimpleNamespace(scores=scores, finals=[]),
            watcher=Notes(),
        )
        compared = Comparison({}, {}, "channel", ("a", "b", "without weights", "without runs"), latency=before)
        return _timed(study, compared), study.watcher.notes

    return go


@pytest.mark.parametrize(
    ("before", "command", "found"),
    [
        (None, None, "here"),
        (HERE, None, HERE),
        (replace(HERE, threads=HERE.threads + 1), None, "here"),
        (replace(HERE, device="a phone"), None, "here"),
        (replace(HERE, networks={"a": ONE}), None, "here"),
        (None, BENCH, BENCH),
        (HERE, BENCH, BENCH),
        (BY_BENCH, None, BY_BENCH),
        (BY_BENCH, BENCH, BY_BENCH),
        (BY_BENCH, OTHER, OTHER),
        (replace(BY_BENCH, networks={"a": ONE}), BENCH, BENCH),
        (replace(BY_BENCH, networks={"a": ONE}), None, "here"),
    ],
)
def test_what_was_measured_stays_while_it_is_of_the_same_networks_and_means(time, before, command, found):
    assert time(before, command) == (found, [])


@pytest.mark.parametrize("command", [None, BENCH])
def test_where_it_cannot_be_measured_what_was_known_stays(time, command):
    assert time(None, command, fails=True) == (
        None, ["finals are compared without latency, which cannot be measured (no clock)"],
    )  # fmt: skip
    old = replace(HERE, threads=HERE.threads + 1)
    assert time(old, command, fails=True) == (
        old, ["finals are compared with the latency measured before, as it now cannot be measured (no clock)"],
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("without_mlflow")
def test_finals_are_timed_once_where_latency_plays_a_part(begin, root, monkeypatch):
    """By a stand-in for the clock's work: what is timed, when it is timed again, and what is written down."""
    calls, measure = [], measure_latency_table

    def timed(dense, networks, example, progress):
        calls.append(set(networks))
        one = TimedNetwork(0.002, 0.01, 1.0, 1.0, 1.0)
        shares = {name: sum(p.numel() for p in n.parameters()) / 1442 for name, n in networks.items()}
        found = {name: TimedNetwork(0.002 * share, 0.01, share, share, share) for name, share in shares.items()}
        return TimedNetworks(describe_device(torch.device("cpu")), torch.get_num_threads(), 1, 30, one, one, found)

    monkeypatch.setattr("search.training.latency_cache.time_networks", timed)
    monkeypatch.setattr(
        "search.training.latency_cache.measure_latency_table", lambda *a, **k: measure(*a, **k, repeats=1, levels=())
    )
    options = {"cost": "latency", "granularity": "channel", "bits": 32, "finalists": 1, "final_seeds": 2}
    first = begin("timed-finals", trials=4, **options)
    comparison = read_comparison(StudyFolder(root, "timed-finals"))
    compared = set(comparison.digests)
    assert calls == [compared] and len(compared) >= 2 and comparison == first.comparison
    rows = {row.name: row for row in closing_rows(comparison, first.finals, {})}
    assert {name for name, row in rows.items() if row.latency is None} == {*comparison.rounded}
    begin("timed-finals", trials=4, **options)
    assert len(calls) == 1, "nothing new to time"
    begin("timed-finals", trials=4, **options | {"finalists": 3})
    again = read_comparison(StudyFolder(root, "timed-finals"))
    assert len(calls) == 2 and calls[1] == set(again.digests) > compared
    assert begin("untimed", trials=2, finalists=1, final_seeds=1).comparison.latency is None and len(calls) == 2
