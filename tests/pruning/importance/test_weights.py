"""Scores of elements by each criterion, against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from pruning import ImportanceScores, trace_channels
from pruning.importance import weights
from pruning.importance.weights import FROM_WEIGHTS, SUMS_OF_ELEMENTS, element_scores
from spaces import criteria


def test_magnitudes_by_hand():
    weight = torch.tensor([[1.5, -2.0], [0.0, -0.25]])
    assert element_scores(weight, "magnitude-l1").tolist() == [[1.5, 2.0], [0.0, 0.25]]
    assert element_scores(weight, "magnitude-l2").tolist() == [[2.25, 4.0], [0.0, 0.0625]]


@pytest.mark.parametrize("criterion", SUMS_OF_ELEMENTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_type_shape_and_sign(criterion, dtype):
    weight = torch.randn(3, 4, dtype=torch.float64).to(dtype).requires_grad_()
    scores = element_scores(weight, criterion)
    assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert scores.shape == weight.shape
    assert (scores >= 0).all()
    assert not scores.requires_grad


def test_magnitudes_ignore_sign():
    weight = torch.randn(50)
    for criterion in ("magnitude-l1", "magnitude-l2"):
        assert torch.equal(element_scores(weight, criterion), element_scores(-weight, criterion))


def test_random_depends_on_the_generator_alone():
    weight = torch.randn(200)
    first, again = element_scores(weight, "random"), element_scores(weight * 9, "random")
    assert torch.equal(first, again)
    seeded = [element_scores(weight, "random", torch.Generator().manual_seed(s)) for s in (4, 4, 5)]
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.equal(seeded[0], seeded[2])
    assert torch.equal(first, element_scores(weight, "random", torch.Generator().manual_seed(0)))
    assert 0.35 < float(first.mean()) < 0.65
    assert len(set(first.tolist())) == 200


@pytest.mark.parametrize("criterion", [*SUMS_OF_ELEMENTS, "lamp"])
def test_refused(criterion):
    with pytest.raises(ValueError, match="weight has 2 NaN or infinite elements of 3: retrain or repair it first"):
        element_scores(torch.tensor([1.0, float("nan"), -float("inf")]), criterion)
    with pytest.raises(ValueError, match="weight is empty"):
        element_scores(torch.empty(0), criterion)
    with pytest.raises(ValueError, match="unknown criterion 'magnitud-l1': did you mean 'magnitude-l1'"):
        element_scores(torch.ones(2), "magnitud-l1")


def norm_squares(channels):
    return [sum(w * w for w in channel) for channel in channels]


DIRECT = {
    "magnitude-l1": lambda unit, channels, _: sum(abs(w) for c in unit for w in channels[c]),
    "magnitude-l2": lambda unit, channels, _: math.sqrt(sum(w * w for c in unit for w in channels[c])),
    "random": lambda unit, _, draws: sum(draw for c in unit for draw in draws[c]),
    "lamp": lambda unit, channels, _: sum(
        one / sum(other for other in norm_squares(channels) if other >= one)
        for one in (norm_squares(channels)[c] for c in unit)
    ),
    "fpgm": lambda unit, channels, _: sum(math.dist(channels[c], other) for c in unit for other in channels),
}
"""A unit's score by its channels' numbers, all channels of the layer, and one random number for each weight."""


@pytest.mark.parametrize("criterion", FROM_WEIGHTS)
def test_a_unit_of_a_grouped_convolution_scores_the_sum_over_its_channels(criterion):
    """Unit u has channels u, u + 3 and u + 6, one of each of the convolution's groups."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(2, 6, 1), nn.Conv2d(6, 9, 2, groups=3), nn.Flatten(), nn.Linear(36, 4)).double()
    channels = model[1].weight.detach().flatten(1).tolist()
    draws = torch.rand(9, 8, generator=torch.Generator().manual_seed(7 + 1), dtype=torch.float64).tolist()
    expected = np.array([DIRECT[criterion]((u, u + 3, u + 6), channels, draws) for u in range(3)])
    scores = ImportanceScores(model, criterion, trace_channels(model, torch.randn(2, 2, 3, 3).double()), seed=7)
    np.testing.assert_allclose(scores.group(1), expected / expected.mean(), rtol=1e-9)


def test_a_name_without_a_formula_scores_by_no_other(monkeypatch):
    monkeypatch.setitem(criteria._BUILT_IN, "nameless", criteria.CriterionWord())
    monkeypatch.setattr(weights, "FROM_WEIGHTS", (*FROM_WEIGHTS, "nameless"))
    with pytest.raises(NotImplementedError, match="criterion 'nameless' is named in FROM_WEIGHTS and has no formula"):
        element_scores(torch.ones(2, 3), "nameless", granularity="channel")
