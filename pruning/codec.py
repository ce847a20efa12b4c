"""The sparse file: a safetensors container whose prunable weights take their smallest encoding.

Byte layout of an encoded weight (dtype U8 in the container, little-endian, elements in row-major order
of the original shape); its header note is `ENCODING DTYPE SHAPE NONZERO`, see `spaces.size`:

- `bitmask`: the NONZERO values, then ceil(n / 8) mask bytes; bit i % 8 (lowest first) of byte i // 8 is
  1 where element i is kept.
- `gap8`: the NONZERO values, then one byte a step: a code c < 255 skips c zeros and places the next
  value; 255 skips 255 zeros and places none. Zeros after the last value are not coded.

A note `same NAME` marks a tensor that shares NAME's storage. Everything else is dense.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from spaces.size import GAP_ESCAPE, Entry, container_header, encoding_note, worth_encoding

DTYPE_CODES: Mapping[torch.dtype, str] = {
    torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip
_DTYPES = {code: dtype for dtype, code in DTYPE_CODES.items()}
MAX_DECODED_BYTES = 64 * 2**30
"""Refuse a file that claims to decode to more: its header is not to be believed."""


class DamagedFile(ValueError):
    """A file of our own making that does not decode; the message names it and what is wrong."""


def prunable_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights masks may act on: those of convolutions and linear layers, in model order."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    modules = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    owners = {f"{name}.weight" if name else "weight" for name in modules}
    return {name: parameter for name, parameter in model.named_parameters() if name in owners}


def encode_model(model: nn.Module) -> bytes:
    """The sparse file of a model: zeros of prunable weights cost no value.

    >>> layer = nn.Linear(64, 64)
    >>> dense = len(encode_model(layer))
    >>> _ = layer.weight.data[4:].zero_()
    >>> len(encode_model(layer)) < 0.2 * dense
    True
    """
    return encode_state(model.state_dict(), sparse=set(prunable_weights(model)))


def encode_state(state: Mapping[str, Tensor], sparse: set[str] = frozenset()) -> bytes:
    """Write a state dict; names in `sparse` take their smallest encoding, ties in `ENCODERS` order."""
    entries, payloads, aliases, seen = [], {}, {}, {}
    for name, tensor in state.items():
        storage = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() and storage in seen:
            aliases[name] = seen[storage]
            continue
        seen[storage] = name
        entry, payloads[name] = _encode_tensor(name, tensor, name in sparse)
        entries.append(entry)
    header, order = container_header(entries, aliases)
    return header + b"".join(payloads[entry.name] for entry in order)


def dense_bytes(model: nn.Module) -> int:
    """Bytes of the dense file from the same writer: what `encoded` sizes are shares of."""
    return len(encode_state(model.state_dict()))


def write_sparse(model: nn.Module, path: Path) -> int:
    """Write the sparse file of `model` to `path`; returns its bytes."""
    return path.write_bytes(encode_model(model))


def read_sparse(path: Path) -> dict[str, Tensor]:
    """Decode a sparse file into a dense state dict on the CPU.

    Raises:
        DamagedFile: not a safetensors container, or a note that contradicts its bytes.
        FileNotFoundError: no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        for name, note in notes.items():
            if not note.startswith("same "):
                state[name] = _decode_tensor(state[name], note)
        for name, note in notes.items():
            if note.startswith("same "):
                state[name] = state[note.removeprefix("same ")]
    except (SafetensorError, ValueError, KeyError, IndexError, RuntimeError) as error:
        raise DamagedFile(f"{path.name} does not decode: {error}; export the trial again") from None
    return state


def _raw(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes()


def _encode_bitmask(flat: Tensor, kept: np.ndarray) -> bytes:
    return _raw(flat[torch.from_numpy(kept)]) + np.packbits(kept, bitorder="little").tobytes()


def _encode_gap8(flat: Tensor, kept: np.ndarray) -> bytes:
    places = np.flatnonzero(kept)
    gaps = np.diff(places, prepend=-1) - 1
    escapes, rest = np.divmod(gaps, GAP_ESCAPE)
    codes = np.full(len(gaps) + escapes.sum(), GAP_ESCAPE, dtype=np.uint8)
    codes[np.arange(len(gaps)) + np.cumsum(escapes)] = rest
    return _raw(flat[torch.from_numpy(places)]) + codes.tobytes()


ENCODERS = {"bitmask": _encode_bitmask, "gap8": _encode_gap8}


def _encode_tensor(name: str, tensor: Tensor, sparse: bool) -> tuple[Entry, bytes]:
    if tensor.dtype not in DTYPE_CODES:
        raise ValueError(f"tensor {name!r} has dtype {tensor.dtype}, which the sparse file cannot hold")
    code, shape = DTYPE_CODES[tensor.dtype], tuple(tensor.shape)
    dense = Entry(name, code, shape), _raw(tensor)
    if not sparse or not tensor.numel():
        return dense
    flat = tensor.detach().cpu().contiguous().flatten()
    kept = (flat != 0).numpy()
    payloads = {encoding: encode(flat, kept) for encoding, encode in ENCODERS.items()}
    encoding = min(payloads, key=lambda name: len(payloads[name]))
    note = encoding_note(encoding, code, shape, int(kept.sum()))
    if not worth_encoding(name, note, len(payloads[encoding]), len(dense[1])):
        return dense
    return Entry(name, "U8", (len(payloads[encoding]),), note), payloads[encoding]


def _decode_tensor(payload: Tensor, note: str) -> Tensor:
    encoding, code, dims, count = note.split(" ")
    dtype, shape, nonzero = _DTYPES[code], tuple(int(d) for d in dims.split(",")), int(count)
    size = prod(shape)
    if encoding not in ENCODERS or min(shape) < 1 or not 0 <= nonzero <= size:
        raise ValueError(f"impossible note {note!r}")
    if size * dtype.itemsize > MAX_DECODED_BYTES:
        raise ValueError(f"note {note!r} claims more than {MAX_DECODED_BYTES} bytes")
    if payload.dtype != torch.uint8 or payload.dim() != 1:
        raise ValueError(f"note {note!r} belongs to bytes, not to {payload.dtype} of shape {tuple(payload.shape)}")
    data = payload.numpy()
    held = torch.from_numpy(data[: nonzero * dtype.itemsize].copy())
    values = held.view(dtype) if nonzero else torch.empty(0, dtype=dtype)  # views of nothing are refused
    codes = data[nonzero * dtype.itemsize :]
    if encoding == "bitmask":
        if len(codes) != -(-size // 8):
            raise ValueError(f"note {note!r} promises {-(-size // 8)} mask bytes, there are {len(codes)}")
        places = np.flatnonzero(np.unpackbits(codes, count=size, bitorder="little"))
    else:
        places = (np.cumsum(codes.astype(np.int64) + (codes != GAP_ESCAPE)) - 1)[codes != GAP_ESCAPE]
    if len(places) != nonzero or len(values) != nonzero:
        raise ValueError(f"note {note!r} promises {nonzero} values, the bytes hold {len(places)}")
    dense = torch.zeros(size, dtype=dtype)
    dense[torch.from_numpy(places)] = values
    return dense.reshape(shape)
