"""Norms of a user's own class: their statistics are averaged anew as BatchNorm's are, or named."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pruning import make_mask, scan_sensitivity, trace_channels
from pruning.batchnorm import learning_norms, recalibrate_
from pruning.own_norms import left_as_trained


class Own(nn.Module):
    """Normalises (N, C, H, W) by channel; `momentum` is the share of what is new."""

    def __init__(self, momentum=0.01, channels=3):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("running_var", torch.ones(1, channels, 1, 1))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x):
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
            with torch.no_grad():
                self.move(mean, var)
        return (x - mean) / (var + 1e-5).sqrt()

    def move(self, mean, var):
        self.calls += 1
        self.running_mean += self.momentum * (mean - self.running_mean)
        self.running_var += self.momentum * (var - self.running_var)


class Kept(Own):
    """`momentum` is the share of what is kept, and buffers are set anew."""

    def move(self, mean, var):
        self.running_mean = self.momentum * self.running_mean + (1 - self.momentum) * mean
        self.running_var = self.momentum * self.running_var + (1 - self.momentum) * var


class Written(Own):
    """Knows no momentum but the one in its code."""

    def __init__(self):
        super().__init__()
        del self.momentum

    def move(self, mean, var):
        self.running_mean.mul_(0.99).add_(0.01 * mean)
        self.running_var.mul_(0.99).add_(0.01 * var)


class Largest(Own):
    """Keeps the largest it has seen."""

    def move(self, mean, var):
        self.running_mean.copy_(torch.maximum(self.running_mean, mean))
        self.running_var.copy_(torch.maximum(self.running_var, var))


class Frozen(Own):
    def move(self, mean, var):
        pass


class Elsewhere(nn.Module):
    """Other names."""

    def __init__(self):
        super().__init__()
        self.register_buffer("moving_average", torch.zeros(3))
        self.register_buffer("pixel_mean", torch.ones(3))

    def forward(self, x):
        if self.training:
            self.moving_average.lerp_(x.detach().mean((0, 2, 3)), 0.1)
        return x - self.moving_average.view(1, -1, 1, 1)


def network(norm: nn.Module) -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Conv2d(2, 3, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 4))


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(0)
    return [3 * torch.randn(n, 2, 6, 6, generator=generator) + 1 for n in (7, 4, 9)]


@pytest.mark.parametrize(
    "norm",
    [Own(0.01), Own(0.0003), Own(0.0), Own(1.0), Own(0.5), Own(0), Kept(0.99), Kept(0.9997), Kept(1.0)],
    ids=lambda norm: f"{type(norm).__name__}-{norm.momentum}",
)
def test_statistics_are_the_average_over_batches_whatever_the_momentum_means(norm, batches):
    model = network(copy.deepcopy(norm)).eval()
    model[1].running_mean.fill_(99.0)
    before, held = copy.deepcopy(model), dict(model.named_buffers())
    assert recalibrate_(model, batches) == 1
    assert all(buffer is held[name] for name, buffer in model.named_buffers())
    outs = [model[0](batch) for batch in batches]
    mean = torch.stack([out.mean((0, 2, 3), keepdim=True) for out in outs]).mean(0)
    var = torch.stack([out.var((0, 2, 3), unbiased=False, keepdim=True) for out in outs]).mean(0)
    assert torch.allclose(model[1].running_mean, mean, rtol=1e-4, atol=1e-5)
    assert torch.allclose(model[1].running_var, var, rtol=1e-4, atol=1e-5)
    assert model[1].momentum == norm.momentum and model[1].calls == 0 and not model[1].training
    same = {"0.weight", "0.bias", "4.weight", "4.bias"}
    assert all(torch.equal(model.state_dict()[name], before.state_dict()[name]) for name in same)
    assert not model[1]._forward_hooks and not model[1]._forward_pre_hooks


@pytest.mark.parametrize("make", [Written, Largest, Frozen, Elsewhere])
def test_what_moves_otherwise_stays_as_it_is(make, batches):
    model = network(make()).eval()
    before = copy.deepcopy(model.state_dict())
    assert recalibrate_(model, batches) == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("norm", [Own(0.25, 8), Kept(0.75, 8)], ids=lambda norm: type(norm).__name__)
def test_every_point_of_a_scan_is_that_of_the_network_masked_and_recalibrated_alone(norm):
    """Points begin from one working copy, whose buffers a norm may have set anew."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), copy.deepcopy(norm), nn.ReLU(), nn.Conv2d(8, 5, 3), nn.Flatten()).eval()
    inputs, targets = torch.randn(48, 1, 6, 6), torch.arange(48) % 20
    recalibrate_(model, [inputs * 1.5 + 0.25])

    def metric(outputs, targets):
        return float((outputs.argmax(1) == targets).float().mean())

    found = scan_sensitivity(
        model, trace_channels(model, inputs[:2]), (inputs, targets), F.cross_entropy, metric,
        granularities=["fine-grained"], levels=(0.3, 0.7, 0.9),
    )  # fmt: skip
    assert found.is_recalibrated
    for layer, points in found.points["fine-grained"].items():
        for point in points:
            alone = copy.deepcopy(model)
            weight = alone.get_parameter(layer)
            weight.data *= make_mask(weight, point.sparsity)
            losses = [F.cross_entropy(alone(inputs), targets)]
            recalibrate_(alone, [inputs])
            losses.append(F.cross_entropy(alone(inputs), targets))
            assert [point.loss, point.recalibrated_loss] == pytest.approx([one.item() for one in losses], rel=1e-4)


def test_beside_norms_of_pytorch_each_gets_its_own(batches):
    """Statistics of the second norm are of what the first gives in training."""
    torch.manual_seed(5)
    mixed = nn.Sequential(nn.Conv2d(2, 3, 3), Own(0.25), nn.ReLU(), nn.BatchNorm2d(3))
    assert len(learning_norms(mixed)) == 2 and recalibrate_(mixed, batches) == 2
    outs = [mixed[0](batch) for batch in batches]
    normal = [
        (o - o.mean((0, 2, 3), keepdim=True)) / (o.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
        for o in outs
    ]
    mean = torch.stack([one.relu().mean((0, 2, 3)) for one in normal]).mean(0)
    assert torch.allclose(mixed[3].running_mean, mean, rtol=1e-4, atol=1e-5)


def test_a_failing_pass_leaves_all_as_it_was(batches):
    model = network(Own(0.25))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError):
        recalibrate_(model, [batches[0], batches[1][:, :1]])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model[1].momentum == 0.25 and not model[1]._forward_hooks


@pytest.mark.parametrize(
    ("norm", "named"),
    [
        (Own(), []), (Kept(0.99), []), (Frozen(), []), (nn.BatchNorm2d(3), []), (nn.Identity(), []),
        (Written(), ["1"]), (Largest(), ["1"]), (Elsewhere(), ["1"]),
        (nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 3, 1)), []),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_is_left_as_training_leaves_it_is_named(norm, named, batches):
    model = network(norm).eval()
    before = copy.deepcopy(model.state_dict())
    assert left_as_trained(model, batches[0][:2]) == named
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module.training for module in model.modules())
