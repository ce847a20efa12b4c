"""Sizes against a count tensor by tensor that writes every header, on networks of any make."""

from __future__ import annotations

import gc
import json
import math
import weakref
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spaces import GRANULARITIES, ChannelGroup, Layer, Network, PruningPolicy, StoredTensor
from spaces.allocation.budget import (
    ALMOST_ALL,
    BISECTIONS,
    LOGIT_REACH,
    Target,
    Unreachable,
    fit_by_shift,
    fit_to_budget,
    shifted,
)
from spaces.bits import BITS
from spaces.cost import coded_size
from spaces.cost.container import Entry, container_bytes, encoded_entry, no_larger_than_dense
from spaces.cost.exact import digits
from spaces.cost.footprint import (
    Footprint,
    coded_bound,
    dense_footprint,
    footprint,
    relative_cost,
)
from spaces.granularity import obstacle_to, units_of
from spaces.network import ITEM_BYTES

WORDS = ("w", "net.layer.weight", 'quo"te\\', "größe", "深", "\n")


@st.composite
def networks(draw) -> Network:
    """Dimensions are owned by no group, by one (an index or several a unit), or by several side by side.

    A layer whose first dimension one group owns is a member of it, so groups of several layers arise, as in
    residual sums; some groups have an obstacle or a member that is no prunable layer.
    """
    units = draw(st.lists(st.integers(1, 40), max_size=4))
    members: list[list[str]] = [[] for _ in units]
    tensors, layers = [], []
    for number in range(draw(st.integers(1, 7))):
        name = f"{draw(st.sampled_from(WORDS))}{number}"
        dimensions = [draw(_dimension(units)) for _ in range(draw(st.integers(0, 4)))]
        shape, owners = tuple(length for length, _ in dimensions), tuple(owned for _, owned in dimensions)
        prunable = bool(shape) and draw(st.booleans())
        if prunable:
            group = owners[0][0][0] if len(owners[0]) == 1 and draw(st.booleans()) else None
            if group is not None:
                members[group].append(name)
            kind = draw(st.sampled_from(["conv2d", "conv2d", "conv_transpose2d"])) if len(shape) > 1 else "conv2d"
            parts = draw(st.sampled_from([1, 1, 2])) if shape[0] % 2 == 0 else 1
            layers.append(Layer(name, kind, shape, draw(st.integers(1, 2000)), parts, channel_group=group))
            if group is None and not draw(st.integers(0, 3)):
                layers[-1] = replace(layers[-1], whole="nothing is known of it")
        elif shape and draw(st.booleans()):
            layers.append(Layer(name, "recurrent", shape, draw(st.integers(0, 9)), obstacle="it", prunable=False))
        dtype = draw(st.sampled_from(["F32"] * 6 + sorted(ITEM_BYTES)))
        stored = StoredTensor(name, shape, dtype, prunable or draw(st.booleans()), owners if any(owners) else ())
        if not prunable or draw(st.integers(0, 9)):
            tensors.append(stored)
    groups = tuple(
        ChannelGroup(
            (*names, *draw(st.sampled_from([(), (), (), ("no layer",)]))),
            count,
            draw(st.sampled_from([None, None, None, "its outputs are the network's outputs"])),
            draw(st.sampled_from([1, 1, 2, 3, 8])),
        )
        for names, count in zip(members, units, strict=True)
    )
    if not tensors:
        tensors.append(StoredTensor("last", (3,)))
    aliases = {f"also {name}": tensors[0].name for name in draw(st.lists(st.sampled_from(WORDS), max_size=2))}
    return Network(tuple(tensors), tuple(layers), groups, aliases, draw(st.sampled_from([0, 0, 12345])))


@st.composite
def _dimension(draw, units: list[int]) -> tuple[int, tuple[tuple[int, int], ...]]:
    if not units or draw(st.booleans()):
        return draw(st.one_of(st.integers(1, 12), st.integers(1, 600))), ()
    owners = draw(st.lists(st.integers(0, len(units) - 1), min_size=1, max_size=2))
    owned = tuple((group, units[group] * draw(st.sampled_from([1, 1, 1, 4, 9]))) for group in owners)
    return sum(indices for _, indices in owned) + draw(st.sampled_from([0, 0, 5])), owned


share = st.one_of(st.just(0.0), st.floats(0, 0.999), st.floats(0.9, 1, exclude_max=True), st.just(ALMOST_ALL))


def granularities(network: Network) -> st.SearchStrategy:
    words = st.sampled_from(GRANULARITIES)
    return st.one_of(words, st.dictionaries(st.sampled_from(network.layer_names or ["-"]), words))


def sparsities(network: Network) -> st.SearchStrategy:
    return st.fixed_dictionaries({}, optional=dict.fromkeys(network.layer_names, share))


def kept_by_hand(network: Network, requests: dict[str, float]) -> dict[int, int]:
    """Group number -> units that stay."""
    kept = {}
    for number, group in enumerate(network.groups):
        share = 0.0 if group.obstacle else min((requests.get(name, 0.0) for name in group.layers), default=0.0)
        kept[number] = group.units - min(math.floor(share * group.units + 0.5), group.units - 1)
        while kept[number] % group.multiple and kept[number] < group.units:
            kept[number] += 1
    return kept


def shape_by_hand(network: Network, tensor: StoredTensor, kept: dict[int, int]) -> tuple[int, ...]:
    owners, lengths = tensor.owners or ((),) * len(tensor.shape), []
    for length, own in zip(tensor.shape, owners, strict=True):
        units = {group: network.groups[group].units for group, _ in own}
        lengths.append(length - sum(indices // units[group] * (units[group] - kept[group]) for group, indices in own))
    return tuple(lengths)


def written(network: Network, policy: PruningPolicy) -> Footprint:
    """What `footprint` counts, tensor by tensor, with a header that is really written."""
    kept, masks = kept_by_hand(network, policy.channel_requests()), policy.mask_requests()
    entries, dense, parameters, zeros = [], [], 0, 0
    macs = macs_nonzero = network.other_macs
    for tensor in network.tensors:
        shape = shape_by_hand(network, tensor, kept)
        numel, positions = math.prod(shape), network.multiplied.get(tensor.name, 0)
        parameters += numel if tensor.parameter else 0
        dense.append(Entry(tensor.name, tensor.dtype, shape))
        macs, macs_nonzero = macs + positions * numel, macs_nonzero + positions * numel
        layer = network.by_name.get(tensor.name)
        if layer is None:
            entries.append(dense[-1])
            continue
        granularity, share, removed = policy.granularity_of(layer.name), masks.get(layer.name, 0.0), 0
        if share and not layer.whole and not obstacle_to(granularity, shape, layer.inputs):
            units = units_of(granularity, shape, layer.inputs)
            removed = units.removed(share) * units.elements
        zeros += removed
        macs_nonzero -= positions * removed
        entries.append(encoded_entry(tensor, shape, numel - removed, granularity, layer.inputs))
    size = container_bytes(no_larger_than_dense(entries, dense, network.aliases), network.aliases)
    return Footprint(parameters, parameters - zeros, size, macs, macs_nonzero)


def coded_by_hand(network: Network, policy: PruningPolicy) -> tuple[float, float]:
    """The bound and the prediction of a file of rounded weights, tensor by tensor; its header is given."""
    kept, masks, totals = kept_by_hand(network, policy.channel_requests()), policy.mask_requests(), [0.0, 0.0]
    for tensor in network.tensors:
        shape, layer = shape_by_hand(network, tensor, kept), network.by_name.get(tensor.name)
        numel, width = math.prod(shape), 8 * ITEM_BYTES[tensor.dtype]
        if layer is None:
            short = tensor.dtype == "F32" and len(shape) == 1 and tensor.parameter
            totals = [total + entropy_by_hand(numel, numel, 16 if short else width) for total in totals]
            continue
        granularity, share, removed = policy.granularity_of(layer.name), masks.get(layer.name, 0.0), 0
        if share and not layer.whole and not obstacle_to(granularity, shape, layer.inputs):
            units = units_of(granularity, shape, layer.inputs)
            removed = units.removed(share) * units.elements
        bits, values = policy.bits_of(layer.name), numel - removed
        scales = 0 if bits == 32 else min(shape[layer.output_dim], values)
        flat, by_float = coded_size.flat_value_bits(bits) if bits < 32 else width, width / 32 if bits == 32 else 1
        usual, dense = coded_size.VALUE_BITS[bits] * by_float, coded_size.DENSE_BITS[bits] * by_float * numel
        each = entropy_by_hand(numel, values, usual) if values < numel / (1 + 2**-usual) else dense
        totals[0] += entropy_by_hand(numel, values, flat) + 8 * scales
        totals[1] += min(each, dense) + 5 * scales
    sizes = coded_size.CodedSizes(network)
    widths, found = np.array([policy.bits_of(tensor.name) for tensor in sizes.layers]), []
    for bound, bits in zip((True, False), totals, strict=True):
        start = float(sizes.at(widths, bound).header)
        lanes = min(bits // (8 * 2048), 4096)
        found.append(start + bits // 8 + 6 * (lanes if lanes >= 8 else 1) + 2)
    return found[0], found[1]


def entropy_by_hand(numel: int, kept: int, value_bits: float) -> float:
    """Bits of places, and of values of so many bits each."""
    if not kept:
        return 0.0
    most = min(kept, numel / (1 + 2**-value_bits))
    odds = min(max(most / numel, 1 / 4097), 4096 / 4097)
    places = -most * math.log2(odds) - (numel - most) * math.log2(1 - odds)
    return places * 1.0001 + most * value_bits + numel * math.log2(1 + 2**-16)


def widths(network: Network) -> st.SearchStrategy:
    """Of which at least one layer that is stored is rounded."""
    layers = [tensor.name for tensor in network.tensors if tensor.name in network.by_name]
    each = st.fixed_dictionaries({layers[0]: st.sampled_from(BITS[1:])}, optional=dict.fromkeys(layers[1:], WIDTH))
    return st.one_of(st.sampled_from(BITS[1:]), each)


WIDTH = st.sampled_from(BITS)


def dense_written(network: Network) -> Footprint:
    return written(network, PruningPolicy({}))


def dense_parameters(network: Network) -> int:
    return sum(tensor.numel for tensor in network.tensors if tensor.parameter)


def block() -> Network:
    """A residual sum, a depthwise and a grouped convolution, a concatenation, norms, biases and half precision.

    Groups: 0 the sum's 24 channels, 1 the depthwise pair's 18, 2 the grouped convolution's (5 units of 4
    channels), 3 with a member that is no layer, 4 with an obstacle.
    """
    weights = [
        ("stem.weight", (24, 3, 3, 3), "F32", (((0, 24),), (), (), ()), 0),
        ("expand.weight", (18, 24, 1, 1), "F32", (((1, 18),), ((0, 24),), (), ()), 1),
        ("depthwise.weight", (18, 1, 3, 3), "F32", (((1, 18),), (), (), ()), 1),
        ("project.weight", (24, 18, 1, 1), "F16", (((0, 24),), ((1, 18),), (), ()), 0),
        ("grouped.weight", (20, 6, 3, 3), "F32", (((2, 20),), (), (), ()), 2),
        ("joined.weight", (16, 44, 3, 3), "F32", (((3, 16),), ((0, 24), (2, 20)), (), ()), 3),
        ("classifier.weight", (10, 16 * 49), "F64", (((4, 10),), ((3, 16 * 49),)), 4),
    ]
    layers = tuple(
        Layer(name, "conv2d", shape, positions, channel_group=group)
        for positions, (name, shape, _, _, group) in zip((64, 64, 64, 64, 16, 16, 1), weights, strict=True)
    )
    tensors = []
    for name, shape, dtype, owners, _ in weights:
        path = name.removesuffix("weight")
        tensors += [StoredTensor(name, shape, dtype, owners=owners)]
        tensors += [StoredTensor(path + "bias", shape[:1], dtype, owners=owners[:1])]
        tensors += [StoredTensor(path + "norm.running_var", shape[:1], "F32", False, owners[:1])]
        tensors += [StoredTensor(path + "norm.num_batches_tracked", (), "I64", False)]
    members = [tuple(name for name, *_, group in weights if group == number) for number in range(5)]
    groups = (
        ChannelGroup(members[0], 24),
        ChannelGroup(members[1], 18),
        ChannelGroup(members[2], 5),
        ChannelGroup((*members[3], "scale"), 16),
        ChannelGroup(members[4], 10, "its outputs are the network's outputs"),
    )
    return Network(tuple(tensors), layers, groups, {"tied.bias": "stem.bias", "tied.weight": "stem.weight"})


BLOCK = block()


def chain(widths: list[int]) -> Network:
    """Linear layers with biases, one group each; the last has an obstacle."""
    tensors, layers, groups = [], [], []
    for number in range(len(widths) - 1):
        inputs, outputs = widths[number : number + 2]
        before = ((number - 1, inputs),) if number else ()
        obstacle = None if number < len(widths) - 2 else "its outputs are the network's outputs"
        name = f"{number}.weight"
        tensors += [
            StoredTensor(name, (outputs, inputs), owners=(((number, outputs),), before)),
            StoredTensor(f"{number}.bias", (outputs,), owners=(((number, outputs),),)),
        ]
        layers.append(Layer(name, "linear", (outputs, inputs), 1, channel_group=number, obstacle=obstacle))
        groups.append(ChannelGroup((name,), outputs, obstacle))
    return Network(tuple(tensors), tuple(layers), tuple(groups))


class TestEqualsFootprint:
    @given(st.data())
    def test_on_any_network(self, data):
        network = data.draw(networks().filter(dense_parameters))
        granularity, dense = data.draw(granularities(network)), dense_written(network)
        encoded, nonzero = (Target(network, 0.5, granularity, metric) for metric in ("encoded", "nonzero"))
        assert encoded.dense == dense
        for sparsity in data.draw(st.lists(sparsities(network), min_size=1, max_size=4)):
            expected = relative_cost(written(network, PruningPolicy(sparsity, granularity)), dense)
            assert encoded.cost(sparsity) == nonzero.cost(sparsity) == expected
            assert encoded.size(sparsity) == expected.encoded
            assert nonzero.size(sparsity) == expected.nonzero
            assert encoded.macs(sparsity) == expected.macs

    @given(st.data())
    def test_of_a_policy_with_masks_after_removals(self, data):
        network = data.draw(networks().filter(dense_parameters))
        policy = PruningPolicy(*(data.draw(each(network)) for each in (sparsities, granularities)))
        free = [name for name in network.layer_names if policy.granularity_of(name) != "channel"]
        policy = replace(
            policy, removal=data.draw(st.dictionaries(st.sampled_from(free or ["-"]), share)) if free else {}
        )
        assert footprint(network, policy) == written(network, policy)
        assert dense_footprint(network) == dense_written(network)

    @pytest.mark.parametrize("seed", range(4))
    def test_on_a_block_with_every_kind_of_dimension(self, seed):
        """Many requests in random mixtures: smallest request of a group, several indices a unit, joined inputs."""
        generator = np.random.default_rng(seed)
        dense, names = dense_written(BLOCK), BLOCK.layer_names
        for _ in range(60):
            kinds = ["channel"] * len(GRANULARITIES) + list(GRANULARITIES)
            words = dict(zip(names, generator.choice(kinds, len(names)).tolist(), strict=True))
            granularity = "channel" if generator.random() < 0.5 else words
            sparsity = dict(
                zip(names, (generator.random(len(names)) ** generator.choice([0.1, 1, 3])).tolist(), strict=True)
            )
            expected = relative_cost(written(BLOCK, PruningPolicy(sparsity, granularity)), dense)
            assert Target(BLOCK, 0.5, granularity).cost(sparsity) == expected

    @pytest.mark.parametrize("dtype", ["F32", "F16", "I8"])
    def test_at_every_count_of_small_weights(self, dtype):
        """Where encoding begins to pay for its note, and where another encoding is smaller."""
        for numel in (1, 2, 7, 24, 40, 100, 300):
            layer = Layer("a.weight", "linear", (numel, 1), 1)
            network = Network((StoredTensor("a.weight", (numel, 1), dtype), StoredTensor("b", (2,))), (layer,))
            target, dense = Target(network, 1.0), dense_written(network)
            for removed in range(numel):
                sparsity = {"a.weight": removed / numel}
                assert target.cost(sparsity) == relative_cost(written(network, PruningPolicy(sparsity)), dense)

    @pytest.mark.parametrize("granularity", GRANULARITIES)
    def test_on_a_large_network(self, granularity):
        """Offsets of 10 and 11 digits; the notes of one layer after another appear."""
        network = chain(widths=[8, 300, 3, 20_000, 50_000, 1_000])
        target, dense = Target(network, 1.0, granularity), dense_written(network)
        for percent in range(0, 100, 3):
            sparsity = dict.fromkeys(network.layer_names, percent / 100)
            assert target.cost(sparsity) == relative_cost(written(network, PruningPolicy(sparsity, granularity)), dense)

    @pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "I8"])
    def test_an_encoded_weight_moves_to_the_end_of_the_file(self, dtype):
        """One by one, the weights of any type become bytes behind everything wider than a byte."""
        names = ["b", "a", "d", "c"]
        tensors = [StoredTensor(name, (30, 40), dtype) for name in names]
        layers = [Layer(name, "linear", (30, 40), 1) for name in names]
        network = Network((*tensors, StoredTensor("bb", (7,)), StoredTensor("count", (), "I64", False)), tuple(layers))
        target, seen = Target(network, 1.0), set()
        for count in range(5):
            sparsity = dict.fromkeys(names[:count], 0.8)
            part = written(network, PruningPolicy(sparsity))
            assert target.size(sparsity) == part.encoded_bytes / dense_written(network).encoded_bytes
            seen.add(part.encoded_bytes)
        assert len(seen) == 5

    @pytest.mark.parametrize("dtype", ["F32", "F16"])
    @pytest.mark.parametrize("more", [3_000, 3_000_000, 300_000_000])
    def test_no_zero_makes_a_large_file_larger(self, dtype, more):
        """The first weight of a file is encoded and moves to its end, where offsets have up to ten digits."""
        for numel in range(24, 140, 3):
            layer = Layer("a", "linear", (numel, 1), 1)
            network = Network((StoredTensor("a", (numel, 1), dtype), StoredTensor("b", (more,), "F32")), (layer,))
            target, dense = Target(network, 1.0), dense_written(network)
            policies = [PruningPolicy({"a": removed / numel}) for removed in range(numel)]
            sizes = [written(network, policy).encoded_bytes for policy in policies]
            assert sizes == sorted(sizes, reverse=True)
            assert [target.size(policy.sparsity) for policy in policies] == [n / dense.encoded_bytes for n in sizes]

    @pytest.mark.parametrize("aliases", [{}, {"tied": "t"}])
    def test_without_anything_to_prune(self, aliases):
        network = Network((StoredTensor("t", (3,)),), (), aliases=aliases)
        assert Target(network, 1.0).size({}) == Target(network, 1.0, "channel").floor == 1.0
        assert Target(Network((), ()), 1.0).size({}) == 1.0


def plainly_landed(family, network: Network, target: Target) -> dict[str, float]:
    """Bisection that counts the whole footprint every time."""
    dense = dense_written(network)

    def fits(t: float) -> bool:
        policy = PruningPolicy(family(t), target.granularity, bits=target.bits)
        found = footprint(network, policy) if policy.is_rounded else written(network, policy)
        return relative_cost(found, dense).of(target.metric) <= target.share

    if fits(0.0):
        return family(0.0)
    if not fits(1.0):
        raise Unreachable
    over, under = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (over + under) / 2
        over, under = (over, middle) if fits(middle) else (middle, under)
    return family(under)


CHAIN = chain([6, 40, 25, 60, 10])
some_layers = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(CHAIN.layer_names, st.one_of(st.just(0.0), st.floats(0.01, 0.99)))
)
targets = st.builds(
    Target, st.just(CHAIN), st.floats(0.05, 1.0), granularities(CHAIN), st.sampled_from(["encoded", "nonzero"])
)


class TestLanding:
    """Not only the same counts as plain bisection: the same numbers, so that a study goes on as it began."""

    @settings.get_profile("few")
    @given(some_layers, targets)
    def test_of_a_family(self, sparsity, target):
        def family(t: float) -> dict[str, float]:
            return {name: t * s for name, s in sparsity.items()}

        self.check(lambda: fit_to_budget(family, target), family, target)

    @settings.get_profile("few")
    @given(some_layers, targets)
    def test_by_shift(self, sparsity, target):
        def family(t: float) -> dict[str, float]:
            return shifted(sparsity, (2 * t - 1) * LOGIT_REACH)

        self.check(lambda: fit_by_shift(sparsity, target), family, target)

    @staticmethod
    def check(landed, family, target: Target) -> None:
        try:
            expected = plainly_landed(family, target.network, target)
        except Unreachable:
            with pytest.raises(Unreachable):
                landed()
        else:
            assert landed() == expected


class TestRounded:
    """Sizes of rounded weights: of a policy, of targets and of files."""

    @settings.get_profile("few")
    @given(st.data())
    def test_of_any_policy(self, data):
        network = data.draw(
            networks().filter(dense_parameters).filter(lambda n: set(n.by_name) & {t.name for t in n.tensors})
        )
        policy = PruningPolicy(*(data.draw(each(network)) for each in (sparsities, granularities)))
        free = [name for name in network.layer_names if policy.granularity_of(name) != "channel"]
        removal = data.draw(st.dictionaries(st.sampled_from(free or ["-"]), share)) if free else {}
        policy = replace(policy, removal=removal, bits=data.draw(widths(network)))
        part, dense = footprint(network, policy), dense_footprint(network)
        bound, predicted = coded_by_hand(network, policy)
        assert coded_bound(network, policy) == pytest.approx(bound, abs=1)
        assert part.encoded_bytes == pytest.approx(predicted, abs=1)
        assert part.encoded_bytes <= coded_bound(network, policy)
        plain = replace(policy, bits=32)
        assert replace(part, encoded_bytes=0) == replace(footprint(network, plain), encoded_bytes=0)
        assert coded_bound(network, plain) == footprint(network, plain).encoded_bytes
        if not removal:
            for metric in ("encoded", "nonzero"):
                target = Target(network, 0.5, policy.granularity, metric, bits=policy.bits)
                assert target.size(policy.sparsity) == relative_cost(part, dense).of(metric)
            assert target.cost(policy.sparsity) == replace(
                relative_cost(part, dense), encoded=target.cost(policy.sparsity).encoded
            )

    @given(st.data())
    def test_more_pruning_or_fewer_bits_never_take_more(self, data):
        words = st.sampled_from([word for word in GRANULARITIES if ":" not in word])
        granularity = data.draw(st.dictionaries(st.sampled_from(BLOCK.layer_names), words))
        sparsity, bits = data.draw(sparsities(BLOCK)), {name: data.draw(WIDTH) for name in BLOCK.layer_names}
        fewer = {
            name: max(b for b in BITS if b <= max(width - data.draw(st.integers(0, 30)), 2))
            for name, width in bits.items()
        }
        target = Target(BLOCK, 0.5, granularity, bits=bits)
        size = target.size(sparsity)
        if target.file:
            assert target.size(shifted(sparsity, data.draw(st.floats(0, 8)))) <= size
            assert replace(target, bits=fewer).size(sparsity) <= size

    @pytest.mark.slow
    @settings.get_profile("few")
    @given(some_layers, targets, widths(CHAIN))
    def test_landing(self, sparsity, target, bits):
        target = replace(target, bits=bits)

        def family(t: float) -> dict[str, float]:
            return shifted(sparsity, (2 * t - 1) * LOGIT_REACH)

        nothing = dict.fromkeys(sparsity, 0.0)
        if target.metric == "encoded" and target.size(nothing) <= target.share:
            assert fit_by_shift(sparsity, target) == fit_to_budget(family, target) == nothing
        else:
            TestLanding.check(lambda: fit_by_shift(sparsity, target), family, target)
            TestLanding.check(lambda: fit_to_budget(family, target), family, target)

    def test_unknown_layers(self):
        for ask in (footprint, coded_bound):
            with pytest.raises(ValueError, match=r"unknown layer 'stem\.wieght': did you mean 'stem\.weight'"):
                ask(BLOCK, PruningPolicy({}, bits={"stem.wieght": 4}))


class TestArguments:
    TARGET = Target(chain([6, 40, 25]), 0.5)

    @pytest.mark.parametrize("value", [1.0, -0.1, math.nan, math.inf, 1, True, False, "0.5", None])
    def test_bad_shares(self, value):
        with pytest.raises(ValueError, match=r"sparsity of '0\.weight' must"):
            self.TARGET.size({"1.weight": 0.5, "0.weight": value})

    @pytest.mark.parametrize("measure", ["size", "macs", "cost"])
    def test_unknown_layers(self, measure):
        with pytest.raises(ValueError, match=r"unknown layer '0\.wieght': did you mean '0\.weight'"):
            getattr(self.TARGET, measure)({"0.wieght": 0.5})
        with pytest.raises(ValueError, match=r"unknown layer '0\.wieght': did you mean '0\.weight'"):
            fit_by_shift({"0.wieght": 0.5}, self.TARGET)
        with pytest.raises(ValueError, match=r"unknown layer '0\.bias'"):
            getattr(self.TARGET, measure)({"0.bias": 0.0})

    def test_other_mappings_and_numbers(self):
        expected = self.TARGET.size({"0.weight": 0.75})
        for number in (np.float64(0.75), np.float32(0.75), Fraction(3, 4)):
            assert self.TARGET.size({"0.weight": number}) == expected
        assert self.TARGET.size(PruningPolicy({"0.weight": 0.75}).sparsity) == expected
        with pytest.raises(ValueError, match="sparsity must map layer names to shares, got list"):
            self.TARGET.size([0.75])

    def test_unknown_words(self):
        with pytest.raises(ValueError, match="unknown granularity 'chanel': did you mean 'channel'"):
            Target(self.TARGET.network, 0.5, "chanel").size({})
        with pytest.raises(KeyError, match="encodde"):
            Target(self.TARGET.network, 0.5, metric="encodde").size({})


class TestSharing:
    def test_one_sizer_a_network_object(self):
        first, second = chain([6, 40, 25]), chain([6, 40, 25])
        assert Target(first, 0.5).sizer is Target(first, 0.2, "channel", "nonzero").sizer
        assert Target(first, 0.5).sizer is not Target(second, 0.5).sizer

    def test_goes_with_its_network(self):
        target = Target(chain([6, 40, 25]), 0.5)
        sizer = weakref.ref(target.sizer)
        assert sizer() is not None
        del target
        gc.collect()
        assert sizer() is None


def test_digits_of_every_length():
    numbers = [0, *(10**k + step for k in range(18) for step in (-1, 0, 1)), 2**63 - 1]
    assert digits(np.array(numbers)).tolist() == [len(json.dumps(number)) for number in numbers]
