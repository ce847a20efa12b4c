"""Exports: a folder that holds a pruned network, the policy behind it, and what it is worth."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from pruning.copying import copy_model
from pruning.file.container import encode
from pruning.file.rounding import Rounded
from pruning.file.stored_form import to_stored_form_
from pruning.file.versions import write_sparse
from pruning.modules import prunable_weights
from pruning.outputs import tensors_in
from pruning.torch_prune import to_torch_prune
from search.errors import GoalMissed, Refused, UsageError
from search.export.folder_swap import filled_whole
from search.export.manifest import (
    CODED,
    MANIFEST,
    MANIFEST_VERSION,
    ONNX,
    ONNX_INT8,
    POLICY,
    SPARSE,
    SPARSITY,
    STRUCTURE,
    TORCH_PRUNE,
    WEIGHTS,
    sparse_file_of,
)
from search.export.onnx_file import require_onnx, write_onnx
from search.export.onnx_int8 import Int8, write_int8
from search.export.rebuild import Export
from search.metric import Metric, metric_to_plain, with_values
from search.training.fingerprint import model_fingerprint
from search.training.scoring import predict
from search.weights.tensors import tensors_of
from search.workloads import Workload
from search.workloads.tally import named
from spaces.policy import PruningPolicy

OUTPUT_ROWS = 2
"""How many rows of the outputs on the example input are recorded."""


@dataclass(frozen=True)
class Written:
    """An export on disk: its manifest, and of each ONNX file that was asked for and is missing, why."""

    manifest: Mapping[str, Any]
    missing: Mapping[str, GoalMissed]


def check_masks_only(policy: PruningPolicy) -> None:
    """Refuse a policy that `torch.nn.utils.prune` cannot hold, before anything is computed: masks remove no channels.

    Raises:
        UsageError: it removes channels; the first such layer is named.
    """
    if removed := policy.channel_requests():
        layer = min(removed)
        raise UsageError(
            f"--torch-prune takes policies of masks only, and this one removes {removed[layer]:.4g} of the channels of "
            f"{layer!r}: leave --torch-prune out, or choose a trial without removed channels"
        )


def write_export(
    export: Export,
    workload: Workload,
    workload_options: Mapping[str, Any],
    out: Path,
    dense_bytes: int,
    onnx: bool,
    torch_prune: bool = False,
    onnx_int8: bool = False,
) -> Written:
    """Write all files and the manifest that names them; if the network has no ONNX form, or none of 8 bits, without it.

    Call `check_folder` first: it says whether `out` can be used.

    Raises:
        UsageError: `torch_prune` with removed channels.
        EnvironmentProblem: the files cannot be written, or ONNX is asked for without its extra; nothing has changed.
            Or `out` cannot be replaced; it is unchanged, and the message names the folder that holds the new export.
    """
    if torch_prune:
        check_masks_only(export.policy)
    if onnx or onnx_int8:
        require_onnx()
    with filled_whole(out) as folder:
        (folder / SPARSITY).write_text(json.dumps(_all_layers(workload, export), indent=2) + "\n")
        (folder / POLICY).write_text(export.policy.to_json())
        (folder / STRUCTURE).write_text(json.dumps(export.structure.to_dict(), indent=1) + "\n")
        (folder / WEIGHTS).write_bytes(_saved(export.model))
        rounded = _rounded_weights(export)
        if rounded:
            (folder / CODED).write_bytes(encode(export.model.state_dict(), rounded))
        else:
            write_sparse(export.model, folder / SPARSE)
        missing: dict[str, GoalMissed] = {}
        if onnx:
            with _noted(missing, ONNX):
                write_onnx(export.model, workload.example_input, folder / ONNX, rounded)
        int8 = None
        if onnx_int8:
            with _noted(missing, ONNX_INT8):
                int8 = write_int8(export.model, workload, folder / ONNX_INT8, rounded)
        if torch_prune:
            masks = {name: _nonzero_mask(export.model, name) for name in export.policy.mask_requests()}
            (folder / TORCH_PRUNE).write_bytes(_saved(to_torch_prune(export.model, masks)))
        files = {path.name: _described(path) for path in sorted(folder.iterdir())}
        manifest = _manifest(export, workload, workload_options, dense_bytes, files, int8)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return Written(manifest, missing)


def _rounded_weights(export: Export) -> dict[str, Rounded]:
    """The network's rounded weights by name; none of a policy that rounds none.

    Raises:
        Refused: the network is not in the form that its file stores, as it was when it was measured.
    """
    if not export.policy.is_rounded:
        return {}
    stored = copy_model(export.model)
    rounded = to_stored_form_(stored, export.policy.bits)
    own = export.model.state_dict()
    changed = [name for name, tensor in tensors_of(stored) if not torch.equal(tensor, own[name])]
    if changed:
        raise Refused(
            f"the network is not in the form that is stored: {changed[0]!r} is not rounded to the bits of its policy; "
            "delete its weights, and the export repeats the fine-tune"
        )
    return rounded


@contextmanager
def _noted(missing: dict[str, GoalMissed], name: str) -> Iterator[None]:
    """Note why a file is missing if it cannot be written."""
    try:
        yield
    except GoalMissed as missed:
        missing[name] = missed


def _saved(model: nn.Module) -> bytes:
    return save({name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()})


def _nonzero_mask(model: nn.Module, name: str) -> Tensor:
    """The mask of a fine-tuned weight, read back from its zeros; only masked values are exactly zero."""
    return model.get_parameter(name).detach() != 0


def _manifest(
    export: Export,
    workload: Workload,
    workload_options: Mapping[str, Any],
    dense_bytes: int,
    files: Mapping[str, Mapping[str, Any]],
    int8: Int8 | None,
) -> dict[str, Any]:
    sparse_bytes, measured = files[sparse_file_of(files)]["bytes"], export.result.measured
    unit = named(workload.metric)
    return {
        "version": MANIFEST_VERSION,
        "prunefront": version("prunefront"),
        "torch": torch.__version__,
        "workload": dict(workload_options),
        "architecture": model_fingerprint(workload.build_model()),
        "origin": dict(export.origin),
        **with_values({"accuracy": measured.accuracy}, unit),
        **({"metric": metric_to_plain(workload.metric)} if isinstance(workload.metric, Metric) else {}),
        "loss": measured.loss,
        **with_values({"test_accuracy": export.test_accuracy}, unit),
        **({"int8": with_values(int8.to_dict(), unit)} if int8 else {}),
        "dense_bytes": dense_bytes,
        "sparse_bytes": sparse_bytes,
        "size_encoded": sparse_bytes / dense_bytes,
        "size_nonzero": measured.shares.nonzero,
        "macs": measured.shares.macs,
        "achieved": dict(export.result.achieved),
        "limit": export.limit[0] if export.limit else None,
        "size_metric": export.limit[1] if export.limit else None,
        "outputs": recorded_outputs(predict(export.model, workload.example_input[:OUTPUT_ROWS])),
        "files": dict(files),
    }


def recorded_outputs(outputs: Any) -> list[Any]:
    """The numbers of an output tensor; for several tensors, those of each in turn."""
    if isinstance(outputs, Tensor):
        return outputs.tolist()
    return [tensor.tolist() for tensor in tensors_in(outputs)]


def _all_layers(workload: Workload, export: Export) -> dict[str, float]:
    """The policy's request for every prunable layer of the dense model; 0.0 for layers that stay whole."""
    return {name: export.policy.sparsity.get(name, 0.0) for name in prunable_weights(workload.build_model())}


def _described(path: Path) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
