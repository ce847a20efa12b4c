"""Metrics in their own unit: the shares that a search works on, and what is shown of them."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from statistics import fmean, stdev

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from search import Metric, SearchConfig, Workload
from search.errors import UsageError
from search.metric import SHARE, OutOfRange, metric_from_plain, metric_to_plain, told_share, with_values
from search.results.tables import TrialRow, csv_text, plain_rows
from search.store.mlflow_store import EXPERIMENT, open_store
from search.training.dense_model import build_model, dense_model
from search.training.fingerprint import training_fingerprint
from search.training.scoring import score

METRICS = [
    Metric("mAP", low=0, high=100), Metric("error", best="min", low=-1, high=3), Metric("RMSE", best="min", dense=2.5),
    Metric("dB", dense=-3.25), Metric("perplexity", best="min", low=1, dense=21.0), Metric("gain", dense=0.0),
]  # fmt: skip


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
@given(first=st.floats(0, 1), other=st.floats(0, 1))
def test_shares_rise_as_values_get_better_and_can_be_turned_back(metric, first, other):
    low = -40.0 if metric.low is None else metric.low
    high = low + 60 if metric.high is None else metric.high
    values = [low + share * (high - low) for share in (first, other)]
    shares = [metric.share(value) for value in values]
    assert all(0 <= share <= 1 for share in shares)
    for value, share in zip(values, shares, strict=True):
        assert metric.value(share) == pytest.approx(value, rel=1e-9, abs=1e-7)
    if abs(values[0] - values[1]) > 1e-6:
        better = (values[0] > values[1]) == (metric.best == "max")
        assert (shares[0] > shares[1]) == better


def test_the_dense_network_has_an_error_of_a_tenth_where_a_metric_has_no_range():
    """A value that is worse by a hundredth of the dense network's adds about as much to the error."""
    for metric in METRICS[2:5]:
        worse = metric.dense + abs(metric.dense) / 100 * (1 if metric.best == "min" else -1)
        assert metric.share(metric.dense) == 0.9 and metric.share(worse) == pytest.approx(0.9 - 0.009, abs=1e-4)
    rmse = METRICS[2]
    assert rmse.shown(rmse.share(0.0)) == "0" and rmse.shown(rmse.share(1e-6)) == "1e-06"
    assert math.isnan(Metric("x").share(3.0)) and math.isnan(METRICS[0].share(math.nan))


@pytest.mark.parametrize(
    ("value", "metric", "said"),
    [
        (101.5, METRICS[0], "metric 'mAP' is 101.5, outside its range, 0 to 100"),
        (0.5, METRICS[4], "metric 'perplexity' is 0.5, outside its range, 1 to any"),
        (1.5, SHARE, "metric 'accuracy' is 1.5, outside its range, 0 to 1"),
    ],
)
def test_a_value_outside_its_range_is_told(value, metric, said):
    with pytest.raises(OutOfRange) as raised:
        metric.share(value)
    assert str(raised.value) == f"{said}: give it the low and high that it can have, or leave them out"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": ""}, "must be a word or two"), ({"name": "a", "best": "most"}, "best must be 'max' or 'min'"),
        ({"name": "a", "low": 1, "high": 1}, "low must be below high"), ({"name": "a", "low": "0"}, "must be numbers"),
    ],
)  # fmt: skip
def test_a_metric_that_cannot_be_meant_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        Metric(**given)


def test_what_a_study_writes_down_gives_the_metric_back():
    for metric in METRICS:
        assert metric_from_plain(json.loads(json.dumps(metric_to_plain(metric)))) == metric
    for damaged in (None, {}, {"name": 3}, {"name": "a", "best": "b", "low": 0, "high": 1, "dense": None}):
        assert metric_from_plain(damaged) == SHARE
    assert metric_from_plain(metric_to_plain(METRICS[2]) | {"dense": "2.5"}) == SHARE


def test_tables_add_the_values_of_a_metric_with_a_unit():
    row = TrialRow(3, accuracy=0.25, final_accuracy=0.5)
    columns = ("trial", "accuracy", "final_accuracy", "test_accuracy")
    assert plain_rows([row], columns) == [{"trial": 3, "accuracy": 0.25, "final_accuracy": 0.5, "test_accuracy": None}]
    (found,) = plain_rows([row], columns, METRICS[0])
    assert (found["metric"], found["value"], found["final_value"], found["test_value"]) == ("mAP", 25.0, 50.0, None)
    header, line = csv_text([row], columns, str, METRICS[0]).splitlines()
    assert (
        header.endswith(",metric,value,final_value,test_value,test_value_sd") and line == "3,0.25,0.5,,mAP,25.0,50.0,,"
    )


def test_means_are_those_of_values():
    """By hand: values 60, 63 and 69 have the mean 64 and the deviation sqrt(21)."""
    rmse = Metric("RMSE", best="min", low=0, dense=66.0)
    mean, sd = rmse.mean([rmse.share(value) for value in (60.0, 63.0, 69.0)])
    assert rmse.value(mean) == pytest.approx(64) and rmse.sd_of(mean, sd) == pytest.approx(math.sqrt(21))
    assert rmse.spread(mean, sd) == "64 ± 4.6" and rmse.mean([0.875]) == (0.875, None)
    wide = Metric("SNR", low=0, dense=2.0)  # whose deviation reaches below its range
    mean, sd = wide.mean([wide.share(value) for value in (0.5, 9.5)])
    assert (wide.value(mean), wide.sd_of(mean, sd)) == pytest.approx((5, math.sqrt(40.5))) and sd > 0
    shares = [0.25, 0.75, 0.875]
    for metric in (SHARE, METRICS[0]):
        assert metric.mean(shares) == (fmean(shares), stdev(shares))
    assert METRICS[0].sd_of(0.5, 0.125) == 12.5 and rmse.sd_of(0.5, None) is rmse.sd_of(None, None) is None
    row = TrialRow(3, test_accuracy=0.5, test_sd=0.125)
    assert plain_rows([row], ("trial",), METRICS[0])[0]["test_value_sd"] == 12.5


@pytest.mark.parametrize(
    ("metric", "low", "high"),
    [
        (METRICS[0], 0.62, 0.91),
        (METRICS[1], 0.1, 0.9),
        (METRICS[3], 0.4, 0.95),
        (METRICS[4], 0.001, 1.02),
        (replace(METRICS[4], dense=1.25), 0.94, 0.985),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_an_axis_has_short_values_where_they_stand(metric, low, high):
    ticks = metric.ticks(low, high)
    assert 3 <= len(ticks) <= 7 and len({*ticks.values()}) == len(ticks)
    for share, text in ticks.items():
        assert low <= share <= high and metric.share(float(text)) == pytest.approx(share, abs=1e-4)
        assert len(text.strip("-")) <= 4


def test_what_lines_and_axes_say_of_a_metric():
    perplexity = METRICS[4]
    assert (SHARE.label("validation"), METRICS[0].label(), perplexity.label("test")) == (
        "validation accuracy, %", "mAP", "test perplexity (less is better)",
    )  # fmt: skip
    assert told_share(SHARE, 0.9725) == "97.25 %" and told_share(SHARE, 0.9725, digits=1) == "97.2 %"
    assert told_share(perplexity, 0.9) == "perplexity 21" and perplexity.told(0.9) == "21"
    assert Metric("IoU", low=0, high=1).told(0.5) == "50.00 %"
    assert perplexity.value_of(None) is perplexity.value_of(1.0) is None  # no finite value has that share


def test_json_has_a_value_beside_each_accuracy():
    data = {"dense_accuracy": 0.5, "loss": 0.75, "points": [{"accuracy": None}, {"recalibrated_accuracy": [0.25, 1]}]}
    assert with_values(data, SHARE) is data
    assert with_values(data, METRICS[0]) == {
        "dense_accuracy": 0.5, "dense_value": 50, "loss": 0.75, "points": [
            {"accuracy": None, "value": None},
            {"recalibrated_accuracy": [0.25, 1], "recalibrated_value": [25, 100]},
        ],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "metric", "value"),
    [
        ("31.5", METRICS[0], 31.5), ("dense-5", METRICS[0], 85.0), ("dense + 0.25", METRICS[2], 2.75),
        ("dense-0.5", METRICS[2], 2.0), (-4, METRICS[3], -4.0), (0.92, SHARE, 0.92), ("dense-0.03", SHARE, 0.87),
    ],
)  # fmt: skip
def test_a_score_is_wanted_in_the_unit_of_the_metric(asked, metric, value):
    """The dense network's share is 0.9."""
    config = SearchConfig(min_score=asked)
    assert metric.value(config.least_accuracy(0.9, metric)) == pytest.approx(value)


@pytest.mark.parametrize(
    ("asked", "metric", "said"),
    [
        ("-3", METRICS[4], "min-score '-3' cannot be met: metric 'perplexity' is -3, outside its range, 1 to any"),
        ("92", SHARE, "cannot be met: metric 'accuracy' is 92, outside its range, 0 to 1; 92 % is 0.92"),
        ("100", METRICS[0], "min-score '100' is an end of what mAP can be: name a value inside its range"),
        ("1", METRICS[4], "min-score '1' is an end of what perplexity can be: name a value inside its range"),
        ("dense-1", SHARE, "cannot be met: accuracy is a share, from 0 to 1; counted in points, it is dense-0.01"),
        ("dense+2.5", SHARE, "is a share, from 0 to 1; counted in points, it is dense+0.025"),
        ("dense-0.95", SHARE, "cannot be met: metric 'accuracy' is -0.05, outside its range, 0 to 1"),
        ("dense-100", METRICS[0], "min-score 'dense-100' cannot be met: mAP is from 0 to 100"),
        ("dense+15", METRICS[0], "metric 'mAP' is 105, outside its range, 0 to 100"),
    ],
)
def test_a_score_that_the_metric_cannot_have_is_refused(asked, metric, said):
    config = SearchConfig(min_score=asked)
    with pytest.raises(UsageError) as raised:
        config.least_accuracy(0.9, metric)
    assert str(raised.value).endswith(said)
    if "dense" not in asked or " from " in said:  # before anything is trained
        with pytest.raises(UsageError):
            config.least_accuracy(math.nan, replace(metric, dense=None))


X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
Y = X @ torch.tensor([0.5, -1.0, 2.0]) + 0.25


class Deviation:
    """The root of the mean square error, batch by batch."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.total, self.count = 0.0, 0

    def update(self, outputs, targets):
        self.total += float((outputs[:, 0] - targets).square().sum())
        self.count += len(targets)

    def compute(self):
        return math.sqrt(self.total / self.count)


def deviation(outputs, targets):
    return float((outputs[:, 0] - targets).square().mean().sqrt())


def task(metric, **changes):
    parts = dict.fromkeys(("fit", "calibration", "validation", "test"), (X, Y)) | changes
    loss = lambda outputs, targets: (outputs[:, 0] - targets).square().mean()  # noqa: E731
    return Workload("regression", lambda: nn.Linear(3, 1), loss=loss, metric=metric, weights="as built", **parts)


FORMS = {
    "function": deviation, "object": Deviation(), "function, streamed": deviation, "object, streamed": Deviation(),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_metric_without_a_range_is_compared_with_the_dense_network(form, tmp_path):
    def stream():
        return zip(X.split(12), Y.split(12), strict=True)

    changes = dict.fromkeys(("validation", "test"), stream) if "streamed" in form else {}
    workload = task(Metric("RMSE", FORMS[form], best="min", low=0), **changes)
    dense = dense_model(workload, 3, tmp_path)
    value = deviation(dense.model(X).detach(), Y)
    assert dense.workload.metric.dense == pytest.approx(value) and dense.accuracy == 0.9
    worse = nn.Linear(3, 1)
    found = score(worse, dense.workload.validation, dense.workload)
    shown = dense.workload.metric.value(found.accuracy)
    assert shown == pytest.approx(deviation(worse(X).detach(), Y), rel=1e-5)
    assert training_fingerprint(dense.workload) == training_fingerprint(workload)


def test_range_and_direction_count_and_the_name_does_not():
    prints = [
        training_fingerprint(task(metric))
        for metric in (
            deviation, Metric("a", deviation), Metric("b", deviation), Metric("a", deviation, best="min"),
            Metric("a", deviation, low=0),
        )
    ]  # fmt: skip
    assert prints[1] == prints[2] and len(set(prints)) == 4


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (Metric("RMSE", deviation, best="min", low=0, high=0.01), "'RMSE' is .*, outside its range, 0 to 0.01, of the"),
        (
            Metric("x", lambda o, t: math.nan),
            "metric 'x' must return a finite number, got nan of the untrained",
        ),
        (Metric("x", lambda o, t: "many"), "metric 'x' must return a finite number, got a str"),
        (lambda o, t: 30.25, r"divide percent by 100, and give any other unit as metric=search.Metric\("),
    ],
)
def test_a_metric_is_tried_before_training(metric, said):
    with pytest.raises(UsageError, match=said) as raised:
        build_model(task(metric), 0)
    assert "\n" not in str(raised.value)


UNITS = """
import torch
from search import Metric, Recipe, Workload
from tiny import changed


def deviation(outputs, targets):
    return float((outputs.softmax(1).gather(1, targets[:, None]) - 1).square().mean().sqrt())


def task():
    return changed(name="units", metric=Metric("RMSE", deviation, best="min"))
"""


@pytest.mark.slow
def test_a_study_shows_values_and_searches_shares(main, place):
    (place / "units.py").write_text(UNITS)
    options = ("--workload", "./units.py:task", "--max-size", "0.5", "--finalists", "1", "--final-seeds", "2")
    options += ("--min-score", "dense+0.2", "--cost", "macs")
    first = main("search", *options, "--trials", "4")
    assert first.code == 0 and "RMSE" in first.out and "accuracy" not in first.out.partition("Masks")[0], first.out
    assert "with an RMSE of at most " in first.out and "wanted: RMSE of at most " in first.err
    told = [line for line in first.err.splitlines() if " on validation" in line]
    assert len(told) >= 3 and all(": RMSE 0." in line for line in told) and "accuracy" not in first.err, first.err
    resumed = main("search", *options, "--trials", "5", "--json")
    assert resumed.code == 0, resumed.err
    ended, seen = json.loads(resumed.out), json.loads(main("front", "units", "--json").out)
    front, record = seen["front"], json.loads((place / "mlruns/units/study.json").read_text())
    dense = record["metric"]["dense"]
    assert ended["dense_value"] == seen["dense_value"] == pytest.approx(dense)
    assert ended["finals"][0]["validation_value"] == pytest.approx(dense, rel=1e-4)
    assert json.loads(main("status", "units", "--json").out)["dense_value"] == pytest.approx(dense)
    least = Metric("RMSE", best="min", dense=dense).value(record["least_accuracy"])
    assert least == pytest.approx(dense + 0.2)
    for row in front:
        assert row["metric"] == "RMSE" and 0 < row["value"] < 3
        assert (row["value"] < dense) == (row["accuracy"] > 0.9)
    exported = json.loads(main("export", "units", "--out", "out", "--json").out)
    assert exported["dense_value"] == pytest.approx(dense) and 0 < exported["value"] < 3 > exported["test_value"] > 0
    verified = main("verify", "out", "--workload", "./units.py:task")
    assert verified.code == 0 and re.search(r"validation RMSE +ok +(0\.\d+), recorded \1", verified.out), verified.out
    scanned = main("scan", "--workload", "./units.py:task", "--out", "scanned")
    assert scanned.code == 0 and "accuracy" not in scanned.out and "dense RMSE 0." in scanned.out, scanned.out
    drawn = json.loads((place / "scanned/profile-layers.json").read_text())
    assert drawn["metric"] == "RMSE" and drawn["dense"]["value"] > 0
    store = open_store(place / "mlruns")
    own = "tags.kind = 'trial' and tags.study = 'units'"
    logged = store.search_runs([store.get_experiment_by_name(EXPERIMENT).experiment_id], own)
    values = {int(run.data.tags["trial"]): run.data.metrics["RMSE"] for run in logged}
    assert all(values[row["trial"]] == pytest.approx(row["value"]) for row in front)


@pytest.mark.parametrize("best", ["min", "max"])
def test_ticks_of_a_metric_with_a_range_are_evenly_apart(best):
    metric = Metric("RMSE", best=best, low=0, high=20)
    low, high = (0.74, 0.955) if best == "min" else (0.045, 0.26)
    ticks = metric.ticks(low, high)
    assert sorted(ticks.values()) == ["1", "2", "3", "4", "5"] and [*ticks] == sorted(ticks)
    assert [*ticks.values()] == sorted(ticks.values(), reverse=best == "min")
    assert metric.ticks(0.5, 0.5) == {}
