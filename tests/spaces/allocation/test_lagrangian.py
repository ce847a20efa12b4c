"""The table against brute force over all combinations of levels, sizes against `footprint`, and the laws of `at`."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spaces import ChannelGroup, Layer, Network, PruningPolicy, StoredTensor, footprint
from spaces.allocation import elimination
from spaces.allocation.allocators import allocate
from spaces.allocation.budget import Target, fit_by_shift
from spaces.allocation.elimination import VariableElimination, elimination_order
from spaces.allocation.importance import AllocationInputs
from spaces.allocation.knobs import Damage, knobs_of, scan_damages
from spaces.allocation.lagrangian import LagrangianAllocator
from spaces.cost.footprint import dense_footprint, relative_cost
from spaces.sensitivity import Profile, ProfilePoint


def network(units: dict[int, int], weights: dict[str, tuple], extra: tuple[StoredTensor, ...] = ()) -> Network:
    """Weights: name -> (positions, group of the output or None, *dimensions); a dimension is a plain length, or
    pairs (group, indices), and a group alone stands for one index a unit."""
    tensors, layers = [], []
    for name, (positions, group, *dimensions) in weights.items():
        owners = [() if isinstance(d, int) else tuple(d) for d in dimensions]
        shape = tuple(d if isinstance(d, int) else sum(n for _, n in d) for d in dimensions)
        tensors.append(StoredTensor(name, shape, owners=tuple(owners)))
        layers.append(Layer(name, "conv2d", shape, positions, channel_group=group))
    members = {g: tuple(layer.name for layer in layers if layer.channel_group == g) for g in units}
    groups = tuple(ChannelGroup(members[g], units[g], None if members[g] else "nothing") for g in sorted(units))
    return Network((*tensors, *extra), tuple(layers), groups)


def with_others(net: Network) -> Network:
    """A recurrent weight that reads the last group, and products of no layer."""
    last = len(net.groups) - 1
    shape = (12, net.groups[last].units)
    cell = StoredTensor("cell", shape, owners=((), ((last, shape[1]),)))
    layer = Layer("cell", "recurrent", shape, 7, obstacle="it", prunable=False)
    return replace(net, tensors=(*net.tensors, cell), layers=(*net.layers, layer), other_macs=4321)


def own(*pairs: tuple[int, int]) -> list[tuple[int, int]]:
    return list(pairs)


NORMS = (
    StoredTensor("norm", (6,), owners=(((0, 6),),)),
    StoredTensor("mean", (6,), parameter=False, owners=(((0, 6),),)),
    StoredTensor("count", (), "I64", parameter=False),
)
NETWORKS = {
    "chain": network(
        {0: 6, 1: 9, 2: 5, 3: 12},
        {
            "a": (64, 0, own((0, 6)), 3, 9),
            "b": (64, 1, own((1, 9)), own((0, 6)), 9),
            "c": (16, 2, own((2, 5)), own((1, 9)), 9),
            "d": (4, 3, own((3, 12)), own((2, 5)), 1),
            "last": (1, None, 10, own((3, 48))),  # four positions a channel
        },
        NORMS,
    ),
    "residual": network(
        {0: 6, 1: 4, 2: 7, 3: 8},
        {
            "stem": (64, 0, own((0, 6)), 3, 9),
            "one": (64, 1, own((1, 4)), own((0, 6)), 1),
            "two": (64, 2, own((2, 7)), own((1, 4)), 9),
            "back": (64, 0, own((0, 6)), own((2, 7)), 1),
            "square": (64, 0, own((0, 6)), own((0, 6)), 9),
            "down": (16, 3, own((3, 8)), own((0, 6)), 1),
            "last": (1, None, 10, own((3, 8))),
        },
        NORMS,
    ),
    "concat": network(
        {0: 6, 1: 5, 2: 8},
        {
            "a": (64, 0, own((0, 6)), 3, 9),
            "b": (64, 1, own((1, 5)), 3, 25),
            "joined": (16, 2, own((2, 8)), own((0, 6), (1, 5)), 9),
            "last": (1, None, 10, own((2, 8), (0, 6), (2, 8))),  # one group twice
        },
        NORMS,
    ),
    "depthwise": network(
        {0: 6, 1: 4, 2: 7},
        {
            "expand": (64, 0, own((0, 6)), 4, 1),
            "deep": (64, 0, own((0, 6)), 1, 9),
            "shrink": (64, 1, own((1, 8)), own((0, 6)), 1),
            "grouped": (16, 2, own((2, 14)), own((1, 4)), 9),  # two convolution groups, one unit in each
            "last": (1, None, 10, own((2, 14))),
        },
        NORMS,
    ),
    "dense": network(
        {0: 3, 1: 4, 2: 5, 3: 6, 4: 7},
        {
            "a": (9, 0, own((0, 3)), 2),
            "b": (9, 1, own((1, 4)), own((0, 3))),
            "c": (4, 2, own((2, 5)), own((0, 3), (1, 4))),
            "d": (4, 3, own((3, 6)), own((0, 3), (1, 4), (2, 5))),
            "e": (1, 4, own((4, 7)), own((0, 3), (1, 4), (2, 5), (3, 6))),
        },
    ),
}
NETWORKS["with others"] = with_others(NETWORKS["chain"])
EXACT = [name for name in NETWORKS if name != "dense"]
LEVELS = {3: (0.0, 0.4, 0.8), 4: (0.0, 0.3, 0.55, 0.95)}


def random_damages(net: Network, granularity: str, seed: int, count: int = 4) -> dict[str, Damage]:
    generator = np.random.default_rng(seed)
    steps = {knob: generator.exponential(2.0 ** generator.normal(), count - 1) for knob in knobs_of(net, granularity)}
    return {knob: Damage(LEVELS[count], np.append(0.0, np.cumsum(found))) for knob, found in steps.items()}


def every_combination(net: Network, granularity: str, damages: dict[str, Damage], metric: str = "nonzero"):
    """Damage, size and MACs of all combinations of levels (c, 3), from whole footprints."""
    knobs, rows = knobs_of(net, granularity), []
    dense = dense_footprint(net)
    for places in product(*(range(len(one.levels)) for one in damages.values())):
        chosen = dict(zip(damages, places, strict=True))
        sparsity = {layer: damages[n].levels[at] for n, at in chosen.items() for layer in knobs[n].layers}
        part = relative_cost(footprint(net, PruningPolicy(sparsity, granularity)), dense)
        rows.append((sum(damages[n].values[at] for n, at in chosen.items()), part.of(metric), part.macs))
    return np.array(rows)


def policy_of(net: Network, granularity: str, sparsity) -> PruningPolicy:
    knobs = knobs_of(net, granularity)
    return PruningPolicy({layer: s for n, s in sparsity.items() for layer in knobs[n].layers}, granularity)


some_prices = st.tuples(st.floats(-3, 9), st.floats(0, 1)).map(lambda p: (2 ** p[0] * (1 - p[1]), 2 ** p[0] * p[1]))


@pytest.fixture(scope="module")
def tables():
    """Network -> damages, its table by the nonzero size, and all its combinations."""
    found = {}
    for seed, (name, net) in enumerate(NETWORKS.items()):
        damages = random_damages(net, "channel", seed, 3 if name == "dense" else 4)
        table = LagrangianAllocator(net, "channel", damages, "nonzero", prices=200)
        found[name] = damages, table, every_combination(net, "channel", damages)
    return found


class TestOptimum:
    @pytest.mark.parametrize("name", EXACT)
    @settings.get_profile("few")
    @given(prices=some_prices)
    def test_is_the_least_of_all_combinations(self, tables, name, prices):
        _, table, every = tables[name]
        assert table.choices.exact
        found = table.optimum(*prices)
        energy = found.damage + prices[0] * found.size + prices[1] * found.macs
        assert energy == pytest.approx((every @ [1, *prices]).min(), rel=1e-12)

    @settings.get_profile("few")
    @given(st.integers(0, 10**6), some_prices)
    def test_masks(self, seed, prices):
        net = NETWORKS["concat"]
        damages = random_damages(net, "fine-grained", seed, 3)
        table = LagrangianAllocator(net, "fine-grained", damages, "nonzero", prices=8)
        every, found = every_combination(net, "fine-grained", damages), table.optimum(*prices)
        energy = found.damage + prices[0] * found.size + prices[1] * found.macs
        assert energy == pytest.approx((every @ [1, *prices]).min(), rel=1e-12)
        assert found.macs == 1.0

    @settings.get_profile("few")
    @given(prices=some_prices)
    def test_coupled_beyond_elimination_is_near_and_never_above_uniform(self, tables, prices):
        damages, table, every = tables["dense"]
        assert not table.choices.exact
        found = table.optimum(*prices)
        energy = found.damage + prices[0] * found.size + prices[1] * found.macs
        best = (every @ [1, *prices]).min()
        rows = every.reshape(*(len(d.levels) for d in damages.values()), 3)
        uniform = min(rows[(level,) * len(damages)] @ [1, *prices] for level in range(3))
        assert best * (1 - 1e-12) <= energy <= min(uniform * (1 + 1e-12), 1.02 * best)

    @pytest.mark.parametrize("name", NETWORKS)
    def test_dearer_is_never_larger(self, tables, name):
        _, table, _ = tables[name]
        for mix in table.mixes:
            found = [table.optimum(price * (1 - mix), price * mix) for price in np.geomspace(0.01, 1000, 40)]
            cost = [(1 - mix) * one.size + mix * one.macs for one in found]
            assert all(after <= before + 1e-12 for before, after in pairwise(cost))
            assert all(before.damage <= after.damage + 1e-12 for before, after in pairwise(found))

    @pytest.mark.parametrize("prices", [(-1.0, 0.0), (0.0, math.nan), (math.inf, 0.0)])
    def test_bad_prices(self, tables, prices):
        with pytest.raises(ValueError, match="prices must be finite numbers >= 0"):
            tables["chain"][1].optimum(*prices)


class TestSizes:
    @pytest.mark.parametrize("granularity", ["channel", "fine-grained"])
    @pytest.mark.parametrize("name", NETWORKS)
    def test_equal_the_footprint(self, name, granularity):
        """To the parameter and the MAC; encoded bytes but for the notes and digits of the header."""
        net = NETWORKS[name]
        dense, damages = dense_footprint(net), random_damages(net, granularity, 5)
        nonzero = LagrangianAllocator(net, granularity, damages, "nonzero", prices=12).solutions
        encoded = LagrangianAllocator(net, granularity, damages, "encoded", prices=12).solutions
        for found in nonzero:
            part = footprint(net, policy_of(net, granularity, found.sparsity))
            assert found.size * dense.parameters == pytest.approx(part.nonzero, abs=1e-6)
            assert found.macs * dense.macs == pytest.approx(part.macs, abs=1e-6)
        for found in encoded:
            part = footprint(net, policy_of(net, granularity, found.sparsity))
            header = 8 * len(net.tensors) if granularity == "channel" else 60 * len(net.tensors)
            assert abs(found.size * dense.encoded_bytes - part.encoded_bytes) <= header
        assert nonzero[0].size == encoded[0].size == 1.0

    def test_one_unit_stays(self):
        net = NETWORKS["chain"]
        steep = {knob: Damage([0.0, 0.5, 0.8, 0.9, 0.99], [0, 1, 2, 3, 4]) for knob in knobs_of(net, "channel")}
        smallest = LagrangianAllocator(net, "channel", steep, "nonzero", prices=5).solutions[-1]
        part = footprint(net, policy_of(net, "channel", dict.fromkeys(steep, 0.999999)))
        assert smallest.size * dense_footprint(net).parameters == pytest.approx(part.parameters)
        assert smallest.sparsity == {"a": 0.8, "b": 0.9, "c": 0.8, "d": 0.9}  # the first level that leaves one unit
        assert smallest.damage == 2 + 3 + 2 + 3


class TestSolutions:
    @pytest.mark.parametrize("name", EXACT)
    def test_are_the_hull_of_all_combinations(self, tables, name):
        """With prices to spare: at every price some solution is the least of all."""
        _, table, every = tables[name]
        found = np.array([(one.damage, one.size, one.macs) for one in table.solutions])
        for mix in table.mixes:
            for price in np.geomspace(0.01, 1000, 200):
                weights = [1, price * (1 - mix), price * mix]
                assert (found @ weights).min() == pytest.approx((every @ weights).min(), rel=1e-9)

    @pytest.mark.parametrize("name", NETWORKS)
    def test_none_beats_another(self, tables, name):
        found = [(one.damage, one.size, one.macs) for one in tables[name][1].solutions]
        assert len(set(found)) == len(found) > 8
        for one, other in product(found, found):
            assert one == other or any(a > b for a, b in zip(one, other, strict=True))
        assert [size for _, size, _ in found] == sorted((size for _, size, _ in found), reverse=True)

    def test_free_levels_leave_the_whole_network_behind(self):
        net = NETWORKS["chain"]
        damages = random_damages(net, "channel", 2) | {"b": Damage([0.0, 0.5, 0.9], [0.0, 0.0, 2.0])}
        found = LagrangianAllocator(net, "channel", damages).solutions[0]
        assert found.sparsity == {"a": 0.0, "b": 0.5, "c": 0.0, "d": 0.0}
        assert found.damage == 0.0

    def test_the_mix_trades_size_for_macs(self):
        """All on MACs takes from the early layers, which have the positions."""
        target = Target(SMOOTH["channel"].network, 0.2, "channel")
        landed = [fit_by_shift(SMOOTH["channel"].at(0.2, mix), target) for mix in (0.0, 0.5, 1.0)]
        macs = [footprint(target.network, PruningPolicy(sparsity, "channel")).macs for sparsity in landed]
        assert macs[2] < 0.95 * macs[1] < 0.9 * macs[0]

    def test_few_prices_still_span_everything(self):
        net = NETWORKS["chain"]
        found = LagrangianAllocator(net, "channel", random_damages(net, "channel", 1), prices=1, mixes=(0.0,)).solutions
        assert found[0].size == 1.0
        assert set(found[-1].sparsity.values()) == {0.95}


class TestAt:
    def test_meets_the_solutions(self, tables):
        _, table, _ = tables["chain"]
        knobs = knobs_of(NETWORKS["chain"], "channel")
        only_size = LagrangianAllocator(table.network, "channel", table.damages, "nonzero", mixes=(0.0,))
        for found in only_size.solutions:
            expected = {layer: s for n, s in found.sparsity.items() for layer in knobs[n].layers}
            assert only_size.at(found.size) == pytest.approx(expected, abs=1e-12)
            assert only_size.at(found.size, 0.7) == pytest.approx(expected, abs=1e-12)
        for (larger, smaller), part in product(pairwise(only_size.solutions), (0.2, 0.8)):
            between = only_size.at(larger.size**part * smaller.size ** (1 - part))
            for knob, found in between.items():
                if knob in larger.sparsity:
                    kept = (1 - larger.sparsity[knob]) ** part * (1 - smaller.sparsity[knob]) ** (1 - part)
                    assert 1 - found == pytest.approx(kept, rel=1e-9)

    @pytest.mark.parametrize("granularity", ["channel", "fine-grained"])
    @given(size=st.floats(0.01, 1.2), mix=st.floats(0, 1))
    def test_is_continuous_and_complete(self, granularity, size, mix):
        table = SMOOTH[granularity]
        here, there = table.at(size, mix), table.at(size * (1 + 1e-7), abs(mix - 1e-7))
        assert here == pytest.approx(there, abs=1e-4)
        assert all(0 <= s < 1 for s in here.values())
        target = Target(table.network, 1.0, granularity)
        assert set(here) == {layer.name for layer in target.layers}
        for knob in knobs_of(table.network, granularity).values():
            assert len({here[layer] for layer in knob.layers}) == 1

    def test_a_group_moves_as_one(self, tables):
        found = tables["residual"][1].at(0.05)
        assert found["stem"] == found["back"] == found["square"] > 0

    def test_a_knob_that_returns_at_a_higher_price(self):
        """All on MACs, `b` is pruned first, then `a` in its place, then both. What the second step gives
        is larger than the first, so sizes between the first and the last are on the way between these."""
        net = network(
            {0: 20, 1: 10},
            {"a": (1, 0, own((0, 20)), 1), "b": (64, 1, own((1, 10)), own((0, 20))), "c": (0, None, 50, own((1, 10)))},
        )
        damages = {"a": Damage([0.0, 0.95], [0.0, 1.5]), "b": Damage([0.0, 0.9], [0.0, 1.0])}
        table = LagrangianAllocator(net, "channel", damages, "nonzero", mixes=(1.0,))
        steps = [table.optimum(0.0, price) for price in (0.5, 4.0, 15.0, 60.0)]
        assert [tuple(one.sparsity.values()) for one in steps] == [(0, 0), (0, 0.9), (0.95, 0), (0.95, 0.9)]
        assert steps[2].size > steps[1].size
        assert table.at(steps[1].size) == pytest.approx({"a": 0.0, "b": 0.9}, abs=1e-12)
        assert table.at(steps[3].size) == pytest.approx({"a": 0.95, "b": 0.9}, abs=1e-12)
        assert table.at(steps[2].size)["a"] == 0.0

    def test_beyond_the_ends(self):
        table = SMOOTH["channel"]
        assert set(table.at(1.0).values()) == set(table.at(3.0).values()) == {0.0}
        assert table.at(1e-9) == table.at(1e-6)
        narrow = LagrangianAllocator(table.network, "channel", table.damages, mixes=(0.25, 0.5))
        assert narrow.at(0.3, 0.0) == narrow.at(0.3, 0.25) != narrow.at(0.3, 0.375) != narrow.at(0.3, 0.5)
        assert narrow.at(0.3, 0.5) == narrow.at(0.3, 1.0)

    @pytest.mark.parametrize("share", [0.6, 0.3, 0.15])
    @pytest.mark.parametrize("granularity", ["channel", "fine-grained"])
    def test_landed_is_better_than_uniform(self, granularity, share):
        table = SMOOTH[granularity]
        target = Target(table.network, share, granularity)
        rough = table.at(share)
        assert target.size(rough) == pytest.approx(share, abs=0.05)
        landed, uniform = fit_by_shift(rough, target), allocate("uniform", target, AllocationInputs())

        def damage(sparsity):
            names = knobs_of(table.network, granularity)
            return sum(np.interp(sparsity[n], table.damages[n].levels, table.damages[n].values) for n in names)

        assert damage(landed) < 0.9 * damage(uniform)

    def test_knobs_without_damage_stay_whole(self):
        net = NETWORKS["residual"]
        damages = random_damages(net, "channel", 3)
        damages["stem"] = None
        del damages["two"]
        found = LagrangianAllocator(net, "channel", damages, prices=10).at(0.05)
        assert [name for name, s in found.items() if s == 0] == ["stem", "back", "square", "two"]
        assert set(LagrangianAllocator(net, "channel", {}).at(0.5).values()) == {0.0}
        assert [one.size for one in LagrangianAllocator(net, "channel", {}).solutions] == [1.0]
        assert LagrangianAllocator(net, "channel", {}).optimum(1.0).sparsity == {}

    @pytest.mark.parametrize("free", [0.0, 1.0])
    def test_level_damages(self, free):
        """Where all combinations are equally bad, sizes in between keep one sparsity everywhere."""
        net = NETWORKS["chain"]
        damages = {knob: Damage([0.0, 0.5], [free, free]) for knob in knobs_of(net, "channel")}
        found = LagrangianAllocator(net, "channel", damages, "nonzero").at(0.6)
        assert len({round(s, 12) for s in found.values()}) == 1
        assert 0 < found["a"] < 0.5
        whole = LagrangianAllocator(net, "channel", damages, "nonzero").at(1.0)
        assert [math.copysign(1, s) for s in whole.values()] == [1.0] * 4  # no -0.0

    @pytest.mark.parametrize(("size", "mix"), [(0.0, 0.0), (math.nan, 0.0), (-0.1, 0.0), (0.5, 1.1), (0.5, math.nan)])
    def test_bad_values(self, size, mix):
        with pytest.raises(
            ValueError, match="size must be a share > 0" if mix == 0 else "mix must satisfy 0 <= mix <= 1"
        ):
            SMOOTH["channel"].at(size, mix)


def smooth_table(granularity: str) -> LagrangianAllocator:
    """Damages a x log(1 / kept)^2 with very different a, on a network large enough for its header not to matter."""
    net = network(
        {0: 24, 1: 40, 2: 64},
        {
            "a": (64, 0, own((0, 24)), 3, 9),
            "b": (64, 1, own((1, 40)), own((0, 24)), 9),
            "c": (16, 2, own((2, 64)), own((1, 40)), 9),
            "last": (1, None, 10, own((2, 64))),
        },
    )
    levels = 1 - np.geomspace(1, 0.02, 20)
    knobs = enumerate(knobs_of(net, granularity))
    return LagrangianAllocator(
        net, granularity, {n: Damage(levels, 5.0**-i * np.log1p(-levels) ** 2) for i, n in knobs}
    )


SMOOTH = {granularity: smooth_table(granularity) for granularity in ("channel", "fine-grained")}


class TestElimination:
    """`VariableElimination` with any polynomial: squares, products of three, negative terms."""

    @staticmethod
    def draw_choices(data, scopes) -> VariableElimination:
        generator = np.random.default_rng(data.draw(st.integers(0, 10**6)))
        knobs = 1 + max(knob for scope in scopes for knob in scope)
        lengths = [data.draw(st.integers(1, 4)) for _ in range(knobs)]
        return VariableElimination(
            tuple(generator.exponential(5, n) for n in lengths),
            tuple(np.sort(generator.integers(1, 9, n))[::-1].astype(float) for n in lengths),
            tuple(generator.normal(size=(n, 2)) for n in lengths),
            {scope: generator.normal(size=2) for scope in scopes},
            generator.normal(size=2),
        )

    @staticmethod
    def rows_of(model: VariableElimination) -> np.ndarray:
        return np.array(list(product(*(range(len(one)) for one in model.damage))))

    @pytest.mark.parametrize(
        "scopes",
        [
            [(0, 1), (1, 2), (2, 3), (3, 4)],
            [(0, 1), (0, 2), (0, 0, 3), (3, 4)],
            [(0, 1), (1, 2), (2, 3), (0, 3), (0, 4)],
            [(0, 1, 2), (2, 3), (1, 1, 2), (3, 4)],
        ],
        ids=["chain", "tree", "loop", "triple"],
    )
    @settings.get_profile("few")
    @given(data=st.data())
    def test_exact(self, data, scopes):
        model = self.draw_choices(data, scopes)
        assert model.exact
        prices = np.array([data.draw(some_prices) for _ in range(3)])
        every = self.rows_of(model)
        start = every[[0, -1, len(every) // 2]]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                elimination, "CELLS", data.draw(st.sampled_from([1, 10**6]))
            )  # so few: each price in its turn
            found = model.minimum(prices, start)
        least = [model.energy_of(every, np.tile(price, (len(every), 1))).min() for price in prices]
        assert model.energy_of(found, prices) == pytest.approx(least, rel=1e-9, abs=1e-9)

    @settings.get_profile("few")
    @given(st.data())
    def test_block_by_block_no_single_knob_improves(self, data):
        """Six knobs all coupled: the result is no worse than the start, nor than any one knob's move."""
        model = self.draw_choices(data, [(i, j) for i in range(6) for j in range(i)] + [(0, 1, 2)])
        assert not model.exact
        price = np.array([data.draw(some_prices)])
        start = self.rows_of(model)[[data.draw(st.integers(0, 10**6)) % len(self.rows_of(model))]]
        found = model.minimum(price, start)
        energy = model.energy_of(found, price)[0]
        assert energy <= model.energy_of(start, price)[0] + 1e-9
        for knob in range(6):
            for level in range(len(model.damage[knob])):
                moved = found.copy()
                moved[0, knob] = level
                assert energy <= model.energy_of(moved, price)[0] + 1e-9 * abs(energy) + 1e-9

    def test_energy_by_hand(self):
        model = VariableElimination(
            (np.array([0.0, 3.0]), np.array([1.0])),
            (np.array([4.0, 2.0]), np.array([5.0])),
            (np.array([[10.0, 1.0], [20.0, 2.0]]), np.array([[0.5, 0.25]])),
            {(0, 1): np.array([1.0, 10.0]), (0, 0, 1): np.array([0.0, 1.0])},
            np.array([100.0, 1000.0]),
        )
        rows = np.array([[0, 0], [1, 0]])
        assert model.damage_of(rows).tolist() == [1.0, 4.0]
        assert model.cost_of(rows).tolist() == [[130.5, 1281.25], [130.5, 1122.25]]
        assert model.energy_of(rows, np.array([[2.0, 0.0], [0.0, 1.0]])).tolist() == [262.0, 1126.25]


class TestOrder:
    def test_forests_and_loops(self):
        tree = {0: {1, 2, 3}, 1: {0}, 2: {0}, 3: {0, 4}, 4: {3}, 5: set()}
        assert sorted(elimination_order(tree, 1)) == [0, 1, 2, 3, 4, 5]
        loop = {i: {(i - 1) % 6, (i + 1) % 6} for i in range(6)}
        assert len(elimination_order(loop, 1)) == 5
        assert len(elimination_order(loop, 2)) == 6
        grid = {3 * i + j: set() for i in range(3) for j in range(3)}
        for one, other in product(grid, grid):
            if abs(one // 3 - other // 3) + abs(one % 3 - other % 3) == 1:
                grid[one].add(other)
        assert len(elimination_order(grid, 2)) < 9  # three by three needs tables over three
        assert len(elimination_order(grid, 3)) == 9

    @settings.get_profile("few")
    @given(st.sets(st.tuples(st.integers(0, 8), st.integers(0, 8))), st.integers(1, 2), st.sets(st.integers(0, 8)))
    def test_no_knob_has_more_left_than_the_width(self, edges, width, moved):
        neighbours = {i: {b for a, b in edges | {(b, a) for a, b in edges} if a == i != b} for i in range(9)}
        order = elimination_order(neighbours, width, moved)
        assert len(set(order)) == len(order)
        left = {i: neighbours[i] & set(order) for i in order}
        for knob in order:
            others = left.pop(knob)
            assert len(others) <= width
            for other in others:
                left[other] = (left[other] | others) - {knob, other}
        assert moved >= set(range(9)) or set(order) - moved


class TestScanDamages:
    NET = NETWORKS["chain"]
    LEVELS = (0.3, 0.5, 0.8)

    def profile(self, granularity: str, losses: dict[str, tuple[float, ...]], levels=LEVELS) -> Profile:
        points = {
            name: tuple(ProfilePoint(s, 0, 0, 1 + loss, 0) for s, loss in zip(levels, found, strict=True))
            for name, found in losses.items()
        }
        return Profile("", 1, 1.0, 1.0, {granularity: points}, 0.0)

    def test_between_and_beyond(self):
        profile = self.profile("fine-grained", {"b": (0.2, 0.6, 2.0)})
        wanted = (0.0, 0.5, 1 - math.sqrt(0.5 * 0.2), 0.8, 1 - 0.2 * 0.4, 1 - 0.2 * 0.4**2)
        found = scan_damages(profile, self.NET, "fine-grained", levels=wanted)
        assert list(found) == ["b"]
        assert found["b"].levels == pytest.approx(wanted, abs=0.5 / (9 * 6 * 9))
        assert found["b"].values == pytest.approx([0.0, 0.6, 1.3, 2.0, 3.4, 4.8], rel=0.02)

    def test_levels_are_whole_units(self):
        """Two scanned levels that removed the same channels count once."""
        profile = self.profile("channel", {"c": (1.0, 2.0, 2.0)}, (0.4, 0.8, 0.8))
        found = scan_damages(profile, self.NET, "channel", levels=(0.0, 0.05, 0.37, 0.45, 0.6, 0.99))
        assert found["c"].levels.tolist() == [0.0, 0.4, 0.6, 0.8]
        slope = 1 / math.log(3)
        assert found["c"].values == pytest.approx([0.0, 1.0, 1 + slope * math.log(1.5), 2.0])

    def test_never_falls_and_is_flat_after_a_flat_end(self):
        found = scan_damages(self.profile("fine-grained", {"d": (0.5, 0.5, 0.1)}), self.NET, "fine-grained")
        assert found["d"].values.max() == 0.5
        assert (np.diff(found["d"].values) >= 0).all()

    def test_weights(self):
        profile = self.profile("fine-grained", {"a": (1, 2, 3), "b": (1, 2, 3)})
        plain = scan_damages(profile, self.NET, "fine-grained")
        heavy = scan_damages(profile, self.NET, "fine-grained", {"b": 2.5, "c": 1.0})
        assert np.array_equal(heavy["a"].values, plain["a"].values)
        assert np.array_equal(heavy["b"].values, 2.5 * plain["b"].values)

    def test_errors(self):
        profile = self.profile("channel", {"a": (1, 2, 3)})
        with pytest.raises(
            ValueError, match="unknown granularity in this profile 'fine-grained': did you mean 'channel'"
        ):
            scan_damages(profile, self.NET, "fine-grained")
        with pytest.raises(ValueError, match="unknown granularity 'chanel'"):
            scan_damages(profile, self.NET, "chanel")
        with pytest.raises(ValueError, match="unknown knob 'aa': did you mean 'a'"):
            scan_damages(profile, self.NET, "channel", {"aa": 1.0})
        for factor in (-1.0, math.nan, math.inf):
            with pytest.raises(ValueError, match="weight of 'a' must be a finite number >= 0"):
                scan_damages(profile, self.NET, "channel", {"a": factor})


@pytest.mark.parametrize(
    ("levels", "values"),
    [
        ((0.0, 0.5), (0.0,)),
        ((), ()),
        ((0.1, 0.5), (0.0, 1.0)),
        ((0.0, 0.5, 0.5), (0.0, 1.0, 1.0)),
        ((0.0, 1.0), (0.0, 1.0)),
        ((0.0, 0.5), (1.0, 0.5)),
        ((0.0, 0.5), (-1.0, 0.5)),
        ((0.0, 0.5), (0.0, math.nan)),
        ((0.0, 0.5), (0.0, math.inf)),
        ((0.0, math.nan), (0.0, 1.0)),
    ],
)
def test_bad_damages(levels, values):
    with pytest.raises(ValueError, match=r"levels|damages must"):
        Damage(levels, values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"granularity": "chanel"}, "unknown granularity 'chanel': did you mean 'channel'"),
        ({"metric": "bytes"}, "unknown size metric 'bytes'"),
        ({"mixes": ()}, r"mixes must rise within \[0, 1\], got \(\)"),
        ({"mixes": (0.5, 0.5)}, "mixes must rise"),
        ({"mixes": (0.5, 1.5)}, "mixes must rise"),
        ({"mixes": (math.nan,)}, "mixes must rise"),
        ({"prices": 0}, "prices must be >= 1, got 0"),
        ({"damages": {"aa": None}}, "unknown knob 'aa': did you mean 'a'"),
    ],
)
def test_bad_tables(change, message):
    with pytest.raises(ValueError, match=message):
        LagrangianAllocator(**{"network": NETWORKS["chain"], "granularity": "channel", "damages": {}} | change)
