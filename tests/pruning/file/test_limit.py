"""Sizes before training: a bound that no file exceeds, a prediction, and a file made to fit."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pruning.channels.tracing import trace_channels
from pruning.file.container import decode, encode
from pruning.file.limit import encode_within
from pruning.file.rounding import Rounded
from pruning.file.stored_form import foldable, to_stored_form_
from pruning.modules import prunable_weights
from pruning.prune import prune
from spaces import PruningPolicy
from spaces.cost.coded_size import CodedSizes, coded_bytes, full_bits, place_bits
from spaces.cost.footprint import coded_bound, footprint

BITS = (2, 3, 4, 5, 8, 16, 32)


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(2, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 20, 3), nn.ReLU(),
        nn.ConvTranspose2d(20, 6, 2), nn.Flatten(), nn.Linear(6 * 25, 7),
    ).eval()  # fmt: skip


EXAMPLE = torch.randn(2, 2, 8, 8)


@pytest.fixture(scope="module")
def sizes() -> CodedSizes:
    model = network()
    return CodedSizes(trace_channels(model, EXAMPLE).network)


def fill_(weight: torch.Tensor, bits: int, how: str, generator: torch.Generator) -> None:
    """Values that are hard to code: all likely alike, all the largest but one, magnitudes over many octaves."""
    largest = 2 ** (min(bits, 16) - 1) - 1
    signs = torch.randint(0, 2, weight.shape, generator=generator) * 2.0 - 1
    if how == "alike":
        size = torch.randint(1, largest + 1, weight.shape, generator=generator).float()
        size.flatten(1)[:, 0] = largest
    elif how == "largest":
        size = torch.full(weight.shape, float(largest))
    else:
        size = torch.exp(30 * torch.rand(weight.shape, generator=generator) - 15)
    weight.data = signs * size


class TestBound:
    @settings(deadline=None, max_examples=25, derandomize=True)
    @given(
        shares=st.lists(st.sampled_from([0.0, 0.03, 0.3, 0.9, 1.0]), min_size=4, max_size=4),
        bits=st.lists(st.sampled_from(BITS), min_size=4, max_size=4),
        how=st.sampled_from(["alike", "largest", "octaves"]),
        pattern=st.sampled_from(["random", "rows", "first"]),
        seed=st.integers(0, 999),
    )
    def test_no_file_is_larger(self, sizes, shares, bits, how, pattern, seed):
        generator, model = torch.Generator().manual_seed(seed), network()
        weights, kept = prunable_weights(model), []
        for share, own, weight in zip(shares, bits, weights.values(), strict=True):
            fill_(weight, own, how, generator)
            order = torch.rand(weight.shape, generator=generator)
            if pattern == "rows":
                order += torch.arange(len(weight)).view(-1, *[1] * (weight.dim() - 1))
            if pattern == "first":
                order = torch.arange(weight.numel()).view(weight.shape).float()
            mask = order.flatten().argsort().argsort().view(weight.shape) < round(share * weight.numel())
            weight.data *= mask
            kept.append(int(weight.count_nonzero()))
        for norm in foldable(model).values():
            norm.weight.data = torch.exp(20 * torch.randn(12, generator=generator))
        rounded = to_stored_form_(model, dict(zip(weights, bits, strict=True)))
        written = len(encode(model.state_dict(), rounded))
        numel = np.array([w.numel() for w in weights.values()])
        assert written <= sizes.bound(numel, np.array(kept), np.array(bits))

    def test_it_is_nearly_reached_where_all_values_are_alike(self):
        generator, model = torch.Generator().manual_seed(0), nn.Sequential(nn.Linear(120, 90)).eval()
        fill_(model[0].weight, 6, "alike", generator)
        model[0].bias.data = torch.exp(20 * torch.randn(90, generator=generator))
        sizes = CodedSizes(trace_channels(model, torch.randn(2, 120)).network)
        for share in (1.0, 0.3):
            model[0].weight.data *= torch.rand(90, 120, generator=generator) < share
            own = copy.deepcopy(model)
            written = len(encode(own.state_dict(), to_stored_form_(own, 6)))
            bound = sizes.bound(np.array([10800]), model[0].weight.count_nonzero().numpy()[None], np.array([6]))
            assert 0.97 * bound < written <= bound

    def test_it_never_falls_where_anything_grows(self, sizes):
        generator = np.random.default_rng(0)
        numel = np.array([layer.numel for layer in sizes.layers])
        for _ in range(200):
            kept, bits = generator.integers(0, numel + 1), generator.choice(BITS, 4)
            layer = generator.integers(4)
            more, wider = kept.copy(), bits.copy()
            more[layer] = generator.integers(kept[layer], numel[layer] + 1)
            wider[layer] = generator.choice([b for b in BITS if b >= bits[layer]])
            points = sizes.bound(numel, np.stack([kept, more]), bits)
            assert points[0] <= points[1]
            assert sizes.bound(numel, kept, bits) <= sizes.bound(numel, kept, wider)
            assert sizes.bound(numel, kept, bits) <= sizes.bound(numel + 5, kept, bits)

    def test_many_at_once_are_what_each_is_alone(self, sizes):
        numel = np.array([layer.numel for layer in sizes.layers])
        kept = np.random.default_rng(1).integers(0, numel + 1, (3, 5, 4))
        bits = np.random.default_rng(2).choice(BITS, (3, 5, 4))
        for ask in (sizes.bound, sizes.predicted):
            all_of_them = ask(numel, kept, bits)
            assert all_of_them.shape == (3, 5)
            assert all_of_them[1, 3] == ask(numel, kept[1, 3], bits[1, 3])

    def test_places_alone_are_the_entropy_by_hand(self):
        # 250 of 1000: 811.278 bits of places
        assert place_bits(np.array(1000), np.array(0.25)) == pytest.approx(811.278, rel=3e-4)
        # where nearly all is kept, log2(1 + 2^3) bits each, its value among them
        assert full_bits(np.array(3.0)) == pytest.approx(np.log2(9), rel=3e-4)
        assert coded_bytes(np.array([0.0, 80.0])).tolist() == [8, 18]

    def test_a_prediction_is_never_above_the_bound(self, sizes):
        numel = np.array([layer.numel for layer in sizes.layers])
        kept = (numel * np.array([[1.0], [0.3], [0.02]])).astype(int)
        for bits in BITS:
            assert (sizes.predicted(numel, kept, np.array(bits)) <= sizes.bound(numel, kept, np.array(bits))).all()

    @pytest.mark.parametrize("bits", [9, 0, 33, -8])
    def test_bits_that_no_policy_has(self, sizes, bits):
        numel = np.array([layer.numel for layer in sizes.layers])
        for ask in (sizes.bound, sizes.predicted):
            with pytest.raises(ValueError, match=f"bits must be one of 32, 16, 8, 7, 6, 5, 4, 3, 2, got {bits}"):
                ask(numel, numel, np.array([4, bits, 4, 4]))


class TestPolicies:
    """What policies take before training, against files that are written."""

    GRANULARITIES = ("fine-grained", "channel", "kernel", "*:4")

    @settings.get_profile("few")
    @given(
        shares=st.lists(st.sampled_from([0.0, 0.3, 0.6, 0.97]), min_size=4, max_size=4).filter(lambda each: each[1]),
        words=st.lists(st.sampled_from(GRANULARITIES), min_size=4, max_size=4),
        bits=st.lists(st.sampled_from(BITS), min_size=4, max_size=4).filter(lambda bits: min(bits) < 32),
        how=st.sampled_from(["alike", "largest", "octaves"]),
        seed=st.integers(0, 999),
    )
    def test_no_file_is_larger_than_the_bound_of_its_policy(self, shares, words, bits, how, seed):
        generator, model = torch.Generator().manual_seed(seed), network()
        graph = trace_channels(model, EXAMPLE)
        for own, weight in zip(bits, prunable_weights(model).values(), strict=True):
            fill_(weight, own, how, generator)
        names = graph.network.layer_names
        sparsity, granularity, widths = (dict(zip(names, each, strict=True)) for each in (shares, words, bits))
        policy = PruningPolicy(sparsity, granularity)
        pruned = prune(model, policy, graph=graph)
        policy = replace(policy, bits=widths)
        rounded = to_stored_form_(pruned, policy.bits)
        state, planned = pruned.state_dict(), footprint(graph.network, policy).encoded_bytes
        written = len(encode(state, rounded))
        assert written <= coded_bound(graph.network, policy)
        fitted = encode_within(state, planned, rounded, set(prunable_weights(pruned)))
        assert len(fitted.content) <= planned
        assert (fitted.given_up > 0) == (written > planned)

    def test_folded_norms_are_counted_as_two_numbers_a_channel(self):
        model, half = network(), PruningPolicy({"0.weight": 0.5, "3.weight": 0.5}, "channel", bits=8)
        graph = trace_channels(model, EXAMPLE)
        pruned = prune(model, replace(half, bits=32), graph=graph)
        written, bound = len(encode(pruned.state_dict(), to_stored_form_(pruned, 8))), coded_bound(graph.network, half)
        assert 0.95 * bound < written <= bound
        assert coded_bound(replace(graph.network, folded_norms=()), half) > bound + 6 * 4

    def test_no_file_is_larger_where_one_norm_has_many_names(self):
        model, example = normed([nn.BatchNorm2d(3)] * 24), torch.randn(2, 3, 4, 4)
        bound = coded_bound(trace_channels(model, example).network, PruningPolicy({}, bits=2))
        content = encode(model.state_dict(), to_stored_form_(model, 2))
        assert len(content) <= bound
        found = decode(content, model.state_dict()).state
        assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())

    def test_norms_without_a_counter_are_planned_as_they_are_written(self):
        def sizes_of(model: nn.Module) -> np.ndarray:
            network = trace_channels(model, torch.randn(2, 3, 4, 4)).network
            planned = footprint(network, PruningPolicy({}, bits=2)).encoded_bytes
            return np.array([planned, len(encode(model.state_dict(), to_stored_form_(model, 2)))])

        model, bare = (normed([nn.BatchNorm2d(3) for _ in range(24)]) for _ in range(2))
        for part in bare[1::2]:
            part.num_batches_tracked = None
        planned, written = sizes_of(bare) - sizes_of(model)
        assert planned == pytest.approx(written, abs=24)
        assert written > 24 * 5


def normed(norms: list[nn.BatchNorm2d]) -> nn.Sequential:
    torch.manual_seed(5)
    for norm in norms:
        norm.weight.data, norm.bias.data = torch.randn(2, 3) * torch.exp(2 * torch.randn(2, 3))
        norm.num_batches_tracked.fill_(100)
    return nn.Sequential(*(part for norm in norms for part in (nn.Conv2d(3, 3, 1, bias=False), norm))).eval()


class TestLimit:
    @pytest.mark.parametrize(
        ("share", "bits", "seed"), [(0.1, 3, 0), (0.55, 8, 1), (0.93, 4, 2), (0.4, 32, 3), (1.05, 8, 4)]
    )
    def test_it_fits_and_one_value_fewer_would_not(self, share, bits, seed):
        model = nn.Sequential(nn.Conv2d(2, 9, 3), nn.BatchNorm2d(9), nn.ConvTranspose2d(9, 4, 2))
        generator = torch.Generator().manual_seed(seed)
        for weight in prunable_weights(model).values():
            weight.data = torch.randn(weight.shape, generator=generator)
        rounded = to_stored_form_(model, bits)
        state, names = model.state_dict(), set(prunable_weights(model))
        whole, least = len(encode(state, rounded)), len(encode(*_without_all(state, rounded, names)))
        limit = least + int(share * (whole - least))
        found = encode_within(state, limit, rounded, names)
        assert len(found.content) <= limit
        assert (found.given_up == 0) == (whole <= limit)
        back = decode(found.content, state)
        for name, tensor in back.state.items():
            assert torch.equal(tensor, found.state[name])
            lost = (state[name] != 0) & (tensor == 0)
            assert torch.equal(tensor[~lost], state[name][~lost])
        gone = torch.cat([state[n][(found.state[n] == 0) & (state[n] != 0)].abs() for n in sorted(names)])
        stay = torch.cat([found.state[n][found.state[n] != 0].abs() for n in sorted(names)])
        assert len(gone) == found.given_up
        if found.given_up:
            assert not len(stay) or gone.max() <= stay.min() * (1 + 1e-6)
            one_more = _back(state, rounded, found, names)
            assert len(encode(*one_more)) > limit

    def test_every_name_of_a_shared_weight_loses_the_same_values(self):
        torch.manual_seed(3)
        model = nn.ModuleDict({"first": nn.Linear(30, 20), "second": nn.Linear(30, 20)})
        model["second"].weight = model["first"].weight
        rounded, state = to_stored_form_(model, 4), model.state_dict()
        assert list(rounded) == ["first.weight"]
        found = encode_within(state, len(encode(state, rounded)) - 60, rounded)
        back = decode(found.content, state).state
        assert found.given_up > 20
        assert torch.equal(found.state["second.weight"], found.state["first.weight"])
        assert torch.equal(back["second.weight"], back["first.weight"])

    def test_a_limit_below_everything_else_is_refused(self):
        model = network()
        rounded = to_stored_form_(model, 4)
        with pytest.raises(
            ValueError, match=r"a limit of 20 bytes is below what the file takes without any weight, \d+"
        ):
            encode_within(model.state_dict(), 20, rounded)


def _without_all(state, rounded, names):
    gone = {name: Rounded(one.integers * 0, one.scales * 0, one.bits, one.dim) for name, one in rounded.items()}
    return state | {name: state[name] * 0 for name in names}, gone


def _back(state, rounded, found, names):
    """The fitted state with the largest value that it gave up put back, the last of equal ones."""
    order = [name for name in state if name in names]
    gone = {name: (found.state[name] == 0) & (state[name] != 0) for name in order}
    size = {name: (state[name].double() ** 2 * gone[name]).flatten() for name in order}
    most = max(float(part.max()) for part in size.values())
    name = [name for name in order if float(size[name].max()) == most][-1]
    place = int((size[name] == most).nonzero()[-1])
    own, own_rounded = dict(found.state), dict(found.rounded)
    own[name] = own[name].clone()
    own[name].view(-1)[place] = state[name].flatten()[place]
    if name in rounded:
        integers = found.rounded[name].integers.clone()
        integers.view(-1)[place] = rounded[name].integers.flatten()[place]
        alive = (integers != 0).movedim(rounded[name].dim, 0).flatten(1).any(dim=1)
        scales = torch.where(alive, rounded[name].scales, 0)
        own_rounded[name] = Rounded(integers, scales, rounded[name].bits, rounded[name].dim)
    return own, own_rounded
