"""The sensitivity profile: what a scan found, as data with a version."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from spaces.bits import FLOAT_BITS, check_bits
from spaces.strict_json import nan_as_null, parse_object
from spaces.validation import is_number, unknown

PROFILE_VERSION = 1


@dataclass(frozen=True)
class ProfilePoint:
    """Loss and accuracy on calibration data with one layer pruned and nothing trained.

    The `recalibrated` pair is measured after BatchNorm recalibration; if nothing is recalibrated (see
    `Profile.is_recalibrated`), it repeats the other pair. A brief scan that recalibrates measures the `recalibrated`
    pair alone, and the other is NaN. `sparsity` is the achieved one.
    """

    sparsity: float
    loss: float
    accuracy: float
    recalibrated_loss: float
    recalibrated_accuracy: float


@dataclass(frozen=True)
class RoundingPoint:
    """Loss and accuracy on calibration data with one layer's weights rounded and nothing trained.

    The pairs are as those of a `ProfilePoint`; `bits` are of a value, below 32.
    """

    bits: int
    loss: float
    accuracy: float
    recalibrated_loss: float
    recalibrated_accuracy: float


@dataclass(frozen=True)
class Profile:
    """The sensitivity of every layer, pruned or rounded one at a time.

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
        rounding: layer -> points by falling bits; empty in profiles of no bits.
        brief: made by a brief scan, on few examples and usually at few levels.
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
    rounding: Mapping[str, tuple[RoundingPoint, ...]] = field(default_factory=dict)
    brief: bool = False

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
        return np.array([0.0, *(p.sparsity for p in points)]), self._increase(points)

    def rounding_damage(self, layer: str, bits: int) -> float:
        """Loss increase with the weights of this layer alone rounded to so many bits; 0 at 32, never rising with bits.

        Made non-decreasing as `damage` is. Between the bits scanned, and below them with the last slope, it is linear
        in 4^-bits, as the mean square error of rounding is.

        Raises:
            ValueError: bits that no weight can have, or a layer whose rounding was not scanned.
        """
        if check_bits(bits) == FLOAT_BITS:
            return 0.0
        if not self.rounding.get(layer):
            raise ValueError(f"the profile has no rounding of {layer!r}: scan it with bits")
        points = self.rounding[layer]
        errors, damage = np.array([0.0, *(4.0**-p.bits for p in points)]), self._increase(points)
        slope = (damage[-1] - damage[-2]) / (errors[-1] - errors[-2])
        beyond = slope * max(4.0**-bits - errors[-1], 0.0)
        return float(np.interp(4.0**-bits, errors, damage) + beyond)

    def with_rounding_to(self, bits: Collection[int]) -> Profile:
        """The profile without the rounding to other bits."""
        kept = {
            layer: tuple(point for point in points if point.bits in bits) for layer, points in self.rounding.items()
        }
        return replace(self, rounding={layer: points for layer, points in kept.items() if points})

    def lacks_rounding(self, layers: Iterable[str], bits: Iterable[int]) -> bool:
        """Whether any of these layers lacks a point at any of these bits."""
        scanned = {layer: {point.bits for point in points} for layer, points in self.rounding.items()}
        wanted = set(bits) - {FLOAT_BITS}
        return any(not wanted <= scanned.get(layer, set()) for layer in layers)

    def _increase(self, points: Iterable[ProfilePoint | RoundingPoint]) -> np.ndarray:
        """Loss increase of the unpruned network, 0, and of each point, where none is below an earlier one."""
        dense = self.reference[0]
        losses = np.array([dense, *(p.recalibrated_loss for p in points)]) - dense
        finite = losses[np.isfinite(losses)]
        losses = np.where(np.isfinite(losses), losses, finite.max(initial=0.0))
        return np.maximum.accumulate(np.maximum(losses, 0.0))

    def to_json(self) -> str:
        """JSON text; the inverse of `from_json`. Losses that are not finite become null, and NaN when read."""
        data = asdict(self)
        for name in ("dense_recalibrated_loss", "dense_recalibrated_accuracy", "too_few", "brief"):
            if data[name] is None or data[name] is False:
                del data[name]
        if not data["rounding"]:
            del data["rounding"]
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
                granularity: {layer: tuple(ProfilePoint(**_nulls_as_nan(p)) for p in own) for layer, own in by.items()}
                for granularity, by in data.pop("points").items()
            }
            rounding = {
                layer: tuple(RoundingPoint(**_nulls_as_nan(p)) for p in own)
                for layer, own in data.pop("rounding", {}).items()
            }
            found = cls(points=points, rounding=rounding, **_nulls_as_nan(data))
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
        by_layer = [*self.points.values(), self.rounding]
        values = [vars(p) for by in by_layer for points in by.values() for p in points]
        for point in [{"dense_loss": self.dense_loss}, *values]:
            for name, value in point.items():
                if not (is_number(value) or value is math.nan):
                    raise ValueError(f"{name} must be a number, got {value!r}")
        again = (self.dense_recalibrated_loss, self.dense_recalibrated_accuracy)
        if again != (None, None) and not (is_number(again[1]) and (is_number(again[0]) or again[0] is math.nan)):
            raise ValueError(f"dense_recalibrated_loss and _accuracy must be numbers, got {again!r}")
        for name, flag in (("too_few", self.too_few), ("brief", self.brief)):
            if not isinstance(flag, bool):
                raise ValueError(f"{name} must be true or false, got {flag!r}")
        for by in self.points.values():
            for layer, points in by.items():
                levels = [0.0, *(p.sparsity for p in points), 1.0]
                if not points or any(not before <= after for before, after in pairwise(levels)):
                    raise ValueError(f"sparsities of {layer!r} must rise from 0 to 1")
        for layer, rounded in self.rounding.items():
            widths = [FLOAT_BITS, *(check_bits(p.bits) for p in rounded)]
            if not rounded or any(not before > after for before, after in pairwise(widths)):
                raise ValueError(f"bits of {layer!r} must fall from below 32")

    def require(self, granularities: Iterable[str], layers: Collection[str]) -> None:
        """Raise `ValueError` unless the profile covers these granularities and no other layers than these."""
        if {*granularities} != {*self.points}:
            raise ValueError(f"the profile is of {', '.join(self.points)}: scan again")
        for by in (*self.points.values(), self.rounding):
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


def _nulls_as_nan(data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: math.nan if number is None else number for name, number in data.items()}
