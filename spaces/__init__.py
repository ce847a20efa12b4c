"""The nouns: what may be chosen, and how a choice is written down."""

from spaces.cost.effect import NothingToRemove
from spaces.cost.footprint import Footprint, RelativeCost, footprint
from spaces.counting import removed_count
from spaces.criteria import CRITERIA
from spaces.granularity import GRANULARITIES
from spaces.network import ChannelGroup, Layer, Network, StoredTensor
from spaces.policy import PruningPolicy
from spaces.schedule import SCHEDULES, Schedule
from spaces.search_space.projection import Projector
from spaces.search_space.space import Space
from spaces.sensitivity import Profile, ProfilePoint, RoundingPoint

__all__ = [
    "CRITERIA", "GRANULARITIES", "SCHEDULES", "ChannelGroup", "Footprint", "Layer", "Network", "NothingToRemove",
    "Profile", "ProfilePoint", "Projector", "PruningPolicy", "RelativeCost", "RoundingPoint", "Schedule", "Space",
    "StoredTensor", "footprint", "removed_count",
]  # fmt: skip

Shares = RelativeCost  # its name until 0.1
