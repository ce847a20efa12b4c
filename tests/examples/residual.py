"""A small residual network on 12,000 images of Fashion-MNIST, as a user would bring their own.

prunefront search --workload tests/examples/residual.py:residual --trials 8
"""

from __future__ import annotations

from torch import Tensor, nn

from search import Recipe, Workload, get_workload

FIT = 12_000


class Block(nn.Module):
    """Two 3x3 convolutions beside an identity or a 1x1 projection."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.project = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.project = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + self.project(x))


class SmallResNet(nn.Module):
    """Stem, four residual blocks, global pooling, ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2), Block(32, 32, 1), Block(32, 48, 2))
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean(dim=(2, 3)))


def residual() -> Workload:
    """The factory named on the command line."""
    data = get_workload("fashion-mnist")
    return Workload(
        name="residual",
        build_model=SmallResNet,
        fit=(data.fit[0][:FIT], data.fit[1][:FIT]),
        calibration=data.calibration,
        validation=data.validation,
        test=data.test,
        recipe=Recipe(dense_epochs=6, dense_learning_rate=0.2, trial_epochs=1, final_epochs=2, learning_rate=0.1),
    )
