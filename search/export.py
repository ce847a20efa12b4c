"""Exports: a folder that holds a pruned network, the policy behind it, and what it is worth."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from pruning.codec import prunable_weights, write_sparse
from pruning.structure import Structure
from pruning.torch_prune import to_torch_prune
from search.checkpoints import load_model
from search.config import SearchConfig
from search.console import Watcher
from search.dense import build_model, dense_model
from search.errors import EnvironmentProblem, GoalMissed, UsageError
from search.evaluate import Subject, evaluate_policy
from search.fingerprint import model_fingerprint
from search.open import StudyView
from search.records import COMPLETE, TrialRecord, TrialResult
from search.results import knee_trial, smallest_trial
from search.train import FINE_TUNE, predict
from search.workloads import Workload, get_workload
from spaces.policy import PruningPolicy

MANIFEST_VERSION = 1
SPARSITY, POLICY, STRUCTURE = "sparsity.json", "policy.json", "structure.json"
WEIGHTS, SPARSE, ONNX, MANIFEST = "model.safetensors", "model.sparse.safetensors", "model.onnx", "manifest.json"
TORCH_PRUNE = "model.torch-prune.safetensors"
OUTPUT_ROWS = 2
"""Rows of recorded outputs on the example input."""
CHOICES = ("best", "knee", "smallest")


@dataclass(frozen=True)
class Export:
    """A network ready to be written.

    Attributes:
        result: on validation data.
        test_accuracy: None where the test split was not read for this network.
        limit: the size limit it is within, and the measure that binds on; None without one.
        origin: study, trial and seed, or the file a policy came from.
    """

    policy: PruningPolicy
    model: nn.Module
    structure: Structure
    result: TrialResult
    test_accuracy: float | None
    limit: tuple[float, str] | None
    origin: Mapping[str, Any]


def choose_trial(view: StudyView, choice: str) -> int:
    """The trial number `best`, `knee`, `smallest` or a number stands for.

    Raises:
        UsageError: no such word, or no complete trial of that number (the nearest is named).
        GoalMissed: the front is empty.
    """
    if choice in CHOICES:
        number = {
            "best": lambda front: view.best,
            "knee": knee_trial,
            "smallest": smallest_trial,
        }[choice](view.front)
        if number is None:
            raise GoalMissed(f"study {view.folder.name!r} has no feasible trial: give it more --trials")
        return number
    complete = [int(n) for n in view.trials.loc[view.trials["state"] == COMPLETE, "trial"]]
    if not re.fullmatch(r"-?[0-9]{1,9}", choice):
        raise UsageError(f"--trial takes {', '.join(CHOICES)} or a trial's number, got {choice!r}")
    if int(choice) not in complete:
        near = min(complete, key=lambda n: abs(n - int(choice)), default=None)
        raise UsageError(f"trial {choice} is no complete trial of {view.folder.name!r}; nearest: {near}")
    return int(choice)


def record_of_trial(view: StudyView, number: int) -> TrialRecord:
    """The journal's record of a trial that `choose_trial` gave."""
    return next(trial for trial in view.folder.journal.trials() if trial.number == number)


def export_of_trial(view: StudyView, number: int, watcher: Watcher) -> tuple[Export, Workload, SearchConfig]:
    """The network of a trial: of a finalist its full-length run of median validation accuracy.

    Weights kept by the study are loaded; without them the trial's fine-tune is repeated and said so.
    """
    folder, config = view.folder, view.folder.config
    workload = get_workload(config.workload, data=config.data, width=config.width, cache=str(folder.root / "cache"))
    record = record_of_trial(view, number)
    origin = {"study": folder.name, "trial": number}
    limit = config.max_size, config.size_metric
    final = view.finals.get(record.policy.digest)
    if final is not None:
        run = next(f for f in folder.journal.finals() if f.digest == final.digest and f.seed == final.best_seed)
        path = folder.final_weights(run.digest, run.seed)
        if path.is_file():
            model, structure = load_model(build_model(workload, config.dense_seed), path)
            made = Export(
                record.policy, model, structure, run.result, run.test_accuracy, limit, {**origin, "seed": run.seed}
            )
            return made, workload, config
    path = folder.trial_weights(number)
    if path.is_file():
        model, structure = load_model(build_model(workload, config.dense_seed), path)
        result = record.result
    else:
        watcher.note(f"trial {number} kept no weights: repeating its fine-tune")
        dense = dense_model(workload, config.dense_seed, folder.root / "cache", config.weights, watcher)
        subject = Subject.of(workload, dense.model, config.round_to)
        evaluation = fine_tuned(subject, record.policy, workload.recipe.trial_epochs, config.seed, watcher)
        model, structure, result = evaluation.model, evaluation.structure, evaluation.result
    return (
        Export(record.policy, model, structure, result, None, limit, {**origin, "seed": config.seed}),
        workload,
        config,
    )


def fine_tuned(
    subject: Subject, policy: PruningPolicy, epochs: float, seed: int, watcher: Watcher, training: str = FINE_TUNE
) -> Any:
    """An evaluation that must succeed.

    Raises:
        GoalMissed: the fine-tune failed; its reason.
    """
    stage = "fine-tuning" if training == FINE_TUNE else f"training from fresh weights ({training})"
    with watcher.stage(stage) as progress:
        evaluation = evaluate_policy(subject, policy, epochs, seed, progress, training)
    if evaluation.model is None:
        raise GoalMissed(f"the fine-tune failed: {evaluation.result.reason}")
    return evaluation


def check_folder(out: Path) -> None:
    """Refuse, before anything is computed, a folder an export cannot go to.

    An earlier export there, with nothing else beside it, will be replaced; other files are never touched.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {str(out)!r} is a file: name a folder")
    if out.is_dir() and (foreign := {path.name for path in out.iterdir()} - _files_of_export(out)):
        raise UsageError(
            f"--out {str(out)!r} holds {min(foreign)!r}, which is no part of an export: name a new or empty folder"
        )


def check_masks_only(policy: PruningPolicy) -> None:
    """Refuse, before anything is computed, a policy that `torch.nn.utils.prune` cannot hold: masks remove no channels.

    Raises:
        UsageError: it removes channels; the first such layer is named.
    """
    if removed := policy.channel_requests():
        layer = min(removed)
        raise UsageError(
            f"--torch-prune takes policies of masks only, and this one removes {removed[layer]:.4g} of the channels of "
            f"{layer!r}: leave --torch-prune out, or choose a trial without removed channels"
        )


def _files_of_export(folder: Path) -> set[str]:
    """Names an export's own manifest gives; empty if there is none of ours."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        ours = manifest["version"] == MANIFEST_VERSION and "prunefront" in manifest
        return {*manifest["files"], MANIFEST} if ours else set()
    except (OSError, ValueError, KeyError, TypeError):
        return set()


@contextmanager
def _filled_whole(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place once everything is written."""
    check_folder(out)
    partial = out.absolute().with_name(f".{out.absolute().name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        if out.is_dir():
            shutil.rmtree(out)
        partial.rename(out)
    except OSError as error:
        raise EnvironmentProblem(f"cannot write to {str(out)!r}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_export(
    export: Export,
    workload: Workload,
    workload_options: Mapping[str, Any],
    out: Path,
    dense_bytes: int,
    onnx: bool,
    torch_prune: bool = False,
) -> dict[str, Any]:
    """Write all files and the manifest that names them; returns the manifest.

    Raises:
        UsageError: `out` is a file, or holds files that are no export; `torch_prune` with removed channels.
        EnvironmentProblem: `out` cannot be written, or `onnx` without its extra.
    """
    if torch_prune:
        check_masks_only(export.policy)
    with _filled_whole(out) as folder:
        (folder / SPARSITY).write_text(json.dumps(_all_layers(workload, export), indent=2) + "\n")
        (folder / POLICY).write_text(export.policy.to_json())
        (folder / STRUCTURE).write_text(json.dumps(export.structure.to_dict(), indent=1) + "\n")
        (folder / WEIGHTS).write_bytes(_saved(export.model))
        write_sparse(export.model, folder / SPARSE)
        if onnx:
            from search.onnx_file import write_onnx

            write_onnx(export.model, workload.example_input, folder / ONNX)
        if torch_prune:
            masks = {name: _nonzero_mask(export.model, name) for name in export.policy.mask_requests()}
            (folder / TORCH_PRUNE).write_bytes(_saved(to_torch_prune(export.model, masks)))
        files = {path.name: _described(path) for path in sorted(folder.iterdir())}
        manifest = _manifest(export, workload, workload_options, dense_bytes, files)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def _saved(model: nn.Module) -> bytes:
    return save({name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()})


def _nonzero_mask(model: nn.Module, name: str) -> Tensor:
    """The mask of a fine-tuned weight, read back from its zeros: nothing masked is ever anything else."""
    return model.get_parameter(name).detach() != 0


def _manifest(
    export: Export,
    workload: Workload,
    workload_options: Mapping[str, Any],
    dense_bytes: int,
    files: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    sparse_bytes = files[SPARSE]["bytes"]
    return {
        "version": MANIFEST_VERSION,
        "prunefront": version("prunefront"),
        "torch": torch.__version__,
        "workload": dict(workload_options),
        "architecture": model_fingerprint(workload.build_model()),
        "origin": dict(export.origin),
        "accuracy": export.result.accuracy,
        "loss": export.result.loss,
        "test_accuracy": export.test_accuracy,
        "dense_bytes": dense_bytes,
        "sparse_bytes": sparse_bytes,
        "size_encoded": sparse_bytes / dense_bytes,
        "size_nonzero": export.result.shares.nonzero,
        "macs": export.result.shares.macs,
        "achieved": dict(export.result.achieved),
        "limit": export.limit[0] if export.limit else None,
        "size_metric": export.limit[1] if export.limit else None,
        "outputs": predict(export.model, workload.example_input[:OUTPUT_ROWS]).tolist(),
        "files": dict(files),
    }


def _all_layers(workload: Workload, export: Export) -> dict[str, float]:
    """The policy's request for every prunable layer of the dense model, whole ones 0.0."""
    return {name: export.policy.sparsity.get(name, 0.0) for name in prunable_weights(workload.build_model())}


def _described(path: Path) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
