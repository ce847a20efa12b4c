"""Which trials can be pointed at, by hand."""

from __future__ import annotations

from hand_made_study import trial

from search.config import make_config
from search.report.pointed import pointed_trials
from search.results.state import StudyState


def pointed(*points: tuple[float | None, float], most: int, monkeypatch) -> set[int]:
    monkeypatch.setattr("search.report.pointed.MOST_BELOW", most)
    state = StudyState(make_config(workload="digits", max_size=0.25, cost="macs"), {})
    state.add_all([trial(2 * number, *point) for number, point in enumerate(points)], [])  # of equal MACs
    return {number // 2 for number in pointed_trials(state)}


def test_those_least_below_the_most_accurate_of_at_most_their_size_come_first(monkeypatch):
    """0 and 1 are the front; the others lie 6, 3, 2 and 1 points below it, and 6 failed.

    0.75 is the best up to a size of 0.15, and 0.875 above; 5 is too large for the limit.
    """
    points = ((0.875, 0.15), (0.75, 0.05), (0.69, 0.1), (0.845, 0.2), (0.73, 0.06), (0.865, 0.4), (None, 0.1))
    found = [pointed(*points, most=most, monkeypatch=monkeypatch) - {0, 1} for most in range(6)]
    assert found == [set(), {5}, {4, 5}, {3, 4, 5}, {2, 3, 4, 5}, {2, 3, 4, 5}]


def test_all_of_the_front_is_pointed_at_however_long(monkeypatch):
    points = [(0.5 + number / 32, 0.05 + number / 64) for number in range(6)]
    assert pointed(*points, (0.45, 0.06), most=0, monkeypatch=monkeypatch) == set(range(6))
