"""Channels that nothing reads are silenced, and only those; networks of odd kinds in stored form."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from pruning.channel_selection import plan_removal
from pruning.channels.removal import shrink
from pruning.channels.structure import Structure
from pruning.channels.tracing import trace_channels
from pruning.file.container import decode, encode
from pruning.file.stored_form import round_weights_, to_stored_form_
from pruning.file.unread import silence_unread_
from pruning.modules import prunable_weights
from pruning.prune import prune
from spaces.policy import PruningPolicy

WHOLE = Structure({})


class Residual(nn.Module):
    """A stem whose channels a skip connection shares, a block, and a head behind a sum over channels."""

    def __init__(self, summed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.stem, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.inner, self.inner_norm = nn.Conv2d(6, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.outer, self.head = nn.Conv2d(5, 6, 1), nn.Linear(6, 3)
        self.summed = summed
        for norm in (self.norm, self.inner_norm):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        inner = self.inner_norm(self.inner(x)).relu()
        found = self.head((x + self.outer(inner)).mean(dim=(2, 3)))
        return found + inner.sum(dim=(1, 2, 3))[:, None] if self.summed else found


EXAMPLE = torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(0))


def test_what_nothing_reads_is_all_zero_and_outputs_stay():
    net = Residual().eval()
    graph = trace_channels(net, EXAMPLE)
    net.outer.weight.data[:, [1, 4]] = 0  # reads these of `inner`
    net.head.weight.data[:, 2] = 0  # and this of the stem, which `inner` reads as well
    before = net(EXAMPLE)
    count = silence_unread_(net, graph, WHOLE)
    assert torch.equal(net(EXAMPLE), before)
    assert count == 2 * (6 * 9 + 3)
    for tensor in (net.inner.weight, net.inner.bias, net.inner_norm.weight, net.inner_norm.bias):
        assert not tensor[[1, 4]].any() and tensor[[0, 2, 3]].all()
    assert net.stem.weight[2].any() and net.inner_norm.weight[0] != 0


def test_silencing_goes_on_upstream():
    net = Residual().eval()
    graph = trace_channels(net, EXAMPLE)
    net.head.weight.data[:, 2] = 0
    net.inner.weight.data[:4, 2] = 0  # the fifth output still reads it, and nothing reads that
    net.outer.weight.data[:, 4] = 0
    before = net(EXAMPLE)
    assert silence_unread_(net, graph, WHOLE) > 0
    assert torch.equal(net(EXAMPLE), before)
    assert not net.stem.weight[2].any() and not net.outer.weight[2].any() and not net.norm.bias[2]


def test_a_reader_that_is_no_weight_counts():
    net = Residual(summed=True).eval()
    graph = trace_channels(net, EXAMPLE)
    net.outer.weight.data[:, 1] = 0
    before = copy.deepcopy(net.state_dict())
    assert silence_unread_(net, graph, WHOLE) == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_after_channels_were_removed():
    net = Residual().eval()
    graph = trace_channels(net, EXAMPLE)
    small = prune(net, PruningPolicy({"inner.weight": 0.4}, "channel"), graph=graph).eval()
    plan = plan_removal(net, {"inner.weight": 0.4}, EXAMPLE, graph=graph)
    assert torch.equal(shrink(net, plan).inner.weight, small.inner.weight)
    small.outer.weight.data[:, 1] = 0
    before = small(EXAMPLE)
    assert silence_unread_(small, graph, plan.structure) == 6 * 9 + 3
    assert torch.equal(small(EXAMPLE), before) and not small.inner_norm.weight[1]


def tied() -> nn.Module:
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    net[2].weight = net[0].weight
    return net


def shared() -> nn.Module:
    conv, norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
    return nn.Sequential(conv, norm, nn.ReLU(), conv, norm)


def parametrized() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 6)), nn.Linear(6, 4))


ODD = {
    "tied": (tied, (3, 8)),
    "shared modules": (shared, (3, 4, 5, 5)),
    "parametrized": (parametrized, (3, 8)),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 2, groups=2), nn.BatchNorm2d(6)), (3, 4, 5, 5)),
    "depthwise": (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 7, 1)), (3, 4, 5, 5)),
    "one dimension": (lambda: nn.Sequential(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)), (3, 4, 9)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ODD)
def test_networks_of_odd_kinds_are_the_same_again(kind, dtype):
    torch.manual_seed(1)
    build, shape = ODD[kind]
    net, example = build().eval().to(dtype), torch.randn(shape).to(dtype)
    for weight in prunable_weights(net).values():
        weight.data *= torch.rand(weight.shape) < 0.6
    zeros = {name: weight == 0 for name, weight in prunable_weights(net).items()}
    assert set(round_weights_(net, 5)) == set(zeros)
    content = encode(net.state_dict(), to_stored_form_(net, 5))
    again, outputs = build().eval().to(dtype), net(example)
    again.load_state_dict(net.state_dict())
    assert encode(again.state_dict(), to_stored_form_(again, 5)) == content
    assert torch.equal(again(example), outputs)
    again.load_state_dict(decode(content).state)
    assert torch.equal(again(example), outputs)
    for name, weight in prunable_weights(again).items():
        assert not weight[zeros[name]].any() and weight.any()


def test_prune_rounds_last_and_leaves_everything_else():
    net = Residual().eval()
    policy = PruningPolicy({"inner.weight": 0.5, "head.weight": 0.5}, bits={"inner.weight": 3, "stem.weight": 4})
    plain = prune(net, PruningPolicy(policy.sparsity))
    found = prune(net, policy)
    for name, tensor in plain.state_dict().items():
        own = found.state_dict()[name]
        assert torch.equal(own, tensor) == (name not in policy.bits)
        assert not own[tensor == 0].any()
    assert len(prune(net, PruningPolicy({}, bits=2)).stem.weight[0].abs().unique()) <= 2
    with pytest.raises(ValueError, match=r"'inner.wieght'.*inner.weight"):
        prune(net, PruningPolicy({}, bits={"inner.wieght": 4}))
    with pytest.raises(ValueError, match="nothing to remove"):
        prune(net, PruningPolicy({"head.weight": 1e-6}, bits=4))
