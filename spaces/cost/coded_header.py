"""The header of the sparse file, version 2: what its tensors are, in as few bytes as that takes.

Whole numbers are varints: 7 bits a byte, lowest first, the high bit set in all bytes but the last. A record is

- a byte: kind (bits 0 to 2), ending of the name (bits 3 to 5), path as in the record before (bit 6), shape as in the
  record before (bit 7);
- unless the path is as before: bytes it has in common with the path before, number of further bytes, those (UTF-8);
- unless the shape is as before, and but for `Same`: number of dimensions, each dimension;
- what its kind adds, see the classes.

A name is its path and its ending. Before the first record the path is empty and the shape is ().
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

from spaces.network import ITEM_BYTES

ENDINGS = ("", ".weight", ".bias", ".running_mean", ".running_var", ".num_batches_tracked")
NORM_ENDINGS = ENDINGS[1:]
"""The five tensors of a `Norm`, in this order."""
DTYPES = ("F32", "F16", "BF16", "F64", "I64", "I32", "I16", "I8", "U8", "BOOL")
"""A type's code is its place here."""
FLOAT_FORMS = {"F32": (8, 23), "F16": (5, 10), "BF16": (8, 7), "F64": (11, 52)}
"""Bits of the exponent and of the mantissa."""
MOST_DIMENSIONS = 16
MOST_BITS = 16
"""Of a rounded value."""
LONGEST_PATH = 4096


@dataclass(frozen=True)
class FloatForm:
    """What the floats of one tensor have in common.

    Attributes:
        mantissa: leading bits of the mantissa that are stored; all further ones are 0.
        distance: bits of how far an exponent is below the largest.
        top: the largest exponent, biased as the type has it.
        nonzero: how many are not zero; None where something else says it.
        flat: signs and exponents are stored as they are, and every place is as likely not zero as any other.
    """

    mantissa: int
    distance: int
    top: int
    nonzero: int | None = None
    flat: bool = False

    @property
    def plain_bits(self) -> int:
        """Bits of each value that are stored as they are."""
        return self.mantissa + (1 + self.distance if self.flat else 0)


@dataclass(frozen=True)
class Raw:
    """A tensor as it is in memory, little-endian. Adds: its type's code."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Constant:
    """A tensor whose elements are all one whole number. Adds: its type's code; the number doubled, or of a negative
    one doubled and less 1 as if positive."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    value: int


@dataclass(frozen=True)
class Floats:
    """A tensor of floats. Adds: its type's code, 16 more if flat, 32 more if none is zero; the form's mantissa,
    distance, top; unless none is zero, how many are not."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    form: FloatForm


@dataclass(frozen=True)
class Integers:
    """A rounded weight: values of so many bits, and one bfloat16 scale for each index of dimension `dim` that has a
    value other than 0.

    Adds: its type's code, 16 more if flat, 32 more if `dim` is 1, 64 more if the scales are flat; bits; nonzero values;
    mantissa, distance, top of the scales.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    bits: int
    nonzero: int
    scales: FloatForm
    dim: int = 0
    flat: bool = False

    @property
    def largest(self) -> int:
        return 2 ** (self.bits - 1) - 1


@dataclass(frozen=True)
class Same:
    """A tensor that shares the storage of an earlier one. Adds: the earlier one's place among all names."""

    name: str
    target: int


@dataclass(frozen=True)
class Norm:
    """The five float32 tensors of a BatchNorm with running mean 0 and variance 1; the name is its path.

    Adds: 1 if the weights are flat, 2 more if none of them is zero, 4 and 8 more likewise for the biases; batches
    tracked; of weights, then of biases: mantissa, distance, top, and unless none is zero, how many are not.
    """

    name: str
    shape: tuple[int, ...]
    weight: FloatForm
    bias: FloatForm
    batches: int


Record: TypeAlias = Raw | Constant | Floats | Integers | Same | Norm
KINDS = (Raw, Constant, Floats, Integers, Same, Norm)


def varint(number: int) -> bytes:
    """
    >>> varint(5), varint(300)
    (b'\\x05', b'\\xac\\x02')
    """
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def names_of(record: Record) -> tuple[str, ...]:
    """Of all tensors the record stands for."""
    if isinstance(record, Norm):
        return tuple(record.name + ending for ending in NORM_ENDINGS)
    return (record.name,)


def split_name(name: str) -> tuple[str, int]:
    """Path and place of the ending.

    >>> split_name("stem.0.weight"), split_name("scale")
    (('stem.0', 1), ('scale', 0))
    """
    for place, ending in enumerate(ENDINGS):
        if place and name.endswith(ending):
            return name.removesuffix(ending), place
    return name, 0


def write_header(records: Sequence[Record]) -> bytes:
    """The number of records, and the records."""
    found, path = [varint(len(records))], b""
    shape: tuple[int, ...] = ()
    for record in records:
        own = shape if isinstance(record, Same) else record.shape
        found.append(_record(record, path, shape))
        path, shape = _path(record), own
    return b"".join(found)


def most_header_bytes(records: Sequence[Record]) -> int:
    """Bytes of the header at most, of these records or of such with smaller dimensions and counts."""
    paths = [b"", *map(_path, records)]
    return len(varint(len(records))) + sum(
        len(_record(record, path, None)) for record, path in zip(records, paths, strict=False)
    )


def _path(record: Record) -> bytes:
    return (record.name if isinstance(record, Norm) else split_name(record.name)[0]).encode()


def _record(record: Record, path: bytes, shape: tuple[int, ...] | None) -> bytes:
    """A record behind one of this path and shape; without a shape its own is written whatever it is."""
    name, ending = _path(record), 0 if isinstance(record, Norm) else split_name(record.name)[1]
    own = shape if isinstance(record, Same) else record.shape
    found = bytearray([KINDS.index(type(record)) | ending << 3 | (name == path) << 6 | (own == shape) << 7])
    if name != path:
        common = next((n for n, pair in enumerate(zip(name, path, strict=False)) if len({*pair}) > 1), None)
        common = min(len(name), len(path)) if common is None else common
        found += varint(common) + varint(len(name) - common) + name[common:]
    if own is not None and own != shape:
        found += varint(len(own)) + b"".join(map(varint, own))
    return bytes(found) + _added(record)


def _added(record: Record) -> bytes:
    if isinstance(record, Raw):
        return varint(DTYPES.index(record.dtype))
    if isinstance(record, Constant):
        doubled = 2 * record.value if record.value >= 0 else -2 * record.value - 1
        return varint(DTYPES.index(record.dtype)) + varint(doubled)
    if isinstance(record, Same):
        return varint(record.target)
    if isinstance(record, Floats):
        full = record.form.nonzero == prod(record.shape)
        return bytes([DTYPES.index(record.dtype) + 16 * record.form.flat + 32 * full]) + _form(record.form, full)
    if isinstance(record, Integers):
        code = DTYPES.index(record.dtype) + 16 * record.flat + 32 * record.dim + 64 * record.scales.flat
        return bytes([code, record.bits]) + varint(record.nonzero) + _form(record.scales, True)
    of_weight, of_bias = (form.nonzero == prod(record.shape) for form in (record.weight, record.bias))
    flags = record.weight.flat + 2 * of_weight + 4 * record.bias.flat + 8 * of_bias
    return bytes([flags]) + varint(record.batches) + _form(record.weight, of_weight) + _form(record.bias, of_bias)


def _form(form: FloatForm, full: bool) -> bytes:
    return bytes([form.mantissa, form.distance]) + varint(form.top) + (b"" if full else varint(form.nonzero or 0))


class Reader:
    """Reads bytes from the front; raises `ValueError` where they end too early or cannot be what is asked for."""

    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0

    def take(self, count: int) -> bytes:
        if count > len(self._data) - self.at:
            raise ValueError("it ends too early")
        self.at += count
        return self._data[self.at - count : self.at]

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self, most: int = 2**48) -> int:
        found, shift = 0, 0
        while True:
            byte = self.byte()
            found |= (byte & 0x7F) << shift
            if found > most or shift > 63:
                raise ValueError(f"it holds a number above {most}")
            if byte < 0x80:
                return found
            shift += 7

    def rest(self) -> int:
        return len(self._data) - self.at


def read_header(data: bytes) -> list[Record]:
    """The records of `write_header`.

    Raises:
        ValueError: a header that no `write_header` made.
    """
    reader, records, names = Reader(data), [], dict[str, None]()
    path = b""
    shape: tuple[int, ...] = ()
    for _ in range(reader.number(len(data))):
        first = reader.byte()
        kind, ending = first & 7, first >> 3 & 7
        if kind >= len(KINDS) or ending >= len(ENDINGS):
            raise ValueError(f"it holds a tensor of unknown kind {kind} or ending {ending}")
        if not first & 64:
            common, more = reader.number(len(path)), reader.number(LONGEST_PATH)
            path = path[:common] + reader.take(more)
        if not first & 128:
            dimensions = reader.number(MOST_DIMENSIONS)
            shape = tuple(reader.number() for _ in range(dimensions))
        record = _read_record(reader, KINDS[kind], path.decode() + ENDINGS[ending], shape, len(names))
        if any(name in names for name in names_of(record)):
            raise ValueError(f"it holds {record.name!r} twice")
        names |= dict.fromkeys(names_of(record))
        records.append(record)
    if reader.rest():
        raise ValueError(f"{reader.rest()} bytes follow its last tensor")
    return records


def _read_record(reader: Reader, kind: type, name: str, shape: tuple[int, ...], known: int) -> Record:
    if kind is Same:
        target = reader.number()
        if target >= known:
            raise ValueError(f"{name!r} shares the storage of no earlier tensor")
        return Same(name, target)
    if kind is Norm:
        flags, batches = reader.byte(), reader.number()
        weight = _read_form(reader, "F32", shape, flags & 3)
        bias = _read_form(reader, "F32", shape, flags >> 2)
        if flags > 15 or len(shape) != 1 or weight.nonzero is None or bias.nonzero is None:
            raise ValueError(f"it holds an impossible norm {name!r}")
        return Norm(name, shape, weight, bias, batches)
    code = reader.byte()
    if code & 15 >= len(DTYPES):
        raise ValueError(f"{name!r} is of unknown type {code & 15}")
    dtype = DTYPES[code & 15]
    if kind in (Floats, Integers) and (dtype not in FLOAT_FORMS or code > (63 if kind is Floats else 127)):
        raise ValueError(f"{name!r} has floats of impossible type {code}")
    if kind is Floats:
        return Floats(name, shape, dtype, _read_form(reader, dtype, shape, code >> 4))
    if kind is Integers:
        return _read_integers(reader, name, shape, dtype, code)
    if code >= len(DTYPES):
        raise ValueError(f"{name!r} is of unknown type {code}")
    if kind is Raw:
        return Raw(name, shape, dtype)
    doubled = reader.number(2**64)
    return Constant(name, shape, dtype, doubled // 2 if doubled % 2 == 0 else -(doubled // 2) - 1)


def _read_integers(reader: Reader, name: str, shape: tuple[int, ...], dtype: str, code: int) -> Integers:
    bits, nonzero, dim = reader.byte(), reader.number(), code >> 5 & 1
    scales = _read_form(reader, "BF16", shape, code >> 6 & 1 | 2)
    if not 2 <= bits <= MOST_BITS or nonzero > prod(shape) or dim >= len(shape):
        raise ValueError(f"{name!r} cannot hold {nonzero} values of {bits} bits")
    form = FloatForm(scales.mantissa, scales.distance, scales.top, None, scales.flat)
    return Integers(name, shape, dtype, bits, nonzero, form, dim, bool(code & 16))


def _read_form(reader: Reader, dtype: str, shape: Iterable[int], flags: int) -> FloatForm:
    mantissa, distance, exponent_bits = reader.byte(), reader.byte(), FLOAT_FORMS[dtype]
    top, size = reader.number(2 ** exponent_bits[0] - 1), prod(shape)
    nonzero = size if flags & 2 else reader.number()
    if mantissa > exponent_bits[1] or distance > exponent_bits[0] or nonzero > size:
        raise ValueError(f"it holds floats of impossible form {mantissa}, {distance}, {nonzero}")
    return FloatForm(mantissa, distance, top, nonzero, bool(flags & 1))


def decoded_bytes(record: Record) -> int:
    """What the record's tensors take in memory."""
    if isinstance(record, Same):
        return 0
    if isinstance(record, Norm):
        return 16 * prod(record.shape) + 8
    return prod(record.shape) * ITEM_BYTES[record.dtype]


def plain_bits(record: Record) -> int:
    """Bits of the file's last part that belong to the record; those of an `Integers`' scales are bounded from above
    by all its channels, as its places say which are stored."""
    if isinstance(record, Raw):
        return 8 * decoded_bytes(record)
    if isinstance(record, Floats):
        return record.form.plain_bits * (record.form.nonzero or 0)
    if isinstance(record, Norm):
        return sum(form.plain_bits * (form.nonzero or 0) for form in (record.weight, record.bias))
    if isinstance(record, Integers):
        return record.scales.plain_bits * record.shape[record.dim]
    return 0
