"""Units and their order, against loops over single elements."""

from __future__ import annotations

from collections import defaultdict
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.masks import make_mask
from pruning.units import expand_units, staying_units, unit_ranks, unit_scores, units
from spaces import GRANULARITIES

SHAPES = [(4, 3, 2, 5), (4, 8, 3, 3), (4, 3, 2), (2, 16, 1, 1), (3, 2, 2, 2, 3), (4, 6), (4, 8), (4,), (1, 1), ()]
RUNS = ("fine-grained", "vector", "kernel", "channel")
PATTERNS = {"1:4": 3, "2:4": 2}
"""Fixed patterns, and how many of 4 they remove."""


def unit_of(index: tuple[int, ...], shape: tuple[int, ...], granularity: str) -> tuple[int, ...]:
    """Which unit an element belongs to, by the words of the definition."""
    alone = len(shape) < 2 or all(length == 1 for length in shape[2:])
    if granularity == "channel":
        return index[:1]
    if granularity == "fine-grained" or (granularity == "kernel" and alone) or len(shape) < 2:
        return index
    if granularity == "kernel":
        return index[:2]
    if alone:
        length = 4 if shape[1] % 4 == 0 else 3 if shape[1] % 3 == 0 else 2 if shape[1] % 2 == 0 else 1
        return (index[0], index[1] // length)
    return index[:-1]


def elements_by_unit(shape: tuple[int, ...], granularity: str) -> list[list[tuple[int, ...]]]:
    found = defaultdict(list)
    for index in product(*map(range, shape)):
        found[unit_of(index, shape, granularity)].append(index)
    return list(found.values())


@pytest.mark.parametrize("granularity", RUNS)
@pytest.mark.parametrize("shape", SHAPES)
def test_runs_are_scored_by_their_sum_and_expanded_to_their_elements(shape, granularity):
    scores = torch.randn(shape, dtype=torch.float64)
    by_unit = elements_by_unit(shape, granularity)
    assert units(shape, granularity).count == len(by_unit)
    sums = [sum(float(scores[index]) for index in elements) for elements in by_unit]
    assert unit_scores(scores, granularity).tolist() == pytest.approx(sums)
    kept = torch.arange(len(by_unit)) % 3 != 1
    mask = expand_units(kept, torch.Size(shape), granularity)
    assert (mask.shape, mask.dtype) == (shape, torch.bool)
    for keep, elements in zip(kept.tolist(), by_unit, strict=True):
        assert {bool(mask[index]) for index in elements} == {keep}


@given(
    shape=st.sampled_from([(3, 8), (2, 16, 2, 3), (5, 4, 3), (2, 24, 1, 1)]),
    share=st.floats(0, 0.999),
    m=st.sampled_from([4, 8]),
    levels=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_patterns_keep_the_highest_of_every_block(shape, share, m, levels, seed):
    """Few levels make ties, of which the lowest input goes first."""
    if shape[1] % m:
        m = 4
    scores = np.random.default_rng(seed).integers(0, levels, shape).astype(float)
    mask = make_mask(torch.ones(shape), share, f"*:{m}", scores=torch.tensor(scores)).numpy()
    removed = min(int(np.floor(share * m + 0.5)), m - 1)
    for output, block, *kernel in product(range(shape[0]), range(shape[1] // m), *map(range, shape[2:])):
        places = [(output, block * m + n, *kernel) for n in range(m)]
        gone = sorted(places, key=lambda place: (scores[place], place[1]))[:removed]
        assert [not mask[place] for place in places] == [place in gone for place in places]


@pytest.mark.parametrize(("granularity", "removed"), PATTERNS.items())
@pytest.mark.parametrize("scores", ["all-equal", "all-zero", "random"])
def test_fixed_patterns_remove_all_they_can_or_nothing(granularity, removed, scores):
    weight = torch.rand(3, 8, 2) if scores == "random" else torch.full((3, 8, 2), 2.0 * (scores == "all-equal"))
    nearer_to_nothing = removed / 8 - 0.01
    for share, expected in [(0.0, 0), (nearer_to_nothing, 0), (removed / 8, removed), (0.5, removed), (0.99, removed)]:
        mask = make_mask(weight, share, granularity)
        by_block = mask.movedim(1, -1).reshape(-1, 4).sum(dim=1)
        assert by_block.tolist() == [4 - expected] * 12


@pytest.mark.parametrize("granularity", [*PATTERNS, "*:4", "*:8"])
def test_patterns_refuse_inputs_they_do_not_divide(granularity):
    m = granularity[-1]
    with pytest.raises(ValueError, match=rf"^.:{m} needs a multiple of {m} inputs, the weight has 6$"):
        make_mask(torch.rand(4, 6), 0.5, granularity)
    with pytest.raises(ValueError, match=f"needs a multiple of {m} inputs, the weight has 1"):
        make_mask(torch.rand(16), 0.5, granularity)


def test_ranks_are_the_order_in_which_units_go():
    scores = torch.tensor([[3.0, 1.0, 1.0, 0.5], [0.0, 0.0, 2.0, 0.0]])
    assert unit_ranks(scores, "*:4").tolist() == [[3, 1, 2, 0], [0, 1, 3, 2]]
    assert unit_ranks(scores, "channel").tolist() == [1, 0]
    assert unit_ranks(scores, "fine-grained").tolist() == [7, 4, 5, 3, 0, 1, 6, 2]


def test_every_word_of_policies_is_known_and_no_other():
    for granularity in GRANULARITIES:
        assert units((4, 8), granularity).count > 0
    with pytest.raises(ValueError, match=r"unknown granularity 'kernels'.*'kernel'"):
        units((4, 8), "kernels")
    for granularity in GRANULARITIES:
        with pytest.raises(ValueError, match=r"weight of shape \(4, 0\) is empty"):
            units((4, 0), granularity)


@pytest.mark.parametrize("granularity", ["fine-grained", "vector", "channel", "*:4"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
@settings.get_profile("few")
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1, exclude_max=True))
def test_those_that_stay_are_those_ranked_last(granularity, dtype, seed, share):
    """Few values, so that most thresholds are tied."""
    scores = torch.randint(-2, 3, (8, 12), generator=torch.Generator().manual_seed(seed)).to(dtype)
    removed = int(share * (4 if granularity == "*:4" else units(scores.shape, granularity).count))
    ranks = unit_ranks(scores, granularity)
    assert torch.equal(staying_units(scores, granularity, removed), ranks >= removed)


@pytest.mark.parametrize("removed", [1, 2, 3])
def test_sums_that_overflow_go_last_and_the_count_holds(removed):
    """Two channels of infinite sum are tied; the lower index goes first."""
    scores = torch.tensor([[3e38, 3e38], [1.0, 2.0], [3e38, 2e38], [0.0, 1.0]])
    assert staying_units(scores, "channel", removed).tolist() == [removed < 3, removed < 2, True, False]
