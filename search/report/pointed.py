"""Which trials of a report's pictures can be pointed at: of very many, those that a reader may want to look at."""

from __future__ import annotations

from search.records import COMPLETE
from search.results.state import StudyState

MOST_BELOW = 300
"""Trials off the front that can be pointed at; the page holds the policy of each."""


def pointed_trials(state: StudyState) -> set[int]:
    """Numbers of complete trials: the front, and of the others up to `MOST_BELOW`, those least below the most accurate
    trial of at most their size.
    """
    front, best, below = {row.trial for row in state.front}, 0.0, dict[int, float]()
    for row in sorted((row for row in state.rows if row.state == COMPLETE), key=lambda row: row.point.size):
        best = max(best, row.point.accuracy)
        if row.trial not in front:
            below[row.trial] = best - row.point.accuracy
    return front | {*sorted(below, key=lambda number: below[number])[:MOST_BELOW]}
