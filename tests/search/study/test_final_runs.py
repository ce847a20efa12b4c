"""Fine-tunes of full length: which are begun, for how long they may take, and what is told of them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from search import Recipe
from search.config import SearchConfig
from search.progress import ProgressReporter
from search.records import TrialResult
from search.results.state import StudyState
from search.study import running
from search.study.final_runs import FinalRuns, Tuned
from search.study.running import RunningStudy
from search.training.own_scores import Metrics
from spaces.cost.counts import RelativeCost
from spaces.policy import PruningPolicy


class Lines(ProgressReporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)

    headline = note


@pytest.mark.parametrize(("lengths", "limit"), [((2, 5), 25), ((4, 1), 10)])
def test_a_run_may_take_longer_by_its_epochs_and_what_is_left_is_told(tmp_path, monkeypatch, lengths, limit):
    """Each of three runs takes 4 seconds, the first of which is done before; the second one fails. 3.5 seconds of
    something else are to come then."""
    config, clock, begun, watcher = SearchConfig(trial_timeout=10, seed=4), SimpleNamespace(seconds=100.0), [], Lines()
    result = TrialResult("complete", None, 0.875, 1.0, RelativeCost(0.25, 0.5, 1.0, 1.0))
    failed = TrialResult("failed", "time limit", None, None, None)

    def evaluated(executor, jobs, *_):
        for job in jobs:
            begun.append(job)
            clock.seconds += 4
            found = failed if job.seed == 6 else result
            tested = Metrics(0.5, 0.75)
            yield SimpleNamespace(job=job, result=found, keep_weights=lambda: True, tested=tested, worker=None)

    monkeypatch.setattr(running, "evaluations", evaluated)
    journal = SimpleNamespace(folder=tmp_path, write_final=lambda _: None, final_path=lambda *_: "the file")
    folder = SimpleNamespace(journal=journal, final_weights=lambda *_: None)
    recipe = Recipe(trial_epochs=lengths[0], final_epochs=lengths[1])
    subject, policy = SimpleNamespace(workload=SimpleNamespace(recipe=recipe)), PruningPolicy({"a.weight": 0.25})
    study = RunningStudy(config, folder, subject, StudyState(config, {}), clock, watcher, None)
    besides = [0.0, 3.5, 0.0]
    runs = FinalRuns(study, left=lambda: 0, besides=lambda: besides.pop(0))
    runs.run([Tuned("trial 7", policy, 1)])
    clock.seconds += 50  # of what came between, which is no final run's
    runs.run([Tuned("trial 7", policy, 3)])
    assert [(job.seed, job.epochs, job.limit) for job in begun] == [(seed, lengths[1], limit) for seed in (5, 6, 7)]
    runs.tell_failures()
    assert watcher.lines == [
        "final run 1/1 (trial 7): 87.50 % on validation",
        "final run 2/3 (trial 7): failed: time limit | about 7.5 s left",
        "final run 3/3 (trial 7): 87.50 % on validation",
        "the final run of trial 7 with seed 6 failed (time limit) and is left out of the means: to repeat it, delete "
        "the file and run the same command again",
    ]
