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
from search.config import make_config
from search.metric import SHARE, Metric
from search.proposals.hypervolume import non_dominated
from search.records import FAILED, FinalRecord, TrialRecord, TrialResult, WrittenFile
from search.results.comparison import Comparison, Reference
from search.results.selection import knee_trial, smallest_trial
from search.results.state import StudyState
from search.results.tables import FRONT_COLUMNS, TRIAL_COLUMNS, TrialRow, csv_text, data_frame, plain_rows, score_runs
from search.results.tightness import Tightness, tightness_line
from search.results.time_left import Pace, seconds_left, short_runs_left
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
    rows = state([trial(n, 0.5, policy=policy) for n, policy in enumerate(policies)]).rows
    assert [row.exponent for row in rows] == [2.5, 1.25, None]
    lines = front_table(rows).splitlines()[1:]
    for line, label in zip(lines, ("fine-grained  E = 2.5 ", "iterative, E = 1.2", "one-shot"), strict=True):
        assert label in line


def test_bits_are_shown_where_any_are_fewer_than_32():
    """One number; `mixed` where layers differ, with all of them in JSON and CSV."""
    bits = [32, 6, {"conv.weight": 4}]
    policies = [PruningPolicy({"conv.weight": 0.25}, bits=own) for own in bits]
    rows = state([trial(n, 0.5, policy=policy) for n, policy in enumerate(policies)]).rows
    lines = [line.split() for line in front_table([*rows, TrialRow(3)]).splitlines()]
    place = lines[0].index("bits")
    assert lines[0][place - 2 : place + 2] == ["MACs", "granularity", "bits", "schedule"]
    assert [line[line.index("fine-grained") + 1] for line in lines[1:4]] == ["32", "6", "mixed"]
    assert lines[4] == ["3", *"-" * 10]
    assert [row["bits"] for row in plain_rows(rows)] == bits and json.dumps(plain_rows(rows))
    assert csv_text(rows, ("trial", "bits"), json.dumps) == 'trial,bits\n0,32\n1,6\n2,"{""conv.weight"": 4}"\n'
    assert "bits" not in front_table(rows[:1]) and "bits" not in front_table([rows[0], TrialRow(3)])


def state(trials=(), finals=(), least: float | None = None, **options) -> StudyState:
    """Of a study with one final run a finalist and a limit of a quarter."""
    config = make_config(**{"workload": "digits", "max_size": 0.25, "cost": "macs", "final_repeats": 1, **options})
    found = StudyState(config, {}, least_accuracy=least)
    found.add_all(trials, finals)
    return found


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
    found = state([trial(n, *row) for n, row in enumerate(values.tolist())], max_size=1.0)
    assert {row.trial for row in found.front} == {t.number for t in study.best_trials}
    keys = [(-row.accuracy, row.size_encoded, row.trial) for row in found.front]
    assert keys == sorted(keys)


def numbers(*trials: TrialRecord, **options) -> list[int]:
    return [row.trial for row in state(trials, **options).front]


def test_the_limit_is_inclusive_and_binds_on_the_measure():
    trials = [trial(0, 0.9, 0.30), trial(1, 0.8, 0.25), trial(2, 0.7, 0.10), trial(3, None)]
    assert numbers(*trials) == [1, 2]
    assert numbers(*trials, max_size=0.15, size_metric="nonzero") == [0, 1, 2]
    assert numbers(*trials, max_size=0.2) == [2]


@pytest.mark.parametrize("trials", [[], [trial(0, None)], [trial(0, 0.9, 0.9)]], ids=["none", "failed", "too-large"])
def test_an_empty_front_has_no_choice_and_still_its_columns(trials):
    found = state(trials)
    assert found.front == [] and found.best is knee_trial([]) is smallest_trial([]) is None
    assert tuple(data_frame(found.front, FRONT_COLUMNS).columns) == (*FRONT_COLUMNS, "layer_bits")
    assert TRIAL_COLUMNS[:19] == FRONT_COLUMNS and FRONT_COLUMNS[-1] == "bits"
    assert csv_text(found.front, ("trial", "sparsity"), str) == "trial,sparsity\n"


def test_choices_on_a_front():
    """The knee is by hand: log sizes 0, 1, 2, 3 powers of two; accuracies 0.50, 0.80, 0.88, 0.90."""
    trials = [trial(n, a, s, 0.5) for n, (a, s) in enumerate([(0.50, 0.03), (0.80, 0.06), (0.88, 0.12), (0.90, 0.24)])]
    found = state(trials)
    heights = [(a - 0.5) / 0.4 - step / 3 for step, a in enumerate((0.50, 0.80, 0.88, 0.90))]
    assert knee_trial(found.front) == int(np.argmax(heights)) == 1
    assert (found.best, smallest_trial(found.front)) == (3, 0)
    two = state(trials[2:]).front
    assert knee_trial(two) in (2, 3) and knee_trial(two[:1]) == 3


def final(seed: int, accuracy: float | None, tested: float | None, policy: PruningPolicy) -> FinalRecord:
    result = TrialResult(FAILED, "x") if accuracy is None else TrialResult(
        "complete", None, accuracy, 1.0, RelativeCost(**_shares(0.2 + seed / 100, 0.5))
    )  # fmt: skip
    return FinalRecord(policy.digest, seed, policy, result, tested, None, 1.0)


def test_finals_are_means_and_the_median_seed():
    policy = PruningPolicy({"conv.weight": 0.5})
    runs = [final(1, 0.80, 0.70, policy), final(2, 0.90, 0.60, policy), final(3, 0.86, 0.71, policy)]
    score = score_runs(runs)
    assert (score.digest, score.n, score.best_seed) == (policy.digest, 3, 3)
    assert score.final_accuracy == fmean([0.80, 0.90, 0.86]) and score.final_sd == stdev([0.80, 0.90, 0.86])
    assert score.test_accuracy == fmean([0.70, 0.60, 0.71]) and score.test_sd == stdev([0.70, 0.60, 0.71])
    assert score.size_encoded == 0.23  # the largest: the limit holds for every seed
    assert score_runs(runs[:2]).best_seed == 1  # the lower of two
    alone = score_runs(runs[:1])
    assert alone.final_sd is None and alone.test_sd is None


def test_finals_by_a_metric_without_a_range_are_means_of_its_values():
    """By hand: RMSE 20 and 24 have the mean 22 and the deviation sqrt(8); on test, 30 and 36 have 33 and sqrt(18)."""
    unit, policy = Metric("RMSE", best="min", dense=21.0), PruningPolicy({"conv.weight": 0.5})
    shares = [[unit.share(value) for value in pair] for pair in ((20.0, 30.0), (24.0, 36.0))]
    score = score_runs([final(seed, *pair, policy) for seed, pair in enumerate(shares)], unit)
    assert unit.value(score.final_accuracy) == pytest.approx(22) and unit.value(score.test_accuracy) == pytest.approx(
        33
    )
    sds = unit.sd_of(score.final_accuracy, score.final_sd), unit.sd_of(score.test_accuracy, score.test_sd)
    assert sds == pytest.approx((8**0.5, 18**0.5))


def test_finals_are_scored_as_they_come_and_failed_ones_are_counted():
    policy = PruningPolicy({"conv.weight": 0.5})
    runs = [final(1, 0.80, 0.70, policy), final(2, 0.90, 0.60, policy)]
    assert score_runs([]) is None and score_runs(runs).n == 2
    score = score_runs([*runs, final(3, None, None, policy)])
    assert (score.n, score.failed) == (2, 1) and score.final_accuracy == fmean([0.80, 0.90])
    assert score_runs([final(seed, None, None, policy) for seed in (1, 2)]) is None


def test_a_failed_trial_with_the_policy_of_a_finalist_is_not_the_best():
    good = trial(0, 0.9, 0.2)
    broken = replace(good, number=1, result=TrialResult(FAILED, "out-of-memory"))
    assert state([good, broken], [final(1, 0.85, 0.7, good.policy)]).best == 0


def test_best_goes_by_finals_once_there_are_some():
    trials = [trial(0, 0.9, 0.2), trial(1, 0.8, 0.1)]
    runs = [final(seed, 0.85, 0.7, trials[1].policy) for seed in (1, 2)]
    found = state(trials, [], final_repeats=2)
    assert found.best == 0 and found.final(trials[1].policy.digest) is None and found.final_runs(1) == 0
    for run in runs:
        found.add_final(run)
    assert found.final_runs(1) == 2
    assert found.best == 1 and found.final(trials[1].policy.digest) is runs[0] and found.has_finals(1)
    assert [row["final_accuracy"] for row in plain_rows(found.front)] == [None, 0.85]


def test_of_trials_with_equal_finals_the_smallest_is_the_best():
    trials = [trial(0, 0.8, 0.2), trial(1, 0.7, 0.05), trial(2, 0.9, 0.24)]
    assert state(trials, [final(1, 0.85, 0.7, each.policy) for each in trials]).best == 1


def test_a_finalist_that_a_later_trial_pushed_off_the_front_can_be_the_best():
    first, later = trial(0, 0.8, 0.2), trial(1, 0.9, 0.1)
    found = state([first], [final(1, 0.95, 0.7, first.policy)])
    assert found.add(later) == [0] and [row.trial for row in found.front] == [1]
    assert found.best == 0 and state([first, later], found.finals, max_size=0.15).best == 1


def test_a_trial_that_has_finals_as_a_static_baseline_alone_is_not_the_best():
    """Trial 0, beaten in size by a trial that is as accurate; its policy is LAMP's, and its finals come out higher."""
    beaten, better = trial(0, 0.8, size=0.2), trial(1, 0.8, size=0.1)
    found = state([beaten, better], [final(1, 0.9, 0.7, beaten.policy), final(1, 0.85, 0.7, better.policy)])
    references, lamp = {"dense": Reference(0.9, 0.9, 1.0, 1.0)}, {"lamp": beaten.policy.digest}
    found.comparison = Comparison(references, lamp, "fine-grained", (better.policy.digest,))
    assert found.best == 1
    found.comparison = replace(found.comparison, finalists=(better.policy.digest, beaten.policy.digest))
    assert found.best == 0


def test_the_smallest_accurate_enough_is_the_best_where_an_accuracy_is_asked_for():
    trials = [trial(0, 0.9, 0.2), trial(1, 0.8, 0.1), trial(2, 0.7, 0.05)]
    assert [state(trials, least=least).best for least in (None, 0.75, 0.9, 0.95)] == [0, 1, 0, 0]


def test_rows_leave_as_json_and_csv():
    found = state([trial(0, None), trial(1, 0.5, latency=0.125)])
    failed, complete = plain_rows(found.rows)
    assert json.dumps(failed, allow_nan=False) and failed["accuracy"] is None and failed["reason"] == "diverged: nan"
    assert complete["latency"] == 0.125 and tuple(complete) == TRIAL_COLUMNS
    away = trial(2, 0.5, worker="2 on node-b")
    away = replace(away, result=replace(away.result, device="Card 1", precision="bf16"))
    (row,) = plain_rows(state([away]).rows)
    where = ("device", "precision", "worker")
    assert [row[name] for name in where] == ["Card 1", "bf16", "2 on node-b"]
    assert [complete[name] for name in where] == [None, "fp32", None]
    columns = ("trial", "accuracy", "latency", "sparsity", "reason")
    assert csv_text(found.rows, columns, json.dumps) == (
        'trial,accuracy,latency,sparsity,reason\n0,,,"{""conv.weight"": 0.001}",diverged: nan\n'
        '1,0.5,0.125,"{""conv.weight"": 0.002}",\n'
    )
    frame = data_frame(found.rows, columns)
    dicts = frame.assign(sparsity=frame["sparsity"].map(json.dumps))
    assert csv_text(found.rows, columns, json.dumps) == dicts.to_csv(index=False)


@pytest.mark.parametrize("unit", [SHARE, Metric("RMSE", best="min", dense=20.0)], ids=["share", "RMSE"])
def test_a_frame_has_numbers_words_and_mappings(tmp_path, unit):
    """Also where all of a column is missing, as `rung` is; and Parquet gives back what it was given."""
    mixed = trial(2, 0.25, policy=PruningPolicy({"a.weight": 0.5}, bits={"a.weight": 4}))
    frame = data_frame(state([trial(0, None), trial(1, 0.5, latency=0.125), mixed]).rows, TRIAL_COLUMNS, unit)
    kinds = {name: str(dtype) for name, dtype in frame.dtypes.items()}
    words = {"granularity", "schedule", "criterion", "origin", "digest", "state", "reason", "cause", "device"}
    words |= {"precision", "worker", *({"metric"} & {*kinds})}
    assert {name for name, kind in kinds.items() if kind == "Int64"} == {"trial", "bits", "rung"}
    assert {name for name, kind in kinds.items() if kind == "string"} == words
    assert {name for name, kind in kinds.items() if kind == "object"} == {"sparsity", "removal", "layer_bits"}
    assert {*kinds.values()} == {"Int64", "string", "object", "float64"}
    assert frame.nlargest(1, "accuracy")["trial"].item() == 1 and frame["accuracy"].isna().tolist() == [1, 0, 0]
    assert frame.describe().loc["max", "accuracy"] == 0.5
    assert frame["layer_bits"][2] == {"a.weight": 4} and frame["bits"].fillna(0).tolist() == [32, 32, 0]
    assert frame["removal"].tolist() == [None] * 3
    frame.to_parquet(tmp_path / "trials.parquet")
    back = pd.read_parquet(tmp_path / "trials.parquet")
    mappings = ["sparsity", "layer_bits"]
    pd.testing.assert_frame_equal(back.drop(columns=mappings), frame.drop(columns=mappings))
    named = [{layer: share for layer, share in row.items() if share is not None} for row in back["sparsity"]]
    assert named == frame["sparsity"].tolist()


def test_reasons_are_counted_in_the_order_of_the_trials():
    broken = [replace(trial(n, None), result=TrialResult(FAILED, why)) for n, why in enumerate("bab")]
    found = state([*broken, trial(3, 0.5)])
    assert list(found.reasons.items()) == [("b", 2), ("a", 1)] and not found.is_fruitless
    assert state(broken).is_fruitless


def test_failures_are_counted_by_cause():
    causes = ["diverged", "out-of-memory", "out-of-memory"]
    broken = [replace(trial(n, None), result=TrialResult(FAILED, "x", cause=why)) for n, why in enumerate(causes)]
    assert list(state([*broken, trial(3, 0.5)]).failures.items()) == [("out-of-memory", 2), ("diverged", 1)]


def with_file(number: int, size: int, planned: int, bound: int, given_up: int) -> TrialRecord:
    record = trial(number, 0.5)
    return replace(record, result=replace(record.result, file=WrittenFile(size, planned, bound, given_up)))


def test_files_are_told_by_their_share_of_the_bound_and_of_the_plan():
    """By hand: 90 of 100 bytes planned and of a bound of 120; 60 of 60 and of 66; 70 of 80 and of 88."""
    own = [with_file(0, 90, 100, 120, 0), with_file(1, 60, 60, 66, 1234), trial(2, None), trial(3, 0.5)]
    tuned = final(1, 0.8, 0.7, PruningPolicy({"conv.weight": 0.5}))
    tuned = replace(tuned, result=replace(tuned.result, file=WrittenFile(70, 80, 88, 17)))
    found = state(own, [tuned]).tightness
    assert found == Tightness(3, (90 / 120, 60 / 66), (70 / 80, 1.0), 2, 1234)
    assert tightness_line(found) == (
        "Files: 3 written, each with 88 to 100 % of the bytes predicted for it and 75 to 91 % of the most it "
        "could take; to fit the prediction, 2 had small values set to 0, 1,234 at most"
    )
    assert tightness_line(state(own[:1]).tightness) == (
        "Files: 1 written, with 90 % of the bytes predicted for it and 75 % of the most it could take; "
        "none had small values set to 0 to fit the prediction"
    )
    assert state(own[2:]).tightness is None


def test_time_for_choosing_bits_counts_until_it_is_known_to_be_spent():
    config = make_config(workload="digits", bits=(8, 4))
    at_limit = 3 * 1  # at 8 bits, where the weights alone are a quarter of 32
    assert short_runs_left(config, ["a", "b", "c"], [], None) == 3 * 2 + at_limit  # once for each granularity
    assert short_runs_left(config, ["a", "b", "c"], [], None, near_limit=True) == 3 * 2
    assert short_runs_left(config, ["a", "b", "c"], [], None, done=4) == 3 * 2 + at_limit - 4
    assert short_runs_left(config, ["a"], [], None, near_limit=True, done=4) == 0
    wide = config.model_copy(update={"max_size": 0.125})
    assert short_runs_left(wide, ["a"], [], None) == 3 + 3 * 2
    nonzero = config.model_copy(update={"size_metric": "nonzero", "bits": (32,)})
    assert short_runs_left(nonzero, ["a"], [], None) == 3 + 3
    mixed = config.model_copy(update={"mixed": True})
    assert short_runs_left(mixed, ["a", "b", "c"], [], None) == 2 * (3 * 2 + 1) + at_limit
    full = config.model_copy(update={"comparison": "full"})
    assert short_runs_left(full, ["a", "b"], [], None) == 3 * (2 + 2)
    policy = PruningPolicy({"conv.weight": 0.5})
    run = final(1, 0.8, 0.7, policy)
    assert short_runs_left(config, ["a", run.digest], [run], None) == 3 * 2 + at_limit
    assert short_runs_left(config, ["a"], [run], None) == 0  # a baseline's: they are chosen
    assert short_runs_left(config.model_copy(update={"finalists": 0}), ["a"], [], None) == 0
    compared = Comparison({}, {"lamp": run.digest}, "fine-grained", ("a",))
    assert short_runs_left(config, ["a"], [run], compared) == 0
    assert short_runs_left(config, ["a", "new"], [run], compared, done=9) == 3  # the limit's were compared
    pace = Pace([trial(0, 0.5)])
    pace.worked = 4.0
    finished = make_config(workload="digits", trials=1)
    assert seconds_left(finished, {"final_epochs": 3, "trial_epochs": 1}, pace, [], 2, 5) == 2 * 12.0 + 5 * 4.0


def test_time_left_counts_the_fine_tunes_by_which_baselines_are_chosen():
    """By hand: finals of one trial, 12 s, and its baseline; 3 rules at its size; 3 at the limit unless it is near."""
    options = {"trials": 1, "finalists": 1, "final_repeats": 1, "bits": (8,), "granularity": ("channel",)}
    config = make_config(**options, cost="macs", workers=2)
    for size, count in ((0.25, 3), (0.2, 6)):
        found = StudyState(config, {"final_epochs": 3, "trial_epochs": 1})
        done = trial(0, 0.5)
        seconds = {"training": 3.0, "scoring": 1.0}
        found.add(replace(done, target=size, result=replace(done.result, seconds=seconds)))
        assert found.seconds_left == (2 * 12.0 + count * 4.0) / 2
        found.short_runs += 2
        assert found.seconds_left == (2 * 12.0 + (count - 2) * 4.0) / 2
        assert found.seconds_of_short_runs(3) == 3 * 4.0 / 2
