"""Sensitivity scan: loss and accuracy against sparsity, one layer at a time."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pruning.calibrate import recalibrate_
from pruning.channels import ChannelGraph
from pruning.masks import apply_masks_
from pruning.prune import policy_masks
from spaces.policy import PruningPolicy
from spaces.profile import Profile, ProfilePoint
from spaces.size import achieved

LEVELS = (0.3, 0.5, 0.7, 0.85, 0.93, 0.97, 0.99)
"""Sparsities scanned: even steps in the logarithm of what is kept, where damage begins to bend."""
SCAN_BATCH = 500
"""Examples a forward pass at most; the data is cut into equal parts, each one BatchNorm statistic."""

Scorer = Callable[[nn.Module], tuple[float, float]]


def scan_sensitivity(
    model: nn.Module,
    graph: ChannelGraph,
    data: tuple[Tensor, Tensor],
    loss: Callable[[Tensor, Tensor], Tensor],
    metric: Callable[[Tensor, Tensor], float],
    granularities: Sequence[str] = ("fine-grained", "channel"),
    criterion: str = "magnitude-l2",
    levels: Sequence[float] = LEVELS,
    fingerprint: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Profile:
    """Prune each layer alone to each level, one-shot, and score the model with and without recalibration.

    Channels are masked, not removed: the outputs are the same. Channel groups are scanned once, as a whole,
    and reported for each of their layers; layers that cannot be pruned in a granularity are left out of it.

    Args:
        model: trained; stays as it is.
        graph: its traced channel groups.
        data: calibration inputs (n, ...) and targets (n, ...).
        loss: (outputs, targets) -> scalar; of all of `data` at once.
        metric: (outputs, targets) -> float in [0, 1].
        levels: sparsities, each in [0, 1); the achieved ones are reported.
        fingerprint: kept in the profile, to tell whose it is.
        progress: called with (points done, points in all).
    """
    inputs, targets = data
    batches = inputs.tensor_split(math.ceil(len(inputs) / SCAN_BATCH))

    @torch.inference_mode()
    def scored(candidate: nn.Module) -> tuple[float, float]:
        outputs = torch.cat([candidate(batch) for batch in batches])
        return float(loss(outputs, targets)), float(metric(outputs, targets))

    began = time.perf_counter()
    dense = copy.deepcopy(model).eval()
    dense_loss, dense_accuracy = scored(dense)
    subjects = [(g, names) for g in granularities for names in _subjects(graph, g)]
    points: dict[str, dict[str, tuple[ProfilePoint, ...]]] = {granularity: {} for granularity in granularities}
    for number, (granularity, names) in enumerate(subjects):
        row = []
        for place, level in enumerate(levels):
            policy = PruningPolicy(dict.fromkeys(names, level), granularity, criterion=criterion)
            pruned = copy.deepcopy(dense)
            apply_masks_(pruned, policy_masks(dense, policy, graph=graph)[0])
            plain = scored(pruned)
            recalibrated = scored(pruned) if recalibrate_(pruned, batches) else plain
            row.append(ProfilePoint(achieved(graph.network, policy)[names[0]], *plain, *recalibrated))
            if progress:
                progress(number * len(levels) + place + 1, len(subjects) * len(levels))
        points[granularity].update(dict.fromkeys(names, tuple(row)))
    return Profile(fingerprint, len(targets), dense_loss, dense_accuracy, points, time.perf_counter() - began)


def _subjects(graph: ChannelGraph, granularity: str) -> list[tuple[str, ...]]:
    """What is pruned together in one point of the scan."""
    if granularity == "channel":
        return [group.layers for group in graph.network.groups if group.obstacle is None]
    return [(layer.name,) for layer in graph.network.layers if layer.numel > 1]
