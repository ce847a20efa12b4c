"""Fashion-MNIST's garments in CIFAR-10's files: the workload `cifar10` can be tried where CIFAR-10 is not to be had.

    python tests/benchmarks/garments_as_cifar.py FOLDER [--each 500]

Images are real: 28 x 28, framed in black to 32 x 32, the same in all three channels; ten classes. Five files of
training images and one of test images, in the binary layout that CIFAR-10 is published in.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from search import get_workload
from search.workloads.cifar_files import NAMES
from search.workloads.fashion_mnist import DEVIATION, MEAN


def write_garments(folder: Path, each: int) -> None:
    """Write six files of `each` images."""
    data = get_workload("fashion-mnist")
    folder.mkdir(parents=True, exist_ok=True)
    for place, name in enumerate(NAMES):
        images, labels = data.test if name == "test_batch" else data.fit
        start = 0 if name == "test_batch" else place * each
        (folder / f"{name}.bin").write_bytes(_records(images[start : start + each], labels[start : start + each]))


def _records(images: Tensor, labels: Tensor) -> bytes:
    """A label and 3 x 32 x 32 bytes for each image."""
    pixels = ((images * DEVIATION + MEAN) * 255).round().clamp(0, 255).to(torch.uint8)
    framed = pad(pixels, (2, 2, 2, 2)).expand(-1, 3, -1, -1).flatten(1)
    return bytes(torch.cat([labels[:, None].to(torch.uint8), framed], dim=1).numpy())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--each", type=int, default=500, help="images in a file")
    options = parser.parse_args()
    write_garments(options.folder, options.each)
