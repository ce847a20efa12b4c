"""The most accurate trial within each of several limits that people ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from search.records import COMPLETE
from search.report.words import Recommendation, described
from search.results.selection import is_dead, not_dead_at_last
from search.results.state import StudyState
from search.results.tables import TrialRow

LIMITS = (0.75, 0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01)
"""Shares of the dense model's size, MACs and latency."""


def within_limits(state: StudyState) -> list[Recommendation]:
    """What to ship within round limits on one measure each, from large to small: the most accurate by short fine-tunes.

    A limit that every trial keeps to, or none, is left out; so are trials beyond the study's own limit and dead ones.
    """
    rows = [
        row
        for row in not_dead_at_last(state.rows, state.chance)
        if row.state == COMPLETE and row.point.size <= state.max_size and not is_dead(row.accuracy, state.chance)
    ]
    measures: dict[str, Callable[[TrialRow], float | None]] = {
        "the size": lambda row: row.size,
        "the MACs": lambda row: row.macs,
        "the latency": lambda row: row.latency,
    }
    return [
        Recommendation(f"at most {limit * 100:g} % of {name}", row.trial, described(state, row))
        for name, measure in measures.items()
        for limit, row in _within(rows, measure)
    ]


def _within(rows: Sequence[TrialRow], measure: Callable[[TrialRow], float | None]) -> Iterator[tuple[float, TrialRow]]:
    measured = [(row, share) for row in rows if (share := measure(row)) is not None]
    for limit in LIMITS:
        fitting = [row for row, share in measured if share <= limit]
        if 0 < len(fitting) < len(measured):
            yield limit, max(fitting, key=lambda row: (row.point.accuracy, -row.point.size))
