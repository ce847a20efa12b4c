"""The latency table: what layers of every size take, measured once, and a policy's latency read off it.

Only removed channels change the latency of dense kernels; masks change nothing. The table holds, for every layer,
seconds over a grid of kept output and input channels, and for some whole networks the seconds of the rest: calls,
norms, activations, and what layers take longer inside a network than alone. A prediction interpolates the grids and
fits the rest by a constant, the activations and the weights that remain.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, combinations, pairwise
from math import prod
from typing import Any

import numpy as np

from spaces.network import Layer, Network, StoredTensor
from spaces.policy import PruningPolicy
from spaces.size import kept_units
from spaces.strict_json import parse_object
from spaces.validation import is_number

LATENCY_VERSION = 1


@dataclass(frozen=True)
class LayerLatency:
    """Seconds of one layer alone, in all its calls of one forward pass.

    Attributes:
        outputs: (n,) counts of kept output channels, strictly rising; the last is the dense one.
        inputs: (m,) kept input channels as the weight's second dimension has them (those of one convolution
            group), likewise.
        seconds: (n, m), the fastest of all rounds; not yet monotone.

    Raises `ValueError` for counts that do not rise from at least 1 and seconds that are not finite or below 0.
    """

    outputs: tuple[int, ...]
    inputs: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        for counts in (self.outputs, self.inputs):
            if not counts or any(type(count) is not int for count in counts) or counts[0] < 1 or not _rising(counts):
                raise ValueError(f"kept channels must be whole numbers >= 1 that rise, got {counts!r}")
        if [len(row) for row in self.seconds] != [len(self.inputs)] * len(self.outputs):
            raise ValueError(f"seconds must have {len(self.outputs)} rows of {len(self.inputs)}")
        for row in self.seconds:
            for value in row:
                _check_seconds(value)


@dataclass(frozen=True)
class RestLatency:
    """Seconds a network takes beyond its layers alone, at the size it was measured at.

    Attributes:
        activations: share of the dense layers' output elements that remain, in (0, 1].
        weights: share of the dense layers' weight elements that remain, in (0, 1].
        seconds: at least 0.
    """

    activations: float
    weights: float
    seconds: float

    def __post_init__(self) -> None:
        _check_seconds(self.seconds)
        for share in (self.activations, self.weights):
            if not (is_number(share) and 0 < share <= 1):
                raise ValueError(f"what remains must be a share in (0, 1], got {share!r}")


@dataclass(frozen=True)
class LatencyTable:
    """What `pruning.latency` measured of one network on one device.

    Attributes:
        model: fingerprint of the architecture it was taken on.
        device: the processor's name.
        threads: that PyTorch computed with.
        batch: examples of one forward pass.
        layers: layer -> its grid; layers the forward pass never calls are absent.
        rest: at several sizes, the dense one first.
        dense_seconds: of the whole dense network, fastest round.
        spread: of the dense network's times, interquartile range over median.

    Raises `ValueError` for numbers out of these ranges.
    """

    model: str
    device: str
    threads: int
    batch: int
    layers: Mapping[str, LayerLatency]
    rest: tuple[RestLatency, ...]
    dense_seconds: float
    spread: float

    def __post_init__(self) -> None:
        for count in (self.threads, self.batch):
            if type(count) is not int or count < 1:
                raise ValueError(f"threads and batch must be whole numbers >= 1, got {count!r}")
        for value in (self.dense_seconds, self.spread):
            _check_seconds(value)
        if not self.rest or (self.rest[0].activations, self.rest[0].weights) != (1, 1):
            raise ValueError("the rest must begin with the dense network's")

    def require(self, network: Network) -> None:
        """Raise `ValueError` unless the table is of a network with these layers and sizes."""
        for layer in network.prunable:
            grid = self.layers.get(layer.name)
            if grid is None and layer.positions:
                raise ValueError(f"the latency table lacks layer {layer.name!r}: measure again")
            if grid is not None and (grid.outputs[-1], grid.inputs[-1]) != layer.shape[:2]:
                measured = f"{grid.outputs[-1]} x {grid.inputs[-1]}"
                actual = f"{layer.shape[0]} x {layer.shape[1]}"
                raise ValueError(f"the latency table has {layer.name!r} as {measured}, it is {actual}: measure again")

    def to_json(self) -> str:
        """JSON text; `from_json` undoes it."""
        return json.dumps({"version": LATENCY_VERSION, **asdict(self)}, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> LatencyTable:
        """Read what `to_json` wrote; another version, missing fields and impossible values raise `ValueError`."""
        data: dict[str, Any] = parse_object(text)
        if data.pop("version", None) != LATENCY_VERSION:
            raise ValueError(f"latency table version must be {LATENCY_VERSION}: measure again")
        try:
            layers = {name: _read_layer(**grid) for name, grid in data.pop("layers").items()}
            rest = tuple(RestLatency(**point) for point in data.pop("rest"))
            return cls(layers=layers, rest=rest, **data)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ValueError(f"damaged latency table ({error}): measure again") from None


@dataclass(frozen=True)
class TimedNetwork:
    """A whole network timed in rounds in which the dense one runs too.

    Attributes:
        seconds: of one forward pass, median over the rounds.
        spread: of these seconds, interquartile range over median.
        share: of the dense network's seconds in the same round, median over the rounds.
        low: lower end of the interval of `share`, see `median_interval`.
        high: upper end.

    Raises `ValueError` for numbers that are not finite or below 0, and a share outside its interval.
    """

    seconds: float
    spread: float
    share: float
    low: float
    high: float

    def __post_init__(self) -> None:
        for value in (self.seconds, self.spread, self.low):
            _check_seconds(value)
        if not (is_number(self.share) and is_number(self.high) and self.low <= self.share <= self.high):
            raise ValueError(f"share must lie in its interval, got {self.share!r} of [{self.low!r}, {self.high!r}]")


@dataclass(frozen=True)
class TimedNetworks:
    """Networks timed together on one device.

    Attributes:
        device: the processor's name.
        threads: that PyTorch computed with.
        batch: examples of one forward pass.
        rounds: that counted.
        dense: the dense network; its share is exactly 1.
        copy: the dense network once more (A/A control): how far apart equal networks come out.
        networks: name -> what it took.
    """

    device: str
    threads: int
    batch: int
    rounds: int
    dense: TimedNetwork
    copy: TimedNetwork
    networks: Mapping[str, TimedNetwork]

    def within_noise(self, name: str) -> bool:
        """Whether a network's interval meets that of the dense copy: it is not shown to be faster or slower."""
        network = self.networks[name]
        return network.low <= self.copy.high and self.copy.low <= network.high


def timed_network(seconds: Sequence[float], dense: Sequence[float]) -> TimedNetwork:
    """Sum up a network's seconds and the dense one's, round by round.

    Raises `ValueError` for other counts of rounds, for none, and for a dense network that takes no time.
    """
    if len(seconds) != len(dense) or not len(dense) or min(dense) <= 0:
        raise ValueError(f"a share needs seconds above 0 of the dense network in every round, got {dense!r}")
    shares = np.asarray(seconds, dtype=float) / np.asarray(dense, dtype=float)
    low, middle, high = np.quantile(seconds, (0.25, 0.5, 0.75))
    spread = float((high - low) / middle) if middle else 0.0
    return TimedNetwork(float(middle), spread, float(np.median(shares)), *median_interval(shares.tolist()))


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """A 95 % interval of the median that holds for any distribution; of fewer than 6 values the smallest and largest.

    From the k-th smallest to the k-th largest value, k as large as leaves at most 5 % outside by the sign test
    (Conover, Practical Nonparametric Statistics, 3rd edition, 3.2).

    >>> median_interval([8.0, 1.0, 2.0, 3.0, 5.0, 4.0, 7.0, 6.0, 9.0])
    (2.0, 8.0)
    """
    ordered, count, outside, k = sorted(values), len(values), 0, 0
    while 40 * (outside + math.comb(count, k)) <= 2**count:  # whole numbers: 2**1024 is no float
        outside, k = outside + math.comb(count, k), k + 1
    place = max(k - 1, 0)
    return ordered[place], ordered[count - 1 - place]


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


def _rising(values: Sequence[float]) -> bool:
    return all(before < after for before, after in pairwise(values))


def _check_seconds(value: object) -> None:
    if not (is_number(value) and value >= 0):
        raise ValueError(f"seconds and spread must be finite and at least 0, got {value!r}")


def _read_layer(outputs: Iterable[int], inputs: Iterable[int], seconds: Iterable[Iterable[float]]) -> LayerLatency:
    return LayerLatency(tuple(outputs), tuple(inputs), tuple(tuple(row) for row in seconds))
