"""Transposed convolutions, whose weights are (inputs, outputs / groups, ...): masks, removal, counts."""

from __future__ import annotations

import copy
import json
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pruning.channel_selection import plan_removal
from pruning.channels.removal import removal_masks, shrink
from pruning.channels.structure import apply_structure
from pruning.channels.tracing import trace_channels
from pruning.cost import measure_cost
from pruning.file.versions import read_sparse, write_sparse
from pruning.importance.scores import unit_importance
from pruning.latency import measure_latency_table
from pruning.mask_cache import MaskCache
from pruning.masks import make_mask
from pruning.modules import prunable_weights
from pruning.policy_masks import policy_masks
from pruning.prune import prune
from pruning.sparse_file import encode_model, encode_state
from spaces.allocation.budget import Target
from spaces.cost.effect import NothingToRemove, unpruned_layers
from spaces.cost.footprint import dense_footprint, footprint, relative_cost
from spaces.granularity import UNIT_SLACK, unpruned_reason
from spaces.policy import PruningPolicy

SHARE = 0.25


def decoder() -> nn.Sequential:
    """Dense, then depthwise; the last one's outputs are the network's."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.ConvTranspose2d(8, 12, 3, stride=2, padding=1, output_padding=1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.ConvTranspose2d(12, 12, 2, stride=2, groups=12, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.ConvTranspose2d(12, 5, 2),
    )  # fmt: skip


def grouped() -> nn.Sequential:
    parts = nn.Conv2d(3, 12, 1), nn.ReLU(), nn.ConvTranspose2d(12, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 4, 1)
    return nn.Sequential(*parts)


def signal() -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 4, 1))


def volume() -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose3d(3, 8, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 27, 4))


NETWORKS = {decoder: (2, 3, 5, 6), grouped: (2, 3, 5, 5), signal: (2, 3, 7), volume: (2, 3, 2, 2, 2)}


def built(network) -> tuple[nn.Sequential, torch.Tensor]:
    torch.manual_seed(0)
    model = network()
    for module in model:
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval(), torch.randn(NETWORKS[network])


def silenced(model: nn.Sequential, place: int, kept: tuple[int, ...]) -> nn.Sequential:
    """A copy whose module at this place, and the norm after it, give 0 in every channel that does not stay.

    What is kept is read as channels, or for grouped transposed convolutions as local indices.
    """
    model = copy.deepcopy(model)
    module, after = model[place], model[place + 1]
    for channel in range(module.out_channels):
        group, local = divmod(channel, module.out_channels // module.groups)
        inputs = module.in_channels // module.groups
        if (local if 1 < module.groups < module.out_channels else channel) in kept:
            continue
        if isinstance(module, (nn.Conv1d, nn.Conv2d)):
            module.weight.data[channel] = 0
        else:
            module.weight.data[group * inputs : (group + 1) * inputs, local] = 0
        if module.bias is not None:
            module.bias.data[channel] = 0
        if isinstance(after, nn.modules.batchnorm._BatchNorm):
            after.weight.data[channel] = after.bias.data[channel] = 0
    return model


@pytest.mark.parametrize(
    ("network", "removed"),
    [(decoder, {0: 2, 3: 3, 6: 3}), (grouped, {0: 2, 2: 1}), (signal, {0: 2}), (volume, {0: 2})],
)
def test_removal_equals_silenced_channels(network, removed):
    model, x = built(network)
    graph = trace_channels(model, x)
    assert graph.network.removable == tuple(f"{place}.weight" for place in removed)
    plan = plan_removal(model, dict.fromkeys(graph.network.removable, SHARE), x, "random", graph)
    masked, left = model, {}
    for place, count in removed.items():
        name, module = f"{place}.weight", model[place]
        units = graph.network.groups[graph.network.by_name[name].channel_group].units
        assert plan.removed[name] == pytest.approx(count / units)
        masked = silenced(masked, place, plan.kept[name])
        left[place] = module.out_channels * (units - count) // units
    small = shrink(model, plan)
    assert {place: small[place].out_channels for place in removed} == left
    fresh = torch.randn(NETWORKS[network])
    wanted, got = masked(fresh), copy.deepcopy(small)(fresh)
    assert wanted.shape == got.shape
    assert (wanted - got).abs().max() <= 1e-5 * wanted.abs().max()
    reloaded = apply_structure(network(), plan.structure)
    reloaded.load_state_dict(small.state_dict(), strict=True)
    assert str(reloaded) == str(small)
    assert torch.equal(reloaded.eval()(fresh), got)


def test_outputs_are_the_second_dimension_but_of_depthwise_ones():
    model, x = built(decoder)
    graph = trace_channels(model, x)
    layers = graph.network.by_name
    assert [layer.kind for layer in layers.values()] == ["conv2d", *["conv_transpose2d"] * 3]
    assert [layer.output_dim for layer in layers.values()] == [0, 1, 0, 1]
    assert layers["9.weight"].obstacle == "its outputs are the network's outputs"
    assert {frozenset(g.layers): g.units for g in graph.network.groups} == {
        frozenset({"0.weight"}): 8, frozenset({"3.weight", "6.weight"}): 12, frozenset({"9.weight"}): 5,
    }  # fmt: skip
    plan = plan_removal(model, {"3.weight": 0.25, "6.weight": 0.25}, x, graph=graph)
    small = shrink(model, plan)
    assert [tuple(small[place].weight.shape) for place in (0, 3, 6, 9)] == [
        (8, 3, 3, 3), (8, 9, 3, 3), (9, 1, 2, 2), (9, 5, 2, 2),
    ]  # fmt: skip
    assert (small[6].groups, small[3].out_channels, small[9].in_channels) == (9, 9, 9)
    assert plan.kept.keys() == {"3.weight", "4.weight", "6.weight", "7.weight"}
    masks = removal_masks(plan)
    gone = sorted(set(range(12)) - set(plan.kept["3.weight"]))
    assert not masks["3.weight"][:, gone].any()
    assert int(masks["3.weight"].sum()) == 9 * 8 * 9
    assert "9.weight" not in masks


def test_scores_are_norms_of_output_channels():
    model, x = built(signal)
    with torch.no_grad():
        for channel, scale in enumerate([5, 1, 7, 2, 6, 3, 8, 4]):
            weight = model[0].weight[:, channel]
            model[0].weight[:, channel] = weight / weight.norm() * scale
    assert plan_removal(model, {"0.weight": 0.375}, x).kept["0.weight"] == (0, 2, 4, 6, 7)
    masks, _ = policy_masks(model, PruningPolicy({"0.weight": 0.375}, granularity="channel", criterion="magnitude-l2"))
    assert masks["0.weight"].all(dim=2).all(dim=0).nonzero().flatten().tolist() == [0, 2, 4, 6, 7]
    assert int(masks["0.weight"].sum()) == 5 * 3 * 3


@pytest.mark.parametrize("network", NETWORKS)
def test_macs_are_those_pytorch_counts(network):
    model, x = built(network)
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert measure_cost(model, x).macs == counter.get_total_flops() // 2 // len(x)


def test_policies_mask_remove_and_cost_what_was_foretold(tmp_path):
    model, x = built(decoder)
    graph = trace_channels(model, x)
    names = list(prunable_weights(model))
    assert names == ["0.weight", "3.weight", "6.weight", "9.weight"]
    policy = PruningPolicy(
        dict.fromkeys(names, 0.6), granularity="fine-grained", removal={"3.weight": 0.25, "6.weight": 0.25}
    )
    small = prune(model, policy, graph=graph)
    cost, foretold = measure_cost(small, x), footprint(graph.network, policy)
    assert (cost.parameters, cost.nonzero, cost.macs) == (foretold.parameters, foretold.nonzero, foretold.macs)
    assert cost.encoded_bytes <= foretold.encoded_bytes
    assert 1 - (small[3].weight != 0).float().mean() == pytest.approx(0.6, abs=0.002)
    write_sparse(small, tmp_path / "small")
    assert len(encode_model(small)) == cost.encoded_bytes
    read = read_sparse(tmp_path / "small")
    assert all(torch.equal(read[name], tensor) for name, tensor in small.state_dict().items())


@pytest.mark.parametrize("network", [decoder, grouped])
def test_latency_is_measured_in_every_size(network):
    model, x = built(network)
    graph = trace_channels(model, x)
    table = measure_latency_table(model, graph, x, levels=(0.5,), repeats=1)
    table.require(graph.network)
    assert table.layers.keys() == set(graph.network.layer_names)


def wide() -> nn.Sequential:
    """Transposed convolutions whose inputs and outputs patterns divide unlike: 16 and 6, and two groups of 8 and 10."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.ReLU(), nn.ConvTranspose2d(16, 6, 3, bias=False), nn.ReLU(),
        nn.Conv2d(6, 16, 1), nn.ReLU(), nn.ConvTranspose2d(16, 10, (2, 3), groups=2), nn.ReLU(), nn.Conv2d(10, 4, 1),
    )  # fmt: skip


def as_convolution(module: nn.ConvTranspose2d) -> torch.Tensor:
    """The weight of the plain convolution with padding that computes the same: (outputs, inputs / groups, ...)."""
    by_group = module.weight.detach().unflatten(0, (module.groups, -1))
    return by_group.transpose(1, 2).flatten(0, 1).flip(-1, -2)


@pytest.fixture(scope="module")
def upsampling():
    torch.manual_seed(0)
    model, x = wide().eval(), torch.randn(2, 3, 5, 5)
    return model, x, trace_channels(model, x)


class TestPatterns:
    """`N:M` runs along the inputs that an output sums up: the first dimension, each group for itself."""

    POLICY = PruningPolicy({"2.weight": 0.75, "6.weight": 0.875}, {"2.weight": "1:4", "6.weight": "*:8"})

    @pytest.mark.parametrize(("place", "granularity", "removed"), [(2, "1:4", 3), (6, "*:8", 6), (6, "2:4", 2)])
    def test_every_block_of_inputs_keeps_its_largest(self, upsampling, place, granularity, removed):
        module, m = upsampling[0][place], int(granularity[-1])
        name = f"{place}.weight"
        mask = policy_masks(upsampling[0], PruningPolicy({name: 0.75}, granularity))[0][name]
        inputs, outputs, *kernel = module.weight.shape
        for output, *position in product(range(outputs), *map(range, kernel)):
            for block in range(0, inputs, m):
                scores = {n: float(module.weight.detach()[n, output, *position].abs()) for n in range(block, block + m)}
                gone = sorted(scores, key=lambda n: (scores[n], n))[:removed]
                assert [n for n in scores if not mask[n, output, *position]] == sorted(gone)

    def test_a_convolution_that_computes_the_same_has_the_same_zeros(self, upsampling):
        model, _, graph = upsampling
        pruned = prune(model, self.POLICY, graph=graph)
        for place in (2, 6):
            dense, module = as_convolution(model[place]), pruned[place]
            padding = [size - 1 for size in module.kernel_size]
            x = torch.randn(1, 16, 4, 4)
            same = nn.functional.conv2d(x, as_convolution(module), module.bias, padding=padding, groups=module.groups)
            assert torch.allclose(same, module(x), atol=1e-5)
            name = f"{place}.weight"
            mask = make_mask(dense, self.POLICY.sparsity[name], self.POLICY.granularity_of(name))
            assert torch.equal(as_convolution(module) != 0, mask)

    def test_the_file_holds_them_and_is_as_small_as_promised(self, upsampling, tmp_path):
        model, x, graph = upsampling
        pruned = prune(model, self.POLICY, graph=graph)
        written, planned = write_sparse(pruned, tmp_path / "file"), footprint(graph.network, self.POLICY)
        cost = measure_cost(pruned, x)
        assert (cost.nonzero, cost.encoded_bytes) == (planned.nonzero, written)
        assert planned.encoded_bytes - 2 * UNIT_SLACK - 8 <= written <= planned.encoded_bytes
        for name in self.POLICY.sparsity:  # runs of single weights would take more
            as_bits = footprint(graph.network, PruningPolicy({name: self.POLICY.sparsity[name]})).encoded_bytes
            alone = PruningPolicy({name: self.POLICY.sparsity[name]}, self.POLICY.granularity_of(name))
            assert footprint(graph.network, alone).encoded_bytes < as_bits
        content = (tmp_path / "file").read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        assert header["__metadata__"] == {"2.weight": "1/4 F32 16,6,3,3 216", "6.weight": "1/8 F32 16,5,2,3 60"}
        read = read_sparse(tmp_path / "file")
        assert all(torch.equal(read[name], tensor) for name, tensor in pruned.state_dict().items())

    def test_bytes_by_hand(self):
        """Eight inputs, outputs in the second dimension: blocks in the order (output, input)."""
        weight = torch.zeros(8 * 40, 2)
        weight[2, 0], weight[5, 0], weight[0, 1], weight[7, 1] = 1, 2, 3, 4
        weight[8::4] = 9
        content = encode_state({"w": weight[:, :, None]}, {"w"}, {"w"})
        header, data = content[: -640 - 40], content[-640 - 40 :]
        assert b'"w":"1/4 F32 320,2,1 160"' in header
        values = [[1.0, 2.0], [3.0, 4.0]]
        assert data[:640] == b"".join(np.array([*pair, *[9.0] * 78], "<f4").tobytes() for pair in values)
        assert data[640:] == bytes([0b0110, *[0] * 19, 0b1100, *[0] * 19])

    def test_files_with_patterns_along_the_outputs_are_read_and_written_as_before(self, tmp_path):
        torch.manual_seed(0)
        model = nn.Sequential(nn.ConvTranspose2d(6, 16, 3, bias=False))
        model[0].weight.data[~make_mask(model[0].weight, 0.75, "1:4")] = 0
        content = encode_state(model.state_dict(), {"0.weight"})
        assert b"1:4 F32 6,16,3,3 216" in content and encode_model(model) == content
        (tmp_path / "old").write_bytes(content)
        assert torch.equal(read_sparse(tmp_path / "old")["0.weight"], model[0].weight)

    @pytest.mark.parametrize(
        ("inputs", "outputs", "groups", "obstacle"),
        [
            (8, 6, 1, None),
            (6, 8, 1, "2:4 needs a multiple of 4 inputs, the weight has 6"),
            (8, 6, 2, None),
            (12, 8, 2, "2:4 needs a multiple of 4 inputs, the weight has 6 in each group"),
            (8, 8, 8, "2:4 needs a multiple of 4 inputs, the weight has 1"),
            (8, 32, 8, "2:4 needs a multiple of 4 inputs, the weight has 1 in each group"),
        ],
    )
    def test_layers_whose_inputs_are_not_divided_stay_whole(self, inputs, outputs, groups, obstacle):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, inputs, 1), nn.ConvTranspose2d(inputs, outputs, 3, groups=groups))
        graph = trace_channels(model, torch.randn(2, 3, 4, 4))
        layer = graph.network.by_name["1.weight"]
        assert unpruned_reason(layer, "2:4") == obstacle
        policy = PruningPolicy({"1.weight": 0.5}, "2:4")
        masks, _ = policy_masks(model, policy, graph=graph)
        ranked = MaskCache(model, graph).masks(policy)
        assert (masks.keys(), ranked.keys()) == (({"1.weight"},) * 2 if obstacle is None else (set(),) * 2)
        assert unpruned_layers(graph.network, policy) == ({} if obstacle is None else {"1.weight": obstacle})
        for traced in (None, graph):
            if obstacle:
                with pytest.raises(NothingToRemove, match=f"'1.weight' stays whole \\({obstacle}\\)"):
                    prune(model, policy, graph=traced)
            else:
                left = measure_cost(prune(model, policy, graph=traced), torch.ones(1, 3, 4, 4)).nonzero
                assert left == footprint(graph.network, policy).nonzero
        assert ("1.weight" in unit_importance(model, graph, "2:4")) is (obstacle is None)

    def test_they_hold_while_channels_go(self, upsampling):
        """A quarter of the inputs goes: 12 stay, then in each of two groups 6, which 4 does not divide."""
        model, x, graph = upsampling
        removal = {"0.weight": 0.25, "4.weight": 0.25}
        policy = PruningPolicy({"2.weight": 0.5, "6.weight": 0.5}, "2:4", removal)
        masks, ranked = policy_masks(model, policy, graph=graph)[0], MaskCache(model, graph).masks(policy)
        assert all(torch.equal(masks[name], ranked[name]) for name in masks)
        small = prune(model, policy, graph=graph)
        assert [tuple(small[place].weight.shape) for place in (2, 6)] == [(12, 6, 3, 3), (12, 5, 2, 3)]
        assert (small[2].weight.unflatten(0, (-1, 4)) != 0).sum(dim=1).flatten().tolist() == [2] * 3 * 6 * 9
        assert (small[6].weight != 0).all()
        planned = footprint(graph.network, policy)
        assert measure_cost(small, x).nonzero == planned.nonzero
        assert Target(graph.network, 0.5, "2:4").cost(policy.sparsity) == relative_cost(
            footprint(graph.network, PruningPolicy(policy.sparsity, "2:4")), dense_footprint(graph.network)
        )
