"""`run_search`: from a config to a study that runs or goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from search.config import SearchConfig
from search.errors import GoalMissed, Refused, UsageError
from search.files import remove_temporaries
from search.identity.measuring import settle_measuring
from search.identity.study_identity import latency_device, study_identity
from search.identity.unchanged import refuse_changed_study, refuse_changes_of, refuse_other_latency_device
from search.metric import metric_from_plain
from search.notebook import followed, usual_reporter
from search.options import FORMER, OPTIONS, unknown_option
from search.progress import ProgressReporter
from search.records import COMPLETE, TrialRecord
from search.storage import check_database_path, write_problem
from search.store.folder import StudyFolder, find_study
from search.store.locks import held_lock
from search.store.study_record import new_record
from search.study.checks import CheckedStudy, SearchedSpace, checked_study, searched_space
from search.study.result import SearchResult
from search.study.runner import StudyRunner, environment
from search.training.dense_model import DenseModel, dense_model
from search.training.ends import require_ends
from search.training.refresh import statistics_note, unread_note
from search.user_code.loading import criterion_place, refuse_while_loading
from search.workloads import Workload
from search.workloads.base import placed, with_dense_value
from search.workloads.overlap import overlaps
from search.workloads.steadiness import unsteady
from spaces.wording import counted


def run_search(config: SearchConfig, watcher: ProgressReporter | None = None) -> SearchResult:
    """Start or resume a study and run it to its budget.

    The same config resumes; a finished study returns at once. Every finished trial is on disk before
    anything else hears of it, and every point of the scan is as it comes, so an interruption costs the running trial
    or point only, or the training of the dense model.

    Args:
        watcher: what shows how it gets on. Without it a notebook has one live area, a terminal what `prunefront search`
            shows on stderr, and everything else nothing: `TerminalReporter()` writes a line now and then into a log,
            `ProgressReporter()` shows nothing anywhere.

    Raises:
        UsageError: wrong settings, a limit that cannot be reached, or a changed study; before training.
        EnvironmentProblem: missing data, an unwritable root, a study in use.
        Refused: unsafe weights or a damaged study.
    """
    refuse_while_loading("run_search")
    watcher = watcher or usual_reporter()
    with followed(watcher):
        study = checked_study(config, watcher)
        with study.placement.running():
            return _run(study, watcher)


def run_finals(
    study: str,
    root: str | Path = "mlruns",
    *,
    trials: Sequence[int] = (),
    watcher: ProgressReporter | None = None,
    **options: Any,
) -> SearchResult:
    """Run or complete the finals of a study that has trials, such as one that was searched with `finalists=0`.

    What of them is done is not repeated, and what is stored of the study's options stays as it is. The same call goes
    on after an interruption.

    Args:
        study: its name.
        root: the folder it is under.
        trials: complete trials to tune with all `final_repeats` seeds and to compare, in place of `finalists`; without
            any, the front's finalists are.
        watcher: as of `run_search`.
        options: of `SearchConfig`, for these finals alone: `FINALS_OPTIONS`. Others, and those left out, are the
            study's; where it has `finalists` 0, they are 3.

    Raises:
        UsageError: unknown study, trial or option, or a study that changed; before training.
        GoalMissed: no complete trial within the limit.
        EnvironmentProblem, Refused: as of `run_search`.
    """
    refuse_while_loading("run_finals")
    watcher = watcher or usual_reporter()
    for name in options:
        if FORMER.get(name, name) not in FINALS_OPTIONS:
            raise UsageError(unknown_option(name, FINALS_OPTIONS, FORMER, "option of finals"))
    trials = tuple(trials)
    if "finalists" in options and (trials or options["finalists"] == 0):
        remedy = "beside trials, which are compared in their place" if trials else "on finals, which it leaves out"
        raise UsageError(f"finalists {options['finalists']} has no effect {remedy}: leave it out")
    folder = find_study(root, study)
    asked = checked_study(SearchConfig(study=study, root=str(root), **options), watcher)
    records = folder.journal.trials()
    _require_complete(trials, records, study)
    changes: dict[str, Any] = {"trials": max(len(records), 1), "timeout": None}  # no further trial is proposed
    if asked.config.finalists == 0 and "finalists" not in options:
        changes["finalists"] = OPTIONS["finalists"].default
    config = asked.config.model_copy(update=changes)
    with asked.placement.running(), followed(watcher):
        return _run(replace(asked, config=config), watcher, trials)


FINALS_OPTIONS = (
    "workload", "criterion", "trust_remote_code", "finalists", "final_repeats", "comparison", "latency_command",
    "trial_timeout", "device", "deterministic", "threads", "workers", "executor", "ray_address", "attempts", "stall",
)  # fmt: skip
"""What may be said anew of a study whose finals are run."""


def _require_complete(numbers: Sequence[int], records: Sequence[TrialRecord], study: str) -> None:
    complete = [record.number for record in records if record.result.state == COMPLETE]
    if not complete:
        raise GoalMissed(f"study {study!r} has no complete trial to run finals of: give it more --trials")
    for number in numbers:
        if number not in complete:
            near = min(complete, key=lambda one: abs(one - number))
            raise UsageError(f"trial {number} is not a complete trial of study {study!r}; the nearest is {near}")


def _run(study: CheckedStudy, watcher: ProgressReporter, finals_of: tuple[int, ...] | None = None) -> SearchResult:
    """Where `finals_of` says so, finals alone, of these trials or else the front's: what is stored of options stays."""
    folder, root = study.folder, study.folder.root
    workload = placed(study.workload, study.placement)
    folder.refuse_orphan()
    searched = searched_space(study, workload, watcher)
    config, space = searched.config, searched.space
    with ExitStack() as stack:
        _make_folder(folder)
        stack.enter_context(held_lock(folder.lock))
        for place in (folder.path, folder.path / "journal", folder.path / "checkpoints"):
            remove_temporaries(place)
        remove_temporaries(root / "cache", of_dead_only=True)
        for said in (overlaps(workload), unsteady(workload)):
            if said:
                watcher.note(said)
        dense = _dense_model(folder, config, workload, watcher)
        if config.finalists or finals_of:
            require_ends(workload, ("test",), watcher)
        for said in (statistics_note(dense.model, workload.example_input), unread_note(workload, dense.model)):
            if said:
                watcher.note(said)
        known = metric_from_plain(folder.read_record().get("metric")) if folder.exists else None
        stored = config.stored() if finals_of is None else folder.read_record()["config"]
        _settle_identity(folder, config, workload, dense, searched, watcher, stored)
        prepared = searched.untrained.with_weights(dense.model, with_dense_value(dense.workload, known))
        return StudyRunner(config, folder, space, prepared, dense, watcher, finals_of or ()).run()


def _make_folder(folder: StudyFolder) -> None:
    check_database_path(folder.database)
    for part in ("journal", "checkpoints"):
        try:
            (folder.path / part).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_problem(folder.path / part, error) from None


def _dense_model(
    folder: StudyFolder, config: SearchConfig, workload: Workload, watcher: ProgressReporter
) -> DenseModel:
    """The dense model; of a study that changed none is trained."""
    given = workload, config.dense_seed, folder.root / "cache", config.weights, watcher
    dense = dense_model(*given, train=not folder.exists)
    if dense is None:
        refuse_changed_study(folder, workload, watcher)
        dense = dense_model(*given)
    return dense


def _settle_identity(
    folder: StudyFolder,
    config: SearchConfig,
    workload: Workload,
    dense: DenseModel,
    searched: SearchedSpace,
    watcher: ProgressReporter,
    stored: Mapping[str, Any],
) -> None:
    """Write a new study down, or refuse one whose model, data, recipe or objectives changed, or whose results were
    measured in a way that new ones cannot be compared with.

    Its test split may change as long as no final run has been scored on it. `stored` are the options it then has.
    """
    now, network, table = environment(workload.placement), searched.space.network, searched.table
    if folder.exists:
        record = folder.read_record()
        if (ran_on := record.get("environment", now).get("device")) and ran_on != now["device"]:
            watcher.note(
                f"the study last ran on {ran_on} and runs on {now['device']} now: fine-tunes may differ from those "
                "before; each trial keeps the device that it came from"
            )
        if (before := record.get("environment", now)["threads"]) != now["threads"]:
            watcher.note(
                f"PyTorch had {counted(before, 'thread')} when the study last ran and has {now['threads']} now: "
                f"fine-tunes may differ in their last digits from those before; --threads {before} avoids it"
            )
        device = refuse_other_latency_device(record, folder, workload)
        record["identity"] = refuse_changes_of(record, folder, workload, dense, watcher) | device
        folder.journal.require_layers(network)
        if table and folder.read_latency_table() not in (None, table):
            raise Refused(
                f"latency table {folder.latency} is of another network than the study's: put back a copy of its own, "
                "or name a new --study"
            )
        settle_measuring(folder, config.trials, workload, dense.model, network, watcher)
        record["config"] = stored
    else:
        identity = study_identity(config, workload, dense) | latency_device(config, workload.placement)
        record = new_record(config, identity)
    if place := criterion_place(config.criterion):  # shown by `status`, never run
        record["criterion_place"] = place
    if table and folder.read_latency_table() != table:
        folder.write_latency_table(table)
    folder.write_record({**record, "environment": now})
