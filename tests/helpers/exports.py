"""What an export of the tiny workload holds."""

from __future__ import annotations

import json
from pathlib import Path

LAYERS = {"conv0.weight", "conv1.weight", "classifier.weight"}
EXPORTED = ["model.safetensors", "model.sparse.safetensors", "policy.json", "sparsity.json", "structure.json"]


def sparse_file(folder: Path) -> str:
    """Of an export: of version 2 where its policy rounds weights."""
    return "model.prf" if rounds(folder) else "model.sparse.safetensors"


def rounds(folder: Path) -> bool:
    return "bits" in json.loads((folder / "policy.json").read_text())
