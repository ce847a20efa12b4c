"""The memory layout networks are trained in: fast where it is safe."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from search.training.train import in_fast_layout

EXAMPLE = torch.zeros(2, 3, 8, 8)
ROOT = Path(__file__).parents[2]
BACKWARD_OF_ODD_CHANNELS = """
import torch
from torch import nn
from search.training.train import in_fast_layout

torch.manual_seed(0)
x = torch.randn(128, 3, 14, 14)
model = in_fast_layout(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 9, 1, stride=2, bias=False)), x)
for _ in range(60):
    model(x).square().mean().backward()
    scratch = [torch.randn(37, 11) for _ in range(20)]
print("alive")
"""


def test_ordinary_networks_are_channels_last():
    model = in_fast_layout(nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 7, 1)), EXAMPLE)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("stride", [2, (1, 2), 3])
def test_strided_1x1_convolutions_keep_a_network_as_it_is(stride):
    model = in_fast_layout(nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 7, 1, stride=stride)), EXAMPLE)
    assert model[0].weight.is_contiguous()


class Viewing(nn.Module):
    """Flattens by `view`, which a channels_last tensor refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 64, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).view(len(x), -1))


def test_networks_that_need_the_default_layout_keep_it():
    model = in_fast_layout(Viewing(), EXAMPLE)
    assert model(EXAMPLE).shape == (2, 2)


def test_volumes_are_left_alone():
    model = in_fast_layout(nn.Conv3d(1, 2, 3), torch.zeros(2, 1, 4, 4, 4))
    assert model.weight.is_contiguous()


def test_training_a_strided_1x1_convolution_with_odd_channels_survives():
    """In channels_last this process dies of a corrupted heap (PyTorch 2.14.1, oneDNN 3.12, AVX2)."""
    done = subprocess.run(
        [sys.executable, "-c", BACKWARD_OF_ODD_CHANNELS], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "alive\n", (done.returncode, done.stderr[-300:])
