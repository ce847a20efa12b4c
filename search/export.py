"""Exports: a folder that holds a pruned network, the policy behind it, and what it is worth."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from pruning.channels.structure import Structure
from pruning.importance.registry import own_function
from pruning.modules import prunable_weights
from pruning.outputs import tensors_in
from pruning.sparse_file import write_sparse
from pruning.torch_prune import to_torch_prune
from search.chosen import Chosen
from search.config import SearchConfig
from search.errors import EnvironmentProblem, GoalMissed, PrunefrontError, Refused, UsageError
from search.files import check_writable, flush, unwritable
from search.identity.unchanged import as_recorded, refuse_changed_study, refuse_changes_of
from search.manifest import (
    FILES,
    MANIFEST,
    MANIFEST_VERSION,
    ONNX,
    POLICY,
    SPARSE,
    SPARSITY,
    STRUCTURE,
    TORCH_PRUNE,
    WEIGHTS,
    foreign_file,
)
from search.onnx_file import require_onnx, write_onnx
from search.progress import Watcher
from search.records import TrialResult
from search.results.view import StudyView
from search.store.locks import folder_is_held, held_folder
from search.training.checkpoints import load_model
from search.training.dense_model import build_model, dense_model
from search.training.evaluate import Evaluation, Subject, evaluate_policy
from search.training.fingerprint import criterion_fingerprint, model_fingerprint
from search.training.former_fingerprints import old_criterion_fingerprint
from search.training.train import FINE_TUNE, predict, score
from search.user_code.loading import named_criterion
from search.workloads import Workload, get_workload
from spaces.policy import PruningPolicy

OUTPUT_ROWS = 2
"""Rows of recorded outputs on the example input."""


@dataclass(frozen=True)
class Export:
    """A network ready to be written.

    Attributes:
        result: on validation data.
        test_accuracy: None where the test split was not read for this network.
        limit: the size limit it is within, and the measure that binds on; None without one.
        origin: study, trial or baseline, and seed; or the file a policy came from.
    """

    policy: PruningPolicy
    model: nn.Module
    structure: Structure
    result: TrialResult
    test_accuracy: float | None
    limit: tuple[float, str] | None
    origin: Mapping[str, Any]


@dataclass(frozen=True)
class Written:
    """An export on disk: its manifest, and why an ONNX file that was asked for is no part of it; else None."""

    manifest: Mapping[str, Any]
    no_onnx: GoalMissed | None


def take_criterion(view: StudyView, spec: str) -> None:
    """Run the user's code behind the study's criterion, which repeating a fine-tune needs.

    Raises:
        UsageError: it is another criterion than the study's, or its code has changed since the study began.
    """
    word, own = named_criterion(spec), view.folder.config.criterion
    if word != own:
        raise UsageError(
            f"--criterion {spec!r} is not the criterion {own!r} that study {view.folder.name!r} was begun with: "
            "leave it out, or name the same function"
        )
    recorded = view.folder.read_record()["identity"].get("criterion", [])
    if recorded not in (criterion_fingerprint(word), old_criterion_fingerprint(word)):
        raise UsageError(
            f"the code of criterion {word!r} has changed since study {view.folder.name!r} was begun: "
            "export by the code it was begun with"
        )


def export_of_trial(view: StudyView, chosen: Chosen, watcher: Watcher) -> tuple[Export, Workload, SearchConfig]:
    """The network chosen: of a finalist or baseline its full-length run of median validation accuracy.

    Weights kept by the study are loaded; without them the fine-tune is repeated and said so.

    Raises:
        UsageError: the study's model, data, recipe or code changed, as when it is resumed.
        Refused: weights that do not have the accuracy recorded of them.
        UsageError: repeating needs a criterion of the user's own whose code is not here.
        GoalMissed: the repeated fine-tune failed.
    """
    folder, config = view.folder, view.folder.config
    workload = get_workload(config.workload, data=config.data, width=config.width, cache=str(folder.root / "cache"))
    refuse_changed_study(folder, workload, watcher)
    if made := _kept(view, chosen, workload):
        return made, workload, config
    _require_code(view, chosen)
    watcher.note(f"{chosen.name} kept no weights: repeating its fine-tune")
    dense = dense_model(workload, config.dense_seed, folder.root / "cache", config.weights, watcher)
    refuse_changes_of(folder.read_record(), folder, workload, dense, watcher)
    subject = Subject.of(workload, dense.model, config.round_to)
    full = chosen.final is not None
    epochs = workload.recipe.final_epochs if full else workload.recipe.trial_epochs
    seed = chosen.final.seed if full else config.seed
    evaluation = fine_tuned(subject, chosen.policy, epochs, seed, watcher)
    recorded = (chosen.final if full else chosen.trial).result.accuracy
    if not as_recorded(evaluation.result.accuracy, recorded, workload):
        watcher.note(
            f"the repeated fine-tune has validation accuracy {evaluation.result.accuracy:.2%}, the study recorded "
            f"{recorded:.2%}: another machine, or other versions or threads, round otherwise"
        )
    return _made(view, chosen, evaluation.model, evaluation.structure, evaluation.result, seed), workload, config


def _kept(view: StudyView, chosen: Chosen, workload: Workload) -> Export | None:
    """The export from weights in the study's folder: of the full-length run if there was one, else of the trial."""
    folder, config, final, trial = view.folder, view.folder.config, chosen.final, chosen.trial
    if final:
        path = folder.final_weights(final.digest, final.seed)
        result, tested, seed = final.result, final.test_accuracy, final.seed
    else:
        path, result, tested, seed = folder.trial_weights(trial.number), trial.result, None, config.seed
    if not path.is_file():
        return None
    try:
        model, structure = load_model(build_model(workload, config.dense_seed), path)
    except Refused as error:
        raise Refused(f"{error}; delete them, and the export repeats the fine-tune") from None
    found = score(model, workload.validation, workload).accuracy
    if not as_recorded(found, result.accuracy, workload):
        raise Refused(
            f"the weights {path} have validation accuracy {found:.2%}, and the study recorded {result.accuracy:.2%}: "
            "they are not what was measured; delete them, and the export repeats the fine-tune"
        )
    return _made(view, chosen, model, structure, result, seed, tested)


def _made(
    view: StudyView,
    chosen: Chosen,
    model: nn.Module,
    structure: Structure,
    result: TrialResult,
    seed: int,
    tested: float | None = None,
) -> Export:
    config, origin = view.folder.config, {"study": view.folder.name, **chosen.origin, "seed": seed}
    return Export(chosen.policy, model, structure, result, tested, (config.max_size, config.size_metric), origin)


def _require_code(view: StudyView, chosen: Chosen) -> None:
    try:
        own_function(chosen.policy.criterion)
    except ValueError:
        place = view.criterion_place or "./file.py:function"
        raise UsageError(
            f"{chosen.name} kept no weights, and repeating its fine-tune needs the code of criterion "
            f"{chosen.policy.criterion!r}: name it by --criterion {shlex.quote(place)}"
        ) from None


def fine_tuned(
    subject: Subject, policy: PruningPolicy, epochs: float, seed: int, watcher: Watcher, training: str = FINE_TUNE
) -> Evaluation:
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

    An earlier export there, with nothing else beside it, will be replaced as a whole; other files are never touched.
    A link stands for the folder it points to.

    Raises:
        UsageError: it is a file or lies below one, or holds files that are no export.
        EnvironmentProblem: it cannot be written, or cannot be replaced as a whole.
    """
    check_writable(out)
    if obstacle := _obstacle(_place(out)):
        raise EnvironmentProblem(
            f"an export replaces its folder as a whole, and --out {str(out)!r} cannot be ({obstacle}): "
            f"name a folder in it, such as {str(out / 'export')!r}"
        )
    if out.is_dir() and (foreign := foreign_file(out)) is not None:
        raise UsageError(
            f"--out {str(out)!r} holds {foreign!r}, which is no part of an export there, or not as it was written: "
            "name a new or empty folder"
        )


def _place(out: Path) -> Path:
    """The folder itself where `out` is a link, whether it exists or not."""
    return Path(os.path.realpath(out))


def _obstacle(place: Path) -> str | None:
    """Why a folder cannot be renamed; None if it can, or there is none yet."""
    if not place.is_dir():
        return None
    if os.path.ismount(place):
        return "it is a mount point"
    if os.path.samefile(place, os.curdir):
        return "this command runs in it"
    reason = unwritable(place.parent)
    return f"its parent {str(place.parent)!r} cannot be written: {reason}" if reason else None


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


@contextmanager
def _filled_whole(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place once everything is written, and stays where it is if it cannot."""
    place = _place(out)
    _remove_abandoned(place.parent)
    partial = place.parent / f".export-{uuid.uuid4().hex[:8]}.partial"
    try:
        with _new_folder(partial), held_folder(partial):
            yield partial
    except OSError as error:
        raise EnvironmentProblem(f"cannot write to {str(out)!r}: {error.strerror or error}") from None
    earlier = partial.with_suffix(".replaced")
    try:
        check_folder(out)  # again: files may have come while it was computed
        _replace(place, partial, earlier)
    except (OSError, PrunefrontError) as error:
        reason = f"cannot replace {str(out)!r}: {error.strerror or error}" if isinstance(error, OSError) else error
        kept = f", the earlier one in {str(earlier)!r}" if earlier.is_dir() else ""
        with suppress(OSError):  # a later export takes a '.partial' folder for one that was killed
            partial = partial.rename(partial.with_suffix(".complete"))
        raise EnvironmentProblem(f"{reason}; the new export is complete in {str(partial)!r}{kept}") from None


def _remove_abandoned(parent: Path) -> None:
    """Remove what killed exports left, but for one cut off while it took its place: it and the earlier are complete."""
    for path in parent.glob(".export-*.partial"):
        ours = re.fullmatch(r"\.export-[0-9a-f]{8}\.partial", path.name) and not path.is_symlink()
        if ours and not path.with_suffix(".replaced").exists() and not folder_is_held(path):
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _new_folder(path: Path) -> Iterator[None]:
    """Make it, and remove it again if what is done with it fails."""
    try:
        path.mkdir(parents=True)
        yield
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise


def _replace(place: Path, new: Path, earlier: Path) -> None:
    """Put `new` in `place`; what was there waits as `earlier`, and goes once `new` stands.

    After a crash between the renames both are complete, `.export-*.replaced` and `.export-*.partial` beside `place`.
    """
    for path in new.iterdir():
        flush(path)
    try:
        if place.is_dir():
            place.rename(earlier)
        new.rename(place)
    except BaseException:
        if earlier.is_dir() and not place.exists():
            earlier.rename(place)
        raise
    with suppress(OSError):  # what else lies there by now stays, and so does the folder
        for name in (*FILES, MANIFEST):
            (earlier / name).unlink(missing_ok=True)
        earlier.rmdir()


def write_export(
    export: Export,
    workload: Workload,
    workload_options: Mapping[str, Any],
    out: Path,
    dense_bytes: int,
    onnx: bool,
    torch_prune: bool = False,
) -> Written:
    """Write all files and the manifest that names them, without the ONNX file if the network has none.

    `check_folder` says beforehand what `out` can be.

    Raises:
        UsageError: `torch_prune` with removed channels.
        EnvironmentProblem: the files cannot be written, or `onnx` without its extra: nothing has changed. Or `out`
            cannot be replaced: it is as it was, and the message names the folder of the new export.
    """
    if torch_prune:
        check_masks_only(export.policy)
    if onnx:
        require_onnx()
    with _filled_whole(out) as folder:
        (folder / SPARSITY).write_text(json.dumps(_all_layers(workload, export), indent=2) + "\n")
        (folder / POLICY).write_text(export.policy.to_json())
        (folder / STRUCTURE).write_text(json.dumps(export.structure.to_dict(), indent=1) + "\n")
        (folder / WEIGHTS).write_bytes(_saved(export.model))
        write_sparse(export.model, folder / SPARSE)
        no_onnx = _onnx_refusal(export.model, workload, folder / ONNX) if onnx else None
        if torch_prune:
            masks = {name: _nonzero_mask(export.model, name) for name in export.policy.mask_requests()}
            (folder / TORCH_PRUNE).write_bytes(_saved(to_torch_prune(export.model, masks)))
        files = {path.name: _described(path) for path in sorted(folder.iterdir())}
        manifest = _manifest(export, workload, workload_options, dense_bytes, files)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return Written(manifest, no_onnx)


def _onnx_refusal(model: nn.Module, workload: Workload, path: Path) -> GoalMissed | None:
    """Write the ONNX file; why there is none if there is none."""
    try:
        write_onnx(model, workload.example_input, path)
    except GoalMissed as missed:
        return missed
    return None


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
        "outputs": recorded_outputs(predict(export.model, workload.example_input[:OUTPUT_ROWS])),
        "files": dict(files),
    }


def recorded_outputs(outputs: Any) -> list[Any]:
    """The numbers of one tensor; of several, those of each in turn."""
    if isinstance(outputs, Tensor):
        return outputs.tolist()
    return [tensor.tolist() for tensor in tensors_in(outputs)]


def _all_layers(workload: Workload, export: Export) -> dict[str, float]:
    """The policy's request for every prunable layer of the dense model, whole ones 0.0."""
    return {name: export.policy.sparsity.get(name, 0.0) for name in prunable_weights(workload.build_model())}


def _described(path: Path) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
