"""Repeating a proposal from a study's records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search.knew import Knew
from search.proposals.optuna_study import OptunaStudy
from search.records import PendingTrial, TrialRecord


def replay(study: OptunaStudy, number: int, trials: Mapping[int, TrialRecord | PendingTrial]) -> dict[str, Any]:
    """The parameters that are proposed as trial `number` when just what it knew is known.

    Args:
        study: without a trial yet, of the study's sampler, seed, axes and objectives, with a guide that has learnt
            nothing; it is filled.
        trials: by number, `number` itself and at least those that it knew.

    Raises:
        ValueError: one of these is lacking, or has no result where it had one.
    """
    knew = trials[number].knew or Knew.of_one_worker(number)
    known = 0
    for other, trial in sorted(trials.items()):
        if other in knew.running:
            study.begin(trial)
        elif other in knew.finished and isinstance(trial, TrialRecord):
            study.add(trial)
        else:
            continue
        known += 1
    if known < len(knew.running) + len(knew.finished) or study.next_number != number:
        raise ValueError(f"trial {number} knew {len(knew.running) + len(knew.finished)} trials, and {known} are there")
    proposed = study.ask()
    for axis in study.axes:
        axis.suggest(proposed)
    return dict(proposed.params)
