"""The sensitivity profile: what a scan found, as data with a version."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from spaces.strict_json import nan_as_null, parse_object
from spaces.validation import is_number, unknown

PROFILE_VERSION = 1


@dataclass(frozen=True)
class ProfilePoint:
    """Loss and accuracy on calibration data with one layer pruned and nothing trained.

    The `recalibrated` pair is measured after BatchNorm recalibration; if nothing is recalibrated (see
    `Profile.is_recalibrated`), it repeats the other pair. `sparsity` is the achieved one.
    """

    sparsity: float
    loss: float
    accuracy: float
    recalibrated_loss: float
    recalibrated_accuracy: float


@dataclass(frozen=True)
class Profile:
    """The sensitivity of every layer, pruned one at a time.

    Attributes:
        model: fingerprint of the trained model and data it was measured on.
        examples: number of calibration examples.
        dense_loss: on those examples, with nothing pruned.
        dense_accuracy: likewise, a share in [0, 1].
        points: granularity -> layer -> points by rising sparsity; layers that cannot be pruned in a granularity are
            absent from it.
        seconds: how long the scan took.
        dense_recalibrated_loss: of the dense model after the same recalibration as the points; None for a model without
            BatchNorm, and in old profiles that lack it.
        dense_recalibrated_accuracy: likewise.
        too_few: there are too few examples for a recalibration, which alone hurts the dense model; the points are
            measured without it.
    """

    model: str
    examples: int
    dense_loss: float
    dense_accuracy: float
    points: Mapping[str, Mapping[str, tuple[ProfilePoint, ...]]]
    seconds: float
    dense_recalibrated_loss: float | None = None
    dense_recalibrated_accuracy: float | None = None
    too_few: bool = False

    @property
    def is_recalibrated(self) -> bool:
        """Whether a recalibration distinguishes the `recalibrated` pairs of the points from the others."""
        if self.dense_recalibrated_loss is not None:
            return not self.too_few
        every = (p for by_layer in self.points.values() for points in by_layer.values() for p in points)
        return any((p.loss, p.accuracy) != (p.recalibrated_loss, p.recalibrated_accuracy) for p in every)

    @property
    def reference(self) -> tuple[float, float]:
        """Loss and accuracy of the dense model that the `recalibrated` pairs of the points are compared with."""
        loss, accuracy = self.dense_recalibrated_loss, self.dense_recalibrated_accuracy
        if loss is None or accuracy is None or self.too_few:
            return self.dense_loss, self.dense_accuracy
        return loss, accuracy

    def damage(self, granularity: str, layer: str) -> tuple[np.ndarray, np.ndarray]:
        """Sparsities (k,) from 0 up and the loss increase at each (k,), with dense and pruned model both recalibrated.

        The increase is made non-decreasing and starts at 0: a layer that gains from pruning counts as free, and NaN
        counts as the layer's largest finite increase (0 if it has none).
        """
        points = self.points[granularity][layer]
        levels = np.array([0.0, *(p.sparsity for p in points)])
        dense = self.reference[0]
        losses = np.array([dense, *(p.recalibrated_loss for p in points)]) - dense
        finite = losses[np.isfinite(losses)]
        losses = np.where(np.isfinite(losses), losses, finite.max(initial=0.0))
        return levels, np.maximum.accumulate(np.maximum(losses, 0.0))

    def to_json(self) -> str:
        """JSON text; the inverse of `from_json`. Losses that are not finite become null, and NaN when read."""
        data = asdict(self)
        for name in ("dense_recalibrated_loss", "dense_recalibrated_accuracy", "too_few"):
            if data[name] is None or data[name] is False:
                del data[name]
        data = nan_as_null({"version": PROFILE_VERSION, **data})
        return json.dumps(data, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Profile:
        """Read what `to_json` wrote; another version or missing fields raise `ValueError`."""
        data: dict[str, Any] = parse_object(text)
        if data.pop("version", None) != PROFILE_VERSION:
            raise ValueError(f"profile version must be {PROFILE_VERSION}: scan again")
        try:
            points = {
                granularity: {layer: tuple(_read_point(p) for p in layer_points) for layer, layer_points in by.items()}
                for granularity, by in data.pop("points").items()
            }
            numbers: dict[str, Any] = {key: math.nan if data[key] is None else data[key] for key in data}
            found = cls(points=points, **numbers)
            found._check()
            return found
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ValueError(f"damaged profile ({error}): scan again") from None

    def _check(self) -> None:
        """Raise `ValueError` for values that no scan finds."""
        if not isinstance(self.model, str):
            raise ValueError("model must be text")
        numbers = {"examples": self.examples, "dense_accuracy": self.dense_accuracy, "seconds": self.seconds}
        for name, value in numbers.items():
            if not (is_number(value) and value >= 0):
                raise ValueError(f"{name} must be a number >= 0, got {value!r}")
        values = [vars(p) for by in self.points.values() for points in by.values() for p in points]
        for point in [{"dense_loss": self.dense_loss}, *values]:
            for name, value in point.items():
                if not (is_number(value) or value is math.nan):
                    raise ValueError(f"{name} must be a number, got {value!r}")
        again = (self.dense_recalibrated_loss, self.dense_recalibrated_accuracy)
        if again != (None, None) and not (is_number(again[1]) and (is_number(again[0]) or again[0] is math.nan)):
            raise ValueError(f"dense_recalibrated_loss and _accuracy must be numbers, got {again!r}")
        if not isinstance(self.too_few, bool):
            raise ValueError(f"too_few must be true or false, got {self.too_few!r}")
        for by in self.points.values():
            for layer, points in by.items():
                levels = [0.0, *(p.sparsity for p in points), 1.0]
                if not points or any(not before <= after for before, after in pairwise(levels)):
                    raise ValueError(f"sparsities of {layer!r} must rise from 0 to 1")

    def require(self, granularities: Iterable[str], layers: Collection[str]) -> None:
        """Raise `ValueError` unless the profile covers these granularities and no other layers than these."""
        if {*granularities} != {*self.points}:
            raise ValueError(f"the profile is of {', '.join(self.points)}: scan again")
        for by in self.points.values():
            for layer in by:
                if layer not in layers:
                    raise ValueError(f"the profile has {unknown('layer', layer, layers)}: scan again")

    def table(self, granularity: str) -> list[tuple[str, ProfilePoint]]:
        """One row for each (layer, point) of one granularity, in the order scanned.

        Raises:
            ValueError: the profile does not hold this granularity.
        """
        if granularity not in self.points:
            raise ValueError(unknown("granularity in this profile", granularity, self.points))
        return [(layer, point) for layer, points in self.points[granularity].items() for point in points]


def _read_point(data: Mapping[str, Any]) -> ProfilePoint:
    return ProfilePoint(**{name: math.nan if number is None else number for name, number in data.items()})
