"""The path that `spaces.cost` had in 0.1, for code that imports sizes from here."""

from spaces.cost.container import container_bytes
from spaces.cost.effect import achieved, kept_units
from spaces.cost.footprint import Footprint, dense_footprint, footprint

__all__ = ["Footprint", "achieved", "container_bytes", "dense_footprint", "footprint", "kept_units"]
