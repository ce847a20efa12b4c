"""Trials that fail cost the study no more than themselves."""

from __future__ import annotations

import pytest
from quick_studies import QUICK
from written_studies import records, stored

import search.executors.evaluation
import search.study.runner
from search.config import make_config
from search.study.start import run_search
from search.training.evaluate import failed
from search.workloads.run import TRIAL

pytestmark = pytest.mark.usefixtures("without_mlflow")


def test_where_every_trial_fails_there_are_no_finals(begin, root, monkeypatch):
    def evaluate(*_, stage, **__):
        return failed("diverged: the loss is nan") if stage == TRIAL else pytest.fail("a baseline was fine-tuned")

    monkeypatch.setattr(search.executors.evaluation, "evaluate_policy", evaluate)
    result = begin("hopeless", trials=3, finalists=2)
    assert result.counts["failed"] == 3 and result.comparison is None and result.best is None


def test_a_workload_that_fails_late_costs_trials_not_the_study(root, place):
    (place / "faulty.py").write_text(
        "from tiny import changed\n"
        "from pathlib import Path\n"
        "from search.workloads import accuracy\n"
        "def metric(outputs, targets):\n"
        f"    done = len(list(Path({str(root / 'faulty' / 'journal')!r}).glob('trial-*.json')))\n"
        "    if done == 1: raise KeyError('no such class')\n"
        "    return float('nan') if done == 2 else accuracy(outputs, targets)\n"
        "def faulty(): return changed(name='faulty', metric=metric)\n"
    )
    config = make_config(
        workload=f"{place / 'faulty.py'}:faulty", root=str(root), trials=4, seeds=False, sampler="tpe", **QUICK
    )
    result = run_search(config)
    states = [(trial.result.state, trial.result.reason) for trial in records(root, "faulty")]
    assert [state for state, _ in states] == ["complete", "failed", "failed", "complete"]
    assert states[1][1].startswith("error: KeyError") and states[2][1] == "diverged: the metric is nan"
    assert result.counts["failed"] == 2
    assert {t.state.name for t in stored(root, "faulty")} == {"COMPLETE", "FAIL"}
    assert set(result.front["trial"]) <= {n for n, (state, _) in enumerate(states) if state == "complete"}
