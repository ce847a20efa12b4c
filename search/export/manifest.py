"""The manifest of an export: what it says, and which files of a folder belong to the export."""

from __future__ import annotations

import math
import os
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from pruning.sparse_file import dense_bytes
from search.errors import Refused, UsageError
from search.files import MOST_JSON, read_text, sha256_of
from spaces.strict_json import parse_object

MANIFEST_VERSION = 1
SPARSITY, POLICY, STRUCTURE = "sparsity.json", "policy.json", "structure.json"
WEIGHTS, SPARSE, ONNX, MANIFEST = "model.safetensors", "model.sparse.safetensors", "model.onnx", "manifest.json"
CODED = "model.prf"
"""The sparse file of a network with rounded weights, version 2; `SPARSE` is of version 1."""
ONNX_INT8 = "model.int8.onnx"
"""The network with weights and activations of 8 bits; `ONNX` computes with floats."""
TORCH_PRUNE = "model.torch-prune.safetensors"
ALWAYS = (SPARSITY, POLICY, STRUCTURE, WEIGHTS)
"""Files of every export besides its manifest and its sparse file."""
FILES = (*ALWAYS, SPARSE, CODED, ONNX, ONNX_INT8, TORCH_PRUNE)
"""All files an export can have; a manifest that names others does not make them part of it."""
_TYPES = {
    "files": Mapping, "workload": Mapping, "architecture": str, "accuracy": float, "outputs": list,
    "size_encoded": float, "size_nonzero": float, "limit": float | None, "size_metric": str | None,
}  # fmt: skip


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an export.

    Raises:
        UsageError: the folder is not an export.
        Refused: the manifest is damaged or of another version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UsageError(f"{str(folder)!r} is not an export: it has no {MANIFEST}")
    try:
        manifest = parse_object(read_text(path))
    except (ValueError, OSError) as error:
        raise Refused(f"damaged manifest {path}: {error}; export again") from None
    if manifest.get("version") != MANIFEST_VERSION:
        raise Refused(f"manifest {path} does not have version {MANIFEST_VERSION}; export again")
    wrong = [key for key, kinds in _TYPES.items() if not isinstance(manifest.get(key), kinds)]
    wrong += [key for key in _TYPES if isinstance(value := manifest.get(key), float) and not math.isfinite(value)]
    if wrong:
        raise Refused(f"damaged manifest {path}: {wrong[0]!r} is missing or of a wrong type; export again")
    if not all(isinstance(described, Mapping) for described in manifest["files"].values()):
        raise Refused(f"damaged manifest {path}: 'files' must describe each file; export again")
    return manifest


def sparse_file_of(files: Container[str]) -> str:
    """Which of an export's files is its sparse file."""
    return CODED if CODED in files else SPARSE


def foreign_file(folder: Path) -> str | None:
    """A name in a folder that belongs to no export its manifest describes; None if all belong to it.

    Raises:
        OSError: the folder cannot be read.
    """
    try:
        files = read_manifest(folder)["files"]
    except (UsageError, Refused):
        files = None
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name != MANIFEST or files is None:
                if not (files and entry.name in FILES and entry.is_file(follow_symlinks=False)):
                    return entry.name
                if not _is_as_described(folder / entry.name, files.get(entry.name, {})):
                    return entry.name
    return None


def _is_as_described(path: Path, described: Mapping[str, Any]) -> bool:
    size = described.get("bytes")
    try:
        return type(size) is int and path.stat().st_size == size and sha256_of(path, size) == described.get("sha256")
    except ValueError:
        return False


def largest_files(dense: nn.Module) -> dict[str, int]:
    """File of an export -> the most bytes it can have if it was pruned from this network."""
    state = dense.state_dict()
    names = sum(6 * len(name) + 1024 for name in state) + 2**16
    indices = sum(32 * size for tensor in state.values() for size in tensor.shape)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    text = min(names + indices, MOST_JSON)
    return {
        SPARSITY: text,
        POLICY: text,
        STRUCTURE: text,
        WEIGHTS: weights + names,
        SPARSE: dense_bytes(dense) + names,
        CODED: weights + names,
        ONNX: 4 * weights + 2**26,
        ONNX_INT8: 4 * weights + 2**26,
        TORCH_PRUNE: 2 * (weights + names),
    }
