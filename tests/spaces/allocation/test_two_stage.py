"""Removals followed by masks: within the limits on paper and on disk, each part as large as it was asked to be."""

from __future__ import annotations

import math
from dataclasses import replace
from math import prod
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proposals import chain, evidence

from pruning import prune
from pruning.importance.scores import unit_importance
from pruning.sparse_file import encode_model
from spaces import Network, PruningPolicy, Schedule, Space, footprint
from spaces.allocation.allocators import allocate
from spaces.allocation.budget import Unreachable
from spaces.allocation.importance import AllocationInputs
from spaces.allocation.two_stage import EVEN_PART, FLOOR_MARGIN, REMOVAL, preferences_of
from spaces.cost.effect import achieved, kept_units, remaining
from spaces.cost.footprint import dense_footprint, relative_cost
from spaces.cost.latency_predictor import Predictor
from spaces.cost.latency_table import LatencyTable, LayerLatency, RestLatency
from spaces.granularity import COMBINED, parts_of
from spaces.search_space.initial import allocated, initial_points
from spaces.search_space.logits import centred
from spaces.search_space.projection import Projected, Projector
from spaces.search_space.space import Draft, allocator_names

NETWORKS = ["vgg", "residual"]
SHRINKING = [word for word in COMBINED if word[-3:] not in ("1:4", "2:4")]
"""Words whose masks the size decides; of the others the removal alone does."""
LAWS = settings.get_profile("few")
CHAIN = chain(6)


@pytest.fixture(scope="module")
def models(vgg, vgg_graph, residual, residual_graph):
    return {"vgg": (vgg, vgg_graph), "residual": (residual, residual_graph)}


@pytest.fixture(scope="module")
def known(vgg, vgg_graph):
    words = ("channel", *(parts_of(word)[-1] for word in COMBINED))
    return {word: AllocationInputs(unit_importance(vgg, vgg_graph, word)) for word in words}


def cost(network: Network, policy: PruningPolicy):
    return relative_cost(footprint(network, policy), dense_footprint(network))


def alone(network: Network, policy: PruningPolicy):
    """What the removal of a policy costs without its masks."""
    return cost(network, PruningPolicy({}, removal=policy.removal))


def fitted(space: Space, size: float, *rest: Any, **options: Any) -> Projected:
    """A point of these values, see `Space.params`, fitted to its size, also one beyond the axis."""
    return Projector(space).project(space.params(size, *rest, **options) | {"size": size})


def even(space: Space, size: float, word: str, part: float) -> PruningPolicy:
    return fitted(space, size, word, dict.fromkeys(space.knobs, 0.5), Schedule(), channel_fraction=part).policy


def drafts_of(space: Space, count: int, seed: int = 0) -> list[Draft]:
    random = np.random.default_rng(seed)
    low, high = space.size_range
    return [
        Draft(
            f"{number}",
            float(low * (high / low) ** random.random()),
            space.usable[number % len(space.usable)],
            random.normal(0, 1.5, len(space.knobs)),
            Schedule(),
            str(random.choice(space.base_names)),
            float(random.uniform(*REMOVAL)),
        )
        for number in range(count)
    ]


class TestProposals:
    @pytest.mark.parametrize("name", NETWORKS)
    @LAWS
    @given(data=st.data())
    def test_within_the_target_on_paper_and_on_disk(self, data, name, models):
        model, graph = models[name]
        word, metric = data.draw(st.sampled_from(COMBINED)), data.draw(st.sampled_from(["encoded", "nonzero"]))
        space = Space(graph.network, 0.4, ("fine-grained", word), metric)
        size = data.draw(st.floats(space.floors[word] * FLOOR_MARGIN, 0.4))
        knob = st.one_of(st.sampled_from([0.0, 1e-9, 1.0]), st.floats(0, 1))
        preferences = {knob_name: data.draw(knob) for knob_name in space.knobs}
        proposal = fitted(space, size, word, preferences, Schedule(), channel_fraction=data.draw(st.floats(*REMOVAL)))
        assert cost(graph.network, proposal.policy).of(metric) <= proposal.target == size
        if metric == "encoded":
            written = len(encode_model(prune(model, proposal.policy, graph=graph)))
            assert written <= size * dense_footprint(graph.network).encoded_bytes

    @pytest.mark.parametrize("word", SHRINKING)
    def test_a_larger_part_removes_more_channels_and_masks_less(self, word):
        """And the removal does that part of the logarithm of the reduction, to a channel of each group.

        Patterns keep multiples of 4 or 8 channels, and no less than one place of each block.
        """
        size, rounding = (0.36, 0.15) if ":" in word else (0.08, 0.02)
        space, lost, masked = Space(CHAIN, 0.4, (word,)), [], []
        for part in (0.1, 0.35, 0.9):
            policy = even(space, size, word, part)
            reduced = math.log(alone(CHAIN, policy).encoded) / math.log(size)
            assert part <= reduced <= part + rounding
            lost.append(min(policy.removal.values()))
            masked.append(max(policy.sparsity.values()))
        assert lost == sorted(lost) and masked == sorted(masked, reverse=True)
        assert lost[0] + 0.2 < lost[-1] and masked[-1] + 0.2 < masked[0]

    def test_masks_take_the_rest(self):
        space = Space(CHAIN, 0.25, ("channel+fine-grained",))
        for part in (0.1, 0.8):
            assert cost(CHAIN, even(space, 0.1, "channel+fine-grained", part)).encoded >= 0.995 * 0.1

    def test_a_knob_moves_both_parts(self):
        space, word = Space(CHAIN, 0.25, ("channel+kernel",)), "channel+kernel"
        knobs = dict.fromkeys(space.knobs, 0.5)
        one = fitted(space, 0.2, word, knobs | {"conv2.weight": 0.75}, Schedule(), channel_fraction=0.4).policy
        others = [name for name in one.removal if name != "conv2.weight"]
        assert one.removal["conv2.weight"] > 0.1 + max(one.removal[name] for name in others)
        assert one.sparsity["conv2.weight"] > 0.1 + max(one.sparsity[name] for name in others)

    def test_where_masks_cannot_do_the_rest_more_channels_go(self):
        space = Space(CHAIN, 0.02, ("fine-grained", "channel+fine-grained"), metric="nonzero")
        floor, size = space.floors["fine-grained"], space.floors["channel+fine-grained"] * FLOOR_MARGIN
        assert size < floor / 2
        policy = even(space, size, "channel+fine-grained", 0.1)
        assert cost(CHAIN, policy).nonzero <= size
        assert alone(CHAIN, policy).nonzero < 0.5 * size**0.1

    @pytest.mark.parametrize(("word", "share", "size"), [("channel+2:4", 0.5, 0.3), ("channel+1:4", 0.75, 0.12)])
    def test_of_a_fixed_pattern_the_removal_lands_on_the_size(self, word, share, size):
        space = Space(CHAIN, 0.4, (word,))
        few, many = even(space, size, word, REMOVAL[0]), even(space, size, word, REMOVAL[1])
        assert few == many
        assert set(few.sparsity.values()) == {share}
        assert set(few.sparsity) == set(CHAIN.layer_names) - {"conv0.weight"}  # of 3 inputs
        kept = kept_units(CHAIN, few.removal)
        assert all(count % 4 == 0 for count in kept.values())
        one_more = {name: 1 - (kept[place] + 4) / 128 for place, name in enumerate(few.removal)}
        assert cost(CHAIN, few).encoded <= size < cost(CHAIN, replace(few, removal=one_more)).encoded

    def test_nothing_is_removed_where_a_fixed_pattern_alone_is_within_the_size(self):
        policy = even(Space(CHAIN, 0.5, ("channel+1:4",)), 0.5, "channel+1:4", 0.5)
        assert not any(policy.removal.values()) and policy.granularity_label == "1:4"

    @pytest.mark.parametrize("word", ["channel+*:8", "channel+2:4"])
    def test_patterns_still_divide_the_inputs_that_stay(self, word):
        of, space = int(word[-1]), Space(CHAIN, 0.4, (word,))
        knobs = {knob: 0.3 + 0.07 * place for place, knob in enumerate(space.knobs)}
        policy = fitted(space, 0.13, word, knobs, Schedule(), channel_fraction=0.37).policy
        assert all(layer.shape[1] % of == 0 for layer in remaining(CHAIN, policy.removal)[1:])

    def test_the_policy_is_written_as_before(self):
        policy = even(Space(CHAIN, 0.25, ("channel+vector",)), 0.2, "channel+vector", 0.3)
        data = policy.to_dict()
        assert list(data) == ["version", "sparsity", "granularity", "removal", "criterion", "schedule"]
        assert (data["version"], data["granularity"]) == (1, "vector")
        assert PruningPolicy.from_json(policy.to_json()) == policy
        assert policy.granularity_label == "channel+vector"


class TestLimits:
    @pytest.mark.parametrize("word", ["channel+fine-grained", "channel+2:4"])
    def test_macs_are_reached_by_the_removal(self, word):
        space = Space(CHAIN, 0.6, (word,), max_macs=0.2)
        for part in REMOVAL:
            assert cost(CHAIN, even(space, 0.6, word, part)).macs <= 0.2
        assert cost(CHAIN, even(space, 0.6, word, REMOVAL[0])).macs >= 0.18
        landed = Projector(space).project_batch(drafts_of(space, 6))
        assert (landed.speeds <= 0.2 * (1 + 1e-9)).all()

    def test_latency(self):
        layers = {
            layer.name: LayerLatency((1, 128), (1, layer.shape[1]), ((1e-6, 2e-6), (1e-5, 1e-3)))
            for layer in CHAIN.layers
        }
        table = LatencyTable("", "some CPU", 1, 1, layers, (RestLatency(1.0, 1.0, 1e-5),), 1e-4, 0.0)
        latency, word = Predictor(table, CHAIN), "channel+fine-grained"
        space = Space(CHAIN, 0.9, (word,), max_latency=0.4, latency=latency, speed="latency")
        assert latency.share(even(Space(CHAIN, 0.9, (word,)), 0.8, word, 0.1)) > 0.4
        assert 0.35 < latency.share(even(space, 0.8, word, 0.1)) <= 0.4

    def test_left_out_where_no_channel_can_go(self):
        network = replace(CHAIN, groups=tuple(replace(group, obstacle="outputs") for group in CHAIN.groups))
        network = replace(network, layers=tuple(replace(layer, obstacle="outputs") for layer in network.layers))
        space = Space(network, 0.4, ("channel+kernel", "kernel"))
        assert space.left_out == {"channel+kernel": "its channel part can remove nothing of this network"}
        assert "removal" not in [axis.name for axis in space.axes]

    def test_refused(self):
        with pytest.raises(ValueError, match="'channel\\+kernel' is for a whole policy, not for mixed layers"):
            Space(CHAIN, 0.25, ("channel", "channel+kernel"), mixed=True)
        for word in ("kernel+channel", "channel+channel", "channel+", "channel+kernel+vector"):
            with pytest.raises(ValueError, match=r"unknown granularity .* did you mean 'channel"):
                Space(CHAIN, 0.25, (word,))
        with pytest.raises(ValueError, match="criterion 'bn-scale' is defined for granularity channel only"):
            Space(CHAIN, 0.25, ("channel+kernel",), criterion="bn-scale")


class TestManyAtOnce:
    @pytest.mark.parametrize("name", NETWORKS)
    @pytest.mark.parametrize("metric", ["encoded", "nonzero"])
    def test_as_one_by_one(self, name, metric, models):
        """Plain and combined words among each other: in their order, within the target, and near the exact landing."""
        network = models[name][1].network
        space = Space(network, 0.5, ("fine-grained", "channel", *COMBINED), metric)
        drafts = drafts_of(space, 3 * len(space.usable))
        landed = Projector(space).project_batch(drafts)
        assert landed.drafts == tuple(drafts)
        for place, draft in enumerate(drafts):
            proposal = Projector(space).project(draft)
            exact, size = cost(network, proposal.policy), landed.sizes[place]
            assert size <= proposal.target * (1 + 1e-9)
            assert size == pytest.approx(exact.of(metric), rel=0.25)
            assert landed.speeds[place] == pytest.approx(exact.macs, rel=0.25)

    @pytest.mark.parametrize("word", SHRINKING)
    def test_the_same_requests_where_sizes_are_exact(self, word):
        space = Space(CHAIN, 0.25, (word,), metric="nonzero")
        drafts = drafts_of(space, 6, seed=1)
        landed = Projector(space).project_batch(drafts)
        for place, draft in enumerate(drafts):
            policy = Projector(space).project(draft).policy
            asked = [policy.removal.get(name, 0.0) for name in CHAIN.layer_names[:-1]]
            np.testing.assert_allclose(landed.requests.removed[place], asked, atol=1.5 / 128)
            if not word.endswith(("4", "8")):
                masks = list(achieved(CHAIN, policy).values())
                np.testing.assert_allclose(landed.requests.masked[place], masks, atol=0.03)

    def test_on_bases_of_deep_networks(self):
        network, random = chain(30), np.random.default_rng(0)
        space = Space(network, 0.25, ("channel+fine-grained",), allocations=allocator_names(scanned=False))
        projector = Projector(space, evidence(network, random))
        assert len(space.base_names) > 2
        drafts = drafts_of(space, 8)
        batch = projector.project_batch(drafts)
        for draft, size, speed in zip(drafts, batch.sizes, batch.speeds, strict=True):
            exact = cost(network, projector.project(draft).policy)
            assert size == pytest.approx(exact.encoded, rel=0.02)
            assert speed == pytest.approx(exact.macs, rel=0.02)

    def test_bases_shape_both_parts(self):
        network, random = chain(30), np.random.default_rng(0)
        known = evidence(network, random)
        weak = {
            name: scores * (0.01 if name == "conv7.weight" else 1)
            for name, scores in known["fine-grained"].scores.items()
        }
        space = Space(network, 0.25, ("channel+fine-grained",), allocations=("global",))
        params = space.params(0.1, "channel+fine-grained", dict.fromkeys(space.knobs, 0.5), Schedule(), "global")
        projector = Projector(space, known | {"fine-grained": AllocationInputs(weak)})
        policy = projector.project(params).policy
        assert max(policy.sparsity, key=policy.sparsity.__getitem__) == "conv7.weight"
        assert len({round(share, 3) for share in policy.removal.values()}) > 1
        assert max(policy.removal, key=policy.removal.__getitem__) != "conv7.weight"


class TestAxes:
    def test_the_removal_is_one_where_it_can_matter(self):
        with_it, without = Space(CHAIN, 0.25, ("channel", "channel+kernel")), Space(CHAIN, 0.25, ("channel", "kernel"))
        axis = next(axis for axis in with_it.axes if axis.name == "removal")
        assert (axis.low, axis.high, axis.log) == (0.1, 0.9, False)
        names = [axis.name for axis in with_it.axes]
        assert [name for name in names if name != "removal"] == [axis.name for axis in without.axes]

    @LAWS
    @given(data=st.data())
    def test_draft_of_params_is_the_point(self, data):
        space = Space(CHAIN, 0.25, ("channel", "channel+kernel", "channel+1:4"))
        low, high = space.size_range
        logits = np.array([data.draw(st.one_of(st.just(-math.inf), st.floats(-5, 5))) for _ in space.knobs])
        size, word = data.draw(st.floats(low, high)), data.draw(st.sampled_from(space.usable))
        point = Draft("free", size, word, logits, Schedule(), channel_fraction=data.draw(st.floats(*REMOVAL)))
        params = space.params_of(point)
        assert list(params) == [axis.name for axis in space.axes]
        back = space.draft(params, "free")
        assert (back.size, back.granularity, back.schedule) == (size, word, point.schedule)
        assert back.channel_fraction == point.channel_fraction
        np.testing.assert_allclose(back.logits, centred(logits), atol=1e-9)

    def test_parts_beyond_the_range_are_taken_to_its_ends(self):
        space = Space(CHAIN, 0.25, ("channel+kernel",))
        draft = drafts_of(space, 1)[0]
        drafts = [replace(draft, channel_fraction=fraction) for fraction in (-1.0, 0.3, 2.0)]
        assert [space.params_of(one)["removal"] for one in drafts] == [0.1, 0.3, 0.9]


class TestAllocations:
    def test_uniform_is_even_in_both_parts(self, vgg_graph, known):
        """Half of the logarithm of the reduction each, and no more channels than that takes."""
        network = vgg_graph.network
        policy = allocated(
            Space(network, 0.25, ("channel+fine-grained",)), "uniform", 0.16, "channel+fine-grained", known
        )
        removed, masked = set(policy.removal.values()), set(policy.sparsity.values())
        assert len(removed) == len(masked) == 1
        assert alone(network, policy).encoded <= 0.4
        assert (
            cost(network, PruningPolicy(dict.fromkeys(policy.removal, removed.pop() - 0.03), "channel")).encoded > 0.4
        )
        assert 0.99 * 0.16 <= cost(network, policy).encoded <= 0.16

    def test_erk_counts_the_dimensions_that_stay(self, vgg_graph, known):
        network = vgg_graph.network
        policy = allocated(Space(network, 0.25, ("channel+fine-grained",)), "erk", 0.1, "channel+fine-grained", known)
        density = {layer.name: sum(layer.shape) / prod(layer.shape) for layer in remaining(network, policy.removal)}
        scales = [(1 - s) / density[name] for name, s in policy.sparsity.items() if s > 0]
        assert len(scales) > 3 and max(scales) == pytest.approx(min(scales), rel=1e-6)

    @pytest.mark.parametrize(("word", "channels"), [("channel+fine-grained", 0.4), ("channel+2:4", 0.32)])
    def test_the_scan_is_asked_for_each_part_of_the_size(self, word, channels, vgg_graph, known):
        """Masks for their share of what the removal left; of a fixed pattern the removal for what it takes before."""
        network, asked = vgg_graph.network, []

        def table() -> SimpleNamespace:
            shares = dict.fromkeys(network.layer_names, 0.5)
            return SimpleNamespace(at=lambda size, mix: asked.append(size) or shares, unpruned_size=1.0)

        scanned = {name: AllocationInputs(one.scores, table()) for name, one in known.items()}
        policy = allocated(Space(network, 0.25, (word,)), "scan", 0.16, word, scanned)
        assert asked[0] == pytest.approx(channels)
        if word == "channel+fine-grained":
            assert asked[1:] == [pytest.approx(0.16 / alone(network, policy).encoded)]
        assert cost(network, policy).encoded <= 0.16

    @pytest.mark.parametrize("word", COMBINED)
    def test_every_allocator_is_within_the_size(self, word, vgg_graph, known):
        network = vgg_graph.network
        space = Space(network, 0.3, (word,))
        found = []
        for name in ("lamp", "global", "erk", "uniform", "last-layers"):
            try:
                policy = allocated(space, name, 0.3, word, known)
            except Unreachable:
                continue
            assert cost(network, policy).encoded <= 0.3
            assert policy.granularity == parts_of(word)[-1]
            found.append(name)
        assert {"global", "uniform"} <= set(found)

    def test_seeds_lie_in_the_space_and_are_near_their_allocations(self, vgg_graph, known):
        space = Space(vgg_graph.network, 0.25, ("channel", "channel+fine-grained"))
        seeds = [seed for seed in initial_points(Projector(space, known)) if seed.granularity == "channel+fine-grained"]
        assert {seed.allocator for seed in seeds} >= {"lamp", "global", "erk", "uniform"}
        for seed in seeds[:8]:
            assert list(seed.params) == [axis.name for axis in space.axes]
            assert seed.params["removal"] == EVEN_PART
            policy, size = Projector(space).project(seed.params).policy, seed.params["size"]
            assert cost(space.network, policy).encoded <= size
            wanted = allocated(space, seed.allocator, size, seed.granularity, known)
            knobs = {knob: seed.params[f"preference.{knob}"] for knob in space.knobs}
            assert knobs == pytest.approx({knob: preferences_of(wanted).get(knob, 0.0) for knob in knobs})
            if seed.allocator == "uniform":
                assert np.ptp(list(policy.removal.values())) < 1e-6 > np.ptp(list(policy.sparsity.values()))
            assert alone(space.network, policy).encoded == pytest.approx(alone(space.network, wanted).encoded, rel=0.12)

    def test_preferences_are_the_mean_of_both_logits(self):
        policy = PruningPolicy({"a": 0.5, "b": 0.8, "c": 0.2}, "kernel", {"a": 0.9, "b": 0.5})
        found = {name: math.log(s / (1 - s)) for name, s in preferences_of(policy).items()}
        masks = {"a": 0.0, "b": math.log(4), "c": -math.log(4)}  # their mean is 0
        removal = {"a": math.log(9) / 2, "b": -math.log(9) / 2}
        assert found == pytest.approx({"a": removal["a"] / 2, "b": (masks["b"] + removal["b"]) / 2, "c": masks["c"]})
        plain = PruningPolicy({"a": 0.5, "b": 0.8, "c": 0.2}, "kernel")
        assert preferences_of(plain)["b"] == pytest.approx(0.8)
        fixed = PruningPolicy({"a": 0.5, "b": 0.5}, "2:4", {"a": 0.9, "b": 0.5})
        assert preferences_of(fixed)["a"] == pytest.approx(0.75)

    def test_allocators_without_a_removal_give_what_they_did(self, vgg_graph, known):
        space = Space(vgg_graph.network, 0.25)
        for word in space.usable:
            plain = allocate("lamp", space.target(0.2, word), known[word])
            assert allocated(space, "lamp", 0.2, word, known) == PruningPolicy(
                plain, word, schedule=space.seed_schedule
            )
