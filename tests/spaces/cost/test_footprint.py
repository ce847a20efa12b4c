"""Sizes before training against files and models after pruning; the labs' numbers; encodings by hand."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import safetensors.torch
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from torch import nn

from pruning import encode_model, measure_cost, prune, trace_channels, write_sparse
from pruning.sparse_file import encode_state
from search.workloads.vgg import VGG9
from spaces import ChannelGroup, Layer, Network, NothingToRemove, PruningPolicy, StoredTensor, footprint
from spaces.cost.container import Entry, container_bytes, container_header, encoded_entry, encoding_of
from spaces.cost.effect import achieved, kept_units, masked_count
from spaces.cost.footprint import dense_footprint, relative_cost
from spaces.cost.removal import shapes_after

MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def vgg9():
    torch.manual_seed(0)
    return VGG9(width=1, inputs=3).eval()


@pytest.fixture(scope="module")
def vgg9_network(vgg9):
    return trace_channels(vgg9, torch.randn(1, 3, 32, 32)).network


def by_number(first: float, last: float, classifier: float) -> dict[str, float]:
    """`first` for conv0-3, `last` for conv4-7."""
    convolutions = {f"backbone.conv{i}.weight": first if i < 4 else last for i in range(8)}
    return convolutions | {"classifier.weight": classifier}


class TestLabNumbers:
    """DESIGN, section 6."""

    def test_dense(self, vgg9, vgg9_network):
        dense = dense_footprint(vgg9_network)
        assert dense.parameters == dense.nonzero == 9_228_362 == sum(p.numel() for p in vgg9.parameters())
        assert round(dense.parameters * 4 / MEBIBYTE, 2) == 35.20
        assert dense.macs == dense.macs_nonzero
        assert round(dense.macs / 1e6) == 606

    def test_layerwise(self, vgg9_network):
        part = footprint(vgg9_network, PruningPolicy(by_number(0.5, 0.8, 0.9)))
        share = relative_cost(part, dense_footprint(vgg9_network)).nonzero
        assert round(part.nonzero * 4 / MEBIBYTE, 2) == 8.15
        assert round(100 * share, 2) == 23.16

    def test_uniform(self, vgg9_network):
        part = footprint(vgg9_network, PruningPolicy(by_number(0.75, 0.75, 0.75)))
        assert round(100 * relative_cost(part, dense_footprint(vgg9_network)).nonzero, 2) == 25.04

    @pytest.mark.parametrize("as_removal", [True, False])
    def test_channels(self, vgg9_network, as_removal):
        request = {f"backbone.conv{i}.weight": 0.3 for i in range(7)}
        policy = PruningPolicy({}, removal=request) if as_removal else PruningPolicy(request, "channel")
        part = footprint(vgg9_network, policy)
        widths = [64, 128, 256, 256, 512, 512, 512, 512]
        left = [3, *(w - int(0.3 * w + 0.5) for w in widths[:7]), 512]
        sides = [32, 32, 16, 16, 8, 8, 4, 4]
        weights = [9 * i * o for i, o in pairwise(left)]
        assert part.parameters == part.nonzero == 5_013_666 == sum(weights) + 2 * sum(left[1:]) + 512 * 10 + 10
        assert part.macs == sum(w * side**2 for w, side in zip(weights, sides, strict=True)) + 5120
        assert round(part.macs / 1e6) == 305

    @pytest.mark.parametrize(("classifier", "bound"), [(0.8, 0), (0.9, 4608 // 255)])
    def test_file_on_disk(self, vgg9, vgg9_network, tmp_path, classifier, bound):
        """Nine tenths zeros take gap codes, whose escapes are only bounded before training."""
        policy = PruningPolicy(by_number(0.5, 0.8, classifier))
        written = write_sparse(prune(vgg9, policy), tmp_path / "model.sparse.safetensors")
        assert written == (tmp_path / "model.sparse.safetensors").stat().st_size
        assert 0 <= footprint(vgg9_network, policy).encoded_bytes - written <= bound


def random_network(draw) -> nn.Module:
    widths = draw(st.lists(st.integers(2, 12), min_size=2, max_size=3))
    parts, channels = [], 2
    for width in widths:
        parts.append(
            nn.Conv2d(channels, width, draw(st.sampled_from([1, 3])), padding="same", bias=draw(st.booleans()))
        )
        if draw(st.booleans()):
            parts.append(nn.BatchNorm2d(width))
        parts.append(nn.ReLU())
        channels = width
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(channels * 16, 40), nn.ReLU(), nn.Linear(40, 3)).eval()


def random_policy(draw, names) -> PruningPolicy:
    share = st.one_of(st.just(0.0), st.floats(0, 0.999))
    sparsity = {name: draw(share) for name in names}
    granularity = {name: draw(st.sampled_from(["fine-grained", "channel"])) for name in names}
    free = [name for name in names if granularity[name] == "fine-grained"]
    return PruningPolicy(sparsity, granularity, {name: draw(share) for name in free if draw(st.booleans())})


class TestExactness:
    @settings.get_profile("few")
    @given(st.data())
    def test_equals_the_pruned_model(self, data):
        torch.manual_seed(0)
        model = random_network(data.draw)
        example = torch.randn(2, 2, 4, 4)
        graph = trace_channels(model, example)
        policy = random_policy(data.draw, graph.network.layer_names)
        expected = footprint(graph.network, policy)
        try:
            pruned = prune(model, policy, graph=graph)
        except NothingToRemove:
            reject()  # other tests' subject
        cost = measure_cost(pruned, example)
        assert expected.parameters == sum(p.numel() for p in pruned.parameters())
        zeros = sum(int((m.weight == 0).sum()) for m in pruned.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
        assert expected.nonzero == expected.parameters - zeros
        assert (cost.parameters, cost.nonzero) == (expected.parameters, expected.nonzero)
        assert (cost.macs, cost.macs_nonzero) == (expected.macs, expected.macs_nonzero)
        content = encode_model(pruned)
        assert len(content) == cost.encoded_bytes <= expected.encoded_bytes
        if b"gap8" not in content:
            assert len(content) == expected.encoded_bytes
        for name, share in achieved(graph.network, policy).items():
            weight = pruned.get_parameter(name)
            dense = model.get_parameter(name)
            if policy.granularity_of(name) == "channel":
                assert share == pytest.approx(1 - weight.shape[0] / dense.shape[0], abs=1e-12)
            else:
                assert share == int((weight == 0).sum()) / weight.numel()

    def test_residual_group_takes_its_smallest_request(self, residual, residual_graph, images):
        network = residual_graph.network
        policy = PruningPolicy({"first.weight": 0.5, "last.weight": 0.25, "inner.weight": 0.75}, "channel")
        expected = footprint(network, policy)
        assert achieved(network, policy) == pytest.approx(
            {"first.weight": 0.25, "last.weight": 0.25, "inner.weight": 0.75, "classifier.weight": 0.0}
        )
        cost = measure_cost(prune(residual, policy, graph=residual_graph), images)
        assert cost == expected
        alone = PruningPolicy({"first.weight": 0.5}, "channel")
        assert footprint(network, alone) == dense_footprint(network)

    def test_nonzero_counts_only_zeros_masks_can_make(self, vgg_graph, vgg, images):
        """Buffers are in the file but in no nonzero size, norms and biases count whole."""
        network = vgg_graph.network
        buffers = sum(t.numel for t in network.tensors if not t.parameter)
        assert buffers == sum(b.numel() for b in vgg.buffers()) > 0
        dense = dense_footprint(network)
        assert dense.parameters == sum(t.numel for t in network.tensors) - buffers
        assert dense.encoded_bytes > 4 * (dense.parameters + buffers)

    def test_unknown_layers(self, vgg_graph):
        with pytest.raises(ValueError, match=r"unknown layer 'backbone.conv0.wieght': did you mean 'backbone.conv0.w"):
            footprint(vgg_graph.network, PruningPolicy({"backbone.conv0.wieght": 0.5}))
        with pytest.raises(ValueError, match=r"unknown layer 'backbone\.bn0\.weight'"):
            footprint(vgg_graph.network, PruningPolicy({}, removal={"backbone.bn0.weight": 0.5}))


class TestKeptUnits:
    NETWORK = Network(
        tensors=(
            StoredTensor("a", (10, 3), owners=(((0, 10),), ())),
            StoredTensor("b", (10, 30), owners=(((0, 10),), ((0, 30),))),
            StoredTensor("joined", (4, 26), owners=((), ((0, 10), (1, 16)))),
        ),
        layers=(Layer("a", "linear", (10, 3), 1, channel_group=0), Layer("b", "linear", (10, 30), 1, channel_group=0)),
        groups=(ChannelGroup(("a", "b"), 10), ChannelGroup(("c",), 8, "its outputs are the network's outputs")),
    )

    def test_smallest_request_holds(self):
        assert kept_units(self.NETWORK, {"a": 0.25, "b": 0.75}) == {0: 7}
        assert kept_units(self.NETWORK, {"a": 0.75}) == {}
        assert kept_units(self.NETWORK, {"a": 0.04, "b": 0.04}) == {}
        assert kept_units(self.NETWORK, {"c": 0.5}) == {}

    def test_shapes(self):
        assert shapes_after(self.NETWORK, {0: 7}) == {"a": (7, 3), "b": (7, 21), "joined": (4, 23)}
        assert shapes_after(self.NETWORK, {0: 7, 1: 1})["joined"] == (4, 26 - 3 - 14)


class TestEncodings:
    @pytest.mark.parametrize("item", [1, 2, 4, 8])
    def test_smallest_of_three(self, item):
        n = 4096
        for nonzero in [0, 1, 15, 16, 17, 400, 511, 512, 513, 2000, n // 2, n - n // 8, n - 1, n]:
            name, size = encoding_of(n, nonzero, item)
            by_hand = {
                "dense": n * item,
                "bitmask": 512 + nonzero * item,
                "gap8": nonzero * (item + 1) + (n - nonzero) // 255,
            }
            assert size == min(by_hand.values()) == by_hand[name]

    def test_break_even(self):
        """A bit a weight pays from 1/32 zeros on; a byte a value only where fewer than an eighth are left."""
        n = 32 * 100
        assert encoding_of(n, n - 99, 4)[0] == "dense"
        assert encoding_of(n, n - 100, 4) == ("dense", 4 * n)  # a tie
        assert encoding_of(n, n - 101, 4)[0] == "bitmask"
        assert encoding_of(n, 388, 4)[0] == "gap8"  # 388 codes + 11 escapes against 400 bytes of mask
        assert encoding_of(n, 389, 4)[0] == "bitmask"  # a tie

    @pytest.mark.parametrize(
        ("granularity", "share", "note", "payload"),
        [
            ("vector", 0.25, "vec F32 8,16,3,3 864", 864 * 4 + 384 // 8 + 16),
            ("kernel", 0.75, "ker F32 8,16,3,3 288", 288 * 4 + 128 // 8 + 16),
            ("2:4", 0.5, "bitmask F32 8,16,3,3 576", 576 * 4 + 1152 // 8),  # no larger than its own
            ("1:4", 0.75, "1:4 F32 8,16,3,3 288", 288 * 4 + 288 * 2 // 8 + 16),
            ("*:4", 0.25, "bitmask F32 8,16,3,3 864", 864 * 4 + 1152 // 8),
            ("*:8", 0.9, "1:8 F32 8,16,3,3 144", 144 * 4 + 144 * 3 // 8 + 16),
        ],
    )
    def test_units_have_an_index_of_their_own(self, granularity, share, note, payload):
        tensor = StoredTensor("w", (8, 16, 3, 3))
        kept = 1152 - masked_count(granularity, tensor.shape, share)
        assert encoded_entry(tensor, tensor.shape, kept, granularity) == Entry("w", "U8", (payload,), note)


class TestContainer:
    @pytest.mark.parametrize("names", [("w", "b"), ("back\\slash", 'quo"te'), ("a.b.weight", "a.b.bias")])
    def test_dense_file_is_byte_for_byte_safetensors_own(self, names):
        state = {
            names[0]: torch.randn(3, 5),
            names[1]: torch.randn(7).bfloat16(),
            "count": torch.tensor(3),
            "flags": torch.tensor([True, False, True]),
            "wide": torch.randn(2, 2, dtype=torch.float64),
        }
        assert encode_state(state) == safetensors.torch.save(state)

    def test_header_by_hand(self):
        header, order = container_header(
            [Entry("b", "U8", (9,), "bitmask F32 4,4 1"), Entry("z", "F32", (2, 3))], {"tied": "z"}
        )
        assert [entry.name for entry in order] == ["z", "b"]
        length = int.from_bytes(header[:8], "little")
        assert length == len(header) - 8
        assert length % 8 == 0
        assert json.loads(header[8:]) == {
            "__metadata__": {"b": "bitmask F32 4,4 1", "tied": "same z"},
            "z": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
            "b": {"dtype": "U8", "shape": [9], "data_offsets": [24, 33]},
        }
        assert (
            container_bytes([Entry("z", "F32", (2, 3))]) == len(container_header([Entry("z", "F32", (2, 3))])[0]) + 24
        )

    def test_tied_tensors_are_stored_once(self):
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner, self.outer = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
                self.outer.weight = self.inner.weight

            def forward(self, x):
                return self.outer(self.inner(x).relu())

        model = Tied()
        network = trace_channels(model, torch.randn(2, 16)).network
        assert dict(network.aliases) == {"outer.weight": "inner.weight"}
        assert [t.name for t in network.tensors] == ["inner.weight"]
        policy = PruningPolicy({"inner.weight": 0.25})
        content = encode_model(prune(model, policy))
        assert len(content) == footprint(network, policy).encoded_bytes < 1.5 * 1024
        assert footprint(network, policy).nonzero == 192
