"""The sparse file's arithmetic: which encoding a tensor takes, and how many bytes the file has."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeVar

import numpy as np

from spaces.granularity import NAMES, UNIT_SLACK, obstacle_to, pattern_name, pattern_of, units_of
from spaces.network import ITEM_BYTES, SECOND, Inputs, StoredTensor

Count = TypeVar("Count", int, np.ndarray)
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
    """Bytes of the complete file."""
    header, order = container_header(entries, aliases)
    return len(header) + sum(entry.bytes for entry in order)


def worth_encoding(name: str, note: str, payload: int, dense: int) -> bool:
    """Whether an encoding saves more bytes than its note can cost the header, of several weights together.

    `HEADER_SLACK` bounds what the note's punctuation, the frame around the first note and padding take. The frame is
    needed once; for every further weight its bytes cover the digits of the offset the weight moves to. The first weight
    has no such reserve, so `no_larger_than_dense` compares the complete files.
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
