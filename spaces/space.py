"""The search space: what a trial samples, and the feasible policy it stands for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Any, Protocol

from spaces.allocation import ALLOCATORS, Evidence, Target, Unreachable, allocate, centred, land_by_shift
from spaces.errors import unknown
from spaces.layers import Network
from spaces.policy import GRANULARITIES, SCHEDULES, PruningPolicy, Schedule
from spaces.size import SIZE_METRICS

SIZE_SPAN = 10.0
"""The smallest size target is the limit over this, or the floor below."""
FLOOR_MARGIN = 1.2
"""No target below this many times the smallest reachable size: there, single weights are left."""
EXPONENTS = (1.0, 5.0)
"""Range of the schedule's exponent, sampled on a log scale."""
LIFTED = 0.005
"""A layer sampled as whole asks for this little where the size cannot be reached without it."""
SEED_SCHEDULE = Schedule("polynomial", 3.0)
SEED_SIZES = (0.0, 0.5, 0.25, 0.75, 0.125, 0.625)
"""Where seeds lie between the limit (0) and the smallest target (1), on a log scale; any first few spread."""


class Suggests(Protocol):
    """The part of an Optuna trial the space needs."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...

    def suggest_categorical(self, name: str, choices: list[str]) -> str: ...


@dataclass(frozen=True)
class Proposal:
    """A sampled point and the policy it was landed on.

    Attributes:
        policy: feasible: its size is at most `target`.
        sampled: layer -> sampled preference, a sparsity before the common shift.
        target: the sampled size, a share of the dense model, or the smallest its granularity reaches.
    """

    policy: PruningPolicy
    sampled: Mapping[str, float]
    target: float


@dataclass(frozen=True)
class Seed:
    """A known allocation as parameters of the space."""

    allocator: str
    granularity: str
    params: Mapping[str, Any]


@dataclass(frozen=True)
class Space:
    """Size target, per-layer preferences, granularity, schedule and exponent, all landing within the limit.

    Attributes:
        max_size: the limit, a share of the dense model in `metric`.
        granularities: choices, one for a whole policy, or one a layer when `mixed`.
        criterion: fixed in a study.

    Raises:
        ValueError: a granularity is unknown or repeated, or `max_size` is no share in (0, 1].
        Unreachable: no granularity reaches `max_size`; the message names the reachable range.
    """

    network: Network
    max_size: float
    granularities: tuple[str, ...] = ("fine-grained", "channel")
    metric: str = "encoded"
    mixed: bool = False
    criterion: str = "magnitude-l2"

    def __post_init__(self) -> None:
        if self.metric not in SIZE_METRICS:
            raise ValueError(unknown("size metric", self.metric, SIZE_METRICS))
        if not 0 < self.max_size <= 1:
            raise ValueError(f"max_size must satisfy 0 < max_size <= 1, got {self.max_size!r}")
        if not self.granularities or len(set(self.granularities)) < len(self.granularities):
            raise ValueError(f"granularities must be one or more of {', '.join(GRANULARITIES)}, each once")
        if not self.usable:
            smallest, words = min(self.floors.values()), ", ".join(self.granularities)
            raise Unreachable(
                f"size limit {self.max_size:g} cannot be reached by {self.metric} size, {words}: "
                f"reachable is {smallest:.4f} to 1; set --max-size to at least {ceil(smallest * 1e4) / 1e4:.4f}"
            )

    def target(self, share: float, granularity: str | Mapping[str, str]) -> Target:
        """A size to land on in this space."""
        return Target(self.network, share, granularity, self.metric)

    @cached_property
    def floors(self) -> dict[str, float]:
        """Granularity -> smallest reachable share of the dense size."""
        return {g: self.target(1.0, g).floor for g in self.granularities}

    @cached_property
    def usable(self) -> tuple[str, ...]:
        """Granularities whose floor lies within the limit."""
        return tuple(g for g in self.granularities if self.floors[g] <= self.max_size)

    @cached_property
    def size_range(self) -> tuple[float, float]:
        """Smallest and largest size target."""
        floor = min(self.floors[g] for g in self.usable) * FLOOR_MARGIN
        return min(max(self.max_size / SIZE_SPAN, floor), self.max_size), self.max_size

    def reachable(self, size: float, granularity: str | Mapping[str, str]) -> float:
        """The size, or where one granularity cannot go that low, the smallest sensible one of it."""
        if not isinstance(granularity, str):
            return size
        return min(max(size, self.floors[granularity] * FLOOR_MARGIN), self.max_size)

    @cached_property
    def knobs(self) -> dict[str, tuple[str, ...]]:
        """Knob -> the layers it moves: a channel group shares one when only channels are removed."""
        if self.usable != ("channel",):
            return {layer.name: (layer.name,) for layer in self.network.layers}
        groups = [group for group in self.network.groups if group.obstacle is None]
        return {group.layers[0]: group.layers for group in groups}

    def suggest(self, trial: Suggests) -> Proposal:
        """Sample a point and land it on its size target."""
        low, high = self.size_range
        target = trial.suggest_float("size", low, high, log=True)
        granularity = self._suggest_granularity(trial)
        preferences = {knob: trial.suggest_float(f"sparsity.{knob}", 0.0, 1.0) for knob in self.knobs}
        schedule = trial.suggest_categorical("schedule", list(SCHEDULES))
        exponent = trial.suggest_float("exponent", *EXPONENTS, log=True)
        return self.propose(target, granularity, preferences, Schedule(schedule, exponent))

    def _suggest_granularity(self, trial: Suggests) -> str | dict[str, str]:
        choices = list(self.usable)
        if not self.mixed:
            return trial.suggest_categorical("granularity", choices)
        return {name: trial.suggest_categorical(f"granularity.{name}", choices) for name in self.network.layer_names}

    def propose(
        self, target: float, granularity: str | Mapping[str, str], preferences: Mapping[str, float], schedule: Schedule
    ) -> Proposal:
        """The policy nearest to the preferences whose size is within the target.

        A channel group asks for its first member's preference. Where whole layers (preference 0) make the
        target unreachable, they are asked for a little as well. Where a mixture cannot reach it (its floor may
        lie above those of its granularities: a group not wholly `channel` loses no channel), all layers take
        the granularity with the lowest floor.
        """
        target = self.reachable(target, granularity)
        where = self.target(target, granularity)
        sampled = self._by_layer(where, preferences)
        try:
            sparsity = self._land(sampled, where)
        except Unreachable:
            if isinstance(granularity, str):
                raise
            return self.propose(target, min(self.usable, key=self.floors.__getitem__), preferences, schedule)
        policy = PruningPolicy(sparsity, granularity, criterion=self.criterion, schedule=schedule)
        return Proposal(policy, sampled, target)

    def _land(self, sampled: Mapping[str, float], target: Target) -> dict[str, float]:
        try:
            return land_by_shift(sampled, target)
        except Unreachable:
            return land_by_shift({name: max(s, LIFTED) for name, s in sampled.items()}, target)

    def _by_layer(self, target: Target, preferences: Mapping[str, float]) -> dict[str, float]:
        frame, sampled = PruningPolicy({}, target.granularity), {}
        for layer in target.layers:
            in_group = frame.granularity_of(layer.name) == "channel" and layer.channel_group is not None
            lead = self.network.groups[layer.channel_group].layers[0] if in_group else layer.name
            sampled[layer.name] = min(preferences.get(lead, 0.0), 1 - LIFTED**2)
        return sampled

    def seeds(self, evidence: Mapping[str, Evidence]) -> Iterator[Seed]:
        """Static allocations and the scan's, spread over sizes and granularities; any first few spread.

        Args:
            evidence: by granularity.
        """
        names = [name for name in ALLOCATORS if name != "scan" or all(e.profile for e in evidence.values())]
        low, high = self.size_range
        seen = set()
        for turn in range(len(SEED_SIZES) * len(names)):
            size = high * (low / high) ** SEED_SIZES[(turn // len(names) + turn) % len(SEED_SIZES)]
            name = names[turn % len(names)]
            for granularity in self.usable:
                seed = self._seed(name, granularity, self.reachable(size, granularity), evidence[granularity])
                if seed is not None and (key := tuple(seed.params.items())) not in seen:
                    seen.add(key)
                    yield seed

    def _seed(self, allocator: str, granularity: str, size: float, evidence: Evidence) -> Seed | None:
        target = self.target(size, granularity)
        try:
            sparsity = allocate(allocator, target, evidence)
        except Unreachable:
            return None
        preferences = centred(sparsity)
        params: dict[str, Any] = {"size": size}
        if self.mixed:
            params |= {f"granularity.{name}": granularity for name in self.network.layer_names}
        else:
            params["granularity"] = granularity
        params |= {f"sparsity.{knob}": min(max(preferences.get(knob, 0.0), 0.0), 1.0) for knob in self.knobs}
        params |= {"schedule": SEED_SCHEDULE.kind, "exponent": SEED_SCHEDULE.exponent}
        return Seed(allocator, granularity, params)
