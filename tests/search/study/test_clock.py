"""The time limit of a study."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

TRACKER = ("start", "log_trial", "log_summary", "finish")
pytestmark = pytest.mark.usefixtures("without_mlflow")


def test_a_time_limit_starts_no_further_trial(begin, root):
    result = begin("timed", trials=50, timeout=1e-6, seeds=False)
    assert sum(result.counts.values()) == 0 and result.front.empty and result.best is None


def test_making_the_stores_takes_nothing_from_the_time_limit(begin, monkeypatch):
    """An hour passes while MLflow is set up, of a limit of half an hour that two trials are far within."""
    late, monotonic = [0.0], time.monotonic
    monkeypatch.setattr(
        "search.study.clock.time", SimpleNamespace(monotonic=lambda: monotonic() + late[0], time=time.time)
    )
    slow = SimpleNamespace(**dict.fromkeys(TRACKER, lambda *_: None))
    slow.start = lambda *_: late.__setitem__(0, 3600.0)
    monkeypatch.setattr("search.study.runner.Tracker", lambda *_: slow)
    result = begin("late", trials=2, timeout=1800.0, seeds=False)
    assert result.counts["complete"] == 2 and result.trials["finished"].max() < 1800
