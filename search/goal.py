"""How good a network is wanted: an accuracy, on the search's own scale, or a value in the unit of a metric."""

from __future__ import annotations

import math
from typing import Any

from search.metric import MAX, Metric, OutOfRange
from spaces.validation import percent_meant

DENSE = "dense"


def checked_accuracy(value: Any) -> str:
    """`0.92`, or `dense-0.005` for so much less than the dense model's, as text; `ValueError` of anything else."""
    number = str(value).strip().removeprefix("dense-")
    try:
        share = float(number)
    except ValueError:
        share = math.nan
    if not 0 <= share < 1:
        raise ValueError(
            "min-accuracy must be a share such as 0.92, or dense-0.005 for 0.5 points less, "
            f"got {value!r}{percent_meant(number)}"
            + ("; values in the unit of a metric of your own are min-score's" if abs(share) >= 1 else "")
        )
    return str(value).strip()


def least_accuracy(asked: str, dense: float) -> float:
    """The share that a checked accuracy stands for, given the dense model's."""
    below = asked.removeprefix("dense-")
    return dense - float(below) if below != asked else float(below)


def checked_score(value: Any) -> str:
    """`31.5`, `dense-0.5` or `dense+0.5`, as text; `ValueError` of anything else. Whether a metric can have it is found
    where the metric is known.
    """
    text = str(value).replace(" ", "")
    change = text.removeprefix(DENSE)
    try:
        number = float(change) if change == text or change[:1] in ("+", "-") else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            "min-score must be a value in the metric's unit such as 31.5, or dense-0.5 (dense+0.5 where less is "
            f"better), got {value!r}"
        )
    return text


def least_share(asked: str, dense: float, unit: Metric) -> float:
    """The share that a checked score stands for.

    Args:
        dense: the dense model's share. While it is not known, it is NaN, and so is what depends on it.

    Raises:
        ValueError: the metric cannot have such a value, or none is worse or better.
    """
    change = asked.removeprefix(DENSE)
    if change != asked:
        _require_within(asked, float(change), unit)
    value = float(change) + (unit.value(dense) if change != asked else 0.0)
    try:
        share = unit.share(value)
    except OutOfRange as error:
        meant = percent_meant(asked) if unit.is_share else ""
        raise ValueError(f"min-score {asked!r} cannot be met: {error.said}{meant}") from None
    if value in (unit.low, unit.high) or share in (0.0, 1.0):
        raise ValueError(f"min-score {asked!r} is an end of what {unit.name} can be: name a value inside its range")
    return share


def _require_within(asked: str, change: float, unit: Metric) -> None:
    """Raise `ValueError` for a change from the dense model's value that leaves the metric's range whatever that is."""
    if unit.low is None or unit.high is None or abs(change) < unit.high - unit.low:
        return
    what = f"{unit.name} is {'a share, ' if unit.is_share else ''}from {unit.low:g} to {unit.high:g}"
    meant = f"; counted in points, it is {DENSE}{change / 100:+g}" if unit.is_share else ""
    raise ValueError(f"min-score {asked!r} cannot be met: {what}{meant}")


def told_goal(least: float, dense: float, unit: Metric, asked: str | float | None) -> str:
    """What the least share comes to in the metric's unit; `asked` is the accuracy, if it was asked for as one.

    >>> told_goal(0.31, 0.35, Metric("mAP", low=0, high=100), "dense-0.04")
    "wanted: mAP of at least 31; the dense model has 35; min-accuracy 'dense-0.04' is a share, and min-score takes mAP"
    """
    bound = "at least" if unit.best == MAX else "at most"
    said = f"wanted: {unit.name} of {bound} {unit.told(least)}; the dense model has {unit.told(dense)}"
    return said if asked is None else f"{said}; min-accuracy {asked!r} is a share, and min-score takes {unit.name}"
