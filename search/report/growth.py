"""How a study's front grew, trial by trial."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from search.proposals.hypervolume import hypervolume
from search.records import TrialRecord
from search.results.front import Front
from search.results.state import StudyState
from spaces.allocation.allocators import ALLOCATORS
from spaces.search_space.initial import UNPRUNED

PARTS = (1.0, 0.5, 0.25)
"""Parts of the limit within which the most accurate network is followed."""
MOST_STEPS = 200
"""Numbers of trials at which the volume is measured; of longer studies it is not after every trial."""
WORST_COST, BEYOND_LIMIT = 1.05, 1.1
"""The reference point of the volume, over the dense model's cost and over the limit."""


@dataclass(frozen=True)
class Growth:
    """What was known after so many finished trials.

    Attributes:
        finished: numbers of trials, rising.
        volume: dominated by the front then, a share of the last one's; 0 before there is one.
        best: part of the limit -> accuracy of the most accurate feasible network within it; NaN while there is none.
        initial: how many of all finished trials were known allocations, not proposals.
    """

    finished: tuple[int, ...]
    volume: tuple[float, ...]
    best: Mapping[float, tuple[float, ...]]
    initial: int


def growth_of(state: StudyState) -> Growth | None:
    """By the time at which trials finished; None before the front has a member.

    Volume is in error, logarithm of size, and cost, below a reference a little beyond the limit and the dense model's
    cost, at an error halfway from the dense model's to 1.
    """
    config = state.config
    records = sorted(state.records.values(), key=lambda record: (record.finished, record.number))
    if not state.front_length:
        return None
    front = Front(state.max_size, config.size_metric, config.cost, state.chance)
    points: dict[int, tuple[float, float, float]] = {}
    best = dict.fromkeys(PARTS, math.nan)
    step = -(-len(records) // MOST_STEPS)
    seen: list[tuple[int, np.ndarray, dict[float, float]]] = []
    for count, record in enumerate(records, start=1):
        if record.number not in front.add(record):
            points[record.number] = _point(record, config.size_metric, config.cost)
            error, size, _ = points[record.number]
            for part in PARTS:
                if size <= part * state.max_size:
                    best[part] = float(np.fmax(best[part], 1 - error))
        if count % step == 0 or count == len(records):
            members = np.array([points[number] for number in front.numbers]).reshape(-1, 3)
            seen.append((count, members, dict(best)))
    volumes = _volumes([members for _, members, _ in seen], state)
    return Growth(
        finished=tuple(count for count, *_ in seen),
        volume=tuple(volumes),
        best={part: tuple(now[part] for *_, now in seen) for part in PARTS},
        initial=sum(is_initial(record) for record in records),
    )


def is_initial(record: TrialRecord) -> bool:
    """Whether a trial was a known allocation that the study began with."""
    return record.origin == UNPRUNED or record.origin in ALLOCATORS


def _point(record: TrialRecord, metric: str, cost: str) -> tuple[float, float, float]:
    accuracy, _, shares = record.result.measured
    return 1 - accuracy, shares.of(metric), shares.macs if cost == "macs" or record.latency is None else record.latency


def _volumes(fronts: Sequence[np.ndarray], state: StudyState) -> list[float]:
    dense_error = 0.0 if state.dense_accuracy is None else 1 - state.dense_accuracy
    reference = np.array([(1 + dense_error) / 2, math.log(state.max_size * BEYOND_LIMIT), WORST_COST])
    volumes = [hypervolume(np.column_stack([f[:, 0], np.log(f[:, 1]), f[:, 2]]), reference) for f in fronts]
    return [volume / volumes[-1] if volumes[-1] else 0.0 for volume in volumes]
