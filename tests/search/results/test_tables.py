"""Fronts, choices on them and the scores of finals, against slow loops and Optuna."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from statistics import fmean, stdev

import numpy as np
import optuna
import pandas as pd
import pytest

from search.cli.text_tables import front_table
from search.proposals.hypervolume import non_dominated
from search.records import FAILED, FinalRecord, TrialRecord, TrialResult
from search.results.selection import best_trial, front_of, knee_trial, smallest_trial
from search.results.tables import FRONT_COLUMNS, plain_rows, score_finals, trial_table
from spaces.cost.footprint import RelativeCost
from spaces.policy import PruningPolicy
from spaces.schedule import Schedule


def slow_front(points: list[tuple[float, ...]]) -> list[bool]:
    """By the definition, pair by pair."""
    kept = []
    for mine in points:
        good = not any(math.isnan(x) for x in mine)
        for other in points:
            if any(math.isnan(x) for x in other):
                continue
            nowhere_larger = all(o <= m for o, m in zip(other, mine, strict=True))
            somewhere_smaller = any(o < m for o, m in zip(other, mine, strict=True))
            good = good and not (nowhere_larger and somewhere_smaller)
        kept.append(good)
    return kept


@pytest.mark.parametrize("seed", range(12))
def test_non_dominated_follows_the_definition(seed):
    random = np.random.default_rng(seed)
    points = random.integers(0, 5, (40, 2 + seed % 3)).astype(float)  # few values: many ties and equal rows
    points[random.random(points.shape) < 0.05] = np.nan
    assert non_dominated(points).tolist() == slow_front([tuple(row) for row in points.tolist()])


def test_non_dominated_of_nothing_and_of_one():
    assert non_dominated(np.empty((0, 3))).tolist() == []
    assert non_dominated(np.array([[1.0, 2.0, 3.0]])).tolist() == [True]
    assert non_dominated(np.array([[1.0, np.nan]])).tolist() == [False]


def test_an_exponent_is_shown_of_every_schedule_that_has_one():
    schedules = [Schedule("polynomial", 2.5), Schedule("iterative", 1.25, rounds=2), Schedule("one-shot", 2.5)]
    policies = [PruningPolicy({"conv.weight": 0.25}, schedule=schedule) for schedule in schedules]
    table = trial_table([trial(n, 0.5, policy=policy) for n, policy in enumerate(policies)], {})
    assert list(table["exponent"]) == [2.5, 1.25, None]
    lines = front_table(table).splitlines()[1:]
    for line, label in zip(lines, ("fine-grained  E = 2.5 ", "iterative, E = 1.2", "one-shot"), strict=True):
        assert label in line


def trial(number: int, accuracy: float | None, size: float = 0.2, macs: float = 0.5, **changes) -> TrialRecord:
    """A finished trial; without accuracy a failed one."""
    if accuracy is None:
        result = TrialResult(FAILED, "diverged: nan")
    else:
        result = TrialResult("complete", None, accuracy, 1.0, RelativeCost(**_shares(size, macs)))
    policy = PruningPolicy({"conv.weight": round(0.001 * (number + 1), 6)})
    fields = {"number": number, "origin": "sampler", "params": {}, "policy": policy, "sampled": {}, "target": 0.25,
              "result": result, "started": 0.0, "finished": 1.0, "proposing": 0.0}  # fmt: skip
    return TrialRecord(**{**fields, **changes})


def _shares(size: float, macs: float) -> dict[str, float]:
    fields = dict.fromkeys(RelativeCost.__dataclass_fields__, 0.0)
    return fields | {"encoded": size, "nonzero": size / 2, "macs": macs}


@pytest.mark.parametrize("seed", range(4))
def test_the_front_of_a_table_is_optunas(seed):
    random = np.random.default_rng(seed)
    values = random.integers(1, 6, (30, 3)) / 10
    study = optuna.create_study(directions=["maximize", "minimize", "minimize"])
    dummy = {"x": optuna.distributions.FloatDistribution(0, 1)}
    for row in values:
        study.add_trial(optuna.trial.create_trial(params={"x": 0.5}, distributions=dummy, values=row.tolist()))
    table = trial_table([trial(n, *row) for n, row in enumerate(values.tolist())], {})
    front = front_of(table, 1.0)
    assert set(front["trial"]) == {t.number for t in study.best_trials}
    keys = [(-row.accuracy, row.size_encoded, row.trial) for row in front.itertuples()]
    assert keys == sorted(keys) and tuple(front.columns) == FRONT_COLUMNS


def test_the_limit_is_inclusive_and_binds_on_the_metric():
    trials = [trial(0, 0.9, 0.30), trial(1, 0.8, 0.25), trial(2, 0.7, 0.10), trial(3, None)]
    assert list(front_of(trial_table(trials, {}), 0.25)["trial"]) == [1, 2]
    assert list(front_of(trial_table(trials, {}, "nonzero"), 0.15)["trial"]) == [0, 1, 2]
    assert list(front_of(trial_table(trials, {}), 0.2)["trial"]) == [2]


@pytest.mark.parametrize("trials", [[], [trial(0, None)], [trial(0, 0.9, 0.9)]], ids=["none", "failed", "too-large"])
def test_an_empty_front_still_has_its_columns(trials):
    front = front_of(trial_table(trials, {}), 0.25)
    assert front.empty and tuple(front.columns) == FRONT_COLUMNS
    assert best_trial(front) is knee_trial(front) is smallest_trial(front) is None
    assert plain_rows(front) == []


def test_choices_on_a_front():
    """The knee is by hand: log sizes 0, 1, 2, 3 powers of two; accuracies 0.50, 0.80, 0.88, 0.90."""
    trials = [trial(n, a, s, 0.5) for n, (a, s) in enumerate([(0.50, 0.03), (0.80, 0.06), (0.88, 0.12), (0.90, 0.24)])]
    front = front_of(trial_table(trials, {}), 0.25)
    heights = [(a - 0.5) / 0.4 - step / 3 for step, a in enumerate((0.50, 0.80, 0.88, 0.90))]
    assert knee_trial(front) == int(np.argmax(heights)) == 1
    assert (best_trial(front), smallest_trial(front)) == (3, 0)
    two = front_of(trial_table(trials[2:], {}), 0.25)
    assert knee_trial(two) in (2, 3) and knee_trial(two.iloc[:1]) == 3


def final(seed: int, accuracy: float | None, tested: float | None, policy: PruningPolicy) -> FinalRecord:
    result = TrialResult(FAILED, "x") if accuracy is None else TrialResult(
        "complete", None, accuracy, 1.0, RelativeCost(**_shares(0.2 + seed / 100, 0.5))
    )  # fmt: skip
    return FinalRecord(policy.digest, seed, policy, result, tested, None, 1.0)


def test_finals_are_means_and_the_median_seed():
    policy = PruningPolicy({"conv.weight": 0.5})
    runs = [final(1, 0.80, 0.70, policy), final(2, 0.90, 0.60, policy), final(3, 0.86, 0.71, policy)]
    score = score_finals(runs, 3)[policy.digest]
    assert (score.n, score.best_seed) == (3, 3)
    assert score.final_accuracy == fmean([0.80, 0.90, 0.86]) and score.final_sd == stdev([0.80, 0.90, 0.86])
    assert score.test_accuracy == fmean([0.70, 0.60, 0.71]) and score.test_sd == stdev([0.70, 0.60, 0.71])
    assert score.size_encoded == 0.23  # the largest: the limit holds for every seed
    assert score_finals(runs[:2], 2)[policy.digest].best_seed == 1  # the lower of two
    alone = score_finals(runs[:1], 1)[policy.digest]
    assert alone.final_sd is None and alone.test_sd is None


def test_unfinished_finals_give_no_score_and_failed_ones_are_counted():
    policy = PruningPolicy({"conv.weight": 0.5})
    runs = [final(1, 0.80, 0.70, policy), final(2, 0.90, 0.60, policy)]
    assert score_finals(runs, 3) == {}
    score = score_finals([*runs, final(3, None, None, policy)], 3)[policy.digest]
    assert (score.n, score.failed) == (2, 1) and score.final_accuracy == fmean([0.80, 0.90])
    assert score_finals([final(seed, None, None, policy) for seed in (1, 2)], 2) == {}


def test_a_failed_trial_with_the_policy_of_a_finalist_is_not_the_best():
    good = trial(0, 0.9, 0.2)
    broken = replace(good, number=1, result=TrialResult(FAILED, "out-of-memory"))
    scores = score_finals([final(1, 0.85, 0.7, good.policy)], 1)
    table = trial_table([good, broken], scores)
    assert best_trial(front_of(table, 0.25), table, 0.25) == 0


def test_best_goes_by_finals_once_there_are_any():
    trials = [trial(0, 0.9, 0.2), trial(1, 0.8, 0.1)]
    policy = trials[1].policy
    scores = score_finals([final(1, 0.85, 0.7, policy)], 1)
    front = front_of(trial_table(trials, scores), 0.25)
    assert best_trial(front) == 1
    assert [row["final_accuracy"] for row in plain_rows(front)] == [None, 0.85]


def test_plain_rows_are_json_without_nan():
    table = pd.DataFrame({"a": [1.5, float("nan")], "b": [None, 2]}, dtype=object)
    assert plain_rows(table) == [{"a": 1.5, "b": None}, {"a": None, "b": 2}]
    failed = plain_rows(trial_table([trial(0, None)], {}))
    assert json.dumps(failed, allow_nan=False) and failed[0]["accuracy"] is None
