"""The nouns: what may be chosen, and how a choice is written down."""

from spaces.criteria import CRITERIA
from spaces.layers import ChannelGroup, Layer, Network, StoredTensor
from spaces.policy import GRANULARITIES, PruningPolicy, removed_count
from spaces.profile import Profile, ProfilePoint
from spaces.schedule import SCHEDULES, Schedule
from spaces.size import Footprint, Shares, footprint
from spaces.space import Space
from spaces.whole import NothingToRemove

__all__ = [
    "CRITERIA", "GRANULARITIES", "SCHEDULES", "ChannelGroup", "Footprint", "Layer", "Network", "NothingToRemove",
    "Profile", "ProfilePoint", "PruningPolicy", "Schedule", "Shares", "Space", "StoredTensor", "footprint",
    "removed_count",
]  # fmt: skip
