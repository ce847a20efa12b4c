"""The sensitivity scan of a workload's dense model, kept for later studies of the same model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from pruning.analysis.sensitivity_scan import (
    BRIEF_HARM,
    BRIEF_LEVELS,
    BRIEF_PASSES,
    DEEP,
    LEAST_EXAMPLES,
    LEVELS,
    SCAN_EXAMPLES,
    Point,
    PointKey,
    known_points,
    scan_keys,
    scan_sensitivity,
)
from pruning.batchnorm import learning_norms
from pruning.calibration import SCORE_BATCH, SCORE_EXAMPLES
from search.checksum import sealed, unsealed
from search.files import read_text, write_durably
from search.metric import SHARE, Metric, told_share
from search.process.kept_work import kept_so_far
from search.training.dense_model import DenseModel
from search.training.evaluate import PreparedModel
from search.training.examples import calibration_data
from search.training.fingerprint import criterion_fingerprint, digest, training_fingerprint
from search.training.memory import within_memory
from search.training.own_scores import scored_by_user
from search.training.scan_points import KeptPoints
from search.user_code.loading import blame
from search.workloads.base import Workload
from search.workloads.tally import computed_share
from spaces.criteria import criterion_word
from spaces.printable import printable
from spaces.sensitivity import Profile, RoundingPoint

log = logging.getLogger(__name__)
NONE_KEPT = "no point of the scan is kept yet"


@dataclass(frozen=True)
class Scan:
    """What is scanned: the arguments of `scan_sensitivity` of these names."""

    criterion: str
    granularities: tuple[str, ...]
    levels: tuple[float, ...]
    bits: tuple[int, ...]
    brief: bool


Elsewhere = Callable[[Scan, Sequence[PointKey]], Iterator[tuple[PointKey, Point]]]
"""Scores points of a scan by their keys, in any order."""


def cached_profile(
    subject: PreparedModel,
    dense: DenseModel,
    criterion: str,
    granularities: Sequence[str],
    cache: Path,
    progress: Callable[[int, int], None] | None = None,
    bits: Sequence[int] = (),
    whole: bool = False,
    elsewhere: Elsewhere | None = None,
    levels: Sequence[float] | None = None,
) -> Profile:
    """The profile of this model and data from the cache, or from a scan on calibration data.

    Of networks of more than `DEEP` layers it is brief, unless it is to be `whole`, or a whole one is in the cache. A
    brief scan rounds to the fewest of the bits alone, from which the damage at others is interpolated.

    The points of a scan are kept as they are found, so an interrupted scan continues in the next call. A profile that
    lacks the rounding to some of `bits` is completed; one that has more keeps them.

    Args:
        elsewhere: scores points in other processes, each of which is kept as it comes.
        levels: rising sparsities, in place of those that searches use; such a scan is whole, and kept apart.
    """
    multiples = tuple(group.multiple for group in subject.network.groups)
    where = subject.workload, dense, criterion, granularities, cache, multiples
    path = profile_path(*where, levels=levels)
    kept = _kept_profile(path, granularities, subject.network.by_name)
    brief = kept is None and not whole and levels is None and len(subject.network.prunable) > DEEP
    if brief:
        path = profile_path(*where, brief=True)
        kept = _kept_profile(path, granularities, subject.network.by_name)
        bits = sorted(bits)[:1]
    levels = BRIEF_LEVELS if brief else LEVELS if levels is None else tuple(levels)
    if kept is not None and not kept.lacks_rounding(subject.network.by_name, bits):
        return kept
    before = known_points(kept, levels) if kept else {}
    scanned = {point.bits for point in before.values() if isinstance(point, RoundingPoint)}
    workload = subject.workload
    total = 0

    def follow(done: int, points: int) -> None:
        nonlocal total
        total = points
        if progress:
            progress(done, points)

    def say() -> str:
        known = len(before | points.known)
        return f"{known} of {total} points of the scan are kept" if known and total else NONE_KEPT

    scan = Scan(criterion, tuple(granularities), tuple(levels), tuple(sorted({*bits} | scanned)), brief)
    with KeptPoints(path) as points, kept_so_far(say):
        try:
            if elsewhere is not None:
                keys = scan_keys(subject.scored_by(criterion).graph, granularities, levels, scan.bits)
                for key, point in elsewhere(scan, [key for key in keys if key not in before | points.known]):
                    points.keep(key, point)
            profile = scanned_points(
                subject, scan, fingerprint=dense.weights, progress=follow, known=before | points.known, keep=points.keep
            )
        except BaseException as error:
            blame(error, workload.name, "the sensitivity scan")
        profile = replace(profile, seconds=points.seconds + profile.seconds + (kept.seconds if kept else 0.0))
        write_durably(path, sealed(profile.to_json()).encode())
        points.drop()
    return profile


def known_profile(
    subject: PreparedModel,
    dense: DenseModel,
    criterion: str,
    granularities: Sequence[str],
    cache: Path,
    bits: Sequence[int] = (),
) -> Profile | None:
    """The profile that `cached_profile` would take from the cache without scanning anything; None if it would scan."""
    multiples = tuple(group.multiple for group in subject.network.groups)
    layers, deep = subject.network.by_name, len(subject.network.prunable) > DEEP
    for brief in (False, True) if deep else (False,):
        path = profile_path(subject.workload, dense, criterion, granularities, cache, multiples, brief)
        kept = _kept_profile(path, granularities, layers)
        if kept is not None:
            return None if kept.lacks_rounding(layers, sorted(bits)[:1] if brief else bits) else kept
    return None


def scanned_points(subject: PreparedModel, scan: Scan, **options: Any) -> Profile:
    """Scan the dense model on calibration data; `options` are further ones of `scan_sensitivity`."""
    workload = subject.workload
    with within_memory(workload, "the sensitivity scan"):
        return scan_sensitivity(
            subject.dense,
            subject.graph,
            calibration_data(workload) if workload.has("calibration") else None,
            workload.loss,
            computed_share(workload.metric),
            granularities=scan.granularities,
            criterion=scan.criterion,
            levels=scan.levels,
            bits=scan.bits,
            score=_by_user(workload) if workload.evaluate else None,
            brief=scan.brief,
            **options,
        )


def _by_user(workload: Workload) -> Callable[[nn.Module], tuple[float, float]]:
    """Loss and share of a network by the workload's own `evaluate` on calibration data."""

    def score(network: nn.Module) -> tuple[float, float]:
        found = scored_by_user(network, "calibration", workload)
        return found.loss, found.accuracy

    return score


def _kept_profile(path: Path, granularities: Sequence[str], layers: Collection[str]) -> Profile | None:
    if not path.is_file():
        return None
    try:
        kept = Profile.from_json(unsealed(read_text(path)))
        kept.require(granularities, layers)
        return kept
    except (ValueError, OSError) as error:
        log.warning("%s: %s", path.name, printable(error))
        return None


def brief_note(profile: Profile) -> str | None:
    """What the user should know of a brief scan."""
    if not profile.brief:
        return None
    examples = f", {profile.examples} examples" if profile.examples else ""
    return (
        f"brief scan of a network of more than {DEEP} layers: {len(BRIEF_LEVELS)} levels of {len(LEVELS)}"
        f"{examples}; prunefront scan --whole makes the whole one, which searches of the same granularities then use"
    )


def recalibration_note(profile: Profile, unit: Metric = SHARE) -> str | None:
    """What the user should know, in the metric's unit, if a profile had too few examples to recalibrate BatchNorm."""
    if not profile.too_few:
        return None
    note = f"BatchNorm is not recalibrated in the scan: {profile.examples} calibration examples are too few"
    if profile.dense_recalibrated_accuracy is None:
        return note
    shares = profile.dense_accuracy, profile.dense_recalibrated_accuracy
    dense, again = (told_share(unit, share, digits=1) for share in shares)
    return f"{note}, over which it takes the unpruned network from {dense} to {again}"


def profile_path(
    workload: Workload,
    dense: DenseModel,
    criterion: str,
    granularities: Sequence[str],
    cache: Path,
    multiples: Sequence[int] = (),
    brief: bool = False,
    levels: Sequence[float] | None = None,
) -> Path:
    """Where the profile of this model is kept; `multiples` are those that the channel groups keep, `levels` those of
    `cached_profile`."""
    scoring = [SCORE_EXAMPLES, SCORE_BATCH] if criterion_word(criterion).needs_data else []
    key = digest(
        dense.weights,
        dense.architecture,
        training_fingerprint(workload),
        dense.data["calibration"],
        criterion,
        sorted(granularities),
        LEVELS if levels is None else tuple(levels),
        SCAN_EXAMPLES,
        *scoring,
        *criterion_fingerprint(criterion),
        *(["dense recalibrated"] if learning_norms(dense.model) else []),
        *([list(multiples)] if any(multiple > 1 for multiple in multiples) else []),
        *(["brief", BRIEF_LEVELS, BRIEF_PASSES, LEAST_EXAMPLES, BRIEF_HARM] if brief else []),
    )
    return cache / f"profile-{key}.json"
