"""How much of each layer goes, for any size: allocators that give a plain sparsity dict.

An allocator is a family of sparsity dicts along one number, from nothing removed to as much as it can;
`fit_to_budget` walks the family until the exact size fits the target. Everything here is pure and deterministic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from itertools import accumulate
from typing import Any

import numpy as np

from spaces.allocation.budget import ALMOST_ALL, Target, Unreachable, fit_by_shift, fit_to_budget
from spaces.allocation.histogram import HistogramRanking, ScoreHistogram
from spaces.allocation.importance import AllocationInputs, Ranking
from spaces.bits import FLOAT_BITS
from spaces.validation import check_limit, unknown

SPEED_MIX = 0.5
"""Share of the price on MACs in the allocation for speed."""
LEAST_LIFTED = 0.005
"""Sparsity asked of layers that the scan would leave unpruned, where its size cannot be reached without them."""
LAST_LAYERS_SHARE = 0.85
"""`last-layers-only` starts from the fewest last layers that hold this share of the weights."""
OVERFLOWING: Any = {"over": "ignore", "invalid": "ignore"}
"""What NumPy says nothing of: squares of weights that diverged may be infinite, their ratios NaN; they rank last."""


def uniform(target: Target, inputs: AllocationInputs) -> dict[str, float]:
    """The same sparsity in every layer."""
    return fit_to_budget(lambda t: {layer.name: t * ALMOST_ALL for layer in target.layers}, target)


def global_magnitude(target: Target, inputs: AllocationInputs) -> dict[str, float]:
    """One threshold on the mean square of all units; channels are compared after division by their layer's mean."""

    def score(squares: np.ndarray, numel: int) -> np.ndarray:
        if target.granularity != "channel":
            return squares * (len(squares) / numel)
        with np.errstate(**OVERFLOWING):
            return squares / max(float(squares.mean()), np.finfo(float).tiny)

    def logarithms(squares: ScoreHistogram, numel: int) -> np.ndarray:
        if target.granularity != "channel":
            return squares.logarithms(squares.units / numel)
        return squares.logarithms(1 / max(squares.mean, np.finfo(float).tiny))

    return _by_threshold("global", score, logarithms, target, inputs)


def lamp(target: Target, inputs: AllocationInputs) -> dict[str, float]:
    """One threshold on w_u^2 / sum of w_v^2 over the layer's units v at least as large (LAMP, arXiv 2010.07611).

    Each layer's largest unit scores 1, so no layer is emptied.
    """

    def score(squares: np.ndarray, numel: int) -> np.ndarray:
        ascending = np.sort(squares)
        with np.errstate(**OVERFLOWING):
            tail = np.cumsum(ascending[::-1])[::-1]
            return ascending / np.maximum(tail, np.finfo(float).tiny)

    return _by_threshold("lamp", score, lambda squares, _: squares.lamp_logarithms(), target, inputs)


def erdos_renyi_kernel(target: Target, inputs: AllocationInputs) -> dict[str, float]:
    """Keep shares proportional to (sum of a weight's dimensions) / (their product) (ERK, arXiv 1911.11134)."""
    density = {layer.name: sum(layer.shape) / layer.numel for layer in target.layers}
    top, low = 1 / min(density.values()), 1e-9 / max(density.values())

    def family(t: float) -> dict[str, float]:
        scale = top ** (1 - t) * low**t
        return {name: min(1 - min(1.0, scale * d), ALMOST_ALL) for name, d in density.items()}

    return fit_to_budget(family, target)


def last_layers_only(target: Target, inputs: AllocationInputs) -> dict[str, float]:
    """One sparsity for the last layers; the others and the output layer stay unpruned.

    These are the fewest last layers that hold `LAST_LAYERS_SHARE` of the weights. Where they cannot free enough, more
    are added, the output layer last of all.
    """
    output = target.network.prunable[-1].name
    from_last = target.layers[::-1]
    order = sorted(from_last, key=lambda layer: layer.name == output)
    held = list(accumulate(layer.numel for layer in order))
    enough = next(n for n, weights in enumerate(held, 1) if weights >= LAST_LAYERS_SHARE * held[-1])
    for count in range(enough, len(order) + 1):
        names = [layer.name for layer in order[:count]]

        def family(t: float, names: list[str] = names) -> dict[str, float]:
            return dict.fromkeys(names, t * ALMOST_ALL)

        try:
            return fit_to_budget(family, target)
        except Unreachable:
            if count == len(order):
                raise
    raise AssertionError("unreachable: the loop returns or raises")


def scan(target: Target, inputs: AllocationInputs) -> dict[str, float]:
    """Least summed damage of the scan for the size; see `spaces.allocation.lagrangian`."""
    return _least_damage(target, inputs, 0.0)


def scan_for_speed(target: Target, inputs: AllocationInputs) -> dict[str, float]:
    """Least summed damage of the scan for the size, where MACs cost as much as bytes."""
    return _least_damage(target, inputs, SPEED_MIX)


def _least_damage(target: Target, inputs: AllocationInputs, mix: float) -> dict[str, float]:
    table = inputs.tradeoff_at(target.bits if target.file else FLOAT_BITS)
    if table is None:
        raise ValueError("an allocation by the scan needs a profile: scan the model first")
    rough = table.at(target.aim * table.unpruned_size, mix)
    try:
        return fit_by_shift(rough, target)
    except Unreachable:
        return fit_by_shift({x.name: max(rough.get(x.name, 0.0), LEAST_LIFTED) for x in target.layers}, target)


def _by_threshold(
    name: str,
    score: Callable[[np.ndarray, int], np.ndarray],
    logarithms: Callable[[ScoreHistogram, int], np.ndarray],
    target: Target,
    inputs: AllocationInputs,
) -> dict[str, float]:
    """Remove all units that score below one threshold, the same for all layers.

    Args:
        name: of the allocator; its ranking is kept under it.
        score: scores of a layer's units (n,) from their squared norms (n,) and the number of its weights.
        logarithms: of histograms in place of the squared norms, the logarithms of these scores where bins end (m, 2).
    """

    def rank() -> Ranking | HistogramRanking:
        names = inputs.scores if target.removal else [layer.name for layer in target.layers]
        numel = {name: target.network.by_name[name].numel for name in names}
        found = {name: inputs.scores[name] for name in names}
        if histograms := {name: own for name, own in found.items() if isinstance(own, ScoreHistogram)}:
            places = {name: logarithms(own, numel[name]) for name, own in histograms.items()}
            return HistogramRanking.of(histograms, places)
        arrays = {name: own for name, own in found.items() if isinstance(own, np.ndarray)}
        return Ranking.of({name: score(own, numel[name]) for name, own in arrays.items()}, numel)

    ranking = inputs.worked_out(name, target.kind, rank)
    if isinstance(ranking, HistogramRanking):
        return fit_to_budget(ranking.sparsity, target)
    at = cache(ranking.sparsity)
    return fit_to_budget(lambda t: at(ranking.index(t)), target)


Allocator = Callable[[Target, AllocationInputs], dict[str, float]]
ALLOCATORS: Mapping[str, Allocator] = {
    "scan": scan,
    "lamp": lamp,
    "global": global_magnitude,
    "last-layers": last_layers_only,
    "erk": erdos_renyi_kernel,
    "uniform": uniform,
    "scan-speed": scan_for_speed,
}
SCANNED = ("scan", "scan-speed")
"""Allocators that need a profile."""


def allocate(name: str, target: Target, inputs: AllocationInputs) -> dict[str, float]:
    """Sparsity by layer for the target's size, by the allocator of this name.

    Raises:
        Unreachable: the size is below what this allocator can give.
        ValueError: unknown name, `scan` without a profile, or a share of the target outside (0, 1].
    """
    check_limit("share", target.share)
    if name not in ALLOCATORS:
        raise ValueError(unknown("allocator", name, ALLOCATORS))
    return ALLOCATORS[name](target, inputs)
