"""Tables of a study: trials, front, finals, baselines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import pandas as pd

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


def plain_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON-able dicts; missing values are None."""
    return [
        {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
        for row in table.to_dict("records")
    ]
