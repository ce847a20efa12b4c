"""A policy's latency, read off the table of its network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, combinations
from math import prod

import numpy as np

from spaces.cost.effect import kept_units
from spaces.cost.latency_table import LatencyTable, LayerLatency, RestLatency
from spaces.network import Layer, Network, StoredTensor
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
        self._units = np.array([group.units for group in network.groups], dtype=np.int64)
        tensors = {tensor.name: tensor for tensor in network.tensors}
        timed = [layer for layer in network.prunable if layer.name in table.layers]
        self._outputs = _Channels([tensors[layer.name] for layer in timed], 0, network)
        self._inputs = _Channels([tensors[layer.name] for layer in timed], 1, network)
        self._grids = _Grids([table.layers[layer.name] for layer in timed])
        self._positions = np.array([layer.positions for layer in timed], dtype=np.int64)
        self._kernels = np.array([prod(layer.shape[2:]) for layer in timed], dtype=np.int64)
        self._rest = _fit_rest(table.rest)
        self._dense_seconds = float(self._seconds(np.zeros(len(self._units), dtype=np.int64)))

    def share(self, policy: PruningPolicy) -> float:
        """Latency over the dense network's: exactly 1.0 for a policy that removes no channel.

        Raises:
            ValueError: the policy names a layer the network does not have (nearest match named).
        """
        self._network.require(policy.sparsity)
        self._network.require(policy.removal)
        if self._dense_seconds == 0:
            return 1.0
        removed = np.zeros(len(self._units), dtype=np.int64)
        for number, units in kept_units(self._network, policy.channel_requests()).items():
            removed[number] = self._units[number] - units
        return float(self.share_after(removed))

    def share_after(self, removed: np.ndarray) -> np.ndarray:
        """The same (...,) for the units gone of each channel group (..., groups), of many policies at once."""
        if self._dense_seconds == 0:
            return np.ones(removed.shape[:-1])
        return self._seconds(removed) / self._dense_seconds

    def _seconds(self, removed: np.ndarray) -> np.ndarray:
        outputs, inputs = self._outputs.after(removed), self._inputs.after(removed)
        dense_outputs, dense_inputs = self._outputs.dense, self._inputs.dense
        activations = remaining(self._positions * dense_outputs, self._positions * outputs)
        weights = remaining(self._kernels * dense_outputs * dense_inputs, self._kernels * outputs * inputs)
        constant, by_activations, by_weights = self._rest
        rest = constant + by_activations * activations + by_weights * weights
        return self._grids.at(outputs, inputs).sum(axis=-1) + rest


def remaining(dense: Sequence[int], kept: Sequence[int]) -> np.ndarray:
    """Share of all layers' elements that remain, of dense (L,) and kept (..., L) ones; 1 if there are none."""
    total, left = np.sum(dense), np.sum(kept, axis=-1)
    return left / total if total else np.ones_like(left, dtype=float)


def timed_layers(network: Network) -> tuple[Layer, ...]:
    """The layers one forward pass calls."""
    return tuple(layer for layer in network.prunable if layer.positions)


class _Channels:
    """One dimension of every layer's weight: how long it is, dense (L,) and after removing units."""

    def __init__(self, tensors: Sequence[StoredTensor], dim: int, network: Network) -> None:
        self.dense = np.array([tensor.shape[dim] for tensor in tensors], dtype=np.int64)
        self._lost_by_unit = np.zeros((len(tensors), len(network.groups)), dtype=np.int64)
        for row, tensor in enumerate(tensors):
            for group, indices in tensor.owners[dim] if tensor.owners else ():
                self._lost_by_unit[row, group] = indices // network.groups[group].units

    def after(self, removed: np.ndarray) -> np.ndarray:
        """Lengths (..., L) once that many units of each group (..., G) are gone."""
        return self.dense - removed @ self._lost_by_unit.T


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
        row, down = _place(self._outputs, outputs)
        column, right = _place(self._inputs, inputs)
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


def _place(axis: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
