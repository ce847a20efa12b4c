"""Histograms of weights, zeros apart: what pruning cuts out of a layer, and what fine-tuning makes of the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pruning.importance.weights import NotFiniteError

BINS = 80
"""Of a histogram: at a few thousand weights the shape shows, and a removed middle is several bins wide."""
TAIL = 0.0025
"""The share of the lowest weights, and of the highest, that share a bin where they lie far from the others."""
FAR = 2
"""How many times as wide as without tails the range of weights has to be for that."""


@dataclass(frozen=True)
class Histogram:
    """The nonzero weights of one layer, counted by value.

    Attributes:
        counts: nonzero weights between neighbouring edges (bins,); the last bin holds its upper edge too.
        edges: rising (bins + 1,), evenly; but for the outermost, which reach out to weights that lie apart.
        zeros: weights that are exactly zero; in no bin.
        gone: weights of the dense layer that left with removed channels.
    """

    counts: tuple[int, ...]
    edges: tuple[float, ...]
    zeros: int
    gone: int = 0

    @property
    def numel(self) -> int:
        """Weights of the dense layer."""
        return sum(self.counts) + self.zeros + self.gone


def layer_histograms(stages: Sequence[Tensor], bins: int = BINS) -> tuple[Histogram, ...]:
    """A histogram for every stage of one layer, all with the same edges, so that they can be compared bin by bin.

    The edges reach from the lowest to the highest nonzero weight of all stages; without any, from 0 to 1. A few weights
    far from the others would leave most bins empty: then the outermost bins hold them, and the others have even widths.

    Args:
        stages: the layer's weight, the dense one first; later ones may have lost channels.

    Raises:
        ValueError: NaN or infinite weights.

    >>> import torch
    >>> dense, pruned = layer_histograms([torch.tensor([-1.0, 0.5, 2.0]), torch.tensor([0.0, 2.0])], bins=3)
    >>> dense.counts, dense.edges, pruned.counts, pruned.zeros, pruned.gone
    ((1, 1, 1), (-1.0, 0.0, 1.0, 2.0), (0, 0, 1), 1, 1)
    """
    values = [stage.detach().cpu().double().numpy().ravel() for stage in stages]
    if not all(np.isfinite(stage).all() for stage in values):
        raise NotFiniteError("weights hold NaN or infinite values: a histogram needs finite ones")
    nonzero = [stage[stage != 0] for stage in values]
    edges = _edges(np.concatenate(nonzero), bins)
    return tuple(
        Histogram(
            counts=tuple(np.histogram(left, edges)[0].tolist()),
            edges=tuple(edges.tolist()),
            zeros=stage.size - left.size,
            gone=values[0].size - stage.size,
        )
        for stage, left in zip(values, nonzero, strict=True)
    )


def _edges(values: np.ndarray, bins: int) -> np.ndarray:
    whole = np.histogram_bin_edges(values, bins)
    if not len(values):
        return whole
    low, high = np.quantile(values, TAIL, method="lower"), np.quantile(values, 1 - TAIL, method="higher")
    if not 0 < high - low < (whole[-1] - whole[0]) / FAR:
        return whole
    inner = np.linspace(low, high, bins + 1)
    return np.array([min(inner[0], whole[0]), *inner[1:-1], max(inner[-1], whole[-1])])
