"""What of a study is exported: a trial or a static baseline, and the run of it that is shipped."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search.errors import GoalMissed, UsageError
from search.records import COMPLETE, FinalRecord, TrialRecord, TrialResult
from search.results.comparison import BASELINES, read_comparison
from search.results.remarks import trial_of
from search.results.selection import knee_trial, not_dead_at_last, smallest_trial
from search.results.static_rows import BASELINE, StaticRow, static_rows
from search.results.view import StudyView
from spaces.policy import PruningPolicy
from spaces.validation import unknown
from spaces.wording import counted, listed

CHOICES = ("best", "knee", "smallest")


@dataclass(frozen=True)
class Chosen:
    """What of a study is exported.

    Attributes:
        name: as messages call it, `trial 7` or `baseline lamp for trial 14`.
        origin: the same as data, `{"trial": 7}` or `{"baseline": "lamp", "for_trial": 14}`.
        trial: its record; None of a baseline.
        final: the full-length run of median validation accuracy; None without finals of this policy.
        runs: how many full-length runs it is the median of.
        remark: what else the choice could have meant, and how that is named; empty if nothing.
    """

    name: str
    origin: Mapping[str, Any]
    policy: PruningPolicy
    trial: TrialRecord | None
    final: FinalRecord | None
    runs: int = 0
    remark: str = ""

    @property
    def result(self) -> TrialResult:
        """Of the full-length run if there was one, else of the trial."""
        record = self.final or self.trial
        assert record is not None, "what is chosen is a trial, or a baseline with finals"
        return record.result


def choose_trial(view: StudyView, choice: str) -> Chosen:
    """What `best`, `knee`, `smallest`, a trial's number or a static baseline stands for.

    A baseline is `baseline:lamp@14`, the best static rule at the size of trial 14, or `baseline:uniform@limit`; the
    closing table's own words, `lamp for trial 14`, are the same. `baseline:lamp` is the one of that rule that has the
    most finals, of equals the one of highest `final_accuracy`; its `remark` says so where there are others.

    Raises:
        UsageError: no such word or baseline (those that there are are told), or no complete trial of that number (the
            nearest is named).
        GoalMissed: no network above chance is on the front, or the baseline has no complete finals.
        Refused: the comparison that knows the baselines is damaged.
    """
    words = choice.removeprefix(BASELINE)
    if words != choice or words.startswith(tuple(f"{rule} " for rule in BASELINES)):
        return _chosen_baseline(view, words)
    number = _number_of(view, choice.removeprefix("trial "))
    record = view.state.records[number]
    digest = record.policy.digest
    final = view.state.final(digest)
    runs = view.state.scores[digest].n if final else 0
    return Chosen(f"trial {number}", {"trial": number}, record.policy, record, final, runs)


def _chosen_baseline(view: StudyView, words: str) -> Chosen:
    rule = re.split("[ @]", words, maxsplit=1)[0]
    if rule not in BASELINES:
        raise UsageError(unknown("baseline", rule, BASELINES))
    comparison = view.state.comparison or read_comparison(view.folder)  # which refuses a damaged one
    rows, scores = static_rows(comparison, trial_of(view.state)) if comparison else [], view.state.scores
    there = [row for row in rows if row.digest in scores]
    asked = [row for row in rows if words in (row.rule, row.name, row.short_name)]
    if there and words != rule and not asked:
        raise UsageError(unknown("baseline", words, [row.short_name for row in there]))
    tuned = [row for row in asked if row.digest in scores]
    row = max(tuned, key=lambda one: (scores[one.digest].n, scores[one.digest].final_accuracy), default=None)
    final = None if row is None else view.state.final(row.digest)
    if row is None or final is None:
        known = f" (there are {listed(f'{BASELINE}{one.short_name}' for one in there)})" if there else ""
        raise GoalMissed(
            f"study {view.folder.name!r} has no complete finals of baseline {words!r}{known}: only the best static "
            f"rule at a finalist's size has them; `prunefront finals {view.folder.name} --comparison full` adds those "
            "that reach the limit"
        )
    origin = {"baseline": rule} if row.trial is None else {"baseline": rule, "for_trial": row.trial}
    return Chosen(f"baseline {row.name}", origin, final.policy, None, final, scores[row.digest].n, _others(row, tuned))


def _others(row: StaticRow, tuned: Sequence[StaticRow]) -> str:
    """Which other networks go by the words by which this one was chosen; empty if none do."""
    networks: dict[str, StaticRow] = {}
    for one in tuned:
        networks.setdefault(one.digest, one)
    others = [f"{BASELINE}{one.short_name}" for digest, one in networks.items() if digest != row.digest]
    if not others:
        return ""
    return (
        f"{BASELINE}{row.rule} may be {counted(len(networks), 'network')}: it is {row.name} here; say "
        f"{BASELINE}{row.short_name} for that one, {listed(others)} for {'another' if len(others) == 1 else 'others'}"
    )


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
        words = f"{', '.join(CHOICES)}, a trial's number or {BASELINE}RULE@TRIAL"
        raise UsageError(f"--trial takes {words}, got {choice!r}")
    if int(choice) not in complete:
        near = min(complete, key=lambda n: abs(n - int(choice)), default=None)
        remedy = "it has none yet: give it more --trials" if near is None else f"the nearest is {near}"
        raise UsageError(f"trial {choice} is not a complete trial of study {view.folder.name!r}; {remedy}")
    return int(choice)
