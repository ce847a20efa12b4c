"""A study of seconds whose phases are long enough to be cut in: each training step waits a little."""

import time

import torch
from torch import nn

from search import Recipe, Workload

PAUSE = 0.01
"""Seconds a training step waits."""
SIZES = {"fit": 160, "calibration": 48, "validation": 96, "test": 64}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv0 = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.conv1 = nn.Conv2d(6, 10, 3, padding=1, bias=False)
        self.classifier = nn.Linear(10, 4)

    def forward(self, images):
        images = self.norm(self.conv0(images)).relu()
        return self.classifier(self.conv1(images).relu().mean(dim=(2, 3)))


def split(size, seed):
    """Noise with a bright quarter that tells the class."""
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.randn(size, 1, 8, 8, generator=generator), torch.arange(size) % 4
    for number, label in enumerate(labels.tolist()):
        row, column = divmod(label, 2)
        images[number, 0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 0.75 * (1 + label)
    return images, labels


def small():
    def wait(inputs, generator):
        time.sleep(PAUSE)
        return inputs

    return Workload(
        name="small",
        build_model=Net,
        recipe=Recipe(batch=16, dense_epochs=4, trial_epochs=1, final_epochs=2),
        augment=wait,
        **{name: split(size, seed) for seed, (name, size) in enumerate(SIZES.items())},
    )
