"""What is left after a removal, against lists of indices of which some are struck; and that each rule has one home."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning import make_mask
from spaces import ChannelGroup, Layer, Network, PruningPolicy, StoredTensor, counting, footprint
from spaces.allocation.budget import Target
from spaces.allocation.knobs import Damage, knobs_of
from spaces.allocation.lagrangian import LagrangianAllocator
from spaces.cost.batched import Costs, Requests
from spaces.cost.effect import kept_units
from spaces.cost.footprint import dense_footprint
from spaces.cost.latency_predictor import Predictor
from spaces.cost.latency_table import LatencyTable, LayerLatency, RestLatency
from spaces.cost.removal import ChannelGroups, Shapes, dimensions_of, distinct_shapes, shapes_after
from spaces.counting import in_multiples, removed_by_pattern, removed_count, removed_units
from spaces.granularity import GRANULARITIES, pattern_of, run_length

SHARE = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1 - 1e-9]), st.floats(0, 0.999))


def gone_by_hand(share: float, units: int, multiple: int = 1) -> int:
    """The count rule in fractions; then single units come back until the rest is a multiple."""
    gone = min(math.floor(Fraction(share * units) + Fraction(1, 2)), units - 1)
    while gone > 0 and (units - gone) % multiple:
        gone -= 1
    return max(gone, 0)


def length_by_hand(length: int, owners: tuple, units: list[int], gone: list[int]) -> int:
    """Every index with the unit it leaves with; the last units of each group are struck."""
    owned = [
        (group, unit) for group, count in owners for unit in range(units[group]) for _ in range(count // units[group])
    ]
    free = length - len(owned)
    return free + sum(unit < units[group] - gone[group] for group, unit in owned)


def zeros_by_hand(layer: Layer, shape: tuple[int, ...], granularity: str, share: float) -> int:
    """Elements a mask sets to zero, unit by unit."""
    pattern, numel = pattern_of(granularity), math.prod(shape)
    if layer.whole or not share:
        return 0
    if pattern is None:
        units = numel // run_length(granularity, shape)
        return gone_by_hand(share, units) * (numel // units)
    inputs = shape[1] if len(shape) > 1 else 1
    if inputs % pattern.of:
        return 0
    if pattern.keep is None:
        return gone_by_hand(share, pattern.of) * (numel // pattern.of)
    most = pattern.of - pattern.keep
    return (most if 2 * Fraction(share) * pattern.of >= most else 0) * (numel // pattern.of)


@st.composite
def networks(draw) -> Network:
    """Convolutions in which a unit is one channel or one in each of several convolution groups, and whose inputs come
    from one, two or, side by side with indices nobody owns, three owners; norms and a cell that is no layer."""
    units = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    parts = [draw(st.sampled_from([1, 1, 2, 3])) for _ in units]
    tensors, layers, members = [], [], [[] for _ in units]
    for number, (count, times) in enumerate(zip(units, parts, strict=True)):
        for place in range(draw(st.integers(1, 2))):
            sources = draw(st.lists(st.integers(0, len(units) - 1), max_size=3))
            inputs = tuple((group, units[group] * draw(st.sampled_from([1, 1, 4]))) for group in sources)
            spare = draw(st.integers(0 if inputs else 1, 5))
            kernel = draw(st.sampled_from([(), (3,), (3, 3)]))
            shape = (count * times, spare + sum(indices for _, indices in inputs), *kernel)
            owners = (((number, count * times),), inputs, *((),) * len(kernel))
            name = f"{number}.{place}"
            tensors.append(StoredTensor(name, shape, owners=owners))
            whole = draw(st.sampled_from([None, None, None, "nothing is known of it"]))
            layers.append(
                Layer(
                    name, "conv2d" if kernel else "linear", shape, draw(st.integers(0, 50)), times, number, whole=whole
                )
            )
            members[number].append(name)
        tensors.append(StoredTensor(f"norm{number}", shape[:1], owners=owners[:1]))
        tensors.append(StoredTensor(f"mean{number}", shape[:1], parameter=False, owners=owners[:1]))
    square = ((0, units[0]),)
    tensors.append(StoredTensor("cell", (units[0], units[0]), owners=(square, square)))
    layers.append(Layer("cell", "recurrent", (units[0], units[0]), 3, obstacle="it", prunable=False))
    groups = tuple(
        ChannelGroup(
            (*names, *draw(st.sampled_from([(), (), (), ("cell",)]))),
            count,
            draw(st.sampled_from([None, None, None, "its outputs are the network's outputs"])),
            draw(st.sampled_from([1, 1, 2, 4])),
        )
        for names, count in zip(members, units, strict=True)
    )
    return Network(tuple(tensors), tuple(layers), groups, other_macs=draw(st.sampled_from([0, 777])))


def removed_by_hand(network: Network, requests: dict[str, float]) -> list[int]:
    gone = []
    for group in network.groups:
        asked = min((requests.get(name, 0.0) for name in group.layers), default=0.0)
        gone.append(0 if group.obstacle else gone_by_hand(asked, group.units, group.multiple))
    return gone


def shape_by_hand(network: Network, tensor: StoredTensor, gone: list[int]) -> tuple[int, ...]:
    units = [group.units for group in network.groups]
    owners = tensor.owners or ((),) * len(tensor.shape)
    return tuple(length_by_hand(n, own, units, gone) for n, own in zip(tensor.shape, owners, strict=True))


def requests_for(network: Network) -> st.SearchStrategy:
    """Of every layer, in the network's order."""
    names = network.layer_names
    return st.lists(SHARE, min_size=len(names), max_size=len(names)).map(
        lambda shares: dict(zip(names, shares, strict=True))
    )


class TestAgainstLists:
    @given(st.data())
    def test_units_that_go(self, data):
        network = data.draw(networks())
        requests, groups = data.draw(st.lists(requests_for(network), min_size=1, max_size=3)), ChannelGroups(network)
        shares = np.array([groups.asked(np.array([*one.values()])) for one in requests])
        expected = [removed_by_hand(network, one) for one in requests]
        assert groups.removed(shares).tolist() == expected
        assert [groups.removed(one).tolist() for one in shares] == expected
        for one, gone in zip(requests, expected, strict=True):
            assert kept_units(network, one) == {
                n: group.units - gone[n] for n, group in enumerate(network.groups) if gone[n]
            }

    @given(st.data())
    def test_shapes(self, data):
        network = data.draw(networks())
        gone = [[data.draw(st.integers(0, group.units - 1)) for group in network.groups] for _ in range(3)]
        expected = [[shape_by_hand(network, tensor, one) for tensor in network.tensors] for one in gone]
        numel = [[math.prod(shape) for shape in shapes] for shapes in expected]
        for dtype in (np.int64, float):
            removed = np.array(gone, dtype)
            shapes = Shapes(network, network.tensors, dtype)
            for rows, counts in ((removed, numel), *zip(removed, numel, strict=True)):
                lengths = shapes.lengths(rows)
                assert lengths.dtype == dtype
                assert shapes.numel(lengths).tolist() == counts
            first, second = shapes.first_two(shapes.lengths(removed))
            assert first.tolist() == [[shape[0] for shape in one] for one in expected]
            assert second.tolist() == [[shape[1] if len(shape) > 1 else 1 for shape in one] for one in expected]
        kept = [{n: group.units - one[n] for n, group in enumerate(network.groups) if one[n]} for one in gone]
        names = [tensor.name for tensor in network.tensors]
        assert [shapes_after(network, one) for one in kept] == [dict(zip(names, one, strict=True)) for one in expected]

    @given(st.data())
    def test_a_policy_of_two_stages(self, data):
        """Channels first, then masks of any granularity: the counts of one policy, and of the same in a batch."""
        network, words = data.draw(networks()), [word for word in GRANULARITIES if word != "channel"]
        removal, masks = data.draw(requests_for(network)), data.draw(requests_for(network))
        granularity = {name: data.draw(st.sampled_from(words)) for name in network.layer_names}
        gone = removed_by_hand(network, removal)
        shapes = {tensor.name: shape_by_hand(network, tensor, gone) for tensor in network.tensors}
        numel = {name: math.prod(shape) for name, shape in shapes.items()}
        parameters = sum(numel[tensor.name] for tensor in network.tensors if tensor.parameter)
        macs = network.other_macs + sum(layer.positions * numel[layer.name] for layer in network.layers)
        zeros = sum(
            zeros_by_hand(layer, shapes[layer.name], granularity[layer.name], masks[layer.name])
            for layer in network.prunable
        )
        part, dense = footprint(network, PruningPolicy(masks, granularity, removal)), dense_footprint(network)
        assert (part.parameters, part.nonzero, part.macs) == (parameters, parameters - zeros, macs)
        asked = ChannelGroups(network).asked(np.array([*removal.values()]))
        places = np.array([[words.index(word) for word in granularity.values()]])
        every = np.ones(places.shape, bool), np.ones((1, len(asked)), bool)
        requests = Requests(np.array([[*masks.values()]]), asked[None], *every, places)
        costs = Costs(network, "nonzero", granularities=words).of(requests)
        assert costs.size[0] == (parameters - zeros) / dense.parameters
        assert costs.macs[0] == macs / max(dense.macs, 1)

    @given(networks())
    def test_equal_shapes_are_computed_once(self, network):
        first, kind = distinct_shapes(network.tensors)
        for tensor, number in zip(network.tensors, kind.tolist(), strict=True):
            assert dimensions_of(network, first[number]) == dimensions_of(network, tensor)
        assert len({(tensor.shape, tensor.owners) for tensor in first}) == len(first)


class TestCounts:
    @given(st.lists(st.tuples(SHARE, st.integers(1, 10**9)), min_size=1, max_size=4))
    def test_one_number_as_many(self, pairs):
        shares, units = (np.array(each) for each in zip(*pairs, strict=True))
        expected = [gone_by_hand(*pair) for pair in pairs]
        assert removed_units(shares, units).tolist() == expected
        assert [removed_count(*pair) for pair in pairs] == expected

    def test_of_no_units_none_go(self):
        assert removed_units(np.array([0.0, 0.9]), np.array([0, 1])).tolist() == [0, 0]

    @given(SHARE, st.integers(1, 70), st.integers(1, 9))
    def test_multiples(self, share, units, multiple):
        gone = removed_units(share, units)
        assert in_multiples(gone, units, multiple) == gone_by_hand(share, units, multiple)


NETWORK = Network(
    (
        StoredTensor("a", (20, 3, 3, 3), owners=(((0, 20),), (), (), ())),
        StoredTensor("b", (24, 20, 3, 3), owners=(((1, 24),), ((0, 20),), (), ())),
        StoredTensor("c", (10, 24), owners=((), ((1, 24),))),
    ),
    (
        Layer("a", "conv2d", (20, 3, 3, 3), 64, channel_group=0),
        Layer("b", "conv2d", (24, 20, 3, 3), 16, channel_group=1),
        Layer("c", "linear", (10, 24), 1, obstacle="its outputs are the network's outputs"),
    ),
    (ChannelGroup(("a",), 20, multiple=3), ChannelGroup(("b",), 24, multiple=4)),
)


def rounding_down(share, units):
    return np.minimum(np.floor(share * units), np.maximum(units - 1, 0))


def multiples_below(removed, units, multiple):
    return units - np.maximum((units - removed) // multiple * multiple, 1)


def grid(outputs: int, inputs: int) -> LayerLatency:
    """A table in which a layer takes as long as it has channels."""
    rows, columns = tuple(range(1, outputs + 1)), tuple(range(1, inputs + 1))
    return LayerLatency(rows, columns, tuple(tuple(float(row * column) for column in columns) for row in rows))


class TestOneHome:
    """Another rule in `spaces.counting` is another rule everywhere, and nowhere does the old one live on."""

    @pytest.fixture
    def other_rules(self, monkeypatch):
        for name, rule in (("removed_units", rounding_down), ("in_multiples", multiples_below)):
            own = getattr(counting, name)
            for module in list(sys.modules.values()):
                if module.__name__.startswith(("spaces", "pruning", "search")) and vars(module).get(name) is own:
                    monkeypatch.setattr(module, name, rule)

    @pytest.mark.parametrize("changed", [False, True])
    def test_of_the_count_rule_and_of_multiples(self, changed, request):
        if changed:
            request.getfixturevalue("other_rules")
        network, share = replace(NETWORK), 0.38
        a, b = (12, 12) if changed else (12, 16)
        assert kept_units(network, {"a": share, "b": share}) == {0: a, 1: b}
        sparsity = {"a": share, "b": share, "c": 0.39}
        policy = PruningPolicy(sparsity, {"a": "channel", "b": "channel"})
        masked = math.floor(0.39 * 10 * b + (0 if changed else 0.5))
        numel, macs = (27 * a, 9 * a * b, 10 * b), 64 * 27 * a + 16 * 9 * a * b + 10 * b
        nonzero = sum(numel) - masked

        part = footprint(network, policy)
        assert (part.parameters, part.nonzero, part.macs) == (sum(numel), nonzero, macs)
        target = Target(network, 0.5, policy.granularity, "nonzero")
        assert target.sizer.footprint(target.pruned(target.vector(sparsity))) == part

        every = np.ones((1, 3), bool), np.ones((1, 2), bool)
        asked = Requests(np.array([[0, 0, 0.39]]), np.array([[share, share]]), *every, np.zeros((1, 3), int))
        costs = Costs(network, "nonzero").of(asked)
        assert (costs.size[0], costs.macs[0]) == (nonzero / target.dense.parameters, macs / target.dense.macs)

        assert [knob.removed([share]).tolist() for knob in knobs_of(network, "channel").values()] == [
            [20 - a],
            [24 - b],
        ]
        damages = {name: Damage([0.0, share], [0.0, 0.1]) for name in "ab"}
        smallest = LagrangianAllocator(network, "channel", damages, "nonzero").solutions[-1]
        assert smallest.size == pytest.approx(sum(numel) / target.dense.parameters)

        layers = {"a": grid(20, 3), "b": grid(24, 20), "c": grid(10, 24)}
        table = LatencyTable("0" * 16, "CPU", 1, 1, layers, (RestLatency(1.0, 1.0, 0.0),), 1.0, 0.0)
        expected = (3 * a + a * b + 10 * b) / (3 * 20 + 20 * 24 + 10 * 24)
        assert Predictor(table, network).share(policy) == pytest.approx(expected)

        weight = torch.arange(1.0, 1 + 10 * b).reshape(10, b)
        assert int((~make_mask(weight, 0.39, "fine-grained")).sum()) == masked

    @pytest.mark.parametrize("changed", [False, True])
    def test_of_fixed_patterns(self, changed, monkeypatch):
        if changed:
            own = counting.removed_by_pattern
            for module in list(sys.modules.values()):
                if (
                    module.__name__.startswith(("spaces", "pruning", "search"))
                    and vars(module).get(own.__name__) is own
                ):
                    monkeypatch.setattr(module, own.__name__, lambda share, units, keep: 0 * (units - keep))
        network, policy = replace(NETWORK), PruningPolicy({"b": 0.4}, "2:4")
        part, target = footprint(network, policy), Target(network, 0.5, "2:4")
        assert part.parameters - part.nonzero == (0 if changed else 24 * 20 * 9 // 2)
        assert target.sizer.footprint(target.pruned(target.vector(policy.sparsity))) == part
        assert int((~make_mask(torch.ones(24, 20, 3, 3), 0.4, "2:4")).sum()) == part.parameters - part.nonzero


def test_by_pattern_the_nearer_and_at_a_tie_all():
    assert removed_by_pattern(np.array([0.12, 0.13, 0.9]), 8, 6).tolist() == [0, 2, 2]
    assert removed_by_pattern(0.375, 4, 1) == 3
