"""Allocations by histograms against those that compare every unit, and where both must not differ at all."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from pruning.channels.tracing import trace_channels
from pruning.importance import scores
from pruning.importance.scores import unit_importance
from spaces import Layer, Network, StoredTensor
from spaces.allocation.allocators import allocate
from spaces.allocation.budget import Target
from spaces.allocation.histogram import ScoreHistogram
from spaces.allocation.importance import AllocationInputs

SHAPES = {"a.weight": (40, 30, 3, 3), "b.weight": (200, 210), "c.weight": (60, 40, 1, 1), "d.weight": (500, 20)}
NETWORK = Network(
    tuple(StoredTensor(name, shape) for name, shape in SHAPES.items()),
    tuple(Layer(name, "conv2d" if len(s) == 4 else "linear", s, 1) for name, s in SHAPES.items()),
)
RULES = ("lamp", "global")
NEAR = 1e-3
"""Of a layer's units: how far the share by histograms may be from the share by sorting."""


def squares(seed: int) -> dict[str, np.ndarray]:
    """Of weights on four scales: one layer has heavy tails, one two humps, and one is masked in part."""
    draw = np.random.default_rng(seed)
    normal = {name: draw.normal(size=math.prod(shape)) for name, shape in SHAPES.items()}
    normal["a.weight"] *= 0.03
    normal["b.weight"] = 0.01 * draw.standard_t(3, size=math.prod(SHAPES["b.weight"]))
    normal["c.weight"] += np.where(draw.random(len(normal["c.weight"])) < 0.3, 3.0, 0.0)
    normal["d.weight"][draw.permutation(len(normal["d.weight"]))[:1700]] = 0.0
    return {name: np.square(values, dtype=np.float32) for name, values in normal.items()}


def histograms(found: dict[str, np.ndarray]) -> dict[str, ScoreHistogram]:
    return {name: ScoreHistogram.of(np.array_split(values, 3)) for name, values in found.items()}


def test_bins_hold_every_unit_once_and_say_where_it_lies():
    values = squares(0)["d.weight"]
    found = ScoreHistogram.of([values[:1234], values[1234:]])
    assert found.units == len(values) and found.counts[0] == 1700 and found.bins[0] == 0
    assert found.mean == pytest.approx(float(values.astype(float).mean()), rel=1e-6)
    low, high = 2.0 ** found.logarithms()[1:].T
    assert (high / low <= 1 + 1 / 128).all() and (low[1:] >= high[:-1] * (1 - 1e-9)).all()
    for number in (0, len(low) // 2, len(low) - 1):
        inside = ((values >= low[number]) & (values < high[number])).sum()
        assert inside == found.counts[number + 1]


@pytest.mark.parametrize("share", [0.8, 0.31, 0.09, 0.02])
@pytest.mark.parametrize("rule", RULES)
def test_shares_are_those_of_sorting(rule, share):
    scores = squares(1)
    target = Target(NETWORK, share, metric="nonzero")
    by_sorting = allocate(rule, target, AllocationInputs(scores))
    by_counting = allocate(rule, target, AllocationInputs(histograms(scores)))
    assert by_counting == pytest.approx(by_sorting, abs=NEAR)
    assert by_counting != by_sorting
    weights = sum(map(math.prod, SHAPES.values()))
    assert share - 2 * len(SHAPES) / weights <= target.size(by_counting) <= share
    file = Target(NETWORK, share)
    size = file.size(allocate(rule, file, AllocationInputs(histograms(scores))))
    assert share * (1 - NEAR) <= size <= share


@pytest.mark.parametrize("rule", RULES)
def test_units_of_zeros_go_first_and_everywhere_in_the_same_share(rule):
    scores = squares(2)
    scores["b.weight"][:10_000] = 0.0
    target = Target(NETWORK, 1 - 5000 / sum(map(math.prod, SHAPES.values())), metric="nonzero")
    found = allocate(rule, target, AllocationInputs(histograms(scores)))
    assert found["a.weight"] == found["c.weight"] == 0.0
    zeros = {"b.weight": 10_000 / scores["b.weight"].size, "d.weight": 1700 / scores["d.weight"].size}
    gone = {name: found[name] / share for name, share in zeros.items()}
    assert gone["b.weight"] == pytest.approx(gone["d.weight"]) == pytest.approx(5000 / 11_700, abs=1e-3)


def test_a_factor_moves_global_and_not_lamp():
    scores = squares(3)
    louder = scores | {"c.weight": scores["c.weight"] * 256}
    target = Target(NETWORK, 0.2, metric="nonzero")
    lamp, same = (allocate("lamp", target, AllocationInputs(histograms(own))) for own in (scores, louder))
    assert lamp == pytest.approx(same, abs=1e-9)
    plain, moved = (allocate("global", target, AllocationInputs(histograms(own))) for own in (scores, louder))
    assert moved["c.weight"] < plain["c.weight"] / 4 and moved["a.weight"] > plain["a.weight"]


def test_an_extreme_score_is_counted_as_the_largest():
    found = ScoreHistogram.of([np.array([1e-60, 2.0, 1e300])])
    assert found.counts.tolist() == [1, 1, 1] and found.bins[0] == 0
    assert np.isfinite(found.lamp_logarithms()).all() and found.lamp_logarithms()[-1, 1] == 0


@pytest.mark.parametrize(
    ("granularity", "unit"), [("fine-grained", 1), ("vector", 3), ("kernel", 9), ("2:4", 1), ("channel", 72)]
)
def test_large_networks_are_counted_in_pieces(granularity, unit, monkeypatch):
    """The second layer of 16 x 8 kernels has 1152 weights, taken two rows at a time."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)).eval()
    graph = trace_channels(model, torch.randn(1, 2, 9, 9))
    exact = unit_importance(model, graph, granularity)
    monkeypatch.setattr(scores, "MOST_SORTED", sum(len(own) for own in exact.values()) - 1)
    monkeypatch.setattr(scores, "PIECE", 150)
    counted = unit_importance(model, graph, granularity)
    if granularity == "channel":
        assert all(isinstance(own, np.ndarray) for own in counted.values())
        return
    assert counted.keys() == exact.keys()
    for name, own in counted.items():
        whole = ScoreHistogram.of([exact[name]])
        assert own.bins.tolist() == whole.bins.tolist() and own.counts.tolist() == whole.counts.tolist()
        assert own.sums == pytest.approx(whole.sums)
    assert counted["2.weight"].units == 1152 / unit
    monkeypatch.undo()
    assert all(isinstance(own, np.ndarray) for own in unit_importance(model, graph, granularity).values())
