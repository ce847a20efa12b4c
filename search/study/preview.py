"""What a search would do, found out without training a trial and without writing anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from pruning.importance.scores import unit_importance
from search.config import GUIDED, SearchConfig
from search.errors import UsageError
from search.identity.unchanged import refuse_changed_study, refuse_changes_of, refuse_other_latency_device
from search.metric import MAX
from search.progress import ProgressReporter
from search.results.comparison import BASELINES, known_comparison
from search.results.state import StudyState
from search.storage import check_database_path
from search.store.folder import StudyFolder
from search.store.locks import require_free
from search.study.checks import CheckedStudy, checked_study, searched_space
from search.study.foretold import Duration, foretold
from search.training.dense_model import DenseModel, dense_model
from search.training.evaluate import PreparedModel
from search.training.profile_cache import known_profile
from search.training.refresh import statistics_note, unread_note
from search.workloads.base import Workload, placed
from search.workloads.overlap import overlaps
from search.workloads.steadiness import unsteady
from search.workloads.tally import named
from spaces.allocation.budget import Unreachable
from spaces.allocation.importance import AllocationInputs
from spaces.granularity import parts_in
from spaces.network import Layer
from spaces.search_space.initial import UNPRUNED, allocations_in_turn, initial_points
from spaces.search_space.projection import Projector
from spaces.search_space.space import Space
from spaces.sensitivity import Profile


@dataclass(frozen=True)
class FirstTrial:
    """A trial that is settled before the search begins.

    Attributes:
        size: predicted, a share of the dense model in the limit's metric.
    """

    allocator: str
    granularity: str
    bits: int
    size: float


@dataclass(frozen=True)
class FirstTrials:
    """Trials that are settled before the search begins, in order.

    Attributes:
        exact: whether their allocations were worked out on the trained network and its scan; otherwise sizes are those
            asked for, and one that removes the same units as an earlier one, or cannot have its size, gives its place
            to the next.
    """

    trials: Sequence[FirstTrial]
    exact: bool


@dataclass(frozen=True)
class Preview:
    """A study as `search` would run it.

    Attributes:
        finished: trials that it has already; None if the study is new.
        layers: the prunable ones.
        device: what networks run on.
        reachable: smallest and largest size, shares of the dense model in the limit's metric.
        searched: smallest and largest size target.
        floors: granularity -> smallest size it reaches.
        left_out: granularity that is not used for a whole network -> why.
        dense_accuracy: on validation data; None if the dense model has to be trained first.
        dense_value: the same in the metric's own unit, in words.
        wanted: the accuracy asked for, likewise; None if none was, or it is not known yet.
        has_scan: whether there is a sensitivity scan; None if the search does without.
        has_latency_table: whether there is a table that latency is predicted by; None if latency plays no part.
        baselines: static allocations that are tuned beside the finalists.
    """

    config: SearchConfig
    folder: StudyFolder
    finished: int | None
    layers: Sequence[Layer]
    device: str
    reachable: tuple[float, float]
    searched: tuple[float, float]
    floors: Mapping[str, float]
    left_out: Mapping[str, str]
    dense_accuracy: float | None
    dense_value: str | None
    wanted: str | None
    has_scan: bool | None
    has_latency_table: bool | None
    first: FirstTrials
    baselines: Sequence[str]
    duration: Duration


def preview_study(config: SearchConfig, watcher: ProgressReporter | None = None) -> Preview:
    """Check all that `run_search` checks before it trains anything, and say what it would do.

    Nothing is written. The dense model is loaded if that is possible without training. Weights that a hub's code makes
    are kept in the cache, as for any command.

    Raises:
        UsageError, EnvironmentProblem, Refused: as `run_search` does.
    """
    watcher = watcher or ProgressReporter()
    study = checked_study(config, watcher, writes=False)
    with study.placement.running():
        return _previewed(study, watcher)


def _previewed(study: CheckedStudy, watcher: ProgressReporter) -> Preview:
    config, folder = study.config, study.folder
    workload = placed(study.workload, study.placement)
    folder.refuse_orphan()
    searched = searched_space(study, workload, watcher)
    space = searched.space
    check_database_path(folder.database)
    require_free(folder.lock)
    for said in (overlaps(workload), unsteady(workload)):
        if said:
            watcher.note(said)
    dense = dense_model(workload, config.dense_seed, folder.root / "cache", config.weights, watcher, train=False)
    if folder.exists:
        _refuse_changed(folder, workload, dense, space, watcher)
    profile, subject = None, None
    if dense is not None:
        for said in (statistics_note(dense.model, workload.example_input), unread_note(workload, dense.model)):
            if said:
                watcher.note(said)
        subject = searched.untrained.with_weights(dense.model, dense.workload).scored_by(config.criterion)
        try:
            space = replace(space, network=subject.network)  # without layers that the criterion sees no data of
        except Unreachable as error:
            raise UsageError(str(error)) from None
        profile = known_profile(
            subject, dense, config.criterion, parts_in(space.usable), folder.root / "cache", space.bits
        )
    has_scan = profile is not None if config.warm_start or config.sampler == GUIDED else None
    state = _state(config, folder, workload) if folder.exists else None
    unit = named(workload.metric if dense is None else dense.workload.metric)
    least = config.least_accuracy(dense.accuracy, unit) if dense else None
    return Preview(
        config=config,
        folder=folder,
        finished=len(state.records) if state else None,
        layers=space.network.prunable,
        device=study.placement.name,
        reachable=(min(space.floors[g] for g in space.usable), space.unpruned_size(max(space.bits))),
        searched=space.size_range,
        floors=space.floors,
        left_out=space.left_out,
        dense_accuracy=dense.accuracy if dense else None,
        dense_value=unit.shown(dense.accuracy) if dense else None,
        wanted=None
        if least is None
        else f"{unit.name} of at {'least' if unit.best == MAX else 'most'} {unit.told(least)}",
        has_scan=has_scan,
        has_latency_table=searched.table is not None if searched.config.needs_latency else None,
        first=_first_trials(config, folder, space, subject, profile),
        baselines=BASELINES if config.finalists else (),
        duration=Duration(left, "by the pace of its finished trials, finals included")
        if state and (left := state.seconds_left) is not None
        else foretold(config, subject or searched.untrained, space, dense is not None, has_scan),
    )


def _refuse_changed(
    folder: StudyFolder, workload: Workload, dense: DenseModel | None, space: Space, watcher: ProgressReporter
) -> None:
    record = folder.read_record()
    if dense is None:
        refuse_changed_study(folder, workload, watcher)
    else:
        refuse_changes_of(record, folder, workload, dense, watcher)
    refuse_other_latency_device(record, folder, workload)
    folder.journal.require_layers(space.network)


def _state(config: SearchConfig, folder: StudyFolder, workload: Workload) -> StudyState:
    state = StudyState(config, workload.recipe.to_dict(), comparison=known_comparison(folder))
    state.add_all(folder.journal.trials(), folder.journal.finals(), folder.journal.count_short_runs())
    return state


def _first_trials(
    config: SearchConfig, folder: StudyFolder, space: Space, subject: PreparedModel | None, profile: Profile | None
) -> FirstTrials:
    count = folder.read_record().get("seeds", config.trials // 2) if folder.exists else config.trials // 2
    if not config.warm_start:
        return FirstTrials((), True)
    if subject is None or profile is None:
        unpruned = [one for one in space.bits if space.size_range[0] <= space.unpruned_size(one) <= space.size_range[1]]
        first = [FirstTrial(UNPRUNED, space.usable[0], bits, space.unpruned_size(bits)) for bits in unpruned]
        turns = allocations_in_turn(space, scanned=True)
        first += [FirstTrial(one.allocator, one.granularity, one.bits, one.size) for one in islice(turns, count)]
        return FirstTrials(first[:count], False)
    inputs = {
        granularity: AllocationInputs.of(
            subject.network,
            granularity,
            unit_importance(subject.dense, subject.graph, granularity),
            profile,
            space.metric,
        )
        for granularity in parts_in(space.usable)
    }
    projector = Projector(space, inputs)
    found = [
        FirstTrial(point.allocator, point.granularity, point.bits, cost.of(space.metric))
        for point in islice(initial_points(projector), count)
        for cost in [projector.project(point.params).cost]
    ]
    return FirstTrials(found, True)
