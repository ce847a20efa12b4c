"""Sizes and MACs of a policy before any training: exact, but that bytes of rounded weights are predicted."""

from __future__ import annotations

from collections.abc import Mapping

from spaces.cost.coded_file import coded_file
from spaces.cost.counts import SIZE_METRICS, Footprint, RelativeCost, relative_cost
from spaces.cost.exact import sizer_of
from spaces.network import ITEM_BYTES, Network
from spaces.policy import PruningPolicy

__all__ = [
    "SIZE_METRICS", "Footprint", "RelativeCost", "coded_bound", "dense_footprint", "footprint", "relative_cost",
    "stored_fractions",
]  # fmt: skip


def footprint(network: Network, policy: PruningPolicy) -> Footprint:
    """Counts of `network` under `policy`.

    Bytes are those of the file, version 1, exact but for gap codes, which are only bounded. Of rounded weights, they
    are version 2's as predicted with a margin: the limit that the written file is made to keep.

    Raises:
        ValueError: the policy names a layer the network does not have (nearest match named).
    """
    _require(network, policy)
    sizer = sizer_of(network)
    return sizer.footprint(sizer.under(policy), coded_file(network, policy))


def coded_bound(network: Network, policy: PruningPolicy) -> int:
    """Bytes that no file of the policy is larger than, whatever its values and though nothing is given up for it.

    Raises:
        ValueError: as of `footprint`.
    """
    _require(network, policy)
    sizer = sizer_of(network)
    return sizer.footprint(sizer.under(policy), coded_file(network, policy, bound=True)).encoded_bytes


def _require(network: Network, policy: PruningPolicy) -> None:
    network.require(policy.sparsity)
    network.require(policy.removal)
    network.require(policy.bits if isinstance(policy.bits, Mapping) else ())


def dense_footprint(network: Network) -> Footprint:
    """Counts of the unpruned network."""
    return sizer_of(network).dense


def stored_fractions(network: Network) -> dict[str, float]:
    """Share of the dense file's bytes each weight takes, by name, then all other parameters (biases and norms), all
    buffers and the file's header together; the shares sum to 1.

    >>> from spaces.network import Layer, StoredTensor
    >>> tensors = StoredTensor("w", (66, 2)), StoredTensor("b", (86,))
    >>> stored_fractions(Network(tensors, (Layer("w", "linear", (66, 2), 1),)))
    {'w': 0.528, 'other parameters': 0.344, 'buffers': 0.0, 'header': 0.128}
    """
    layers, total = {layer.name for layer in network.layers}, dense_footprint(network).encoded_bytes
    bytes_of = {tensor.name: tensor.numel * ITEM_BYTES[tensor.dtype] for tensor in network.tensors}
    found = {layer.name: bytes_of.get(layer.name, 0) for layer in network.layers}
    rest = [tensor for tensor in network.tensors if tensor.name not in layers]
    found["other parameters"] = sum(bytes_of[tensor.name] for tensor in rest if tensor.parameter)
    found["buffers"] = sum(bytes_of[tensor.name] for tensor in rest if not tensor.parameter)
    found["header"] = total - sum(found.values())
    return {name: count / total for name, count in found.items()}
