"""A U-Net that finds handwritten digits on photographs, pixel by pixel; its metric is the mean IoU.

Pixels are real, scenes are not: scikit-learn's scanned digits 0, 1 and 2 are written over pieces of its two
photographs, so that the mask of each is known. Class 0 is the photograph, the others are the digits.

prunefront search --workload tests/examples/unet.py:unet --trials 8
"""

from __future__ import annotations

import random

import torch
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor, nn

from search import Metric, Recipe, Workload

SIDE, CLASSES = 32, 4
INK = 0.3
"""How much ink a pixel has at least that belongs to a digit's mask; 1 is the most."""
SPLITS = {  # scenes, the digits on them, and the columns of the photographs behind them: nothing is in two splits
    "fit": (600, slice(0, 300), slice(0, 384)),
    "calibration": (60, slice(300, 350), slice(384, 448)),
    "validation": (150, slice(350, 440), slice(448, 544)),
    "test": (150, slice(440, 537), slice(544, 640)),
}


def convolutions(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions."""
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Down twice, up twice by transposed convolutions, each time beside what was there before."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = convolutions(3, 8), convolutions(8, 16), convolutions(16, 32)
        self.lift2, self.up2 = nn.ConvTranspose2d(32, 16, 2, 2), convolutions(32, 16)
        self.lift1, self.up1 = nn.ConvTranspose2d(16, 8, 2, 2), convolutions(16, 8)
        self.pool, self.head = nn.MaxPool2d(2), nn.Conv2d(8, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down1(x)
        middle = self.down2(self.pool(fine))
        up = self.lift2(self.bottom(self.pool(middle)))
        up = self.lift1(self.up2(torch.cat([middle, up], 1)))
        return self.head(self.up1(torch.cat([fine, up], 1)))


class MeanIoU:
    """Intersection over union of predicted and true pixels, the mean over classes."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.counts = torch.zeros(CLASSES, CLASSES)

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        pairs = (targets * CLASSES + outputs.argmax(1)).flatten()
        self.counts += torch.bincount(pairs, minlength=CLASSES**2).reshape(CLASSES, CLASSES)

    def compute(self) -> float:
        both = self.counts.diag()
        return float((both / (self.counts.sum(0) + self.counts.sum(1) - both).clamp(min=1)).mean())


def scenes(count: int, chosen: slice, columns: slice) -> tuple[Tensor, Tensor]:
    """Images (count, 3, SIDE, SIDE) and classes of their pixels (count, SIDE, SIDE); up to three digits, in white."""
    pixels, labels = load_digits(n_class=CLASSES - 1, return_X_y=True)
    digits, names = torch.tensor(pixels).float().reshape(-1, 8, 8)[chosen] / 16, torch.tensor(labels)[chosen]
    photographs = torch.stack([torch.tensor(image) for image in load_sample_images().images])[:, :, columns] / 255
    below = random.Random(chosen.start).randrange
    images, masks = torch.empty(count, 3, SIDE, SIDE), torch.zeros(count, SIDE, SIDE, dtype=torch.long)
    for image, mask in zip(images, masks, strict=True):
        top, left = below(photographs.shape[1] - SIDE + 1), below(photographs.shape[2] - SIDE + 1)
        image.copy_(photographs[below(2), top : top + SIDE, left : left + SIDE].permute(2, 0, 1))
        for row, column in [(0, 0), (0, 16), (16, 0)][: 1 + below(3)]:
            digit, place = below(len(digits)), (slice(row + below(9), None), slice(column + below(9), None))
            ink = digits[digit]
            image[:, *place][:, :8, :8] += (1 - image[:, *place][:, :8, :8]) * ink
            mask[place][:8, :8] = torch.where(ink > INK, names[digit] + 1, 0)
    return images, masks


def unet() -> Workload:
    """The factory named on the command line."""
    return Workload(
        name="unet",
        build_model=UNet,
        metric=Metric("mIoU", MeanIoU(), low=0, high=1),
        recipe=Recipe(batch=32, optimizer="adamw", dense_epochs=12, trial_epochs=2),
        **{name: scenes(*parts) for name, parts in SPLITS.items()},
    )
