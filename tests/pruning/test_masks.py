"""Masks, granularities, criteria: which units go, how many, and that nothing else changes."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune as torch_prune

from pruning import apply_masks_, make_mask
from pruning.masks import achieved_sparsity

GRANULARITIES = ["fine-grained", "channel"]


def by_sorting(scores: np.ndarray, removed: int) -> list[bool]:
    """A second way to choose: sort (score, place) pairs."""
    gone = {place for _, place in sorted((score, place) for place, score in enumerate(scores.tolist()))[:removed]}
    return [place not in gone for place in range(len(scores))]


small_weights = st.lists(st.integers(-3, 3), min_size=1, max_size=40).map(
    lambda v: torch.tensor(v, dtype=torch.float32)
)


class TestCounts:
    def test_lab_number(self):
        mask = make_mask(torch.randn(5, 5), sparsity=0.75)
        assert int((~mask).sum()) == 19
        assert achieved_sparsity(mask) == pytest.approx(19 / 25)

    @given(small_weights, st.floats(0, 1, exclude_max=True))
    def test_exact_with_many_ties(self, weight, sparsity):
        removed = min(math.floor(sparsity * len(weight) + 0.5), len(weight) - 1)
        mask = make_mask(weight, sparsity)
        assert mask.tolist() == by_sorting(weight.abs().numpy(), removed)

    def test_all_equal_goes_by_lowest_index(self):
        mask = make_mask(torch.full((10, 10), 2.0), 0.3)
        assert mask.flatten().tolist() == [False] * 30 + [True] * 70

    @pytest.mark.parametrize("sparsity", [0.0, 0.01, 0.16])
    def test_nothing_to_round_to(self, sparsity):
        assert make_mask(torch.tensor([1.0, 0.0, 2.0]), sparsity).all()

    @pytest.mark.parametrize("granularity", GRANULARITIES)
    def test_one_unit_stays_the_best(self, granularity):
        weight = torch.arange(24.0).reshape(4, 6)
        mask = make_mask(weight, 1 - 1e-12, granularity)
        assert mask[-1, -1]
        assert int(mask.sum()) == (1 if granularity == "fine-grained" else 6)

    @settings.get_profile("few")
    @given(st.integers(0, 10**6), st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)), st.sampled_from(GRANULARITIES))
    def test_nested(self, seed, shares, granularity):
        weight = torch.randn(7, 3, 2, generator=torch.Generator().manual_seed(seed))
        low, high = (make_mask(weight, s, granularity) for s in sorted(shares))
        assert (low | ~high).all()


class TestAgainstPyTorch:
    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("removed", [1, 17, 99, 215])
    def test_fine_grained_is_l1_unstructured(self, seed, removed):
        module = nn.Conv2d(4, 6, 3, bias=False)
        torch.manual_seed(seed)
        nn.init.normal_(module.weight)
        mine = [make_mask(module.weight, removed / 216, criterion=c) for c in ("magnitude-l1", "magnitude-l2")]
        torch_prune.l1_unstructured(module, "weight", amount=removed)
        for mask in mine:
            assert torch.equal(mask, module.weight_mask.bool())

    @pytest.mark.parametrize(("norm", "criterion"), [(1, "magnitude-l1"), (2, "magnitude-l2")])
    @pytest.mark.parametrize("removed", [1, 4, 11])
    def test_channel_is_ln_structured(self, norm, criterion, removed):
        module = nn.Conv2d(5, 12, 3, bias=False)
        nn.init.normal_(module.weight, generator=torch.Generator().manual_seed(removed))
        mine = make_mask(module.weight, removed / 12, "channel", criterion)
        torch_prune.ln_structured(module, "weight", amount=removed, n=norm, dim=0)
        assert torch.equal(mine, module.weight_mask.bool())

    def test_l1_and_l2_channels_differ_where_they_should(self):
        weight = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 3.0], [9.0, 9.0, 9.0, 9.0]])
        assert make_mask(weight, 0.34, "channel", "magnitude-l1")[:, 0].tolist() == [True, False, True]
        assert make_mask(weight, 0.34, "channel", "magnitude-l2")[:, 0].tolist() == [False, True, True]


class TestScores:
    def test_given_scores_decide_and_the_criterion_does_not(self):
        weight, scores = torch.tensor([9.0, 1.0, 5.0, 7.0]), torch.tensor([0.0, 4.0, -2.0, 3.0])
        assert make_mask(weight, 0.25, scores=scores).tolist() == [True, True, False, True]
        assert make_mask(weight, 0.25, criterion="random", scores=scores).tolist() == [True, True, False, True]

    def test_channel_scores_are_summed(self):
        scores = torch.tensor([[5.0, -5.0], [1.0, 0.0]])
        assert make_mask(torch.ones(2, 2), 0.5, "channel", scores=scores)[:, 0].tolist() == [False, True]

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_refused(self, bad):
        weight = torch.ones(3)
        with pytest.raises(ValueError, match="scores hold NaN or infinite values"):
            make_mask(weight, 0.5, scores=torch.tensor([1.0, bad, 2.0]))
        with pytest.raises(ValueError, match=r"scores must have the weight's shape \(3,\), got \(4,\)"):
            make_mask(weight, 0.5, scores=torch.ones(4))
        with pytest.raises(ValueError, match="weight has 1 NaN or infinite elements of 3"):
            make_mask(torch.tensor([1.0, bad, 2.0]), 0.5)

    def test_of_a_view(self):
        scores = torch.arange(12.0).reshape(3, 4).T
        mask = make_mask(torch.ones(4, 3), 0.25, scores=scores)
        assert mask.flatten().tolist() == by_sorting(scores.numpy().flatten(), 3)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_that_can_be_trained(self, dtype):
        scores = nn.Parameter(torch.tensor([2.0, 0.5, 0.5, 3.0], dtype=dtype))
        assert make_mask(torch.ones(4), 0.25, scores=scores).tolist() == [True, False, True, True]


class TestCount:
    @pytest.mark.parametrize("count", [0, 1, 7, 11])
    def test_as_many_units_as_asked(self, count):
        """As PyTorch's integer amounts, of weights and of biases."""
        for weight in (torch.randn(12), torch.randn(12, 3)):
            mask = make_mask(weight, count=count)
            kept = torch_prune.L1Unstructured(count).compute_mask(weight, torch.ones_like(weight)).bool()
            assert torch.equal(mask, kept)
        assert int((~make_mask(torch.randn(12, 3), granularity="channel", count=count).any(dim=1)).sum()) == count

    def test_places_of_a_pattern(self):
        assert make_mask(torch.rand(3, 8), granularity="*:8", count=5).sum(dim=1).tolist() == [3, 3, 3]
        assert make_mask(torch.rand(3, 8), granularity="2:4", count=2).sum(dim=1).tolist() == [4, 4, 4]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"count": 12}, "0 to 11 here, got 12"),
            ({"count": -1}, "0 to 11 here, got -1"),
            ({"count": 2.0}, "whole number of units, 0 to 11 here, got 2.0"),
            ({"count": True}, "got True"),
            ({"count": 3, "sparsity": 0.25}, "one of sparsity, 0 <= sparsity < 1, and count, got 0.25 and 3"),
            ({}, "and count, got None and None"),
        ],
    )
    def test_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            make_mask(torch.randn(12), **options)

    def test_a_fixed_pattern_has_its_own_count(self):
        with pytest.raises(ValueError, match="keeps 2 removes 0 or 2, got 1"):
            make_mask(torch.rand(3, 8), granularity="2:4", count=1)


class TestRefused:
    @pytest.mark.parametrize("sparsity", [1.0, 1.2, -0.1, math.nan, True, "0.5", None])
    def test_sparsity(self, sparsity):
        with pytest.raises(ValueError, match="0 <= sparsity < 1"):
            make_mask(torch.ones(4), sparsity)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"granularity": "chanel"}, "unknown granularity 'chanel': did you mean 'channel'"),
            ({"criterion": "magnitude"}, "unknown criterion 'magnitude': did you mean 'magnitude-l"),
        ],
    )
    def test_words(self, options, message):
        with pytest.raises(ValueError, match=message):
            make_mask(torch.ones(4, 4), 0.5, **options)

    @pytest.mark.parametrize("shape", [(0,), (4, 0), (0, 4)])
    def test_empty(self, shape):
        with pytest.raises(ValueError, match="empty"):
            make_mask(torch.ones(shape), 0.5)


class TestInputsStay:
    @pytest.mark.parametrize("granularity", GRANULARITIES)
    @pytest.mark.parametrize("criterion", ["magnitude-l1", "magnitude-l2", "random"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
    def test_weight_scores_and_global_random_state(self, granularity, criterion, dtype):
        weight = nn.Parameter(torch.randn(6, 5).to(dtype))
        before, scores = weight.detach().clone(), torch.randn(6, 5)
        scores_before, state = scores.clone(), torch.random.get_rng_state()
        mask = make_mask(weight, 0.99, granularity, criterion)
        make_mask(weight, 0.99, granularity, scores=scores)
        assert mask.dtype == torch.bool
        assert mask.shape == weight.shape
        assert torch.equal(weight, before)
        assert torch.equal(scores, scores_before)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert weight.grad is None

    def test_half_precision_squares_do_not_overflow(self):
        weight = torch.tensor([300.0, 400.0, 500.0, 60000.0], dtype=torch.float16)
        assert make_mask(weight, 0.5, criterion="magnitude-l2").tolist() == [False, False, True, True]

    @pytest.mark.parametrize("layout", [lambda w: w.contiguous(memory_format=torch.channels_last), lambda w: w[:, ::2]])
    def test_layout_in_memory_changes_nothing(self, layout):
        weight = layout(torch.randn(6, 4, 3, 3))
        assert torch.equal(make_mask(weight, 0.3), make_mask(weight.clone(memory_format=torch.contiguous_format), 0.3))


class TestApply:
    def test_sets_zero_and_nothing_else(self):
        model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        before = copy.deepcopy(model)
        mask = make_mask(model[0].weight, 0.25)
        apply_masks_(model, {"0.weight": mask})
        assert torch.equal(model[0].weight, torch.where(mask, before[0].weight, torch.zeros(())))
        assert torch.equal(model[0].bias, before[0].bias)
        assert torch.equal(model[1].weight, before[1].weight)
        assert set(model.state_dict()) == set(before.state_dict())

    def test_zero_is_zero_whatever_was_there(self):
        """No NaN, no infinity and no negative zero, which a product would leave."""
        model = nn.Linear(4, 1, bias=False)
        model.weight.data = torch.tensor([[math.nan, math.inf, -2.0, 3.0]])
        apply_masks_(model, {"weight": torch.tensor([[False, False, False, True]])})
        assert model.weight.tolist() == [[0.0, 0.0, 0.0, 3.0]]
        assert not torch.signbit(model.weight).any()

    def test_masked_models_copy_and_load(self):
        model = nn.Sequential(nn.Linear(4, 3))
        apply_masks_(model, {"0.weight": make_mask(model[0].weight, 0.5)})
        model(torch.randn(2, 4)).sum().backward()
        copied = copy.deepcopy(model)
        fresh = nn.Sequential(nn.Linear(4, 3))
        fresh.load_state_dict(copied.state_dict(), strict=True)
        assert torch.equal(fresh[0].weight, model[0].weight)
