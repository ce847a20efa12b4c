"""Which trials of a study stand out: its front, the best, the smallest, the knee, the finalists."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from search.proposals.hypervolume import non_dominated
from search.records import COMPLETE
from search.results.tables import FRONT_COLUMNS


def front_of(table: pd.DataFrame, max_size: float, speed: str = "macs", chance: float | None = None) -> pd.DataFrame:
    """The non-dominated complete trials within `max_size`: accuracy up, size and `speed` (a column) down.

    Trials no more accurate than `chance`, which know nothing of the task, are none of them.

    Equal points stay together; rows by falling accuracy, then rising size; `FRONT_COLUMNS`.
    """
    rows = table[(table["state"] == COMPLETE)]
    rows = rows[np.array([size is not None and size <= max_size for size in rows["size"]], dtype=bool)]
    rows = rows[np.array([not is_dead(accuracy, chance) for accuracy in rows["accuracy"]], dtype=bool)]
    if len(rows):
        points = np.stack([-rows["accuracy"].astype(float), rows["size"].astype(float), rows[speed].astype(float)], 1)
        rows = rows[non_dominated(points)]
        rows = rows.sort_values(["accuracy", "size", "trial"], ascending=[False, True, True])
    return rows[list(FRONT_COLUMNS)].reset_index(drop=True)


def is_dead(accuracy: float | None, chance: float | None) -> bool:
    """Whether a network of this accuracy knows nothing of its task; never where chance is unknown."""
    return chance is not None and accuracy is not None and accuracy <= chance


def not_dead_at_last(trials: pd.DataFrame, chance: float | None) -> pd.DataFrame:
    """The trials that are not dead after their finals; those without finals are among them."""
    return trials[np.array([not is_dead(final, chance) for final in trials["final_accuracy"]], dtype=bool)]


def dead_within(trials: pd.DataFrame, max_size: float, chance: float | None) -> int:
    """How many complete trials within `max_size` are dead."""
    complete = trials[trials["state"] == COMPLETE]
    return sum(
        size <= max_size and is_dead(accuracy, chance)
        for size, accuracy in zip(complete["size"], complete["accuracy"], strict=True)
    )


def best_trial(
    front: pd.DataFrame,
    trials: pd.DataFrame | None = None,
    max_size: float = 1.0,
    least_accuracy: float | None = None,
    chance: float | None = None,
) -> int | None:
    """The trial of highest `final_accuracy`; without finals, of highest accuracy on the front. None if empty.

    Trials whose finals are dead are left out, see `not_dead_at_last`.

    Args:
        trials: all trials; a finalist that a later trial pushed off the front can still be the best within
            `max_size`.
        least_accuracy: if asked for, the smallest trial at least this accurate; the most accurate if none is.
    """
    front = not_dead_at_last(front, chance)
    if front.empty:
        return None
    tuned = front if trials is None else trials[trials["state"] == COMPLETE]
    tuned = tuned[[f is not None and f == f for f in tuned["final_accuracy"]]]
    tuned = not_dead_at_last(tuned, chance)
    tuned = tuned[[size <= max_size for size in tuned["size"]]]
    candidates, key = (front, "accuracy") if tuned.empty else (tuned, "final_accuracy")
    accurate = candidates[candidates[key].astype(float) >= (2.0 if least_accuracy is None else least_accuracy)]
    if not accurate.empty:
        return smallest_trial(accurate)
    return int(candidates.loc[candidates[key].astype(float).idxmax(), "trial"])


def finalists_of(front: pd.DataFrame, count: int, least_accuracy: float | None = None) -> list[int]:
    """Trials to fine-tune at full length: the most accurate of the front, by falling accuracy.

    With `least_accuracy` the smallest at least that accurate; the most accurate if none is.
    """
    accurate = front[front["accuracy"].astype(float) >= (2.0 if least_accuracy is None else least_accuracy)]
    chosen = front if accurate.empty else accurate.sort_values("size", kind="stable")
    return [int(number) for number in chosen["trial"][:count]]


def smallest_trial(front: pd.DataFrame) -> int | None:
    """The smallest trial on the front; None if empty."""
    return None if front.empty else int(front.loc[front["size"].astype(float).idxmin(), "trial"])


def knee_trial(front: pd.DataFrame) -> int | None:
    """The front's knee in (log size, accuracy); None if empty.

    The point farthest above the straight line between the smallest and the most accurate one, both axes
    scaled to [0, 1]; with fewer than three distinct points the most accurate.
    """
    if front.empty:
        return None
    sizes = np.array([math.log(size) for size in front["size"]])
    accuracies = front["accuracy"].astype(float).to_numpy()
    low, high = int(np.argmin(sizes)), int(np.argmax(accuracies))
    width, height = sizes[high] - sizes[low], accuracies[high] - accuracies[low]
    if width <= 0 or height <= 0:
        return int(front.loc[high, "trial"])
    above = (accuracies - accuracies[low]) / height - (sizes - sizes[low]) / width
    return int(front.loc[int(np.argmax(above)), "trial"])
