"""`cifar10`: 50,000 + 10,000 real 32 x 32 colour images of ten kinds of things, and the pruning labs' VGG9."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

from search.errors import EnvironmentProblem
from search.workloads.augment import moved_and_mirrored
from search.workloads.base import Workload
from search.workloads.cifar_files import find_files, read_images
from search.workloads.recipe import Recipe
from search.workloads.vgg import VGG9

VALIDATION_PART, CALIBRATION_PART = 10, 25
"""One in so many training images is for validation, and for calibration."""
SPLIT_SEED = 0
SHIFT = 4
"""Training images are moved by up to this many pixels."""
BLACK = 0.0
RECIPE = Recipe(batch=128, dense_epochs=30, dense_learning_rate=0.1, trial_epochs=1, final_epochs=5, learning_rate=0.05)
"""Not measured, as CIFAR-10 was not to be had where it was written: finals are as long as the labs' fine-tunes, and
rates those of a recipe that says nothing.
"""
REMEDY = "name a folder that holds cifar-10-batches-py, or cifar-10-batches-bin, with --data"


def cifar10(data: str | Path | None = None, cache: str | Path = "mlruns/cache", width: float = 1.0) -> Workload:
    """43,000 fit, 2,000 calibration, 5,000 validation and 10,000 test images; of fewer training images, like parts.

    Pixels are shares, 0 to 1, as the labs feed them to the weights they give out.

    Args:
        data: the only folder to look in; by default torchvision's download in `cache`.
        width: width factor of the VGG9.

    Raises:
        EnvironmentProblem: no data there, or files that are not the data set.
    """
    batches = [read_images(path) for path in _six_files(Path(data) if data else None, Path(cache))]
    images, labels = (torch.cat(parts) for parts in zip(*batches[:-1], strict=True))
    if len(labels) < CALIBRATION_PART:
        raise EnvironmentProblem(
            f"cifar10 needs at least {CALIBRATION_PART} training images, got {len(labels)}: {REMEDY}"
        )
    parts = [len(labels) // VALIDATION_PART, len(labels) // CALIBRATION_PART]
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    validation, calibration, fit = order.split([*parts, len(labels) - sum(parts)])
    test_images, test_labels = batches[-1]
    return Workload(
        name="cifar10",
        build_model=functools.partial(VGG9, width=width),
        fit=(_shares(images[fit]), labels[fit]),
        calibration=(_shares(images[calibration]), labels[calibration]),
        validation=(_shares(images[validation]), labels[validation]),
        test=(_shares(test_images), test_labels),
        recipe=RECIPE,
        augment=functools.partial(moved_and_mirrored, most=SHIFT, black=BLACK),
    )


def _shares(images: Tensor) -> Tensor:
    return images.float().div_(255)


def _six_files(data: Path | None, cache: Path) -> list[Path]:
    """The five of training images, then that of test images."""
    if data is not None:
        if found := find_files(data):
            return found
        raise EnvironmentProblem(f"no CIFAR-10 batches in {str(data)!r}: {REMEDY}")
    return find_files(cache / "data") or _downloaded(cache / "data")


def _downloaded(folder: Path) -> list[Path]:
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import download_and_extract_archive

    try:
        download_and_extract_archive(CIFAR10.url, str(folder), filename=CIFAR10.filename, md5=CIFAR10.tgz_md5)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise EnvironmentProblem(f"cifar10 was not found and its download failed ({reason}): {REMEDY}") from None
    if found := find_files(folder):
        return found
    raise EnvironmentProblem(f"the download into {folder} holds no CIFAR-10 batches: {REMEDY}")
