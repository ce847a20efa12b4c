"""Limits of a study: the least accuracy, the most MACs, and what is the best within them."""

from __future__ import annotations

import pytest
from watchers import Notes
from written_studies import records

pytestmark = pytest.mark.usefixtures("without_mlflow")


@pytest.mark.slow
def test_the_smallest_of_an_accuracy_asked_for(begin, root):
    result = begin("accurate", trials=7, min_accuracy="dense-0.2")
    accurate = result.front[result.front["accuracy"] >= result.least_accuracy]
    assert result.best == accurate.loc[accurate["size"].astype(float).idxmin(), "trial"]


def test_trials_stay_within_a_limit_on_macs(begin, root):
    result = begin("swift", trials=5, max_macs=0.7)
    assert all(trial.result.shares.macs <= 0.7 for trial in records(root, "swift"))
    assert set(result.trials["granularity"]) == {"channel"}


@pytest.mark.slow
def test_best_so_far_is_what_would_be_exported(begin):
    """With an accuracy asked for, that is the smallest trial that has it, not the most accurate one."""
    watcher = Notes()
    result = begin("so-far", watcher, trials=8, min_accuracy="0.2")
    best = result.trials.set_index("trial").loc[result.best]
    said = f"best so far {best['accuracy'] * 100:.2f} % at {best['size'] * 100:.1f} %"
    assert said in watcher.headlines[-1] and best["accuracy"] < result.front["accuracy"].max()
    assert "left" not in watcher.headlines[-1] and "about" in watcher.headlines[0]
