"""BatchNorm recalibration: statistics that fit the weights as they are now."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def recalibrate_(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Replace every BatchNorm's running statistics by the plain average over `batches`, in place.

    Weights do not change, dropout stays off, momentum and the training flags are restored. BatchNorms
    that track no statistics are left alone; with none left, nothing runs.

    Args:
        batches: inputs of at least two values a channel each, from fit or calibration data.

    Returns:
        The number of BatchNorm layers recalibrated.

    Raises:
        ValueError: `batches` is empty.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        raise ValueError("recalibration needs at least one batch of inputs, got none")
    training = {module: module.training for module in model.modules()}
    momenta = {norm: norm.momentum for norm in norms}
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    try:
        for batch in chain([first], batches):
            model(batch)
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        for module, flag in training.items():
            module.training = flag
    return len(norms)
