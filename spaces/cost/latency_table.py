"""The latency table: what layers of every size take, measured once, and a policy's latency read off it.

Only removed channels change the latency of dense kernels; masks change nothing. The table holds, for every layer,
seconds over a grid of kept output and input channels, and for some complete networks the seconds of the rest: calls,
norms, activations, and what layers take longer inside a network than alone. A prediction interpolates the grids and
fits the rest by a constant, the activations and the weights that remain.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from spaces.network import Network
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
                check_seconds(value)


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
        check_seconds(self.seconds)
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
        dense_seconds: of the complete dense network, fastest round.
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
            check_seconds(value)
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

    def is_of(self, network: Network) -> bool:
        """Whether `require` takes the network."""
        try:
            self.require(network)
        except ValueError:
            return False
        return True

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


def _rising(values: Sequence[float]) -> bool:
    return all(before < after for before, after in pairwise(values))


def check_seconds(value: object) -> None:
    if not (is_number(value) and value >= 0):
        raise ValueError(f"seconds and spread must be finite and at least 0, got {value!r}")


def _read_layer(outputs: Iterable[int], inputs: Iterable[int], seconds: Iterable[Iterable[float]]) -> LayerLatency:
    return LayerLatency(tuple(outputs), tuple(inputs), tuple(tuple(row) for row in seconds))
