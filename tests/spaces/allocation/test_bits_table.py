"""Tables with value bits: against brute force over all combinations, and their sizes against those of files."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spaces import Layer, Network, Profile, ProfilePoint, PruningPolicy, RoundingPoint, StoredTensor, footprint
from spaces.allocation.allocators import allocate
from spaces.allocation.budget import Target, fit_by_shift
from spaces.allocation.importance import AllocationInputs
from spaces.allocation.knobs import Damage, knobs_of, rounding_damages
from spaces.allocation.lagrangian import LagrangianAllocator
from spaces.bits import BITS
from spaces.cost.footprint import dense_footprint
from spaces.network import ChannelGroup


def chain(*widths: int, first: int = 3) -> Network:
    """3x3 convolutions one after another, each with a BatchNorm, and a classifier whose channels all stay."""
    tensors, layers, before = [], [], ((), first)
    for group, width in enumerate(widths):
        own = ((group, width),)
        tensors += [
            StoredTensor(f"c{group}.weight", (width, before[1], 3, 3), owners=(own, before[0], (), ())),
            StoredTensor(f"n{group}.weight", (width,), owners=(own,)),
            StoredTensor(f"n{group}.bias", (width,), owners=(own,)),
            StoredTensor(f"n{group}.running_mean", (width,), parameter=False, owners=(own,)),
            StoredTensor(f"n{group}.running_var", (width,), parameter=False, owners=(own,)),
            StoredTensor(f"n{group}.num_batches_tracked", (), "I64", parameter=False),
        ]
        layers.append(Layer(f"c{group}.weight", "conv2d", (width, before[1], 3, 3), 64 >> group, channel_group=group))
        before = (own, width)
    tensors += [StoredTensor("last.weight", (10, before[1]), owners=((), before[0])), StoredTensor("last.bias", (10,))]
    layers.append(Layer("last.weight", "linear", (10, before[1]), 1, obstacle="output"))
    groups = tuple(ChannelGroup((f"c{n}.weight",), width) for n, width in enumerate(widths))
    return Network(tuple(tensors), tuple(layers), groups, folded_norms=tuple(f"n{n}" for n in range(len(widths))))


NET = chain(48, 64)
LEVELS = (0.0, 0.45, 0.8, 0.97)
STATES = 100
"""Bytes that the coder's states, which come in steps, may make a file differ from the sum of its parts."""


def random_table(granularity: str, seed: int, bits, net: Network = NET, **more) -> LagrangianAllocator:
    random = np.random.default_rng(seed)
    damages = {
        knob: Damage(LEVELS, np.append(0, np.cumsum(random.exponential(size=3)))) for knob in knobs_of(net, granularity)
    }
    rounding = {
        layer: dict(zip(BITS, np.append(0, np.cumsum(random.exponential(0.1, len(BITS) - 1))), strict=True))
        for layer in net.by_name
    }
    return LagrangianAllocator(net, granularity, damages, bits=bits, rounding=rounding, **more)


def every_combination(table: LagrangianAllocator, choices: tuple[int, ...]) -> np.ndarray:
    """Damage, size and MACs (c, 3) of all sparsities and bits, each size that of a whole policy's file."""
    net, dense, rows = table.network, dense_footprint(table.network), []
    for places in product(*(range(len(one.levels)) for one in table.damages.values())):
        sparsity = {name: LEVELS[at] for name, at in zip(table.damages, places, strict=True)}
        lost = sum(table.damages[name].values[at] for name, at in zip(table.damages, places, strict=True))
        for widths in product(choices, repeat=len(net.by_name)):
            bits = dict(zip(net.by_name, widths, strict=True))
            part = footprint(net, PruningPolicy(sparsity, table.granularity, bits=bits))
            rounded = sum(table.rounding[layer][own] for layer, own in bits.items())
            rows.append((lost + rounded, part.encoded_bytes / dense.encoded_bytes, part.macs / dense.macs))
    return np.array(rows)


class TestEachLayerItsOwn:
    @pytest.mark.parametrize("granularity", ["fine-grained", "channel"])
    def test_is_the_least_of_all_combinations_of_sparsities_and_bits(self, granularity):
        table = random_table(granularity, 3, (8, 3))
        assert table.choices.exact
        every = every_combination(table, (8, 3))
        slack, seen = STATES / dense_footprint(table.network).encoded_bytes, set()
        for price, mix in product((1.0, 10.0, 40.0, 160.0), (0.0, 0.5)):
            weights = np.array([1.0, price * (1 - mix), price * mix])
            found = table.optimum(*weights[1:])
            part = footprint(table.network, policy_of(table, found.sparsity, found.bits))
            size = part.encoded_bytes / dense_footprint(table.network).encoded_bytes
            energy = weights @ [found.damage, size, found.macs]
            assert found.size == pytest.approx(size, abs=slack)
            assert energy == pytest.approx((every @ weights).min(), abs=2 * price * slack)
            seen |= {tuple(found.bits.values())}
        assert len(seen) > 2 and any(len({*own}) > 1 for own in seen)

    def test_says_sparsities_and_bits_of_one_solution(self):
        table = random_table("channel", 1, (8, 4, 2))
        for found in table.solutions:
            if table.mixes != (0.0,):
                table = replace(table, mixes=(0.0,))
            size = found.size
            sparsity, bits = table.at(size), table.bits_at(size)
            near = min(table.solutions, key=lambda one: abs(np.log(one.size / size)))
            assert bits == near.bits and {n: sparsity[n] for n in near.sparsity} == near.sparsity
        assert set(bits) == set(NET.by_name) and len({tuple(one.bits.values()) for one in table.solutions}) > 3

    def test_layers_that_nothing_goes_from_choose_bits_too(self):
        table = replace(random_table("fine-grained", 2, (8, 2)), damages={})
        assert {tuple(one.bits.values()) for one in table.solutions} >= {(8, 8, 8), (2, 2, 2)}
        assert set(table.at(0.01).values()) == {0.0} and set(table.bits_at(0.01).values()) == {2}

    def test_needs_the_damages(self):
        table = random_table("channel", 0, 8)
        with pytest.raises(ValueError, match=r"no rounding of 'c0.weight' to 8 bits: scan it with bits"):
            replace(table, rounding={}, bits=(8, 4)).solutions  # noqa: B018
        assert replace(table, rounding={}).at(0.1) == table.at(0.1)
        with pytest.raises(ValueError, match="bits 8 do not lower the size 'nonzero'"):
            replace(table, metric="nonzero")
        with pytest.raises(ValueError, match="bits must be one of"):
            replace(table, bits=(9, 4))


def policy_of(table: LagrangianAllocator, sparsity, bits) -> PruningPolicy:
    return PruningPolicy(sparsity, table.granularity, bits=bits)


class TestOneForAll:
    @pytest.mark.parametrize("granularity", ["fine-grained", "channel", "kernel"])
    @settings.get_profile("few")
    @given(data=st.data())
    def test_sizes_are_the_files(self, granularity, data):
        given = data.draw(st.sampled_from([8, 5, 3, {"c1.weight": 4, "last.weight": 8}]))
        net = chain(data.draw(st.integers(3, 90)), data.draw(st.integers(150, 260)))
        table = random_table(granularity, data.draw(st.integers(0, 99)), given, net, prices=8, mixes=(0.0,))
        dense = dense_footprint(net).encoded_bytes
        for found in table.solutions:
            assert {layer: PruningPolicy({}, bits=given).bits_of(layer) for layer in net.by_name} == found.bits
            part = footprint(net, policy_of(table, found.sparsity, given))
            assert abs(found.size * dense - part.encoded_bytes) <= STATES
        assert found.size < table.unpruned_size and table.solutions[0].size <= table.unpruned_size
        assert table.unpruned_size * dense == pytest.approx(
            footprint(net, policy_of(table, {}, given)).encoded_bytes, abs=1
        )

    @pytest.mark.parametrize("granularity", ["fine-grained", "channel"])
    def test_rounding_adds_its_damage_and_the_least_of_a_choice_is_no_worse(self, granularity):
        one, both = (random_table(granularity, 7, bits) for bits in (4, (8, 4)))
        whole = one.solutions[0]
        assert whole.damage == pytest.approx(sum(own[4] for own in one.rounding.values()))
        for found in one.solutions:
            price = 3 / found.size
            least = both.optimum(price)
            assert least.damage + price * least.size <= found.damage + price * found.size + price * 3e-4

    def test_of_32_bits_are_todays(self):
        plain = random_table("fine-grained", 5, 32)
        for bits in ((32,), {}, {"c0.weight": 32}):
            same = replace(plain, bits=bits)
            assert [vars(one) for one in same.solutions] == [vars(one) for one in plain.solutions]
            assert same.unpruned_size == 1.0
            assert same.at(0.2) == plain.at(0.2)
        assert set(plain.bits_at(0.3).values()) == {32}


def profile(flat: float, steep: float) -> Profile:
    """Sparsity costs `flat` a halving in every layer; rounding `steep` times 4^-bits."""
    sparsities = (0.5, 0.75, 0.875, 0.9375, 0.984375)
    points = tuple(ProfilePoint(s, 0, 0, 1 - flat * np.log2(1 - s), 0) for s in sparsities)
    rounded = tuple(RoundingPoint(bits, 0, 0, 1 + steep * 4.0**-bits, 0) for bits in (8, 6, 4, 3, 2))
    layers = dict.fromkeys(NET.by_name)
    by_layer = {"fine-grained": dict.fromkeys(layers, points)}
    return Profile("", 9, 1.0, 0.9, by_layer, 0.0, rounding=dict.fromkeys(layers, rounded))


class TestInputs:
    def test_tables_at_bits_are_made_once_and_of_32_it_is_the_plain_one(self):
        inputs = AllocationInputs.of(NET, "fine-grained", {}, profile(0.1, 1.0))
        assert inputs.tradeoff_at(4) is inputs.tradeoff_at(4) is not inputs.tradeoff_at(8)
        assert inputs.tradeoff_at({"c0.weight": 4}) is inputs.tradeoff_at({"c0.weight": 4})
        assert inputs.tradeoff_at(32) is inputs.tradeoff_at({}) is inputs.tradeoff_at((32,)) is inputs.tradeoff
        assert inputs.tradeoff_at((8, 4)).bits == (8, 4)
        assert AllocationInputs({}).tradeoff_at(4) is None
        assert rounding_damages(profile(0.1, 1.0), NET)["c1.weight"][5] == pytest.approx(4.0**-5)

    @pytest.mark.parametrize("bits", [8, 3, {"c0.weight": 8, "c1.weight": 2}])
    def test_the_scans_allocation_meets_its_size_at_bits(self, bits):
        inputs = AllocationInputs.of(NET, "fine-grained", {}, profile(0.1, 1.0))
        target = Target(NET, 0.04, "fine-grained", bits=bits)
        sparsity = allocate("scan", target, inputs)
        assert 0.039 < target.size(sparsity) <= 0.04
        assert sparsity == fit_by_shift(inputs.tradeoff_at(bits).at(0.04), target)
        rough = inputs.tradeoff_at(bits).at(0.04)
        assert target.size(rough) == pytest.approx(0.04, rel=0.1)
        assert allocate("scan", replace(target, share=0.9), inputs) == dict.fromkeys(rough, 0.0)
