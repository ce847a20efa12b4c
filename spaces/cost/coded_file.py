"""Bytes of the sparse file, version 2, for what sparsities leave of a network at given bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spaces.bits import FLOAT_BITS
from spaces.cost.coded_size import coded_sizes_of
from spaces.cost.exact import Pruned
from spaces.cost.removal import Shapes, distinct_shapes
from spaces.network import Network, once_per_network
from spaces.policy import PruningPolicy


class CodedFile:
    """File sizes of one network at given bits, for any sparsities; see `spaces.cost.coded_size`.

    Args:
        bits: of each prunable layer (n,), in the network's order.
        bound: bytes are those that no file is larger than, whatever its values; else they are predicted, with a margin
            and never above the bound.
    """

    def __init__(self, network: Network, bits: Sequence[int], bound: bool = False) -> None:
        self._layout, sizes = _layout_of(network), coded_sizes_of(network)
        own = np.asarray(bits, dtype=np.int64)[self._layout.layer]
        self._at = sizes.at(own, bound)
        self._per_shape = self._layout.per_shape[int(not bound), int((own < FLOAT_BITS).any())]

    def bytes(self, pruned: Pruned) -> int:
        """Of the complete file; more pruning never makes them more."""
        numel = pruned.numel[self._layout.layer_shape]
        channels = pruned.lengths[self._layout.outputs]
        return int(self._at.bytes(numel, numel - pruned.zeros, channels, self._per_shape @ pruned.numel))


class _Layout:
    """Where the tensors of `CodedSizes` are found in a `Pruned`.

    Attributes:
        layer: index of each of its layers among the network's prunable ones (n,).
        layer_shape: index of its distinct shape (n,).
        outputs: index of the length of its output dimension (n,).
        per_shape: `CodedSizes.per_other` summed over the tensors of each distinct shape (2, 2, s).
    """

    def __init__(self, network: Network) -> None:
        sizes, index = coded_sizes_of(network), {name: n for n, name in enumerate(network.by_name)}
        distinct, shape = distinct_shapes(network.tensors)
        shape_of = dict(zip((tensor.name for tensor in network.tensors), shape.tolist(), strict=True))
        self.layer = np.array([index[tensor.name] for tensor in sizes.layers], dtype=np.int64)
        self.layer_shape = np.array([shape_of[tensor.name] for tensor in sizes.layers], dtype=np.int64)
        dims = np.array([network.by_name[tensor.name].output_dim for tensor in sizes.layers], dtype=np.int64)
        self.outputs = Shapes(network, distinct).dimensions[dims, self.layer_shape]
        others = np.array([shape_of[tensor.name] for tensor in sizes.others], dtype=np.int64)
        self.per_shape = sizes.per_other @ np.eye(len(distinct))[others]


@once_per_network
def _layout_of(network: Network) -> _Layout:
    return _Layout(network)


def coded_file(network: Network, policy: PruningPolicy, bound: bool = False) -> CodedFile | None:
    """The file of a policy whose weights are rounded; None for version 1's, of weights that are not."""
    return CodedFile(network, [policy.bits_of(name) for name in network.by_name], bound) if policy.is_rounded else None
