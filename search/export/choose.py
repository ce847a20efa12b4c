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
        runs: how many full-length runs it is the median of.
    """

    name: str
    origin: Mapping[str, Any]
    policy: PruningPolicy
    trial: TrialRecord | None
    final: FinalRecord | None
    runs: int = 0

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
    record = view.state.records[number]
    digest = record.policy.digest
    final = view.state.final(digest)
    runs = view.state.scores[digest].n if final else 0
    return Chosen(f"trial {number}", {"trial": number}, record.policy, record, final, runs)


def _chosen_baseline(view: StudyView, name: str) -> Chosen:
    if name not in BASELINES:
        raise UsageError(unknown("baseline", name, BASELINES))
    comparison = view.state.comparison or read_comparison(view.folder)  # which refuses a damaged one
    of_rule = [one.digest for one in comparison.static if one.rule == name] if comparison else []
    tuned = [view.state.scores[digest] for digest in of_rule if digest in view.state.scores]
    digest = max(tuned, key=lambda score: (score.n, score.final_accuracy)).digest if tuned else None
    final = None if digest is None else view.state.final(digest)
    if digest is None or final is None:
        raise GoalMissed(
            f"study {view.folder.name!r} has no complete finals of baseline {name!r}: only the best static rule at a "
            f"finalist's size has them; `prunefront finals {view.folder.name} --comparison full` adds those that reach "
            "the limit"
        )
    return Chosen(f"baseline {name}", {"baseline": name}, final.policy, None, final, view.state.scores[digest].n)


def _number_of(view: StudyView, choice: str) -> int:
    state = view.state
    if choice in CHOICES:
        front = not_dead_at_last(state.front, state.chance)
        number = {
            "best": lambda: state.best,
            "knee": lambda: knee_trial(front),
            "smallest": lambda: smallest_trial(front),
        }[choice]()
        if number is None and (state.dead_within(state.max_size) or state.front_length):
            raise GoalMissed(
                f"study {view.folder.name!r} has only dead networks, no more accurate than chance: give it more "
                "--trials or a larger limit, or name one by its number"
            )
        if number is None:
            raise GoalMissed(f"study {view.folder.name!r} has no feasible trial: give it more --trials")
        return number
    complete = [number for number, record in sorted(state.records.items()) if record.result.state == COMPLETE]
    if not re.fullmatch(r"-?[0-9]{1,9}", choice):
        raise UsageError(f"--trial takes {', '.join(CHOICES)}, a trial's number or {BASELINE}NAME, got {choice!r}")
    if int(choice) not in complete:
        near = min(complete, key=lambda n: abs(n - int(choice)), default=None)
        remedy = "it has none yet: give it more --trials" if near is None else f"the nearest is {near}"
        raise UsageError(f"trial {choice} is not a complete trial of study {view.folder.name!r}; {remedy}")
    return int(choice)
