"""A narrow residual network of 40 layers on digits, for benchmarks of what deep networks are spared."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from search import Workload, get_workload

WIDTHS, BLOCKS = (8, 16, 32), 6


def normed(inputs: int, outputs: int, size: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """Two convolutions beside what goes in, which a third fits where the shape changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.first, self.second = normed(inputs, outputs, 3, stride), normed(outputs, outputs, 3, 1)
        self.beside = nn.Identity() if inputs == outputs else normed(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return (self.second(self.first(x).relu()) + self.beside(x)).relu()


def network() -> nn.Sequential:
    ends = [width for width in WIDTHS for _ in range(BLOCKS)]
    blocks = [Block(inputs, outputs) for inputs, outputs in zip([WIDTHS[0], *ends], ends, strict=False)]
    stem, head = normed(1, WIDTHS[0], 3, 1), nn.Linear(WIDTHS[-1], 10)
    return nn.Sequential(stem, nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def deep_digits() -> Workload:
    """The images of `digits`, of which those to test serve as calibration data too; half as many epochs."""
    whole = get_workload("digits")
    return replace(
        whole,
        name="deep-digits",
        build_model=network,
        calibration=tuple(torch.cat(parts) for parts in zip(whole.calibration, whole.test, strict=True)),
        recipe=replace(whole.recipe, dense_epochs=10),
    )
