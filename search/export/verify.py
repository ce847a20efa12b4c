"""Verification of an export: trusts nothing but the workload's own code and data."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load
from torch import Tensor, nn

from pruning.channels.structure import Structure, apply_structure
from pruning.cost import measure_cost
from pruning.file.container import Decoded, read
from pruning.outputs import tensors_in
from pruning.sparse_file import dense_bytes
from pruning.torch_prune import state_from_torch_prune
from search.export.manifest import (
    ALWAYS,
    CODED,
    FILES,
    ONNX,
    ONNX_INT8,
    POLICY,
    SPARSE,
    SPARSITY,
    STRUCTURE,
    TORCH_PRUNE,
    WEIGHTS,
    largest_files,
    sparse_file_of,
)
from search.export.onnx_file import onnx_difference, worst
from search.export.onnx_int8 import int8_scores, lost_zeros
from search.export.write import OUTPUT_ROWS
from search.files import read_bytes, read_text, sha256_of
from search.identity.unchanged import as_recorded
from search.metric import metric_from_plain
from search.training.checkpoints import restore
from search.training.dense_model import build_model
from search.training.fingerprint import model_fingerprint
from search.training.former_fingerprints import old_model_fingerprints
from search.training.scoring import predict, score
from search.workloads import Workload
from search.workloads.base import with_dense_value
from search.workloads.tally import named
from spaces.policy import PruningPolicy, parse_sparsity
from spaces.printable import LONGEST_WORD, shortened
from spaces.strict_json import parse_object
from spaces.wording import counted, percent

OUTPUT_TOLERANCE = 1e-4
"""Largest accepted difference of outputs, relative to the largest output; another CPU may round that differently."""
LONGEST_DETAIL = 300
"""The most characters shown of the reason why a check failed."""


@dataclass(frozen=True)
class Check:
    """One thing verified; `detail` says what was compared."""

    name: str
    passed: bool
    detail: str


def verify_files(folder: Path, manifest: Mapping[str, Any], most: Mapping[str, int] | None = None) -> list[Check]:
    """Check the hash of every file that the manifest names, and that none is missing.

    Args:
        most: file -> the most bytes it can have, from `largest_files`; a larger file is not read.
    """
    checks = []
    if foreign := manifest["files"].keys() - {*FILES}:
        named = shortened(repr(min(foreign)), LONGEST_WORD)
        checks.append(Check("files", False, f"{len(foreign)} named that do not belong to an export, such as {named}"))
    if manifest["files"].keys() >= {SPARSE, CODED}:
        checks.append(Check("files", False, f"two sparse files named, {SPARSE} and {CODED}"))
    for name in sorted({*manifest["files"], *ALWAYS, sparse_file_of(manifest["files"])} & {*FILES}):
        described, path = manifest["files"].get(name), folder / name
        if described is None or not path.exists():
            checks.append(Check(f"hash of {name}", False, "missing"))
            continue
        try:
            found = sha256_of(path, most[name] if most else sys.maxsize)
        except (ValueError, OSError) as error:
            checks.append(Check(f"hash of {name}", False, f"not read: {error}"))
            continue
        checks.append(Check(f"hash of {name}", found == described.get("sha256"), f"sha256 {found[:12]}..."))
    return checks


def verify_contents(folder: Path, manifest: Mapping[str, Any], workload: Workload) -> list[Check]:
    """Reload both weight files and compare policy, size, outputs and validation accuracy with the manifest."""
    workload = with_dense_value(workload, metric_from_plain(manifest.get("metric")))
    dense = build_model(workload, seed=0)
    most = largest_files(dense)
    loaded = _tried("reload", lambda: _loaded(folder, manifest, dense, most))
    if isinstance(loaded, Check):
        return [loaded]
    structure, plain, sparse, model = loaded
    steps: dict[str, Callable[[], Check]] = {
        "architecture": lambda: _architecture(dense, manifest),
        "sparsity dict": lambda: _policy(folder, most),
        "sparse file": lambda: _sparse_equals_plain(plain, sparse.state),
        "size on disk": lambda: _size(folder, dense, manifest),
        "nonzero size": lambda: _nonzero(model, dense, workload, manifest),
        "outputs": lambda: _outputs(model, restore(dense, structure, sparse.state), workload, manifest),
        _of_validation(workload): lambda: _accuracy(model, workload, manifest),
    }
    if CODED in manifest["files"]:
        steps["bits"] = lambda: _bits(folder, sparse, most)
    if TORCH_PRUNE in manifest["files"]:
        steps["torch-prune file"] = lambda: _torch_prune_equals_plain(plain, folder / TORCH_PRUNE, most)
    if ONNX in manifest["files"]:
        steps["onnx"] = lambda: _onnx(model, workload, folder / ONNX)
    if ONNX_INT8 in manifest["files"]:
        steps["onnx of 8 bits"] = lambda: _onnx_int8(model, workload, folder / ONNX_INT8, manifest)
    return [_tried(name, step) for name, step in steps.items()]


Found = TypeVar("Found")


def _tried(name: str, step: Callable[[], Found]) -> Found | Check:
    """The check that a step returns, or a failed one if it raises, since damaged files make readers raise anything."""
    try:
        return step()
    except Exception as error:
        said = (str(error).splitlines() or [""])[0]
        return Check(name, False, shortened(f"{type(error).__name__}: {said}", LONGEST_DETAIL))


def _loaded(
    folder: Path, manifest: Mapping[str, Any], dense: nn.Module, most: Mapping[str, int]
) -> tuple[Structure, dict[str, Tensor], Decoded, nn.Module]:
    structure = Structure.from_dict(parse_object(read_text(folder / STRUCTURE, most[STRUCTURE])))
    model = apply_structure(dense, structure)
    plain = load(read_bytes(folder / WEIGHTS, most[WEIGHTS]))
    sparse = read(folder / sparse_file_of(manifest["files"]), like=model.state_dict())
    return structure, plain, sparse, restore(dense, structure, plain)


def _architecture(dense: nn.Module, manifest: Mapping[str, Any]) -> Check:
    found = model_fingerprint(dense)
    known = {found, *old_model_fingerprints(dense, found)}
    return Check("architecture", manifest["architecture"] in known, f"fingerprint {found}")


def _policy(folder: Path, most: Mapping[str, int]) -> Check:
    policy = PruningPolicy.from_json(read_text(folder / POLICY, most[POLICY]))
    flat = parse_sparsity(read_text(folder / SPARSITY, most[SPARSITY]))
    same = {n: s for n, s in flat.items() if s > 0} == {n: s for n, s in policy.sparsity.items() if s > 0}
    return Check("sparsity dict", same, f"{counted(len(flat), 'layer')}, as in the policy")


def _sparse_equals_plain(plain: Mapping[str, Tensor], sparse: Mapping[str, Tensor]) -> Check:
    same = plain.keys() == sparse.keys() and all(torch.equal(plain[name], sparse[name]) for name in plain)
    return Check("sparse file", same, f"{counted(len(plain), 'tensor')} equal to {WEIGHTS}, bit by bit")


def _bits(folder: Path, sparse: Decoded, most: Mapping[str, int]) -> Check:
    policy = PruningPolicy.from_json(read_text(folder / POLICY, most[POLICY]))
    names = policy.bits.keys() if isinstance(policy.bits, Mapping) else sparse.rounded.keys()
    found = {name: one.bits for name, one in sparse.rounded.items()}
    return Check(
        "bits",
        found == {name: policy.bits_of(name) for name in names},
        f"{counted(len(found), 'layer')}, as in the policy",
    )


def _torch_prune_equals_plain(plain: Mapping[str, Tensor], path: Path, most: Mapping[str, int]) -> Check:
    masked = state_from_torch_prune(load(read_bytes(path, most[TORCH_PRUNE])), keep=plain)
    same = plain.keys() == masked.state.keys() and all(torch.equal(plain[n], masked.state[n]) for n in plain)
    detail = f"{len(masked.masks)} originals x masks and all other tensors equal to {WEIGHTS}"
    return Check("torch-prune file", same, detail)


def _size(folder: Path, dense: nn.Module, manifest: Mapping[str, Any]) -> Check:
    found, whole = (folder / sparse_file_of(manifest["files"])).stat().st_size, dense_bytes(dense)
    share, limit = found / whole, manifest["limit"]
    recorded = abs(share - manifest["size_encoded"]) < 1e-9
    bound = limit is not None and manifest["size_metric"] == "encoded"
    detail = f"{found:,} of {whole:,} bytes = {percent(share, 2)}" + (f", limit {percent(limit, 2)}" if bound else "")
    return Check("size on disk", recorded and (not bound or share <= limit), detail)


def _nonzero(model: nn.Module, dense: nn.Module, workload: Workload, manifest: Mapping[str, Any]) -> Check:
    share = measure_cost(model, workload.example_input).nonzero / sum(p.numel() for p in dense.parameters())
    bound = manifest["limit"] is not None and manifest["size_metric"] == "nonzero"
    within = abs(share - manifest["size_nonzero"]) < 1e-9 and (not bound or share <= manifest["limit"])
    detail = f"{percent(share, 2)} of the parameters" + (f", limit {percent(manifest['limit'], 2)}" if bound else "")
    return Check("nonzero size", within, detail)


def _outputs(model: nn.Module, from_sparse: nn.Module, workload: Workload, manifest: Mapping[str, Any]) -> Check:
    inputs = workload.example_input[:OUTPUT_ROWS]
    outputs, recorded = predict(model, inputs), manifest["outputs"]
    recorded = [torch.tensor(part) for part in ([recorded] if isinstance(outputs, Tensor) else recorded)]
    found = list(tensors_in(outputs))
    others = (recorded, list(tensors_in(predict(from_sparse, inputs))))
    difference = worst(_largest_difference(found, tensors) for tensors in others)
    return Check("outputs", difference <= OUTPUT_TOLERANCE, f"largest relative difference {difference:.1e}")


def _accuracy(model: nn.Module, workload: Workload, manifest: Mapping[str, Any]) -> Check:
    found, recorded = score(model, "validation", workload).accuracy, manifest["accuracy"]
    unit = named(workload.metric)
    detail = f"{unit.shown(found)}, recorded {unit.shown(recorded)}"
    return Check(_of_validation(workload), as_recorded(found, recorded, workload), detail)


def _of_validation(workload: Workload) -> str:
    return f"validation {named(workload.metric).name}"


def _onnx(model: nn.Module, workload: Workload, path: Path) -> Check:
    difference = onnx_difference(model, workload.example_input, path)
    return Check("onnx", difference <= OUTPUT_TOLERANCE, f"largest relative difference {difference:.1e}")


def _onnx_int8(model: nn.Module, workload: Workload, path: Path, manifest: Mapping[str, Any]) -> Check:
    difference = onnx_difference(model, workload.example_input, path)  # looks at the file before anything runs it
    recorded, found = manifest["int8"]["accuracy"], int8_scores(model, workload, path).accuracy
    lost, zeros = lost_zeros(path, model)
    unit = named(workload.metric)
    detail = (
        f"{unit.name} {unit.shown(found)}, recorded {unit.shown(recorded)}; {zeros - lost} of {zeros} zeros kept; "
        f"largest relative difference {difference:.1e}"
    )
    return Check("onnx of 8 bits", as_recorded(found, recorded, workload) and not lost, detail)


def _largest_difference(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    if len(tensors) != len(others):
        return float("inf")
    return worst(relative_difference(*pair) for pair in zip(tensors, others, strict=True))


def relative_difference(outputs: Tensor, others: Tensor) -> float:
    """Largest absolute difference over the largest absolute output; infinite if the shapes differ."""
    if outputs.shape != others.shape:
        return float("inf")
    if not outputs.numel():
        return 0.0
    outputs, others = outputs.double(), others.double()
    largest = float(outputs.abs().max())
    return float((outputs - others).abs().max()) / (largest or 1.0)


def as_json(checks: list[Check]) -> list[dict[str, Any]]:
    """The checks as plain data."""
    return json.loads(json.dumps([check.__dict__ for check in checks]))
