"""Random changes of training images, a whole batch at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def moved_and_mirrored(images: Tensor, generator: torch.Generator, most: int, black: float) -> Tensor:
    """Move each image by up to `most` pixels along each axis (edges filled with `black`) and mirror half of them at
    random.

    (n, channels, height, width) -> the same shape; one gather for the whole batch, on its device. Draws are the CPU's.
    """
    n, _, height, width = images.shape
    rows = torch.arange(height) + torch.randint(-most, most + 1, (n, 1), generator=generator)
    columns = torch.arange(width) + torch.randint(-most, most + 1, (n, 1), generator=generator)
    mirrored = torch.rand(n, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    padded = torch.nn.functional.pad(images, [most] * 4, value=black)
    places = (torch.arange(n)[:, None, None], rows[:, :, None] + most, columns[:, None, :] + most)
    image, row, column = (place.to(images.device, non_blocking=True) for place in places)
    picked = padded[image, :, row, column]
    return picked.permute(0, 3, 1, 2)
