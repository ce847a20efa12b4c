"""What is left of a network's tensors once channel groups have lost units, as arrays.

One model for exact sizes of one policy, for batches of candidates, for latency and for allocations: `ChannelGroups`
says how many units go, `Shapes` what every dimension is then. Everything takes units removed of each channel group of
the network, (groups,) or (points, groups), in the order of `Network.groups`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from spaces.counting import in_multiples, removed_units
from spaces.network import Network, StoredTensor, once_per_network


class Dimension(NamedTuple):
    """One dimension of a tensor.

    Attributes:
        length: of the dense network.
        per_unit: pairs (number of a channel group, indices that leave with each of its units).
    """

    length: int
    per_unit: tuple[tuple[int, int], ...] = ()


def dimensions_of(network: Network, tensor: StoredTensor) -> list[Dimension]:
    """The dimensions of one of the network's tensors; indices of a group that the network does not have never leave."""
    if not any(tensor.owners):
        return [Dimension(length) for length in tensor.shape]
    groups = network.groups
    return [
        Dimension(length, tuple((g, indices // groups[g].units) for g, indices in own if g < len(groups)))
        for length, own in zip(tensor.shape, tensor.owners, strict=True)
    ]


def distinct_shapes(tensors: Iterable[StoredTensor]) -> tuple[list[StoredTensor], np.ndarray]:
    """One tensor of each kind of shape, told apart by who owns the dimensions, and for every tensor (t,) its kind."""
    kinds: dict[tuple[object, ...], int] = {}
    first: list[StoredTensor] = []
    of_tensor = []
    for tensor in tensors:
        kind = (tensor.shape, tensor.owners if any(tensor.owners) else ())
        if kind not in kinds:
            kinds[kind] = len(first)
            first.append(tensor)
        of_tensor.append(kinds[kind])
    return first, np.array(of_tensor, dtype=np.int64)


class ChannelGroups:
    """How many units the channel groups of a network lose.

    A group with an obstacle, with a member that no policy can name, or with a single unit loses none.

    Attributes:
        units: of each group (groups,), whole numbers as floats.
    """

    def __init__(self, network: Network) -> None:
        groups, index = network.groups, {name: n for n, name in enumerate(network.by_name)}
        able = [n for n, g in enumerate(groups) if g.obstacle is None and g.layers and index.keys() >= set(g.layers)]
        self.units = np.array([group.units for group in groups], dtype=float)
        self._able = np.array(able, dtype=np.int64)
        self._able_units = np.ones(len(groups))
        self._able_units[self._able] = self.units[self._able]
        self._multiples = np.array([group.multiple for group in groups], dtype=float)
        self.in_multiples = bool((self._multiples > 1).any())
        self._members = np.array([index[name] for n in able for name in groups[n].layers], dtype=np.int64)
        self._starts = np.cumsum([0, *(len(groups[n].layers) for n in able)])[:-1]

    def asked(self, requests: np.ndarray) -> np.ndarray:
        """The share asked of each group (groups,): the smallest that its members ask for.

        Args:
            requests: share of the output channels of each prunable layer (n,), in the network's order.
        """
        shares = np.zeros(len(self.units))
        if len(self._able):
            shares[self._able] = np.minimum.reduceat(requests[self._members], self._starts)
        return shares

    def removed(self, shares: np.ndarray) -> np.ndarray:
        """Units each group loses (..., groups) for the share asked of it: whole numbers as floats."""
        removed = removed_units(shares, self._able_units)
        return in_multiples(removed, self._able_units, self._multiples) if self.in_multiples else removed


class Shapes:
    """The shapes of some tensors (n,) of a network after a removal. Equal dimensions are computed once.

    Attributes:
        dimensions: of every tensor (rank, n), as indices of what `lengths` gives; 0 is a filler of length 1 where a
            tensor has fewer dimensions than others.

    Args:
        dtype: of all counts; floats hold them exactly too, and mix faster with shares.
    """

    def __init__(self, network: Network, tensors: Sequence[StoredTensor], dtype: type = np.int64) -> None:
        shapes = [dimensions_of(network, tensor) for tensor in tensors]
        every = dict.fromkeys(dimension for shape in shapes for dimension in shape)
        constant, shrinking = [d for d in every if not d.per_unit], [d for d in every if d.per_unit]
        index = {dimension: n for n, dimension in enumerate((*constant, *shrinking), 1)}
        rank = max([2, *map(len, shapes)])
        padded = [[index[d] for d in shape] + [0] * (rank - len(shape)) for shape in shapes]
        self.dimensions = np.array(padded, dtype=np.int64).reshape(-1, rank).T

        self._dense: np.ndarray = np.array([1, *(d.length for d in index)], dtype=dtype)
        self._constant = 1 + len(constant)
        terms = [term for d in shrinking for term in d.per_unit]
        self._group = np.array([group for group, _ in terms], dtype=np.int64)
        self._per_unit: np.ndarray = np.array([indices for _, indices in terms], dtype=dtype)
        self._starts = np.cumsum([0, *(len(d.per_unit) for d in shrinking)])[:-1]
        changes = (self.dimensions >= self._constant).any(axis=1)
        self._fixed = self._dense[self.dimensions[~changes]].prod(axis=0)
        self._factors = self.dimensions[changes]

    def lengths(self, removed: np.ndarray) -> np.ndarray:
        """Length of every distinct dimension (..., m) once groups lost `removed` units (..., groups)."""
        taken = removed[..., self._group] * self._per_unit
        if len(taken.T) > len(self._starts):
            taken = np.add.reduceat(taken, self._starts, axis=-1)
        lengths = np.empty((*taken.shape[:-1], len(self._dense)), self._dense.dtype)
        lengths[...] = self._dense
        lengths[..., self._constant :] -= taken
        return lengths

    def numel(self, lengths: np.ndarray) -> np.ndarray:
        """Elements of every tensor (..., n) at these `lengths` (..., m)."""
        numel = np.empty((*lengths.shape[:-1], len(self._fixed)), self._dense.dtype)
        numel[...] = self._fixed
        for dimension in self._factors:
            numel *= lengths.take(dimension, axis=-1)
        return numel

    def first_two(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and second dimension of every tensor, each (..., n), at these `lengths` (..., m)."""
        return lengths.take(self.dimensions[0], axis=-1), lengths.take(self.dimensions[1], axis=-1)


@once_per_network
def channel_groups_of(network: Network) -> ChannelGroups:
    """The channel groups of this very object."""
    return ChannelGroups(network)


@once_per_network
def _all_shapes(network: Network) -> tuple[Shapes, np.ndarray]:
    first, kind = distinct_shapes(network.tensors)
    return Shapes(network, first), kind


def shapes_after(network: Network, kept: Mapping[int, int]) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor by name, once channel groups keep these units; groups that are absent keep all."""
    removed = np.zeros(len(network.groups), np.int64)
    for number, units in kept.items():
        removed[number] = network.groups[number].units - units
    shapes, kind = _all_shapes(network)
    rows = shapes.lengths(removed)[shapes.dimensions].T.tolist()
    return {t.name: tuple(rows[k][: len(t.shape)]) for t, k in zip(network.tensors, kind.tolist(), strict=True)}
