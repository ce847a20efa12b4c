"""Exporting a network of a study: chosen, rebuilt and written."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pruning.sparse_file import dense_bytes
from search.config import SearchConfig
from search.errors import GoalMissed
from search.export.choose import Chosen, choose_trial
from search.export.folder_swap import check_folder
from search.export.onnx_file import require_onnx
from search.export.rebuild import Export, export_of_trial, take_criterion, with_workload
from search.export.registry import Registered, Registry, require_registrable
from search.export.write import Written, check_masks_only, write_export
from search.progress import ProgressReporter
from search.results.selection import is_dead
from search.results.view import StudyView
from search.store.mlflow_place import mlflow_place
from search.training.dense_model import build_model
from search.workloads import Workload
from spaces.wording import percent


@dataclass(frozen=True)
class Exported:
    """What was chosen of a study, the network as it was rebuilt, by which workload and config, its files, and which
    version it is in MLflow's registry, if that was asked for.
    """

    chosen: Chosen
    made: Export
    workload: Workload
    config: SearchConfig
    written: Written
    registered: Registered | None


def export_study(
    view: StudyView,
    choice: str,
    out: Path,
    watcher: ProgressReporter,
    *,
    workload: str | None = None,
    criterion: str | None = None,
    onnx: bool = False,
    torch_prune: bool = False,
    onnx_int8: bool = False,
    register: str | None = None,
) -> Exported:
    """Write a network of a study to a folder, new or of an export; what cannot be written is refused before anything is
    computed.

    Args:
        choice: see `choose_trial`.
        workload: where the function is that makes a workload that was given in Python.
        criterion: where a criterion of the user's own is.
        register: checked name of a model in MLflow's registry that the network becomes a version of.

    Raises:
        GoalMissed: the export stands but for an ONNX file that was asked for, or cannot be registered.
        UsageError, Refused, EnvironmentProblem: as `choose_trial`, `export_of_trial`, `write_export` and `Registry` do.
    """
    chosen = choose_trial(view, choice)
    if chosen.remark:
        watcher.note(chosen.remark)
    if torch_prune:
        check_masks_only(chosen.policy)
    check_export(out, onnx or onnx_int8)
    if workload:
        view = with_workload(view, workload)
    if criterion:
        take_criterion(view, criterion)
    registry = None
    if register is not None:
        place, study_id = mlflow_place(view.folder.root), view.folder.read_record()["study_id"]
        registry = Registry.of(place, study_id, chosen, register)
    note_dead(chosen.name, chosen.result.measured.accuracy, view.state.chance, watcher)
    check = partial(require_registrable, has_onnx=onnx) if registry else lambda _: None
    made, own, config = export_of_trial(view, chosen, watcher, check)
    written = write_network(made, own, config, out, onnx, torch_prune, onnx_int8)
    require_whole(written, out)
    registered = registry.register(made, own, out, written) if registry else None
    return Exported(chosen, made, own, config, written, registered)


def check_export(out: Path, onnx: bool) -> None:
    """Refuse, before anything is computed, an export that could not be written."""
    check_folder(out)
    if onnx:
        require_onnx()


def write_network(
    made: Export,
    workload: Workload,
    config: SearchConfig,
    out: Path,
    onnx: bool,
    torch_prune: bool,
    onnx_int8: bool = False,
) -> Written:
    """The files of a network, see `write_export`."""
    dense_size = dense_bytes(build_model(workload, config.dense_seed))
    options = {key: getattr(config, key) for key in ("workload", "data", "width")}
    options |= {"network": config.network} if config.network else {}
    return write_export(made, workload, options, out, dense_size, onnx, torch_prune, onnx_int8)


def require_whole(written: Written, out: Path) -> None:
    """Raise `GoalMissed` of an export that stands but for an ONNX file that was asked for."""
    for first in written.missing.values():
        reasons = " and ".join(f"{name}: {why}" for name, why in written.missing.items())
        raise GoalMissed(f"the export in {str(out)!r} is complete but for {reasons}") from first


def note_dead(name: str, accuracy: float, chance: float | None, watcher: ProgressReporter) -> None:
    """Say that a network is no more accurate than chance, if so."""
    if is_dead(accuracy, chance):
        watcher.note(
            f"{name} is near chance: accuracy {percent(accuracy, 2)} on validation data, where up to "
            f"{percent(chance, 2)} is no more than chance"
        )
