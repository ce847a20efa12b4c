"""How long a study still takes: by hand, from records whose seconds are round numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from search.config import make_config
from search.records import FAILED, FinalRecord, TrialRecord, TrialResult
from search.results.comparison import BASELINES, Comparison, Reference
from search.results.time_left import Pace, final_runs_left, seconds_left
from spaces.policy import PruningPolicy

RECIPE = {"trial_epochs": 2.0, "final_epochs": 5.0}
POLICY = PruningPolicy({"conv.weight": 0.25})


def trials(*seconds: float) -> list[TrialRecord]:
    """One after the other, with a gap of a second between them that is no trial's."""
    records, now = [], 0.0
    for number, spent in enumerate(seconds):
        result = TrialResult(FAILED, "x", seconds={"training": spent - 2, "scoring": 1.0})  # and 1 for the proposal
        records.append(TrialRecord(number, "sampler", {}, POLICY, {}, 0.25, result, now, now + spent, 0.0))
        now += spent + 1
    return records


def finals(digest: str, *seeds: int, spent: float = 30.0) -> list[FinalRecord]:
    result = TrialResult("complete", accuracy=0.5, seconds={"training": spent - 2, "scoring": 2.0})
    return [FinalRecord(digest, seed, POLICY, result, 0.5, 1.0, 0.0) for seed in seeds]


def test_trials_at_their_mean_and_finals_by_epochs_until_one_is_done():
    config = make_config(trials=6)
    assert seconds_left(config, RECIPE, Pace(), [], 9) is None
    assert seconds_left(config, RECIPE, Pace(trials(4.0, 8.0)), [], 0) == 4 * 6.0
    assert seconds_left(config, RECIPE, Pace(trials(4.0, 8.0)), [], 3) == 4 * 6.0 + 3 * 5.0 * 2.5
    assert seconds_left(config, RECIPE, Pace(trials(4.0, 8.0)), finals("a", 1, 2), 3) == 4 * 6.0 + 3 * 30.0
    assert seconds_left(config, RECIPE, Pace(trials(*[4.0] * 7)), [], 0) == 0.0


def test_no_trial_starts_after_the_time_limit():
    done = trials(4.0, 8.0)  # the last ends at second 13
    assert seconds_left(make_config(trials=6, timeout=20.0), RECIPE, Pace(done), [], 1) == 7.0 + 12.5
    assert seconds_left(make_config(trials=6, timeout=5.0), RECIPE, Pace(done), [], 0) == 0.0


def compared(finalists: tuple[str, ...], **baselines: str) -> Comparison:
    return Comparison({"dense": Reference(0.9, 0.9, 1.0, 1.0)}, baselines, "fine-grained", finalists)


@pytest.mark.parametrize(
    ("finalists", "done", "comparison", "left", "full"),
    [
        (["a", "b"], [], None, 2 * (2 + 3), 2 * 4 + (2 + len(BASELINES)) * 4),
        (["a", "b"], finals("a", 1, 2, 3), None, 2 + 5, 5 + (2 + len(BASELINES)) * 4),
        (["a"], finals("a", 1, 2, 3, 4) + finals("lamp", 1), None, 3, (1 + len(BASELINES)) * 4 - 1),
        (["a", "b"], finals("a", 1), compared(("b", "a"), lamp="l"), 0, 0),  # written once all were done
        (["a", "c"], finals("a", 1, 2, 3, 4) + finals("l", 1, 2, 3, 4), compared(("a",), lamp="l"), 2, 8),
    ],
)
def test_final_runs_left(finalists, done, comparison, left, full):
    """By hand: one run each, three more of the first, and the same of their baselines."""
    config = make_config(final_seeds=4)
    assert final_runs_left(config, finalists, done, comparison) == left
    assert final_runs_left(config.model_copy(update={"finalists": 0}), finalists, done, comparison) == 0
    assert final_runs_left(config.model_copy(update={"comparison": "full"}), finalists, done, comparison) == full


def test_records_of_other_lengths_change_the_mean_alone():
    both = finals("a", 1, spent=10.0) + finals("a", 2, spent=40.0)
    assert seconds_left(make_config(trials=1), RECIPE, Pace(trials(4.0)), both, 2) == 2 * 25.0
    longer = [replace(trial, finished=trial.finished + 2) for trial in trials(4.0)]
    assert seconds_left(make_config(trials=2), RECIPE, Pace(longer), [], 0) == 6.0
