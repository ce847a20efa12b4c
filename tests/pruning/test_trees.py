"""Networks called on several inputs, against the same networks called on one tensor that holds all of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pruning import Calibration, measure_cost, prune, scan_sensitivity, trace_channels
from pruning.batches import examples_at_once
from pruning.batchnorm import recalibrate_
from pruning.importance.scores import ImportanceScores
from pruning.latency import time_networks
from pruning.trees import ModelInputs, Tree, joined, run
from spaces import PruningPolicy

N = 14
GENERATOR = torch.Generator().manual_seed(5)
PIXELS, NUMBERS = torch.randn(N, 2, 6, 6, generator=GENERATOR), torch.randn(N, 5, generator=GENERATOR)
LABELS = torch.arange(N) % 3


class Two(nn.Module):
    """Of pixels and numbers."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6)
        self.side, self.last = nn.Linear(5, 4), nn.Linear(10, 3)

    def forward(self, pixels, numbers):
        seen = self.norm(self.conv(pixels)).relu().mean((2, 3))
        return self.last(torch.cat([seen, self.side(numbers).relu()], 1))


class Packed(Two):
    """The same of one tensor (n, 77)."""

    def forward(self, packed):
        return super().forward(packed[:, :72].view(-1, 2, 6, 6), packed[:, 72:])


def parity(outputs, targets):
    return F.cross_entropy(outputs, targets["label"])


def share(outputs, targets):
    return float((outputs.argmax(1) == targets["label"]).float().mean())


FORMS = {
    "in order": ModelInputs((PIXELS, NUMBERS)),
    "named": ModelInputs({"numbers": NUMBERS, "pixels": PIXELS}),
    "by forward": ModelInputs(([NUMBERS], {"x": PIXELS}), lambda model, tree: model(tree[1]["x"], *tree[0])),
}
TARGETS = Tree({"label": LABELS, "other": LABELS * 2})


@pytest.fixture
def networks():
    torch.manual_seed(1)
    two, packed = Two().eval(), Packed().eval()
    packed.load_state_dict(two.state_dict())
    return two, packed


def packed_inputs():
    return torch.cat([PIXELS.flatten(1), NUMBERS], 1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "criterion", ["magnitude-l2", "taylor", "obd-hutchinson", "obd-fisher", "activation", "reconstruction"]
)
def test_scores_of_several_inputs_are_those_of_one(networks, form, criterion):
    (two, packed), inputs = networks, FORMS[form]
    graphs = [trace_channels(two, inputs[:2]), trace_channels(packed, packed_inputs()[:2])]
    assert graphs[0].network == graphs[1].network
    calibrations = [Calibration(inputs, TARGETS, parity), Calibration(packed_inputs(), LABELS)]
    found = [
        ImportanceScores(model, criterion, graph, calibration)
        for model, graph, calibration in zip((two, packed), graphs, calibrations, strict=True)
    ]
    if criterion != "reconstruction":
        for name in ("conv.weight", "side.weight", "last.weight"):
            torch.testing.assert_close(*(one.elements(name, "fine-grained") for one in found), rtol=1e-4, atol=1e-7)
    for number, group in enumerate(graphs[0].network.groups):
        if group.obstacle is None:
            np.testing.assert_allclose(*(np.asarray(one.group(number)) for one in found), rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_networks_of_several_inputs_are_scanned_pruned_and_measured_as_those_of_one(networks, form):
    (two, packed), inputs = networks, FORMS[form]
    graphs = [trace_channels(two, inputs[:2]), trace_channels(packed, packed_inputs()[:2])]
    one = scan_sensitivity(two, graphs[0], (inputs, TARGETS), parity, share, levels=(0.5, 0.9))
    metric = lambda outputs, targets: share(outputs, {"label": targets})  # noqa: E731
    other = scan_sensitivity(packed, graphs[1], (packed_inputs(), LABELS), F.cross_entropy, metric, levels=(0.5, 0.9))
    for word, layers in other.points.items():
        for layer, points in layers.items():
            found = [p.loss for p in one.points[word][layer]]
            np.testing.assert_allclose(found, [p.loss for p in points], rtol=1e-5)
    policy = PruningPolicy({"conv.weight": 0.34, "side.weight": 0.5}, "channel")
    small, same = prune(two, policy, inputs[:2]), prune(packed, policy, packed_inputs()[:2])
    assert measure_cost(small, inputs[:3]) == measure_cost(same, packed_inputs()[:3])
    torch.testing.assert_close(run(small, inputs), same(packed_inputs()))
    assert recalibrate_(small, inputs.split(5)) == 1 == recalibrate_(same, packed_inputs().split(5))
    torch.testing.assert_close(small.norm.running_var, same.norm.running_var)
    assert time_networks(two, {"small": small}, inputs[:2], batch=3, rounds=1).batch == 3
    assert examples_at_once(two, inputs) == examples_at_once(packed, packed_inputs())


@pytest.mark.parametrize("parts", [1, 3, 4, 14])
def test_a_tree_is_cut_as_a_tensor_is(parts):
    whole = Tree({"a": [PIXELS, torch.tensor(3.0)], "b": NUMBERS, "name": "x"})
    assert len(whole) == N and whole.nbytes == PIXELS.nbytes + NUMBERS.nbytes + 4
    for cut in ("split", "tensor_split"):
        found, wanted = getattr(whole, cut)(parts), getattr(NUMBERS, cut)(parts)
        assert [len(part) for part in found] == [len(part) for part in wanted]
        assert all(torch.equal(part.tree["b"], own) for part, own in zip(found, wanted, strict=True))
        assert torch.equal(joined(list(found)).tree["a"][0], PIXELS) and float(found[0].tree["a"][1]) == 3
    places = torch.tensor([7, 0, 7])
    assert torch.equal(whole[places].tree["a"][0], PIXELS[places]) and whole[places].tree["name"] == "x"


def test_an_example_that_is_a_tree_is_checked():
    for wrong, said in (({}, "at least one example"), ({"x": torch.tensor([float("nan")])}, "NaN or infinite")):
        with pytest.raises(ValueError, match=said):
            trace_channels(Two(), ModelInputs(wrong))
