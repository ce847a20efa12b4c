"""Moved to `spaces.cost`; kept for old imports of sizes."""

from spaces.cost.container import container_bytes
from spaces.cost.effect import achieved, kept_units
from spaces.cost.footprint import Footprint, dense_footprint, footprint

__all__ = ["Footprint", "achieved", "container_bytes", "dense_footprint", "footprint", "kept_units"]
