"""Small networks that many tests look at and none may change."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pruning import trace_channels
from search.workloads.vgg import VGG9

torch.set_num_threads(1)


class Residual(nn.Module):
    """Two convolutions that are summed (one channel group), one between them, a linear layer; biases throughout."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.inner = nn.Conv2d(16, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.last = nn.Conv2d(12, 16, 3, padding=1)
        self.classifier = nn.Linear(16, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        start = self.first(images).relu()
        summed = start + self.last(self.norm(self.inner(start)).relu())
        return self.classifier(summed.relu().mean(dim=(2, 3)))


def settled(model: nn.Module) -> nn.Module:
    """Eval mode, with norms that are not at their initial values."""
    generator = torch.Generator().manual_seed(7)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            for tensor in (module.bias.data, module.running_mean):
                tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="session")
def vgg() -> nn.Module:
    """The digits workload's network, an eighth of VGG9."""
    torch.manual_seed(0)
    return settled(VGG9(width=1 / 8, inputs=1, pools=3))


@pytest.fixture(scope="session")
def vgg_graph(vgg, images):
    return trace_channels(vgg, images)


@pytest.fixture(scope="session")
def residual() -> nn.Module:
    torch.manual_seed(1)
    return settled(Residual())


@pytest.fixture(scope="session")
def residual_graph(residual, images):
    return trace_channels(residual, images)
