"""What pruning libraries are known to get wrong and no other file here would notice."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from pruning import measure_cost, plan_removal, prune, scan_sensitivity, shrink, trace_channels
from pruning.calibration import Calibration
from pruning.gradual import GradualPruner
from pruning.importance.scores import unit_importance
from spaces import PruningPolicy, Schedule, footprint
from spaces.allocation.allocators import allocate
from spaces.allocation.budget import Target
from spaces.allocation.importance import AllocationInputs
from spaces.cost.footprint import dense_footprint


class Block(nn.Module):
    """Three channel groups, one of them a sum; norms, dropout, and a branch that training skips now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.inner, self.inner_norm = nn.Conv2d(12, 20, 1, bias=False), nn.BatchNorm2d(20)
        self.back = nn.Conv2d(20, 12, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.hidden, self.head = nn.Linear(12, 16), nn.Linear(16, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        start = self.norm(self.stem(images)).relu()
        branch = self.back(self.inner_norm(self.inner(start)).relu())
        if self.training:
            branch = branch * torch.bernoulli(torch.full((len(images), 1, 1, 1), 0.75))
        pooled = (start + branch).relu().mean(dim=(2, 3))
        return self.head(self.drop(self.hidden(pooled).relu()))


LAYERS = ("stem.weight", "inner.weight", "back.weight", "hidden.weight")


@pytest.fixture
def block() -> nn.Module:
    torch.manual_seed(0)
    model = Block()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(24, 2, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("share", [0.25, 0.3, 0.77])
def test_equal_scores_in_all_layers_remove_what_is_asked(block, images, share):
    """Guards against a threshold over all groups: of equal scores it selects everything, then nothing is removed."""
    for parameter in block.parameters():
        nn.init.constant_(parameter, 0.5)
    plan = plan_removal(block, dict.fromkeys(LAYERS, share), images)
    for name in LAYERS:
        channels = block.get_parameter(name).shape[0]
        gone = math.floor(share * channels + 0.5)
        assert plan.kept[name] == tuple(range(gone, channels))
    assert shrink(block.eval(), plan)(images).shape == (24, 3)


@pytest.mark.parametrize("granularity", ["channel", "kernel", "fine-grained"])
def test_a_global_threshold_on_equal_scores_lands_on_its_size(block, images, granularity):
    """Guards against the same at allocations: nothing or everything below the threshold, so a size missed by far."""
    graph = trace_channels(block, images[:2])
    network, scores = graph.network, unit_importance(block, graph, granularity)
    ones = {name: np.ones_like(of_units) for name, of_units in scores.items()}
    sparsity = allocate("global", Target(network, 0.7, granularity), AllocationInputs(ones))
    part = footprint(network, PruningPolicy(sparsity, granularity)).encoded_bytes
    assert 0.55 < part / dense_footprint(network).encoded_bytes <= 0.7


def test_the_caller_is_told_exactly_when_an_optimizer_is_stale(block, images):
    """Guards against training on with parameters the model no longer has: losses fall nowhere, and no error says so."""
    policy = PruningPolicy(
        {"inner.weight": 0.3, "hidden.weight": 0.6}, {"inner.weight": "channel"}, schedule=Schedule(ramp=0.5)
    )
    pruner = GradualPruner(block, policy, 8, trace_channels(block, images[:2]))
    targets = torch.arange(24) % 3
    optimizer = torch.optim.SGD(pruner.model.parameters(), lr=0.2, momentum=0.9)
    losses = []
    for step in range(9):
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if pruner.advance(step):
            assert not held & {id(parameter) for parameter in pruner.model.parameters()}
            optimizer = torch.optim.SGD(pruner.model.parameters(), lr=0.2, momentum=0.9)
        else:
            assert held == {id(parameter) for parameter in pruner.model.parameters()}
        pruner.model.eval()  # no dropout: every step is downhill
        loss = nn.functional.cross_entropy(pruner.model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pruner.hold()
        losses.append(float(loss.detach()))
    assert pruner.model is not block and pruner.model.inner.out_channels == 14
    assert losses[8] < losses[5]


@pytest.mark.parametrize("criterion", ["magnitude-l2", "taylor", "activation", "obd-fisher"])
def test_a_network_in_training_mode_is_analysed_as_in_eval_mode(block, images, criterion):
    """Guards against dropout and skipped branches in what is traced or scored, and against statistics moved by it."""
    targets = torch.arange(24) % 3
    calibration = Calibration(images, targets)

    def analysed(model: nn.Module) -> list[object]:
        graph = trace_channels(model, images[:2])
        plan = plan_removal(model, dict.fromkeys(LAYERS, 0.4), images, criterion, graph, calibration=calibration)
        pruned = prune(model, PruningPolicy({"head.weight": 0.4}, criterion=criterion), None, graph, calibration)
        profile = scan_sensitivity(
            model, graph, (images, targets), nn.functional.cross_entropy, lambda out, _: float(out.mean() > 0),
            granularities=("channel",), criterion=criterion, levels=(0.5,),
        )  # fmt: skip
        zeros = (pruned.head.weight == 0).tolist()
        return [graph.network, plan.kept, measure_cost(model, images[:2]), zeros, profile.points]

    for module in (block.norm, block.inner_norm):
        module(torch.randn(64, module.num_features, 3, 3))
    block.eval()
    expected = analysed(block)
    block.train()
    before, generator = copy.deepcopy(block.state_dict()), torch.get_rng_state()
    assert analysed(block) == expected
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())
    assert all(module.training for module in block.modules())
    assert all(parameter.grad is None for parameter in block.parameters())


@pytest.mark.parametrize("granularity", ["fine-grained", "kernel", "channel"])
def test_zeros_by_chance_earn_nothing_before_training(block, images, granularity):
    """Guards against sizes read from values: zeros that training may fill again would count as pruned."""
    whole = trace_channels(block, images[:2]).network
    policy = PruningPolicy({"back.weight": 0.3, "stem.weight": 0.3}, granularity)
    planned = footprint(whole, policy)
    with torch.no_grad():
        block.hidden.weight[:, ::3] = 0
        block.inner.weight[1::4] = 0
        block.inner_norm.running_mean.zero_()
    network = trace_channels(block, images[:2]).network
    assert footprint(network, policy) == planned
    assert dense_footprint(network).nonzero == sum(p.numel() for p in block.parameters())
    assert measure_cost(prune(block, policy, images[:2]), images[:2]).encoded_bytes < planned.encoded_bytes
