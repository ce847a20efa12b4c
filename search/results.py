"""Tables of a study: trials, front, finals, baselines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pandas as pd

from search.proposals.hypervolume import non_dominated
from search.records import COMPLETE, FinalRecord, TrialRecord

FRONT_COLUMNS = (
    "trial", "accuracy", "final_accuracy", "test_accuracy", "test_sd", "size", "size_nonzero", "size_encoded",
    "macs", "latency", "granularity", "schedule", "exponent", "criterion", "origin", "digest", "sparsity", "removal",
)  # fmt: skip
TRIAL_COLUMNS = (*FRONT_COLUMNS, "state", "reason", "cause", "rung", "started", "finished")


@dataclass(frozen=True)
class FinalScore:
    """Fine-tunes of full length of one policy: means over `n` seeds; sd is None for one seed.

    Attributes:
        failed: further seeds whose fine-tune failed, and that the means know nothing of.
        best_seed: the seed of median validation accuracy (the lower one of two), which an export ships.
    """

    digest: str
    n: int
    final_accuracy: float
    final_sd: float | None
    test_accuracy: float
    test_sd: float | None
    size_encoded: float
    size_nonzero: float
    macs: float
    best_seed: int
    failed: int = 0


def score_finals(finals: Sequence[FinalRecord], seeds: int) -> dict[str, FinalScore]:
    """Policy digest -> scores, for policies whose `seeds` fine-tunes are all there, and not all failed."""
    by_digest: dict[str, list[FinalRecord]] = {}
    for final in finals:
        by_digest.setdefault(final.digest, []).append(final)
    whole = {digest: runs for digest, runs in by_digest.items() if len(runs) >= seeds}
    complete = {digest: [run for run in runs if run.result.state == COMPLETE] for digest, runs in whole.items()}
    return {digest: _score(runs, len(whole[digest]) - len(runs)) for digest, runs in complete.items() if runs}


def _score(runs: Sequence[FinalRecord], failed: int) -> FinalScore:
    ordered = sorted(runs, key=lambda run: (run.result.accuracy, run.seed))
    validation = [run.result.accuracy for run in runs]
    tests = [run.test_accuracy for run in runs]
    median = ordered[(len(ordered) - 1) // 2]
    return FinalScore(
        digest=median.digest,
        n=len(runs),
        final_accuracy=fmean(validation),
        final_sd=stdev(validation) if len(runs) > 1 else None,
        test_accuracy=fmean(tests),
        test_sd=stdev(tests) if len(runs) > 1 else None,
        size_encoded=max(run.result.shares.encoded for run in runs),
        size_nonzero=max(run.result.shares.nonzero for run in runs),
        macs=median.result.shares.macs,
        best_seed=median.seed,
        failed=failed,
    )


def trial_table(
    trials: Sequence[TrialRecord], finals: Mapping[str, FinalScore], metric: str = "encoded"
) -> pd.DataFrame:
    """One row a finished trial, `TRIAL_COLUMNS`, by number; unmeasured values are None."""
    rows = []
    for trial in trials:
        result, policy = trial.result, trial.policy
        final, shares = finals.get(policy.digest), result.shares
        row: dict[str, Any] = dict.fromkeys(TRIAL_COLUMNS)
        row |= {
            "trial": trial.number,
            "accuracy": result.accuracy,
            "granularity": policy.granularity_label,
            "schedule": policy.schedule.kind,
            "exponent": None if "exponent" in policy.schedule.idle else policy.schedule.exponent,
            "criterion": policy.criterion,
            "origin": trial.origin,
            "latency": trial.latency,
            "digest": policy.digest,
            "sparsity": dict(policy.sparsity),
            "removal": dict(policy.removal),
            "state": result.state,
            "reason": result.reason,
            "cause": result.cause,
            "started": trial.started,
            "finished": trial.finished,
        }
        if shares:
            row |= {
                "size": shares.of(metric), "size_nonzero": shares.nonzero,
                "size_encoded": shares.encoded, "macs": shares.macs,
            }  # fmt: skip
        if final:
            row |= {
                "final_accuracy": final.final_accuracy, "test_accuracy": final.test_accuracy, "test_sd": final.test_sd,
            }  # fmt: skip
        rows.append(row)
    return pd.DataFrame(rows, columns=list(TRIAL_COLUMNS), dtype=object)


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


def plain_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON-able dicts; missing values are None."""
    return [
        {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
        for row in table.to_dict("records")
    ]
