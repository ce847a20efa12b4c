"""Which of a study's trials stand out: the best, the smallest, the knee."""

from __future__ import annotations

import math
from collections.abc import Sequence

from search.results.tables import TrialRow


def is_dead(accuracy: float | None, chance: float | None) -> bool:
    """Whether a network with this accuracy has learnt nothing of its task; never if chance is unknown."""
    return chance is not None and accuracy is not None and accuracy <= chance


def not_dead_at_last(rows: Sequence[TrialRow], chance: float | None) -> list[TrialRow]:
    """The trials that are not dead after their finals; those without finals are among them."""
    return [row for row in rows if not is_dead(row.final_accuracy, chance)]


def best_trial(
    front: Sequence[TrialRow], tuned: Sequence[TrialRow], least_accuracy: float | None, chance: float | None
) -> int | None:
    """The trial with the highest `final_accuracy`, of equals the smallest; without finals, the front's most accurate.

    Trials whose finals are dead are left out. None if no trial is left on the front.

    Args:
        front: by falling accuracy.
        tuned: complete trials within the limit that have finals; one that a later trial pushed off the front can still
            be the best.
        least_accuracy: if asked for, the smallest trial at least this accurate; the most accurate if none is.
    """
    front, tuned = not_dead_at_last(front, chance), not_dead_at_last(tuned, chance)
    if not front:
        return None
    candidates = [(row, row.final_accuracy) for row in tuned if row.final_accuracy is not None]
    candidates = candidates or [(row, row.point.accuracy) for row in front]
    if least_accuracy is not None:
        accurate = [row for row, accuracy in candidates if accuracy >= least_accuracy]
        if accurate:
            return smallest_trial(accurate)
    return max(candidates, key=lambda candidate: (candidate[1], -candidate[0].point.size))[0].trial


def smallest_trial(front: Sequence[TrialRow]) -> int | None:
    """The smallest trial on the front; None if it is empty."""
    return min(front, key=lambda row: row.point.size).trial if front else None


def knee_trial(front: Sequence[TrialRow]) -> int | None:
    """The knee of the front in (log size, accuracy); None if it is empty.

    It is the point farthest above the straight line between the smallest and the most accurate trial, both axes scaled
    to [0, 1]; with fewer than three distinct points it is the most accurate trial.
    """
    if not front:
        return None
    best = max(front, key=lambda row: row.point.accuracy)
    low, high = min((row.point for row in front), key=lambda point: point.size), best.point
    width, height = math.log(high.size) - math.log(low.size), high.accuracy - low.accuracy
    if width <= 0 or height <= 0:
        return best.trial

    def above(row: TrialRow) -> float:
        size, accuracy = row.point
        return (accuracy - low.accuracy) / height - (math.log(size) - math.log(low.size)) / width

    return max(front, key=above).trial
