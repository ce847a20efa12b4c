"""Policies, schedules, spaces and allocations that cannot be: one line with what, the value and the remedy."""

from __future__ import annotations

from refusals import MISSPELT, refuse, table
from small_net import GRAPH, HALF, evidence

from spaces import PruningPolicy, Schedule, Space
from spaces.allocation.allocators import allocate
from spaces.allocation.budget import Target, Unreachable
from spaces.allocation.importance import AllocationInputs
from spaces.validation import unknown

BAD_CHOICES = {
    "policy of nothing": (lambda: PruningPolicy(None), "sparsity must map layer names to shares, got NoneType"),
    "policy key": (lambda: PruningPolicy({1: 0.5}), "sparsity must have layer names as keys, got 1"),
    "policy from nothing": (lambda: PruningPolicy.from_dict(None), "a policy must be a mapping"),
    "policy from no text": (lambda: PruningPolicy.from_json(None), "JSON must be text, got NoneType"),
    "policy criterion": (lambda: PruningPolicy(HALF, criterion=None), "unknown criterion None"),
    "schedule": (lambda: Schedule("fast"), "unknown schedule 'fast'"),
    "schedule of no word": (lambda: Schedule(["linear"]), "unknown schedule ['linear']"),
    "schedule exponent": (lambda: Schedule("polynomial", "3"), "exponent must be a number, got '3'"),
    "schedule ramp": (
        lambda: Schedule("polynomial", 3.0, 60),
        "0 < ramp <= 1, got 60; 60 % is 0.6; the default is 0.6",
    ),
    "space size": (lambda: Space(GRAPH.network, 1e-9), "reachable is"),
    "space words": (lambda: Space(GRAPH.network, 0.5, ("chanel",)), f"'chanel': {MISSPELT} 'channel'"),
    "space text": (lambda: Space(GRAPH.network, 0.5, "channel"), "none twice, got 'channel'"),
    "space schedules": (lambda: Space(GRAPH.network, 0.5, schedules=("fast",)), "unknown schedule 'fast'"),
    "space none": (lambda: Space(GRAPH.network, 0.5, schedules=()), "schedule must be a tuple of one or more"),
    "space metric": (lambda: Space(GRAPH.network, 0.5, metric="bytes"), "unknown size metric 'bytes'"),
    "space min size": (lambda: Space(GRAPH.network, 0.5, min_size=0.6), "0 < min_size <= 0.5, got 0.6"),
    "allocator": (lambda: allocate("unifrom", Target(GRAPH.network, 0.5), AllocationInputs()), f"{MISSPELT} 'uniform'"),
    "no profile": (lambda: allocate("scan", Target(GRAPH.network, 0.5), evidence()), "needs a profile: scan the model"),
    "too small": (lambda: allocate("uniform", Target(GRAPH.network, 1e-9), evidence()), "the smallest is"),
    "no names": (lambda: unknown_of_none(), "unknown study 'a': there is none yet"),
}


def unknown_of_none() -> None:
    raise ValueError(unknown("study", "a", []))


@table(BAD_CHOICES)
def test_a_bad_choice_is_refused_in_one_line(case):
    refuse(case[0], case[1], (ValueError, Unreachable))
