"""What of a study is exported: a trial or a static baseline, and the run of it that is shipped."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from search.errors import GoalMissed, UsageError
from search.records import COMPLETE, FinalRecord, TrialRecord, TrialResult
from search.results.comparison import BASELINES, read_comparison
from search.results.selection import knee_trial, not_dead_at_last, smallest_trial
from search.results.view import StudyView
from spaces.policy import PruningPolicy
from spaces.validation import unknown

CHOICES = ("best", "knee", "smallest")
BASELINE = "baseline:"
"""What the choice of a static baseline begins with."""


@dataclass(frozen=True)
class Chosen:
    """What of a study is exported.

    Attributes:
        name: as messages call it, `trial 7` or `baseline lamp`.
        origin: the same as data, `{"trial": 7}` or `{"baseline": "lamp"}`.
        trial: its record; None of a baseline.
        final: the full-length run of median validation accuracy; None without finals of this policy.
    """

    name: str
    origin: Mapping[str, Any]
    policy: PruningPolicy
    trial: TrialRecord | None
    final: FinalRecord | None

    @property
    def result(self) -> TrialResult:
        """Of the full-length run if there was one, else of the trial."""
        record = self.final or self.trial
        assert record is not None, "what is chosen is a trial, or a baseline with finals"
        return record.result


def choose_trial(view: StudyView, choice: str) -> Chosen:
    """What `best`, `knee`, `smallest`, a trial's number or `baseline:lamp` stands for.

    Raises:
        UsageError: no such word or baseline, or no complete trial of that number (the nearest is named).
        GoalMissed: no network above chance is on the front, or the baseline has no complete finals.
        Refused: the comparison that knows the baselines is damaged.
    """
    if choice.startswith(BASELINE):
        return _chosen_baseline(view, choice.removeprefix(BASELINE))
    number = _number_of(view, choice)
    record = next(trial for trial in view.folder.journal.trials() if trial.number == number)
    final = _median_final(view, record.policy.digest)
    return Chosen(f"trial {number}", {"trial": number}, record.policy, record, final)


def _chosen_baseline(view: StudyView, name: str) -> Chosen:
    if name not in BASELINES:
        raise UsageError(unknown("baseline", name, BASELINES))
    comparison = view.comparison or read_comparison(view.folder)  # which refuses a damaged one
    digest = comparison.baselines.get(name) if comparison else None
    final = None if digest is None else _median_final(view, digest)
    if final is None:
        raise GoalMissed(
            f"study {view.folder.name!r} has no complete finals of baseline {name!r}: resume it with --finalists 1 or "
            "more; a baseline that cannot reach the limit has none"
        )
    return Chosen(f"baseline {name}", {"baseline": name}, final.policy, None, final)


def _median_final(view: StudyView, digest: str) -> FinalRecord | None:
    if digest not in view.finals:
        return None
    seed = view.finals[digest].best_seed
    return next(run for run in view.folder.journal.finals() if (run.digest, run.seed) == (digest, seed))


def _number_of(view: StudyView, choice: str) -> int:
    if choice in CHOICES:
        alive = not_dead_at_last(view.front, view.chance).reset_index(drop=True)
        number = {
            "best": lambda front: view.best,
            "knee": knee_trial,
            "smallest": smallest_trial,
        }[choice](alive)
        if number is None and (view.dead or not view.front.empty):
            raise GoalMissed(
                f"study {view.folder.name!r} has only dead networks, no more accurate than chance: give it more "
                "--trials or a larger limit, or name one by its number"
            )
        if number is None:
            raise GoalMissed(f"study {view.folder.name!r} has no feasible trial: give it more --trials")
        return number
    complete = [int(n) for n in view.trials.loc[view.trials["state"] == COMPLETE, "trial"]]
    if not re.fullmatch(r"-?[0-9]{1,9}", choice):
        raise UsageError(f"--trial takes {', '.join(CHOICES)}, a trial's number or {BASELINE}NAME, got {choice!r}")
    if int(choice) not in complete:
        near = min(complete, key=lambda n: abs(n - int(choice)), default=None)
        raise UsageError(f"trial {choice} is not a complete trial of study {view.folder.name!r}; the nearest is {near}")
    return int(choice)
