"""Sizes and MACs of a policy, exact before any training."""

from __future__ import annotations

from spaces.cost.counts import SIZE_METRICS, Footprint, RelativeCost, relative_cost
from spaces.cost.exact import sizer_of
from spaces.network import ITEM_BYTES, Network
from spaces.policy import PruningPolicy

__all__ = [
    "SIZE_METRICS", "Footprint", "RelativeCost", "dense_footprint", "footprint", "relative_cost", "stored_fractions",
]  # fmt: skip


def footprint(network: Network, policy: PruningPolicy) -> Footprint:
    """Counts of `network` under `policy`.

    Raises:
        ValueError: the policy names a layer the network does not have (nearest match named).
    """
    network.require(policy.sparsity)
    network.require(policy.removal)
    sizer = sizer_of(network)
    return sizer.footprint(sizer.under(policy))


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
