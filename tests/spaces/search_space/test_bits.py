"""Bits of stored values as a choice of the space: sizes, floors, fits and initial points at each width."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.importance.scores import unit_importance
from spaces import PruningPolicy, Schedule, Space
from spaces.allocation.allocators import allocate
from spaces.allocation.budget import Target, Unreachable
from spaces.allocation.importance import AllocationInputs
from spaces.allocation.two_stage import FLOOR_MARGIN, REMOVAL
from spaces.cost.effect import achieved, fine_tune_key, kept_units
from spaces.cost.footprint import dense_footprint, footprint, relative_cost
from spaces.search_space.base_allocations import BaseAllocations
from spaces.search_space.initial import UNPRUNED, allocated, initial_points
from spaces.search_space.limits import LARGEST_TARGET, SIZE_SPAN
from spaces.search_space.logits import sigmoid
from spaces.search_space.projection import Projected, Projector
from spaces.search_space.space import MOST_KNOBS, Draft
from tests.spaces.search_space.test_projector import linear

LAWS = settings.get_profile("few")
WIDTHS = (8, 6, 4)
WORDS = ("fine-grained", "channel", "2:4", "channel+fine-grained", "channel+1:4")


@pytest.fixture(scope="module")
def vgg_inputs(vgg, vgg_graph):
    words = ("fine-grained", "channel", "2:4", "1:4")
    return {word: AllocationInputs(unit_importance(vgg, vgg_graph, word)) for word in words}


def planned(space: Space, policy: PruningPolicy) -> float:
    """Its size before training, worked out from the policy alone."""
    return relative_cost(footprint(space.network, policy), dense_footprint(space.network)).encoded


def removes_nothing(space: Space, policy: PruningPolicy) -> bool:
    return not any(achieved(space.network, policy).values()) and not kept_units(space.network, policy.removal)


def at_bits(network, bits) -> float:
    return relative_cost(footprint(network, PruningPolicy({}, bits=bits)), dense_footprint(network)).encoded


def fitted(space: Space, size: float, *rest, **options) -> Projected:
    """Also at a size beyond the axis."""
    return Projector(space).project(space.params(size, *rest, **options) | {"size": size})


class TestLaws:
    @LAWS
    @given(data=st.data())
    def test_no_point_is_larger_than_its_target(self, data, vgg_graph, residual_graph):
        network = data.draw(st.sampled_from([vgg_graph.network, residual_graph.network]))
        widths = data.draw(st.sampled_from([WIDTHS, (32, 3), (5,)]))
        mixed = data.draw(st.booleans())
        words = tuple(word for word in WORDS if not (mixed and "+" in word))
        space = Space(network, data.draw(st.sampled_from([0.2, 0.5])), words, mixed=mixed, bits=widths)
        low, high = space.size_range
        target = low * (high / low) ** data.draw(st.floats(0, 1))
        preference = st.one_of(st.sampled_from([0.0, 1e-9, 1.0]), st.floats(0, 1))
        preferences = {knob: data.draw(preference) for knob in space.knobs}
        word, bits = data.draw(st.sampled_from(space.usable)), data.draw(st.sampled_from(widths))
        if mixed:
            word = {name: data.draw(st.sampled_from(space.choices)) for name in network.layer_names}
            bits = {name: data.draw(st.sampled_from(widths)) for name in network.layer_names}
        part = data.draw(st.floats(*REMOVAL))
        point = fitted(space, target, word, preferences, Schedule(), channel_fraction=part, bits=bits)
        policy = point.policy
        assert planned(space, policy) == point.cost.encoded <= point.target <= space.max_size
        used = {policy.bits_of(name) for name in network.layer_names}
        assert used <= set(widths) and (len(used) > 1 or policy.bits == used.pop())

    @LAWS
    @given(data=st.data())
    def test_bits_alone_where_they_meet_the_target(self, data, vgg_graph):
        space = Space(vgg_graph.network, 0.3, WORDS, bits=WIDTHS)
        word, bits = data.draw(st.sampled_from(space.usable)), data.draw(st.sampled_from(WIDTHS))
        alone, size = at_bits(space.network, bits), data.draw(st.floats(*space.size_range))
        knobs = {knob: data.draw(st.floats(0, 1)) for knob in space.knobs}
        point = fitted(space, size, word, knobs, Schedule(), bits=bits)
        floor = (space.two_stage if "+" in word else space.target)(1.0, word, bits=bits).floor
        assert point.target == min(max(size, floor * FLOOR_MARGIN), alone)
        assert removes_nothing(space, point.policy) == (point.target == alone)
        assert point.policy.bits == bits
        batch = Projector(space).project_batch([point.draft])
        assert (batch.sizes[0] == alone) == (point.target == alone)
        if point.target == alone:
            assert not batch.requests.masked.any() and not batch.requests.removed.any()


class TestTogether:
    """Points fitted at once against the exact policy of each."""

    @pytest.mark.parametrize("mixed", [False, True])
    def test_sizes_agree(self, mixed, vgg_graph):
        words = ("fine-grained", "2:4") if mixed else ("fine-grained", "channel+fine-grained")
        space = Space(vgg_graph.network, 0.22, words, mixed=mixed, bits=(16, 6, 4))
        random, (low, high) = np.random.default_rng(0), space.size_range
        drafts = []
        for number in range(24):
            word = str(random.choice(space.usable))
            one = random.choice(space.bits, len(space.network.prunable)).tolist()
            bits = dict(zip(space.network.layer_names, one, strict=True)) if mixed else one[0]
            if mixed and number % 2:
                word = dict(zip(space.network.layer_names, random.choice(space.usable, len(one)).tolist(), strict=True))
            logits = random.normal(0, 1.5, len(space.knobs))
            drafts.append(Draft("", low * (high / low) ** random.random(), word, logits, Schedule(), bits=bits))
        batch = Projector(space).project_batch(drafts)
        for draft, size, widths in zip(drafts, batch.sizes, batch.requests.bits, strict=True):
            point = Projector(space).project(draft)
            names = space.network.layer_names
            assert widths.tolist() == [point.policy.bits_of(name) for name in names]
            assert size <= point.target * (1 + 1e-12)
            assert size == pytest.approx(point.cost.encoded, rel=0.1 if "2:4" in str(draft.granularity) else 0.015)


class TestLimits:
    def test_range_and_floors(self, vgg_graph):
        network = vgg_graph.network
        sizes = {bits: at_bits(network, bits) for bits in (*WIDTHS, 32)}
        assert sizes[4] < sizes[6] < sizes[8] < 0.26 < sizes[32] == 1
        space = Space(network, 0.5, ("fine-grained", "channel"), bits=(6, 8, 4))
        assert space.size_range == (sizes[8] / SIZE_SPAN, sizes[8])
        assert Space(network, 0.2, bits=WIDTHS).size_range == (0.2 / SIZE_SPAN, 0.2)
        assert Space(network, 1.0, bits=(4, 32)).size_range == (1 / SIZE_SPAN, LARGEST_TARGET)
        assert {bits: space.unpruned_size(bits) for bits in WIDTHS} == {bits: sizes[bits] for bits in WIDTHS}
        for word, bits in product(space.usable, WIDTHS):
            floor = Target(network, 1.0, word, bits=bits).floor
            assert space.floor(word, bits) == floor and (bits > 4 or space.floors[word] == floor)
            assert space.reachable(1e-6, word, bits) == floor * FLOOR_MARGIN
            assert space.reachable(0.4, word, bits) == sizes[bits]
        two = Space(network, 0.5, ("channel+kernel",), bits=WIDTHS)
        assert two.floor("channel+kernel", 4) < two.floor("channel+kernel", 8)
        assert space.pruned_range(8) == (sizes[8] / SIZE_SPAN, LARGEST_TARGET * sizes[8])
        assert Space(network, 0.1, bits=(8,)).pruned_range(8) == (0.1 / SIZE_SPAN, 0.1)

    def test_messages_name_the_bits(self, vgg_graph):
        floor = Target(vgg_graph.network, 1.0, "2:4", bits=4).floor
        space = Space(vgg_graph.network, 0.05, ("fine-grained", "2:4"), bits=WIDTHS)
        assert space.left_out == {"2:4": f"its smallest size is {floor:.4f} at 4 bits"}
        with pytest.raises(Unreachable) as caught:
            Space(vgg_graph.network, 0.05, ("2:4",), bits=WIDTHS)
        to, advised = at_bits(vgg_graph.network, 8), math.ceil(floor * 1e4) / 1e4
        assert str(caught.value).endswith(
            f"size, 2:4 at 4 bits: reachable is {advised:.4f} to {to:.4f}; set --max-size to at least {advised:.4f}"
        )
        assert Space(vgg_graph.network, advised, ("2:4",), bits=WIDTHS).usable == ("2:4",)

    def test_bits_at_which_a_granularity_is_not_within_the_limit(self, vgg_graph, vgg_inputs):
        """A pattern with a fixed N goes no lower: it takes the most bits at which it is small enough."""
        network = vgg_graph.network
        floors = {bits: Target(network, 1.0, "2:4", bits=bits).floor for bits in WIDTHS}
        limit = (floors[6] + floors[8]) / 2
        assert floors[6] < limit < floors[8]
        space = Space(network, limit, ("fine-grained", "2:4"), bits=WIDTHS)
        assert [space.bits_within("2:4", bits) for bits in WIDTHS] == [6, 6, 4]
        assert space.bits_within("fine-grained", 8) == 8
        point = fitted(space, limit, "2:4", dict.fromkeys(space.knobs, 0.5), Schedule(), bits=8)
        assert point.policy.bits == 6 and planned(space, point.policy) <= limit
        batch = Projector(space).project_batch([point.draft])
        assert set(batch.requests.bits[0].tolist()) == {6}
        assert allocated(space, "uniform", limit, "2:4", vgg_inputs, 8).bits == 6
        mixed = Space(network, limit, ("fine-grained", "2:4"), mixed=True, bits=WIDTHS)
        unlike = dict.fromkeys(network.layer_names, 8) | {network.layer_names[-2]: 6}
        assert mixed.bits_within("2:4", unlike) == (6 if mixed.floor("2:4", unlike) > limit else unlike)

    def test_a_mixture_that_is_not_within_the_limit_at_its_bits(self, vgg_graph):
        network = vgg_graph.network
        floors = {bits: Target(network, 1.0, "2:4", bits=bits).floor for bits in WIDTHS}
        space = Space(network, (floors[6] + floors[8]) / 2, ("2:4",), mixed=True, bits=WIDTHS)
        words = dict.fromkeys(network.layer_names, "2:4")
        point = fitted(space, space.max_size, words, dict.fromkeys(space.knobs, 0.5), Schedule(), bits=8)
        assert point.policy.bits == 6 and planned(space, point.policy) <= space.max_size

    def test_a_pattern_joins_mixtures_that_are_small_enough_at_the_fewest_bits(self, vgg_graph):
        network = vgg_graph.network
        smallest = min((x for x in network.layers if x.shape[1] % 4 == 0), key=lambda layer: layer.numel).name
        mixture = dict.fromkeys(network.layer_names, "fine-grained") | {smallest: "2:4"}
        floors = {bits: Target(network, 1.0, mixture, bits=bits).floor for bits in (8, 4)}
        limit = sum(floors.values()) / 2
        for bits, choices in (((8,), ("fine-grained",)), ((8, 4), ("fine-grained", "2:4"))):
            assert Space(network, limit, ("fine-grained", "2:4"), mixed=True, bits=bits).choices == choices

    def test_limits_of_speed_are_met_by_removal(self, vgg_graph, vgg_inputs):
        space = Space(vgg_graph.network, 0.5, ("channel",), max_macs=0.6, bits=(8,))
        point = fitted(space, 0.5, "channel", dict.fromkeys(space.knobs, 0.5), Schedule())
        assert point.cost.macs <= 0.6 and point.target == at_bits(vgg_graph.network, 8)
        inputs = {"channel": vgg_inputs["channel"]}
        assert UNPRUNED not in {one.allocator for one in initial_points(Projector(space, inputs))}


def test_keys_tell_bits_apart(vgg_graph):
    network = vgg_graph.network
    policy = PruningPolicy({network.layer_names[1]: 0.5})
    keys = [fine_tune_key(network, replace(policy, bits=bits)) for bits in (32, 8, {network.layer_names[1]: 8})]
    assert len(set(keys)) == 3
    quick, slow = Schedule("one-shot"), Schedule("polynomial", 3.0)
    ways = [PruningPolicy({}, word, schedule=s, bits=4) for word in ("channel", "2:4") for s in (quick, slow)]
    assert len({fine_tune_key(network, one) for one in ways}) == 1, "nothing is removed, whatever the schedule"
    pruned = [replace(policy, schedule=schedule, bits=4) for schedule in (quick, slow)]
    assert len({fine_tune_key(network, one) for one in pruned}) == 2


class TestAllocations:
    @pytest.mark.parametrize("word", ["fine-grained", "channel", "channel+fine-grained", "channel+1:4"])
    def test_at_bits(self, word, vgg_graph, vgg_inputs):
        space = Space(vgg_graph.network, 0.3, (word,), bits=WIDTHS)
        fewer, more = (allocated(space, "lamp", 0.07, word, vgg_inputs, bits) for bits in (4, 8))
        assert (fewer.bits, more.bits) == (4, 8)
        assert planned(space, more) <= 0.07 and planned(space, fewer) <= 0.07
        kept = [footprint(space.network, policy).nonzero for policy in (fewer, more)]
        assert kept[0] > 1.2 * kept[1]
        alone = allocated(space, "lamp", at_bits(space.network, 6), word, vgg_inputs, 6)
        assert removes_nothing(space, alone) and alone.bits == 6

    def test_a_removal_does_its_part_of_what_bits_leave_to_do(self, vgg_graph):
        space = Space(vgg_graph.network, 0.3, ("channel+fine-grained",), bits=(8, 4))
        for bits in (8, 4):
            whole = at_bits(space.network, bits)
            knobs = dict.fromkeys(space.knobs, 0.5)
            options = {"channel_fraction": 0.4, "bits": bits}
            policy = fitted(space, 0.03, "channel+fine-grained", knobs, Schedule(), **options).policy
            removed = planned(space, replace(policy, sparsity={}))
            assert math.log(removed / whole) / math.log(0.03 / whole) == pytest.approx(0.4, abs=0.03)

    def test_each_stage_begins_with_its_allocation_at_the_bits(self, vgg_graph, vgg_inputs):
        word, network = "channel+fine-grained", vgg_graph.network
        space = Space(network, 0.3, (word,), bits=(8, 4))
        for bits in (8, 4):
            stages = space.two_stage(0.03, word, 0.4, bits)
            assert stages.least == space.target(1.0, "channel", bits).floor * FLOOR_MARGIN
            sizes = stages.channel_share, stages.mask_share * space.unpruned_size(bits)
            found = BaseAllocations(space, vgg_inputs).two_stage_logits("lamp", stages)
            for part, size, logits in zip(("channel", "fine-grained"), sizes, found, strict=True):
                wanted = allocate("lamp", Target(network, size, part, bits=bits), vgg_inputs[part])
                shares = dict(zip(network.layer_names, sigmoid(logits).tolist(), strict=True))
                assert {name: shares[name] for name in wanted} == pytest.approx(wanted, abs=0.1)

    @pytest.mark.parametrize("mixed", [False, True])
    def test_shared_knobs_move_the_allocation_at_the_bits_of_the_point(self, mixed):
        network = linear(MOST_KNOBS + 1)
        random = np.random.default_rng(0)
        scores = {
            layer.name: random.exponential(1 + 3 * (n % 5), layer.numel) for n, layer in enumerate(network.layers)
        }
        inputs = {"fine-grained": AllocationInputs(scores)}
        space = Space(network, 0.5, ("fine-grained",), mixed=mixed, bits=(16, 4), allocations=("lamp",))
        even = dict.fromkeys(space.knobs, 0.5)
        found = []
        for bits in (16, 4):
            low, high = space.pruned_range(bits)
            size = high * (low / high) ** 0.5  # one of the sizes that allocations are worked out at
            point = Projector(space, inputs).fit(
                space.params(size, "fine-grained", even, Schedule(), "lamp", bits=bits)
            )
            wanted = allocate("lamp", Target(network, size, bits=bits), inputs["fine-grained"])
            for name, share in wanted.items():
                assert point.policy.sparsity[name] == pytest.approx(share, abs=0.01)
            found.append([point.policy.sparsity[name] for name in wanted])
        assert max(abs(a - b) for a, b in zip(*found, strict=True)) > 0.05
        if mixed:
            unlike = {name: (16, 4)[n % 2] for n, name in enumerate(network.layer_names)}
            size = 0.6 * space.unpruned_size(unlike)
            params = space.params(size, "fine-grained", even, Schedule(), "lamp", bits=unlike)
            point = Projector(space, inputs).fit(params)
            for bits in (16, 4):
                target = Target(network, 0.6 * space.unpruned_size(bits), bits=bits)
                wanted = allocate("lamp", target, inputs["fine-grained"])
                own = [name for name in wanted if unlike[name] == bits]
                assert [point.policy.sparsity[name] for name in own] == pytest.approx(
                    [wanted[n] for n in own], abs=0.06
                )
            batch = Projector(space, inputs).project_batch([point.draft])
            assert planned(space, point.policy) <= size and batch.sizes[0] == pytest.approx(size, rel=0.02)


class TestInitialPoints:
    def test_bits_without_pruning_come_first(self, vgg_graph, vgg_inputs):
        inputs = {word: vgg_inputs[word] for word in ("fine-grained", "channel")}
        space = Space(vgg_graph.network, 0.2, bits=(8, 4, 6, 32))
        points = list(initial_points(Projector(space, inputs)))
        alone = [(point.allocator, point.bits) for point in points if point.allocator == UNPRUNED]
        assert alone == [(point.allocator, point.bits) for point in points[:2]] == [(UNPRUNED, 6), (UNPRUNED, 4)]
        for point in points:
            found = Projector(space).project(point.params)
            assert removes_nothing(space, found.policy) == (point.allocator == UNPRUNED)
            assert found.policy.bits == point.bits == space.draft(point.params).bits
            assert planned(space, found.policy) <= space.max_size
        assert {point.bits for point in points} == {4, 6, 8, 32}
        small = Space(vgg_graph.network, 0.05, bits=WIDTHS)
        assert UNPRUNED not in {point.allocator for point in initial_points(Projector(small, inputs))}

    @pytest.mark.parametrize(("limit", "bits"), [(0.03, WIDTHS), (0.25, WIDTHS), (0.25, (8, 4)), (0.9, (4,))])
    def test_spread(self, limit, bits, vgg_graph, vgg_inputs):
        """No longer than without bits but for those alone; the first few differ in bits, sizes and allocators."""
        inputs = {word: vgg_inputs[word] for word in ("fine-grained", "channel")}
        space = Space(vgg_graph.network, limit, bits=bits)
        points = list(initial_points(Projector(space, inputs)))
        plain = list(initial_points(Projector(Space(vgg_graph.network, 0.25), inputs)))
        spread = [point for point in points if point.allocator != UNPRUNED]
        assert len(spread) <= len(plain)
        few = spread[:10]
        assert {point.bits for point in few} == {bits[0]} if len(bits) == 1 else len({p.bits for p in few}) > 1
        assert {point.bits for point in points} == set(bits)
        assert len({point.allocator for point in few}) == 5 and len({point.granularity for point in few}) == 2
        assert len({point.params["size"] for point in few}) >= 4
        for name in {point.allocator for point in spread}:
            assert {point.bits for point in spread if point.allocator == name} == set(bits)
        keys = [Projector(space).project(point.params).key for point in points]
        assert len(set(keys)) == len(keys)
        if limit == 0.03:
            assert sum(point.bits == 4 for point in spread) >= 0.4 * len(spread)
