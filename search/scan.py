"""The sensitivity scan of a workload's dense model, kept for later studies of the same model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from pruning.calibration import SCORE_BATCH, SCORE_EXAMPLES
from pruning.scan import LEVELS, SCAN_EXAMPLES, scan_sensitivity
from search.dense import DenseModel
from search.evaluate import Subject
from search.fingerprint import criterion_fingerprint, digest, training_fingerprint
from search.journal import write_durably
from search.reading import read_text
from search.seal import sealed, unsealed
from search.user_code import blame
from search.workloads.base import Workload
from spaces.criteria import criterion_word
from spaces.printable import printable
from spaces.profile import Profile

log = logging.getLogger(__name__)


def cached_profile(
    subject: Subject,
    dense: DenseModel,
    criterion: str,
    granularities: Sequence[str],
    cache: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Profile:
    """The profile of this model and data from the cache, or a new scan on calibration data."""
    multiples = tuple(group.multiple for group in subject.network.groups)
    path = profile_path(subject.workload, dense, criterion, granularities, cache, multiples)
    if path.is_file():
        try:
            kept = Profile.from_json(unsealed(read_text(path)))
            kept.require(granularities, subject.network.by_name)
            return kept
        except ValueError as error:
            log.warning("%s: %s", path.name, printable(error))
    workload = subject.workload
    try:
        profile = scan_sensitivity(
            subject.dense,
            subject.graph,
            workload.calibration,
            workload.loss,
            workload.metric,
            granularities=granularities,
            criterion=criterion,
            fingerprint=dense.weights,
            progress=progress,
        )
    except BaseException as error:
        blame(error, workload.name, "the sensitivity scan")
    write_durably(path, sealed(profile.to_json()).encode())
    return profile


def profile_path(
    workload: Workload,
    dense: DenseModel,
    criterion: str,
    granularities: Sequence[str],
    cache: Path,
    multiples: Sequence[int] = (),
) -> Path:
    """Where the profile of this model is kept; `multiples` are those the channel groups keep to."""
    scoring = [SCORE_EXAMPLES, SCORE_BATCH] if criterion_word(criterion).needs_data else []
    key = digest(
        dense.weights,
        dense.architecture,
        training_fingerprint(workload),
        dense.data["calibration"],
        criterion,
        sorted(granularities),
        LEVELS,
        SCAN_EXAMPLES,
        *scoring,
        *criterion_fingerprint(criterion),
        *([list(multiples)] if any(multiple > 1 for multiple in multiples) else []),
    )
    return cache / f"profile-{key}.json"
