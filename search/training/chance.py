"""The accuracy that a network has without knowing anything about its task."""

from __future__ import annotations

import math

from torch import Tensor

from search.workloads.base import Workload
from search.workloads.metrics import DISTRIBUTION_SLACK, IGNORED, accuracy, is_default

SEEN = 1000
"""Targets that are looked at where validation data is not in memory."""
DEVIATIONS = 2.0
"""How many standard deviations (of a share of that many examples) an accuracy must be above chance to tell anything."""


def chance_accuracy(workload: Workload) -> float | None:
    """The accuracy on validation data up to which a network cannot be told from one that always names the same class.

    This is the share of the most frequent class, plus `DEVIATIONS` standard deviations of that share. None if nothing
    can be said: the metric is the user's own, or the targets may not be classes.
    """
    if workload.evaluate is not None or not is_default(workload.metric):
        return None
    targets = workload.examples("validation").held(SEEN)[1]
    if not isinstance(targets, Tensor):
        return None
    labels = _class_numbers(targets, binary=workload.metric is not accuracy)
    if labels is None or not len(labels):
        return None
    share = float(labels.unique(return_counts=True)[1].max()) / len(labels)
    return min(share + DEVIATIONS * math.sqrt(share * (1 - share) / len(labels)), 1.0)


def _class_numbers(targets: Tensor, binary: bool) -> Tensor | None:
    """The class of every example, or pixel, that counts; None if the targets alone do not tell."""
    column = targets.dim() > 1 and targets.shape[1] == 1
    if column:
        targets = targets[:, 0]
    elif targets.dim() == 2 and targets.is_floating_point():
        sums = targets.float().sum(dim=1)
        shares = bool((targets >= 0).all()) and bool(((sums - 1).abs() <= DISTRIBUTION_SLACK).all())
        return targets.argmax(dim=1) if shares else None
    elif targets.dim() == 2 or (targets.dim() > 2 and (binary or targets.is_floating_point())):
        return None
    labels = targets.flatten()
    if labels.is_floating_point() and bool((labels != labels.round()).any()):
        return None
    return labels[labels != IGNORED]
