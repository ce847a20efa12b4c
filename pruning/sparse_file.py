"""The sparse file: a safetensors container whose prunable weights take their smallest encoding.

Byte layout of an encoded weight (dtype U8 in the container, little-endian, elements in row-major order
of the original shape); its header note is `ENCODING DTYPE SHAPE NONZERO`, NONZERO counting the values stored, see
`spaces.cost.footprint`:

- `bitmask`: the NONZERO values, then ceil(n / 8) mask bytes; bit i % 8 (lowest first) of byte i // 8 is
  1 where element i is kept.
- `gap8`: the NONZERO values, then one byte a step: a code c < 255 skips c zeros and places the next
  value; 255 skips 255 zeros and places none. Zeros after the last value are not coded.
- `vec`, `ker`: as `bitmask`, with one bit for each unit of granularity `vector` or `kernel`; the values of kept units
  are all there, zeros among them.
- `N:M`, such as `2:4`: N values of every M consecutive inputs at one output and kernel position, blocks in the order
  (output, kernel position, input), then the place in its block of each value, log2(M) bits, lowest first. Where a block
  has fewer nonzeros, zeros fill it up.
- `N/M`: the same of transposed convolutions, whose inputs are the first dimension, not the second.

A note `same NAME` marks a tensor that shares NAME's storage. Everything else is dense.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pruning.modules import inputs_of_weights
from spaces.cost.container import (
    GAP_ESCAPE,
    Entry,
    container_header,
    encoding_note,
    no_larger_than_dense,
    worth_encoding,
)
from spaces.granularity import NAMES, UNIT_MARGIN, pattern_name, pattern_of, run_length
from spaces.printable import shortened

DTYPE_CODES: Mapping[torch.dtype, str] = {
    torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip
_DTYPES = {code: dtype for dtype, code in DTYPE_CODES.items()}
LATER = b"PRF"
"""What a file of a later version begins with; as the length of a safetensors header these are megabytes."""
MAX_DECODED_BYTES = 64 * 2**30
"""A file that claims to decode to more than this is refused, since its header cannot be right."""
MOST_DIMENSIONS = 16
LONGEST_SAID = 300
"""The most characters shown of what is wrong with a file."""
PATTERN_LENGTHS = (4, 8)
"""M of the patterns that every weight is searched for."""


class DamagedFile(ValueError):
    """One of our own files that does not decode; the message names it and what is wrong."""


def encode_model(model: nn.Module) -> bytes:
    """The sparse file of a model: zeros of prunable weights cost no value.

    >>> layer = nn.Linear(64, 64)
    >>> dense = len(encode_model(layer))
    >>> _ = layer.weight.data[4:].zero_()
    >>> len(encode_model(layer)) < 0.2 * dense
    True
    """
    inputs = inputs_of_weights(model)
    return encode_state(model.state_dict(), set(inputs), {name for name, where in inputs.items() if where.dim == 0})


def encode_state(
    state: Mapping[str, Tensor], sparse: Set[str] = frozenset(), transposed: Set[str] = frozenset()
) -> bytes:
    """Write a state dict; tensors named in `sparse` take their smallest encoding, ties in the order above.

    Those in `transposed` are searched for patterns along both of their first dimensions.
    """
    entries: list[Entry] = []
    dense: list[Entry] = []
    payloads: dict[str, bytes] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    for name, tensor in state.items():
        storage = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() and storage in seen:
            aliases[name] = seen[storage]
            continue
        seen[storage] = name
        entry, payload = _encode_tensor(name, tensor, name in sparse, name in transposed)
        payloads |= {name: payload} if payload is not None else {}
        entries.append(entry)
        dense.append(Entry(name, DTYPE_CODES[tensor.dtype], tuple(tensor.shape)))
    header, order = container_header(no_larger_than_dense(entries, dense, aliases), aliases)
    return header + b"".join(payloads[e.name] if e.note else _raw(state[e.name]) for e in order)


def dense_bytes(model: nn.Module) -> int:
    """Bytes of the dense file from the same writer; `encoded` sizes are shares of these."""
    return len(encode_state(model.state_dict()))


def read_version_1(path: str | Path, like: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Decode a sparse file of version 1 into a dense state dict on the CPU.

    Args:
        like: name, shape and dtype of what the file must hold, from the network that it belongs to; known beforehand,
            it bounds the memory that a stranger's file can take. Without it all tensors together have at most
            `MAX_DECODED_BYTES`.

    Raises:
        DamagedFile: not a safetensors container, such as a file of version 2; a note that contradicts its bytes, or
            other tensors than `like`.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with path.open("rb") as opened:
            if opened.read(len(LATER)) == LATER:
                raise ValueError("it is a sparse file of version 2 or later, which pruning.read_sparse reads")
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            _check_claims(file, notes, like)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        for name, note in notes.items():
            if not note.startswith("same "):
                state[name] = _decode_tensor(state[name], note)
        for name, note in notes.items():
            if note.startswith("same "):
                state[name] = state[note.removeprefix("same ")]
    except (SafetensorError, ValueError, KeyError, IndexError, RuntimeError, MemoryError, OSError) as error:
        said = shortened(" ".join(str(error).splitlines()), LONGEST_SAID)
        raise DamagedFile(f"{path.name} does not decode: {said}; export the trial again") from None
    return state


def _check_claims(file: Any, notes: Mapping[str, str], like: Mapping[str, Tensor] | None) -> None:
    """Raise `ValueError` for a header that promises what the file cannot hold, before any tensor is made of it."""
    held, aliases = set(file.keys()), {name for name, note in notes.items() if note.startswith("same ")}
    for name, note in notes.items():
        if name not in aliases and name not in held:
            raise ValueError(f"a note on {name!r}, which is not there")
        if name in aliases and (name in held or note.removeprefix("same ") not in held):
            raise ValueError(f"note {note!r} of {name!r} names no other tensor")
    if like is not None and (held | aliases) != like.keys():
        other = min((held | aliases) ^ like.keys())
        raise ValueError(f"tensor {other!r} is {'missing' if other in like else 'none of the network'}")
    claimed, promised = 0, {}
    for name in held:
        if name in notes:
            promised[name] = code, shape = _claim(notes[name])
            claimed += prod(shape) * _DTYPES[code].itemsize
        else:
            promised[name] = file.get_slice(name).get_dtype(), tuple(file.get_slice(name).get_shape())
    if claimed > MAX_DECODED_BYTES:
        raise ValueError(f"it claims more than {MAX_DECODED_BYTES} bytes, namely {claimed}")
    if like is None:
        return
    promised |= {name: promised[notes[name].removeprefix("same ")] for name in aliases}
    for name, (code, shape) in promised.items():
        if (DTYPE_CODES.get(like[name].dtype), tuple(like[name].shape)) != (code, shape):
            raise ValueError(f"tensor {name!r} is of {code} and shape {shape}, the network's is not")


def _claim(note: str) -> tuple[str, tuple[int, ...]]:
    """Dtype and shape that a note promises; raises `ValueError` for what no tensor has."""
    words = note.split(" ")
    if len(words) != 4 or words[1] not in _DTYPES:
        raise ValueError(f"impossible note {note!r}")
    dims = words[2].split(",")
    if len(dims) > MOST_DIMENSIONS or not all(re.fullmatch("[0-9]{1,18}", dim) for dim in dims):
        raise ValueError(f"impossible note {note!r}")
    return words[1], tuple(map(int, dims))


def _raw(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes()


@dataclass(frozen=True)
class _Coded:
    """A weight in one encoding: which elements' values are stored, in which order, and the bytes that place them."""

    name: str
    places: np.ndarray
    index: bytes

    def note(self, code: str, shape: tuple[int, ...]) -> str:
        return encoding_note(self.name, code, shape, len(self.places))


def _by_bitmask(kept: np.ndarray) -> _Coded:
    return _Coded("bitmask", np.flatnonzero(kept), np.packbits(kept, bitorder="little").tobytes())


def _by_gaps(kept: np.ndarray) -> _Coded:
    places = np.flatnonzero(kept)
    gaps = np.diff(places, prepend=-1) - 1
    escapes, rest = np.divmod(gaps, GAP_ESCAPE)
    codes = np.full(len(gaps) + escapes.sum(), GAP_ESCAPE, dtype=np.uint8)
    codes[np.arange(len(gaps)) + np.cumsum(escapes)] = rest
    return _Coded("gap8", places, codes.tobytes())


def _by_units(kept: np.ndarray, granularity: str) -> _Coded | None:
    """One bit a unit; None if a unit is a single weight."""
    run = run_length(granularity, kept.shape)
    if run == 1:
        return None
    units = kept.reshape(-1, run).any(axis=1)
    places = np.flatnonzero(np.repeat(units, run))
    return _Coded(NAMES[granularity], places, np.packbits(units, bitorder="little").tobytes())


def _by_pattern(kept: np.ndarray, m: int, dim: int) -> _Coded | None:
    """N positions of every M; None if M does not divide the dimension, a block is full, or nothing is kept."""
    if kept.ndim < 2 or kept.shape[dim] % m:
        return None
    blocks = _blocks(kept, m, dim)
    n = int(blocks.sum(axis=1).max())
    if not 0 < n < m:
        return None
    inside = np.sort(np.argsort(~blocks, axis=1, kind="stable")[:, :n], axis=1)
    places = np.take_along_axis(_blocks(np.arange(kept.size).reshape(kept.shape), m, dim), inside, axis=1)
    return _Coded(pattern_name(n, m, dim), places.ravel(), _packed(inside.ravel(), m))


def _blocks(elements: np.ndarray, m: int, dim: int) -> np.ndarray:
    """(blocks, m): every m consecutive inputs, which `dim` indexes, at one output and kernel position."""
    return np.moveaxis(elements, dim, -1).reshape(-1, m)


def _packed(numbers: np.ndarray, m: int) -> bytes:
    """Numbers below m, a power of 2, in log2(m) bits each."""
    bits = numbers[:, None] >> np.arange(m.bit_length() - 1) & 1
    return np.packbits(bits.ravel().astype(np.uint8), bitorder="little").tobytes()


def _encode_tensor(name: str, tensor: Tensor, sparse: bool, transposed: bool) -> tuple[Entry, bytes | None]:
    """The entry of a tensor, and its bytes if it is encoded."""
    if tensor.dtype not in DTYPE_CODES:
        raise ValueError(f"tensor {name!r} has dtype {tensor.dtype}, which the sparse file cannot hold")
    code, shape = DTYPE_CODES[tensor.dtype], tuple(tensor.shape)
    dense = Entry(name, code, shape), None
    if not sparse or not tensor.numel():
        return dense
    flat = tensor.detach().cpu().contiguous().flatten()
    kept, dims = (flat != 0).numpy().reshape(shape), (1, 0) if transposed else (1,)
    coded = _smallest(kept, lambda one: one.note(code, shape), flat.itemsize, dims)
    payload = _raw(flat[torch.from_numpy(coded.places)]) + coded.index
    if not worth_encoding(name, coded.note(code, shape), len(payload), dense[0].bytes):
        return dense
    return Entry(name, "U8", (len(payload),), coded.note(code, shape)), payload


def _smallest(kept: np.ndarray, note: Callable[[_Coded], str], item_bytes: int, dims: Sequence[int]) -> _Coded:
    """By single weights, or by units or a pattern along `dims` if that saves at least `UNIT_MARGIN` bytes, the note
    included.
    """

    def payload(coded: _Coded) -> int:
        return len(coded.places) * item_bytes + len(coded.index)

    def cost(coded: _Coded) -> int:
        return payload(coded) + len(note(coded))

    plain = min(_by_bitmask(kept), _by_gaps(kept), key=payload)
    patterns = [_by_pattern(kept, m, dim) for dim in dims for m in PATTERN_LENGTHS]
    found = [*(_by_units(kept, word) for word in NAMES), *patterns]
    best = min((coded for coded in found if coded), key=cost, default=plain)
    return best if cost(best) + UNIT_MARGIN <= cost(plain) else plain


def _decode_tensor(payload: Tensor, note: str) -> Tensor:
    encoding, _, _, count = note.split(" ")
    code, shape = _claim(note)
    dtype, nonzero, size = _DTYPES[code], int(count), prod(shape)
    if min(shape) < 1 or not 0 <= nonzero <= size:
        raise ValueError(f"impossible note {note!r}")
    if payload.dtype != torch.uint8 or payload.dim() != 1:
        raise ValueError(f"note {note!r} belongs to bytes, not to {payload.dtype} of shape {tuple(payload.shape)}")
    data = payload.numpy()
    held = torch.from_numpy(data[: nonzero * dtype.itemsize].copy())
    values = held.view(dtype) if nonzero else torch.empty(0, dtype=dtype)  # views of nothing are refused
    places = _places(encoding, data[nonzero * dtype.itemsize :], shape, nonzero, note)
    if len(places) != nonzero or len(values) != nonzero:
        raise ValueError(f"note {note!r} promises {nonzero} values, the bytes hold {len(places)}")
    dense = torch.zeros(size, dtype=dtype)
    dense[torch.from_numpy(places)] = values
    return dense.reshape(shape)


def _places(encoding: str, index: np.ndarray, shape: tuple[int, ...], nonzero: int, note: str) -> np.ndarray:
    """Which elements the stored values belong to, read from the bytes behind them."""
    if encoding == "gap8":
        return (np.cumsum(index.astype(np.int64) + (index != GAP_ESCAPE)) - 1)[index != GAP_ESCAPE]
    size, names = prod(shape), {name: granularity for granularity, name in NAMES.items()}
    if encoding == "bitmask" or encoding in names:
        run = run_length(names.get(encoding, "fine-grained"), shape)
        _expect(index, -(-(size // run) // 8), note)
        units = np.flatnonzero(np.unpackbits(index, count=size // run, bitorder="little"))
        if len(units) * run != nonzero:  # before they are spread out
            raise ValueError(f"note {note!r} promises {nonzero} values, the bytes hold {len(units) * run}")
        return (units[:, None] * run + np.arange(run)).ravel()
    pattern, dim = pattern_of(encoding.replace("/", ":")), int("/" not in encoding)
    if not pattern or pattern.keep is None or len(shape) < 2 or shape[dim] % pattern.of:
        raise ValueError(f"impossible note {note!r}")
    if nonzero * pattern.of != size * pattern.keep:
        raise ValueError(f"note {note!r} promises {nonzero} values, the pattern keeps {pattern.keep} of {pattern.of}")
    _expect(index, -(-nonzero * pattern.index_bits // 8), note)
    bits = np.unpackbits(index, count=nonzero * pattern.index_bits, bitorder="little").reshape(nonzero, -1)
    inside = (bits.astype(np.int64) << np.arange(pattern.index_bits)).sum(axis=1).reshape(-1, pattern.keep)
    if (np.diff(inside, axis=1) <= 0).any():
        raise ValueError(f"note {note!r}: places within a block must rise")
    return np.take_along_axis(_blocks(np.arange(size).reshape(shape), pattern.of, dim), inside, axis=1).ravel()


def _expect(index: np.ndarray, length: int, note: str) -> None:
    if len(index) != length:
        raise ValueError(f"note {note!r} promises {length} mask bytes, there are {len(index)}")
