"""Channels sorted by importance: the same function, and the first ones worth more than before."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Branches, Separable, norm_conv
from torch import nn
from torch.nn import functional as F

from pruning.channel_order import ChannelOrder, SortingMismatch, channel_order, first_channels, reorder_channels
from pruning.channel_selection import plan_removal
from pruning.channels.removal import shrink
from pruning.channels.tracing import trace_channels
from pruning.importance.weights import FROM_WEIGHTS

IMAGE = (3, 8, 8)


class Vgg(nn.Module):
    """The second convolution's channels are flattened, 4 positions each, into a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv0, self.conv1 = norm_conv(3, 10), norm_conv(10, 12)
        self.hidden, self.classifier = nn.Linear(48, 9), nn.Linear(9, 5)

    def forward(self, x):
        x = F.max_pool2d(self.conv1(F.max_pool2d(self.conv0(x), 2)), 2)
        return self.classifier(F.relu(self.hidden(x.flatten(1))))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.a1, self.a2 = norm_conv(3, 8), norm_conv(8, 6), norm_conv(6, 8)[:2]
        self.classifier = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        return self.classifier(F.relu(x + self.a2(self.a1(x))).mean((2, 3)))


class Grouped(nn.Module):
    """The stem's 12 channels enter two groups of 6, whose 4 outputs each leave as one."""

    def __init__(self):
        super().__init__()
        self.stem, self.grouped, self.classifier = norm_conv(3, 12), norm_conv(12, 8, groups=2), nn.Linear(8, 5)

    def forward(self, x):
        return self.classifier(self.grouped(self.stem(x)).mean((2, 3)))


class Decoder(nn.Sequential):
    def __init__(self):
        up = nn.ConvTranspose2d(8, 12, 2, stride=2, groups=2)
        super().__init__(*norm_conv(3, 8), up, nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 5, 1))


NETWORKS = (Vgg, Residual, Branches, Separable, Grouped, Decoder)


def built(network: type[nn.Module]) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = network()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval(), torch.randn(2, *IMAGE)


_TRACED = {network: (*built(network), trace_channels(*built(network))) for network in NETWORKS}


@torch.inference_mode()
def outputs(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return copy.deepcopy(model).eval()(x).double()


def assert_same_outputs(first: nn.Module, second: nn.Module) -> None:
    x = torch.randn(3, *IMAGE)
    wanted, got = outputs(first, x), outputs(second, x)
    assert wanted.abs().max() > 0
    assert (wanted - got).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("criterion", FROM_WEIGHTS)
def test_sorting_changes_the_weights_but_no_output(network, criterion):
    model, _, graph = _TRACED[network]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    order = channel_order(model, graph, criterion)
    assert order.units.keys() == {n for n, group in enumerate(graph.network.groups) if group.obstacle is None}
    reordered = reorder_channels(model, order)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    changed = {name for name, tensor in reordered.state_dict().items() if not torch.equal(before[name], tensor)}
    assert set(graph.network.removable) <= changed
    assert_same_outputs(model, reordered)


@settings.get_profile("few")
@given(st.data())
def test_every_order_is_the_same_function_and_its_inverse_restores_every_bit(data):
    network = data.draw(st.sampled_from(NETWORKS))
    model, _, graph = _TRACED[network]
    free = [number for number, group in enumerate(graph.network.groups) if group.obstacle is None]
    chosen = data.draw(st.lists(st.sampled_from(free), unique=True))
    units = {n: tuple(data.draw(st.permutations(range(graph.network.groups[n].units)))) for n in chosen}
    order = ChannelOrder(graph, units)
    reordered = reorder_channels(model, order)
    assert_same_outputs(model, reordered)
    inverse = ChannelOrder(graph, {number: tuple(map(new.index, range(len(new)))) for number, new in units.items()})
    restored = reorder_channels(reordered, inverse).state_dict()
    assert all(torch.equal(tensor, restored[name]) for name, tensor in model.state_dict().items())


def test_the_most_important_comes_first_and_the_next_layer_follows():
    model, _, graph = _TRACED[Vgg]
    norms = [float(np.linalg.norm(row.numpy(force=True))) for row in model.conv1[0].weight]
    wanted = sorted(range(12), key=lambda channel: -norms[channel])
    small = reorder_channels(model, channel_order(model, graph))
    inputs = sorted(range(10), key=lambda channel: -model.conv0[0].weight[channel].norm().item())
    assert torch.equal(small.conv1[0].weight, model.conv1[0].weight[wanted][:, inputs])
    assert torch.equal(small.conv1[1].running_var, model.conv1[1].running_var[wanted])
    columns = [channel * 4 + position for channel in wanted for position in range(4)]
    hidden = sorted(range(9), key=lambda unit: -model.hidden.weight[unit].norm().item())
    assert torch.equal(small.hidden.weight, model.hidden.weight[hidden][:, columns])


def test_grouped_convolutions_keep_their_groups():
    model, _, graph = _TRACED[Grouped]
    number = graph.network.by_name["grouped.0.weight"].channel_group
    reordered = reorder_channels(model, ChannelOrder(graph, {number: (3, 0, 2, 1)}))
    assert torch.equal(reordered.grouped[0].weight, model.grouped[0].weight[[3, 0, 2, 1, 7, 4, 6, 5]])


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("criterion", FROM_WEIGHTS)
def test_the_first_of_the_sorted_are_those_a_removal_keeps(network, criterion):
    model, x, graph = _TRACED[network]
    request = {name: (0.25, 0.4)[place % 2] for place, name in enumerate(graph.network.layer_names)}
    by_score = plan_removal(model, request, x, criterion, graph)
    first = first_channels(graph, request)
    assert first.removed == by_score.removed
    assert first.skipped == by_score.skipped
    reordered = reorder_channels(model, channel_order(model, graph, criterion))
    assert_same_outputs(shrink(model, by_score), shrink(reordered, first))


def test_ties_sort_as_they_would_be_removed():
    model, x = built(Vgg)
    nn.init.constant_(model.conv0[0].weight, 0.1)
    graph = trace_channels(model, x)
    assert channel_order(model, graph).units[0] == tuple(range(9, -1, -1))


def test_the_first_channels_are_kept_whatever_they_hold():
    graph = _TRACED[Vgg][2]
    plan = first_channels(graph, {"conv0.0.weight": 0.3, "conv1.0.weight": 0.25, "classifier.weight": 0.5})
    assert plan.kept["conv0.0.weight"] == tuple(range(7))
    assert plan.kept["conv1.0.weight"] == tuple(range(9))
    assert plan.structure.kept["hidden.weight"] == {1: tuple(range(36))}
    assert plan.skipped == {"classifier.weight": "its outputs are the network's outputs"}


def test_sorted_first_channels_are_worth_more_than_unsorted_ones():
    """The labs' exercise on a layer whose important channels come last."""
    model, x = built(Vgg)
    with torch.no_grad():
        for channel, scale in enumerate(np.linspace(0.05, 2, 12)):
            model.conv1[1].bias[channel] *= scale
            model.conv1[1].weight[channel] *= scale
            model.conv1[0].weight[channel] *= scale / model.conv1[0].weight[channel].norm()
            model.conv1[1].running_mean[channel] *= scale
            model.conv1[1].running_var[channel] = scale**2
    graph = trace_channels(model, x)
    plan, fresh = first_channels(graph, {"conv1.0.weight": 0.4}), torch.randn(64, *IMAGE)
    reordered = reorder_channels(model, channel_order(model, graph))
    errors = [
        float((outputs(shrink(network, plan), fresh) - outputs(model, fresh)).norm()) for network in (model, reordered)
    ]
    assert errors[1] < 0.5 * errors[0]


def test_a_network_that_reads_channels_by_place_is_refused():
    model, x = built(Vgg)
    graph = trace_channels(model, x)
    order = ChannelOrder(graph, {0: tuple(range(9, -1, -1))})
    placed = copy.deepcopy(model)
    placed.conv0.append(nn.Hardtanh())
    placed.conv0[-1].forward = lambda x: torch.cat([x[:, :1] * 3, x[:, 1:]], 1)
    with pytest.raises(SortingMismatch, match="outputs differ") as raised:
        reorder_channels(placed, order)
    assert "\n" not in str(raised.value)


def test_bad_values():
    model, _, graph = _TRACED[Vgg]
    for units, message in (
        ({9: (0,)}, "no channel group 9"),
        ({3: tuple(range(5))}, "network's outputs"),
        ({0: (0, 0, *range(2, 10))}, "each of its 10 units once"),
        ({0: tuple(range(9))}, "each of its 10 units once"),
    ):
        with pytest.raises(ValueError, match=message):
            ChannelOrder(graph, units)
    with pytest.raises(ValueError, match=r"did you mean 'conv0\.0\.weight'"):
        first_channels(graph, {"conv0.0.wieght": 0.3})
    with pytest.raises(ValueError, match=r"nearest valid: 0\.99"):
        first_channels(graph, {"conv0.0.weight": 1.0})
    with pytest.raises(ValueError, match="not the traced model"):
        reorder_channels(Residual(), ChannelOrder(graph, {}))
    with pytest.raises(ValueError, match="unknown criterion"):
        channel_order(model, graph, "magnitude-l3")


def test_modes_gradients_and_dtype_stay():
    model, x = built(Residual)
    model = model.double()
    model.stem[0].weight.requires_grad_(False)
    model.train().a1.eval()
    graph = trace_channels(model, x.double())
    reordered = reorder_channels(model, channel_order(model, graph))
    assert [m.training for m in reordered.modules()] == [m.training for m in model.modules()]
    assert [p.requires_grad for p in reordered.parameters()] == [p.requires_grad for p in model.parameters()]
    assert {p.dtype for p in reordered.parameters()} == {torch.float64}
