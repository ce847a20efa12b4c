"""What is said of a study besides its tables."""

from __future__ import annotations

from search.results.closing import rounding_alone
from search.results.comparison import Comparison, Reference
from search.results.remarks import speed_remark
from search.results.tables import FinalScore, TrialRow


def test_masks_alone_are_said_to_bring_no_speed():
    """Where granularities differ by layer and MACs fell, channels are among them."""
    rows = [TrialRow(0, granularity="channel+2:4", macs=0.5), TrialRow(1, granularity="mixed", macs=0.75)]
    assert speed_remark(rows) == "" == speed_remark([])
    said = speed_remark([*rows, TrialRow(2, granularity="mixed", macs=1.0), TrialRow(3, granularity="2:4", macs=1.0)])
    assert said.startswith("Masks (mixed, 2:4) make the file smaller")


def test_why_rounding_alone_would_not_do():
    """By hand: 8 bits are over the limit, 4 bits 20 points below; with 0.885 they are within two standard errors."""
    finals = {"one": FinalScore("one", 3, 0.92, 0.01, 0.90, 0.01, 0.09, 0.2, 0.5, 1)}

    def said(tested: float, finalists: tuple[str, ...] = ("one",)) -> str:
        few = {"dense at 4 bits": Reference(0.9, tested, 0.1, 0.9), "dense at 8 bits": Reference(0.9, 0.9, 0.3, 1.0)}
        return rounding_alone(Comparison(few, {}, "channel", finalists, test_examples=400), finals, 0.25)

    apart = "dense at 4 bits (10.0 %) is 20.00 points below the finalist on test, more than noise"
    assert said(0.70) == f"No: {apart}; dense at 8 bits takes 30.0 %, over the limit of 25 %."
    assert said(0.885).startswith(
        "Yes. Dense at 4 bits (10.0 %) is 1.50 points below the most accurate finalist on test, within noise"
    )
    assert said(0.70, ("gone",)) == ""
