"""Allocators against second algorithms, written here from their papers; `fit_to_budget` against a plain search."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune as torch_prune

from pruning.importance.scores import unit_importance
from spaces import Layer, Network, Profile, ProfilePoint, StoredTensor, removed_count
from spaces.allocation.allocators import ALLOCATORS, allocate
from spaces.allocation.budget import ALMOST_ALL, Target, Unreachable, centred, fit_by_shift, fit_to_budget, shifted
from spaces.allocation.importance import AllocationInputs, Ranking

SHAPES = {"a.weight": (6, 4, 3, 3), "b.weight": (10, 6, 3, 3), "c.weight": (12, 10), "d.weight": (5, 12)}
BIAS = 7


def plain_network(shapes=SHAPES) -> Network:
    tensors = [StoredTensor(name, shape) for name, shape in shapes.items()]
    layers = [Layer(name, "conv2d" if len(shape) == 4 else "linear", shape, 1) for name, shape in shapes.items()]
    return Network((*tensors, StoredTensor("d.bias", (BIAS,))), tuple(layers))


NETWORK = plain_network()
PARAMETERS = sum(math.prod(shape) for shape in SHAPES.values()) + BIAS
STATIC = [name for name in ALLOCATORS if not name.startswith("scan")]
SHARES = [0.9, 0.61, 0.37, 0.252, 0.113, 0.041]


def random_scores(seed: int = 0) -> dict[str, np.ndarray]:
    """Squared weights of layers on different scales."""
    generator = np.random.default_rng(seed)
    return {
        name: (generator.normal(size=math.prod(shape)) * 1.3**i) ** 2 for i, (name, shape) in enumerate(SHAPES.items())
    }


def nonzero_target(share: float) -> Target:
    return Target(NETWORK, share, metric="nonzero")


def counts(sparsity: dict[str, float], shapes=SHAPES) -> dict[str, int]:
    return {name: removed_count(sparsity.get(name, 0.0), math.prod(shape)) for name, shape in shapes.items()}


def least_removals(share: float) -> int:
    """The fewest weights that must go: the rest, with the bias, is at most `share` of all."""
    return next(k for k in range(PARAMETERS) if (PARAMETERS - k) / PARAMETERS <= share)


@pytest.mark.parametrize("share", SHARES)
class TestExactly:
    """One weight less removed would be over the target: `nonzero` size, no ties."""

    def test_uniform(self, share):
        lengths = [math.prod(shape) for shape in SHAPES.values()]
        steps = sorted({(k + 0.5) / n for n in lengths for k in range(n - 1)})
        removed = next(
            found
            for s in steps
            if sum(found := [min(math.floor(s * n + 0.5 + 1e-9), n - 1) for n in lengths]) >= least_removals(share)
        )
        found = allocate("uniform", nonzero_target(share), AllocationInputs())
        assert list(counts(found).values()) == removed
        assert len({round(s, 12) for s in found.values()}) == 1

    def test_global_is_pytorchs_global_unstructured(self, share):
        """PyTorch may empty a layer, so its largest weight is given an infinite score there."""
        scores = random_scores()
        modules = {name: nn.Linear(1, 1) for name in SHAPES}
        importance = {}
        for name, module in modules.items():
            module.weight = nn.Parameter(torch.tensor(np.sqrt(scores[name])))
            importance[module, "weight"] = module.weight.detach().clone()
            importance[module, "weight"][module.weight.argmax()] = math.inf
        torch_prune.global_unstructured(
            [(module, "weight") for module in modules.values()],
            pruning_method=torch_prune.L1Unstructured,
            importance_scores=importance,
            amount=least_removals(share),
        )
        expected = {name: int((module.weight_mask == 0).sum()) for name, module in modules.items()}
        assert counts(allocate("global", nonzero_target(share), AllocationInputs(scores))) == expected

    def test_lamp_by_its_double_sum(self, share):
        scores = random_scores(1)
        rows = []
        for name, squares in scores.items():
            for value in squares:
                rows.append((value / sum(v for v in squares if v >= value), name))
        gone = [name for _, name in sorted(rows)[: least_removals(share)]]
        expected = {name: gone.count(name) for name in SHAPES}
        assert counts(allocate("lamp", nonzero_target(share), AllocationInputs(scores))) == expected

    def test_erk_by_its_closed_form(self, share):
        """Density scale x sum / product; layers over 1 are dense and the scale solved again, as in RigL."""
        room = PARAMETERS - least_removals(share) - BIAS
        dense: set[str] = set()
        while True:
            free = [name for name in SHAPES if name not in dense]
            scale = (room - sum(math.prod(SHAPES[n]) for n in dense)) / sum(sum(SHAPES[n]) for n in free)
            over = {name for name in free if scale * sum(SHAPES[name]) >= math.prod(SHAPES[name])}
            if not over:
                break
            dense |= over
        found = allocate("erk", nonzero_target(share), AllocationInputs())
        for name, shape in SHAPES.items():
            kept = math.prod(shape) * (1 - found[name])
            expected = math.prod(shape) if name in dense else scale * sum(shape)
            assert kept == pytest.approx(expected, abs=len(SHAPES))
        total = sum(counts(found).values())
        assert 0 <= total - least_removals(share) < len(SHAPES)

    def test_last_layers(self, share):
        """b and c hold 660 of 936 weights, less than 85 %; with a, all but the output layer; d only if it must."""
        found = {n: s for n, s in allocate("last-layers", nonzero_target(share), AllocationInputs()).items() if s > 0}
        without_output = (60 + BIAS + 3) / PARAMETERS
        expected = {"a.weight", "b.weight", "c.weight"} | ({"d.weight"} if share < without_output else set())
        assert set(found) == expected
        assert len({round(s, 12) for s in found.values()}) == 1


def test_last_layers_takes_the_fewest_and_spares_the_output():
    shapes = {"a": (10, 10), "b": (10, 10), "c": (50, 40), "d": (10, 4)}
    found = allocate("last-layers", Target(plain_network(shapes), 0.3, metric="nonzero"), AllocationInputs())
    assert list(found) == ["c"]
    found = allocate("last-layers", Target(plain_network(shapes), 0.08, metric="nonzero"), AllocationInputs())
    assert list(found) == ["c", "b"]


@pytest.fixture(scope="module")
def evidence(vgg, vgg_graph):
    return {granularity: unit_importance(vgg, vgg_graph, granularity) for granularity in ("fine-grained", "channel")}


@pytest.mark.parametrize("metric", ["encoded", "nonzero"])
@pytest.mark.parametrize("granularity", ["fine-grained", "channel"])
@pytest.mark.parametrize("name", [name for name in ALLOCATORS if not name.startswith("scan")])
def test_lands_within_and_near(name, granularity, metric, vgg_graph, evidence):
    for share in (0.6, 0.25, 0.1):
        target = Target(vgg_graph.network, share, granularity, metric)
        size = target.size(allocate(name, target, AllocationInputs(evidence[granularity])))
        assert size <= share
        assert size >= share * (0.998 if granularity == "fine-grained" else 0.9)


class Read(dict):
    """A mapping that counts how often its values are looked up."""

    lookups = 0

    def __getitem__(self, key):
        self.lookups += 1
        return super().__getitem__(key)


def test_of_squares_that_overflowed_the_infinite_ones_go_last():
    """As those of a dense model that diverged: beside infinite ones, finite ones count for nothing."""
    scores = random_scores()
    scores["b.weight"][:2] = math.inf
    scores["c.weight"][:2] = 1.5e308  # the sum of which is too large for a float
    share, size = 0.252, math.prod(SHAPES["b.weight"])
    lamp, by_global = (
        counts(allocate(name, nonzero_target(share), AllocationInputs(scores))) for name in ("lamp", "global")
    )
    assert lamp["b.weight"] == size - 2 and by_global["b.weight"] <= size - 2
    assert sum(lamp.values()) >= least_removals(share) and sum(by_global.values()) == least_removals(share)


@pytest.mark.parametrize("name", ["lamp", "global"])
def test_of_channels_whose_squares_overflowed_the_infinite_ones_go_last(vgg_graph, evidence, name):
    layer = "backbone.conv3.weight"
    scores = {key: squares.copy() for key, squares in evidence["channel"].items()}
    scores[layer][:2] = math.inf
    found = allocate(name, Target(vgg_graph.network, 0.25, "channel"), AllocationInputs(scores))
    assert removed_count(found[layer], len(scores[layer])) == len(scores[layer]) - 2


class TestEvidenceIsWorkedOutOnce:
    @pytest.mark.parametrize("name", STATIC)
    def test_shared_evidence_gives_what_fresh_evidence_gives(self, name):
        """Sizes, metrics and networks in turn."""
        other, scores = plain_network(dict(list(SHAPES.items())[:3])), random_scores(5)
        shared = AllocationInputs(scores)
        for share in (0.61, 0.252):
            for network, metric in ((NETWORK, "nonzero"), (other, "nonzero"), (NETWORK, "encoded")):
                target = Target(network, share, metric=metric)
                assert allocate(name, target, shared) == allocate(name, target, AllocationInputs(scores))

    @pytest.mark.parametrize("name", ["lamp", "global"])
    def test_scores_are_looked_up_for_the_first_size_only(self, name):
        scores = Read(random_scores())
        before = {key: values.copy() for key, values in scores.items()}
        evidence = AllocationInputs(scores)
        for share in SHARES:
            allocate(name, nonzero_target(share), evidence)
        assert scores.lookups == len(SHAPES)
        assert all((scores[key] == before[key]).all() for key in before)

    def test_lamp_and_global_are_told_apart(self):
        evidence, share = AllocationInputs(random_scores()), 0.252
        found = [allocate(name, nonzero_target(share), evidence) for name in ("lamp", "global", "lamp")]
        assert found[0] == found[2] != found[1]


class TestRanking:
    @settings.get_profile("few")
    @given(
        st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=8), min_size=1, max_size=4),
        st.lists(st.sampled_from([1, 1, 3, 16]), min_size=4, max_size=4),
        st.integers(0, 999),
    )
    def test_threshold_by_definition(self, rows, weights, thousandths):
        """The smallest score such that units up to it hold the share t of all weights; ties and unequal units.

        Of equal scores, each layer gives as large a part as lies before the place.
        """
        scores = {f"l{i}": np.array(row, dtype=float) for i, row in enumerate(rows)}
        numel = {f"l{i}": weights[i] * len(row) for i, row in enumerate(rows)}
        units = sorted(((score, weights[i]) for i, row in enumerate(rows) for score in row), key=lambda unit: unit[0])
        total, t = sum(numel.values()), thousandths / 1000
        held = np.cumsum([weight for _, weight in units])
        place = next(place for place, h in enumerate(held) if 1000 * h >= thousandths * total)
        threshold, equal = units[place][0], [n for n, (score, _) in enumerate(units) if score == units[place][0]]
        part = equal.index(place) / len(equal)
        ranking = Ranking.of(scores, numel)
        assert ranking.sparsity(ranking.index(t)) == {
            f"l{i}": min((sum(score < threshold for score in row) + part * row.count(threshold)) / len(row), ALMOST_ALL)
            for i, row in enumerate(rows)
        }

    @pytest.mark.parametrize("weights", [1, 9])
    def test_everything_at_the_end(self, weights):
        ranking = Ranking.of({"a": np.array([3.0, 1.0]), "b": np.ones(3)}, {"a": 2 * weights, "b": 3})
        assert ranking.sparsity(ranking.index(1.0)) == dict.fromkeys("ab", ALMOST_ALL)


class TestScan:
    @staticmethod
    def evidence(target: Target, **damages: float) -> AllocationInputs:
        levels = (0.3, 0.5, 0.7, 0.85, 0.93, 0.97, 0.99)
        points = {
            name: tuple(ProfilePoint(s, 0, 0, 1 + damage * (1 / (1 - s) - 1), 0) for s in levels)
            for name, damage in damages.items()
        }
        profile = Profile("", 1, 1.0, 1.0, {"fine-grained": points}, 0.0)
        return AllocationInputs.of(target.network, "fine-grained", {}, profile, target.metric)

    def test_spares_what_the_scan_found_sensitive(self):
        shapes = {"frail": (20, 50), "tough": (20, 50), "free": (20, 50)}
        target = Target(plain_network(shapes), 0.25, metric="nonzero")
        found = allocate("scan", target, self.evidence(target, frail=4.0, tough=0.25, free=0.0))
        assert found["frail"] < found["tough"] < found["free"]
        assert 0.248 < target.size(found) <= 0.25

    def test_is_no_worse_than_any_grid_point_of_the_same_size(self):
        """Damage w x s / (1 - s): the optimum keeps shares in proportion to sqrt(w)."""
        shapes = {"p": (40, 50), "q": (40, 50)}
        target = Target(plain_network(shapes), 0.3, metric="nonzero")
        weights = {"p": 1.0, "q": 0.04}
        found = allocate("scan", target, self.evidence(target, **weights))

        def damage(sparsity):
            return sum(w * sparsity[n] / (1 - sparsity[n]) for n, w in weights.items())

        grid = [{"p": s / 100, "q": q / 100} for s in range(100) for q in range(100)]
        best = min((g for g in grid if target.size(g) <= 0.3), key=damage)
        assert damage(found) <= 1.1 * damage(best)
        uniform = allocate("uniform", target, AllocationInputs())
        assert damage(found) < 0.85 * damage(uniform)

    def test_needs_a_profile(self):
        with pytest.raises(ValueError, match="an allocation by the scan needs a profile: scan the model first"):
            allocate("scan", nonzero_target(0.25), AllocationInputs())


class TestLand:
    def test_takes_the_largest_member(self):
        """A plain search over all members of a family of one layer."""
        network = plain_network({"w": (20, 10)})
        for share in (0.9, 0.5, 0.31):
            target = Target(network, share, metric="nonzero")
            found = fit_to_budget(lambda t: {"w": t * 0.999}, target)
            fewest = next(k for k in range(200) if (200 + BIAS - k) / (200 + BIAS) <= share)
            assert removed_count(found["w"], 200) == fewest

    def test_whole_where_that_fits(self):
        assert allocate("uniform", nonzero_target(1.0), AllocationInputs()) == dict.fromkeys(SHAPES, 0.0)

    @pytest.mark.parametrize("name", ["uniform", "lamp", "global", "erk", "last-layers"])
    def test_unreachable_says_what_is(self, name):
        floor = (len(SHAPES) + BIAS) / PARAMETERS
        with pytest.raises(Unreachable, match=rf"size 0\.001 cannot be reached: the smallest is {floor:.4g}"):
            allocate(name, nonzero_target(0.001), AllocationInputs(random_scores()))
        assert nonzero_target(1.0).floor == floor
        assert counts(allocate(name, nonzero_target(floor), AllocationInputs(random_scores()))) == {
            n: math.prod(shape) - 1 for n, shape in SHAPES.items()
        }

    def test_unknown_allocator(self):
        with pytest.raises(ValueError, match="unknown allocator 'unifrom': did you mean 'uniform'"):
            allocate("unifrom", nonzero_target(0.5), AllocationInputs())

    def test_layers_that_cannot_lose_channels_are_left_alone(self, vgg_graph, evidence):
        target = Target(vgg_graph.network, 0.25, "channel")
        assert "classifier.weight" not in {layer.name for layer in target.layers}
        assert "classifier.weight" not in allocate("uniform", target, AllocationInputs())
        mixed = Target(vgg_graph.network, 0.25, {"backbone.conv0.weight": "channel", "classifier.weight": "channel"})
        assert len(mixed.layers) == len(vgg_graph.network.layers) - 1


some_shares = st.lists(st.one_of(st.just(0.0), st.floats(0.01, 0.99)), min_size=4, max_size=4)


class TestShift:
    @given(some_shares, st.floats(-6, 6), st.floats(-6, 6))
    def test_laws(self, values, first, second):
        sparsity = dict(zip(SHAPES, values, strict=True))
        assert shifted(sparsity, 0.0) == pytest.approx(sparsity, rel=1e-12)
        assert shifted(shifted(sparsity, first), second) == pytest.approx(shifted(sparsity, first + second), rel=1e-6)
        moved = shifted(sparsity, first)
        order = sorted(SHAPES, key=sparsity.__getitem__)
        assert all(moved[a] <= moved[b] for a, b in pairwise(order))
        assert all((moved[n] == 0) == (sparsity[n] == 0) and moved[n] < 1 for n in SHAPES)

    @settings.get_profile("few")
    @given(some_shares.filter(any))
    def test_centred_has_mean_logit_zero(self, values):
        middle = [s for s in centred(dict(zip(SHAPES, values, strict=True))).values() if s > 0]
        assert sum(math.log(s / (1 - s)) for s in middle) / len(middle) == pytest.approx(0, abs=1e-6)

    def test_far_shifts_leave_one_unit_and_whole_layers(self):
        assert shifted({"a": 0.5, "b": 0.0}, 800.0) == {"a": ALMOST_ALL, "b": 0.0}
        assert shifted({"a": 0.5, "b": 0.0}, -600.0)["b"] == 0.0 < shifted({"a": 0.5}, -600.0)["a"] < 1e-200

    def test_nothing_to_centre(self):
        assert centred({"a": 0.0}) == {"a": 0.0}

    @settings.get_profile("few")
    @given(st.lists(st.floats(0.02, 0.98), min_size=4, max_size=4), st.sampled_from(["nonzero", "encoded"]))
    def test_centred_then_landed_gives_the_allocation_back(self, values, metric):
        sparsity = dict(zip(SHAPES, values, strict=True))
        size = Target(NETWORK, 1.0, metric=metric).size(sparsity)
        assume(size < 1)  # masks of a few weights save no byte: the dense allocation has that size, too
        back = fit_by_shift(centred(sparsity), Target(NETWORK, size, metric=metric))
        if metric == "nonzero":
            assert counts(back) == counts(sparsity)
        else:  # the file is padded to 8 bytes: a few neighbours have its size
            assert all(abs(counts(back)[n] - counts(sparsity)[n]) <= 3 for n in SHAPES)

    def test_whole_layers_stay_whole(self):
        landed = fit_by_shift(
            {"a.weight": 0.0, "b.weight": 0.25, "c.weight": 0.5, "d.weight": 0.0}, nonzero_target(0.5)
        )
        assert (landed["a.weight"], landed["d.weight"]) == (0.0, 0.0)
        with pytest.raises(Unreachable):
            fit_by_shift({"d.weight": 0.5}, nonzero_target(0.5))
