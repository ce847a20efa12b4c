"""What is said of a study besides its tables."""

from __future__ import annotations

import pytest
from hand_made_study import study, trial

from search.metric import Metric
from search.results.closing import level_with_top, rounding_alone
from search.results.comparison import Comparison, Reference
from search.results.remarks import limit_remark, speed_remark
from search.results.tables import FinalScore, TrialRow
from search.results.view import open_study


def test_masks_alone_are_said_to_bring_no_speed():
    """Where granularities differ by layer and MACs fell, channels are among them."""
    rows = [TrialRow(0, granularity="channel+2:4", macs=0.5), TrialRow(1, granularity="mixed", macs=0.75)]
    assert speed_remark(rows) == "" == speed_remark([])
    said = speed_remark([*rows, TrialRow(2, granularity="mixed", macs=1.0), TrialRow(3, granularity="2:4", macs=1.0)])
    assert said.startswith("Masks (mixed, 2:4) make the file smaller")


def test_what_nobody_knows_is_not_called_more_than_noise():
    """One run each, of a metric whose test examples say nothing of its spread; of three runs it is known."""
    few, unit = {"dense at 4 bits": Reference(0.9, 0.85, 0.1, 0.9)}, Metric("mIoU", low=0, high=1)
    for runs, sd, said in ((1, None, ""), (3, 0.001, ", more than noise")):
        finals = {name: FinalScore(name, runs, 0.92, sd, tested, sd, 0.09, 0.2, 0.5, 1) for name, tested in
                  (("one", 0.9), ("two", 0.87))}  # fmt: skip
        comparison = Comparison(few, {}, "channel", ("one", "two"), test_examples=400)
        found = rounding_alone(comparison, finals, 0.25, unit=unit)
        assert found == f"No: dense at 4 bits (10.0 %) is 5.00 points below the finalist on test{said}."
        _, level, apart, unknown = level_with_top(comparison, finals, unit)
        assert (level, apart, unknown) == ([], [finals["two"]] if said else [], [] if said else [finals["two"]])


def test_why_rounding_alone_would_not_do():
    """By hand: 8 bits are over the limit, 4 bits 20 points below; with 0.885 they are within two standard errors."""
    finals = {
        name: FinalScore(name, 3, 0.92, 0.01, 0.90, 0.01, size, 0.2, 0.5, 1)
        for name, size in (("one", 0.09), ("as-large", 0.098))
    }

    def said(tested: float, finalist: str = "one", **unit: Metric) -> str:
        few = {"dense at 4 bits": Reference(0.9, tested, 0.1, 0.9), "dense at 8 bits": Reference(0.9, 0.9, 0.3, 1.0)}
        return rounding_alone(Comparison(few, {}, "channel", (finalist,), test_examples=400), finals, 0.25, **unit)

    apart = "dense at 4 bits (10.0 %) is 20.00 points below the finalist on test, more than noise"
    assert said(0.70) == f"No: {apart}; dense at 8 bits takes 30.0 %, over the limit of 25 %."
    close = "Dense at 4 bits (10.0 %) is 1.50 points below the most accurate finalist on test, within noise: pruning "
    assert said(0.885) == f"For accuracy yes, for size no. {close}" + (
        "gains size at this limit, 9.0 % against 10.0 %, but shows no gain in accuracy."
    )
    assert said(0.885, "as-large") == f"Yes. {close}shows no gain at this limit."
    miou = Metric("mIoU", low=0, high=1)
    assert said(0.885, unit=miou).startswith("No: "), "1.5 points are noise of 400 examples, not of three seeds"
    assert said(0.70, "gone") == ""


@pytest.mark.parametrize(
    ("size", "least", "limits", "said"),
    [
        (0.125, None, {}, "The size limit of 25 % leaves room: trial 3 takes 12.5 %. A new --study"),
        (0.126, None, {}, ""),
        (0.125, 0.5, {}, ""),
        (0.025, None, {"max_size": 0.0625}, "The size limit of 6.25 % leaves room: trial 3 takes 2.5 %. A new"),
        (0.125, None, {"max_macs": 0.5}, ""),
        (0.125, None, {"max_latency": 0.5}, ""),
    ],
)
def test_a_limit_that_asks_for_little_is_told(tmp_path, size, least, limits, said):
    """Where speed is limited too, that may be what keeps networks small."""
    folder = study(tmp_path, **limits)
    assert limit_remark(open_study(tmp_path, "hand").state) == ""
    folder.journal.write_trial(trial(3, 0.9, size))
    state = open_study(tmp_path, "hand").state
    state.least_accuracy = least
    found = limit_remark(state)
    assert found.startswith(said) and bool(found) is bool(said)
