"""What the user should know of the numbers that a scan found."""

from __future__ import annotations

import math
from collections.abc import Iterator

from search.metric import SHARE, Metric
from spaces.sensitivity import Profile, ProfilePoint, RoundingPoint
from spaces.wording import percent


def undefined_note(profile: Profile, unit: Metric = SHARE) -> str | None:
    """One line about points whose loss or metric is no finite number; None if there are none."""
    found = [(place, point) for place, point in _places(profile) if not _is_finite(point)]
    if not found:
        return None
    losses = any(not math.isfinite(point.recalibrated_loss) for _, point in found)
    values = any(not math.isfinite(point.recalibrated_accuracy) for _, point in found)
    what = " and ".join(word for word, is_so in (("loss", losses), (unit.name, values)) if is_so)
    more = f" and at {len(found) - 1} further points" if len(found) > 1 else ""
    counts = "; such a loss counts as the largest of its layer" if losses else ""
    remedy = f"let it be a bad number where it is undefined{counts}"
    return f"the scan found no finite {what} with {found[0][0]}{more}: {remedy}"


def _places(profile: Profile) -> Iterator[tuple[str, ProfilePoint | RoundingPoint]]:
    """Every point of each layer, with what was done to the layer."""
    for granularity, by_layer in profile.points.items():
        for layer, points in by_layer.items():
            yield from ((f"{layer} pruned to {percent(point.sparsity)} ({granularity})", point) for point in points)
    for layer, rounded in profile.rounding.items():
        yield from ((f"{layer} rounded to {point.bits} bits", point) for point in rounded)


def _is_finite(point: ProfilePoint | RoundingPoint) -> bool:
    """Whether the numbers that count are, which every scan measures."""
    return math.isfinite(point.recalibrated_loss) and math.isfinite(point.recalibrated_accuracy)
