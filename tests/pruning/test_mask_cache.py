"""The cache gives every policy the masks that it would get by itself, whatever was asked before."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pruning.calibration import Calibration
from pruning.channels.tracing import trace_channels
from pruning.importance.scores import defined_groups
from pruning.mask_cache import MaskCache
from pruning.policy_masks import policy_masks
from spaces import CRITERIA, GRANULARITIES, PruningPolicy
from spaces.criteria import criterion_word

SHARES = [0.0, 0.1, 0.37, 0.62, 0.8, 0.97]
"""None is its own complement: a mask that keeps what should go differs."""


def several_kinds() -> nn.Sequential:
    """Plain, 1 x 1, grouped, depthwise and transposed convolutions, whose inputs 4 divides in some only."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.ConvTranspose2d(12, 8, 3, groups=2), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, groups=2), nn.BatchNorm2d(16), nn.ReLU(),
        nn.ConvTranspose2d(16, 6, 2), nn.BatchNorm2d(6), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 10),
    )  # fmt: skip


@pytest.fixture(scope="module")
def networks(vgg, vgg_graph, residual, residual_graph, images):
    torch.manual_seed(4)
    model = several_kinds()
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    model.eval()
    return {
        "vgg": (vgg, vgg_graph),
        "residual": (residual, residual_graph),
        "several kinds": (model, trace_channels(model, images)),
    }


@pytest.fixture(scope="module")
def calibration(images) -> Calibration:
    generator = torch.Generator().manual_seed(6)
    inputs = torch.randn(12, *images.shape[1:], generator=generator)
    return Calibration(inputs, torch.randint(0, 10, (12,), generator=generator))


def policies(names: tuple[str, ...], criterion: str) -> st.SearchStrategy[PruningPolicy]:
    """Each layer by a granularity and a share of its own, with a removal before some of the masks."""
    shares, some = st.sampled_from(SHARES), st.sampled_from(criterion_word(criterion).granularities or GRANULARITIES)
    return st.builds(
        lambda sparsity, words, removal: PruningPolicy(
            sparsity, words, {name: gone for name, gone in removal.items() if words[name] != "channel"}, criterion
        ),
        st.fixed_dictionaries(dict.fromkeys(names, shares)),
        st.fixed_dictionaries(dict.fromkeys(names, some)),
        st.fixed_dictionaries({}, optional=dict.fromkeys(names, shares)),
    )


@pytest.mark.parametrize("criterion", CRITERIA)
@settings.get_profile("few")
@given(data=st.data())
def test_masks_and_structure_are_those_of_the_policy(networks, calibration, criterion, data):
    model, traced = networks[data.draw(st.sampled_from([*networks]))]
    graph = defined_groups(traced, criterion)
    cache = MaskCache(model, graph, calibration)
    for policy in data.draw(st.lists(policies(graph.network.layer_names, criterion), min_size=2, max_size=2)):
        masks, plan = policy_masks(model, policy, graph=graph, calibration=calibration)
        found = cache.masks(policy)
        assert found.keys() == masks.keys()
        assert [name for name, mask in masks.items() if not torch.equal(found[name], mask)] == []
        assert cache.structure(policy) == plan.structure


def test_ties_go_by_lowest_index():
    model = nn.Sequential(nn.Linear(6, 5, bias=False))
    model[0].weight.data = torch.tensor([[1.0, -1.0, 1.0, 2.0, 1.0, 1.0]]).repeat(5, 1)
    cache = MaskCache(model, trace_channels(model, torch.ones(2, 6)))
    mask = cache.masks(PruningPolicy({"0.weight": 0.2}))["0.weight"]
    assert mask.flatten().nonzero().flatten().tolist() == [3, *range(7, 30)]
