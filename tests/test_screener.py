"""The zero-shot score against pruning, BatchNorm on batch statistics and a divergence written out."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from screener import Divergence, Screener
from torch import nn

from pruning import prune, trace_channels
from spaces import PruningPolicy

pytestmark = pytest.mark.slow  # of a script that is not installed
INPUTS = torch.randn(41, 1, 8, 8, generator=torch.Generator().manual_seed(8))


@pytest.fixture(scope="module")
def subjects(vgg, vgg_graph, residual, residual_graph):
    """Name -> model, graph, screener; norms and dropout are in other modes than a screener wants."""
    return {
        name: (model, graph, Screener(model, graph, INPUTS))
        for name, model, graph in (("vgg", vgg, vgg_graph), ("residual", residual, residual_graph))
    }


def expected(model: nn.Module, graph, inputs: torch.Tensor, policy: PruningPolicy) -> float:
    """Mean over the examples of sum p (log p - log q), in float64."""
    small = prune(model, policy, graph=graph).eval()
    for module in small.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    with torch.no_grad():
        p = torch.softmax(copy.deepcopy(model).eval()(inputs).double(), 1)
        q = torch.softmax(small(inputs).double(), 1)
    return float((p * (p.log() - q.log())).sum(1).mean())


@st.composite
def policies(draw):
    share = st.sampled_from([0.0, 0.1, 0.37, 0.5, 0.8, 0.97])
    which = draw(st.sampled_from(["vgg", "residual"]))
    names = {"vgg": [*(f"backbone.conv{n}.weight" for n in range(8)), "classifier.weight"],
             "residual": ["first.weight", "inner.weight", "last.weight", "classifier.weight"]}[which]  # fmt: skip
    sparsity = {name: draw(share) for name in names}
    granularity = {name: draw(st.sampled_from(["fine-grained", "channel"])) for name in names}
    removal = {n: draw(share) for n in names if granularity[n] == "fine-grained" and draw(st.booleans())}
    criterion = draw(st.sampled_from(["magnitude-l1", "magnitude-l2", "random"]))
    return which, PruningPolicy(sparsity, granularity, removal, criterion)


@settings.get_profile("few")
@given(policies())
def test_the_score_is_the_mean_divergence(subjects, drawn):
    which, policy = drawn
    model, graph, screener = subjects[which]
    assert screener.divergence(policy) == pytest.approx(expected(model, graph, INPUTS, policy), rel=1e-3, abs=1e-6)


def fine(share: float, **others) -> PruningPolicy:
    return PruningPolicy({f"backbone.conv{n}.weight": share for n in range(8)}, **others)


def test_earlier_scores_leave_no_trace(vgg, vgg_graph):
    """Nor do they touch the model, the random state, or the inputs."""
    model, inputs = copy.deepcopy(vgg).train(), INPUTS.clone()
    model.add_module("noise", nn.Dropout(0.5))
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(11)
    state = torch.get_rng_state()
    screener = Screener(model, vgg_graph, inputs)
    tried = [fine(0.5), fine(0.9, granularity="channel"), fine(0.3), fine(0.6, removal={"backbone.conv2.weight": 0.5})]
    values = [screener.divergence(policy) for policy in tried]
    assert values == [Screener(model, vgg_graph, inputs).divergence(policy) for policy in tried]
    again = Screener(model, vgg_graph, inputs)
    assert values[::-1] == [again.divergence(policy) for policy in tried[::-1]]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(inputs, INPUTS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_only_what_decides_the_masks_is_told_apart(vgg, vgg_graph, monkeypatch):
    calls = []
    screener = Screener(vgg, vgg_graph, INPUTS)
    computed = screener._computed
    monkeypatch.setattr(screener, "_computed", lambda *given: calls.append(given) or computed(*given))
    first = screener.divergence(fine(0.5))
    others = [
        fine(0.5, schedule="one-shot"),
        PruningPolicy({"classifier.weight": 0.0, **fine(0.5).sparsity}, {"classifier.weight": "channel"}),
    ]
    assert [screener.divergence(policy) for policy in others] == [first, first]
    assert len(calls) == 1
    channels = dict.fromkeys(fine(0.5).sparsity, "channel")
    kinds = [fine(0.51), fine(0.5, criterion="random"), fine(0.5, granularity=channels),
             fine(0.5, removal={"backbone.conv0.weight": 0.5})]  # fmt: skip
    assert len({first, *(screener.divergence(policy) for policy in kinds)}) == 5


def test_slices_take_the_better_half(vgg, vgg_graph):
    screener = Screener(vgg, vgg_graph, INPUTS)
    tried = [fine(share) for share in (0.9, 0.2, 0.7, 0.99, 0.5)]
    found = screener.divergences(tried)
    on_quarter = [Screener(vgg, vgg_graph, INPUTS[:11]).divergence(policy) for policy in tried]
    on_half = [Screener(vgg, vgg_graph, INPUTS[:21]).divergence(policy) for policy in tried]
    best = sorted(range(5), key=lambda n: on_quarter[n])[:3]
    finalists = sorted(best, key=lambda n: on_half[n])[:2]
    for number, policy in enumerate(tried):
        if number in finalists:
            assert found[number] == Divergence(screener.divergence(policy), 41)
        elif number in best:
            assert found[number].examples == 21
            assert found[number].value == pytest.approx(on_half[number], rel=1e-4)
        else:
            assert found[number].examples == 11
            assert found[number].value == pytest.approx(on_quarter[number], rel=1e-4)


@pytest.mark.parametrize("count", [0, 1])
def test_few_policies(vgg, vgg_graph, count):
    found = Screener(vgg, vgg_graph, INPUTS).divergences([fine(0.5)] * count)
    assert [result.examples for result in found] == [41] * count


def test_other_outputs_are_compared_by_square(images):
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.ReLU(), nn.Linear(7, 1)).eval()
    graph = trace_channels(model, images)
    policy = PruningPolicy({"1.weight": 0.6})
    with torch.no_grad():
        dense, pruned = model(INPUTS), prune(model, policy)(INPUTS)
    assert Screener(model, graph, INPUTS).divergence(policy) == pytest.approx(
        float(((dense - pruned) ** 2).mean() / dense.var()), rel=1e-4
    )


def test_infinite_where_outputs_are_not_finite(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).eval()
    model[1].weight.data.zero_()[:, 0] = 1.0
    inputs = INPUTS.clone()
    inputs[3] = math.inf
    policy = PruningPolicy({"1.weight": 0.5})
    graph = trace_channels(model, images)
    screener = Screener(model, graph, inputs)
    assert screener.divergence(policy) == math.inf
    assert [result.value for result in screener.divergences([policy])] == [math.inf]


def test_unknown_layers_are_named(vgg, vgg_graph):
    screener = Screener(vgg, vgg_graph, INPUTS)
    with pytest.raises(ValueError, match=r"did you mean 'backbone\.conv0\.weight'"):
        screener.divergence(PruningPolicy({"backbone.conv0.wieght": 0.5}))
    with pytest.raises(ValueError, match="not the traced model"):
        Screener(nn.Linear(3, 3), vgg_graph, INPUTS)
