"""The container: a state dict as the bytes of a version-2 file, and back. docs/formats.md has its layout."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pruning.file.coding import GAINS, SCALES, SHIFTS, WEIGHTS, CodedReader, CodedWriter
from pruning.file.floats import PATTERNS
from pruning.file.rans import MOST_LANES
from pruning.file.rounding import Rounded
from pruning.sparse_file import DTYPE_CODES, LATER, LONGEST_SAID, DamagedFile, read_version_1
from spaces.cost.coded_header import (
    FLOAT_FORMS,
    NORM_ENDINGS,
    Constant,
    Floats,
    Integers,
    Norm,
    Raw,
    Reader,
    Record,
    Same,
    decoded_bytes,
    names_of,
    plain_bits,
    read_header,
    varint,
    write_header,
)
from spaces.printable import shortened

MAGIC = LATER
VERSION = b"2"
LARGEST_CONSTANT = 2**31
MOST_GROWTH = 2**16
SPARE_BYTES = 2**26
"""A file that claims to decode to more than `MOST_GROWTH` times its bytes and these is not believed."""

_DTYPES = {code: dtype for dtype, code in DTYPE_CODES.items()}
_INTEGER_VIEWS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Decoded:
    """What a file holds: all tensors by name, on the CPU, and how those of rounded weights came to be."""

    state: dict[str, Tensor]
    rounded: dict[str, Rounded]


def encode(state: Mapping[str, Tensor], rounded: Mapping[str, Rounded] | None = None) -> bytes:
    """The bytes of a state dict; reading them gives the same tensors, but that zeros have no sign.

    Args:
        rounded: weights stored as whole numbers with scales, by name; `state` holds what they stand for.

    Raises:
        ValueError: a rounded weight that is not the one in `state`, or a type the file cannot hold.
    """
    rounded = rounded or {}
    writer = CodedWriter()
    records: list[Record] = []
    names: dict[str, int] = {}
    first = _first_names(state)
    norms = _norms(state, rounded, first)
    inside = {path + ending for path in norms for ending in NORM_ENDINGS}
    for name, tensor in state.items():
        if name in inside:
            if name.endswith(NORM_ENDINGS[0]):
                records.append(_write_norm(writer, name.removesuffix(NORM_ENDINGS[0]), state))
        elif first[name] != name:
            records.append(Same(name, names[first[name]]))
        else:
            records.append(_write_tensor(writer, name, tensor, rounded))
        for own in names_of(records[-1]):
            names.setdefault(own, len(names))
    lanes, coded = writer.coded()
    header = write_header(records)
    content = varint(len(header)) + header + varint(lanes) + varint(len(coded)) + coded + writer.plain.bytes
    return MAGIC + VERSION + zlib.crc32(content).to_bytes(4, "little") + content


def _first_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Of each tensor the first name that its storage has; its own where it has no elements."""
    found: dict[tuple[object, ...], str] = {}
    return {
        name: found.setdefault((t.data_ptr(), tuple(t.shape), t.stride(), t.dtype), name) if t.numel() else name
        for name, t in state.items()
    }


def _norms(state: Mapping[str, Tensor], rounded: Mapping[str, Rounded], first: Mapping[str, str]) -> set[str]:
    """Paths of BatchNorms that are stored as one record: see `Norm`. None shares a tensor with an earlier one."""
    order, found = list(state), set()
    for place, name in enumerate(order):
        path = name.removesuffix(NORM_ENDINGS[0])
        names = [path + ending for ending in NORM_ENDINGS]
        if order[place : place + len(NORM_ENDINGS)] != names or names[0] in rounded:
            continue
        *floats, batches = (state[own] for own in names)
        alike = all(t.dtype == torch.float32 and t.dim() == 1 and t.shape == floats[0].shape for t in floats)
        apart = all(first[own] == own for own in names)
        counted = batches.dtype == torch.int64 and batches.dim() == 0 and 0 <= int(batches) < LARGEST_CONSTANT
        if alike and apart and counted and not floats[2].any() and bool((floats[3] == 1).all()):
            found.add(path)
    return found


def _patterns(tensor: Tensor) -> np.ndarray:
    """The bits of floats as unsigned numbers, of the tensor's shape; zeros without sign."""
    own = tensor.detach().cpu()
    own = torch.where(own == 0, torch.zeros((), dtype=own.dtype), own).contiguous()
    numbers = own.view(_INTEGER_VIEWS[own.itemsize]).numpy()
    return numbers.view(PATTERNS[DTYPE_CODES[own.dtype]])


def _write_norm(writer: CodedWriter, path: str, state: Mapping[str, Tensor]) -> Norm:
    weight, bias, batches = (state[path + NORM_ENDINGS[n]] for n in (0, 1, 4))
    gains = writer.floats(_patterns(weight), "F32", GAINS)
    shifts = writer.floats(_patterns(bias), "F32", SHIFTS)
    return Norm(path, tuple(weight.shape), gains, shifts, int(batches))


def _write_tensor(writer: CodedWriter, name: str, tensor: Tensor, rounded: Mapping[str, Rounded]) -> Record:
    if tensor.dtype not in DTYPE_CODES:
        raise ValueError(f"tensor {name!r} has dtype {tensor.dtype}, which the sparse file cannot hold")
    dtype, shape = DTYPE_CODES[tensor.dtype], tuple(tensor.shape)
    if name in rounded:
        return _write_rounded(writer, name, tensor, rounded[name])
    value = _constant(tensor)
    if value is not None:
        return Constant(name, shape, dtype, value)
    if dtype in FLOAT_FORMS:
        kind = WEIGHTS if len(shape) > 1 else SHIFTS
        return Floats(name, shape, dtype, writer.floats(_patterns(tensor), dtype, kind))
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    writer.plain.put(data, 8)
    return Raw(name, shape, dtype)


def _constant(tensor: Tensor) -> int | None:
    """The one whole number all elements are; None if there is none."""
    if not tensor.numel():
        return 0
    first = tensor.flatten()[0].item()
    whole = first == first and abs(first) < LARGEST_CONSTANT and first == int(first)
    return int(first) if whole and bool((tensor == first).all()) else None


def _write_rounded(writer: CodedWriter, name: str, tensor: Tensor, one: Rounded) -> Integers:
    if not torch.equal(one.weight(tensor.dtype), tensor.detach().cpu()):
        raise ValueError(f"the rounded weight {name!r} is not the one in the state dict: round the model first")
    values = one.integers.numpy()
    flat = writer.integers(values, one.bits)
    form = writer.floats(_patterns(one.scales), "BF16", SCALES, _channels_kept(values, one.dim))
    shape, nonzero = tuple(tensor.shape), int(np.count_nonzero(values))
    return Integers(
        name, shape, DTYPE_CODES[tensor.dtype], one.bits, nonzero, replace(form, nonzero=None), one.dim, flat
    )


def _channels_kept(values: np.ndarray, dim: int) -> np.ndarray:
    """Which indices of a dimension have a value other than 0."""
    return (values != 0).any(axis=tuple(d for d in range(values.ndim) if d != dim))


def decode(content: bytes, like: Mapping[str, Tensor] | None = None) -> Decoded:
    """The state dict that `encode` made `content` of.

    Args:
        like: what it must hold, by name, shape and dtype; checked before any tensor is made.

    Raises:
        ValueError: damaged, of another version, or with other tensors than `like`.
    """
    reader = _opened(content)
    records = read_header(reader.take(reader.number()))
    lanes, length = reader.number(MOST_LANES), reader.number()
    coded = reader.take(length)
    _check(records, len(content), 8 * reader.rest(), like)
    source = CodedReader(lanes, coded, reader.take(reader.rest()))
    state: dict[str, Tensor] = {}
    rounded: dict[str, Rounded] = {}
    for record in records:
        if isinstance(record, Same):
            state[record.name] = state[list(state)[record.target]]
        elif isinstance(record, Norm):
            state |= _read_norm(source, record)
        elif isinstance(record, Integers):
            rounded[record.name] = _read_rounded(source, record)
            state[record.name] = rounded[record.name].weight(_DTYPES[record.dtype])
        else:
            state[record.name] = _read_tensor(source, record)
    source.end()
    return Decoded(state, rounded)


def _opened(content: bytes) -> Reader:
    """What follows magic, version and checksum."""
    if content[:3] != MAGIC:
        raise ValueError("it is no sparse file of version 2")
    if content[3:4] != VERSION:
        raise ValueError(f"it is of version {content[3:4]!r}, and {VERSION!r} is what can be read: update prunefront")
    if len(content) < 8 or zlib.crc32(content[8:]) != int.from_bytes(content[4:8], "little"):
        raise ValueError("its checksum is not that of its bytes: it is damaged or cut")
    return Reader(content[8:])


def _check(records: Sequence[Record], size: int, bits_left: int, like: Mapping[str, Tensor] | None) -> None:
    """Raise `ValueError` for records that promise what the file cannot be, before any tensor is made of them."""
    names = [name for record in records for name in names_of(record)]
    if like is not None and set(names) != like.keys():
        other = min(set(names) ^ like.keys())
        raise ValueError(f"tensor {other!r} is {'missing' if other in like else 'none of the network'}")
    claimed = sum(decoded_bytes(_without_zeros(record)) for record in records)
    if claimed > MOST_GROWTH * size + SPARE_BYTES:
        raise ValueError(f"of {size} bytes, it claims to be {claimed} bytes")
    at_most = sum(plain_bits(record) for record in records)
    at_least = sum(plain_bits(record) for record in records if not isinstance(record, Integers))
    if not at_least <= bits_left < at_most + 8:
        raise ValueError(f"it promises {at_least} to {at_most} plain bits, and {bits_left} are there")
    if like is None:
        return
    promised: dict[str, tuple[str, tuple[int, ...]]] = {}
    for record in records:
        promised |= _promised(record, promised)
    for name, (dtype, shape) in promised.items():
        if (DTYPE_CODES.get(like[name].dtype), tuple(like[name].shape)) != (dtype, shape):
            raise ValueError(f"tensor {name!r} is of {dtype} and shape {shape}, the network's is not")


def _without_zeros(record: Record) -> Record:
    """A dimension of 0 empties a tensor, but reading it takes room by all the others."""
    return record if isinstance(record, Same) else replace(record, shape=tuple(max(size, 1) for size in record.shape))


def _promised(
    record: Record, earlier: Mapping[str, tuple[str, tuple[int, ...]]]
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape by name, given those of all earlier records."""
    if isinstance(record, Same):
        return {record.name: earlier[list(earlier)[record.target]]}
    if isinstance(record, Norm):
        kinds = [("F32", record.shape)] * 4 + [("I64", ())]
        return dict(zip(names_of(record), kinds, strict=True))
    return {record.name: (record.dtype, record.shape)}


def _tensor(patterns: np.ndarray, dtype: str) -> Tensor:
    signed = {1: np.uint8, 2: np.int16, 4: np.int32, 8: np.int64}[patterns.dtype.itemsize]
    return torch.from_numpy(patterns.view(signed)).view(_DTYPES[dtype])


def _read_norm(source: CodedReader, record: Norm) -> dict[str, Tensor]:
    weight = source.floats(record.shape, "F32", record.weight, GAINS)
    bias = source.floats(record.shape, "F32", record.bias, SHIFTS)
    statistics = torch.zeros(record.shape), torch.ones(record.shape), torch.tensor(record.batches)
    return dict(zip(names_of(record), (_tensor(weight, "F32"), _tensor(bias, "F32"), *statistics), strict=True))


def _read_rounded(source: CodedReader, record: Integers) -> Rounded:
    values = source.integers(record.shape, record.bits, record.nonzero, record.flat)
    kept = _channels_kept(values, record.dim)
    scales = source.floats(kept.shape, "BF16", replace(record.scales, nonzero=None), SCALES, kept)
    held = torch.from_numpy(values.astype(np.int8 if record.bits <= 8 else np.int16))
    return Rounded(held, _tensor(scales, "BF16"), record.bits, record.dim)


def _read_tensor(source: CodedReader, record: Raw | Constant | Floats) -> Tensor:
    dtype = _DTYPES[record.dtype]
    if isinstance(record, Floats):
        kind = WEIGHTS if len(record.shape) > 1 else SHIFTS
        return _tensor(source.floats(record.shape, record.dtype, record.form, kind), record.dtype)
    if isinstance(record, Constant):
        try:
            return torch.full(record.shape, record.value, dtype=dtype)
        except (RuntimeError, OverflowError):
            raise ValueError(f"{record.name!r} cannot be {record.value} in {record.dtype}") from None
    data = np.frombuffer(source.raw(decoded_bytes(record)), np.uint8).copy()
    if dtype == torch.bool and (data > 1).any():
        raise ValueError(f"{record.name!r} holds booleans above 1")
    return (
        torch.from_numpy(data).view(dtype).reshape(record.shape)
        if len(data)
        else torch.zeros(record.shape, dtype=dtype)
    )


def read(path: str | Path, like: Mapping[str, Tensor] | None = None) -> Decoded:
    """The content of a file of version 2, or of version 1, which has no rounded weights.

    Raises:
        DamagedFile: it does not decode, or holds other tensors than `like`.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        content = path.read_bytes()
        if content[:3] != MAGIC:
            return Decoded(read_version_1(path, like), {})
        return decode(content, like)
    except DamagedFile:
        raise
    except (ValueError, MemoryError, OverflowError, OSError) as error:
        said = shortened(" ".join(str(error).splitlines()), LONGEST_SAID)
        raise DamagedFile(f"{path.name} does not decode: {said}; export the trial again") from None
