"""The sparse file of a network, in the version that it needs, and the tensors of a file of either version."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from pruning.copying import copy_model
from pruning.file.container import encode, read
from pruning.file.stored_form import to_stored_form_
from pruning.sparse_file import encode_model
from spaces.bits import FLOAT_BITS


def write_sparse(model: nn.Module, path: str | Path, bits: int | Mapping[str, int] = FLOAT_BITS) -> int:
    """Write the sparse file of `model` to `path`; returns its bytes.

    Args:
        bits: width of a stored weight value, one for all prunable weights or by name (32 where one has no entry). With
            any below 32 the file is of version 2 and holds the network in stored form: its weights rounded, its
            BatchNorms as gain and shift. Put the model into it by `to_stored_form_` to know what that network computes.

    Raises:
        ValueError: bits that no weight can have (2 to 16, or 32), a name that is no prunable weight, a weight that is
            not finite; nothing is written.

    >>> import tempfile
    >>> layer, path = nn.Linear(64, 64), Path(tempfile.mkdtemp(), "model.prf")
    >>> write_sparse(layer, path, bits=4) < 0.15 * write_sparse(layer, path.with_suffix(".sparse"))
    True
    >>> sorted(read_sparse(path))
    ['bias', 'weight']
    """
    if not (isinstance(bits, Mapping) or bits != FLOAT_BITS):
        return Path(path).write_bytes(encode_model(model))
    stored = copy_model(model)
    rounded = to_stored_form_(stored, bits)
    return Path(path).write_bytes(encode(stored.state_dict(), rounded) if rounded else encode_model(model))


def read_sparse(path: str | Path, like: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Decode a sparse file of either version into a dense state dict on the CPU.

    Args:
        like: name, shape and dtype of what the file must hold, from the network that it belongs to; known beforehand,
            it bounds the memory that a stranger's file can take.

    Raises:
        DamagedFile: it does not decode, is of a later version, or holds other tensors than `like`.
        FileNotFoundError: no such file.
    """
    return read(path, like).state
