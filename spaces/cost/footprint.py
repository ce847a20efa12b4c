"""Sizes and MACs of a policy, exact before any training."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from spaces.cost.container import Entry, container_bytes, encoded_entry, no_larger_than_dense
from spaces.cost.effect import kept_units, masked_in
from spaces.cost.removal import shapes_after
from spaces.network import ITEM_BYTES, Network
from spaces.policy import PruningPolicy

SIZE_METRICS = ("encoded", "nonzero")


@dataclass(frozen=True)
class Footprint:
    """Absolute counts of a network under a policy; MACs are those of one example.

    `macs` counts dense kernels on what remains; `macs_nonzero` assumes every zero is skipped.
    """

    parameters: int
    nonzero: int
    encoded_bytes: int
    macs: int
    macs_nonzero: int

    def bytes_at(self, bits: int = 32, nonzero_only: bool = True) -> float:
        """The pruning labs' model size: so many bits for each parameter, or for each that is not a masked zero.

        >>> Footprint(parameters=100, nonzero=25, encoded_bytes=0, macs=0, macs_nonzero=0).bytes_at(8)
        25.0
        """
        if isinstance(bits, bool) or not isinstance(bits, int) or bits < 1:
            raise ValueError(f"bits must be a whole number >= 1, got {bits!r}; 32 is the default, 8 that of int8")
        return (self.nonzero if nonzero_only else self.parameters) * bits / 8


@dataclass(frozen=True)
class RelativeCost:
    """A footprint over the dense model's."""

    encoded: float
    nonzero: float
    macs: float
    macs_nonzero: float

    def of(self, metric: str) -> float:
        """The share by the name of a size metric."""
        return {"encoded": self.encoded, "nonzero": self.nonzero}[metric]


def footprint(network: Network, policy: PruningPolicy) -> Footprint:
    """Counts of `network` under `policy`.

    Raises:
        ValueError: the policy names a layer the network does not have (nearest match named).
    """
    network.require(policy.sparsity)
    network.require(policy.removal)
    shapes = shapes_after(network, kept_units(network, policy.channel_requests()))
    masks = policy.mask_requests()

    entries, dense, parameters, zeros = [], [], 0, 0
    macs = macs_nonzero = network.other_macs
    for tensor in network.tensors:
        shape = shapes[tensor.name]
        numel = prod(shape)
        parameters += numel if tensor.parameter else 0
        dense.append(Entry(tensor.name, tensor.dtype, shape))
        positions = network.multiplied.get(tensor.name, 0)
        macs += positions * numel
        macs_nonzero += positions * numel
        layer = network.by_name.get(tensor.name)
        if layer is None:
            entries.append(dense[-1])
            continue
        granularity = policy.granularity_of(layer.name)
        removed = masked_in(layer, granularity, shape, masks.get(layer.name, 0.0))
        zeros += removed
        macs_nonzero -= positions * removed
        entries.append(encoded_entry(tensor, shape, numel - removed, granularity, layer.inputs))
    written = container_bytes(no_larger_than_dense(entries, dense, network.aliases), network.aliases)
    return Footprint(parameters, parameters - zeros, written, macs, macs_nonzero)


def dense_footprint(network: Network) -> Footprint:
    """Counts of the unpruned network."""
    return footprint(network, PruningPolicy({}))


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


def relative_cost(part: Footprint, dense: Footprint) -> RelativeCost:
    """`part` over `dense`; MACs are 1.0 when the dense model has none."""
    return RelativeCost(
        encoded=part.encoded_bytes / dense.encoded_bytes,
        nonzero=part.nonzero / dense.parameters,
        macs=part.macs / dense.macs if dense.macs else 1.0,
        macs_nonzero=part.macs_nonzero / dense.macs if dense.macs else 1.0,
    )
