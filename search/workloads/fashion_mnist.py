"""`fashion-mnist`: 60,000 + 10,000 real 28 x 28 images of clothing."""

from __future__ import annotations

import functools
import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from search.errors import EnvironmentProblem
from search.workloads.augment import moved_and_mirrored
from search.workloads.base import Workload
from search.workloads.recipe import Recipe
from search.workloads.vgg import VGG9

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
VALIDATION, CALIBRATION = 10_000, 2_000
SPLIT_SEED = 0
MEAN, DEVIATION = 0.2860, 0.3530  # of all fit and validation pixels, scaled to [0, 1]
SHIFT = 2
"""Training images are moved by up to this many pixels."""
RECIPE = Recipe(batch=128, dense_epochs=8, dense_learning_rate=0.1, trial_epochs=1, final_epochs=3, learning_rate=0.1)
"""Found with the fine-grained uniform policy at encoded sizes of 10 and 5 %, one epoch, one seed: validation accuracy
was 88.6 and 83.1 at a peak learning rate of 0.05, 89.1 and 85.0 at 0.1, 88.8 and 85.2 at 0.2.
"""
REMEDY = "install Debian's package dataset-fashion-mnist, or name a folder with the four idx files with --data"


def fashion_mnist(data: str | Path | None = None, cache: str | Path = "mlruns/cache", width: float = 1 / 8) -> Workload:
    """48,000 fit, 2,000 calibration, 10,000 validation and 10,000 test images.

    Args:
        data: the only folder to look in; by default the Debian package's, then torchvision's download in `cache`.
        width: width factor of the VGG9.

    Raises:
        EnvironmentProblem: no data there, or files that are not the data set.
    """
    images, labels, test_images, test_labels = (
        _read_idx(path) for path in _four_files(Path(data) if data else None, Path(cache))
    )
    if len(images) < VALIDATION + CALIBRATION + 1 or len(images) != len(labels) or len(test_images) != len(test_labels):
        raise EnvironmentProblem(
            f"fashion-mnist needs more than {VALIDATION + CALIBRATION} training images with as many labels, "
            f"got {len(images)} and {len(labels)}; {REMEDY}"
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
    validation, calibration, fit = order.split([VALIDATION, CALIBRATION, len(images) - VALIDATION - CALIBRATION])
    pixels, targets = _normalised(images), labels.long()
    return Workload(
        name="fashion-mnist",
        build_model=functools.partial(VGG9, width=width, inputs=1),
        fit=(pixels[fit], targets[fit]),
        calibration=(pixels[calibration], targets[calibration]),
        validation=(pixels[validation], targets[validation]),
        test=(_normalised(test_images), test_labels.long()),
        recipe=RECIPE,
        augment=shift_and_flip,
    )


def shift_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move each image by up to `SHIFT` pixels along each axis (edges filled with black) and mirror half of them at
    random.

    (n, channels, height, width) -> the same shape.
    """
    return moved_and_mirrored(images, generator, SHIFT, -MEAN / DEVIATION)


def _normalised(images: Tensor) -> Tensor:
    return (images.float().div_(255).sub_(MEAN).div_(DEVIATION)).unsqueeze(1)


def _four_files(data: Path | None, cache: Path) -> list[Path]:
    """Train images, train labels, test images, test labels."""
    if data is not None:
        found = idx_files(data) or idx_files(data / "FashionMNIST" / "raw")
        if found is None:
            raise EnvironmentProblem(f"no fashion-mnist idx files in {str(data)!r}: {REMEDY}")
        return found
    download = cache / "data"
    return idx_files(DEBIAN_FOLDER) or idx_files(download / "FashionMNIST" / "raw") or _downloaded(download)


def idx_files(folder: Path) -> list[Path] | None:
    """Train images, train labels, test images and test labels in a folder, each plain or gzip; None if one lacks."""
    stems = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    found = [path for stem in stems for path in (folder / stem, folder / f"{stem}.gz") if path.is_file()]
    by_stem = {path.name.removesuffix(".gz"): path for path in reversed(found)}
    return [by_stem[stem] for stem in stems] if len(by_stem) == len(stems) else None


def _downloaded(folder: Path) -> list[Path]:
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(str(folder), train=True, download=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise EnvironmentProblem(f"fashion-mnist was not found and its download failed ({reason}): {REMEDY}") from None
    found = idx_files(folder / "FashionMNIST" / "raw")
    if found is None:
        raise EnvironmentProblem(f"the download into {folder} holds no idx files: {REMEDY}")
    return found


def _read_idx(path: Path) -> Tensor:
    """An idx file of unsigned bytes (plain or gzip), as a uint8 tensor of the shape it states."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise EnvironmentProblem(f"cannot read {path}: {error}; {REMEDY}") from None
    dims = raw[3] if len(raw) > 4 else 0
    shape = np.frombuffer(raw, dtype=">u4", count=dims, offset=4) if len(raw) >= 4 + 4 * dims else ()
    if raw[:3] != b"\0\0\x08" or not dims or len(raw) != 4 + 4 * dims + int(np.prod(shape)):
        raise EnvironmentProblem(f"{path} is not an idx file of bytes: {REMEDY}")
    return torch.from_numpy(np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * dims).reshape(shape).copy())
