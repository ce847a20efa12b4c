"""A small convolutional network, its channel graph and data, which no test may change."""

from __future__ import annotations

import copy

import torch
from torch import nn

from pruning import trace_channels
from pruning.importance.scores import unit_importance
from search import Workload
from spaces.allocation.importance import AllocationInputs


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 6, 3)
        self.classifier = nn.Linear(6, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.conv1(self.norm(self.conv0(images)).relu()).relu().mean((2, 3)))


torch.manual_seed(0)
MODEL = Net().eval()
IMAGES, TARGETS = torch.randn(4, 1, 6, 6), torch.arange(4)
GRAPH = trace_channels(MODEL, IMAGES)
HALF = {"conv0.weight": 0.5}
LOSS = nn.functional.cross_entropy


def broken(value: float) -> nn.Module:
    """The network with one bad weight."""
    model = copy.deepcopy(MODEL)
    model.conv0.weight.data[0, 0, 0, 0] = value
    return model


def evidence() -> AllocationInputs:
    found = unit_importance(MODEL, GRAPH, "fine-grained")
    return AllocationInputs.of(GRAPH.network, "fine-grained", found, None, "encoded")


def made(**changes) -> Workload:
    pair = (IMAGES, TARGETS)
    parts = {"name": "made", "build_model": Net, "fit": pair, "calibration": pair, "validation": pair, "test": pair}
    return Workload(**{**parts, **changes})
