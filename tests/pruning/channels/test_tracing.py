"""Channel groups, removal plans and shrunk models. Oracles are written here, from the definitions."""

from __future__ import annotations

import copy
import gc
import json
import math
import re
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from networks import Branches, Net, Separable, norm_conv
from torch import nn
from torch.nn import functional as F

from pruning.channel_selection import plan_removal
from pruning.channels.graph import ChannelGraph, round_groups
from pruning.channels.plan import plan_units
from pruning.channels.removal import RemovalMismatch, mask_removed, removal_masks, shrink
from pruning.channels.structure import Structure, apply_structure
from pruning.channels.tracing import trace_channels
from pruning.cost import measure_cost
from pruning.prune import prune
from spaces import ChannelGroup, Layer, Network, PruningPolicy, StoredTensor, footprint, removed_count
from spaces.allocation.budget import Target
from spaces.cost.effect import NothingToRemove, as_removed, kept_units
from spaces.cost.removal import shapes_after

IMAGE = (3, 8, 8)


# Networks


class Vgg(nn.Module):
    """Two convolutions, then 2 x 2 positions of each channel flattened into a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv0, self.norm0 = nn.Conv2d(3, 10, 3, padding=1, bias=False), nn.BatchNorm2d(10)
        self.conv1, self.norm1 = nn.Conv2d(10, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.hidden, self.classifier = nn.Linear(48, 9), nn.Linear(9, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm0(self.conv0(x))), 2)
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(x))), 2)
        return self.classifier(F.relu(self.hidden(x.flatten(1))))


class Residual(nn.Module):
    """A plain block after a stem, then a block with a strided shortcut."""

    def __init__(self):
        super().__init__()
        self.stem = norm_conv(3, 8)
        self.a1, self.a2 = norm_conv(8, 6), norm_conv(6, 8)[:2]
        self.b1, self.b2 = norm_conv(8, 7, stride=2), norm_conv(7, 12)[:2]
        self.shortcut = norm_conv(8, 12, 1, stride=2)[:2]
        self.classifier = nn.Linear(12, 5)

    def forward(self, x):
        x = self.stem(x)
        x = F.relu(x + self.a2(self.a1(x)))
        x = F.relu(self.shortcut(x) + self.b2(self.b1(x)))
        return self.classifier(x.mean((2, 3)))


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.grouped = norm_conv(3, 12), norm_conv(12, 8, groups=2)
        self.classifier = nn.Linear(8, 5)

    def forward(self, x):
        return self.classifier(self.grouped(self.stem(x)).mean((2, 3)))


class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.squeeze, self.excite = norm_conv(3, 8), nn.Linear(8, 4), nn.Linear(4, 8)
        self.classifier = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        return self.classifier((x * gate[:, :, None, None]).mean((2, 3)))


class Gate(nn.Module):
    """Linear units over the two halves of one convolution, and PReLU."""

    def __init__(self):
        super().__init__()
        self.conv, self.act, self.classifier = nn.Conv2d(3, 12, 3), nn.PReLU(6, init=0.3), nn.Linear(6, 5)

    def forward(self, x):
        value, gate = self.conv(x).chunk(2, 1)
        return self.classifier(self.act(value * torch.sigmoid(gate)).mean((2, 3)))


class Repeated(nn.Module):
    """A sum couples channel i of `wide` with channel i % 4 of `narrow`."""

    def __init__(self):
        super().__init__()
        self.wide, self.narrow, self.classifier = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 4, 1), nn.Linear(8, 5)

    def forward(self, x):
        narrow = self.narrow(x)
        return self.classifier((torch.cat([narrow, narrow], 1) + self.wide(x)).mean((2, 3)))


class Signal(nn.Sequential):
    def __init__(self):
        parts = nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 6, 3), nn.Flatten(), nn.Linear(24, 5)
        super().__init__(*parts)


class Volume(nn.Sequential):
    def __init__(self):
        parts = nn.Conv3d(3, 8, 3), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 6, 1), nn.Flatten(), nn.Linear(48, 5)
        super().__init__(*parts)


NETWORKS = {
    Vgg: IMAGE, Residual: IMAGE, Separable: IMAGE, Branches: IMAGE, Grouped: IMAGE, SqueezeExcite: IMAGE,
    Gate: IMAGE, Repeated: IMAGE, Signal: (3, 8), Volume: (3, 4, 4, 4),
}  # fmt: skip


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give norms scales, shifts and statistics that a wrong removal cannot hide behind."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model.eval()


def built(network: type[nn.Module], seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(seed)
    return randomised(network(), seed), torch.randn(2, *NETWORKS[network])


def hand_masked(model: nn.Module, kept: dict[str, tuple[int, ...]]) -> nn.Module:
    """Zero the rows that do not stay, in each weight named and in the bias beside it."""
    masked = copy.deepcopy(model)
    for name, rows in kept.items():
        module = masked.get_submodule(name.rpartition(".")[0])
        gone = sorted(set(range(len(module.weight))) - set(rows))
        module.weight.data[gone] = 0
        if getattr(module, "bias", None) is not None:
            module.bias.data[gone] = 0
    return masked


def assert_same_outputs(first: nn.Module, second: nn.Module, x: torch.Tensor) -> None:
    with torch.inference_mode():
        wanted, got = copy.deepcopy(first).eval()(x), copy.deepcopy(second).eval()(x)
    assert wanted.shape == got.shape
    assert wanted.abs().max() > 0
    assert (wanted - got).abs().max() <= 1e-4 * wanted.abs().max()


def groups_of(graph: ChannelGraph) -> dict[frozenset[str], int]:
    return {frozenset(g.layers): g.units for g in graph.network.groups if g.obstacle is None}


def obstacle(model: nn.Module, layer: str, x: torch.Tensor | None = None) -> str | None:
    graph = trace_channels(model, torch.randn(2, *IMAGE) if x is None else x)
    return graph.network.by_name[layer].obstacle


# Groups


@pytest.mark.parametrize(
    ("network", "groups"),
    [
        (Vgg, {("conv0.weight",): 10, ("conv1.weight",): 12, ("hidden.weight",): 9}),
        (
            Residual,
            {
                ("stem.0.weight", "a2.0.weight"): 8, ("a1.0.weight",): 6, ("b1.0.weight",): 7,
                ("b2.0.weight", "shortcut.0.weight"): 12,
            },
        ),
        (Separable, {("stem.0.weight", "depthwise.0.weight"): 8, ("pointwise.0.weight",): 12}),
        (Branches, {("left.0.weight",): 6, ("right.0.weight",): 9, ("join.0.weight",): 8}),
        (Grouped, {("stem.0.weight",): 6, ("grouped.0.weight",): 4}),
        (SqueezeExcite, {("stem.0.weight", "excite.weight"): 8, ("squeeze.weight",): 4}),
        (Gate, {("conv.weight",): 6}),
        (Repeated, {("wide.weight", "narrow.weight"): 4}),
        (Signal, {("0.weight",): 8, ("3.weight",): 6}),
        (Volume, {("0.weight",): 8, ("3.weight",): 6}),
    ],
)  # fmt: skip
def test_groups(network, groups):
    graph = trace_channels(*built(network))
    assert groups_of(graph) == {frozenset(names): units for names, units in groups.items()}
    assert graph.network.layers[-1].obstacle == "its outputs are the network's outputs"


def test_network_lists_every_tensor_and_layer():
    model, x = built(Vgg)
    network = trace_channels(model, x).network
    assert [t.name for t in network.tensors] == list(model.state_dict())
    assert [t.shape for t in network.tensors] == [tuple(t.shape) for t in model.state_dict().values()]
    assert {t.name for t in network.tensors if t.parameter} == {name for name, _ in model.named_parameters()}
    assert {t.dtype for t in network.tensors if "num_batches" in t.name} == {"I64"}
    assert [(layer.name, layer.kind, layer.positions) for layer in network.layers] == [
        ("conv0.weight", "conv2d", 64), ("conv1.weight", "conv2d", 16),
        ("hidden.weight", "linear", 1), ("classifier.weight", "linear", 1),
    ]  # fmt: skip
    hidden = next(t for t in network.tensors if t.name == "hidden.weight")
    assert hidden.owners == (((2, 9),), ((1, 48),))


def test_units_own_their_channel_everywhere():
    graph = trace_channels(*built(Vgg))
    unit = graph.network.by_name["conv1.weight"].channel_group
    owners = graph.owners["hidden.weight", 1]
    assert owners.shape == (48, 2)
    assert owners[:, 0].tolist() == [unit] * 48
    assert owners[:, 1].tolist() == [channel for channel in range(12) for _ in range(4)]
    assert ("conv0.weight", 1) not in graph.owners
    assert ("classifier.weight", 0) not in graph.owners


def test_shared_module_under_two_names_is_listed_once():
    model, x = built(Vgg)
    model.again = model.conv0
    graph = trace_channels(model, x)
    assert graph.network.aliases == {"again.weight": "conv0.weight"}
    assert "again.weight" not in graph.network.by_name
    plan = plan_removal(model, {"conv0.weight": 0.3}, x, graph=graph)
    small = shrink(model, plan)
    assert small.again is small.conv0
    assert small.conv0.out_channels == 7


# Obstacles


def pooled(run, **modules):
    return Net(lambda m, x: m.fc(run(m, x).mean((2, 3))), **modules)


@pytest.mark.parametrize(
    ("model", "layer", "reason"),
    [
        (Net(lambda m, x: m.fc(m.n(m.a(x.mean((2, 3))))), a=nn.Linear(3, 6),
             n=nn.LayerNorm(6, elementwise_affine=False), fc=nn.Linear(6, 2)),
         "a.weight", "LayerNorm 'n' normalises over the channels"),
        (pooled(lambda m, x: m.n(m.a(x)), a=nn.Conv2d(3, 6, 1), n=nn.GroupNorm(2, 6, affine=False), fc=nn.Linear(6, 2)),
         "a.weight", "GroupNorm 'n' normalises over the channels"),
        (pooled(lambda m, x: m.n(m.a(x)), a=nn.Conv2d(3, 6, 1), n=nn.BatchNorm2d(6, affine=False), fc=nn.Linear(6, 2)),
         "a.weight", "without scale and shift cannot make a removed channel zero in BatchNorm2d 'n'"),
        (pooled(lambda m, x: m.b(m.b(m.a(x))), a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 6, 1), fc=nn.Linear(6, 2)),
         "a.weight", "Conv2d 'b' runs 2 times"),
        (Net(lambda m, x: m.fc((m.n(x.mean(3))[0] + m.a(x.mean(3))).mean(1)), a=nn.Linear(8, 6),
                 n=nn.LSTM(8, 6, batch_first=True), fc=nn.Linear(6, 2)),
         "a.weight", "LSTM 'n' is not handled"),
        (pooled(lambda m, x: m.a(x), a=nn.Conv2d(3, 1, 1), fc=nn.Linear(1, 2)), "a.weight", "only go together"),
        (pooled(lambda m, x: m.b(m.a(x)), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 16, 1, groups=8), fc=nn.Linear(16, 2)),
         "a.weight", "only go together"),
        (pooled(lambda m, x: m.b(m.a(x)), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1, groups=4), fc=nn.Linear(4, 2)),
         "a.weight", "sums 2 inputs in each of 4 groups"),
        (pooled(lambda m, x: torch.cat([m.a(x), m.b(x)], 1) + m.c(x),
                a=nn.Conv2d(3, 2, 1), b=nn.Conv2d(3, 4, 1), c=nn.Conv2d(3, 6, 1), fc=nn.Linear(6, 2)),
         "c.weight", "unequal units"),
        (pooled(lambda m, x: m.a(x), a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(3, 6, 1), fc=nn.Linear(6, 2)),
         "b.weight", "no call of its module"),
        (pooled(lambda m, x: F.conv2d(x, m.a.weight.flip(3)) + 0 * m.a(x).mean(), a=nn.Conv2d(3, 6, 1),
                fc=nn.Linear(6, 2)),
         "a.weight", "its weight is not used as it is"),
        (pooled(lambda m, x: torch.sigmoid(m.a(x)), a=nn.Conv2d(3, 6, 1), fc=nn.Linear(6, 2)),
         "a.weight", "removal does not equal the mask: outputs differ"),
        (pooled(lambda m, x: m.a(x) + x, a=nn.Conv2d(3, 3, 1), fc=nn.Linear(3, 2)),
         "a.weight", "removal does not equal the mask: the new network does not run"),
        (pooled(lambda m, x: m.b(m.a(x).view(-1, 2, 4, 8, 8).transpose(1, 2).reshape(-1, 8, 8, 8)),
                a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1), fc=nn.Linear(4, 2)),
         "a.weight", "a reshape from (2, 8, 8, 8) to (2, 2, 4, 8, 8) mixes its channels"),
        (pooled(lambda m, x: m.b(m.aux(m.a(x).reshape(-1, 6, 8, 8))) if m.training else m.b(m.a(x)),
                a=nn.Conv2d(3, 6, 1), aux=nn.Conv2d(6, 6, 1), b=nn.Conv2d(6, 4, 1), fc=nn.Linear(4, 2)),
         "a.weight", "fails in training mode"),
    ],
)  # fmt: skip
def test_obstacle_names_what_is_in_the_way(model, layer, reason):
    found = obstacle(model, layer)
    assert found is not None
    assert reason in found
    assert "\n" not in found
    x = torch.randn(2, *IMAGE)
    with pytest.raises(NothingToRemove, match=rf"nothing to remove: '{re.escape(layer)}' stays whole \(") as raised:
        plan_removal(model, {layer: 0.5}, x)
    assert reason in str(raised.value) and "\n" not in str(raised.value)


def test_shared_weight_is_refused():
    model = pooled(lambda m, x: m.b(m.a(x)), a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 3, 1), fc=nn.Linear(3, 2))
    model.b.weight = model.a.weight
    graph = trace_channels(model, torch.randn(2, *IMAGE))
    assert graph.network.aliases == {"b.weight": "a.weight"}
    assert "shares a tensor" in graph.network.by_name["a.weight"].obstacle


def test_an_obstacle_spares_the_other_groups():
    run = lambda m, x: torch.sigmoid(m.b(F.relu(m.a(x))))  # noqa: E731
    model = pooled(run, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 6, 1), fc=nn.Linear(6, 2))
    assert trace_channels(model, torch.randn(2, *IMAGE)).network.removable == ("a.weight",)


def test_zero_weights_do_not_hide_a_wrong_removal():
    model = pooled(lambda m, x: torch.sigmoid(m.a(x)), a=nn.Conv2d(3, 6, 1), fc=nn.Linear(6, 2))
    nn.init.zeros_(model.fc.weight)
    assert "removal does not equal the mask" in obstacle(model, "a.weight")


def test_a_layer_scale_at_its_start_does_not_hide_a_wrong_removal():
    def run(m, x):
        return m.c(x) + m.b(torch.sigmoid(m.a(x))) * m.s

    parts = {"a": nn.Conv2d(3, 6, 1), "b": nn.Conv2d(6, 4, 1), "c": nn.Conv2d(3, 4, 1), "fc": nn.Linear(4, 2)}
    model = pooled(run, **parts, s=nn.Parameter(torch.full((4, 1, 1), 1e-6)))
    assert "removal does not equal the mask: outputs differ" in obstacle(model, "a.weight")


def test_depth_multiplier_leaves_by_local_index():
    run = lambda m, x: m.b(m.a(x))  # noqa: E731
    model = randomised(pooled(run, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 16, 3, groups=8), fc=nn.Linear(16, 2)))
    plan = plan_removal(model, {"b.weight": 0.5}, torch.randn(2, *IMAGE))
    assert plan.kept["b.weight"] in (tuple(range(0, 16, 2)), tuple(range(1, 16, 2)))
    small = shrink(model, plan)
    assert (small.b.in_channels, small.b.out_channels, small.b.groups) == (8, 8, 8)
    assert_same_outputs(hand_masked(model, plan.kept), small, torch.randn(2, *IMAGE))


class Auxiliary(nn.Module):
    """A head that only training uses, and a layer on the way that training adds."""

    def __init__(self):
        super().__init__()
        self.stem, self.extra, self.last = norm_conv(3, 8), norm_conv(8, 8), norm_conv(8, 6)
        self.aux, self.classifier = nn.Sequential(norm_conv(8, 7), nn.Flatten(), nn.Linear(448, 5)), nn.Linear(6, 5)

    def forward(self, x):
        x = self.stem(x)
        if not self.training:
            return self.classifier(self.last(x).mean((2, 3)))
        x = self.extra(x)
        return self.classifier(self.last(x).mean((2, 3))), self.aux(x)


def test_layers_of_training_alone_shrink_with_the_others():
    model, x = randomised(Auxiliary()), torch.randn(2, *IMAGE)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    graph = trace_channels(model, x)
    assert all(torch.equal(buffers[name], buffer) for name, buffer in model.named_buffers())
    assert groups_of(graph) == {
        frozenset({"stem.0.weight", "extra.0.weight"}): 8, frozenset({"aux.0.0.weight"}): 7,
        frozenset({"last.0.weight"}): 6,
    }  # fmt: skip
    assert graph.network.by_name["extra.0.weight"].positions == 0
    plan = plan_removal(model, dict.fromkeys(graph.network.removable, 0.3), x, graph=graph)
    small, masked = shrink(model, plan), hand_masked(model, plan.kept)
    assert_same_outputs(masked, small, x)
    for network in (masked, small):
        network.training = True  # the training path, with norms in eval mode
    for wanted, got in zip(masked(x), small(x), strict=True):
        assert (wanted - got).abs().max() <= 1e-4 * wanted.abs().max()


def test_reshapes_that_split_the_batch_keep_channels():
    """Images that are frames of videos."""

    def run(m, x):
        x = F.relu(m.a(x))
        x = x.reshape(-1, 2, *x.shape[1:]).mean(1)
        return m.fc(m.b(x).flatten(2).mean(2))

    model = randomised(Net(run, a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 7, 1), fc=nn.Linear(7, 2)))
    x = torch.randn(4, *IMAGE)
    graph = trace_channels(model, x)
    assert graph.network.removable == ("a.weight", "b.weight")
    plan = plan_removal(model, {"a.weight": 0.4, "b.weight": 0.3}, x, graph=graph)
    assert_same_outputs(hand_masked(model, plan.kept), shrink(model, plan), torch.randn(6, *IMAGE))


def test_a_model_that_does_not_run_is_a_value_error():
    with pytest.raises(ValueError, match="does not run on the example input"):
        trace_channels(Vgg(), torch.randn(2, 4, 8, 8))


# Removal equals the mask


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("criterion", ["magnitude-l2", "random"])
@pytest.mark.parametrize("share", [0.25, 0.6])
def test_shrunk_equals_masked(network, criterion, share):
    model, x = built(network)
    graph = trace_channels(model, x)
    plan = plan_removal(model, dict.fromkeys(graph.network.removable, share), x, criterion, graph, seed=3)
    assert set(plan.kept) >= set(graph.network.removable)
    fresh = torch.randn(3, *NETWORKS[network])
    small = shrink(model, plan)
    assert_same_outputs(hand_masked(model, plan.kept), small, fresh)
    assert_same_outputs(mask_removed(model, plan), small, fresh)


def test_every_group_alone_equals_its_mask():
    model, x = built(Residual)
    graph = trace_channels(model, x)
    for group in graph.network.groups[:-1]:
        plan = plan_removal(model, dict.fromkeys(group.layers, 0.4), x, graph=graph)
        assert_same_outputs(hand_masked(model, plan.kept), shrink(model, plan), torch.randn(3, *IMAGE))


def test_chain_slices_by_hand():
    model, x = built(Vgg)
    plan = plan_removal(model, {"conv0.weight": 0.3, "conv1.weight": 0.25}, x)
    small = shrink(model, plan)
    rows0, rows1 = list(plan.kept["conv0.weight"]), list(plan.kept["conv1.weight"])
    columns = [row * 4 + position for row in rows1 for position in range(4)]
    assert torch.equal(small.conv0.weight, model.conv0.weight[rows0])
    assert torch.equal(small.norm0.running_var, model.norm0.running_var[rows0])
    assert torch.equal(small.conv1.weight, model.conv1.weight[rows1][:, rows0])
    assert torch.equal(small.conv1.bias, model.conv1.bias[rows1])
    assert torch.equal(small.hidden.weight, model.hidden.weight[:, columns])
    assert torch.equal(small.classifier.weight, model.classifier.weight)
    assert (small.conv1.in_channels, small.conv1.out_channels, small.norm1.num_features) == (7, 9, 9)
    assert small.hidden.in_features == 36


def test_depthwise_updates_groups():
    model, x = built(Separable)
    plan = plan_removal(model, {"stem.0.weight": 0.5, "depthwise.0.weight": 0.5}, x)
    conv = shrink(model, plan).depthwise[0]
    assert (conv.in_channels, conv.out_channels, conv.groups, tuple(conv.weight.shape)) == (4, 4, 4, (4, 1, 3, 3))


def test_a_wrong_plan_is_refused():
    model, x = built(Vgg)
    plan = plan_removal(model, {"conv0.weight": 0.3}, x)
    kept = {name: dict(dimensions) for name, dimensions in plan.structure.kept.items()}
    right = kept["conv1.weight"][1]
    kept["conv1.weight"][1] = tuple(range(7)) if right != tuple(range(7)) else tuple(range(3, 10))
    wrong = type(plan)(plan.graph, Structure(kept))
    with pytest.raises(RemovalMismatch, match="outputs differ") as raised:
        shrink(model, wrong)
    assert "\n" not in str(raised.value)


def test_shrink_takes_a_trained_copy():
    model, x = built(Residual)
    graph = trace_channels(model, x)
    plan = plan_removal(model, dict.fromkeys(graph.network.removable, 0.3), x, graph=graph)
    trained = randomised(copy.deepcopy(model), seed=9)
    small = shrink(trained, plan)
    assert_same_outputs(hand_masked(trained, plan.kept), small, torch.randn(3, *IMAGE))
    with pytest.raises(ValueError, match="not the traced model"):
        shrink(Vgg(), plan)


def test_shrunk_model_trains():
    model, x = built(Residual)
    plan = plan_removal(model, {"a1.0.weight": 0.3, "b1.0.weight": 0.3}, x)
    small = shrink(model.train(), plan)
    assert small.training
    small(x).sum().backward()
    assert all(parameter.grad is not None and parameter.is_leaf for parameter in small.parameters())


@pytest.mark.parametrize("network", [Vgg, Separable])
def test_channels_last_and_double_stay(network):
    model, x = built(network)
    model = model.double().to(memory_format=torch.channels_last)
    x = x.double().to(memory_format=torch.channels_last)
    graph = trace_channels(model, x)
    plan = plan_removal(model, dict.fromkeys(graph.network.removable, 0.5), x, graph=graph)
    small = shrink(model, plan)
    dense = dict(model.named_parameters())
    for name, parameter in small.named_parameters():
        by_stride = [sorted(range(p.ndim), key=p.stride, reverse=True) for p in (dense[name], parameter)]
        assert parameter.dtype == torch.float64
        assert by_stride[0] == by_stride[1], name
        assert parameter.ndim != 4 or parameter.is_contiguous(memory_format=torch.channels_last), name
    assert_same_outputs(mask_removed(model, plan), small, x)


def test_bfloat16_is_compared_in_float():
    model, x = built(Vgg)
    model, x = model.bfloat16(), x.bfloat16()
    small = shrink(model, plan_removal(model, {"conv0.weight": 0.5}, x))
    assert small.conv0.weight.dtype == torch.bfloat16


# The caller's model


def test_caller_model_is_not_touched():
    model, x = built(Residual)
    model.train()
    model.a1.eval()
    for parameter in model.stem.parameters():
        parameter.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    grads = [parameter.requires_grad for parameter in model.parameters()]
    random_state = torch.get_rng_state()
    graph = trace_channels(model, x)
    plan = plan_removal(model, dict.fromkeys(graph.network.removable, 0.3), x, "random", graph)
    mask_removed(model, plan)
    small = shrink(model, plan)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == flags
    assert [module.training for module in small.modules()] == flags
    assert [parameter.requires_grad for parameter in model.parameters()] == grads
    assert [parameter.requires_grad for parameter in small.parameters()] == grads
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(module._forward_hooks for module in model.modules())


def test_frozen_model_and_no_grad_make_no_difference():
    model, x = built(Residual)
    free = trace_channels(model, x)
    model.requires_grad_(False)
    with torch.inference_mode():
        frozen = trace_channels(model, x.clone())
    assert frozen.network == free.network


def test_models_are_garbage_collected():
    class Watched(Grouped):
        """Every instance alive can be found, copies made on the way too."""

    model, x = randomised(Watched()), torch.randn(2, *IMAGE)
    graph = trace_channels(model, x)
    plan = plan_removal(model, {"stem.0.weight": 0.5}, x, graph=graph)
    small = shrink(model, plan)
    seen = [weakref.ref(model), weakref.ref(model.grouped[0]), weakref.ref(small)]
    del model, small
    gc.collect()
    assert [reference() for reference in seen] == [None, None, None]
    assert not [thing for thing in gc.get_objects() if type(thing) is Watched]
    assert plan.graph is graph


# Requests, counts and scores


def test_unequal_requests_take_the_smallest():
    model, x = built(Residual)
    plan = plan_removal(model, {"b2.0.weight": 0.5, "shortcut.0.weight": 0.25}, x)
    assert plan.removed["b2.0.weight"] == plan.removed["shortcut.0.weight"] == 0.25
    assert plan.kept["b2.0.weight"] == plan.kept["shortcut.0.weight"] == plan.kept["b2.1.weight"]
    assert plan.skipped == {}


def test_unnamed_member_asks_for_nothing():
    model, x = built(Residual)
    plan = plan_removal(model, {"b2.0.weight": 0.5, "a1.0.weight": 0.5}, x)
    assert "b2.0.weight" not in plan.kept
    assert plan.removed["b2.0.weight"] == 0.0
    assert "'shortcut.0.weight' asks for 0" in plan.skipped["b2.0.weight"]
    assert len(plan.kept["a1.0.weight"]) == 3


@pytest.mark.parametrize("share", [0.0, 0.04, 0.05, 0.25, 0.3, 0.45, 0.55, 0.75, 0.96, 0.999])
def test_counts_follow_the_rule(share):
    model, x = built(Vgg)
    request = {"conv0.weight": share, "conv1.weight": share}
    if 0 < share < 0.5 / 12:
        with pytest.raises(NothingToRemove, match=r"'conv0.weight': 0.04 of 10 units rounds to none; 'conv1.weight'"):
            plan_removal(model, request, x)
        return
    plan = plan_removal(model, request, x)
    for name, channels in (("conv0.weight", 10), ("conv1.weight", 12)):
        gone = min(math.floor(share * channels + 0.5), channels - 1)
        assert len(plan.kept.get(name, range(channels))) == channels - gone
        assert plan.removed[name] == pytest.approx(gone / channels)
        assert (name in plan.skipped) == (share > 0 and gone == 0)


def test_vgg9_of_the_labs_at_30_percent():
    widths, parts, inputs = (64, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0), [], 3
    for width in widths:
        parts += norm_conv(inputs, width) if width else [nn.MaxPool2d(2)]
        inputs = width or inputs
    model = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))
    x = torch.randn(1, 3, 32, 32)
    graph = trace_channels(model, x)
    plan = plan_removal(model, dict.fromkeys(graph.network.layer_names[:7], 0.3), x, graph=graph)
    assert sum(parameter.numel() for parameter in shrink(model, plan).parameters()) == 5_013_666


def test_ties_go_by_lowest_index():
    model, x = built(Vgg)
    nn.init.constant_(model.conv0.weight, 0.1)
    nn.init.constant_(model.conv1.weight, -0.3)
    for criterion in ("magnitude-l1", "magnitude-l2"):
        plan = plan_removal(model, {"conv0.weight": 0.3, "conv1.weight": 0.5}, x, criterion)
        assert plan.kept["conv0.weight"] == tuple(range(3, 10))
        assert plan.kept["conv1.weight"] == tuple(range(6, 12))


def test_ties_in_a_group_of_zero_weights():
    model, x = built(Residual)
    for name in ("b2.0.weight", "shortcut.0.weight"):
        nn.init.zeros_(model.get_parameter(name))
    plan = plan_removal(model, {"b2.0.weight": 0.5, "shortcut.0.weight": 0.5}, x)
    assert plan.kept["b2.0.weight"] == tuple(range(6, 12))


@pytest.mark.parametrize(("criterion", "order"), [("magnitude-l1", 1), ("magnitude-l2", 2)])
def test_chain_keeps_the_largest_norms(criterion, order):
    model, x = built(Vgg)
    plan = plan_removal(model, {"conv1.weight": 0.4}, x, criterion)
    norms = [np.linalg.norm(row.detach().numpy().ravel(), ord=order) for row in model.conv1.weight]
    assert plan.kept["conv1.weight"] == tuple(sorted(sorted(range(12), key=lambda i: norms[i])[5:]))


def test_group_score_is_the_mean_of_relative_norms():
    model, x = built(Residual)
    norms = {"b2.0.weight": np.arange(1.0, 13.0), "shortcut.0.weight": 100 * np.arange(12.0, 0.0, -1.0) ** 2}
    for name, wanted in norms.items():
        weight = model.get_parameter(name)
        scale = torch.from_numpy(wanted) / weight.detach().double().flatten(1).norm(dim=1)
        weight.data *= scale[:, None, None, None]

    def kept_by(score):
        return tuple(sorted(np.argsort(score)[6:].tolist()))

    plan = plan_removal(model, {"b2.0.weight": 0.5, "shortcut.0.weight": 0.5}, x)
    expected = kept_by(sum(n / n.mean() for n in norms.values()))
    assert plan.kept["b2.0.weight"] == expected
    assert expected != kept_by(sum(n**2 / (n**2).mean() for n in norms.values()))
    assert expected != kept_by(sum(norms.values()))


def test_grouped_units_sum_over_their_channels():
    model, x = built(Grouped)
    plan = plan_removal(model, {"grouped.0.weight": 0.5}, x)
    squares = model.grouped[0].weight.detach().double().flatten(1).square().sum(1).numpy()
    units = squares[:4] + squares[4:]
    best = sorted(np.argsort(units)[2:].tolist())
    assert plan.kept["grouped.0.weight"] == (*best, *(4 + unit for unit in best))


def test_random_depends_on_the_seed_alone():
    model, x = built(Vgg)
    graph = trace_channels(model, x)
    plans = [plan_removal(model, {"conv1.weight": 0.5}, x, "random", graph, seed=s).kept for s in (1, 1, 2, 3, 4)]
    assert plans[0] == plans[1]
    assert any(plan != plans[0] for plan in plans[2:])


def test_the_classifier_is_never_removed():
    model, x = built(Vgg)
    plan = plan_removal(model, {"classifier.weight": 0.5, "conv0.weight": 0.3}, x)
    assert plan.skipped == {"classifier.weight": "its outputs are the network's outputs"}
    assert shrink(model, plan)(x).shape == (2, 5)


def test_nothing_asked_for_is_fine():
    model, x = built(Vgg)
    for request in ({}, {"conv0.weight": 0.0}):
        plan = plan_removal(model, request, x)
        assert (plan.kept, plan.structure) == ({}, Structure({}))
        assert removal_masks(plan) == {}
        assert_same_outputs(model, shrink(model, plan), x)


def test_bad_requests_are_one_line_value_errors():
    model, x = built(Vgg)
    graph = trace_channels(model, x)
    for request, criterion, message in (
        ({"conv0.wieght": 0.3}, "magnitude-l2", "did you mean 'conv0.weight'"),
        ({"conv0.weight": 1.0}, "magnitude-l2", "conv0.weight.*nearest valid: 0.99"),
        ({"conv0.weight": float("nan")}, "magnitude-l2", "nan"),
        ({"conv0.weight": True}, "magnitude-l2", "must be a number"),
        ({}, "magnitude-l3", "unknown criterion 'magnitude-l3'"),
    ):
        with pytest.raises(ValueError, match=message) as raised:
            plan_removal(model, request, x, criterion, graph)
        assert "\n" not in str(raised.value)
    model.conv0.weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"conv0\.weight: .*NaN"):
        plan_removal(model, {"conv0.weight": 0.3}, x, graph=graph)


def test_plan_units():
    model, x = built(Grouped)
    graph = trace_channels(model, x)
    plan = plan_units(graph, {0: np.array([1])})
    assert plan.kept["stem.0.weight"] == tuple(i for i in range(12) if i % 6 != 1)
    assert plan.structure.kept["grouped.0.weight"] == {1: (0, 2, 3, 4, 5)}
    assert_same_outputs(hand_masked(model, plan.kept), shrink(model, plan), x)
    for units, message in (({9: [0]}, "no channel group 9"), ({0: [6]}, "units 0 to 5"), ({0: range(6)}, "keep one")):
        with pytest.raises(ValueError, match=message):
            plan_units(graph, units)
    with pytest.raises(ValueError, match="stays whole"):
        plan_units(graph, {2: [0]})


# Masks


def test_masks_cover_what_is_removed_and_no_buffer():
    model, x = built(Vgg)
    plan = plan_removal(model, {"conv0.weight": 0.3, "conv1.weight": 0.25}, x)
    masks = removal_masks(plan)
    assert set(masks) == {
        "conv0.weight", "norm0.weight", "norm0.bias", "conv1.weight", "conv1.bias", "norm1.weight", "norm1.bias",
    }  # fmt: skip
    masked = mask_removed(model, plan)
    for name, tensor in masked.state_dict().items():
        dense = model.state_dict()[name]
        rows = plan.kept[f"{name.partition('.')[0]}.weight"] if name in masks else range(len(dense.view(-1)))
        if name in masks:
            expected = torch.zeros_like(dense)
            expected[list(rows)] = dense[list(rows)]
            assert masks[name].dtype == torch.bool
            assert torch.equal(masks[name], expected != 0)
        else:
            expected = dense
        assert torch.equal(tensor, expected), name


# Structure


@pytest.mark.parametrize("network", NETWORKS)
def test_structure_reloads_into_a_fresh_model(network):
    model, x = built(network)
    graph = trace_channels(model, x)
    plan = plan_removal(model, dict.fromkeys(graph.network.removable, 0.4), x, graph=graph)
    small = shrink(model, plan)
    read = Structure.from_dict(json.loads(json.dumps(plan.structure.to_dict())))
    assert read == plan.structure
    fresh = apply_structure(network(), read)
    fresh.load_state_dict(small.state_dict(), strict=True)
    assert str(fresh) == str(small)
    assert_same_outputs(small, fresh, x)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "must be an object"),
        ({"version": 2, "kept": {}}, "version must be 1"),
        ({"version": True, "kept": {}}, "version must be 1"),
        ({"kept": {}}, "version must be 1"),
        ({"version": 1}, "no 'kept'"),
        ({"version": 1, "kept": {}, "keep": {}}, "did you mean 'kept'"),
        ({"version": 1, "kept": {"w": []}}, "at least one dimension"),
        ({"version": 1, "kept": {"w": {}}}, "at least one dimension"),
        ({"version": 1, "kept": {"w": {"x": [0]}}}, "dimension 'x'"),
        ({"version": 1, "kept": {"w": {"-1": [0]}}}, "dimension '-1'"),
        ({"version": 1, "kept": {"w": {"0": []}}}, "at least one kept index"),
        ({"version": 1, "kept": {"w": {"0": 3}}}, "at least one kept index"),
        ({"version": 1, "kept": {"w": {"0": [0.0]}}}, "index 0.0"),
        ({"version": 1, "kept": {"w": {"0": [True]}}}, "index True"),
        ({"version": 1, "kept": {"w": {"0": ["0"]}}}, "index '0'"),
        ({"version": 1, "kept": {"w": {"0": [-1, 0]}}}, "index -1"),
        ({"version": 1, "kept": {"w": {"0": [1, 0]}}}, "0 after 1"),
        ({"version": 1, "kept": {"w": {"0": [1, 1]}}}, "1 after 1"),
    ],
)
def test_bad_structures_are_one_line_value_errors(data, message):
    with pytest.raises(ValueError, match=message) as raised:
        Structure.from_dict(data)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"conv0.wieght": {0: (0,)}}, "did you mean 'conv0.weight'"),
        ({"conv0.weight": {4: (0,)}}, "no dimension 4"),
        ({"conv0.weight": {0: (0, 10)}}, "no index 10 in dimension 0: the last is 9"),
        ({"norm0.num_batches_tracked": {0: (0,)}}, "no dimension 0"),
    ],
)
def test_structure_of_another_model_is_refused(kept, message):
    with pytest.raises(ValueError, match=message):
        apply_structure(Vgg(), Structure(kept))


def test_structure_cannot_shrink_an_embedding_bag():
    with pytest.raises(ValueError, match="cannot shrink a EmbeddingBag"):
        apply_structure(nn.Sequential(nn.EmbeddingBag(4, 3)), Structure({"0.weight": {1: (0, 1)}}))


# The size formula


_TRACED = {
    network: (*built(network), trace_channels(*built(network))) for network in (Vgg, Residual, Grouped, Branches)
}


@settings.get_profile("few")
@given(st.data())
def test_shrunk_shapes_equal_the_formula(data):
    model, x, graph = _TRACED[data.draw(st.sampled_from(list(_TRACED)))]
    shares = st.floats(0, 1, exclude_max=True)
    request = data.draw(st.dictionaries(st.sampled_from(graph.network.layer_names), shares))
    try:
        plan = plan_removal(model, request, x, graph=graph)
    except NothingToRemove:
        reject()  # other tests' subject
    small = shrink(model, plan).state_dict()
    kept = {}
    for number, group in enumerate(graph.network.groups):
        share = min(request.get(name, 0.0) for name in group.layers)
        if group.obstacle is None and share > 0:
            kept[number] = group.units - min(math.floor(share * group.units + 0.5), group.units - 1)
    for name, shape in shapes_after(graph.network, kept).items():
        assert shape == tuple(small[name].shape), name


class TestRounding:
    @pytest.mark.parametrize("round_to", [1, 3, 4, 8])
    @pytest.mark.parametrize("units", range(1, 33, 3))
    def test_counts_by_hand(self, units, round_to):
        """Kept counts go up to the next multiple, and a narrow layer stays whole."""
        group = ChannelGroup(("a",), units, multiple=round_to)
        tensor = StoredTensor("a", (units, 2), owners=(((0, units),), ()))
        network = Network((tensor,), (Layer("a", "linear", (units, 2), 1, 1, 0),), (group,))
        for share in (0.1, 0.3, 0.5, 0.77, 0.95):
            kept = units - removed_count(share, units)
            rounded = min(math.ceil(kept / round_to) * round_to, units)
            assert kept_units(network, {"a": share}).get(0, units) == rounded
            assert Target(network, 1.0, "channel").cost({"a": share}).nonzero == pytest.approx(rounded / units)

    @pytest.mark.parametrize("round_to", [4, 8])
    def test_layers_keep_multiples_and_the_mask_equals_the_removal(self, vgg, vgg_graph, images, round_to):
        graph = round_groups(vgg_graph, round_to)
        policy = PruningPolicy(dict.fromkeys(vgg_graph.network.layer_names, 0.4), "channel")
        small = prune(vgg, policy, graph=graph)
        for name, weight in small.named_parameters():
            if name in graph.network.removable:
                assert weight.shape[0] % round_to == 0 or weight.shape[0] == vgg.get_parameter(name).shape[0]
        cost = measure_cost(small, images)
        planned = footprint(graph.network, policy)
        assert (cost.parameters, cost.macs) == (planned.parameters, planned.macs)
        asked = footprint(vgg_graph.network, policy)
        assert asked.parameters < planned.parameters

    def test_a_settled_policy_needs_no_rounding(self, vgg_graph):
        graph = round_groups(vgg_graph, 4)
        policy = PruningPolicy(dict.fromkeys(vgg_graph.network.layer_names, 0.4), "channel")
        asked = as_removed(graph.network, policy)
        for network in (graph.network, vgg_graph.network):
            assert kept_units(network, asked.channel_requests()) == kept_units(graph.network, policy.channel_requests())
        assert as_removed(vgg_graph.network, policy) is policy

    def test_narrow_groups_are_listed(self, vgg_graph):
        graph = round_groups(vgg_graph, 16)
        layer = graph.network.by_name["backbone.conv0.weight"]
        assert "no more than what counts are rounded to" in layer.obstacle
        assert "backbone.conv7.weight" in graph.network.removable

    @pytest.mark.parametrize("bad", [0, -8, 2.0, True, "8"])
    def test_refused(self, vgg_graph, bad):
        with pytest.raises(ValueError, match="round_to must be a whole number >= 1, got"):
            round_groups(vgg_graph, bad)
