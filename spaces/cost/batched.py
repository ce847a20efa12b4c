"""Sizes and speeds of many requests at once, vectorised over requests and layers.

Sizes are those of `spaces.cost.footprint`, to a byte where weights are rounded. Where they are not, the header's length
is taken from the dense model: the error is about a thousandth of networks that are worth pruning, and several percent
of ones with a few thousand parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import numpy as np

from spaces.bits import FLOAT_BITS
from spaces.cost.coded_size import SizesAtBits, coded_sizes_of
from spaces.cost.container import GAP_ESCAPE
from spaces.cost.footprint import dense_footprint
from spaces.cost.latency_predictor import Predictor
from spaces.cost.removal import ChannelGroups, Shapes, channel_groups_of, distinct_shapes
from spaces.counting import removed_units
from spaces.granularity import Divisions, parts_of
from spaces.network import ITEM_BYTES, Network


@dataclass(frozen=True)
class BatchCosts:
    """Shares of the dense network's (p,); latency is None without a predictor."""

    size: np.ndarray
    macs: np.ndarray
    latency: np.ndarray | None


@dataclass(frozen=True)
class Requests:
    """What p points ask of a network.

    Attributes:
        masked: share of its elements each layer has masked (p, layers).
        removed: share of its units each channel group loses (p, groups).
        by_mask: layers whose granularity is a mask's (p, layers), bool.
        by_removal: groups whose layers all have granularity `channel`, or that lose channels before masks
            (p, groups), bool.
        words: each layer's granularity (p, layers), as an index into the granularities of the space.
        bits: of each layer's values (p, layers); 32 by default.
    """

    masked: np.ndarray
    removed: np.ndarray
    by_mask: np.ndarray
    by_removal: np.ndarray
    words: np.ndarray
    bits: np.ndarray = field(default_factory=lambda: np.array(FLOAT_BITS))

    def __post_init__(self) -> None:
        if self.bits.shape != self.masked.shape:
            object.__setattr__(self, "bits", np.broadcast_to(self.bits, self.masked.shape))

    def __add__(self, other: Requests) -> Requests:
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return Requests(*(np.concatenate(pair) for pair in pairs))

    def at(self, points: Sequence[int]) -> Requests:
        """Those of the points with these indices, in this order."""
        return Requests(*(getattr(self, field.name)[points] for field in fields(self)))


class Costs:
    """Sizes and MACs of many requests, vectorised over points and layers.

    Args:
        metric: `encoded` or `nonzero`.
        latency: predicts it, if it matters.
        granularities: what `Requests.words` are indices into.
    """

    def __init__(
        self,
        network: Network,
        metric: str,
        latency: Predictor | None = None,
        granularities: Sequence[str] = ("fine-grained", "channel"),
    ) -> None:
        self._network, self._metric, self._latency = network, metric, latency
        self._at: tuple[np.ndarray, SizesAtBits] | None = None
        layers = network.prunable
        divisions = {n: Divisions(layers, [parts_of(word)[-1]] * len(layers)) for n, word in enumerate(granularities)}
        self._divisions = {n: found for n, found in divisions.items() if not found.plain}
        dense = dense_footprint(network)
        self._dense_macs = max(dense.macs, 1)
        self._dense = dense.encoded_bytes if metric == "encoded" else dense.parameters
        self._positions = np.array([layer.positions for layer in network.prunable], dtype=float)
        self._maskable = np.array([layer.whole is None for layer in network.prunable], dtype=float)

    @cached_property
    def _groups(self) -> ChannelGroups:
        return channel_groups_of(self._network)

    @cached_property
    def _item(self) -> np.ndarray:
        tensors = {tensor.name: tensor for tensor in self._network.tensors}
        return np.array([ITEM_BYTES[tensors[layer.name].dtype] for layer in self._network.prunable], dtype=float)

    @cached_property
    def _layers(self) -> Shapes:
        tensors = {tensor.name: tensor for tensor in self._network.tensors}
        return Shapes(self._network, [tensors[name] for name in self._network.layer_names], float)

    @cached_property
    def _others(self) -> tuple[Shapes, np.ndarray, np.ndarray]:
        """All that is no prunable layer: its distinct shapes (s,), what an element of each adds to size and MACs
        (s, 2), and in the measure `encoded` to version 2 in bits (s,)."""
        network, names = self._network, set(self._network.layer_names)
        others = [tensor for tensor in network.tensors if tensor.name not in names]
        first, shape = distinct_shapes(others)
        costs = np.zeros((len(first), 2))
        if self._metric == "encoded":
            stored = [ITEM_BYTES[tensor.dtype] for tensor in others]
        else:
            stored = [int(tensor.parameter) for tensor in others]
        positions = [network.multiplied.get(tensor.name, 0) for tensor in others]
        np.add.at(costs, shape, np.array([stored, positions], dtype=float).T)
        used, bits = np.flatnonzero(costs.any(axis=1)), np.zeros(len(first))
        if self._metric == "encoded":
            bits = coded_sizes_of(network).per_other[1, 1] @ np.eye(len(first))[shape]
        return Shapes(network, [first[n] for n in used], float), costs[used], bits[used]

    @cached_property
    def _coded_layers(self) -> tuple[np.ndarray, np.ndarray]:
        """The layers of `CodedSizes`, as indices of the prunable ones (n,), and what their output dimensions are (n,),
        as indices of the lengths of `_layers`."""
        index = {name: n for n, name in enumerate(self._network.layer_names)}
        own = np.array([index[tensor.name] for tensor in coded_sizes_of(self._network).layers], dtype=np.int64)
        dims = np.array([self._network.prunable[n].output_dim for n in own], dtype=np.int64)
        return own, self._layers.dimensions[dims, own]

    @cached_property
    def _header(self) -> float:
        if self._metric != "encoded":
            return 0.0
        return self._dense - sum(tensor.numel * ITEM_BYTES[tensor.dtype] for tensor in self._network.tensors)

    def of(self, requests: Requests) -> BatchCosts:
        """What the requests leave of the dense network."""
        gone = self._groups.removed(requests.removed)
        lengths = self._layers.lengths(gone)
        numel, first_two = self._layers.numel(lengths), self._layers.first_two(lengths) if self._divisions else ()
        nonzero = numel - self._zeros(requests, numel, first_two)
        shapes, costs, bits = self._others
        others = shapes.numel(shapes.lengths(gone))
        size, macs = (others @ costs).T
        rounded = (requests.bits < FLOAT_BITS).any(axis=1) & (self._metric == "encoded")
        if not rounded.all():
            plain = nonzero if self._metric == "nonzero" else self._encoded(numel, nonzero, requests.words, first_two)
            size = plain.sum(axis=1) + size + self._header
        if rounded.any():
            size = np.where(rounded, self._coded(requests.bits, numel, nonzero, lengths, others @ bits), size)
        macs = (numel @ self._positions + macs + self._network.other_macs) / self._dense_macs
        latency = self._latency.share_after(gone.astype(np.int64)) if self._latency else None
        return BatchCosts(size / self._dense, macs, latency)

    def _coded(
        self, bits: np.ndarray, numel: np.ndarray, nonzero: np.ndarray, lengths: np.ndarray, others: np.ndarray
    ) -> np.ndarray:
        """Bytes of version 2 (p,).

        Args:
            bits, numel, nonzero: of the layers (p, layers).
            lengths: of their dimensions (p, m).
            others: bits of all else (p,).
        """
        if self._at is None or self._at[0] is not bits:  # a bisection asks for the same points again and again
            self._at = bits, coded_sizes_of(self._network).at(bits[:, self._coded_layers[0]])
        own, outputs = self._coded_layers
        return self._at[1].bytes(numel[:, own], nonzero[:, own], lengths[:, outputs], others)

    def _left(self, gone: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Elements, and where units need them the first two dimensions, of the layers (p, layers) once groups lost
        `gone` units (p, groups)."""
        lengths = self._layers.lengths(gone)
        return self._layers.numel(lengths), self._layers.first_two(lengths) if self._divisions else ()

    def achieved(self, requests: Requests, in_turn: bool = False) -> Requests:
        """The shares really taken where units of several weights, or multiples that groups keep to, round them.

        Args:
            in_turn: masks come after removals, as shares of what these leave; else of the dense layers.
        """
        if self._divisions:
            gone = self._groups.removed(requests.removed) if in_turn else np.zeros_like(requests.removed)
            numel, lengths = self._left(gone)
            by_unit = np.isin(requests.words, list(self._divisions))
            masked = np.where(by_unit, self._zeros(requests, numel, lengths) / numel, requests.masked) * self._maskable
            requests = replace(requests, masked=masked)
        if self._groups.in_multiples:
            removed = self._groups.removed(requests.removed) / np.maximum(self._groups.units, 1)
            requests = replace(requests, removed=removed)
        return requests

    def _zeros(self, requests: Requests, numel: np.ndarray, lengths: Sequence[np.ndarray]) -> np.ndarray:
        requests = replace(requests, masked=requests.masked * self._maskable)
        zeros = removed_units(requests.masked, numel)
        for word, divisions in self._divisions.items():
            own = (requests.words == word) & (requests.masked > 0)
            if own.any():
                zeros = np.where(own, divisions.zeros(requests.masked, numel, lengths), zeros)
        return zeros

    def _encoded(
        self, numel: np.ndarray, nonzero: np.ndarray, words: np.ndarray, lengths: Sequence[np.ndarray]
    ) -> np.ndarray:
        gaps = nonzero * (self._item + 1) + np.floor((numel - nonzero) / GAP_ESCAPE)
        size = np.minimum(np.minimum(numel * self._item, np.ceil(numel / 8) + nonzero * self._item), gaps)
        for word, divisions in self._divisions.items():
            own = divisions.index_bytes(numel, nonzero, lengths) + nonzero * self._item
            size = np.where(words == word, np.minimum(size, own), size)
        return size
