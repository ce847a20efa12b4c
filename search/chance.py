"""What accuracy a network has that knows nothing of its task."""

from __future__ import annotations

import math

import torch

from search.workloads.base import Workload, accuracy

DEVIATIONS = 2.0
"""How far, in standard deviations of a share of that many examples, accuracy must be above chance to tell anything."""


def chance_accuracy(workload: Workload) -> float | None:
    """Accuracy on validation data up to which a network cannot be told from one that names one class for everything.

    The share of the most frequent class, and `DEVIATIONS` of what chance does to it. None where nothing can be said: a
    metric of the user's own, or targets that are no classes.
    """
    targets = workload.validation[1] if isinstance(workload.validation, tuple) else None
    if workload.metric is not accuracy or not isinstance(targets, torch.Tensor) or targets.is_floating_point():
        return None
    if targets.dim() != 1 or not len(targets):
        return None
    share = float(targets.unique(return_counts=True)[1].max()) / len(targets)
    return min(share + DEVIATIONS * math.sqrt(share * (1 - share) / len(targets)), 1.0)
