"""The knobs of an allocation: layers or groups that lose units together, and the damage scanned at each level."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from spaces.bits import BITS
from spaces.counting import in_multiples
from spaces.granularity import GRANULARITIES, Units, units_of, unpruned_reason
from spaces.network import Network
from spaces.sensitivity import Profile
from spaces.validation import unknown

LEVELS = tuple(float(1 - kept) for kept in np.geomspace(1.0, 0.01, 25))
"""Sparsities in even steps of the logarithm of what is kept."""


@dataclass(frozen=True, eq=False)
class Damage:
    """What the levels of a knob cost in accuracy.

    Attributes:
        levels: sparsities (k,), rising from 0, below 1.
        values: damage (k,) at each level: finite, >= 0, never falling, in one unit for all knobs.

    Raises:
        ValueError: anything else.
    """

    levels: np.ndarray
    values: np.ndarray

    def __post_init__(self) -> None:
        levels, values = np.asarray(self.levels, float), np.asarray(self.values, float)
        if levels.ndim != 1 or levels.shape != values.shape or not len(levels):
            raise ValueError(
                f"levels and values must be lists of one length, got shapes {levels.shape}, {values.shape}"
            )
        if levels[0] != 0 or not (np.diff(levels) > 0).all() or not levels[-1] < 1:
            raise ValueError(f"levels must rise from 0 and stay below 1, got {levels.tolist()}")
        if not np.isfinite(values).all() or values[0] < 0 or (np.diff(values) < 0).any():
            raise ValueError(f"damages must be finite, >= 0 and never fall, got {values.tolist()}")
        object.__setattr__(self, "levels", levels)
        object.__setattr__(self, "values", values)


@dataclass(frozen=True)
class Knob:
    """What moves together: the layers of a channel group (`group` is its number), or one layer."""

    layers: tuple[str, ...]
    units: Units
    group: int | None = None
    multiple: int = 1

    @property
    def name(self) -> str:
        return self.layers[0]

    def removed(self, levels: Sequence[float] | np.ndarray) -> np.ndarray:
        """Units gone at each level (k,), int64; one stays, or a multiple of what the group keeps to."""
        removed = np.array([self.units.removed(float(level)) for level in levels])
        return in_multiples(removed, self.units.count, self.multiple).astype(np.int64)


def knobs_of(network: Network, granularity: str) -> dict[str, Knob]:
    """Knob by name, its first layer's: the channel groups without obstacle, or the layers that can lose units.

    Raises:
        ValueError: unknown granularity.
    """
    if granularity not in GRANULARITIES:
        raise ValueError(unknown("granularity", granularity, GRANULARITIES))
    if granularity == "channel":
        groups = enumerate(network.groups)
        knobs = [Knob(g.layers, Units(g.units, 1), n, g.multiple) for n, g in groups if g.obstacle is None]
    else:
        layers = [layer for layer in network.prunable if not unpruned_reason(layer, granularity)]
        knobs = [Knob((layer.name,), units_of(granularity, layer.shape, layer.inputs)) for layer in layers]
    return {knob.name: knob for knob in knobs}


def scan_damages(
    profile: Profile,
    network: Network,
    granularity: str,
    weights: Mapping[str, float] | None = None,
    levels: Sequence[float] = LEVELS,
) -> dict[str, Damage]:
    """Knob -> its damage by the scan at `levels`, each rounded to the nearest number of units.

    Between the levels scanned, and beyond them with the last slope, damage is linear in the logarithm of the
    share kept. Knobs the profile does not hold are left out.

    Args:
        weights: knob -> factor >= 0 on its damage; 1 where absent.
        levels: sparsities, each in [0, 1); 0 is among them.

    Raises:
        ValueError: a granularity the profile does not hold, an unknown knob in `weights`, or a factor that is
            negative or not finite.
    """
    knobs, weights = knobs_of(network, granularity), weights or {}
    if granularity not in profile.points:
        raise ValueError(unknown("granularity in this profile", granularity, profile.points))
    for name, factor in weights.items():
        if name not in knobs:
            raise ValueError(unknown("knob", name, knobs))
        if not 0 <= factor < math.inf:
            raise ValueError(f"weight of {name!r} must be a finite number >= 0, got {factor!r}; 1.0 changes nothing")
    damages = {}
    for name in knobs.keys() & profile.points[granularity].keys():
        reached = np.unique(knobs[name].removed(levels)) / knobs[name].units.count
        values = _between_scanned(reached, *profile.damage(granularity, name))
        damages[name] = Damage(reached, values * weights.get(name, 1.0))
    return {name: damages[name] for name in knobs if name in damages}


def rounding_damages(profile: Profile, network: Network) -> dict[str, dict[int, float]]:
    """Layer -> bits, all of `BITS` -> damage of rounding it by the scan; layers whose rounding was not scanned are left
    out."""
    scanned = [layer for layer in network.by_name if profile.rounding.get(layer)]
    return {layer: {bits: profile.rounding_damage(layer, bits) for bits in BITS} for layer in scanned}


def _between_scanned(levels: np.ndarray, scanned: np.ndarray, damage: np.ndarray) -> np.ndarray:
    scanned, first = np.unique(scanned, return_index=True)
    lost, damage, wanted = -np.log1p(-scanned), damage[first], -np.log1p(-levels)
    slope = (damage[-1] - damage[-2]) / (lost[-1] - lost[-2]) if len(lost) > 1 else 0.0
    return np.interp(wanted, lost, damage) + slope * np.maximum(wanted - lost[-1], 0.0)
