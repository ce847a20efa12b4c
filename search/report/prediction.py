"""How well the guided search's predictions of accuracy held."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from scipy.stats import spearmanr

from search.records import COMPLETE, TrialRecord

FEWEST = 5
"""Predictions below which a rank correlation says nothing."""


@dataclass(frozen=True)
class Predicted:
    """What was predicted of a trial before its fine-tune, and what came of it; accuracies are shares.

    Attributes:
        low: lower end of the interval of one deviation.
        high: upper end.
        before: mean accuracy of the complete trials with smaller numbers.
    """

    trial: int
    predicted: float
    low: float
    high: float
    accuracy: float
    before: float | None


@dataclass(frozen=True)
class PredictionQuality:
    """Over all trials with a prediction.

    Attributes:
        error: mean absolute difference of prediction and accuracy.
        naive_error: the same of a prediction that takes the mean of earlier trials; None if no trial had any.
        within: how many lie in the interval of one deviation.
        rank: Spearman's correlation; None of fewer than `FEWEST`, or where all are equal.
    """

    points: tuple[Predicted, ...]
    error: float
    naive_error: float | None
    within: int
    rank: float | None


def prediction_quality(records: Iterable[TrialRecord]) -> PredictionQuality | None:
    """Of complete trials; None if none of them was predicted."""
    points, earlier = [], list[float]()
    for record in sorted(records, key=lambda one: one.number):
        if record.result.state != COMPLETE:
            continue
        accuracy, scores = record.result.measured.accuracy, record.scores
        if (predicted := scores.get("predicted")) is not None:
            low, high = scores.get("predicted_low", predicted), scores.get("predicted_high", predicted)
            before = fmean(earlier) if earlier else None
            points.append(Predicted(record.number, predicted, low, high, accuracy, before))
        earlier.append(accuracy)
    if not points:
        return None
    naive = [abs(one.before - one.accuracy) for one in points if one.before is not None]
    return PredictionQuality(
        points=tuple(points),
        error=fmean(abs(one.predicted - one.accuracy) for one in points),
        naive_error=fmean(naive) if naive else None,
        within=sum(one.low <= one.accuracy <= one.high for one in points),
        rank=_rank([one.predicted for one in points], [one.accuracy for one in points]),
    )


def _rank(predicted: list[float], accuracies: list[float]) -> float | None:
    if len(predicted) < FEWEST or len({*predicted}) < 2 or len({*accuracies}) < 2:
        return None
    return float(spearmanr(predicted, accuracies).statistic)
