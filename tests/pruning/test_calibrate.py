"""Recalibrated statistics against a direct computation."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pruning import recalibrate_


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
