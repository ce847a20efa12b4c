"""The sensitivity scan against a direct computation of single points."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pruning import recalibrate_, scan_sensitivity, trace_channels
from pruning.analysis import sensitivity_scan
from pruning.analysis.sensitivity_scan import LEVELS, known_points
from pruning.file.rounding import round_weight
from pruning.masks import make_mask
from spaces import Profile


def accuracy(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    return float((outputs.argmax(1) == targets).float().mean())


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(4)
    return torch.randn(620, 1, 8, 8, generator=generator), torch.randint(10, (620,), generator=generator)


@pytest.fixture(scope="module")
def scanned(residual, residual_graph, data):
    calls = []
    before = copy.deepcopy(residual.state_dict())
    profile = scan_sensitivity(
        residual, residual_graph, data, cross_entropy, accuracy, levels=(0.3, 0.8), fingerprint="abc",
        progress=lambda done, of: calls.append((done, of)),
    )  # fmt: skip
    unchanged = all(torch.equal(t, before[name]) for name, t in residual.state_dict().items())
    return profile, calls, unchanged


def test_subjects_and_levels(scanned, residual):
    profile, calls, unchanged = scanned
    assert unchanged
    assert (profile.model, profile.examples) == ("abc", 620)
    assert profile.seconds > 0
    assert list(profile.points["fine-grained"]) == ["first.weight", "inner.weight", "last.weight", "classifier.weight"]
    assert set(profile.points["channel"]) == {"first.weight", "inner.weight", "last.weight"}
    assert profile.points["channel"]["first.weight"] == profile.points["channel"]["last.weight"]
    assert calls == [(i + 1, 12) for i in range(12)]
    for layer, points in profile.points["channel"].items():
        n = residual.get_parameter(layer).shape[0]
        assert [p.sparsity for p in points] == pytest.approx([math.floor(s * n + 0.5) / n for s in (0.3, 0.8)])


def test_points_are_the_loss_of_that_layer_pruned_alone(scanned, residual, data):
    """Masked by hand, run in one batch; then with norms recalibrated over the scan's batches."""
    profile, inputs, targets = scanned[0], *data
    with torch.no_grad():
        outputs = residual(inputs)
    assert profile.dense_loss == pytest.approx(float(cross_entropy(outputs, targets)), rel=1e-5)
    assert profile.dense_accuracy == pytest.approx(accuracy(outputs, targets))
    for layer in ("first.weight", "classifier.weight"):
        for level, point in zip((0.3, 0.8), profile.points["fine-grained"][layer], strict=True):
            model = copy.deepcopy(residual)
            weight = model.get_parameter(layer).data
            lowest = weight.abs().flatten().sort().indices[: math.floor(level * weight.numel() + 0.5)]
            weight.view(-1)[lowest] = 0.0
            with torch.no_grad():
                plain = model(inputs)
                recalibrate_(model, [inputs[:500], inputs[500:]])
                again = model.eval()(inputs)
            assert point.sparsity == len(lowest) / weight.numel()
            assert point.loss == pytest.approx(float(cross_entropy(plain, targets)), rel=1e-4)
            assert point.accuracy == pytest.approx(accuracy(plain, targets), abs=2 / 620)
            assert point.recalibrated_loss == pytest.approx(float(cross_entropy(again, targets)), rel=1e-4)
            assert point.recalibrated_accuracy == pytest.approx(accuracy(again, targets), abs=2 / 620)


def test_patterns_are_scanned_at_each_level_they_can_tell_apart(vgg, vgg_graph, images):
    data = images, torch.tensor([1, 2])
    levels, done = (0.1, 0.3, 0.5, 0.55, 0.9), []
    profile = scan_sensitivity(
        vgg, vgg_graph, data, cross_entropy, accuracy, ("*:4", "1:4", "kernel"), levels=levels,
        progress=lambda *counts: done.append(counts),
    )  # fmt: skip
    assert "backbone.conv0.weight" not in profile.points["*:4"]
    for granularity, reached in (("*:4", [0.25, 0.5, 0.75]), ("1:4", [0.75])):
        for points in profile.points[granularity].values():
            assert [point.sparsity for point in points] == reached
    layers = len(vgg_graph.network.layers)
    assert len(profile.points["kernel"]) == layers
    assert len(done) == (layers - 1) * 4 + layers * 5 and done[-1] == (len(done), len(done))
    weight = vgg.get_parameter("backbone.conv1.weight")
    model = copy.deepcopy(vgg)
    model.get_parameter("backbone.conv1.weight").data *= make_mask(weight, 0.5, "*:4", "magnitude-l2")
    with torch.no_grad():
        expected = float(cross_entropy(model(images), data[1]))
    assert profile.points["*:4"]["backbone.conv1.weight"][1].loss == pytest.approx(expected, rel=1e-5)


def test_profile_survives_its_file(scanned):
    assert Profile.from_json(scanned[0].to_json()) == scanned[0]


def test_a_brief_scan_scores_points_in_the_pass_that_recalibrates(residual, residual_graph, data, monkeypatch):
    """Masked by hand, run once with the statistics of the batch; 12 + 4 points share the passes."""
    monkeypatch.setattr(sensitivity_scan, "BRIEF_PASSES", 16 * 120 + 14)
    passed, kept, done = [], {}, []
    hook = residual.register_forward_pre_hook(lambda model, given: passed.append(len(given[0])))
    levels = (0.5, 0.85)
    how = (residual, residual_graph, data, cross_entropy, accuracy, ("fine-grained", "channel"), "magnitude-l2", levels)
    profile = scan_sensitivity(
        *how, bits=(3, 4), brief=True, keep=kept.__setitem__, progress=lambda *counts: done.append(counts)
    )
    hook.remove()
    points = 2 * (4 + 2) + 2 * 4
    assert profile.brief and profile.examples == 120 and done[-1] == (points, points)
    assert passed[2:] == [120] * (points + 2)  # after two for their memory
    assert {level for word, _, level in kept if word != "rounding"} == {0.5, 0.85}
    assert [[p.bits for p in own] for own in profile.rounding.values()] == [[4, 3]] * 4
    count = profile.examples
    inputs, targets = (part[[620 * i // count for i in range(count)]] for part in data)
    for layer, masked in (("first.weight", True), ("classifier.weight", True), ("first.weight", False)):
        model = copy.deepcopy(residual)
        weight = model.get_parameter(layer).data
        if masked:
            weight.view(-1)[weight.abs().flatten().sort().indices[: math.floor(0.85 * weight.numel() + 0.5)]] = 0.0
        with torch.no_grad():
            expected = model.train()(inputs)
        point = profile.points["fine-grained"][layer][1]
        found = (point.recalibrated_loss, point.recalibrated_accuracy) if masked else profile.reference
        assert found == pytest.approx((float(cross_entropy(expected, targets)), accuracy(expected, targets)), rel=1e-4)
        assert math.isnan(point.loss) and math.isnan(point.accuracy)
    with torch.no_grad():
        assert profile.dense_loss == pytest.approx(float(cross_entropy(residual(inputs), targets)), rel=1e-5)
    assert repr(Profile.from_json(profile.to_json())) == repr(profile)
    assert kept.items() <= known_points(profile, levels).items()
    again = scan_sensitivity(*how, brief=True)
    assert again.points == profile.points and again.examples == count and again.rounding == {}


def test_a_brief_scan_of_many_points_has_some_examples(residual, residual_graph, data, monkeypatch):
    monkeypatch.setattr(sensitivity_scan, "BRIEF_PASSES", 1)
    monkeypatch.setattr(sensitivity_scan, "LEAST_EXAMPLES", 40)
    given = (residual, residual_graph, data, cross_entropy, accuracy, ("fine-grained", "2:4"))
    profile = scan_sensitivity(*given, levels=(0.6,), brief=True)
    assert profile.examples == 40
    assert [p.sparsity for p in profile.points["fine-grained"]["classifier.weight"]] == pytest.approx([0.6], abs=0.01)
    assert {p.sparsity for own in profile.points["2:4"].values() for p in own} == {0.5}


def test_without_norms_the_pairs_are_equal():
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.randn(30, 5)
    graph = trace_channels(model, inputs[:2])
    profile = scan_sensitivity(model, graph, (inputs, torch.arange(30) % 3), cross_entropy, accuracy)
    for granularity in ("fine-grained", "channel"):
        for _, p in profile.table(granularity):
            assert (p.loss, p.accuracy) == (p.recalibrated_loss, p.recalibrated_accuracy)
    assert len(profile.points["fine-grained"]["0.weight"]) == len(LEVELS)
    assert set(profile.points["channel"]) == {"0.weight"}


def test_many_examples_are_thinned_evenly(monkeypatch):
    """Rows sorted by class: every class is still met."""
    monkeypatch.setattr(sensitivity_scan, "SCAN_EXAMPLES", 30)
    torch.manual_seed(0)
    model, inputs = nn.Linear(5, 4).eval(), torch.randn(100, 5)
    targets = torch.arange(100) // 25
    seen = []

    def loss(outputs, wanted):
        seen.append(wanted)
        return cross_entropy(outputs, wanted)

    graph = trace_channels(model, inputs[:2])
    profile = scan_sensitivity(model, graph, (inputs, targets), loss, accuracy, levels=(0.5,))
    assert profile.examples == 30
    assert all(wanted.bincount(minlength=4).min() >= 7 and len(wanted) == 30 for wanted in seen)
    chosen = [100 * i // 30 for i in range(30)]
    with torch.no_grad():
        assert profile.dense_loss == pytest.approx(float(cross_entropy(model(inputs[chosen]), targets[chosen])))


def test_the_dense_model_is_recalibrated_as_the_points_are(scanned, residual, data):
    profile, inputs, targets = scanned[0], *data
    model = copy.deepcopy(residual)
    recalibrate_(model, [inputs[:500], inputs[500:]])
    with torch.no_grad():
        again = model.eval()(inputs)
    assert profile.dense_recalibrated_loss == pytest.approx(float(cross_entropy(again, targets)), rel=1e-3)
    assert profile.dense_recalibrated_accuracy == pytest.approx(accuracy(again, targets), abs=5 / 620)
    assert profile.is_recalibrated and not profile.too_few
    level, damage = profile.damage("fine-grained", "first.weight")
    losses = [
        p.recalibrated_loss - profile.dense_recalibrated_loss for p in profile.points["fine-grained"]["first.weight"]
    ]
    assert level[0] == 0 and damage[-1] == pytest.approx(max(0.0, *losses))


def told_by_its_offset(count: int) -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    """All examples are of one class, which a network tells by where they lie: recalibrated to mean 0 it cannot."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2))
    with torch.no_grad():
        for layer, row in ((model[0], [0.5, 0.25, 0.75]), (model[2], [1.0, 0.75, 0.5, 2.0])):
            layer.weight.copy_(torch.tensor([row]).expand(layer.weight.shape))
            layer.bias.zero_()
        model[2].weight[0] *= -1
    inputs = 2 + torch.rand(count, 3, generator=torch.Generator().manual_seed(0))
    return model.eval(), (inputs, torch.ones(count, dtype=torch.long))


@pytest.mark.parametrize("count", [1, 8])
def test_without_recalibration_where_it_hurts_the_dense_model_already(count):
    model, data = told_by_its_offset(count)
    graph = trace_channels(model, torch.cat([data[0], data[0]])[:2])
    profile = scan_sensitivity(model, graph, data, cross_entropy, accuracy, levels=(0.3, 0.8))
    assert profile.too_few and not profile.is_recalibrated and profile.dense_accuracy == 1.0
    if count > 1:
        assert 0.25 <= profile.dense_recalibrated_accuracy <= 0.75
    for granularity in profile.points:
        for _, point in profile.table(granularity):
            assert (point.loss, point.accuracy) == (point.recalibrated_loss, point.recalibrated_accuracy)
    assert profile.damage("fine-grained", "0.weight")[1][0] == 0


@pytest.mark.parametrize(
    ("lost", "few", "brief"),
    [(0, False, False), (1, False, False), (2, True, False), (4, False, True), (5, True, True)],
)
def test_one_example_lost_by_recalibration_is_not_too_few(lost, few, brief):
    """Of 40 examples one is 2.5 points, above the harm that counts of many; a brief scan bears ten points."""
    model, (inputs, targets) = told_by_its_offset(40)
    calls = iter([1.0, 1.0 - lost / 40])
    graph = trace_channels(model, inputs[:2])
    profile = scan_sensitivity(
        model, graph, (inputs, targets), cross_entropy, lambda o, t: next(calls, 1.0), levels=(0.3,),
        brief=brief,
    )  # fmt: skip
    assert profile.too_few is few


def test_examples_sorted_by_class_are_mixed(monkeypatch):
    """Batches of one class each would give statistics of no class, and the dense model a loss it has not."""
    monkeypatch.setattr(sensitivity_scan, "SCAN_BATCH", 20)
    torch.manual_seed(0)
    targets = torch.arange(200) // 50
    inputs = torch.randn(200, 6) + 4 * nn.functional.one_hot(targets, 6)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(100):
        optimizer.zero_grad()
        cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    graph = trace_channels(model.eval(), inputs[:2])
    profile = scan_sensitivity(model, graph, (inputs, targets), cross_entropy, accuracy, levels=(0.3,))
    assert profile.dense_accuracy > 0.9 and profile.is_recalibrated
    assert profile.dense_recalibrated_accuracy > profile.dense_accuracy - 0.03


def test_points_known_before_are_not_scored_again(residual, residual_graph, data):
    data, kept, again = (data[0][:40], data[1][:40]), {}, {}
    how = (residual, residual_graph, data, cross_entropy, accuracy, ("fine-grained",))
    whole = scan_sensitivity(*how, levels=(0.3, 0.8), keep=kept.__setitem__)
    assert len(kept) == 8 and set(kept) >= {("fine-grained", "first.weight", 0.3), ("fine-grained", "last.weight", 0.8)}
    some = dict(list(kept.items())[:3])
    resumed = scan_sensitivity(*how, levels=(0.3, 0.8), known=some, keep=again.__setitem__)
    assert resumed.points == whole.points and resumed.reference == whole.reference
    assert not again.keys() & some.keys() and again | some == kept


def test_points_of_rounding_are_the_loss_with_that_layer_rounded_alone(residual, residual_graph, data):
    data, kept, again, done = (data[0][:120], data[1][:120]), {}, {}, []
    how = (residual, residual_graph, data, cross_entropy, accuracy, ("channel",), "magnitude-l2", (0.3, 0.8))
    profile = scan_sensitivity(*how, bits=(3, 32, 8), keep=kept.__setitem__, progress=lambda *at: done.append(at))
    assert list(profile.rounding) == ["first.weight", "inner.weight", "last.weight", "classifier.weight"]
    assert all([p.bits for p in points] == [8, 3] for points in profile.rounding.values())
    assert done == [(n + 1, len(kept)) for n in range(len(kept))]
    for layer in ("inner.weight", "classifier.weight"):
        model = copy.deepcopy(residual)
        weight = model.get_parameter(layer).data
        weight.copy_(round_weight(weight, 3).weight())
        assert len(weight[0].unique()) <= 7
        with torch.no_grad():
            plain = model(data[0])
            recalibrate_(model, [data[0]])
            recalibrated = model.eval()(data[0])
        point = profile.rounding[layer][1]
        assert point.loss == pytest.approx(float(cross_entropy(plain, data[1])), rel=1e-4)
        assert point.recalibrated_loss == pytest.approx(float(cross_entropy(recalibrated, data[1])), rel=1e-4)
        assert point.recalibrated_accuracy == pytest.approx(accuracy(recalibrated, data[1]), abs=2 / 120)
    without = scan_sensitivity(*how)
    assert without.points == profile.points and without.rounding == {}
    known = known_points(without, (0.3, 0.8))
    assert known.items() <= known_points(profile, (0.3, 0.8)).items()
    completed = scan_sensitivity(*how, bits=(8, 3), known=known, keep=again.__setitem__)
    assert completed.rounding == profile.rounding and completed.points == profile.points
    assert {word for word, _, _ in again} == {"rounding"} and len(again) == 8
    with pytest.raises(ValueError, match=r"bits must be one of .* got 33"):
        scan_sensitivity(*how, bits=(33,))
