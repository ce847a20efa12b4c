"""Narrow networks of 40 and 38 layers on digits, for benchmarks of what deep networks are spared."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from search import Workload, get_workload

WIDTHS, BLOCKS = (8, 16, 32), 6
INVERTED, WIDER = 4, 3
"""Inverted blocks of each width, and how many times as wide they are within."""


def normed(inputs: int, outputs: int, size: int, stride: int, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """Two convolutions beside what goes in, which a third fits where the shape changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.first, self.second = normed(inputs, outputs, 3, stride), normed(outputs, outputs, 3, 1)
        self.beside = nn.Identity() if inputs == outputs else normed(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return (self.second(self.first(x).relu()) + self.beside(x)).relu()


class Inverted(nn.Module):
    """A depthwise convolution between two that widen and narrow, beside what goes in where the shape stays."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride, wide = 1 if inputs == outputs else 2, WIDER * inputs
        self.expand, self.depth = normed(inputs, wide, 1, 1), normed(wide, wide, 3, stride, wide)
        self.project = normed(wide, outputs, 1, 1)
        self.adds = inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depth(self.expand(x).relu()).relu())
        return x + y if self.adds else y


def network() -> nn.Sequential:
    ends = [width for width in WIDTHS for _ in range(BLOCKS)]
    blocks = [Block(inputs, outputs) for inputs, outputs in zip([WIDTHS[0], *ends], ends, strict=False)]
    stem, head = normed(1, WIDTHS[0], 3, 1), nn.Linear(WIDTHS[-1], 10)
    return nn.Sequential(stem, nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def separable_network() -> nn.Sequential:
    ends = [width for width in WIDTHS for _ in range(INVERTED)]
    blocks = [Inverted(inputs, outputs) for inputs, outputs in zip([WIDTHS[0], *ends], ends, strict=False)]
    stem, head = normed(1, WIDTHS[0], 3, 1), nn.Linear(WIDTHS[-1], 10)
    return nn.Sequential(stem, nn.ReLU(), *blocks, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def deep_separable() -> Workload:
    """Inverted blocks on the data of `deep_digits`; twice as many epochs."""
    deep = deep_digits()
    return replace(
        deep, name="deep-separable", build_model=separable_network, recipe=replace(deep.recipe, dense_epochs=20)
    )


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
