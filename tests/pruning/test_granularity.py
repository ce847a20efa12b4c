"""Units: views of a weight as (units, elements of a unit)."""

from __future__ import annotations

import pytest
import torch

from pruning.granularity import expand_units, unit_count, unit_scores
from spaces import GRANULARITIES

SHAPES = [(4, 3, 2, 5), (4, 3, 2), (4, 3), (4,), (1, 1), ()]


@pytest.mark.parametrize("shape", SHAPES)
def test_counts_and_sums(shape):
    scores = torch.randn(shape, dtype=torch.float64)
    flat = [float(v) for v in scores.flatten()]
    assert unit_count(shape, "fine-grained") == len(flat)
    assert unit_scores(scores, "fine-grained").tolist() == flat
    outputs = shape[0] if shape else 1
    size = len(flat) // outputs
    assert unit_count(shape, "channel") == outputs
    sums = [sum(flat[i * size : (i + 1) * size]) for i in range(outputs)]
    assert unit_scores(scores, "channel").tolist() == pytest.approx(sums)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_expanded_units_sum_to_their_elements(shape, granularity):
    units = unit_count(shape, granularity)
    kept = torch.arange(units) % 3 != 1
    mask = expand_units(kept, torch.Size(shape), granularity)
    assert mask.shape == shape
    assert mask.dtype == torch.bool
    size = mask.numel() // units
    assert unit_scores(mask.double(), granularity).tolist() == [float(k) * size for k in kept]


def test_channel_is_the_first_dimension():
    mask = expand_units(torch.tensor([True, False, True]), torch.Size([3, 2]), "channel")
    assert mask.tolist() == [[True, True], [False, False], [True, True]]


def test_every_word_of_policies_is_known_and_no_other():
    for granularity in GRANULARITIES:
        assert unit_count((4, 3), granularity) > 0
    with pytest.raises(ValueError, match="unknown granularity 'kernels'"):
        unit_count((4, 3), "kernels")
    with pytest.raises(ValueError, match=r"weight of shape \(4, 0\) is empty"):
        unit_count((4, 0), "channel")
