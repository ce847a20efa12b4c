"""`run_search`: from a config to a study that runs or goes on."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from pruning.importance.own_criteria import own_function
from search.config import GUIDED, SearchConfig, check_study_name
from search.errors import UsageError
from search.executors.choose import require_workers, threads_of
from search.files import open_root, remove_temporaries
from search.identity.measuring import settle_measuring
from search.identity.recorded_recipe import with_recorded_recipe
from search.identity.study_identity import latency_device, study_identity
from search.identity.unchanged import refuse_changed_study, refuse_changes_of, refuse_other_latency_device
from search.metric import metric_from_plain
from search.placement import Placement, placement_of
from search.progress import ProgressReporter
from search.storage import check_database_path, write_problem
from search.store.folder import StudyFolder
from search.store.locks import held_lock
from search.store.mlflow_place import unused_place
from search.store.optuna_server import require_storage
from search.store.study_record import KNOB_WORD, new_record, resumed_config
from search.study.result import SearchResult
from search.study.runner import StudyRunner, environment
from search.training.dense_model import DenseModel, build_model, dense_model
from search.training.evaluate import PreparedModel
from search.training.examples import step_count
from search.training.fingerprint import model_fingerprint
from search.training.latency_cache import cached_latency_table
from search.training.refresh import statistics_note, unread_note
from search.training.train import in_fast_layout
from search.user_code.loading import criterion_place, refuse_while_loading
from search.workloads import Workload, get_workload, is_built_in
from search.workloads.base import placed, with_dense_value
from search.workloads.overlap import overlaps
from search.workloads.steadiness import unsteady
from search.workloads.tally import named
from spaces.allocation.budget import Unreachable
from spaces.cost.latency_predictor import Predictor
from spaces.network import Network
from spaces.search_space.space import OLD_PREFERENCE, PREFERENCE, Space, allocator_names

FEW_STEPS = 50
"""Optimizer steps a trial should have; of fewer, a study warns."""


def run_search(config: SearchConfig, watcher: ProgressReporter | None = None) -> SearchResult:
    """Start or resume a study and run it to its budget.

    The same config resumes; a finished study returns at once. Every finished trial is on disk before
    anything else hears of it, and every point of the scan is as it comes, so an interruption costs the running trial
    or point only, or the training of the dense model.

    Raises:
        UsageError: wrong settings, a limit that cannot be reached, or a changed study; before training.
        EnvironmentProblem: missing data, an unwritable root, a study in use.
        Refused: unsafe weights or a damaged study.
    """
    refuse_while_loading("run_search")
    watcher = watcher or ProgressReporter()
    config = _with_stored_options(config)
    with _placement_of(config).running():
        root = open_root(config.root)
        _require_criterion(config.criterion)
        workload = get_workload(config.workload, **config.factory_options, cache=str(root / "cache"))
        config.least_accuracy(math.nan, named(workload.metric))  # refuses one that the metric cannot have
        folder = StudyFolder(root, _study_name(config, workload))
        if folder.exists:
            config = resumed_config(config, folder.read_record(), folder.name)
            _require_criterion(config.criterion)
            workload = with_recorded_recipe(workload, folder.read_record()["identity"], is_built_in(config.workload))
    if not folder.exists:  # one that has all its results needs none
        require_workers(config)
    _require_places(config, folder, watcher)
    config = config.model_copy(update={"threads": threads_of(config)})
    placement = _placement_of(config)  # that of the study, whose name may be known by its workload only
    with placement.running():
        return _run(config, folder, workload, placement, watcher)


def _require_places(config: SearchConfig, folder: StudyFolder, watcher: ProgressReporter) -> None:
    """Refuse what the study is to be written to besides its folder, if that cannot be, before anything is computed."""
    if said := unused_place():
        watcher.note(said)
    if config.optuna_storage:
        known = folder.read_record()["study_id"] if folder.exists else None
        require_storage(config.optuna_storage, folder.name, known)


def _placement_of(config: SearchConfig) -> Placement:
    return placement_of(config.device, config.precision, config.deterministic, config.threads)


def _run(
    config: SearchConfig, folder: StudyFolder, workload: Workload, placement: Placement, watcher: ProgressReporter
) -> SearchResult:
    root = folder.root
    workload = placed(workload, placement)
    folder.refuse_orphan()
    word = folder.read_record().get(KNOB_WORD, OLD_PREFERENCE) if folder.exists else PREFERENCE
    untrained = PreparedModel.of(workload, build_model(workload, config.dense_seed), config.round_to)
    space = _space(config, untrained, root / "cache", watcher, word)
    for granularity, reason in space.left_out.items():
        fate = "only used beside others" if granularity in space.choices else "left out"
        watcher.note(f"granularity {granularity} is {fate}: {reason}")
    if space.network.uncounted:
        watcher.note(f"MACs leave out {'; '.join(space.network.uncounted)}")
    steps = step_count(workload, workload.recipe.trial_epochs)
    if steps is not None and steps < FEW_STEPS:
        watcher.note(
            f"a trial fine-tunes for {steps} steps only, too few for most networks to recover: give the workload a "
            "recipe with more trial_epochs or a smaller batch"
        )
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
        for said in (statistics_note(dense.model, workload.example_input), unread_note(workload, dense.model)):
            if said:
                watcher.note(said)
        known = metric_from_plain(folder.read_record().get("metric")) if folder.exists else None
        _settle_identity(folder, config, workload, dense, space.network, watcher)
        prepared = untrained.with_weights(dense.model, with_dense_value(dense.workload, known))
        return StudyRunner(config, folder, space, prepared, dense, watcher).run()


def _require_criterion(criterion: str) -> None:
    """Refuse a criterion whose code is not here, or whose name nobody else could read in the study's files."""
    try:
        own = own_function(criterion)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if own is not None and ":" not in criterion:
        raise UsageError(
            f"criterion {criterion!r} is your own: register it with a ':' in its name, such as 'my:{criterion}', "
            "so that the study can be read where it is not registered"
        )


def _study_name(config: SearchConfig, workload: Workload) -> str:
    try:
        return check_study_name(config.study or workload.name)
    except ValueError as error:
        raise UsageError(f"{error}; name another with --study") from None


def _with_stored_options(config: SearchConfig) -> SearchConfig:
    """When the name given is a stored study's, its workload need not be given again."""
    name = config.study or (config.workload if is_built_in(config.workload) and config.network is None else None)
    folder = StudyFolder(Path(config.root), name) if name else None
    return resumed_config(config, folder.read_record(), folder.name) if folder and folder.exists else config


def _space(
    config: SearchConfig, untrained: PreparedModel, cache: Path, watcher: ProgressReporter, knob_word: str
) -> Space:
    """The search space on the untrained network: whether the limits can be reached needs no training."""
    model, untrained = untrained.dense, untrained.defined_for(config.criterion)
    network, latency = untrained.network, None
    if config.needs_latency:
        fast = replace(untrained, dense=in_fast_layout(model, untrained.workload.example_input).eval())
        with watcher.stage("latency table") as progress:
            latency = Predictor(cached_latency_table(fast, model_fingerprint(model), cache, progress), network)
    try:
        return Space(
            network=network,
            max_size=config.max_size,
            granularities=config.granularity,
            metric=config.size_metric,
            mixed=config.mixed,
            bits=config.bits,
            criterion=config.criterion,
            min_size=config.min_size,
            max_macs=config.max_macs,
            max_latency=config.max_latency,
            latency=latency,
            speed=config.cost,
            schedules=config.schedule,
            knob_prefix=knob_word,
            allocations=allocator_names(scanned=config.warm_start or config.sampler == GUIDED),
        )
    except Unreachable as error:
        raise UsageError(str(error)) from None


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
    network: Network,
    watcher: ProgressReporter,
) -> None:
    """Write a new study down, or refuse one whose model, data, recipe or objectives changed, or whose results were
    measured in a way that new ones cannot be compared with.

    Its test split may change as long as no final run has been scored on it.
    """
    now = environment(workload.placement)
    if folder.exists:
        record = folder.read_record()
        if (ran_on := record.get("environment", now).get("device")) and ran_on != now["device"]:
            watcher.note(
                f"the study last ran on {ran_on} and runs on {now['device']} now: fine-tunes may differ from those "
                "before; each trial keeps the device that it came from"
            )
        if (before := record.get("environment", now)["threads"]) != now["threads"]:
            watcher.note(
                f"PyTorch had {before} threads when the study last ran and has {now['threads']} now: fine-tunes may "
                f"differ in their last digits from those before; --threads {before} avoids it"
            )
        device = refuse_other_latency_device(record, folder, workload)
        record["identity"] = refuse_changes_of(record, folder, workload, dense, watcher) | device
        folder.journal.require_layers(network)
        settle_measuring(folder, config.trials, workload, dense.model, network, watcher)
        record["config"] = config.stored()
    else:
        identity = study_identity(config, workload, dense) | latency_device(config, workload.placement)
        record = new_record(config, identity)
    if place := criterion_place(config.criterion):  # shown by `status`, never run
        record["criterion_place"] = place
    folder.write_record({**record, "environment": now})
