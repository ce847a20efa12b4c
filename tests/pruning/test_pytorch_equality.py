"""Our masks against those of torch.nn.utils.prune: where they are equal, and where only their counts can be."""

from __future__ import annotations

import copy
from fractions import Fraction
from math import floor

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune as torch_prune

from pruning import apply_masks_, encode_model, make_mask, prune, trace_channels
from pruning.channels.structure import Structure
from pruning.gradual import GradualPruner
from pruning.importance.weights import element_scores
from pruning.masks import achieved_sparsity, global_masks
from pruning.policy_masks import policy_masks
from search.training.checkpoints import save_model
from spaces import PruningPolicy
from spaces.allocation.allocators import allocate
from spaces.allocation.budget import Target
from spaces.allocation.importance import AllocationInputs
from spaces.counting import removed_count
from spaces.schedule import Schedule
from spaces.validation import unknown

shapes = st.sampled_from([(4, 3), (9, 2), (3, 2, 3, 3), (5, 1, 2), (17, 6)])
seeds = st.integers(0, 10**6)


def layer_of(weight: torch.Tensor) -> nn.Module:
    module = nn.Module()
    module.register_parameter("weight", nn.Parameter(weight.clone()))
    return module


def normal(seed: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Weights without ties."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tied(seed: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Small whole numbers: many ties, and norms without rounding."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).double()


def same_but_for_ties(ours: torch.Tensor, theirs: torch.Tensor, scores: torch.Tensor) -> bool:
    """Equal counts, and equal decisions on all but the elements that tie with the highest that goes.

    `torch.topk` has no rule for ties: it takes whichever its partial sort or nth_element happens to leave in front, not
    the lowest index. Of 16 equal elements it takes number 10 first, of 200 equal ones number 0.
    """
    highest = scores[~ours].max() if not ours.all() else scores.min()
    return int(ours.sum()) == int(theirs.sum()) and torch.equal(ours[scores != highest], theirs[scores != highest])


class TestRounding:
    """PyTorch removes `round(amount * n)`, which rounds halves to even; ours is `floor(amount * n + 0.5)`."""

    @given(st.integers(2, 300), st.data())
    def test_counts_differ_at_even_halves_and_at_everything_only(self, units, data):
        amount = data.draw(st.integers(0, 4 * units)) / (4 * units)  # every second one near a whole or a half unit
        theirs = torch_prune._compute_nparams_toprune(amount, units)
        if amount == 1.0:
            assert theirs == units
            with pytest.raises(ValueError, match="0 <= sparsity < 1"):
                removed_count(amount, units)
            return
        ours, product = removed_count(amount, units), Fraction(amount * units)
        beyond = product - floor(product) - Fraction(1, 2)
        if theirs == units:
            assert ours == units - 1
        elif beyond == 0:
            assert ours == min(theirs + (floor(product) % 2 == 0), units - 1)
        elif abs(beyond) > 1e-9:
            assert ours == theirs
        else:
            assert ours - theirs in (0, 1)  # 1/98 of 49 is 0.49999999999999994, and adding 0.5 gives 1.0

    @pytest.mark.parametrize(
        ("amount", "units", "theirs", "ours"),
        [(0.25, 10, 2, 3), (0.35, 10, 4, 4), (0.5, 5, 2, 3), (0.75, 25, 19, 19), (0.99, 3, 3, 2)],
    )
    def test_by_hand(self, amount, units, theirs, ours):
        module = layer_of(normal(0, (units,)))
        torch_prune.l1_unstructured(module, "weight", amount)
        assert int((module.weight_mask == 0).sum()) == theirs
        assert int((~make_mask(module.weight_orig, amount)).sum()) == ours


class TestOneLayer:
    @given(seeds, shapes, st.data())
    def test_l1_unstructured(self, seed, shape, data):
        weight = normal(seed, shape)
        removed = data.draw(st.integers(0, weight.numel() - 1))
        theirs = torch_prune.l1_unstructured(layer_of(weight), "weight", removed).weight_mask.bool()
        for criterion in ("magnitude-l1", "magnitude-l2"):
            assert torch.equal(make_mask(weight, removed / weight.numel(), criterion=criterion), theirs)

    @given(seeds, shapes, st.data())
    def test_l1_unstructured_with_ties(self, seed, shape, data):
        weight = tied(seed, shape)
        removed = data.draw(st.integers(0, weight.numel() - 1))
        theirs = torch_prune.l1_unstructured(layer_of(weight), "weight", removed).weight_mask.bool()
        assert same_but_for_ties(make_mask(weight, removed / weight.numel()), theirs, weight.abs())

    def test_topk_has_another_order_of_ties_than_ours(self):
        weight = torch.ones(16)
        theirs = torch_prune.l1_unstructured(layer_of(weight), "weight", 5).weight_mask.bool()
        ours = make_mask(weight, 5 / 16)
        assert ours.tolist() == [False] * 5 + [True] * 11
        assert same_but_for_ties(ours, theirs, weight)

    @given(seeds, shapes, st.sampled_from([(1, "magnitude-l1"), (2, "magnitude-l2")]), st.booleans(), st.data())
    def test_ln_structured(self, seed, shape, norm, ties, data):
        n, criterion = norm
        weight = (tied if ties else normal)(seed, shape)
        removed = data.draw(st.integers(0, shape[0] - 1))
        theirs = torch_prune.ln_structured(layer_of(weight), "weight", removed, n=n, dim=0).weight_mask.bool()
        ours = make_mask(weight, removed / shape[0], "channel", criterion)
        scores = weight.flatten(1).abs().pow(n).sum(1)
        assert same_but_for_ties(ours.flatten(1)[:, 0], theirs.flatten(1)[:, 0], scores)
        assert torch.equal(theirs.flatten(1).all(1), theirs.flatten(1).any(1))
        if len(set(scores.tolist())) == len(scores):
            assert torch.equal(ours, theirs)

    @given(seeds, shapes, st.data())
    def test_importance_scores_are_our_scores(self, seed, shape, data):
        weight, scores = normal(seed, shape), normal(seed + 1, shape).square()
        removed = data.draw(st.integers(0, weight.numel() - 1))
        module = torch_prune.l1_unstructured(layer_of(weight), "weight", removed, importance_scores=scores)
        assert torch.equal(make_mask(weight, removed / weight.numel(), scores=scores), module.weight_mask.bool())

    @given(seeds, shapes, st.data())
    def test_random_methods_with_the_same_numbers(self, seed, shape, data):
        """PyTorch removes the largest numbers one by one, but the channels of the smallest ones."""
        weight = normal(seed, shape).float()
        removed = data.draw(st.integers(1, weight.numel() - 1))
        torch.manual_seed(seed)
        numbers = torch.rand_like(weight)
        assume(len(set(numbers.flatten().tolist())) == weight.numel())
        torch.manual_seed(seed)
        theirs = torch_prune.random_unstructured(layer_of(weight), "weight", removed).weight_mask.bool()
        assert torch.equal(make_mask(weight, removed / weight.numel(), scores=-numbers), theirs)
        channels = data.draw(st.integers(1, shape[0] - 1))
        torch.manual_seed(seed)
        rows = torch.rand(shape[0])
        torch.manual_seed(seed)
        theirs = torch_prune.random_structured(layer_of(weight), "weight", channels, dim=0).weight_mask.bool()
        scores = rows.view(-1, *[1] * (len(shape) - 1)).expand(shape)
        assert torch.equal(make_mask(weight, channels / shape[0], "channel", scores=scores), theirs)


SHAPES = {"a": (6, 4), "b": (3, 2, 3), "c": (10,)}
TOTAL = 24 + 18 + 10


class TestAllLayers:
    def pruned(self, weights, removed):
        layers = {name: layer_of(weight) for name, weight in weights.items()}
        torch_prune.global_unstructured(
            [(layer, "weight") for layer in layers.values()], torch_prune.L1Unstructured, amount=removed
        )
        return {name: layer.weight_mask.bool() for name, layer in layers.items()}

    @given(seeds, st.integers(0, TOTAL - 3))
    def test_global_unstructured(self, seed, removed):
        weights = {n: normal(seed + i, shape) * (1 + i) for i, (n, shape) in enumerate(SHAPES.items())}
        theirs = self.pruned(weights, removed)
        assume(all(mask.any() for mask in theirs.values()))  # ours leaves no layer empty
        ours = global_masks({n: w.abs() for n, w in weights.items()}, removed / TOTAL)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    @given(seeds, st.integers(0, TOTAL - 3))
    def test_global_unstructured_with_ties(self, seed, removed):
        weights = {n: tied(seed + i, shape) for i, (n, shape) in enumerate(SHAPES.items())}
        theirs = self.pruned(weights, removed)
        ours = global_masks({n: w.abs() for n, w in weights.items()}, removed / TOTAL)
        assert all(mask.any() for mask in ours.values())
        pooled = [torch.cat([part.flatten() for part in parts.values()]) for parts in (ours, theirs, weights)]
        if all(mask.any() for mask in theirs.values()):
            assert same_but_for_ties(pooled[0], pooled[1], pooled[2].abs())
        assert int((~pooled[0]).sum()) == removed

    @given(seeds, st.integers(0, TOTAL - 1))
    def test_by_hand_one_after_the_other(self, seed, removed):
        """Python's own sort, one element at a time, where PyTorch would empty a layer."""
        scores = {n: tied(seed + i, shape).abs() * (1 + 2 * i) for i, (n, shape) in enumerate(SHAPES.items())}
        ranked = sorted(
            (value, i, j) for i, s in enumerate(scores.values()) for j, value in enumerate(s.flatten().tolist())
        )
        best = {(*max((v, j) for v, layer, j in ranked if layer == i), i) for i in range(3)}
        going = [(i, j) for v, i, j in ranked if (v, j, i) not in best][:removed]
        masks = global_masks(scores, removed / TOTAL)
        for i, mask in enumerate(masks.values()):
            assert {j for layer, j in going if layer == i} == set((~mask.flatten()).nonzero()[:, 0].tolist())

    def test_no_layer_is_emptied(self):
        """PyTorch empties a layer of small weights; here its best stays and another layer's next goes instead."""
        weights = {"a": torch.tensor([0.1, 0.3, 0.2]), "b": torch.tensor([5.0, 4.0, 6.0, 7.0])}
        assert not self.pruned(weights, 4)["a"].any()
        masks = global_masks(weights, 4 / 7)
        assert {n: m.tolist() for n, m in masks.items()} == {
            "a": [False, True, False],
            "b": [False, False, True, True],
        }

    def test_an_allocation_by_global_magnitude_is_pytorchs_at_its_own_count(self, vgg, vgg_graph):
        network = vgg_graph.network
        weights = {layer.name: vgg.get_parameter(layer.name).detach() for layer in network.layers}
        squares = {name: w.flatten().double().square().numpy() for name, w in weights.items()}
        total = sum(map(torch.Tensor.numel, weights.values()))
        for share in (0.6, 0.25, 0.08):
            evidence = AllocationInputs({name: np.array(s) for name, s in squares.items()})
            sparsity = allocate("global", Target(network, share, metric="nonzero"), evidence)
            ours = {name: make_mask(w, sparsity[name]) for name, w in weights.items()}
            removed = sum(int((~mask).sum()) for mask in ours.values())
            assert 0 < removed < total
            again = global_masks({name: w.abs() for name, w in weights.items()}, removed / total)
            assert all(torch.equal(ours[name], again[name]) for name in ours)
            theirs = self.pruned(weights, removed)
            equal = all(torch.equal(ours[name], theirs[name]) for name in ours)
            assert equal == all(mask.any() for mask in theirs.values()) == (share > 0.1)  # at 8 % theirs empties layers

    def test_generators_are_taken_where_pairs_are(self):
        """PyTorch's own reads its iterable twice: a generator gives it an empty list."""
        layers = {name: layer_of(normal(i, shape)) for i, (name, shape) in enumerate(SHAPES.items())}
        with pytest.raises((ValueError, RuntimeError)):
            torch_prune.global_unstructured(
                ((layer, "weight") for layer in layers.values()), torch_prune.L1Unstructured, amount=0.3
            )
        from_generator = global_masks(((n, layer.weight.detach().abs()) for n, layer in layers.items()), 0.3)
        from_dict = global_masks({n: layer.weight.detach().abs() for n, layer in layers.items()}, 0.3)
        assert all(torch.equal(from_generator[name], from_dict[name]) for name in from_dict)
        assert unknown("layer", "x", (name for name in "ab")) == unknown("layer", "x", ["a", "b"])

    def test_refused(self):
        for scores in ({}, {"a": torch.ones(3), "b": torch.ones(0)}):
            with pytest.raises(ValueError, match="nothing to prune"):
                global_masks(scores, 0.5)
        with pytest.raises(ValueError, match="NaN or infinite"):
            global_masks({"a": torch.tensor([1.0, float("nan")])}, 0.5)
        with pytest.raises(ValueError, match="0 <= sparsity < 1"):
            global_masks({"a": torch.ones(3)}, 1.0)


class TestNothingCompounds:
    """PyTorch's amounts are of what is left: 0.2 and then 0.2 is 0.36. Ours are of the whole, whatever is zero."""

    def test_pytorchs_amounts_compound(self):
        layer = nn.Linear(10, 10)
        for _ in range(2):
            torch_prune.l1_unstructured(layer, "weight", amount=0.2)
        assert int((layer.weight_mask == 0).sum()) == 36

    @given(seeds, st.floats(0, 0.9), st.floats(0, 0.95))
    def test_masks_reach_their_target_from_zeros(self, seed, before, after):
        weight = normal(seed, (12, 9))
        first = make_mask(weight, before)
        weight[~first] = 0
        second = make_mask(weight, after)
        assert int((~second).sum()) == removed_count(after, 108)
        assert (first | ~second).all() if after >= before else (second | ~first).all() or (weight[~second] == 0).all()

    @pytest.mark.parametrize("granularity", ["fine-grained", "channel"])
    @pytest.mark.parametrize("target", [0.2, 0.4])
    def test_policies_do_too(self, vgg, granularity, target):
        policy = PruningPolicy({"backbone.conv2.weight": target}, granularity)
        zeros = prune(vgg, PruningPolicy({"backbone.conv2.weight": 0.2}, granularity))
        masks, _ = policy_masks(zeros, policy)
        units = 32 if granularity == "channel" else masks["backbone.conv2.weight"].numel()
        assert achieved_sparsity(masks["backbone.conv2.weight"]) == pytest.approx(removed_count(target, units) / units)

    @pytest.mark.parametrize("kind", ["polynomial", "one-shot"])
    def test_a_ramp_does_too(self, vgg, images, kind):
        name = "backbone.conv3.weight"
        zeros = prune(vgg, PruningPolicy({name: 0.2}))
        policy = PruningPolicy({name: 0.4}, schedule=Schedule(kind))
        pruner = GradualPruner(copy.deepcopy(zeros), policy, 12, trace_channels(zeros, images))
        optimizer = torch.optim.SGD(pruner.model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.01)
        for step in range(12):
            pruner.advance(step)
            pruner.model(images).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            pruner.hold()
        pruner.advance(12)
        weight = pruner.model.get_parameter(name)
        assert int((weight == 0).sum()) == removed_count(0.4, weight.numel())


class TestMaskedModelsArePlain:
    POLICY = PruningPolicy({"backbone.conv1.weight": 0.5, "backbone.conv4.weight": 0.75, "classifier.weight": 0.25})

    def test_they_are_copied_after_a_forward_and_a_backward_pass(self, vgg, images):
        masked = prune(vgg, self.POLICY)
        masked(images).sum().backward()
        assert torch.equal(copy.deepcopy(masked)(images), masked(images))

    def test_state_dicts_load_both_ways_without_any_removal(self, vgg):
        """PyTorch's pruned module refuses a dense state dict, and the dense one its."""
        hooked = nn.Linear(3, 2)
        dense = copy.deepcopy(hooked)
        torch_prune.identity(hooked, "weight")
        for target, source in ((hooked, dense), (dense, hooked)):
            with pytest.raises(RuntimeError, match="weight"):
                target.load_state_dict(source.state_dict())
        masked, fresh = prune(vgg, self.POLICY), copy.deepcopy(vgg)
        dense_state = vgg.state_dict()
        fresh.load_state_dict(masked.state_dict(), strict=True)
        assert int((fresh.get_parameter("classifier.weight") == 0).sum()) > 0
        masked.load_state_dict(dense_state, strict=True)

    def test_masks_cost_no_bytes(self, vgg, tmp_path):
        """PyTorch's checkpoint grows by a mask for each weight; ours is the dense one's size, the sparse file less."""
        masked = prune(vgg, self.POLICY)
        for name, model in (("dense", vgg), ("masked", masked)):
            torch.save(model.state_dict(), tmp_path / f"{name}.pt")
            save_model(model, Structure({}), tmp_path / f"{name}.safetensors")
        for suffix in ("pt", "safetensors"):
            dense, after = ((tmp_path / f"{name}.{suffix}").stat().st_size for name in ("dense", "masked"))
            assert abs(after - dense) <= 64 * (suffix == "pt")  # its archive holds the file's own name
        hooked = copy.deepcopy(vgg)
        for name in self.POLICY.sparsity:
            torch_prune.identity(hooked.get_submodule(name.removesuffix(".weight")), "weight")
        torch.save(hooked.state_dict(), tmp_path / "hooked.pt")
        masks = sum(4 * vgg.get_parameter(name).numel() for name in self.POLICY.sparsity)
        assert (tmp_path / "hooked.pt").stat().st_size > (tmp_path / "masked.pt").stat().st_size + masks
        assert len(encode_model(masked)) < len(encode_model(vgg))

    def test_random_scores_are_not_moved_by_zeros(self):
        weight = normal(3, (8, 8))
        masked = weight * (weight > 0)
        assert torch.equal(element_scores(weight, "random"), element_scores(masked, "random"))
        layer = nn.Linear(8, 8)
        apply_masks_(layer, {"weight": make_mask(layer.weight, 0.5)})
        assert list(layer.state_dict()) == ["weight", "bias"]
