"""Sizes and MACs of a policy, exact before any training.

Two measures of stored size, both shares of the dense model:

- `nonzero`: the pruning labs' measure, (parameters - zeros in prunable weights) x 32 bit over all
  parameters x 32 bit. Biases and norms count whole, buffers do not count.
- `encoded`: bytes of the file `pruning.codec` writes, header and buffers included. A weight takes the
  smallest of the encodings below; gap codes, and encodings by units of several weights, are upper bounds until the
  zeros' places are known.

The file is a safetensors container: 8 bytes of header length, a JSON header padded with spaces to a
multiple of 8, then the tensors without holes. `container_header` is the only place that writes it, and
`spaces.sizing` counts its characters.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TypeVar

import numpy as np

from spaces.granularity import NAMES, UNIT_SLACK, obstacle_to, pattern_name, pattern_of, removed_count, units_of
from spaces.network import ITEM_BYTES, SECOND, Inputs, Layer, Network, StoredTensor
from spaces.policy import PruningPolicy

Count = TypeVar("Count", int, np.ndarray)

SIZE_METRICS = ("encoded", "nonzero")
GAP_ESCAPE = 255
"""A gap code of 255 skips 255 zeros and stores no value; codes 0..254 skip that many before a value."""

HEADER_SLACK = len('"":"",') + len('"__metadata__":{},') + 7


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: `note` is None for a dense tensor, else how its bytes are encoded."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    note: str | None = None

    @property
    def bytes(self) -> int:
        return prod(self.shape) * ITEM_BYTES[self.dtype]


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
class Shares:
    """A footprint over the dense model's."""

    encoded: float
    nonzero: float
    macs: float
    macs_nonzero: float

    def of(self, metric: str) -> float:
        """The share by the name of a size metric."""
        return {"encoded": self.encoded, "nonzero": self.nonzero}[metric]


def kept_units(network: Network, requests: Mapping[str, float]) -> dict[int, int]:
    """Group number -> units kept, for the groups that lose some.

    `requests` is the share of output channels asked to go by layer. Inside a group the smallest request
    holds and an unnamed member asks for 0; groups with an obstacle keep all. Kept units are rounded up to the
    group's multiple.
    """
    kept = {}
    for number, group in enumerate(network.groups):
        share = min((requests.get(name, 0.0) for name in group.layers), default=0.0)
        if group.obstacle is None and share > 0:
            left = group.units - removed_count(share, group.units)
            left = min(-(-left // group.multiple) * group.multiple, group.units)
            kept |= {number: left} if left < group.units else {}
    return kept


def remaining(network: Network, removal: Mapping[str, float]) -> tuple[Layer, ...]:
    """The layers in the shapes they have once these shares of output channels are gone."""
    kept = kept_units(network, removal)
    if not kept:
        return network.prunable
    units = {number: group.units for number, group in enumerate(network.groups)}
    shapes = {t.name: t.shrunk(kept, units) for t in network.tensors if t.name in network.by_name}
    return tuple(replace(layer, shape=shapes[layer.name]) for layer in network.prunable)


def settled(network: Network, policy: PruningPolicy) -> PruningPolicy:
    """The policy whose channel requests are the shares really removed, where groups keep to multiples.

    It asks for the same channels of a network that keeps to none, so that it can be repeated without knowing of them.
    """
    if all(group.multiple == 1 for group in network.groups):
        return policy
    kept, layers = kept_units(network, policy.channel_requests()), network.by_name

    def share(name: str) -> float:
        group = layers[name].channel_group
        return 1 - kept[group] / network.groups[group].units if group in kept else 0.0

    asked = {name: share(name) for name in policy.channel_requests()}
    sparsity = {name: asked.get(name, own) for name, own in policy.sparsity.items() if name not in policy.removal}
    sparsity |= {name: policy.sparsity[name] for name in policy.sparsity.keys() & policy.removal.keys()}
    return replace(policy, sparsity=sparsity, removal={name: asked.get(name, 0.0) for name in policy.removal})


def encoding_sizes(
    numel: Count, nonzero: Count, item_bytes: Count, index_bytes: Count | None = None
) -> dict[str, Count]:
    """Bytes of a weight by encoding, `dense` first; of many weights when the counts are arrays.

    Bytes of `gap8` are exact only where no gap exceeds 254; otherwise at most
    `(numel - nonzero) // 255` escape codes come on top, which are counted. `units` is there if `index_bytes`, what
    the granularity's own index takes, are given.
    """
    sizes = {
        "dense": numel * item_bytes,
        "bitmask": -(-numel // 8) + nonzero * item_bytes,
        "gap8": nonzero * (item_bytes + 1) + (numel - nonzero) // GAP_ESCAPE,
    }
    return sizes if index_bytes is None else sizes | {"units": nonzero * item_bytes + index_bytes}


def encoding_of(numel: int, nonzero: int, item_bytes: int, index_bytes: int | None = None) -> tuple[str, int]:
    """The smallest encoding of a weight and its bytes; ties in the order of `encoding_sizes`."""
    return min(encoding_sizes(numel, nonzero, item_bytes, index_bytes).items(), key=lambda item: item[1])


def encoding_note(encoding: str, dtype: str, shape: Iterable[int], nonzero: int) -> str:
    """What the header says of an encoded tensor, such as `gap8 F32 64,3,3,3 512`."""
    return f"{encoding} {dtype} {','.join(map(str, shape))} {nonzero}"


def container_header(entries: Iterable[Entry], aliases: Mapping[str, str] | None = None) -> tuple[bytes, list[Entry]]:
    """The file's first bytes, and its tensors in file order (widest type first, then by name).

    >>> header, order = container_header([Entry("w", "F32", (2, 3))])
    >>> len(header) % 8, header[8:].decode().rstrip()
    (0, '{"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}')
    """
    order = sorted(entries, key=lambda entry: (-ITEM_BYTES[entry.dtype], entry.name))
    header: dict[str, object] = {}
    metadata = {entry.name: entry.note for entry in order if entry.note is not None}
    metadata |= {name: f"same {target}" for name, target in sorted((aliases or {}).items())}
    if metadata:
        header["__metadata__"] = metadata
    offset = 0
    for entry in order:
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.bytes],
        }
        offset += entry.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, order


def container_bytes(entries: Iterable[Entry], aliases: Mapping[str, str] | None = None) -> int:
    """Bytes of the whole file."""
    header, order = container_header(entries, aliases)
    return len(header) + sum(entry.bytes for entry in order)


def worth_encoding(name: str, note: str, payload: int, dense: int) -> bool:
    """Whether an encoding saves more bytes than its note can cost the header, of several weights together.

    `HEADER_SLACK` bounds what the note's punctuation, the first note's frame and padding take. What the digits of its
    new place in the file take is less than the frame, which is there once: `no_larger_than_dense` sees to the first.
    """
    return payload + len(name) + len(note) + HEADER_SLACK < dense


def no_larger_than_dense(
    entries: Sequence[Entry], dense: Sequence[Entry], aliases: Mapping[str, str] | None = None
) -> list[Entry]:
    """The entries of a file, or all of its tensors dense where that is smaller.

    It can be where few tiny weights are encoded: an encoded weight moves to the end of the file, where large files have
    longer offsets. With this a file, of less than a terabyte, never grows because a weight has more zeros.
    """
    if all(entry.note is None for entry in entries):
        return list(entries)
    size = container_bytes(entries, aliases)
    data = sum(entry.bytes for entry in dense)
    return list(dense if size > data and size > container_bytes(dense, aliases) else entries)


def encoded_entry(
    tensor: StoredTensor,
    shape: tuple[int, ...],
    nonzero: int,
    granularity: str = "fine-grained",
    inputs: Inputs = SECOND,
) -> Entry:
    """The entry of a prunable weight of this shape with `nonzero` elements kept in units of `granularity`."""
    name, index = own_index(granularity, shape, nonzero, inputs)
    encoding, size = encoding_of(prod(shape), nonzero, ITEM_BYTES[tensor.dtype], index)
    note = encoding_note(name if encoding == "units" else encoding, tensor.dtype, shape, nonzero)
    dense = Entry(tensor.name, tensor.dtype, shape)
    if encoding == "dense" or not worth_encoding(tensor.name, note, size, dense.bytes):
        return dense
    return Entry(tensor.name, "U8", (size,), note)


def own_index(
    granularity: str, shape: tuple[int, ...], nonzero: int, inputs: Inputs = SECOND
) -> tuple[str, int | None]:
    """The encoding of a granularity's own for a weight: its name, and the bytes planned for its index, `UNIT_SLACK`
    among them; None if it has none."""
    pattern = pattern_of(granularity)
    if obstacle_to(granularity, shape, inputs) or nonzero == prod(shape) or not (pattern or granularity in NAMES):
        return "", None
    if pattern:
        name = pattern_name(nonzero * pattern.of // prod(shape), pattern.of, inputs.dim)
        return name, -(-nonzero * pattern.index_bits // 8) + UNIT_SLACK
    units = units_of(granularity, shape)
    return NAMES[granularity], -(-units.count // 8) + UNIT_SLACK if units.elements > 1 else None


def footprint(network: Network, policy: PruningPolicy) -> Footprint:
    """Counts of `network` under `policy`.

    Raises:
        ValueError: the policy names a layer the network does not have (nearest match named).
    """
    network.require(policy.sparsity)
    network.require(policy.removal)
    units = {number: group.units for number, group in enumerate(network.groups)}
    kept = kept_units(network, policy.channel_requests())
    masks = policy.mask_requests()

    entries, dense, parameters, zeros = [], [], 0, 0
    macs = macs_nonzero = network.other_macs
    for tensor in network.tensors:
        shape = tensor.shrunk(kept, units)
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


def masked_in(layer: Layer, granularity: str, shape: tuple[int, ...], share: float) -> int:
    """Elements of a layer of this shape a mask sets to zero."""
    return 0 if layer.whole else masked_count(granularity, shape, share, layer.inputs)


def masked_count(granularity: str, shape: tuple[int, ...], share: float, inputs: Inputs = SECOND) -> int:
    """Elements a mask sets to zero; none where the granularity leaves a weight of this shape whole."""
    if share == 0 or obstacle_to(granularity, shape, inputs):
        return 0
    units = units_of(granularity, shape, inputs)
    return units.removed(share) * units.elements


def dense_footprint(network: Network) -> Footprint:
    """Counts of the whole, unpruned network."""
    return footprint(network, PruningPolicy({}))


def stored_shares(network: Network) -> dict[str, float]:
    """Share of the dense file's bytes each weight takes, by name, then all other parameters (biases and norms), all
    buffers and the file's header together; the shares sum to 1.

    >>> tensors = StoredTensor("w", (66, 2)), StoredTensor("b", (86,))
    >>> stored_shares(Network(tensors, (Layer("w", "linear", (66, 2), 1),)))
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


def shares(part: Footprint, dense: Footprint) -> Shares:
    """`part` over `dense`; MACs are 1.0 when the dense model has none."""
    return Shares(
        encoded=part.encoded_bytes / dense.encoded_bytes,
        nonzero=part.nonzero / dense.parameters,
        macs=part.macs / dense.macs if dense.macs else 1.0,
        macs_nonzero=part.macs_nonzero / dense.macs if dense.macs else 1.0,
    )


def achieved(network: Network, policy: PruningPolicy) -> dict[str, float]:
    """Layer -> share of its own units the policy really removes, after group rule and rounding."""
    units = {number: group.units for number, group in enumerate(network.groups)}
    kept = kept_units(network, policy.channel_requests())
    masks = policy.mask_requests()
    result = {}
    for tensor in network.tensors:
        layer = network.by_name.get(tensor.name)
        if layer is None:
            continue
        if policy.granularity_of(layer.name) == "channel":
            group = layer.channel_group
            result[layer.name] = 1 - kept[group] / units[group] if group in kept else 0.0
        else:
            shape = tensor.shrunk(kept, units)
            word = policy.granularity_of(layer.name)
            removed = masked_in(layer, word, shape, masks.get(layer.name, 0.0))
            result[layer.name] = removed / prod(shape)
    return result


def effect(network: Network, policy: PruningPolicy) -> str:
    """What tells a policy's fine-tune from another's: units really removed, granularities and, roughly, the schedule.

    Policies of equal effect ask for shares that differ by less than a unit, or where nothing goes, and for exponents
    that agree to one decimal.
    """
    schedule, removed = policy.schedule, achieved(network, policy)
    words = [policy.granularity_of(name) for name, share in removed.items() if share]
    pace = schedule.kind if schedule.kind == "one-shot" else (schedule.kind, round(schedule.exponent, 1))
    return repr((list(removed.values()), words, pace, kept_units(network, policy.removal)))
