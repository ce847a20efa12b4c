"""The labs' pictures as files: every number in their JSON against the network itself, and the three curves."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from pruning.analysis.histograms import layer_histograms
from pruning.prune import prune
from search import Metric, get_workload
from search.analysis import report_figures
from search.analysis.pruning_curves import ITERATIVE, PRUNE_AND_TUNE, PRUNE_ONLY, pruning_curves
from search.analysis.report_figures import histogram_pages, sensitivity_pages, short
from search.analysis.report_files import (
    curve_files,
    default_layer,
    layout_files,
    sensitivity_files,
    share_files,
    weight_files,
)
from search.progress import ProgressReporter
from search.training.evaluate import PreparedModel, evaluate_policy
from spaces.policy import PruningPolicy
from spaces.schedule import Schedule
from spaces.sensitivity import Profile, ProfilePoint

SHARES = {"conv0.weight": 0.2, "conv1.weight": 0.6}
SIZES = {"conv0.weight": 72, "conv1.weight": 1152, "classifier.weight": 160}
EPOCHS, SEED = 0.2, 3


@pytest.fixture(scope="module")
def subject(place):
    workload = get_workload(f"{place}/tiny.py:tiny")
    torch.manual_seed(4)
    return PreparedModel.of(workload, workload.build_model().eval())


@pytest.fixture(scope="module")
def curves(subject):
    policy = PruningPolicy(SHARES, criterion="magnitude-l1", schedule=Schedule(exponent=2.0))
    return pruning_curves(subject, policy, (0.8, 0.3), EPOCHS, SEED, ProgressReporter())


def read(files: dict[str, bytes], name: str) -> dict:
    """A JSON file of a picture, after a look at what all of them have in common."""
    assert all(content.startswith(b"\x89PNG") for file, content in files.items() if file.endswith(".png"))
    data = json.loads(files[name])
    assert data["version"] == 1
    return data


def test_points_of_curves_are_what_the_policy_gives_by_itself(subject, curves):
    schedules = {PRUNE_AND_TUNE: Schedule("one-shot"), ITERATIVE: Schedule("iterative", exponent=2.0)}
    assert [(p.method, p.sparsity) for p in curves.points] == [
        (method, level) for method in (PRUNE_ONLY, PRUNE_AND_TUNE, ITERATIVE) for level in (0.3, 0.8)
    ]
    for point in curves.points:
        assert sum(SIZES[n] * s for n, s in point.shares.items()) / (72 + 1152) == pytest.approx(point.sparsity)
        policy = PruningPolicy(point.shares, criterion="magnitude-l1")
        if point.method == PRUNE_ONLY:
            inputs, targets = subject.workload.validation
            with torch.no_grad():
                found = prune(subject.dense, policy).eval()(inputs).argmax(dim=1)
            assert point.accuracy == pytest.approx(float((found == targets).double().mean()))
            continue
        policy = PruningPolicy(point.shares, criterion="magnitude-l1", schedule=schedules[point.method])
        alone = evaluate_policy(subject, policy, EPOCHS, SEED).result
        assert (point.accuracy, point.loss) == (alone.accuracy, alone.loss)
        assert point.size_nonzero == alone.shares.nonzero
    tuned, rounds = ([p.loss for p in curves.points if p.method == m] for m in (PRUNE_AND_TUNE, ITERATIVE))
    assert tuned != rounds


def test_curves_say_what_they_cost_and_how_they_were_scaled(curves):
    data = read(files := curve_files(curves), "curves.json")
    assert set(files) == {"curves.png", "curves.json"} and data["picture"] == "curves"
    assert data["cost"]["steps"] == 4 and data["cost"]["epochs"] == EPOCHS and data["cost"]["rounds"] == 3
    assert [p["accuracy"] for p in data["points"]] == [p.accuracy for p in curves.points]
    assert data["seed"] == SEED and data["policy"]["sparsity"] == SHARES and "logits" in data["scaled_by"]
    unsaid = replace(curves, steps=None)  # as a loop of the user's own leaves them
    own = curve_files(unsaid, Metric(r"m$\frac$", low=0, high=40))
    assert own["curves.png"] not in (files["curves.png"], curve_files(unsaid)["curves.png"])
    data = read(own, "curves.json")
    assert data["metric"] == r"m$\frac$" and data["cost"]["steps"] is None
    assert [p["value"] for p in data["points"]] == pytest.approx([40 * p.accuracy for p in curves.points])


def test_a_point_that_fails_has_a_reason_and_the_others_stay(subject, monkeypatch):
    from search.training import evaluate

    whole, calls = evaluate.fine_tune, []

    def breaks_once(*words):
        calls.append(words)
        if len(calls) == 1:
            raise MemoryError
        return whole(*words)

    monkeypatch.setattr(evaluate, "fine_tune", breaks_once)
    found = pruning_curves(subject, PruningPolicy(SHARES), (0.5,), 0.05, SEED, ProgressReporter())
    tuned = {point.method: point for point in found.points}
    assert tuned[PRUNE_AND_TUNE].reason == "out-of-memory" and tuned[PRUNE_AND_TUNE].accuracy is None
    assert tuned[ITERATIVE].reason is None and 0 <= tuned[ITERATIVE].accuracy <= 1
    assert read(curve_files(found), "curves.json")["points"][1]["accuracy"] is None


def test_weights_of_all_stages_are_counted(subject):
    policy = PruningPolicy({"conv0.weight": 0.25, "conv1.weight": 0.75}, {"conv0.weight": "channel"})
    pruned = prune(subject.dense, policy, graph=subject.graph)
    data = read(files := weight_files({"dense": subject.dense, "pruned": pruned}), "weights.json")
    assert set(files) == {"weights.png", "weights.json"} and data["stages"] == ["dense", "pruned"]
    for name, stages in data["layers"].items():
        for stage in stages:
            assert sum(stage["counts"]) + stage["zeros"] + stage["gone"] == SIZES[name]
            assert len(stage["edges"]) == len(stage["counts"]) + 1
    conv0, conv1 = data["layers"]["conv0.weight"][1], data["layers"]["conv1.weight"][1]
    assert (conv0["gone"], conv0["zeros"]) == (2 * 9, 0)
    assert (conv1["gone"], conv1["zeros"]) == (2 * 16 * 9, 0.75 * 6 * 16 * 9)
    assert "bits" not in data


def test_histograms_show_the_bits_of_each_layer(subject):
    policy = PruningPolicy({"conv1.weight": 0.5}, bits={"conv0.weight": 6, "conv1.weight": 3})
    stages = {"dense": subject.dense, "pruned": prune(subject.dense, policy, graph=subject.graph)}
    plain, rounded = weight_files(stages), weight_files(stages, policy.bits_of)
    bits = {"conv0.weight": 6, "conv1.weight": 3, "classifier.weight": 32}
    assert read(rounded, "weights.json")["bits"] == bits
    assert rounded["weights.png"] != plain["weights.png"]


def test_shares_and_layouts_are_written_for_every_sparsity(subject):
    importance = subject.importance("magnitude-l1")
    how = ("fine-grained", "2:4", "channel"), (0.25, 0.5)
    shares = share_files(importance, *how)
    data = read(shares, "shares.json")
    assert set(shares) == {"shares-0.25.png", "shares-0.5.png", "shares.json"} and data["criterion"] == "magnitude-l1"
    layers = {(row["granularity"], row["layer"]) for row in data["rows"]}
    assert ("2:4", "conv0.weight") not in layers and ("channel", "classifier.weight") not in layers and len(layers) == 7
    means = {(mean["sparsity"], mean["granularity"]): mean for mean in data["means"]}
    assert set(means) == {(0.25, "fine-grained"), (0.25, "channel"), *((0.5, word) for word in how[0])}
    assert means[0.5, "2:4"]["layers"] == ["conv1.weight"]

    layouts = layout_files(importance, "conv1.weight", *how)
    data = read(layouts, "layout.json")
    assert set(layouts) == {"layout-0.25.png", "layout-0.5.png", "layout.json"}
    weight = subject.dense.conv1.weight.detach()
    for o, i, y, x in np.ndindex(16, 8, 3, 3):
        assert data["weight"][3 * o + y][3 * i + x] == pytest.approx(float(weight[o, i, y, x]), rel=1e-5)
    for found in data["masks"]:
        policy = PruningPolicy({"conv1.weight": found["sparsity"]}, found["granularity"], criterion="magnitude-l1")
        kept = prune(subject.dense, policy).conv1.weight.detach() != 0
        assert found["achieved"] == pytest.approx(1 - float(kept.double().mean()))
        assert all(found["mask"][3 * o + y][3 * i + x] == kept[o, i, y, x] for o, i, y, x in np.ndindex(16, 8, 3, 3))
    assert [m["achieved"] for m in data["masks"] if m["granularity"] == "2:4"] == [0.5, 0.5]


def test_the_layer_drawn_is_the_first_that_all_can_prune(subject):
    assert default_layer(subject.network, ("fine-grained", "vector")) == "conv0.weight"
    assert default_layer(subject.network, ("fine-grained", "2:4", "channel")) == "conv1.weight"
    left = type(subject.network)(subject.network.tensors, subject.network.layers[:1], subject.network.groups)
    assert default_layer(left, ("2:4",)) == "conv0.weight"


def test_sensitivity_begins_with_the_dense_model(subject):
    points = {
        "fine-grained": {
            "conv1.weight": (ProfilePoint(0.25, 0.7, 0.8, 0.6, 0.85), ProfilePoint(0.9, 4, 0.1, math.nan, 0.2))
        },
        "channel": {"conv0.weight": (ProfilePoint(0.3, 0.75, 0.5, 0.75, 0.5),)},
    }  # fmt: skip
    data = read(files := sensitivity_files(Profile("m", 60, 0.5, 0.875, points, 1.0), subject.network, "s"), "s.json")
    assert set(files) == {"s.png", "s.json"} and data["dense"] == {"accuracy": 0.875, "loss": 0.5}
    conv0, conv1 = data["layers"]
    assert (conv0["layer"], conv0["parameters"], conv1["parameters"]) == ("conv0.weight", 72, 1152)
    assert conv1["curves"] == {
        "fine-grained": {
            "sparsity": [0.0, 0.25, 0.9], "accuracy": [0.875, 0.8, 0.1], "loss": [0.5, 0.7, 4],
            "recalibrated_accuracy": [0.875, 0.85, 0.2], "recalibrated_loss": [0.5, 0.6, None],
        }
    }  # fmt: skip
    profile = Profile("m", 60, 0.5, 0.875, points, 1.0)
    own = sensitivity_files(profile, subject.network, "s", unit=Metric(r"m$\frac$", low=0, high=40))
    data = read(own, "s.json")
    assert data["metric"] == r"m$\frac$" and data["dense"]["value"] == 35 and own["s.png"] != files["s.png"]
    assert data["layers"][1]["curves"]["fine-grained"]["recalibrated_value"] == [35, 34, 8]


def test_histograms_say_how_far_the_outermost_bars_reach(monkeypatch):
    monkeypatch.setattr(report_figures, "png_bytes", lambda figure: figure)
    among = torch.arange(1, 2001) / 1000

    def drawn(*further):
        (histogram,) = layer_histograms([torch.cat([among, torch.tensor(further)])], bins=10)
        (figure,) = histogram_pages({"one": (histogram,)}, ["dense"])
        (axes,) = figure.axes
        return [text.get_text() for text in axes.texts], figure.get_supxlabel(), axes.get_xlim()

    assert drawn() == ([], "value of a weight", pytest.approx((-0.1, 2.1), abs=0.02))
    texts, label, limits = drawn(-52.25)
    assert texts == ["to \N{MINUS SIGN}52.2"] and "as far as is written" in label
    assert limits == pytest.approx((-0.1, 2.1), abs=0.02)


@pytest.mark.parametrize(
    ("brief", "lowest", "dense", "line"), [(False, 12, 87.5, "dense, 87.50 %"), (True, 30, 82, "dense, 82.00 %")]
)
def test_layers_are_compared_on_axes_that_are_alike(monkeypatch, brief, lowest, dense, line):
    """The lowest accuracy that is drawn is one that was not recalibrated, which a brief scan leaves out."""
    monkeypatch.setattr(report_figures, "png_bytes", lambda figure: figure)
    points = {
        "fine-grained": {
            "one": (ProfilePoint(0.25, 0.7, 0.12, 0.6, 0.80),),
            "two": (ProfilePoint(0.5, 0.7, 0.8, 0.6, 0.30),),
        },
    }
    profile = Profile("m", 60, 0.5, 0.875, points, 1.0, 0.6, 0.82, brief=brief)
    (figure,) = sensitivity_pages(profile, {"one": 10, "two": 20})
    one, two = figure.axes[0], figure.axes[1]
    assert one.get_ylim() == two.get_ylim() and lowest - 5 < one.get_ylim()[0] < lowest
    assert one.get_ylim()[1] < 92 and one.get_lines()[-1].get_ydata() == pytest.approx([dense, dense])
    assert figure.legends[0].get_texts()[-1].get_text() == line


def test_many_layers_take_many_pages():
    (histogram,) = layer_histograms([torch.tensor([1.0, -2.0, 0.0])], bins=2)
    assert len(histogram_pages({f"layer{n}": (histogram,) for n in range(25)}, ["dense"])) == 2
    assert len(short("features.stage.block.further.down.conv.weight")) == 34
