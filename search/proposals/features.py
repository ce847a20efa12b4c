"""What a surrogate sees of a policy: numbers its error depends on smoothly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from spaces.bits import FLOAT_BITS
from spaces.granularity import parts_of
from spaces.schedule import Schedule
from spaces.search_space.batch_projection import ProjectedBatch
from spaces.search_space.projection import Projector
from spaces.search_space.space import SEED_SCHEDULE, Draft, Space

MOST_BUCKETS = 16
"""Neighbouring layers (or channel groups) share a feature in networks with more of them than this."""
LEAST_KEPT = 1e-3
"""Smaller shares kept count as this one."""
ALL_LAYERS_WEIGHT = 6.0
"""Weight of the sum over all layers against that of one layer, 1."""


@dataclass(frozen=True)
class Landed:
    """A trial's point, fitted to its size, as the guide sees it.

    Attributes:
        draft: the point.
        features: as `Features.of` says (columns,).
        asked: of each layer, as `Features.asked` says.
        size: share of the dense size, by the batch's approximate fit.
        speed: the third objective, a share of the dense model's, by the same fit.
    """

    draft: Draft
    features: np.ndarray
    asked: np.ndarray
    size: float
    speed: float


class Features:
    """Numbers of a policy, in columns: what each layer keeps, what all keep together, its size and its schedule.

    In order: (share kept)^-1/2 of each layer by masks and of each channel group by removals, along the network; their
    sum; the logarithm of the size; whether pruning is at one shot, and the exponent; then, for each kind of mask in the
    space but the first, its part of the sum; then, in a space of several bits, 2^-bits (half a step between stored
    values, over the largest) of each layer where layers may differ, and their sum.

    Columns of a layer's other ways of pruning are 0. Where masks follow a removal, their columns hold what they add to
    it, so that masks that remove nothing leave the removal alone. Of the powers and the logarithm of the share kept,
    -1/2 predicted fine-tuned accuracies best (`tests/benchmarks/proxies.py`). The sum says that pruning any layer
    more is alike before anything is known of that layer.
    """

    def __init__(self, space: Space) -> None:
        network = space.network
        self._removable = np.array([float(group.obstacle is None) for group in network.groups])
        self._by_mask = _buckets(np.array([layer.numel for layer in network.prunable], dtype=float))
        self._by_removal = _buckets(self._removable)
        parts = {n: parts_of(name) for n, name in enumerate(space.granularities) if name in space.choices}
        self._two_stage = [n for n, own in parts.items() if len(own) > 1]
        kinds = dict.fromkeys(own[-1] for own in parts.values() if own[-1] != "channel")
        self._further = [[n for n, own in parts.items() if own[-1] == kind] for kind in list(kinds)[1:]]
        self._rounded, self._by_layer = len(space.bits) > 1, space.mixed

    @property
    def layers(self) -> slice:
        """The columns of single layers."""
        return slice(self._by_mask.shape[1] + self._by_removal.shape[1])

    @property
    def weights(self) -> np.ndarray:
        """What each column counts (columns,)."""
        plain = [1.0] * self.layers.stop + [ALL_LAYERS_WEIGHT, 1.0, 1.0, 1.0] + [1.0] * len(self._further)
        return np.array(plain + [1.0] * (self._rounding_columns - 1) + [ALL_LAYERS_WEIGHT] * self._rounded)

    @property
    def _rounding_columns(self) -> int:
        return (1 + self._by_mask.shape[1] * self._by_layer) * self._rounded

    def of(self, batch: ProjectedBatch) -> np.ndarray:
        """(p, columns)."""
        asked = batch.requests
        masked = asked.by_mask / np.sqrt(np.maximum(1 - asked.masked, LEAST_KEPT)) - self._follow(batch)
        removed = asked.by_removal / np.sqrt(np.maximum(1 - asked.removed, LEAST_KEPT))
        schedule = np.array([_schedule(draft.schedule) for draft in batch.drafts])
        added = masked - (asked.by_mask & ~self._follow(batch))
        further = [(added * np.isin(asked.words, indices)) @ self._by_mask for indices in self._further]
        columns = self._columns(masked, removed, np.log(batch.sizes), schedule)
        return np.column_stack([columns, *(one.sum(axis=1) for one in further), self._rounding(asked.bits)])

    def landed(self, projector: Projector, params: Mapping[str, Any]) -> Landed:
        """One point of the projector's space, fitted by itself, so that its numbers depend on no other's."""
        draft = projector.space.draft(params)
        batch = projector.project_batch([draft])
        return Landed(draft, self.of(batch)[0], self.asked(batch)[0], float(batch.sizes[0]), float(batch.speeds[0]))

    def _rounding(self, bits: np.ndarray) -> np.ndarray:
        """The columns that say how coarsely values are rounded (p, columns), of the bits of each layer (p, layers)."""
        steps = np.where(bits < FLOAT_BITS, 2.0**-bits, 0.0) @ self._by_mask
        return np.column_stack([steps, steps.sum(axis=1)])[:, steps.shape[1] + 1 - self._rounding_columns :]

    def asked(self, batch: ProjectedBatch) -> np.ndarray:
        """The columns of single layers (p, columns), 1 wherever nothing is removed; 0 if pruned in another way."""
        columns = self.of(batch)[:, self.layers]
        columns[:, : self._by_mask.shape[1]] += self._follow(batch) @ self._by_mask
        return columns

    def _follow(self, batch: ProjectedBatch) -> np.ndarray:
        """Which masks follow a removal (p, layers), bool."""
        return batch.requests.by_mask & np.isin(batch.requests.words, self._two_stage)

    def dense(self, channel: bool) -> np.ndarray:
        """Of the network with nothing removed or rounded, as the limit of masks or of removals (columns,)."""
        masked = np.full((1, len(self._by_mask)), float(not channel))
        removed = self._removable[None] * float(channel)
        columns = self._columns(masked, removed, np.zeros(1), np.array([_schedule(SEED_SCHEDULE)]))[0]
        return np.append(columns, np.zeros(len(self._further) + self._rounding_columns))

    def _columns(self, masked: np.ndarray, removed: np.ndarray, sizes: np.ndarray, schedule: np.ndarray) -> np.ndarray:
        by_layer = np.column_stack([masked @ self._by_mask, removed @ self._by_removal])
        return np.column_stack([by_layer, by_layer.sum(axis=1), sizes, schedule])


def _schedule(schedule: Schedule) -> tuple[float, float]:
    one_shot = schedule.kind == "one-shot"
    return float(one_shot), 0.0 if one_shot else np.log(schedule.exponent / 3)


def _buckets(weights: np.ndarray) -> np.ndarray:
    """(n, buckets): weighted means over runs of neighbours; one bucket each where n is small."""
    count = min(len(weights), MOST_BUCKETS)
    bucket = np.arange(len(weights)) * count // max(len(weights), 1)
    matrix = np.zeros((len(weights), count))
    matrix[np.arange(len(weights)), bucket] = weights
    return matrix / np.maximum(matrix.sum(axis=0), 1e-12)
