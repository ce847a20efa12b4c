"""What a data-driven criterion finds nothing about stays whole, in every granularity, with a reason."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pruning import (
    Calibration,
    ImportanceScores,
    plan_removal,
    prune,
    register_criterion,
    scan_sensitivity,
    trace_channels,
)
from pruning.importance.activations import activation_scores
from pruning.mask_cache import MaskCache
from spaces import NothingToRemove, PruningPolicy, Schedule, Space, footprint
from spaces.cost.effect import unpruned_layers
from spaces.search_space.projection import Projector

UNSEEN = {"dark.weight", "after.weight", "never.weight"}
LOOKING = ("activation", "taylor", "taylor-group", "obd-fisher", "obd-hutchinson", "tests:mine")
MASKS = ("fine-grained", "vector", "2:4", "*:4")


class Branches(nn.Module):
    """`dark` and `after` run, but never on anything but zeros where inputs are above 0; `never` does not run."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 4)
        self.dark, self.after = nn.Linear(8, 12, bias=False), nn.Linear(12, 8, bias=False)
        self.never, self.training_only = nn.Linear(8, 16), False

    def forward(self, x):
        if self.training_only:
            x = self.never(x)[:, :8]
        bright = self.second(self.first(x).relu())
        return self.out(bright + self.after(self.dark((-x).relu())))


register_criterion("tests:mine", activation_scores, needs_data=True)


@pytest.fixture(scope="module")
def branches():
    torch.manual_seed(0)
    model, x = Branches().eval(), torch.rand(40, 8)
    return model, trace_channels(model, torch.randn(4, 8)), Calibration(x, torch.randint(4, (40,)))


@pytest.mark.parametrize("criterion", LOOKING)
def test_named_with_the_reason(branches, criterion):
    model, graph, calibration = branches
    network = ImportanceScores(model, criterion, graph, calibration).restricted_graph.network
    reason = f"criterion {criterion!r} found nothing in the calibration data to score it by"
    assert {layer.name: layer.whole for layer in network.prunable if layer.whole} == dict.fromkeys(UNSEEN, reason)
    for group in network.groups:
        assert group.obstacle or not UNSEEN & set(group.layers)
    seen = Calibration(torch.randn(40, 8), calibration.targets)
    network = ImportanceScores(model, criterion, graph, seen).restricted_graph.network
    assert [x.name for x in network.prunable if x.whole] == ["never.weight"]


@pytest.mark.parametrize("granularity", MASKS)
@pytest.mark.parametrize("criterion", LOOKING)
def test_no_mask_and_no_count_takes_anything(branches, criterion, granularity):
    model, graph, calibration = branches
    restricted = ImportanceScores(model, criterion, graph, calibration).restricted_graph
    policy = PruningPolicy(dict.fromkeys(graph.network.layer_names, 0.5), granularity, criterion=criterion)
    for found in (graph, None):
        pruned = prune(model, policy, graph=found, calibration=calibration)
        zeros = {name: int((pruned.get_parameter(name) == 0).sum()) for name in policy.sparsity}
        assert {name for name, count in zeros.items() if count == 0} == UNSEEN
        assert zeros["first.weight"] == 48
    planned = footprint(restricted.network, policy)
    assert planned.parameters - planned.nonzero == sum(zeros.values())
    assert unpruned_layers(restricted.network, policy).keys() >= UNSEEN
    assert not UNSEEN & MaskCache(model, restricted, calibration).masks(policy).keys()


@pytest.mark.parametrize("criterion", LOOKING)
def test_no_channel_goes(branches, criterion):
    model, graph, calibration = branches
    request = {"first.weight": 0.25, "dark.weight": 0.25}
    plan = plan_removal(model, request, None, criterion, graph, calibration=calibration)
    assert plan.removed["first.weight"] == 0.25
    assert plan.removed["dark.weight"] == 0.0
    assert "found nothing" in plan.skipped["dark.weight"]
    with pytest.raises(NothingToRemove, match="found nothing in the calibration data to score it by"):
        plan_removal(model, {"dark.weight": 0.25}, None, criterion, graph, calibration=calibration)
    with pytest.raises(NothingToRemove, match="found nothing in the calibration data to score it by"):
        prune(model, PruningPolicy({"after.weight": 0.25}, criterion=criterion), calibration=calibration)


def test_reconstruction_leaves_channels_that_add_nothing(branches):
    model, graph, calibration = branches
    network = ImportanceScores(model, "reconstruction", graph, calibration).restricted_graph.network
    assert "'after.weight'" in network.by_name["dark.weight"].obstacle
    assert "calibration data" in network.by_name["dark.weight"].obstacle
    assert network.by_name["first.weight"].obstacle is None


def test_criteria_without_data_know_all_weights(branches):
    model, graph, calibration = branches
    assert ImportanceScores(model, "magnitude-l1", graph, calibration).restricted_graph is graph


def test_a_search_and_a_scan_leave_them_out(branches):
    model, graph, calibration = branches
    restricted = ImportanceScores(model, "activation", graph, calibration).restricted_graph
    space = Space(restricted.network, 0.9, ("fine-grained", "2:4"), mixed=True, criterion="activation")
    random = np.random.default_rng(0)
    sampled = [{knob: float(random.random()) for knob in space.knobs} for _ in range(8)]
    drafts = [space.draft(space.params(0.9, "fine-grained", knobs, Schedule())) for knobs in sampled]
    landed = Projector(space).project_batch(drafts)
    places = [place for place, name in enumerate(restricted.network.layer_names) if name in UNSEEN]
    assert not landed.requests.masked[:, places].any()
    for draft, size in zip(drafts, landed.sizes, strict=True):
        policy = Projector(space).project(draft).policy
        assert not UNSEEN & {name for name, share in policy.sparsity.items() if share}
        assert size <= 0.9
    profile = scan_sensitivity(
        model, graph, (calibration.inputs, calibration.targets), F.cross_entropy, lambda o, t: 0.25,
        ("fine-grained",), "activation", levels=(0.5,),
    )  # fmt: skip
    assert not UNSEEN & profile.points["fine-grained"].keys()


def test_what_becomes_unseen_on_the_way_goes_by_magnitude(branches):
    """Along a ramp a network may go dark; its masks are completed, not by index."""
    model, graph, calibration = branches
    weight = model.get_parameter("dark.weight").detach()
    scores = ImportanceScores(model, "activation", graph, calibration)
    assert torch.equal(scores.elements("dark.weight", "fine-grained"), weight.abs())
    number = graph.network.by_name["dark.weight"].channel_group
    lowest = int(np.argmin(scores.group(number)))
    assert lowest == int(weight.norm(dim=1).argmin())


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, dropout=0.25)
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.layer(x).mean(1))


def test_attention_shows_what_its_output_projection_takes_in():
    """Against the heads' outputs worked out by hand."""
    torch.manual_seed(0)
    attention, x = nn.MultiheadAttention(8, 2, batch_first=True).eval(), torch.randn(40, 5, 8)

    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.unused = attention, nn.Linear(8, 8)

        def forward(self, x):
            return self.attention(x, x, x)[0].mean(1)

    query, key, value = (x @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, -1)
    heads = [part.reshape(40, 5, 2, 4).transpose(1, 2) for part in (query, key, value)]
    mixed = ((heads[0] @ heads[1].mT / 2).softmax(-1) @ heads[2]).transpose(1, 2).reshape(-1, 8)
    expected = attention.out_proj.weight.abs() * mixed.norm(dim=0)
    scores = activation_scores(Alone().eval(), Calibration(x, torch.randint(3, (40,))))
    torch.testing.assert_close(scores["attention.out_proj.weight"], expected.detach(), rtol=1e-5, atol=0)
    assert not scores["unused.weight"].any()


@pytest.mark.parametrize("criterion", ["activation", "taylor", "obd-fisher"])
def test_nothing_of_a_transformer_is_unseen(criterion):
    torch.manual_seed(0)
    model, x = Attending().eval(), torch.randn(40, 5, 8)
    graph, calibration = trace_channels(model, x[:2]), Calibration(x, torch.randint(3, (40,)))
    assert ImportanceScores(model, criterion, graph, calibration).restricted_graph is graph
    name = "layer.self_attn.out_proj.weight"
    policy = PruningPolicy({name: 0.25}, criterion=criterion)
    mask = prune(model, policy, graph=graph, calibration=calibration).get_parameter(name) != 0
    assert int((~mask).sum()) == 16
    assert 0 < int(mask.any(1).sum()) == 8  # no row goes as a whole
    assert torch.backends.mha.get_fastpath_enabled()
