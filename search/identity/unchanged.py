"""Whether a study is still what it was when its results were recorded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pruning.importance.own_criteria import own_function
from search.identity.study_identity import CRITERION, in_todays_words, latency_device, study_identity
from search.progress import ProgressReporter
from search.store.folder import StudyFolder
from search.store.study_record import LATENCY_DEVICE, of_split, refuse_changes
from search.training.dense_model import DenseModel, build_model, dense_model
from search.training.fingerprint import SplitFingerprints, model_fingerprint
from search.workloads.base import Workload, placed

TOLERANCE_EXAMPLES = 1.0
"""How many validation examples may be classified differently on another CPU."""
TOLERANCE_SHARE = 0.002
"""And which share of them on another kind of device, whose convolutions may round to TF32."""
TOLERANCE_UNKNOWN = 0.005
"""The share in place of one example where only the user's own `evaluate` knows how many there are."""


def refuse_changed_study(folder: StudyFolder, workload: Workload, watcher: ProgressReporter) -> None:
    """Refuse a study whose model, data, recipe, objectives or code changed, without training anything.

    The dense model is compared only if it is available without training: the user's weights, the model as built, or a
    cached one.

    Raises:
        UsageError: names every difference, as on resuming the study.
    """
    record, config = folder.read_record(), folder.config
    cache = folder.root / "cache"
    workload = placed(workload, replace(workload.placement, precision=config.precision))  # one of its own is cached
    dense = dense_model(workload, config.dense_seed, cache, config.weights, ProgressReporter(), train=False)
    if dense is None:
        model = build_model(workload, config.dense_seed)
        data = SplitFingerprints(workload)
        weights = record["identity"].get("dense model")
        dense = DenseModel(model, model_fingerprint(model), data, weights, math.nan, 0.0, workload)
    refuse_changes_of(record, folder, workload, dense, watcher)


def refuse_changes_of(
    record: Mapping[str, Any], folder: StudyFolder, workload: Workload, dense: DenseModel, watcher: ProgressReporter
) -> dict[str, Any]:
    """The study's identity; a `UsageError` if it is not the recorded one.

    The device that latency is measured on is left to `refuse_other_latency_device`. The test split may change as long
    as no final run has been scored on it. The code of the user's own criterion is compared if it is registered.
    """
    config, stored = folder.config, dict(record["identity"])
    device = {LATENCY_DEVICE: stored.pop(LATENCY_DEVICE)} if LATENCY_DEVICE in stored else {}
    code = stored.pop(CRITERION, None) if not _is_here(config.criterion) else None
    config = config.model_copy(update={"criterion": "magnitude-l2"}) if code else config
    identity = study_identity(config, workload, dense)
    before = in_todays_words(stored, config, workload, dense)
    if (test := of_split("test")) in before and before[test] != identity[test] and not folder.journal.finals():
        watcher.note("the test split is not the one the study began with: no result depends on it so far")
        before[test] = identity[test]
    refuse_changes(before, identity, folder.name, folder.untried)
    return identity | device | ({CRITERION: code} if code else {})


def refuse_other_latency_device(record: Mapping[str, Any], folder: StudyFolder, workload: Workload) -> dict[str, str]:
    """The part of an identity that is about latency; a `UsageError` where a study of an earlier version, which kept no
    table, is on another device.

    Exports of a study do not ask: they time nothing.
    """
    now = latency_device(folder.config, workload.placement)
    before = {key: value for key, value in record["identity"].items() if key == LATENCY_DEVICE}
    if before and folder.latency.exists():
        return before
    refuse_changes(before, now if before else {}, folder.name, folder.untried)
    return now


def _is_here(criterion: str) -> bool:
    try:
        own_function(criterion)
    except ValueError:
        return False
    return True


def as_recorded(found: float, recorded: float, workload: Workload, away: bool = False) -> bool:
    """Whether two accuracies on validation data differ by rounding alone; `away` says that one of them was not found on
    a CPU.
    """
    examples = workload.examples("validation").counted() if workload.reads("validation") else None
    own = TOLERANCE_UNKNOWN if examples is None else TOLERANCE_EXAMPLES / examples
    share = max(own, TOLERANCE_SHARE if away else 0.0)
    return abs(found - recorded) <= share + 1e-9
