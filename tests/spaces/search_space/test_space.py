"""Every point is fitted within its target; initial points stand for their own allocation."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.importance.scores import unit_importance
from spaces import Layer, Network, PruningPolicy, Schedule, Space, StoredTensor
from spaces.allocation.allocators import allocate
from spaces.allocation.budget import Target, Unreachable
from spaces.allocation.importance import AllocationInputs
from spaces.allocation.two_stage import FLOOR_MARGIN
from spaces.cost.effect import achieved
from spaces.cost.footprint import dense_footprint, footprint, relative_cost
from spaces.search_space.initial import initial_points
from spaces.search_space.limits import LARGEST_TARGET, SIZE_SPAN
from spaces.search_space.projection import Projected, Projector
from spaces.search_space.space import EXPONENTS, SEED_SCHEDULE, Draft

optuna.logging.set_verbosity(optuna.logging.WARNING)


def fitted(space: Space, size: float, *rest: Any, **options: Any) -> Projected:
    """A point of these values, see `Space.params`, fitted to its size, also one beyond the axis."""
    return Projector(space).project(space.params(size, *rest, **options) | {"size": size})


def real_size(space: Space, policy: PruningPolicy) -> float:
    return relative_cost(footprint(space.network, policy), dense_footprint(space.network)).of(space.metric)


@pytest.fixture(scope="module")
def vgg_inputs(vgg, vgg_graph):
    return {g: AllocationInputs(unit_importance(vgg, vgg_graph, g)) for g in ("fine-grained", "channel")}


SPACES = [
    {"max_size": 0.25},
    {"max_size": 0.25, "metric": "nonzero", "mixed": True},
    {"max_size": 0.05, "granularities": ("channel",)},
    {"max_size": 0.03, "granularities": ("fine-grained",)},
]


class TestProposals:
    @pytest.mark.parametrize("options", SPACES, ids=str)
    def test_random_studies_never_end_over_the_target(self, options, vgg_graph):
        space = Space(vgg_graph.network, **options)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), directions=["minimize"])
        low, high = space.size_range
        for _ in range(12):
            trial = study.ask()
            proposal = Projector(space).project(space.sample(trial))
            size = real_size(space, proposal.policy)
            assert size <= proposal.target <= space.max_size
            assert low <= proposal.target <= high
            if "channel" not in space.usable:
                assert size >= 0.97 * proposal.target
            assert proposal.policy.criterion == "magnitude-l2"
            assert EXPONENTS[0] <= proposal.policy.schedule.exponent <= EXPONENTS[1]
            study.tell(trial, size)

    @settings.get_profile("few")
    @given(data=st.data())
    def test_any_preferences_any_mixture(self, data, vgg_graph, residual_graph):
        """Also zeros and ones everywhere, and mixtures inside a channel group."""
        network = data.draw(st.sampled_from([vgg_graph.network, residual_graph.network]))
        metric = data.draw(st.sampled_from(["encoded", "nonzero"]))
        space = Space(network, 0.3, metric=metric, mixed=True)
        low, high = space.size_range
        target = low * (high / low) ** data.draw(st.floats(0, 1))
        preference = st.one_of(st.sampled_from([0.0, 1e-9, 1.0]), st.floats(0, 1))
        preferences = {knob: data.draw(preference) for knob in space.knobs}
        granularity = {name: data.draw(st.sampled_from(space.usable)) for name in network.layer_names}
        proposal = fitted(space, target, granularity, preferences, Schedule())
        assert real_size(space, proposal.policy) <= target

    def test_preferences_order_the_layers(self, vgg_graph):
        space = Space(vgg_graph.network, 0.25)
        names = list(space.knobs)
        preferences = {name: 0.1 + 0.08 * i for i, name in enumerate(names)}
        sparsity = fitted(space, 0.2, "fine-grained", preferences, Schedule()).policy.sparsity
        assert sorted(names, key=sparsity.__getitem__) == names
        logits = [
            math.log(s / (1 - s)) - math.log(p / (1 - p))
            for p, s in zip(preferences.values(), sparsity.values(), strict=True)
        ]
        assert max(logits) - min(logits) < 1e-6

    def test_a_group_has_one_channel_request(self, residual_graph):
        space = Space(residual_graph.network, 0.4, ("channel",))
        assert set(space.knobs) == {"first.weight", "inner.weight"}
        policy = fitted(space, 0.4, "channel", {"first.weight": 0.25, "inner.weight": 0.75}, Schedule()).policy
        assert policy.sparsity["first.weight"] == policy.sparsity["last.weight"] < policy.sparsity["inner.weight"]
        assert "classifier.weight" not in policy.sparsity

    def test_whole_layers_are_asked_only_where_they_must(self, vgg_graph):
        space = Space(vgg_graph.network, 0.25, ("fine-grained",))
        names = vgg_graph.network.layer_names
        relaxed = fitted(space, 0.25, "fine-grained", dict.fromkeys(names, 0.5) | {names[0]: 0.0}, Schedule())
        assert relaxed.policy.sparsity[names[0]] == 0.0
        forced = fitted(space, 0.03, "fine-grained", {names[-1]: 0.5}, Schedule())
        assert forced.sampled[names[0]] == 0.0 < forced.policy.sparsity[names[0]]


class TestLimits:
    def test_refused(self, vgg_graph):
        network = vgg_graph.network
        for limit in (0.0, -0.1, 1.2, math.nan):
            with pytest.raises(ValueError, match="max_size must satisfy 0 < max_size <= 1, got"):
                Space(network, limit)
        for granularities in ((), ("channel", "channel")):
            with pytest.raises(ValueError, match=r"granularity must be a tuple of one or more of .*, none twice"):
                Space(network, 0.25, granularities)
        with pytest.raises(ValueError, match="unknown granularity 'chanel': did you mean 'channel'"):
            Space(network, 0.25, ("chanel",))

    def test_bits(self, vgg_graph):
        network = vgg_graph.network
        for bits in ((), (8, 8), 8, "8", None):
            with pytest.raises(ValueError, match=r"bits must be a tuple of one or more of 32, .*, none twice, got"):
                Space(network, 0.25, bits=bits)
        for bits, nearest in (((33, 4), 32), ((1,), 2), ((3.5,), 4), (("8",), 8)):
            with pytest.raises(ValueError, match=f"bits must be one of 32, .*nearest valid: {nearest}"):
                Space(network, 0.25, bits=bits)
        with pytest.raises(ValueError, match=r"bits \(32, 8\) do not lower nonzero size, which counts 32 each"):
            Space(network, 0.25, metric="nonzero", bits=(32, 8))

    def test_unreachable_names_the_range(self, vgg_graph):
        floor = Target(vgg_graph.network, 1.0, "fine-grained").floor
        with pytest.raises(Unreachable) as caught:
            Space(vgg_graph.network, 0.001, ("fine-grained",))
        advised = math.ceil(floor * 1e4) / 1e4
        assert f"reachable is {advised:.4f} to 1; set --max-size to at least {advised:.4f}" in str(caught.value)
        assert Space(vgg_graph.network, advised, ("fine-grained",)).usable == ("fine-grained",)

    def test_each_granularity_goes_as_low_as_it_can(self, vgg_graph):
        space = Space(vgg_graph.network, 0.25)
        low = space.size_range[0]
        assert low == pytest.approx(max(0.25 / SIZE_SPAN, space.floors["channel"] * FLOOR_MARGIN))
        for granularity, floor in space.floors.items():
            assert space.reachable(1e-6, granularity) == pytest.approx(floor * FLOOR_MARGIN)
            names = dict.fromkeys(space.knobs, 0.5)
            assert fitted(space, floor / 2, granularity, names, Schedule()).target <= floor * FLOOR_MARGIN * 1.001

    def test_granularities_that_cannot_reach_the_limit_are_left_out(self, vgg_graph):
        floors = Space(vgg_graph.network, 1.0).floors
        assert floors["channel"] < floors["fine-grained"]
        between = FLOOR_MARGIN * (floors["channel"] + floors["fine-grained"]) / 2
        space = Space(vgg_graph.network, between)
        assert space.usable == ("channel",)
        assert set(space.knobs) == set(vgg_graph.network.removable)

    def test_size_range(self, vgg_graph):
        wide = Space(vgg_graph.network, 0.9)
        assert wide.size_range == (0.9 / SIZE_SPAN, 0.9)
        tight = Space(vgg_graph.network, 0.03, ("fine-grained",))
        assert tight.size_range == (tight.floors["fine-grained"] * FLOOR_MARGIN, 0.03)

    def test_without_a_limit_every_target_takes_something(self, vgg_graph, vgg_inputs):
        space = Space(vgg_graph.network, 1.0)
        assert space.size_range == (1 / SIZE_SPAN, LARGEST_TARGET)
        for seed in initial_points(Projector(space, vgg_inputs)):
            policy = Projector(space).project(seed.params).policy
            assert (
                relative_cost(footprint(space.network, policy), dense_footprint(space.network)).encoded
                <= LARGEST_TARGET
            )
        with pytest.raises(ValueError, match=r"min_size without a limit is at most 0\.9, got 0\.95"):
            Space(vgg_graph.network, 1.0, min_size=0.95)


def mostly_whole(network: Network) -> Network:
    """Only the first channel group can lose channels."""
    first, *rest = network.groups
    names = {name for group in rest for name in group.layers}
    layers = [replace(layer, obstacle="outputs") if layer.name in names else layer for layer in network.layers]
    groups = (first, *(replace(group, obstacle="outputs") for group in rest))
    return replace(network, layers=tuple(layers), groups=groups)


class TestLeftOut:
    def test_each_with_its_own_reason(self, vgg_graph):
        network = vgg_graph.network
        floor = Target(network, 1.0, "fine-grained").floor
        small = Space(network, floor * 0.9)
        assert small.left_out == {"fine-grained": f"its smallest size is {floor:.4f}"}
        assert Space(network, 0.25, max_macs=0.5).left_out == {"fine-grained": "its fewest MACs are 1.0000 of dense"}
        assert Space(network, 0.25).left_out == {}

    @pytest.mark.parametrize("limits", [{"max_size": 0.4}, {"max_size": 0.4, "max_macs": 0.7}])
    def test_fixed_patterns_join_mixtures_that_reach_the_limit(self, vgg_graph, limits):
        words = ("2:4", "channel", "*:4") if "max_macs" in limits else ("fine-grained", "2:4", "*:4")
        alone = Space(vgg_graph.network, granularities=words, **limits)
        space = Space(vgg_graph.network, granularities=words, mixed=True, **limits)
        assert "2:4" in alone.left_out and alone.choices == alone.usable == space.usable
        assert set(space.choices) == {*space.usable, "2:4"}
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        halved = 0
        for _ in range(20):
            proposal = Projector(space).project(space.sample(study.ask()))
            share = relative_cost(footprint(space.network, proposal.policy), dense_footprint(space.network))
            assert share.encoded <= proposal.target <= space.max_size
            assert share.macs <= space.max_macs
            removed = achieved(space.network, proposal.policy)
            halved += any(removed[n] == 0.5 and proposal.policy.granularity_of(n) == "2:4" for n in removed)
        assert halved > 1

    def test_patterns_no_mixture_can_hold_stay_left_out(self):
        """Nearly all weights are in one layer, and the other one's inputs are not divided."""
        shapes = {"a": (64, 6), "b": (64, 64)}
        layers = tuple(Layer(name, "linear", shape, 1) for name, shape in shapes.items())
        network = Network(tuple(StoredTensor(name, shape) for name, shape in shapes.items()), layers)
        assert Space(network, 0.25, ("fine-grained", "2:4"), mixed=True).choices == ("fine-grained",)
        assert Space(network, 0.6, ("fine-grained", "2:4"), mixed=True).choices == ("fine-grained", "2:4")

    def test_limits_that_no_granularity_is_within_together(self, vgg_graph):
        """Channels lower MACs but not far enough the size, masks the size but no MACs."""
        network = mostly_whole(vgg_graph.network)
        floors = {g: Target(network, 1.0, g).floor for g in ("fine-grained", "channel")}
        assert floors["fine-grained"] < floors["channel"]
        between = sum(floors.values()) / 2
        with pytest.raises(Unreachable, match="cannot be reached by encoded size, channel: reachable is") as caught:
            Space(network, between, max_macs=0.999)
        assert float(str(caught.value).split()[-1]) >= floors["channel"]

    def test_a_granularity_that_can_remove_nothing(self, vgg_graph):
        network = vgg_graph.network
        whole = replace(
            network,
            layers=tuple(replace(layer, obstacle="outputs", channel_group=None) for layer in network.layers),
            groups=(),
        )
        assert Space(whole, 1.0).left_out == {"channel": "it can remove nothing of this network"}
        with pytest.raises(Unreachable, match="channel can remove nothing of this network"):
            Space(whole, 1.0, ("channel",))


def test_points_of_one_granularity_read_alike_where_layers_may_differ(vgg_graph):
    """A target below what channels alone reach: as it was compared, so it is evaluated."""
    network = mostly_whole(vgg_graph.network)
    space = Space(network, 1.0, mixed=True, min_size=Target(network, 1.0, "fine-grained").floor * FLOOR_MARGIN)
    low = space.size_range[0]
    assert low < Target(network, 1.0, "channel").floor
    draft = Draft("", low, "channel", np.zeros(len(space.knobs)), SEED_SCHEDULE)
    policy = Projector(space).project(draft).policy
    assert {policy.granularity_of(name) for name in network.layer_names} == {"channel"}
    cost = relative_cost(footprint(network, policy), dense_footprint(network))
    assert cost.encoded == pytest.approx(float(Projector(space).project_batch([draft]).sizes[0]), rel=0.1)


class TestSeeds:
    @pytest.mark.parametrize("mixed", [False, True])
    @pytest.mark.parametrize("limit", [0.25, 0.05])
    def test_stand_for_their_own_allocation_and_lie_in_the_distributions(self, vgg_graph, vgg_inputs, mixed, limit):
        space = Space(vgg_graph.network, limit, mixed=mixed)
        for seed in list(initial_points(Projector(space, vgg_inputs)))[:14]:
            trial = optuna.trial.FixedTrial(seed.params)
            proposal = Projector(space).project(space.sample(trial))
            assert set(trial.params) == set(seed.params)
            for name, distribution in trial.distributions.items():
                assert distribution._contains(distribution.to_internal_repr(seed.params[name])), name
            target = space.target(seed.params["size"], seed.granularity)
            wanted = PruningPolicy(allocate(seed.allocator, target, vgg_inputs[seed.granularity]), seed.granularity)
            found, expected = (achieved(space.network, p) for p in (proposal.policy, wanted))
            for layer in space.network.layers:
                units = layer.shape[0] if seed.granularity == "channel" else layer.numel
                assert found[layer.name] == pytest.approx(expected[layer.name], abs=max(2 / units, 2e-4)), seed
            assert real_size(space, proposal.policy) <= seed.params["size"] <= limit

    @pytest.mark.parametrize("words", [("2:4",), ("2:4", "channel"), ("fine-grained", "channel")])
    def test_no_two_remove_the_same(self, vgg, vgg_graph, words):
        scores = {word: AllocationInputs(unit_importance(vgg, vgg_graph, word)) for word in words}
        space = Space(vgg_graph.network, 0.6, words)
        policies = [Projector(space).project(seed.params).policy for seed in initial_points(Projector(space, scores))]
        removed = [(policy.granularity_label, *achieved(space.network, policy).values()) for policy in policies]
        assert len(set(removed)) == len(removed) >= len(words)

    def test_spread_over_sizes_allocators_and_granularities(self, vgg_graph, vgg_inputs):
        space = Space(vgg_graph.network, 0.25)
        seeds = list(initial_points(Projector(space, vgg_inputs)))
        assert len({tuple(seed.params.items()) for seed in seeds}) == len(seeds)
        assert {seed.granularity for seed in seeds[:2]} == {"fine-grained", "channel"}
        assert len({seed.allocator for seed in seeds[:10]}) == 5
        sizes = {seed.params["size"] for seed in seeds[:10]}
        assert len(sizes) >= 4
        low, high = space.size_range
        assert max(sizes) == high
        assert min(sizes) < math.sqrt(low * high)

    def test_study_accepts_them(self, vgg_graph, vgg_inputs):
        space = Space(vgg_graph.network, 0.25)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
        seeds = list(initial_points(Projector(space, vgg_inputs)))[:4]
        for seed in seeds:
            study.enqueue_trial(seed.params)
        for seed in seeds:
            trial = study.ask()
            space.sample(trial)
            assert trial.params == dict(seed.params)
            study.tell(trial, 0.0)
