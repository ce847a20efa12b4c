"""Costs of many requests against `footprint`, points fitted together against the exact policy of each."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pruning import trace_channels
from spaces import GRANULARITIES, ChannelGroup, Layer, Network, PruningPolicy, Schedule, Space, StoredTensor, footprint
from spaces.bits import BITS
from spaces.cost.batched import Costs, Requests
from spaces.cost.container import HEADER_SLACK, encoding_note
from spaces.cost.effect import achieved
from spaces.cost.footprint import dense_footprint, relative_cost
from spaces.search_space.batch_projection import STEPS
from spaces.search_space.limits import SIZE_SPAN
from spaces.search_space.logits import REACH, centred, sigmoid
from spaces.search_space.projection import Projected, Projector
from spaces.search_space.space import Draft

STEP = 2 * REACH / 2**STEPS
"""Logits between the last two shifts that are told apart."""
CLOSE = settings.get_profile("few")


@st.composite
def networks(draw) -> Network:
    """Convolutions in a chain, with depthwise, square and joined ones, norms, a flattening end and odd types.

    Or linear layers alone, so that there may be no dimension that no layer shrinks in.
    """
    kernel = draw(st.sampled_from([(9,), (9,), ()]))
    own_kernel, points = ((),) * len(kernel), (1,) * len(kernel)
    units = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    tensors, layers = [StoredTensor("count", (), "I64", parameter=False)], []

    def add(name: str, group: int | None, shape: tuple[int, ...], owners: tuple, kind: str = "conv2d") -> None:
        dtype = draw(st.sampled_from(["F32", "F32", "F16", "F64"]))
        tensors.append(StoredTensor(name, shape, dtype, owners=owners))
        layers.append(Layer(name, kind, shape, draw(st.integers(1, 64)), channel_group=group))

    inputs, before = 3, ()
    for number, count in enumerate(units):
        own = ((number, count),)
        add(f"conv{number}", number, (count, inputs, *kernel), (own, before, *own_kernel))
        if draw(st.booleans()):
            add(f"depthwise{number}", number, (count, 1, *kernel), (own, (), *own_kernel))
        if draw(st.booleans()):
            add(f"square{number}", number, (count, count, *points), (own, own, *own_kernel))
        if kernel and draw(st.booleans()):
            add(f"up{number}", number, (inputs, count, 9), (before, own, ()), "conv_transpose2d")
        tensors.append(StoredTensor(f"norm{number}", (count,), owners=(own,)))
        tensors.append(StoredTensor(f"mean{number}", (count,), parameter=draw(st.booleans()), owners=(own,)))
        inputs, before = count, own
        if number and draw(st.booleans()):
            inputs, before = count + units[number - 1], ((number - 1, units[number - 1]), *own)
    positions = draw(st.sampled_from([1, 4]))
    flat = tuple((number, indices * positions) for number, indices in before)
    add("last", None, (draw(st.integers(1, 12)), inputs * positions), ((), flat))
    if draw(st.booleans()):
        tensors.append(StoredTensor("cell", (8, inputs * positions), owners=((), flat)))
        layers.append(Layer("cell", "recurrent", (8, inputs * positions), 3, obstacle="it", prunable=False))
    for place in draw(st.sets(st.integers(0, len(layers) - 1), max_size=2)):
        layers[place] = replace(layers[place], whole="nothing is known of it")
    blocked = draw(st.sets(st.integers(0, len(units) - 1)))
    groups = tuple(
        ChannelGroup(
            tuple(layer.name for layer in layers if layer.channel_group == number),
            count,
            "its outputs are the network's outputs" if number in blocked else None,
            draw(st.sampled_from([1, 1, 2, 4])),
        )
        for number, count in enumerate(units)
    )
    return Network(tuple(tensors), tuple(layers), groups, other_macs=draw(st.sampled_from([0, 777])))


MASKS = tuple(word for word in GRANULARITIES if word != "channel")
SHARE = st.one_of(st.sampled_from([0.0, 0.5, 1 - 1e-9]), st.floats(0, 0.999))


@st.composite
def asked(draw, network: Network, points: int) -> tuple[Requests, list[PruningPolicy]]:
    """Masks on every layer after removals from every group that can lose channels, and the policies they mean."""
    masked = np.array([[draw(SHARE) for _ in network.prunable] for _ in range(points)])
    words = np.array([[draw(st.sampled_from(range(len(MASKS)))) for _ in network.prunable] for _ in range(points)])
    able = np.array([group.obstacle is None for group in network.groups])
    removed = np.array([[draw(SHARE) for _ in network.groups] for _ in range(points)]) * able
    policies = [
        PruningPolicy(
            dict(zip(network.layer_names, masks, strict=True)),
            dict(zip(network.layer_names, (MASKS[place] for place in places), strict=True)),
            removal={n: r for group, r in zip(network.groups, removals, strict=True) for n in group.layers},
        )
        for masks, places, removals in zip(masked.tolist(), words.tolist(), removed.tolist(), strict=True)
    ]
    return Requests(masked, removed, masked >= 0, np.broadcast_to(able, removed.shape), words), policies


def header_bounds(network: Network) -> tuple[int, int]:
    """How many bytes a file can be smaller, and larger, than with the dense file's header and the best encodings.

    Numbers in an entry lose at most their digits. A note costs its own letters; a weight whose note is not worth it
    stays dense for at most as much. What an encoded entry says of its shape is at most a digit longer than before.
    """
    digits = len(str(dense_footprint(network).encoded_bytes))
    less = sum(2 * digits + len(str(tensor.shape)) + 1 for tensor in network.tensors)
    notes = (
        len(layer.name) + len(encoding_note("bitmask", "F32", layer.shape, layer.numel)) for layer in network.layers
    )
    more = sum(note + HEADER_SLACK + 1 for note in notes)
    return less + 7, more + 7


def exact(network: Network, policy: PruningPolicy):
    return relative_cost(footprint(network, policy), dense_footprint(network))


class TestCosts:
    @CLOSE
    @given(data=st.data())
    def test_nonzero_and_macs_are_those_of_the_policy(self, data):
        network = data.draw(networks())
        requests, policies = data.draw(asked(network, 3))
        costs = Costs(network, "nonzero", granularities=MASKS).of(requests)
        found = [exact(network, policy) for policy in policies]
        np.testing.assert_allclose(costs.size, [share.nonzero for share in found], rtol=1e-12)
        np.testing.assert_allclose(costs.macs, [share.macs for share in found], rtol=1e-12)

    @CLOSE
    @given(data=st.data())
    def test_encoded_differs_by_no_more_than_the_header(self, data):
        network = data.draw(networks())
        requests, policies = data.draw(asked(network, 3))
        dense, (less, more) = dense_footprint(network).encoded_bytes, header_bounds(network)
        for size, policy in zip(
            Costs(network, "encoded", granularities=MASKS).of(requests).size, policies, strict=True
        ):
            assert -less <= footprint(network, policy).encoded_bytes - size * dense <= more

    @CLOSE
    @given(data=st.data())
    def test_rounded_weights_take_a_byte_more_or_less_at_most(self, data):
        """Sums in another order may round to another byte; points without rounded weights are as ever."""
        network = data.draw(networks())
        requests, policies = data.draw(asked(network, 3))
        layers = st.lists(st.sampled_from(BITS), min_size=len(network.prunable), max_size=len(network.prunable))
        bits = [data.draw(layers), data.draw(layers), [32] * len(network.prunable)]
        rounded = replace(requests, bits=np.array(bits))
        costs, plain = (Costs(network, "encoded", granularities=MASKS) for _ in range(2))
        nonzero, dense = Costs(network, "nonzero", granularities=MASKS), dense_footprint(network).encoded_bytes
        sizes, as_ever = costs.of(rounded).size, plain.of(requests).size
        for own, size, policy, ever in zip(bits, sizes, policies, as_ever, strict=True):
            if min(own) == 32:
                assert size == ever
            else:
                exactly = footprint(network, replace(policy, bits=dict(zip(network.layer_names, own, strict=True))))
                assert size * dense == pytest.approx(exactly.encoded_bytes, abs=1.001)
        assert costs.of(rounded.at([2, 0, 1])).size.tolist() == sizes[[2, 0, 1]].tolist()
        assert costs.of(rounded + requests).size.tolist() == [*sizes, *as_ever]
        assert nonzero.of(rounded).size.tolist() == nonzero.of(requests).size.tolist()

    def test_nothing_asked_is_the_dense_model(self, vgg_graph, residual_graph):
        for network in (vgg_graph.network, residual_graph.network):
            layers, groups = len(network.layers), len(network.groups)
            nothing = Requests(*(np.zeros((1, n)) for n in [layers, groups, layers, groups, layers]))
            for metric in ("encoded", "nonzero"):
                costs = Costs(network, metric).of(nothing)
                assert (costs.size[0], costs.macs[0]) == pytest.approx((1.0, 1.0), rel=1e-12)


class TestLogits:
    def test_sigmoid(self):
        assert sigmoid(np.array([-math.inf, 0.0, math.log(3), -800.0])) == pytest.approx([0, 0.5, 0.75, 0], abs=1e-300)
        assert sigmoid(np.array([-math.inf]))[0] == 0
        assert 0.99 < sigmoid(np.array([math.inf]))[0] < 1

    def test_centred_leaves_whole_layers_out_of_the_mean(self):
        rows = np.array([[1.0, 5.0, -math.inf], [2.0, 2.0, 2.0], [-math.inf] * 3])
        assert centred(rows).tolist() == [[-2, 2, -math.inf], [0, 0, 0], [-math.inf] * 3]


def draft(space: Space, size: float, logits, granularity="fine-grained", schedule: Schedule | None = None) -> Draft:
    return Draft("", size, granularity, np.array(logits, dtype=float), schedule or Schedule())


def random_drafts(space: Space, count: int, seed: int = 0) -> list[Draft]:
    random = np.random.default_rng(seed)
    low, high = space.size_range
    sizes = low * (high / low) ** random.random(count)
    return [
        draft(space, float(size), random.normal(0, 1.5, len(space.knobs)), str(random.choice(space.usable)))
        for size in sizes
    ]


def exactly(space: Space, point: Draft) -> Projected:
    """As a trial evaluates it."""
    return Projector(space).project(point)


def one_unit_each(network: Network, metric: str) -> float:
    """The most one unit of every channel group can take off the size, a share of dense."""
    free = [group for group in network.groups if group.obstacle is None]
    alone = [exact(network, PruningPolicy(dict.fromkeys(g.layers, 1 / g.units), "channel")) for g in free]
    return sum(1 - share.of(metric) for share in alone)


NETWORKS = ["vgg", "residual"]


@pytest.fixture(scope="module")
def network_of(vgg_graph, residual_graph):
    return {"vgg": vgg_graph.network, "residual": residual_graph.network}.__getitem__


class TestAgreement:
    @pytest.mark.parametrize("metric", ["encoded", "nonzero"])
    def test_fine_grained_within_half_a_percent(self, metric, vgg_graph):
        space = Space(vgg_graph.network, 0.25, ("fine-grained",), metric)
        drafts = random_drafts(space, 24)
        batch = Projector(space).project_batch(drafts)
        for point, size, speed in zip(drafts, batch.sizes, batch.speeds, strict=True):
            cost = exact(space.network, exactly(space, point).policy)
            assert 0.995 * cost.of(metric) <= size <= point.size
            assert speed == cost.macs == 1.0

    @pytest.mark.parametrize("name", NETWORKS)
    @CLOSE
    @given(data=st.data())
    def test_nonzero_is_one_step_short_of_exact(self, data, name, network_of):
        """Where sizes are exact, the shift ends within one step above the exact one: so do all requests."""
        space = Space(network_of(name), 0.5, metric="nonzero", mixed=True)
        words = data.draw(st.one_of(st.sampled_from(space.usable), st.none()))
        words = words or {n: data.draw(st.sampled_from(space.usable)) for n in space.network.layer_names}
        low, high = space.size_range
        size = low * (high / low) ** data.draw(st.floats(0, 1))
        logits = [data.draw(st.one_of(st.just(-math.inf), st.floats(-4, 4))) for _ in space.knobs]
        if space.target(1.0, words).floor > size:
            return  # this mixture cannot reach it
        batch, proposal = (
            Projector(space).project_batch([draft(space, size, logits, words)]),
            exactly(space, draft(space, size, logits, words)),
        )
        cost = exact(space.network, proposal.policy)
        assert batch.sizes[0] <= cost.nonzero + 1e-12 <= proposal.target + 2e-12
        for place, layer in enumerate(space.network.layers):
            if batch.requests.by_mask[0, place]:
                asked = batch.requests.masked[0, place]
                assert -1e-9 <= asked - proposal.policy.sparsity.get(layer.name, 0.0) <= STEP / 4 + 1e-9
        for place, group in enumerate(space.network.groups):
            if batch.requests.by_removal[0, place]:
                asked = batch.requests.removed[0, place]
                assert -1e-9 <= asked - proposal.policy.sparsity.get(group.layers[0], 0.0) <= STEP / 4 + 1e-9

    @pytest.mark.parametrize("metric", ["encoded", "nonzero"])
    @pytest.mark.parametrize("name", NETWORKS)
    def test_channels_within_one_rounding_unit(self, name, metric, network_of):
        """Both fits end within the target, and less than the step that leads over it below."""
        space = Space(network_of(name), 0.6, ("channel",), metric)
        unit = one_unit_each(space.network, metric)
        less, _ = header_bounds(space.network)
        header = less / dense_footprint(space.network).encoded_bytes if metric == "encoded" else 0.0
        drafts = random_drafts(space, 24, seed=1)
        batch = Projector(space).project_batch(drafts)
        for point, size in zip(drafts, batch.sizes, strict=True):
            proposal = exactly(space, point)
            assert size <= proposal.target
            assert abs(size - exact(space.network, proposal.policy).of(metric)) <= unit + header

    def test_together_as_alone(self, vgg_graph):
        space = Space(vgg_graph.network, 0.25)
        drafts = random_drafts(space, 8, seed=2)
        together = Projector(space).project_batch(drafts)
        parts = [Projector(space).project_batch([point]) for point in drafts]
        alone = parts[0]
        for part in parts[1:]:
            alone = alone + part
        assert alone.drafts == together.drafts
        for part in ("sizes", "speeds"):
            np.testing.assert_allclose(getattr(alone, part), getattr(together, part), rtol=1e-12)
        for part in ("masked", "removed", "by_mask", "by_removal"):
            np.testing.assert_allclose(getattr(alone.requests, part), getattr(together.requests, part), rtol=1e-12)

    def test_a_common_shift_of_the_logits_changes_nothing(self, vgg_graph):
        space = Space(vgg_graph.network, 0.25)
        drafts = random_drafts(space, 6, seed=3)
        moved = [draft(space, d.size, d.logits + 2.5, d.granularity) for d in drafts]
        found, wanted = (Projector(space).project_batch(each).requests.masked for each in (moved, drafts))
        np.testing.assert_allclose(found, wanted, atol=1e-12)


def _linear(*widths: int, bias: bool = True) -> nn.Sequential:
    layers = [nn.Linear(*pair, bias=bias) for pair in pairwise(widths)]
    return nn.Sequential(*(module for layer in layers for module in (layer, nn.ReLU())))[:-1]


FLAT = {
    "linear": (_linear(24, 16, 12, 10), torch.randn(2, 24)),
    "without biases": (_linear(24, 16, 10, bias=False), torch.randn(2, 24)),
    "one layer": (_linear(24, 10), torch.randn(2, 24)),
    "one output": (_linear(24, 16, 1), torch.randn(2, 24)),
    "embedding": (nn.Sequential(nn.Embedding(9, 6), nn.Flatten(), _linear(24, 16, 10)), torch.randint(9, (2, 4))),
    "points": (nn.Sequential(nn.Conv2d(24, 16, 1), nn.Conv2d(16, 10, 1), nn.Flatten()), torch.randn(2, 24, 1, 1)),
    "transposed": (nn.Sequential(nn.ConvTranspose1d(3, 16, 3), nn.ConvTranspose1d(16, 10, 2)), torch.randn(2, 3, 4)),
    "transformer": (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(2, 3, 8)),
}


@pytest.mark.parametrize("metric", ["encoded", "nonzero"])
@pytest.mark.parametrize("name", FLAT)
def test_networks_without_any_kernel_fit_within_every_size(name, metric):
    """In every granularity, with one or several of them, as the exact fit says within a unit."""
    graph = trace_channels(*FLAT[name])
    space = Space(graph.network, 0.97, GRANULARITIES, metric, mixed=name != "linear")
    drafts = random_drafts(space, 24, seed=5)
    batch = Projector(space).project_batch(drafts)
    less, more = (header / dense_footprint(space.network).encoded_bytes for header in header_bounds(space.network))
    unit = one_unit_each(space.network, metric) + (0.0 if metric == "nonzero" else less + more)
    for point, size, speed in zip(drafts, batch.sizes, batch.speeds, strict=True):
        proposal = exactly(space, point)
        cost = exact(space.network, proposal.policy)
        assert cost.of(metric) <= proposal.target + 1e-12
        assert size == pytest.approx(cost.of(metric), abs=unit + 0.02)
        assert 0 < speed <= 1


class TestLimits:
    @pytest.mark.parametrize("limit", [0.7, 0.3, 0.1])
    def test_macs(self, limit, vgg_graph):
        space = Space(vgg_graph.network, 0.8, ("channel",), max_macs=limit)
        drafts = random_drafts(space, 16, seed=4)
        batch = Projector(space).project_batch(drafts)
        free = Projector(Space(vgg_graph.network, 0.8, ("channel",))).project_batch(drafts)
        for point, size, speed in zip(drafts, batch.sizes, batch.speeds, strict=True):
            cost = exact(space.network, exactly(space, point).policy)
            assert max(speed, cost.macs) <= limit * (1 + 1e-9)
            assert max(size, cost.encoded) <= point.size
        slow = free.speeds > limit
        assert slow.any()
        assert (batch.sizes[slow] < free.sizes[slow]).all()
        assert (batch.sizes[~slow] == free.sizes[~slow]).all()

    def test_macs_out_of_reach_of_the_layers_asked(self, vgg_graph):
        """Layers sampled as whole give way to a limit on MACs as they do to one on size, and to the same extent."""
        space = Space(vgg_graph.network, 0.9, ("channel",), max_macs=0.3)
        logits = np.zeros(len(space.knobs))
        logits[:4] = -np.inf
        point = draft(space, 0.9, logits, "channel")
        batch, cost = Projector(space).project_batch([point]), exact(space.network, exactly(space, point).policy)
        assert cost.macs <= 0.3
        assert batch.speeds[0] <= 0.3 * (1 + 1e-9)
        assert batch.sizes[0] == pytest.approx(cost.encoded, rel=0.1)

    @CLOSE
    @given(data=st.data())
    def test_whole_knobs_are_asked_only_where_they_must(self, data, vgg_graph):
        space = Space(vgg_graph.network, 0.5, metric="nonzero")
        granularity = data.draw(st.sampled_from(space.usable))
        whole = data.draw(st.sets(st.sampled_from(list(space.knobs)), min_size=1, max_size=8))
        size = data.draw(st.floats(0.06, 0.5))
        logits = [-math.inf if knob in whole else data.draw(st.floats(-2, 2)) for knob in space.knobs]
        target = space.target(size, granularity)
        rest = {layer.name: 1 - 1e-9 for layer in target.layers if layer.name not in whole}
        batch = Projector(space).project_batch([draft(space, size, logits, granularity)])
        sparsity = exactly(space, draft(space, size, logits, granularity)).policy.sparsity
        asked = dict(zip(space.network.layer_names, batch.requests.masked[0], strict=True))
        if granularity == "channel":
            groups = zip(space.network.groups, batch.requests.removed[0], strict=True)
            asked = {name: share for group, share in groups for name in group.layers}
        for name in whole & {layer.name for layer in target.layers}:
            if target.size(rest) <= size:
                assert asked[name] == sparsity[name] == 0.0
            else:
                assert min(asked[name], sparsity[name]) > 0.0
        assert max(batch.sizes[0], target.size(sparsity)) <= size * (1 + 1e-9)

    def test_mixture_in_a_channel_group_keeps_its_channels(self, residual_graph):
        space = Space(residual_graph.network, 0.6, metric="nonzero", mixed=True)
        words = dict.fromkeys(space.network.layer_names, "fine-grained")
        words |= {"first.weight": "channel", "inner.weight": "channel"}
        point = draft(space, 0.5, np.zeros(len(space.knobs)), words)
        batch, policy = Projector(space).project_batch([point]), exactly(space, point).policy
        asked = batch.requests
        places = {name: place for place, name in enumerate(space.network.layer_names)}
        own = {group.layers: place for place, group in enumerate(space.network.groups)}
        residual, inner = own["first.weight", "last.weight"], own[("inner.weight",)]
        assert not asked.by_removal[0, residual] and asked.removed[0, residual] == 0
        assert asked.by_removal[0, inner] and asked.removed[0, inner] > 0
        assert asked.masked[0, places["first.weight"]] == asked.masked[0, places["inner.weight"]] == 0
        assert asked.masked[0, places["last.weight"]] > 0
        assert achieved(space.network, policy)["first.weight"] == 0.0
        assert batch.sizes[0] == pytest.approx(exact(space.network, policy).nonzero, rel=0.05)

    @pytest.mark.parametrize("size", [0.1, 0.4])
    def test_a_mixture_that_cannot_be_small_enough_is_fitted_as_what_is_evaluated(self, size, residual_graph):
        """The fine-grained member holds the group: every layer takes the granularity with the lowest floor."""
        space = Space(residual_graph.network, 0.5, metric="nonzero", mixed=True)
        words = dict.fromkeys(space.network.layer_names, "fine-grained") | {"last.weight": "channel"}
        point = draft(space, size, np.linspace(-1, 1, len(space.knobs)), words)
        assert space.target(1.0, words).floor > size
        batch, cost = Projector(space).project_batch([point]), exact(space.network, exactly(space, point).policy)
        assert batch.sizes[0] == pytest.approx(cost.nonzero, rel=0.02)
        assert batch.speeds[0] == pytest.approx(cost.macs, rel=0.1)

    def test_one_granularity_cannot_reach_what_another_can(self, vgg_graph):
        """The target then is the smallest sensible size of that granularity, as in `Space.reachable`."""
        space = Space(vgg_graph.network, 0.04)
        low = space.size_range[0]
        coarse = max(space.usable, key=space.floors.__getitem__)
        point = draft(space, low, np.zeros(len(space.knobs)), coarse)
        reachable = space.reachable(low, coarse)
        assert low < reachable
        assert 0.9 * reachable <= Projector(space).project_batch([point]).sizes[0] <= reachable


class TestRoundTrip:
    @CLOSE
    @given(data=st.data())
    def test_draft_of_params_is_the_point(self, data, vgg_graph):
        mixed = data.draw(st.booleans())
        choices = data.draw(st.sampled_from([(32,), (5,), (8, 6, 4), (4, 32)]))
        space = Space(vgg_graph.network, 0.25, mixed=mixed, bits=choices)
        words, bits = data.draw(st.sampled_from(space.usable)), data.draw(st.sampled_from(choices))
        if mixed:
            words = {name: data.draw(st.sampled_from(space.usable)) for name in space.network.layer_names}
            drawn = {name: data.draw(st.sampled_from(choices)) for name in space.network.layer_names}
            bits = drawn if len(set(drawn.values())) > 1 else bits
        logits = np.array([data.draw(st.one_of(st.just(-math.inf), st.floats(-5, 5))) for _ in space.knobs])
        low, high = space.size_range
        size = min(low * (high / low) ** data.draw(st.floats(0, 1)), high)
        schedule = Schedule(data.draw(st.sampled_from(["one-shot", "polynomial"])), data.draw(st.floats(1, 5)))
        point = Draft("swap", size, words, logits, schedule, bits=bits)
        back = space.draft(space.params_of(point), "swap")
        assert (back.source, back.size, back.granularity, back.schedule) == ("swap", size, words, schedule)
        assert back.bits == bits
        assert space.params_of(back) == pytest.approx(space.params_of(point), abs=1e-9)
        np.testing.assert_allclose(back.logits, centred(logits), atol=1e-9)

    def test_params_lie_on_the_axes(self, vgg_graph):
        space = Space(vgg_graph.network, 0.25)
        point = draft(space, 7.0, np.linspace(-900, 900, len(space.knobs)), schedule=Schedule("polynomial", 40.0))
        params = space.params_of(point)
        assert list(params) == [axis.name for axis in space.axes]
        for axis in space.axes:
            assert params[axis.name] in axis.choices if axis.choices else axis.low <= params[axis.name] <= axis.high
        assert params["size"] == 0.25 == SIZE_SPAN * space.size_range[0]

    def test_bits_are_axes_where_there_is_a_choice(self, vgg_graph):
        network = vgg_graph.network
        plain, choice = Space(network, 0.25, bits=(8,)), Space(network, 0.25, bits=(8, 6, 4))
        mixed = Space(network, 0.25, mixed=True, bits=(6, 4))
        names = [[axis.name for axis in space.axes] for space in (plain, choice, mixed)]
        assert not any("bits" in name for name in names[0]) and names[0] == [n for n in names[1] if n != "bits"]
        assert names[1][names[1].index("bits") - 1] == "granularity"
        assert [n.removeprefix("bits.") for n in names[2] if "bits" in n] == list(network.layer_names)
        assert next(axis for axis in choice.axes if axis.name == "bits").choices == ("8", "6", "4")
        params = plain.params(0.2, "channel", {}, Schedule())
        assert plain.bits_in(params) == plain.draft(params).bits == 8, "as of studies begun without the axis"
        assert choice.draft(choice.params(0.2, "channel", {}, Schedule())).bits == 8
        assert choice.draft(choice.params(0.2, "channel", {}, Schedule(), bits=6)).bits == 6
        first, *rest = network.layer_names
        unlike = dict.fromkeys(rest, 4) | {first: 6}
        assert mixed.draft(mixed.params(0.2, "channel", {}, Schedule(), bits=unlike)).bits == unlike
        assert mixed.layer_bits(unlike).tolist() == [6] + [4] * len(rest)
        with pytest.raises(ValueError, match="bits must be of this space's 8, 6, 4, got 5"):
            choice.params(0.2, "channel", {}, Schedule(), bits=5)
        with pytest.raises(ValueError, match="one width for all layers is needed where they are not mixed"):
            choice.params(0.2, "channel", {}, Schedule(), bits=unlike)

    def test_labels(self, vgg_graph):
        space = Space(vgg_graph.network, 0.25, mixed=True)
        assert draft(space, 0.1, [0.0], "channel").label == "channel"
        assert draft(space, 0.1, [0.0], {"backbone.conv0.weight": "channel"}).label == "mixed"
