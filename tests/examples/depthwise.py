"""A small depthwise-separable network on 12,000 images of Fashion-MNIST, as a user would bring their own.

prunefront search --workload tests/examples/depthwise.py:depthwise --trials 8
"""

from __future__ import annotations

from torch import Tensor, nn

from search import Recipe, Workload, get_workload

FIT = 12_000


def separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A 3x3 depthwise convolution, then a 1x1 pointwise one."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU6(),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


class SmallMobileNet(nn.Module):
    """Stem, five separable blocks, global pooling, ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        widths = [(16, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1)]
        self.blocks = nn.Sequential(*(separable(*width) for width in widths))
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean(dim=(2, 3)))


def depthwise() -> Workload:
    """The factory named on the command line."""
    data = get_workload("fashion-mnist")
    return Workload(
        name="depthwise",
        build_model=SmallMobileNet,
        fit=(data.fit[0][:FIT], data.fit[1][:FIT]),
        calibration=data.calibration,
        validation=data.validation,
        test=data.test,
        recipe=Recipe(dense_epochs=6, dense_learning_rate=0.2, trial_epochs=1, final_epochs=2, learning_rate=0.1),
    )
