"""What the front's picture shows beside trials."""

from __future__ import annotations

from dataclasses import replace

from search.results.comparison import Comparison, Reference
from search.results.figures import _by_point, _marks, _side_by_side, front_png, new_figure
from search.results.tables import FinalScore, TrialRow

REFERENCES = {
    "dense": Reference(0.94, 0.9, 1.0, 1.0),
    "dense at 8 bits": Reference(0.93, 0.9, 0.2, 0.99),
    "dense at 4 bits": Reference(0.85, 0.8, 0.1, 0.8),
}
FINALS = {
    "one": FinalScore("one", 3, 0.92, 0.01, 0.88, 0.02, 0.24, 0.20, 0.25, 2),
    "static": FinalScore("static", 3, 0.91, 0.01, 0.80, 0.02, 0.25, 0.21, 1.0, 1),
}
COMPARISON = Comparison(
    REFERENCES, {"uniform": "gone", "global": "static", "lamp": "static"}, "fine-grained", ("one", "gone")
)


def test_marks_are_dense_roundings_baselines_and_finalists():
    """A baseline without scores is left out; where zeros alone count, rounding makes nothing smaller."""
    dense, static, finalists = _marks(COMPARISON, FINALS, "encoded")
    assert dense.points == {(0.2, 0.93): "8 bits", (0.1, 0.85): "4 bits"}
    assert static.points == {(0.25, 0.91): "global, lamp"}
    assert finalists.points == {(0.24, 0.92): ""}
    assert [mark.points for mark in _marks(COMPARISON, FINALS, "nonzero")] == [
        {(0.21, 0.91): "global, lamp"}, {(0.20, 0.92): ""},
    ]  # fmt: skip
    assert _by_point([((0.1, 0.2), "a"), ((0.1, 0.3), "b")]) == {(0.1, 0.2): "a", (0.1, 0.3): "b"}


def test_texts_that_would_cover_each_other_become_one():
    """In a figure of 8 by 5 inches, at 120 dots an inch, from 0 to 100 both ways."""
    _, axes = new_figure(8, 5)
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    named = [((20, 51), "low"), ((21, 53), "high"), ((20, 60), "apart"), ((40, 53), "aside")]
    assert _side_by_side(axes, named) == [((20, 60), "apart"), ((21, 53), "high, low"), ((40, 53), "aside")]


def test_a_picture_changes_with_each_thing_it_shows():
    rows = [
        TrialRow(n, accuracy=a, size=s, granularity="channel", state="complete")
        for n, (a, s) in enumerate([(0.92, 0.22), (0.88, 0.12), (0.5, 0.05)])
    ]
    plain = front_png(rows, rows[:2], 0.25)
    compared = front_png(rows, rows[:2], 0.25, COMPARISON)
    tuned = front_png(rows, rows[:2], 0.25, COMPARISON, FINALS)
    fewer = replace(COMPARISON, references={"dense": REFERENCES["dense"]})
    pictures = {plain, compared, tuned, front_png(rows, rows[:2], 0.25, fewer, FINALS)}
    assert len(pictures) == 4 and all(picture.startswith(b"\x89PNG") for picture in pictures)
