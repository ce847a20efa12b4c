"""Recalibrated statistics against a direct computation."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pruning import recalibrate_
from pruning.batchnorm import refresh_


def network() -> nn.Module:
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5, momentum=0.3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(5 * 16, 6), nn.BatchNorm1d(6), nn.BatchNorm1d(6, track_running_stats=False),
    )  # fmt: skip
    model[1].running_mean.fill_(99.0)
    model[6].running_var.fill_(99.0)
    return model


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(0)
    return [3 * torch.randn(n, 2, 6, 6, generator=generator) + 1 for n in (7, 4, 9)]


def test_statistics_are_the_average_over_batches(batches):
    model = network().eval()
    assert recalibrate_(model, batches) == 2
    means, variances, later = [], [], []
    for batch in batches:
        out = model[0](batch)
        means.append(out.mean(dim=(0, 2, 3)))
        variances.append(out.var(dim=(0, 2, 3), unbiased=True))
        mean, spread = means[-1].view(1, -1, 1, 1), out.var(dim=(0, 2, 3), unbiased=False).view(1, -1, 1, 1)
        hidden = ((out - mean) / (spread + 1e-5).sqrt()).relu().flatten(1)
        later.append(model[5](hidden))
    expected = {
        "1.running_mean": torch.stack(means).mean(0),
        "1.running_var": torch.stack(variances).mean(0),
        "6.running_mean": torch.stack([x.mean(0) for x in later]).mean(0),
        "6.running_var": torch.stack([x.var(0) for x in later]).mean(0),
    }
    for name, value in expected.items():
        assert torch.allclose(model.state_dict()[name], value, rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("training", [True, False])
def test_nothing_else_changes(batches, training):
    model = network().train(training)
    model[3].train(not training)
    flags = [module.training for module in model.modules()]
    before = copy.deepcopy(dict(model.named_parameters()))
    inputs = [batch.clone() for batch in batches]
    recalibrate_(model, batches)
    assert [module.training for module in model.modules()] == flags
    assert (model[1].momentum, model[6].momentum) == (0.3, 0.1)
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())
    assert all(torch.equal(a, b) for a, b in zip(inputs, batches, strict=True))


def test_depends_on_the_batches_alone(batches):
    first, second = network(), network()
    second[1].running_var.fill_(7.0)
    for model in (first, second, second):
        recalibrate_(model, batches)
    assert all(torch.equal(t, second.state_dict()[name]) for name, t in first.state_dict().items())


def test_restored_when_the_model_fails(batches):
    model = network().train()
    with pytest.raises(RuntimeError):
        recalibrate_(model, [torch.zeros(2, 3, 6, 6)])
    assert model[1].momentum == 0.3
    assert all(module.training for module in model.modules())


def test_nothing_runs_without_norms():
    def never():
        raise AssertionError("looked at the data")
        yield

    assert recalibrate_(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)), never()) == 0


class Own(nn.BatchNorm2d):
    """A subclass that reads its momentum as a number."""

    def forward(self, x):
        return nn.functional.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            float(self.momentum),
            self.eps,
        )


def materialized() -> nn.Module:
    norm = nn.LazyBatchNorm2d(momentum=0.3)
    norm(torch.ones(2, 3, 4, 4))
    return norm


def uncounted() -> nn.Module:
    norm = nn.BatchNorm2d(3)
    norm.num_batches_tracked = None
    return norm


@pytest.mark.parametrize(
    ("norm", "dimensions"),
    [
        (lambda: nn.BatchNorm1d(3), 0), (lambda: nn.BatchNorm1d(3), 1), (lambda: nn.BatchNorm3d(3), 3),
        (lambda: nn.SyncBatchNorm(3), 2), (materialized, 2), (lambda: nn.BatchNorm2d(3, momentum=None), 2),
        (lambda: nn.BatchNorm2d(3, momentum=0.0), 2), (lambda: nn.BatchNorm2d(3, affine=False), 2),
        (lambda: Own(3, momentum=0.01), 2), (uncounted, 2),
    ],
)  # fmt: skip
def test_every_kind_of_batch_norm(norm, dimensions):
    generator = torch.Generator().manual_seed(1)
    batches = [2 * torch.randn(n, 3, *[4] * dimensions, generator=generator) + 5 for n in (6, 9)]
    model = nn.Sequential(norm())
    momentum = model[0].momentum
    model[0].running_mean.fill_(9.0)
    assert recalibrate_(model.eval(), batches) == 1
    flat = [batch.movedim(1, 0).flatten(1) for batch in batches]
    assert torch.allclose(model[0].running_mean, torch.stack([x.mean(1) for x in flat]).mean(0), atol=1e-5)
    assert torch.allclose(model[0].running_var, torch.stack([x.var(1) for x in flat]).mean(0), rtol=1e-4)
    assert model[0].momentum == momentum and not model[0]._forward_pre_hooks


def test_instance_norm_with_running_statistics():
    batches = [2 * torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(n)) + 5 for n in (6, 9)]
    model = nn.Sequential(nn.InstanceNorm2d(3, momentum=0.01, track_running_stats=True), nn.InstanceNorm2d(3)).eval()
    assert recalibrate_(model, batches) == 1
    expected = torch.stack([batch.mean((0, 2, 3)) for batch in batches]).mean(0)
    assert torch.allclose(model[0].running_mean, expected, atol=1e-5)


class Frozen(nn.Module):
    """Its owner keeps the first norm in evaluation mode; the other learns."""

    def __init__(self) -> None:
        super().__init__()
        self.given, self.learning = nn.BatchNorm2d(2), nn.BatchNorm2d(2, momentum=0.0)

    def train(self, mode: bool = True):
        super().train(mode)
        self.given.eval()
        return self

    def forward(self, x):
        return self.learning(self.given(x))


class Always(nn.BatchNorm2d):
    """Computes with what it was given, in either mode."""

    def forward(self, x):
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False)


class Auxiliary(nn.Module):
    """A head that training alone comes to."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.given = nn.BatchNorm2d(2), nn.BatchNorm2d(2)

    def forward(self, x):
        return (self.norm(x), self.given(x)) if self.training else self.norm(x)


class Untracked(nn.Module):
    """Statistics its owner stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.given = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
        self.given.track_running_stats = False

    def forward(self, x):
        return self.norm(self.given(x))


class AlwaysBeside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.given = nn.BatchNorm2d(2), Always(2)

    def forward(self, x):
        return self.norm(self.given(x))


@pytest.mark.parametrize("kind", [Frozen, Auxiliary, Untracked, AlwaysBeside])
@pytest.mark.parametrize("training", [True, False])
def test_norms_that_learn_nothing_keep_their_statistics(kind, training):
    model = kind().train(training)
    model.given.running_mean.fill_(0.75)
    model.given.running_var.fill_(2.5)
    before = copy.deepcopy(model.given.state_dict())
    flags = [module.training for module in model.modules()]
    assert recalibrate_(model, [torch.randn(8, 2, 3, 3) + 3]) == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.given.state_dict().items())
    learning = model.learning if kind is Frozen else model.norm
    assert not torch.equal(learning.running_mean, torch.zeros(2))
    assert [module.training for module in model.modules()] == flags


def test_statistics_are_whole_again_when_a_later_batch_fails(batches):
    model = network().eval()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError):
        recalibrate_(model, [*batches, torch.zeros(2, 3, 6, 6)])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("losses", "kept"),
    [((0.5, 0.25), True), ((0.25, 0.5), False), ((0.25, 0.25), True), ((0.25, float("nan")), False),
     ((float("nan"), 0.5), True), ((float("inf"), 0.5), True)],
)  # fmt: skip
def test_the_better_statistics_stay(batches, losses, kept):
    model, again = network().eval(), network().eval()
    before = copy.deepcopy(model.state_dict())
    found = iter(losses)
    assert refresh_(model, batches, lambda: next(found)) is kept
    recalibrate_(again, batches)
    expected = again.state_dict() if kept else before
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_nothing_is_scored_without_norms_to_refresh():
    assert refresh_(nn.Linear(3, 3), iter(()), lambda: 1 / 0) is None


class OwnMomentum(nn.BatchNorm2d):
    def forward(self, x):
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.01, self.eps
        )


class NeverMoves(nn.BatchNorm2d):
    def forward(self, x):
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False)


def test_norms_with_a_momentum_of_their_own_are_averaged_and_frozen_ones_stay(batches):
    model = nn.Sequential(NeverMoves(2), OwnMomentum(2)).eval()
    model[0].running_mean.fill_(0.25)
    model[0].running_var.fill_(4.0)
    assert recalibrate_(model, batches) == 1
    seen = [(batch - 0.25) / (4.0 + model[0].eps) ** 0.5 for batch in batches]
    flat = [part.transpose(0, 1).flatten(1) for part in seen]
    assert torch.allclose(model[1].running_mean, sum(part.mean(1) for part in flat) / 3, atol=1e-5)
    assert torch.allclose(model[1].running_var, sum(part.var(1) for part in flat) / 3, atol=1e-5)
    assert model[0].running_mean.tolist() == [0.25, 0.25] and model[0].running_var.tolist() == [4.0, 4.0]
