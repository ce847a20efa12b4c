"""Counts of a model as it stands, against PyTorch's own FLOP counter."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pruning import measure_cost, prune
from pruning.multiplications import count_multiplications
from spaces import PruningPolicy


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared, self.unused = nn.Linear(6, 6), nn.Linear(6, 9)

    def forward(self, x):
        return self.shared(self.shared(x).relu())


NETWORKS = [
    (
        nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.Conv2d(8, 12, (1, 3), groups=4, bias=False)),
        (4, 9, 11),
    ),
    (nn.Sequential(nn.Conv2d(6, 6, 3, groups=6, dilation=2), nn.Flatten(), nn.Linear(6 * 16, 5)), (6, 8, 8)),
    (nn.Sequential(nn.Conv1d(3, 7, 5, padding=2), nn.ReLU(), nn.Conv1d(7, 2, 1)), (3, 21)),
    (nn.Conv3d(2, 5, 3), (2, 5, 6, 7)),
    (nn.Sequential(nn.Linear(6, 10), nn.Linear(10, 3)), (13, 6)),
    (Twice(), (6,)),
]


@pytest.mark.parametrize(("model", "shape"), NETWORKS)
@pytest.mark.parametrize("batch", [1, 3])
def test_macs_are_half_of_pytorchs_flops(model, shape, batch):
    example = torch.randn(batch, *shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(example)
    assert 2 * batch * measure_cost(model, example).macs == counter.get_total_flops()


def test_vgg_and_what_pruning_does_to_it(vgg, images):
    policy = PruningPolicy({"backbone.conv0.weight": 0.5}, removal={"backbone.conv1.weight": 0.25})
    small = prune(vgg, policy, images)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        small(images)
    cost = measure_cost(small, images)
    assert 2 * 2 * cost.macs == counter.get_total_flops()
    assert cost.macs < measure_cost(vgg, images).macs
    assert cost.macs - cost.macs_nonzero == 36 * 64  # half of 8 x 1 x 3 x 3 weights, at 8 x 8 places
    assert cost.parameters == sum(p.numel() for p in small.parameters())
    assert cost.parameters - cost.nonzero == 36


def test_only_zeros_of_prunable_weights_count():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    for parameter in model.parameters():
        parameter.data.fill_(1.0)
    model[0].weight.data[0, 0] = 0.0
    model[0].weight.data[0, 1] = -0.0
    model[0].bias.data.zero_()
    model[1].bias.data.zero_()
    cost = measure_cost(model, torch.randn(2, 4))
    assert (cost.parameters, cost.nonzero, cost.macs, cost.macs_nonzero) == (21, 19, 12, 10)


def test_unused_layers_have_no_positions():
    assert count_multiplications(Twice(), torch.randn(2, 6)).positions == {"shared.weight": 2}


@pytest.mark.parametrize("training", [True, False])
def test_model_stays(residual, images, training):
    model = copy.deepcopy(residual).train(training)
    model.norm.train(not training)
    before, flags = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    measure_cost(model, images)
    with pytest.raises(ValueError, match="does not run on the example input: RuntimeError"):
        measure_cost(model, torch.zeros(1, 5, 8, 8))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert [m.training for m in model.modules()] == flags
    assert not any(m._forward_hooks for m in model.modules())
