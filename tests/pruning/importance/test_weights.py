"""Scores of elements by each criterion, against their definitions."""

from __future__ import annotations

import pytest
import torch

from pruning.importance.weights import SUMS_OF_ELEMENTS, element_scores


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
