"""The search space: what a trial samples, and the feasible policy it stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from spaces.allocation.budget import Target, Unreachable, fit_by_shift
from spaces.allocation.importance import AllocationInputs
from spaces.allocation.two_stage import EVEN_PART, REMOVAL, TwoStage, is_two_stage
from spaces.cost.effect import as_removed
from spaces.criteria import check_criterion
from spaces.granularity import parts_in
from spaces.policy import PruningPolicy
from spaces.schedule import SCHEDULES, Schedule
from spaces.search_space.base_allocations import BaseAllocations
from spaces.search_space.limits import Limits
from spaces.search_space.logits import LIFTED, logits_of, sigmoid
from spaces.search_space.logits import centred as centred_logits
from spaces.search_space.projection import EVEN, BatchProjector, Draft, ProjectedBatch
from spaces.validation import check_words, unknown

SPEEDS = ("macs", "latency")
PREFERENCE, OLD_PREFERENCE = "preference", "sparsity"
"""What a knob's axis is called, `preference.LAYER`; the older word belongs to studies begun with it."""
EXPONENTS = (1.0, 5.0)
"""Range of the schedule's exponent, sampled on a log scale."""
MOST_KNOBS = 24
"""In networks of more layers, runs of neighbours share a knob, which moves them on top of a base allocation."""
SEARCHED_SCHEDULES = ("one-shot", "polynomial")
"""Schedules of a search that names none."""
SEED_SCHEDULE = Schedule("polynomial", 3.0)


class Suggests(Protocol):
    """The part of an Optuna trial the space needs."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...

    def suggest_categorical(self, name: str, choices: list[str]) -> str: ...


@dataclass(frozen=True)
class Axis:
    """One parameter of a trial: a number in [low, high], or one of `choices`."""

    name: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    choices: tuple[str, ...] = ()

    def suggest(self, trial: Suggests) -> Any:
        if self.choices:
            return trial.suggest_categorical(self.name, list(self.choices))
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)


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
class Space(Limits):
    """Size target, per-layer preferences, granularity, schedule and exponent, all landing within the limits.

    Attributes:
        criterion: fixed in a study.
        speed: the third objective, `macs` or `latency`.
        evidence: by granularity, for combined words by both of theirs; networks of more than `MOST_KNOBS` layers need
            it, see `bases`.
        schedules: kinds to choose from.
        knob_word: `PREFERENCE`, or in studies begun with it `OLD_PREFERENCE`; it begins the names of the knobs' axes.

    Raises:
        ValueError: a schedule is unknown or repeated, a granularity is not the criterion's; and as `Limits` do.
        Unreachable: no granularity reaches the limits; the message names the reachable range.
    """

    criterion: str = "magnitude-l2"
    speed: str = "macs"
    evidence: Mapping[str, AllocationInputs] = field(default_factory=dict)
    schedules: tuple[str, ...] = SEARCHED_SCHEDULES
    knob_word: str = PREFERENCE

    def __post_init__(self) -> None:
        super().__post_init__()
        check_words("schedule", self.schedules, SCHEDULES)
        check_criterion(self.criterion, parts_in(self.granularities))
        if self.speed not in SPEEDS:
            raise ValueError(unknown("speed", self.speed, SPEEDS))
        if self.latency is None and self.speed == "latency":
            raise ValueError("latency as the third objective needs a predictor: measure a latency table first")

    @cached_property
    def knobs(self) -> dict[str, tuple[str, ...]]:
        """Knob -> the layers it moves: a channel group shares one when only channels are removed.

        Of more than `MOST_KNOBS`, runs of neighbours share one.
        """
        ends = np.linspace(0, len(self._movable), min(MOST_KNOBS, len(self._movable)) + 1).astype(int)
        runs = [self._movable[start:end] for start, end in pairwise(ends)]
        return {run[0][0]: tuple(layer for layers in run for layer in layers) for run in runs}

    @cached_property
    def knob_axes(self) -> tuple[str, ...]:
        """Name of each knob's axis."""
        return tuple(f"{self.knob_word}.{knob}" for knob in self.knobs)

    @cached_property
    def _movable(self) -> list[tuple[str, ...]]:
        """What could have a knob of its own."""
        if self.choices == ("channel",):
            return [group.layers for group in self.network.groups if group.obstacle is None]
        return [(name,) for name in self.network.layer_names]

    @cached_property
    def bases(self) -> BaseAllocations:
        """Allocations the knobs can move."""
        return BaseAllocations(self)

    @property
    def shared(self) -> bool:
        """Whether layers that could each have a knob share some."""
        return len(self._movable) > MOST_KNOBS

    @cached_property
    def axes(self) -> tuple[Axis, ...]:
        """What a trial samples, in order."""
        low, high = self.size_range
        layers = self.network.layer_names if self.mixed else ()
        return (
            Axis("size", low, high, log=True),
            *(Axis(f"granularity.{name}", choices=self.choices) for name in layers),
            *(() if self.mixed else (Axis("granularity", choices=self.usable),)),
            *((Axis("base", choices=self.bases.names),) if len(self.bases.names) > 1 else ()),
            *((Axis("removal", *REMOVAL),) if self.parted else ()),
            *(Axis(name) for name in self.knob_axes),
            Axis("schedule", choices=self.schedules),
            Axis("exponent", *EXPONENTS, log=True),
        )

    def suggest(self, trial: Suggests) -> Proposal:
        """Sample a point and land it on its size target."""
        return self.read({axis.name: axis.suggest(trial) for axis in self.axes})

    def read(self, params: Mapping[str, Any]) -> Proposal:
        """The proposal that these values of all `axes` stand for."""
        preferences = {knob: params[name] for knob, name in zip(self.knobs, self.knob_axes, strict=True)}
        schedule = Schedule(params["schedule"], float(params["exponent"]))
        base, part = params.get("base", EVEN), params.get("removal", EVEN_PART)
        return self.propose(params["size"], self._granularity(params), preferences, schedule, base, part)

    def params(
        self,
        size: float,
        granularity: str | Mapping[str, str],
        preferences: Mapping[str, float],
        schedule: Schedule,
        base: str = EVEN,
        part: float = EVEN_PART,
    ) -> dict[str, Any]:
        """Values of all `axes`, each within its range; `read` undoes it. Knobs not named are at 0."""
        low, high = self.size_range
        if self.mixed:
            size = self.reachable(size, granularity)  # one word a layer no longer tells that all are the same
            frame = PruningPolicy({}, granularity)
            words = {f"granularity.{name}": frame.granularity_of(name) for name in self.network.layer_names}
        else:
            words = {"granularity": granularity}
        shares = [min(max(preferences.get(knob, 0.0), 0.0), 1.0) for knob in self.knobs]
        knobs = dict(zip(self.knob_axes, shares, strict=True))
        exponent = min(max(schedule.exponent, EXPONENTS[0]), EXPONENTS[1])
        removal = min(max(part, REMOVAL[0]), REMOVAL[1])
        values = {"size": min(max(size, low), high), **words, "base": base, "removal": removal, **knobs}
        values |= {"schedule": schedule.kind, "exponent": exponent}
        return {axis.name: values[axis.name] for axis in self.axes}

    def propose(
        self,
        target: float,
        granularity: str | Mapping[str, str],
        preferences: Mapping[str, float],
        schedule: Schedule,
        base: str = EVEN,
        part: float = EVEN_PART,
    ) -> Proposal:
        """The policy nearest to the preferences whose size is within the target.

        A channel group asks for its first member's preference. Where whole layers (preference 0) make the
        target unreachable, they are asked for a little as well. Where a mixture cannot reach it (its floor may
        lie above those of its granularities: a group not wholly `channel` loses no channel), all layers take
        the granularity with the lowest floor.

        Of a combined word, channels land on target**part or, where masks cannot do the rest, on less; then masks land
        on the target. The preferences are those of both.
        """
        target = self.reachable(target, granularity)
        if is_two_stage(granularity):
            return self._propose_both(self.combined(target, granularity, part), preferences, schedule, base)
        where = self.target(target, granularity)
        sampled = self._by_layer(where, preferences, self.bases.logits(base, granularity, target))
        try:
            sparsity = self._land(sampled, where)
        except Unreachable:
            if isinstance(granularity, str):
                raise
            return self.propose(target, min(self.usable, key=self.floors.__getitem__), preferences, schedule, base)
        policy = PruningPolicy(sparsity, granularity, criterion=self.criterion, schedule=schedule)
        return Proposal(as_removed(self.network, policy), sampled, target)

    def _propose_both(
        self, where: TwoStage, preferences: Mapping[str, float], schedule: Schedule, base: str
    ) -> Proposal:
        below = self.bases.part_logits(base, where)
        sampled = self._by_layer(where.removal, preferences, below[0])
        removal = self._land(sampled, where.removal)
        rest = where.masks(removal)
        if where.fixed is None:
            asked = self._by_layer(rest, preferences, below[1])
            sampled, sparsity = sampled | asked, self._land(asked, rest)
        else:
            sparsity = where.fixed_masks(removal)
        policy = PruningPolicy(sparsity, rest.granularity, removal, self.criterion, schedule)
        return Proposal(as_removed(rest.network, policy), sampled, where.limits.share)

    def _land(self, sampled: Mapping[str, float], target: Target) -> dict[str, float]:
        try:
            return fit_by_shift(sampled, target)
        except Unreachable:
            return fit_by_shift({name: max(s, LIFTED) for name, s in sampled.items()}, target)

    def _by_layer(self, target: Target, preferences: Mapping[str, float], base: np.ndarray) -> dict[str, float]:
        """What the layers of a target ask for on top of a base's logits (layers,)."""
        names, channel = [layer.name for layer in target.layers], target.channel
        places = [self.leads[place] if channel[place] else place for place in map(self.place.__getitem__, names)]
        asked = np.array([min(preferences.get(self.knob_names[place], 0.0), 1 - LIFTED**2) for place in places])
        below = base[places]
        moved = np.where(below != 0, sigmoid(logits_of(asked) + below), asked)
        return dict(zip(names, moved.tolist(), strict=True))

    @cached_property
    def place(self) -> dict[str, int]:
        """Layer -> its place in the network."""
        return {name: place for place, name in enumerate(self.network.layer_names)}

    @cached_property
    def leads(self) -> list[int]:
        """Place of the first layer of each layer's channel group; its own without a group."""
        groups, layers = self.network.groups, self.network.prunable
        first = (
            layer.name if layer.channel_group is None else groups[layer.channel_group].layers[0] for layer in layers
        )
        return [self.place[name] for name in first]

    @cached_property
    def knob_names(self) -> list[str]:
        """The knob of each layer; a layer that none moves has its own name."""
        knob_of = {layer: knob for knob, layers in self.knobs.items() for layer in layers}
        return [knob_of.get(name, name) for name in self.network.layer_names]

    def draft(self, params: Mapping[str, Any], source: str = "") -> Draft:
        """The point that values of all `axes` stand for."""
        shares = np.minimum([params[name] for name in self.knob_axes], 1 - LIFTED**2)
        schedule = Schedule(params["schedule"], float(params["exponent"]))
        base, part = params.get("base", EVEN), params.get("removal", EVEN_PART)
        return Draft(source, params["size"], self._granularity(params), logits_of(shares), schedule, base, part)

    def _granularity(self, params: Mapping[str, Any]) -> str | dict[str, str]:
        if not self.mixed:
            return params["granularity"]
        return {name: params[f"granularity.{name}"] for name in self.network.layer_names}

    def params_of(self, draft: Draft) -> dict[str, Any]:
        """Values of all `axes` for a point; the mean logit of its knobs becomes 0."""
        shares = sigmoid(centred_logits(draft.logits))
        preferences = dict(zip(self.knobs, map(float, shares), strict=True))
        return self.params(draft.size, draft.granularity, preferences, draft.schedule, draft.base, draft.part)

    def logits(self, sparsity: Mapping[str, float]) -> np.ndarray:
        """Logit of each knob's sparsity (knobs,), read from its first layer."""
        return logits_of(np.array([sparsity.get(knob, 0.0) for knob in self.knobs]))

    def land(self, drafts: Sequence[Draft]) -> ProjectedBatch:
        """Points landed together, a little less exactly than `propose` does; see `spaces.search_space.projection`."""
        return self._landing.land(drafts)

    @cached_property
    def _landing(self) -> BatchProjector:
        return BatchProjector(self)

    def words(self, granularity: str | Mapping[str, str]) -> np.ndarray:
        """Each layer's granularity (layers,): its place in `granularities`."""
        if isinstance(granularity, str):
            return np.full(len(self.network.prunable), self.granularities.index(granularity))
        return np.array([self.granularities.index(granularity[name]) for name in self.network.layer_names])

    @property
    def seed_schedule(self) -> Schedule:
        """What known allocations are tried with: a cubic ramp, or the last kind there is to choose from."""
        kinds = self.schedules
        return SEED_SCHEDULE if SEED_SCHEDULE.kind in kinds else Schedule(kinds[-1], SEED_SCHEDULE.exponent)
