"""The network of a trial as it is exported: the kept weights, or its fine-tune repeated."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from pruning.channels.structure import Structure
from pruning.importance.own_criteria import own_function
from search.config import SearchConfig
from search.errors import GoalMissed, Refused, UsageError
from search.export.choose import Chosen
from search.given_workload import lives_in_python
from search.identity.recorded_recipe import with_study_recipe
from search.identity.unchanged import as_recorded, refuse_changed_study, refuse_changes_of
from search.placement import placement_of
from search.progress import ProgressReporter
from search.records import TrialResult
from search.results.view import StudyView
from search.training.checkpoints import load_model
from search.training.dense_model import build_model, dense_model
from search.training.evaluate import Evaluation, PreparedModel, evaluate_policy
from search.training.fingerprint import criterion_fingerprint
from search.training.former_fingerprints import old_criterion_fingerprint
from search.training.scoring import score
from search.training.train import FINE_TUNE
from search.user_code.loading import named_criterion
from search.workloads import Workload, get_workload
from search.workloads.base import placed, with_dense_value
from search.workloads.run import FINAL, TRIAL
from spaces.policy import PruningPolicy


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


def take_criterion(view: StudyView, spec: str) -> None:
    """Run the user's code behind the study's criterion, which repeating a fine-tune needs.

    Raises:
        UsageError: it is another criterion than the study's, or its code has changed since the study began.
    """
    word, own = named_criterion(spec), view.config.criterion
    if word != own:
        raise UsageError(
            f"--criterion {spec!r} is not the criterion {own!r} that study {view.folder.name!r} was begun with: "
            "leave it out, or name the same function"
        )
    recorded = view.folder.read_record()["identity"].get("criterion", [])
    if recorded not in (criterion_fingerprint(word), old_criterion_fingerprint(word)):
        raise UsageError(
            f"the code of criterion {word!r} has changed since study {view.folder.name!r} was begun: "
            "export with the code it was begun with"
        )


def with_workload(view: StudyView, spec: str) -> StudyView:
    """The study with the name by which a workload that was given in Python is found; fingerprints tell whether it is
    the same.

    Raises:
        UsageError: the study has a workload with a name, and another one.
    """
    named, own = view.config.model_copy(update={"workload": SearchConfig(workload=spec).workload}), view.config.workload
    if not lives_in_python(own) and named.workload != own:
        raise UsageError(
            f"--workload {spec!r} is not the workload {own!r} that study {view.folder.name!r} was begun with: leave it "
            "out"
        )
    return replace(view, config=named)


def export_of_trial(
    view: StudyView,
    chosen: Chosen,
    watcher: ProgressReporter,
    check: Callable[[Workload], None] = lambda _: None,
) -> tuple[Export, Workload, SearchConfig]:
    """The network chosen: of a finalist or baseline its full-length run of median validation accuracy.

    Weights kept by the study are loaded; without them the fine-tune is repeated, where the study runs, and said so.
    The network is on the CPU, whatever trained it.

    Args:
        check: refuses a workload before anything is computed.

    Raises:
        UsageError: the study's model, data, recipe or code changed, as when it is resumed.
        Refused: weights that do not have the accuracy recorded of them.
        UsageError: repeating needs a criterion of the user's own whose code is not here.
        GoalMissed: the repeated fine-tune failed.
    """
    folder, config, unit = view.folder, view.config, view.state.unit
    workload = get_workload(config.workload, **config.factory_options, cache=str(folder.root / "cache"))
    workload = with_study_recipe(workload, config, folder.read_record()["identity"])
    workload = with_dense_value(workload, unit)
    check(workload)
    refuse_changed_study(folder, workload, watcher)
    if made := _kept(view, chosen, workload):
        return made, workload, config
    _require_code(view, chosen)
    watcher.note(f"{chosen.name} kept no weights: repeating its fine-tune")
    recipe, final = workload.recipe, chosen.final
    epochs, seed = (recipe.final_epochs, final.seed) if final else (recipe.trial_epochs, config.seed)
    placement = placement_of(config.device, config.precision, config.deterministic, config.threads)
    with placement.running():
        there = placed(workload, placement)
        dense = dense_model(there, config.dense_seed, folder.root / "cache", config.weights, watcher)
        refuse_changes_of(folder.read_record(), folder, there, dense, watcher)
        there = with_dense_value(dense.workload, unit)
        prepared = PreparedModel.of(there, dense.model, config.round_to)
        evaluation = fine_tuned(prepared, chosen.policy, epochs, seed, watcher, stage=FINAL if final else TRIAL)
    found, recorded = evaluation.result.measured.accuracy, chosen.result.measured.accuracy
    if not as_recorded(found, recorded, workload, chosen.result.device is not None):
        watcher.note(
            f"the repeated fine-tune has validation {unit.name} {unit.told(found)}, the study recorded "
            f"{unit.told(recorded)}: another machine, or other versions or threads, round differently"
        )
    return _made(view, chosen, *moved_to_cpu(evaluation, workload), seed), workload, config


def moved_to_cpu(evaluation: Evaluation, workload: Workload) -> tuple[nn.Module, Structure, TrialResult]:
    """Network, structure and result of an evaluation as they are exported; the network is moved in place.

    What was scored on another device is scored again.
    """
    model, structure = evaluation.network
    return model.to("cpu"), structure, _scored_on_cpu(model, evaluation.result, workload)


def _scored_on_cpu(model: nn.Module, result: TrialResult, workload: Workload) -> TrialResult:
    if result.device is None:
        return result
    scores = score(model, "validation", workload)
    return replace(result, accuracy=scores.accuracy, loss=scores.loss)


def _kept(view: StudyView, chosen: Chosen, workload: Workload) -> Export | None:
    """The export from weights in the study's folder: of the full-length run if there was one, else of the trial."""
    folder, config, final, trial, result = view.folder, view.config, chosen.final, chosen.trial, chosen.result
    if final is not None:
        path, tested, seed = folder.final_weights(final.digest, final.seed), final.test_accuracy, final.seed
    elif trial is not None:
        path, tested, seed = folder.trial_weights(trial.number), None, config.seed
    else:
        return None
    if not path.is_file():
        return None
    try:
        model, structure = load_model(build_model(workload, config.dense_seed), path)
    except Refused as error:
        raise Refused(f"{error}; delete them, and the export repeats the fine-tune") from None
    found, recorded = score(model, "validation", workload).accuracy, result.measured.accuracy
    if not as_recorded(found, recorded, workload, result.device is not None):
        unit = view.state.unit
        raise Refused(
            f"the weights {path} have validation {unit.name} {unit.told(found)}, and the study recorded "
            f"{unit.told(recorded)}: they are not what was measured; delete them, and the export repeats the fine-tune"
        )
    return _made(view, chosen, model, structure, _scored_on_cpu(model, result, workload), seed, tested)


def _made(
    view: StudyView,
    chosen: Chosen,
    model: nn.Module,
    structure: Structure,
    result: TrialResult,
    seed: int,
    tested: float | None = None,
) -> Export:
    config, origin = view.config, {"study": view.folder.name, **chosen.origin, "seed": seed}
    return Export(chosen.policy, model, structure, result, tested, (config.max_size, config.size_metric), origin)


def _require_code(view: StudyView, chosen: Chosen) -> None:
    try:
        own_function(chosen.policy.criterion)
    except ValueError:
        place = view.criterion_place or "./file.py:function"
        raise UsageError(
            f"{chosen.name} kept no weights, and repeating its fine-tune needs the code of criterion "
            f"{chosen.policy.criterion!r}: name it with --criterion {shlex.quote(place)}"
        ) from None


def fine_tuned(
    prepared: PreparedModel,
    policy: PruningPolicy,
    epochs: float,
    seed: int,
    watcher: ProgressReporter,
    training: str = FINE_TUNE,
    stage: str = FINAL,
) -> Evaluation:
    """An evaluation that must succeed.

    Raises:
        GoalMissed: the fine-tune failed; its reason.
    """
    stage = "fine-tuning" if training == FINE_TUNE else f"training from fresh weights ({training})"
    with watcher.stage(stage) as progress:
        evaluation = evaluate_policy(prepared, policy, epochs, seed, progress, training, stage=stage)
    if evaluation.model is None:
        raise GoalMissed(f"the fine-tune failed: {evaluation.result.reason}")
    return evaluation
