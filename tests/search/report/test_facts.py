"""What the report works out of trials: growth, what mattered, how well accuracy was predicted."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hand_made_study import trial, trials
from scipy.stats import rankdata

from search.config import make_config
from search.report.growth import growth_of
from search.report.influence import influences
from search.report.limits import within_limits
from search.report.prediction import prediction_quality
from search.results.state import StudyState


def state(records) -> StudyState:
    found = StudyState(make_config(workload="digits", max_size=0.25, cost="macs"), {}, dense_accuracy=0.95)
    found.add_all(records, [])
    return found


def residual_share(accuracy, sizes, column) -> float:
    """Of the variance of ranks that a regression on size leaves, how much a further column takes."""

    def left(*columns) -> float:
        known = np.column_stack([np.ones(len(accuracy)), *map(rankdata, columns)])
        return float(np.linalg.lstsq(known, rankdata(accuracy), rcond=None)[1][0])

    return 1 - left(sizes, column) / left(sizes)


def test_what_mattered_is_what_ranks_say_beyond_size():
    records = trials()
    found = {one.name: one for one in influences(records)}
    complete = [record for record in records if record.result.state == "complete"]
    accuracy = [record.result.accuracy for record in complete]
    sizes = [record.result.shares.encoded for record in complete]
    bits = found["bits"]
    assert bits.share == pytest.approx(residual_share(accuracy, sizes, [r.policy.bits for r in complete]))
    assert bits.share > 0.5 > bits.chance > 0.1 and bits.rises and not bits.is_noise and bits.trials == 14
    assert found["granularity"].rises is None and found["granularity"].trials == 14
    assert "learning rate" not in found and "schedule" not in found  # all have the same
    shares = [one.share for one in influences(records)]
    assert shares == sorted(shares, reverse=True)


def test_too_few_trials_or_equal_ones_say_nothing():
    assert influences(trials()[:11]) == []
    same = [replace(trial(1, 0.5, 0.2), number=number) for number in range(20)]
    assert influences(same) == []


def test_within_a_smaller_limit_the_smallest_of_the_most_accurate_counts():
    """The last is beyond the study's own limit, and all others are within 20 %."""
    records = [trial(1, 0.9, 0.2), trial(3, 0.8, 0.06), trial(5, 0.8, 0.04), trial(9, 0.8, 0.05), trial(11, 0.99, 0.3)]
    found = {one.target: one.trial for one in within_limits(state(records))}
    assert found == {"at most 10 % of the size": 5, "at most 5 % of the size": 5}


def test_predictions_are_compared_with_the_mean_of_earlier_trials():
    """By hand: predictions are 0.02 too high, within their intervals, and the means 0.4 and 0.5 are 0.2 and 0.3 off."""
    records = [trial(0, 0.4, 0.1), trial(5, 0.6, 0.1), trial(6, None, 0.1), trial(8, 0.8, 0.1)]
    found = prediction_quality(records)
    assert found.error == pytest.approx(0.02) and found.naive_error == pytest.approx((0.2 + 0.3) / 2)
    assert (found.within, found.rank, [one.trial for one in found.points]) == (2, None, [5, 8])
    outside = replace(trial(9, 0.9, 0.1), scores={"predicted": 0.5, "predicted_low": 0.4, "predicted_high": 0.6})
    assert prediction_quality([*records, outside]).within == 2
    assert prediction_quality(records[:1]) is prediction_quality([]) is None
    assert prediction_quality(trials()).rank == pytest.approx(1)


def test_growth_is_by_the_time_of_ends_and_never_falls():
    records = [
        trial(0, 0.7, 0.2), trial(1, 0.8, 0.1), trial(2, 0.9, 0.3), trial(3, 0.75, 0.05), trial(5, 0.85, 0.24),
    ]  # fmt: skip
    late = replace(records[0], finished=9.0)
    found = growth_of(state([late, *records[1:]]))
    assert found.finished == (1, 2, 3, 4, 5) and found.initial == 4
    assert found.best[1.0] == pytest.approx((0.8, 0.8, 0.8, 0.85, 0.85))  # 0.9 is over the limit
    assert found.best[0.25] == pytest.approx((math.nan, math.nan, 0.75, 0.75, 0.75), nan_ok=True)
    assert found.volume[-1] == 1
    assert all(before <= after for before, after in pairwise(found.volume))
    assert 0 < found.volume[0] == found.volume[1] < found.volume[2]
    assert growth_of(state([])) is growth_of(state([trial(2, 0.9, 0.3)])) is None


def test_a_network_without_an_error_has_the_whole_volume():
    """An accuracy of 1 is an error of 0, of which no logarithm is taken."""
    found = growth_of(state([trial(1, 0.7, 0.2), trial(3, 1.0, 0.1)]))
    assert found.volume[1] == 1 and 0 < found.volume[0] < 1
