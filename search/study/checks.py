"""What is checked of a study before anything is spent on it, and the space that it searches."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch

from pruning.importance.own_criteria import own_function
from search.config import GUIDED, SearchConfig, check_study_name
from search.errors import UsageError
from search.executors.choose import require_workers, threads_of
from search.export.latency_command import CommandFailed, check_command
from search.files import open_root
from search.identity.recorded_recipe import with_study_recipe
from search.placement import Placement, devices, placement_of
from search.progress import ProgressReporter
from search.store.folder import StudyFolder
from search.store.locks import is_held
from search.store.mlflow_place import unused_place
from search.store.optuna_server import require_reachable, require_storage
from search.store.study_record import KNOB_WORD, resumed_config
from search.store.system_metrics import require_system_metrics
from search.training.asked_recipe import require_followed
from search.training.dense_model import build_model
from search.training.evaluate import PreparedModel
from search.training.examples import step_count
from search.training.fingerprint import model_fingerprint
from search.training.latency_cache import Unmeasured, cached_latency_table, known_latency_table
from search.training.train import in_fast_layout
from search.workloads import Workload, get_workload, is_built_in
from search.workloads.run import TRIAL
from search.workloads.tally import named
from spaces.allocation.budget import Unreachable
from spaces.cost.latency_predictor import Predictor
from spaces.cost.latency_table import LatencyTable
from spaces.search_space.space import OLD_PREFERENCE, PREFERENCE, Space, allocator_names
from spaces.wording import counted

FEW_STEPS = 50
"""Optimizer steps a trial should have; of fewer, a study warns."""


@dataclass(frozen=True)
class CheckedStudy:
    """A study whose options, workload and places are in order.

    Attributes:
        workload: not moved to `placement` yet.
        writes: whether this is a search; one that is only shown writes nothing, and measures no latency.
    """

    config: SearchConfig
    folder: StudyFolder
    workload: Workload
    placement: Placement
    writes: bool


def checked_study(config: SearchConfig, watcher: ProgressReporter, writes: bool = True) -> CheckedStudy:
    """Options completed by those of a stored study, and checked as far as no network is needed.

    Raises:
        UsageError: wrong settings, or a changed study.
        EnvironmentProblem: missing data, or a place that cannot be written.
        Refused: unsafe weights or a damaged study.
    """
    config = _with_stored_options(config)
    with _placement_of(config).running():
        root = open_root(config.root, create=writes)
        _require_criterion(config.criterion)
        workload = get_workload(config.workload, **config.factory_options, cache=str(root / "cache"))
        config.least_accuracy(math.nan, named(workload.metric))  # refuses one that the metric cannot have
        folder = StudyFolder(root, _study_name(config, workload))
        if folder.exists:
            config = resumed_config(config, folder.read_record(), folder.name, _untried(folder))
            _require_criterion(config.criterion)
        workload = with_study_recipe(workload, config, folder.read_record()["identity"] if folder.exists else None)
    if not folder.exists:  # one that has all its results needs none
        require_workers(config)
    _require_places(config, folder, watcher, writes)
    config = config.model_copy(update={"threads": threads_of(config)})
    # The placement is that of the study, whose name may be known by its workload only.
    return CheckedStudy(config, folder, workload, _placement_of(config), writes)


def _require_places(config: SearchConfig, folder: StudyFolder, watcher: ProgressReporter, writes: bool) -> None:
    """Refuse what the study is to be written to besides its folder, if that cannot be, before anything is computed."""
    if said := unused_place():
        watcher.note(said)
    if config.system_metrics:
        require_system_metrics()
        if devices()[0].startswith("cuda") and torch.version.hip is None and find_spec("pynvml") is None:
            watcher.note("MLflow's system metrics leave out the GPU: pip install 'prunefront[system-metrics]'")
    if config.optuna_storage and not writes:
        require_reachable(config.optuna_storage)
    elif config.optuna_storage:
        known = folder.read_record()["study_id"] if folder.exists else None
        require_storage(config.optuna_storage, folder.name, known)


def _placement_of(config: SearchConfig) -> Placement:
    return placement_of(config.device, config.precision, config.deterministic, config.threads)


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
    if folder is None or not folder.exists:
        return config
    return resumed_config(config, folder.read_record(), folder.name, _untried(folder))


def _untried(folder: StudyFolder) -> Path | None:
    """The study's folder, if that has no trial and nobody is about to have one there."""
    return None if is_held(folder.lock) else folder.untried


@dataclass(frozen=True)
class SearchedSpace:
    """What a study searches.

    Attributes:
        config: the study's; MACs are its third objective where latency is only the default and cannot be measured.
        untrained: the network, with its channels traced.
        table: what latency is predicted by; None if it plays no part, or a study that is only shown would have to
            measure it.
    """

    config: SearchConfig
    untrained: PreparedModel
    space: Space
    table: LatencyTable | None


def searched_space(study: CheckedStudy, workload: Workload, watcher: ProgressReporter) -> SearchedSpace:
    """The untrained network and the search space on it: whether the limits can be reached needs no training.

    Args:
        workload: the study's, where its networks run.

    Raises:
        UsageError: they cannot, or latency was asked for and cannot be measured.
        Refused: the study's latency table is damaged.
    """
    folder, config = study.folder, study.config
    word = folder.read_record().get(KNOB_WORD, OLD_PREFERENCE) if folder.exists else PREFERENCE
    untrained = PreparedModel.of(workload, build_model(workload, config.dense_seed), config.round_to)
    if not folder.exists:
        require_followed(workload, untrained.dense, config.asked_recipe, workload.recipe.trial_epochs, TRIAL)
    defined = untrained.defined_for(config.criterion)
    table, space = None, _space(config, defined, None, word)  # refuses what cannot be reached, before any measuring
    if config.needs_latency:
        try:
            table = _latency_table(study, defined, watcher)
        except Unmeasured as error:
            config = _without_latency(study, str(error), watcher)
        space = _space(config, defined, table, word)
    for granularity, reason in space.left_out.items():
        fate = "only used beside others" if granularity in space.choices else "left out"
        watcher.note(f"granularity {granularity} is {fate}: {reason}")
    if space.network.uncounted:
        watcher.note(f"MACs leave out {'; '.join(space.network.uncounted)}")
    steps = step_count(workload, workload.recipe.trial_epochs)
    if steps is not None and steps < FEW_STEPS and not folder.exists:
        watcher.note(
            f"a trial fine-tunes for {counted(steps, 'step')} only, too few for most networks to recover: give it more "
            "--epochs or a smaller --batch"
        )
    if config.latency_command is not None:
        _try_out(config.latency_command, untrained, watcher)
    return SearchedSpace(config, untrained, space, table)


def _try_out(command: str, untrained: PreparedModel, watcher: ProgressReporter) -> None:
    """Refuse a command that does not time the dense network, before anything is spent."""
    try:
        with watcher.stage("latency command"):
            seconds = check_command(command, untrained.dense, untrained.workload.example_input)
    except CommandFailed as failed:
        raise UsageError(f"--latency-command {command!r} fails on the dense network: {failed}") from None
    watcher.note(f"finals are timed by {command!r}, which says {seconds * 1e3:.3g} ms of the dense network")


def _space(config: SearchConfig, untrained: PreparedModel, table: LatencyTable | None, knob_word: str) -> Space:
    latency = Predictor(table, untrained.network) if table else None
    if latency is None:
        config = config.model_copy(update={"max_latency": 1.0, "cost": "macs"})
    try:
        return Space(
            network=untrained.network,
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


def _latency_table(study: CheckedStudy, untrained: PreparedModel, watcher: ProgressReporter) -> LatencyTable | None:
    """The study's own, else this machine's; None where a study that is only shown would measure it.

    Raises:
        Unmeasured: it cannot be measured.
        Refused: the study's own is damaged.
    """
    kept = study.folder.read_latency_table()
    if kept is not None and kept.is_of(untrained.network):  # else the study's model changed, which is refused later
        here = study.placement.name, torch.get_num_threads()
        if (kept.device, kept.threads) != here:
            watcher.note(f"latency goes on being predicted {_measured_on(kept)}, where the study's table was measured")
        return kept
    model, cache = untrained.dense, study.folder.root / "cache"
    fast = replace(untrained, dense=in_fast_layout(model, untrained.workload.example_input).eval())
    fingerprint = model_fingerprint(model)
    if not study.writes:
        return known_latency_table(fast, fingerprint, cache)
    with watcher.stage("latency table") as progress:
        table = cached_latency_table(fast, fingerprint, cache, progress)
    watcher.note(f"latency is predicted {_measured_on(table)}, one example at a time")
    return table


def _measured_on(table: LatencyTable) -> str:
    return f"for {table.device}, {counted(table.threads, 'thread')}"


def _without_latency(study: CheckedStudy, reason: str, watcher: ProgressReporter) -> SearchConfig:
    """The config with MACs in latency's place, which is said.

    Raises:
        UsageError: latency was asked for.
    """
    config = study.config
    told = f"latency cannot be measured on {study.placement.name} ({reason})"
    if config.max_latency < 1:
        raise UsageError(f"{told}: leave out --max-latency, or limit MACs by --max-macs")
    if "cost" in config.model_fields_set:
        raise UsageError(f"{told}: give --cost macs")
    watcher.note(f"{told}: the third objective is MACs")
    return config.model_copy(update={"cost": "macs"})
