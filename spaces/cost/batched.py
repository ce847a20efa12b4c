"""Sizes and speeds of many requests at once, vectorised over requests and layers.

Sizes are those of `spaces.cost.footprint` but for the file's header, which is taken as the dense model's: a promille or
so of networks that are worth pruning, several percent of ones with a few thousand parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np

from spaces.cost.container import GAP_ESCAPE
from spaces.cost.footprint import dense_footprint
from spaces.cost.latency_predictor import Predictor
from spaces.granularity import Divisions, parts_of
from spaces.network import ITEM_BYTES, Network, StoredTensor


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
        by_removal: groups wholly of granularity `channel`, or that lose channels before masks (p, groups), bool.
        words: each layer's granularity (p, layers): its place in the space's.
    """

    masked: np.ndarray
    removed: np.ndarray
    by_mask: np.ndarray
    by_removal: np.ndarray
    words: np.ndarray

    def __add__(self, other: Requests) -> Requests:
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return Requests(*(np.concatenate(pair) for pair in pairs))

    def at(self, places: Sequence[int]) -> Requests:
        """Those of the points at these places, in this order."""
        return Requests(*(getattr(self, field.name)[places] for field in fields(self)))


@dataclass(frozen=True)
class _Shrinking:
    """One dimension of the layers that lose indices with channel groups, some with several.

    Attributes:
        layers: their places (s,).
        starts: where the terms of each begin (s,).
        groups, per_unit: of each term (t,) the group, and the indices that leave with each of its units.
    """

    layers: np.ndarray
    starts: np.ndarray
    groups: np.ndarray
    per_unit: np.ndarray

    @classmethod
    def of(cls, network: Network, tensors: Sequence[StoredTensor], dimension: int) -> _Shrinking:
        owners = [tensor.owners[dimension] if dimension < len(tensor.owners) else () for tensor in tensors]
        layers = [place for place, own in enumerate(owners) if own]
        terms = [(group, indices // network.groups[group].units) for own in owners for group, indices in own]
        groups, per_unit = np.array(terms, dtype=int).reshape(-1, 2).T
        starts = np.cumsum([0, *(len(owners[place]) for place in layers)])[:-1]
        return cls(np.array(layers, dtype=int), starts, groups, per_unit.astype(float))

    def taken(self, gone: np.ndarray) -> np.ndarray:
        """Indices lost (p, s) with `gone` units of each group (p, groups)."""
        terms = gone[:, self.groups] * self.per_unit
        return terms if len(self.groups) == len(self.layers) else np.add.reduceat(terms, self.starts, axis=1)


class _Weights:
    """What is left of some weights once channel groups lost units, vectorised over points and weights."""

    def __init__(self, network: Network, names: Sequence[str]) -> None:
        tensors = {tensor.name: tensor for tensor in network.tensors}
        chosen = [tensors[name] for name in names]
        most = max(2, *(len(t.shape) for t in chosen)) if chosen else 2
        lengths = [[t.shape[d] if d < len(t.shape) else 1 for t in chosen] for d in range(most)]
        shrinking = {d: _Shrinking.of(network, chosen, d) for d in range(most)}
        self._shrinking = {d: one for d, one in shrinking.items() if len(one.layers)}
        self._lengths = np.array(lengths, dtype=float)
        self._fixed = self._lengths[[d not in self._shrinking for d in range(most)]].prod(axis=0)

    def left(self, gone: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Elements, and the first two dimensions, of the weights (p, weights) once groups lost `gone` (p, groups)."""
        numel = np.empty((len(gone), len(self._fixed)))
        numel[:] = self._fixed
        first_two = [np.broadcast_to(length, numel.shape) for length in self._lengths[:2]]
        for dimension, one in self._shrinking.items():
            left = np.empty_like(numel)
            left[:] = self._lengths[dimension]
            left[:, one.layers] -= one.taken(gone)
            numel *= left
            if dimension < 2:
                first_two[dimension] = left
        return numel, first_two


class Costs:
    """Sizes and MACs of many requests, vectorised over points and layers.

    Args:
        metric: `encoded` or `nonzero`.
        latency: predicts it, if it matters.
        granularities: what the requests' words are places in.
    """

    def __init__(
        self,
        network: Network,
        metric: str,
        latency: Predictor | None = None,
        granularities: Sequence[str] = ("fine-grained", "channel"),
    ) -> None:
        self._network, self._metric, self._latency = network, metric, latency
        layers = network.prunable
        divisions = {n: Divisions(layers, [parts_of(word)[-1]] * len(layers)) for n, word in enumerate(granularities)}
        self._divisions = {n: found for n, found in divisions.items() if not found.plain}
        dense = dense_footprint(network)
        self._dense_macs = max(dense.macs, 1)
        self._dense = dense.encoded_bytes if metric == "encoded" else dense.parameters
        self._positions = np.array([layer.positions for layer in network.prunable], dtype=float)
        self._maskable = np.array([layer.whole is None for layer in network.prunable], dtype=float)

    @cached_property
    def _units(self) -> np.ndarray:
        return np.array([group.units for group in self._network.groups], dtype=float)

    @cached_property
    def _multiples(self) -> np.ndarray:
        return np.array([group.multiple for group in self._network.groups], dtype=float)

    @cached_property
    def _item(self) -> np.ndarray:
        tensors = {tensor.name: tensor for tensor in self._network.tensors}
        return np.array([ITEM_BYTES[tensors[layer.name].dtype] for layer in self._network.prunable], dtype=float)

    @cached_property
    def _weights(self) -> _Weights:
        return _Weights(self._network, self._network.layer_names)

    @cached_property
    def _others_multiplied(self) -> tuple[np.ndarray, _Weights]:
        """Positions of the weights that are no prunable layers, and these."""
        positions = {n: count for n, count in self._network.multiplied.items() if n not in self._network.by_name}
        return np.array(list(positions.values()), dtype=float), _Weights(self._network, tuple(positions))

    @cached_property
    def _others(self) -> tuple[float, np.ndarray]:
        """Cost of everything that is no layer: whole, and what one unit of each group takes off (groups,)."""
        names, encoded = set(self._network.layer_names), self._metric == "encoded"
        whole, per_unit = 0.0, np.zeros(len(self._network.groups))
        for tensor in self._network.tensors:
            if tensor.name in names or not (encoded or tensor.parameter):
                continue
            each = ITEM_BYTES[tensor.dtype] if encoded else 1
            whole += tensor.numel * each
            for dimension, owners in enumerate(tensor.owners):
                others = tensor.numel / max(tensor.shape[dimension], 1)
                for group, indices in owners:
                    per_unit[group] += indices // self._network.groups[group].units * others * each
        return whole, per_unit

    @cached_property
    def _header(self) -> float:
        if self._metric != "encoded":
            return 0.0
        return self._dense - sum(tensor.numel * ITEM_BYTES[tensor.dtype] for tensor in self._network.tensors)

    def of(self, requests: Requests) -> BatchCosts:
        """What the requests leave of the dense network."""
        gone = self._gone(requests)
        numel, lengths = self._weights.left(gone)
        nonzero = numel - self._zeros(requests, numel, lengths)
        whole, per_unit = self._others
        cost = nonzero if self._metric == "nonzero" else self._encoded(numel, nonzero, requests.words, lengths)
        size = (cost.sum(axis=1) + whole - gone @ per_unit + self._header) / self._dense
        latency = self._latency.share_after(gone.astype(np.int64)) if self._latency else None
        return BatchCosts(size, (numel @ self._positions + self._further_macs(gone)) / self._dense_macs, latency)

    def _further_macs(self, gone: np.ndarray) -> np.ndarray:
        """MACs of all that is no prunable layer (p,)."""
        positions, weights = self._others_multiplied
        return weights.left(gone)[0] @ positions + self._network.other_macs

    def achieved(self, requests: Requests, in_turn: bool = False) -> Requests:
        """The shares really taken where units of several weights, or multiples that groups keep to, round them.

        Args:
            in_turn: masks come after removals, as shares of what these leave; else of the dense layers.
        """
        if self._divisions:
            numel, lengths = self._weights.left(self._gone(requests) if in_turn else np.zeros_like(requests.removed))
            by_unit = np.isin(requests.words, list(self._divisions))
            masked = np.where(by_unit, self._zeros(requests, numel, lengths) / numel, requests.masked) * self._maskable
            requests = replace(requests, masked=masked)
        if (self._multiples > 1).any():
            requests = replace(requests, removed=self._gone(requests) / np.maximum(self._units, 1))
        return requests

    def _gone(self, requests: Requests) -> np.ndarray:
        """Units each group loses (p, groups)."""
        gone = np.minimum(np.floor(requests.removed * self._units + 0.5), np.maximum(self._units - 1, 0))
        if (self._multiples == 1).all():
            return gone
        left = np.ceil((self._units - gone) / self._multiples) * self._multiples
        return np.maximum(self._units - left, 0)

    def _zeros(self, requests: Requests, numel: np.ndarray, lengths: Sequence[np.ndarray]) -> np.ndarray:
        requests = replace(requests, masked=requests.masked * self._maskable)
        zeros = np.minimum(np.floor(requests.masked * numel + 0.5), np.maximum(numel - 1, 0))
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
