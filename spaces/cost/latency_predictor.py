"""A policy's latency, read off the table of its network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, combinations

import numpy as np

from spaces.cost.effect import removed_by_group
from spaces.cost.latency_table import LatencyTable, LayerLatency, RestLatency
from spaces.cost.removal import Shapes
from spaces.network import Layer, Network
from spaces.policy import PruningPolicy


def predict(table: LatencyTable, network: Network, policy: PruningPolicy) -> float:
    """Latency of the pruned network over the dense one's; for many policies keep a `Predictor`."""
    return Predictor(table, network).share(policy)


class Predictor:
    """Predicts policies of one network, with everything that does not depend on the policy worked out.

    Seconds are made monotone first: a smaller layer takes at most what each larger one was measured at, so that
    removing more channels never raises the prediction (but for the last binary digit of a rounding). Between
    grid points it is bilinear in the kept counts; below the smallest point the smallest holds. The rest is the best fit
    (least squares, no coefficient below 0) of a constant, a multiple of the activations and one of the weights.

    Raises:
        ValueError: the table is of another network.
    """

    def __init__(self, table: LatencyTable, network: Network) -> None:
        table.require(network)
        self._network = network
        tensors = {tensor.name: tensor for tensor in network.tensors}
        timed = [layer for layer in network.prunable if layer.name in table.layers]
        self._shapes = Shapes(network, [tensors[layer.name] for layer in timed])
        self._grids = _Grids([table.layers[layer.name] for layer in timed])
        self._positions = np.array([layer.positions for layer in timed], dtype=np.int64)
        self._rest = _fit_rest(table.rest)
        nothing = np.zeros(len(network.groups), dtype=np.int64)
        lengths = self._shapes.lengths(nothing)
        self._dense_activations = int(self._positions @ self._shapes.first_two(lengths)[0])
        self._dense_weights = int(self._shapes.numel(lengths).sum())
        self._dense_seconds = float(self._seconds(nothing))

    def share(self, policy: PruningPolicy) -> float:
        """Latency over the dense network's: exactly 1.0 for a policy that removes no channel.

        Raises:
            ValueError: the policy names a layer the network does not have (nearest match named).
        """
        self._network.require(policy.sparsity)
        self._network.require(policy.removal)
        if self._dense_seconds == 0:
            return 1.0
        return float(self.share_after(removed_by_group(self._network, policy.channel_requests())))

    def share_after(self, removed: np.ndarray) -> np.ndarray:
        """The same (...,) for the units gone of each channel group (..., groups), of many policies at once."""
        if self._dense_seconds == 0:
            return np.ones(removed.shape[:-1])
        return self._seconds(removed) / self._dense_seconds

    def _seconds(self, removed: np.ndarray) -> np.ndarray:
        lengths = self._shapes.lengths(removed)
        outputs, inputs = self._shapes.first_two(lengths)
        activations = _share(outputs @ self._positions, self._dense_activations)
        weights = _share(self._shapes.numel(lengths).sum(axis=-1), self._dense_weights)
        constant, by_activations, by_weights = self._rest
        rest = constant + by_activations * activations + by_weights * weights
        return self._grids.at(outputs, inputs).sum(axis=-1) + rest


def remaining(dense: Sequence[int], kept: Sequence[int]) -> float:
    """Share of all layers' elements that remain, of dense (L,) and kept (L,) ones; 1 if there are none."""
    return float(_share(np.sum(kept), int(np.sum(dense))))


def _share(left: np.ndarray, total: int) -> np.ndarray:
    return left / total if total else np.ones_like(left, dtype=float)


def timed_layers(network: Network) -> tuple[Layer, ...]:
    """The layers one forward pass calls."""
    return tuple(layer for layer in network.prunable if layer.positions)


class _Grids:
    """The layers' grids in one array, padded beyond the dense size, where no query falls."""

    def __init__(self, layers: Sequence[LayerLatency]) -> None:
        points = 1 + max((len(counts) for layer in layers for counts in (layer.outputs, layer.inputs)), default=1)
        self._outputs = _padded_counts([layer.outputs for layer in layers], points)
        self._inputs = _padded_counts([layer.inputs for layer in layers], points)
        self._seconds = np.zeros((len(layers), points, points))
        for number, layer in enumerate(layers):
            measured = _never_above_larger(_never_above_larger(np.array(layer.seconds), axis=0), axis=1)
            missing = [(0, points - length) for length in measured.shape]
            self._seconds[number] = np.pad(measured, missing, mode="edge")

    def at(self, outputs: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """Seconds (..., L) of the layers with these kept channels (..., L), bilinear between grid points."""
        layer = np.arange(outputs.shape[-1])
        row, down = _cell(self._outputs, outputs)
        column, right = _cell(self._inputs, inputs)
        seconds = self._seconds
        above = _between(seconds[layer, row, column], seconds[layer, row, column + 1], right)
        below = _between(seconds[layer, row + 1, column], seconds[layer, row + 1, column + 1], right)
        return _between(above, below, down)


def _fit_rest(points: Sequence[RestLatency]) -> np.ndarray:
    """Coefficients (3,) of 1, activations and weights: the best of all fits that use some and none below 0."""
    terms = np.array([(1.0, point.activations, point.weights) for point in points])
    seconds = np.array([point.seconds for point in points])
    best, error = np.zeros(3), float(seconds @ seconds)
    for used in chain.from_iterable(combinations(range(3), size) for size in (1, 2, 3)):
        fitted = np.linalg.lstsq(terms[:, used], seconds, rcond=None)[0]
        misses = terms[:, used] @ fitted - seconds
        if fitted.min() >= 0 and misses @ misses < error:
            best, error = np.zeros(3), float(misses @ misses)
            best[list(used)] = fitted
    return best


def _padded_counts(counts: Iterable[Sequence[int]], points: int) -> np.ndarray:
    rows = [[*row, *(row[-1] + 1 + extra for extra in range(points - len(row)))] for row in counts]
    return np.array(rows, dtype=np.int64).reshape(-1, points)


def _cell(axis: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The grid point at or below each count (..., L), and how far it is towards the next, in [0, 1]."""
    layer = np.arange(counts.shape[-1])
    lower = np.maximum((axis <= counts[..., None]).sum(axis=-1) - 1, 0)
    left, right = axis[layer, lower], axis[layer, lower + 1]
    return lower, np.maximum((counts - left) / (right - left), 0.0)


def _between(first: np.ndarray, second: np.ndarray, part: np.ndarray) -> np.ndarray:
    return first + part * (second - first)


def _never_above_larger(seconds: np.ndarray, axis: int) -> np.ndarray:
    """Each entry lowered to the smallest at or after it along `axis`."""
    return np.flip(np.minimum.accumulate(np.flip(seconds, axis), axis), axis)
