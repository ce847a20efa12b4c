"""torchvision's LR-ASPP, which returns a dict, tells handwriting from photographs, pixel by pixel; metric: mean IoU.

Pixels are real, scenes are not: scikit-learn's scanned digits, four times as large, are written over pieces of its two
photographs, so that the mask of each is known. Class 1 is ink.

prunefront search --workload tests/examples/segmentation.py:segmentation --trials 8
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import torch
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor, nn
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from search import Metric, Recipe, Workload

SIDE, LARGER, CLASSES = 64, 4, 2
INK = 0.3
"""How much ink a pixel has at least that belongs to the mask; 1 is the most."""
SPLITS = {  # scenes, the digits on them, and the columns of the photographs behind them: nothing is in two splits
    "fit": (240, slice(0, 1000), slice(0, 320)),
    "calibration": (32, slice(1000, 1150), slice(320, 400)),
    "validation": (80, slice(1150, 1450), slice(400, 520)),
    "test": (80, slice(1450, 1797), slice(520, 640)),
}


def network() -> nn.Module:
    """3.2 million parameters, from fresh weights."""
    return lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=CLASSES)


def loss(outputs: Mapping[str, Tensor], targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs["out"], targets)


def mean_iou(outputs: Mapping[str, Tensor], targets: Tensor) -> float:
    """Intersection over union of predicted and true pixels, the mean over classes."""
    found = outputs["out"].argmax(1)
    pairs = [(found == number, targets == number) for number in range(CLASSES)]
    return sum(float((one & other).sum() / (one | other).sum().clamp(min=1)) for one, other in pairs) / CLASSES


def scenes(count: int, chosen: slice, columns: slice) -> tuple[Tensor, Tensor]:
    """Images (count, 3, SIDE, SIDE) and classes of their pixels (count, SIDE, SIDE); one or two digits, in white."""
    digits = torch.tensor(load_digits().images).float()[chosen] / 16
    photographs = torch.stack([torch.tensor(image) for image in load_sample_images().images])[:, :, columns] / 255
    below = random.Random(chosen.start).randrange
    images, masks = torch.empty(count, 3, SIDE, SIDE), torch.zeros(count, SIDE, SIDE, dtype=torch.long)
    for image, mask in zip(images, masks, strict=True):
        top, left = below(photographs.shape[1] - SIDE + 1), below(photographs.shape[2] - SIDE + 1)
        image.copy_(photographs[below(2), top : top + SIDE, left : left + SIDE].permute(2, 0, 1))
        for half in range(1 + below(2)):
            ink = torch.zeros(SIDE, SIDE)
            row, column, large = below(SIDE // 2 + 1), half * SIDE // 2, digits[below(len(digits))]
            large = large.repeat_interleave(LARGER, 0).repeat_interleave(LARGER, 1)
            ink[row : row + len(large), column : column + len(large)] = large
            image += (1 - image) * ink
            mask[ink > INK] = 1
    return images, masks


def segmentation() -> Workload:
    """The factory named on the command line."""
    return Workload(
        name="segmentation",
        build_model=network,
        loss=loss,
        metric=Metric("mIoU", mean_iou, low=0, high=1),
        recipe=Recipe(batch=16, dense_epochs=6, trial_epochs=1),
        **{name: scenes(*parts) for name, parts in SPLITS.items()},
    )
