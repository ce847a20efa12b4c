"""torchvision's SSD on the first blocks of its MobileNetV3 finds digits on photographs; own loop and own metric.

Pixels are real, scenes are not: scikit-learn's scanned digits, three times as large, are written over pieces of its two
photographs, so that their boxes are known. The metric is the average precision at an overlap of 0.5.

prunefront search --workload tests/examples/detection.py:detection --trials 8
"""

from __future__ import annotations

import random
from functools import cache

import torch
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_small
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou

from search import Metric, Recipe, Run, Workload

SIDE, LARGE = 64, 24
SPLITS = {  # scenes, the digits on them, and the columns of the photographs behind them: nothing is in two splits
    "fit": (240, slice(0, 1000), slice(0, 320)),
    "calibration": (16, slice(1000, 1150), slice(320, 400)),
    "validation": (80, slice(1150, 1450), slice(400, 520)),
    "test": (80, slice(1450, 1797), slice(520, 640)),
}


class Backbone(nn.Module):
    """Features at an eighth and a sixteenth of the image's side."""

    out_channels = (24, 48)

    def __init__(self) -> None:
        super().__init__()
        blocks = mobilenet_v3_small(weights=None).features
        self.fine, self.coarse = blocks[:4], blocks[4:9]
        for norm in self.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = 0.1  # theirs, 0.01, is for trainings of many thousand steps

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.fine(x)
        return {"fine": fine, "coarse": self.coarse(fine)}


def detector() -> SSD:
    """Two classes: nothing, and a digit."""
    return SSD(Backbone(), DefaultBoxGenerator([[2], [2]], scales=[0.3, 0.45, 0.6]), (SIDE, SIDE), num_classes=2)


def scores_and_boxes(model: SSD, images: Tensor) -> dict[str, Tensor]:
    """What the network computes, without the choice of boxes, which depends on what is in the image."""
    return model.head(list(model.backbone(images).values()))


@cache
def scenes(split: str) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Images (n, 3, SIDE, SIDE), and boxes and labels of the one or two digits on each."""
    count, chosen, columns = SPLITS[split]
    digits = torch.tensor(load_digits().images).float()[chosen] / 16
    photographs = torch.stack([torch.tensor(image) for image in load_sample_images().images])[:, :, columns] / 255
    below = random.Random(chosen.start).randrange
    images, targets = torch.empty(count, 3, SIDE, SIDE), []
    for image in images:
        top, left = below(photographs.shape[1] - SIDE + 1), below(photographs.shape[2] - SIDE + 1)
        image.copy_(photographs[below(2), top : top + SIDE, left : left + SIDE].permute(2, 0, 1))
        boxes = []
        for half in range(1 + below(2)):
            x, y = half * SIDE // 2 + below(SIDE // 2 - LARGE + 1), below(SIDE - LARGE + 1)
            ink = digits[below(len(digits))].repeat_interleave(3, 0).repeat_interleave(3, 1)
            image[:, y : y + LARGE, x : x + LARGE] += (1 - image[:, y : y + LARGE, x : x + LARGE]) * ink
            boxes.append([x, y, x + LARGE, y + LARGE])
        targets.append({"boxes": torch.tensor(boxes).float(), "labels": torch.ones(len(boxes), dtype=torch.long)})
    return images, targets


def train(model: nn.Module, run: Run) -> None:
    """The user's own loop: torchvision's losses, AdamW, a rate that falls."""
    images, targets = scenes("fit")
    steps = max(1, round(run.epochs * len(images) / run.batch))
    run.begin(steps)
    optimizer = torch.optim.AdamW(model.parameters(), run.learning_rate / 3)
    falling = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps)
    model.train()
    for _ in range(steps):
        batch = torch.randint(len(images), (run.batch,)).tolist()
        losses = model(run.put([images[i] for i in batch]), run.put([targets[i] for i in batch]))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        falling.step()
        run.report(sum(losses.values()).detach())


@torch.no_grad()
def evaluate(model: nn.Module, split: str, run: Run) -> float:
    """Average precision: the area under precision over recall, of all boxes in the order of their scores."""
    images, targets = scenes(split)
    model.eval()
    ranked = []
    for place in range(0, len(images), run.batch):
        found = model(list(run.put(images[place : place + run.batch])))
        for one, target in zip(found, targets[place : place + run.batch], strict=True):
            ranked += hits(box_iou(one["boxes"].cpu(), target["boxes"]), one["scores"].tolist())
    right = torch.tensor([hit for _, hit in sorted(ranked, reverse=True)] or [False]).float()
    precision = right.cumsum(0) / torch.arange(1, len(right) + 1)
    best_from_here_on = precision.flip(0).cummax(0).values.flip(0)
    return float((best_from_here_on * right).sum() / sum(len(target["boxes"]) for target in targets))


def hits(overlaps: Tensor, scores: list[float]) -> list[tuple[float, bool]]:
    """For each box of an image, best first: its score, and whether it is the first on some digit."""
    taken, found = set(), []
    for overlap, score in zip(overlaps, scores, strict=True):
        nearest = int(overlap.argmax())
        hit = bool(overlap[nearest] >= 0.5) and nearest not in taken
        taken |= {nearest} if hit else set()
        found.append((score, hit))
    return found


def detection() -> Workload:
    """The factory named on the command line."""
    return Workload(
        name="detection",
        build_model=detector,
        example_input=scenes("fit")[0][:2],
        forward=scores_and_boxes,
        metric=Metric("AP50", low=0, high=1),
        recipe=Recipe(batch=16, optimizer="adamw", dense_epochs=24, trial_epochs=2),
        train=train,
        evaluate=evaluate,
    )
