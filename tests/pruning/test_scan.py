"""The sensitivity scan against a direct computation of single points."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pruning import recalibrate_, scan_sensitivity
from pruning.scan import LEVELS
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


def test_profile_survives_its_file(scanned):
    assert Profile.from_json(scanned[0].to_json()) == scanned[0]


def test_without_norms_the_pairs_are_equal():
    from pruning import trace_channels

    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.randn(30, 5)
    graph = trace_channels(model, inputs[:2])
    profile = scan_sensitivity(model, graph, (inputs, torch.arange(30) % 3), cross_entropy, accuracy)
    for granularity in ("fine-grained", "channel"):
        for _, p in profile.table(granularity):
            assert (p.loss, p.accuracy) == (p.recalibrated_loss, p.recalibrated_accuracy)
    assert len(profile.points["fine-grained"]["0.weight"]) == len(LEVELS)
    assert set(profile.points["channel"]) == {"0.weight"}
