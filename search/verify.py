"""Verification of an export: nothing is taken on trust but the workload's own code and data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from pruning.codec import DamagedFile, dense_bytes, read_sparse
from pruning.cost import measure_cost
from pruning.outputs import tensors_in
from pruning.structure import Structure
from pruning.torch_prune import state_from_torch_prune
from search.checkpoints import restore
from search.dense import build_model
from search.errors import EnvironmentProblem, Refused, UsageError
from search.export import (
    MANIFEST,
    MANIFEST_VERSION,
    ONNX,
    OUTPUT_ROWS,
    POLICY,
    SPARSE,
    SPARSITY,
    STRUCTURE,
    TORCH_PRUNE,
    WEIGHTS,
)
from search.fingerprint import model_fingerprint
from search.old_fingerprints import old_model_fingerprints
from search.train import predict, score
from search.workloads import Workload
from spaces.policy import PruningPolicy, parse_object, parse_sparsity

OUTPUT_TOLERANCE = 1e-4
"""Largest difference of outputs, relative to the largest output: what another CPU may round differently."""
ACCURACY_TOLERANCE_EXAMPLES = 1.0
"""Validation examples that may fall on the other side on another CPU."""

_MANIFEST_TYPES = {
    "files": Mapping, "workload": Mapping, "architecture": str, "accuracy": float, "outputs": list,
    "size_encoded": float, "size_nonzero": float, "limit": float | None, "size_metric": str | None,
}  # fmt: skip


@dataclass(frozen=True)
class Check:
    """One thing verified; `detail` says what was compared."""

    name: str
    passed: bool
    detail: str


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an export.

    Raises:
        UsageError: the folder is no export.
        Refused: the manifest is damaged or of another version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UsageError(f"{str(folder)!r} is no export: it has no {MANIFEST}")
    try:
        manifest = parse_object(path.read_text())
    except (ValueError, OSError) as error:
        raise Refused(f"damaged manifest {path}: {error}; export again") from None
    if manifest.get("version") != MANIFEST_VERSION:
        raise Refused(f"manifest {path} is not of version {MANIFEST_VERSION}; export again")
    if wrong := [key for key, kinds in _MANIFEST_TYPES.items() if not isinstance(manifest.get(key), kinds)]:
        raise Refused(f"damaged manifest {path}: {wrong[0]!r} is missing or of a wrong type; export again")
    if not all(isinstance(described, Mapping) for described in manifest["files"].values()):
        raise Refused(f"damaged manifest {path}: 'files' must describe each file; export again")
    return manifest


def verify_files(folder: Path, manifest: Mapping[str, Any]) -> list[Check]:
    """Hash and length of every file the manifest names, and that nothing is missing from it."""
    checks = []
    for name in sorted({*manifest["files"], SPARSITY, POLICY, STRUCTURE, WEIGHTS, SPARSE}):
        described, path = manifest["files"].get(name), folder / name
        if described is None or Path(name).name != name or not path.is_file():
            checks.append(Check(f"hash of {name}", False, "missing"))
            continue
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        checks.append(Check(f"hash of {name}", found == described.get("sha256"), f"sha256 {found[:12]}..."))
    return checks


def verify_contents(folder: Path, manifest: Mapping[str, Any], workload: Workload) -> list[Check]:
    """Reload both weight files and compare policy, size, outputs and validation accuracy with the manifest."""
    steps: list[Callable[[], Check]] = []
    dense = build_model(workload, seed=0)
    try:
        structure = Structure.from_dict(parse_object((folder / STRUCTURE).read_text()))
        plain = load((folder / WEIGHTS).read_bytes())
        sparse = read_sparse(folder / SPARSE)
        model = restore(dense, structure, plain)
        steps = [
            lambda: _architecture(dense, manifest),
            lambda: _policy(folder),
            lambda: _sparse_equals_plain(plain, sparse),
            lambda: _size(folder, dense, manifest),
            lambda: _nonzero(model, dense, workload, manifest),
            lambda: _outputs(model, restore(dense, structure, sparse), workload, manifest),
            lambda: _accuracy(model, workload, manifest),
        ]
        if TORCH_PRUNE in manifest["files"]:
            steps.append(lambda: _torch_prune_equals_plain(plain, folder / TORCH_PRUNE))
        if ONNX in manifest["files"]:
            steps.append(lambda: _onnx(model, workload, folder / ONNX))
        return [step() for step in steps]
    except (DamagedFile, SafetensorError, ValueError, RuntimeError, KeyError, TypeError) as error:
        return [Check("reload", False, str(error).splitlines()[0])]


def _architecture(dense: nn.Module, manifest: Mapping[str, Any]) -> Check:
    found = model_fingerprint(dense)
    known = {found, *old_model_fingerprints(dense, found)}
    return Check("architecture", manifest["architecture"] in known, f"fingerprint {found}")


def _policy(folder: Path) -> Check:
    policy = PruningPolicy.from_json((folder / POLICY).read_text())
    flat = parse_sparsity((folder / SPARSITY).read_text())
    same = {n: s for n, s in flat.items() if s > 0} == {n: s for n, s in policy.sparsity.items() if s > 0}
    return Check("sparsity dict", same, f"{len(flat)} layers, as in the policy")


def _sparse_equals_plain(plain: Mapping[str, Tensor], sparse: Mapping[str, Tensor]) -> Check:
    same = plain.keys() == sparse.keys() and all(torch.equal(plain[name], sparse[name]) for name in plain)
    return Check("sparse file", same, f"{len(plain)} tensors equal to {WEIGHTS}, bit by bit")


def _torch_prune_equals_plain(plain: Mapping[str, Tensor], path: Path) -> Check:
    masked = state_from_torch_prune(load(path.read_bytes()), keep=plain)
    same = plain.keys() == masked.state.keys() and all(torch.equal(plain[n], masked.state[n]) for n in plain)
    detail = f"{len(masked.masks)} originals x masks and all other tensors equal to {WEIGHTS}"
    return Check("torch-prune file", same, detail)


def _size(folder: Path, dense: nn.Module, manifest: Mapping[str, Any]) -> Check:
    found, whole = (folder / SPARSE).stat().st_size, dense_bytes(dense)
    share, limit = found / whole, manifest["limit"]
    recorded = abs(share - manifest["size_encoded"]) < 1e-9
    bound = limit is not None and manifest["size_metric"] == "encoded"
    detail = f"{found} of {whole} bytes = {share:.2%}" + (f", limit {limit:.2%}" if bound else "")
    return Check("size on disk", recorded and (not bound or share <= limit), detail)


def _nonzero(model: nn.Module, dense: nn.Module, workload: Workload, manifest: Mapping[str, Any]) -> Check:
    share = measure_cost(model, workload.example_input).nonzero / sum(p.numel() for p in dense.parameters())
    bound = manifest["limit"] is not None and manifest["size_metric"] == "nonzero"
    within = abs(share - manifest["size_nonzero"]) < 1e-9 and (not bound or share <= manifest["limit"])
    detail = f"{share:.2%} of the parameters" + (f", limit {manifest['limit']:.2%}" if bound else "")
    return Check("nonzero size", within, detail)


def _outputs(model: nn.Module, from_sparse: nn.Module, workload: Workload, manifest: Mapping[str, Any]) -> Check:
    inputs = workload.example_input[:OUTPUT_ROWS]
    outputs, recorded = predict(model, inputs), manifest["outputs"]
    recorded = [torch.tensor(part) for part in ([recorded] if isinstance(outputs, Tensor) else recorded)]
    found = list(tensors_in(outputs))
    others = (recorded, list(tensors_in(predict(from_sparse, inputs))))
    difference = max(_largest_difference(found, tensors) for tensors in others)
    return Check("outputs", difference <= OUTPUT_TOLERANCE, f"largest relative difference {difference:.1e}")


def _accuracy(model: nn.Module, workload: Workload, manifest: Mapping[str, Any]) -> Check:
    found, recorded = score(model, workload.validation, workload).accuracy, manifest["accuracy"]
    slack = ACCURACY_TOLERANCE_EXAMPLES / len(workload.validation[1]) + 1e-9
    return Check("validation accuracy", abs(found - recorded) <= slack, f"{found:.4f}, recorded {recorded:.4f}")


def _onnx(model: nn.Module, workload: Workload, path: Path) -> Check:
    from search.onnx_file import onnx_difference

    try:
        difference = onnx_difference(model, workload.example_input, path)
    except EnvironmentProblem as error:
        return Check("onnx", False, str(error))
    return Check("onnx", difference <= OUTPUT_TOLERANCE, f"largest relative difference {difference:.1e}")


def _largest_difference(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    if len(tensors) != len(others):
        return float("inf")
    return max((relative_difference(*pair) for pair in zip(tensors, others, strict=True)), default=0.0)


def relative_difference(outputs: Tensor, others: Tensor) -> float:
    """Largest absolute difference over the largest absolute output; infinite for other shapes."""
    if outputs.shape != others.shape:
        return float("inf")
    if not outputs.numel():
        return 0.0
    outputs, others = outputs.double(), others.double()
    largest = float(outputs.abs().max())
    return float((outputs - others).abs().max()) / (largest or 1.0)


def as_json(checks: list[Check]) -> list[dict[str, Any]]:
    """Plain data of checks."""
    return json.loads(json.dumps([check.__dict__ for check in checks]))
