"""Workloads for tests: a small BatchNorm network on part of scikit-learn's digits, and variants that misbehave.

A fixture copies this file to `tiny.py` in a folder of its own, since a user's workload is code in the user's folder.
"""

import contextlib
import os
import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

from search import Recipe, Workload

RECIPE = Recipe(batch=20, dense_epochs=4, trial_epochs=1, final_epochs=1)


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv0 = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.classifier = nn.Linear(16, 10)

    def forward(self, images):
        images = nn.functional.max_pool2d(self.bn0(self.conv0(images)).relu(), 2)
        return self.classifier(self.bn1(self.conv1(images)).relu().mean(dim=(2, 3)))


def tiny():
    return changed()


def changed(**changes):
    pixels, targets = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels).float().reshape(-1, 1, 8, 8) / 16, torch.tensor(targets)
    parts, start = {}, 0
    for name, size in (("fit", 400), ("calibration", 60), ("validation", 200), ("test", 150)):
        parts[name] = images[start : start + size], labels[start : start + size]
        start += size
    return Workload(**{"name": "tiny", "build_model": Tiny, "recipe": RECIPE, **parts, **changes})


def slow():
    """Half a second of fine-tuning a trial, two of dense training.

    While the folder that `HOLD` names is there, a process that takes a step notes its number in it and waits, but for
    the first `HOLD_AFTER` steps that it takes.
    """

    def augment(inputs, generator):
        hold = Path(os.environ.get("HOLD", "nowhere"))
        free = int(os.environ.get("HOLD_AFTER", "0"))  # no variable of this function, which would be part of a study
        if free > 0:
            os.environ["HOLD_AFTER"] = str(free - 1)
        while free <= 0 and hold.is_dir():
            with contextlib.suppress(FileNotFoundError):  # it ends just now
                (hold / str(os.getpid())).touch()
            time.sleep(0.02)
        time.sleep(0.025)
        return inputs

    return changed(name="slow", augment=augment)


def chatty():
    """Prints from Python, from a child process, and to the bare file descriptor."""
    print("hello from the factory")
    os.system("echo hello from a child process")
    os.write(1, b"hello from below\n")

    def augment(inputs, generator):
        print("hello from a training step")
        return inputs

    return changed(name="chatty", augment=augment)


def with_data(data):
    """Needs its `--data`: a file that says how many fit examples to take."""
    whole = changed()
    count = int(Path(data, "count.txt").read_text())
    return changed(name="with-data", fit=tuple(part[:count] for part in whole.fit))


def psnr():
    """A metric beyond a share."""
    return changed(name="psnr", metric=lambda outputs, targets: 30.25)


def unmeasured():
    """A metric that raises."""

    def metric(outputs, targets):
        return {}["no such class"]

    return changed(name="unmeasured", metric=metric)


def late():
    """A metric that is no number of trained outputs, which are large."""
    return changed(name="late", metric=lambda outputs, targets: 0.25 if outputs.abs().max() < 2 else float("nan"))


class Bessel(Tiny):
    def forward(self, images):
        return torch.special.i1e(super().forward(images))


def without_onnx():
    """Ends in a function with a derivative, but none in ONNX."""
    return changed(name="without-onnx", build_model=Bessel)


def leaving():
    raise SystemExit(7)
