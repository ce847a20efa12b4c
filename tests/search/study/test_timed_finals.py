"""When the latency of finals is measured again, and what stays where it cannot be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from search.config import SearchConfig
from search.progress import ProgressReporter
from search.results.comparison import Comparison
from search.study import finals
from search.study.finals import _timed
from search.training.latency_cache import Unmeasured
from spaces.cost.timing import TimedNetwork, TimedNetworks

ONE = TimedNetwork(0.25, 0.0, 1.0, 1.0, 1.0)
HERE = TimedNetworks("this CPU", torch.get_num_threads(), 1, 30, ONE, ONE, {"a": ONE, "b": ONE, "old": ONE})
BENCH, OTHER = "bench {file}", "other {file}"
BY_BENCH = replace(HERE, device="", threads=1, command=BENCH)


class Notes(ProgressReporter):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


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
