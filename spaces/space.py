"""The search space: what a trial samples, and the feasible policy it stands for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from math import ceil
from typing import Any, Protocol

import numpy as np

from spaces.allocation import (
    ALLOCATORS,
    SCANNED,
    Evidence,
    Target,
    Unreachable,
    allocate,
    land_by_shift,
)
from spaces.combined import (
    EVEN_PART,
    FLOOR_MARGIN,
    REMOVAL,
    Combined,
    allocate_both,
    divided,
    is_combined,
    preferences_of,
)
from spaces.criteria import check_criterion
from spaces.errors import check_limit, is_number, unknown
from spaces.landing import EVEN, LIFTED, Draft, Landed, Landing, logits_of, sigmoid
from spaces.landing import centred as centred_logits
from spaces.latency import Predictor
from spaces.layers import Network
from spaces.policy import CHOICES, PruningPolicy, parts_in, parts_of
from spaces.schedule import SCHEDULES, Schedule
from spaces.size import SIZE_METRICS, settled
from spaces.units import pattern_of

SPEEDS = ("macs", "latency")
SIZE_SPAN = 10.0
"""The smallest size target is the limit over this, or the floor below."""
LARGEST_TARGET = 0.9
"""Largest size target where the limit is the dense size, if all granularities go as low: at 1 nothing would go."""
EXPONENTS = (1.0, 5.0)
"""Range of the schedule's exponent, sampled on a log scale."""
MOST_KNOBS = 24
"""In networks of more layers, runs of neighbours share a knob, which moves them on top of a base allocation."""
BASE_SIZES, BASE_REACH = 5, 8.0
"""Log-spaced sizes a base is allocated at, and the largest logit it asks of a layer."""
SEARCHED_SCHEDULES = ("one-shot", "polynomial")
"""Schedules of a search that names none."""
SEED_SCHEDULE = Schedule("polynomial", 3.0)
SEED_SIZES = (0.0, 0.5, 0.25, 0.75, 0.125, 0.625)
"""Where seeds lie between the limit (0) and the smallest target (1), on a log scale; any first few spread."""


class Suggests(Protocol):
    """The part of an Optuna trial the space needs."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...

    def suggest_categorical(self, name: str, choices: list[str]) -> str: ...


def _check_words(what: str, words: Sequence[str], known: Sequence[str]) -> None:
    """Raise `ValueError` unless `words` are one or more of `known`, each once."""
    for word in () if isinstance(words, str) else words:
        if word not in known:
            raise ValueError(unknown(what, word, known))
    if isinstance(words, str) or not words or len(set(words)) < len(words):
        raise ValueError(f"give one {what} or more of {', '.join(known)}, each once, in a tuple, got {words!r}")


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
        granularities: choices, one for a whole policy, or one a layer when `mixed`; also combined words such as
            `channel+kernel`, a removal and then masks on what stays, which are for a whole policy only.
        criterion: fixed in a study.
        min_size: the smallest size target; by default `max_size` / `SIZE_SPAN`.
        max_macs: a further limit, a share of the dense MACs.
        max_latency: a further limit, a share of the dense latency as `latency` predicts it.
        latency: predicts it; needed by a limit on it, and by `speed` `latency`.
        speed: the third objective, `macs` or `latency`.
        schedules: kinds to choose from.
        evidence: by granularity, for combined words by both of theirs; networks of more than `MOST_KNOBS` layers need
            it, see `bases`.

    Raises:
        ValueError: a granularity or schedule is unknown or repeated, a granularity is not the criterion's, or a limit
            is no share in (0, 1].
        Unreachable: no granularity reaches the limits; the message names the reachable range.
    """

    network: Network
    max_size: float
    granularities: tuple[str, ...] = ("fine-grained", "channel")
    metric: str = "encoded"
    mixed: bool = False
    criterion: str = "magnitude-l2"
    min_size: float | None = None
    max_macs: float = 1.0
    max_latency: float = 1.0
    latency: Predictor | None = None
    speed: str = "macs"
    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    schedules: tuple[str, ...] = SEARCHED_SCHEDULES

    def __post_init__(self) -> None:
        if self.metric not in SIZE_METRICS:
            raise ValueError(unknown("size metric", self.metric, SIZE_METRICS))
        for name in ("max_size", "max_macs", "max_latency"):
            check_limit(name, getattr(self, name))
        if self.min_size is not None and not (is_number(self.min_size) and 0 < self.min_size <= self.max_size):
            raise ValueError(f"min_size must satisfy 0 < min_size <= {self.max_size:g}, got {self.min_size!r}")
        _check_words("granularity", self.granularities, CHOICES)
        _check_words("schedule", self.schedules, SCHEDULES)
        check_mixable(self.granularities, self.mixed)
        check_criterion(self.criterion, parts_in(self.granularities))
        if self.speed not in SPEEDS:
            raise ValueError(unknown("speed", self.speed, SPEEDS))
        if self.latency is None and (self.speed == "latency" or self.max_latency < 1):
            raise ValueError("a speed or limit of latency needs a predictor: measure a latency table first")
        words = ", ".join(self.granularities)
        speeds = {"MACs": (self.max_macs, self._macs_floors), "latency": (self.max_latency, self._latency_floors)}
        for name, (limit, floors) in speeds.items():
            if (smallest := min(floors.values())) > limit:
                raise Unreachable(
                    f"{name} limit {limit:g} cannot be reached by {words}: reachable is {smallest:.4f} to 1, and only "
                    f"removed channels lower it; set --max-{name.lower()} to at least {ceil(smallest * 1e4) / 1e4:.4f}"
                )
        if not self.usable:
            raise Unreachable(self._why_unreachable())

    def _why_unreachable(self) -> str:
        removing = [g for g in self.granularities if not self._obstacle(g)]
        fast = [g for g in removing if self._macs_floors[g] <= self.max_macs]
        fast = [g for g in fast if self._latency_floors[g] <= self.max_latency]
        if not removing:
            words = ", ".join(self.granularities)
            return f"{words} can remove nothing of this network: every layer stays whole, `prunefront inspect` says why"
        if not fast:
            reasons = "; ".join(f"{granularity}: {reason}" for granularity, reason in self.left_out.items())
            return f"no granularity is within all limits ({reasons}): raise one of them"
        smallest = min(self.floors[g] for g in fast)
        return (
            f"size limit {self.max_size:g} cannot be reached by {self.metric} size, {', '.join(fast)}: "
            f"reachable is {smallest:.4f} to 1; set --max-size to at least {ceil(smallest * 1e4) / 1e4:.4f}"
        )

    def target(self, share: float, granularity: str | Mapping[str, str]) -> Target:
        """A size to land on in this space, by one part if there are two."""
        return Target(self.network, share, granularity, self.metric, self.max_macs, self.max_latency, self.latency)

    def combined(self, share: float, word: str, part: float = EVEN_PART) -> Combined:
        """A size to land on in this space by the two parts of a combined word."""
        limits = self.target(share, parts_of(word)[-1])
        return Combined(word, replace(limits, network=self.divided[word]), part, self._least_by_removal[word])

    @cached_property
    def divided(self) -> dict[str, Network]:
        """Combined word -> the network on which it lands."""
        return {word: divided(self.network, word) for word in self.granularities if is_combined(word)}

    @cached_property
    def _least_by_removal(self) -> dict[str, float]:
        """Combined word -> the smallest sensible size of its removal alone."""
        wholes = {
            w: Combined(w, replace(self.target(1.0, parts_of(w)[-1]), network=n)) for w, n in self.divided.items()
        }
        return {word: whole.channel_floor * FLOOR_MARGIN for word, whole in wholes.items()}

    @cached_property
    def parted(self) -> bool:
        """Whether a combined word is among the choices."""
        return any(map(is_combined, self.usable))

    def _whole(self, word: str) -> Target | Combined:
        return self.combined(1.0, word) if is_combined(word) else self.target(1.0, word)

    def _obstacle(self, word: str) -> str | None:
        """Why a word can remove nothing; None if it can remove something."""
        whole = self._whole(word)
        if isinstance(whole, Combined):
            return whole.obstacle
        return None if whole.layers else "it can remove nothing of this network"

    @cached_property
    def floors(self) -> dict[str, float]:
        """Granularity -> smallest reachable share of the dense size."""
        return {g: self._whole(g).floor for g in self.granularities}

    @cached_property
    def _part_floors(self) -> dict[str, float]:
        return {g: self.target(1.0, g).floor for g in parts_in(self.granularities)}

    @cached_property
    def usable(self) -> tuple[str, ...]:
        """Granularities that can be within the limits by themselves."""
        return tuple(g for g in self.granularities if g not in self.left_out)

    @cached_property
    def choices(self) -> tuple[str, ...]:
        """Granularities a layer can have: the usable ones, and in mixtures fixed patterns that are within the limits
        only where other layers go further than they can."""
        return tuple(g for g in self.granularities if g in self.usable or (self.mixed and self._joins(g)))

    def _joins(self, granularity: str) -> bool:
        """Whether a fixed pattern is within the limits on some layer, the others in the smallest granularity."""
        pattern, lowest = pattern_of(granularity), min(self.usable, key=self.floors.__getitem__)
        able = self.target(1.0, granularity).layers if pattern and pattern.keep else ()
        frame = dict.fromkeys(self.network.layer_names, lowest)
        mixtures = (frame | {layer.name: granularity} for layer in sorted(able, key=lambda layer: layer.numel))
        return any(self._within_limits(self.target(1.0, mixture)) for mixture in mixtures)

    def _within_limits(self, target: Target) -> bool:
        within = target.floor <= self.max_size and target.macs_floor <= self.max_macs
        return within and target.latency_floor <= self.max_latency

    @cached_property
    def left_out(self) -> dict[str, str]:
        """Granularity that cannot be within the limits by itself -> the first reason."""
        reasons = {}
        for granularity in self.granularities:
            if obstacle := self._obstacle(granularity):
                reasons[granularity] = obstacle
            elif (floor := self.floors[granularity]) > self.max_size:
                reasons[granularity] = f"its smallest size is {floor:.4f}"
            elif (floor := self._macs_floors[granularity]) > self.max_macs:
                reasons[granularity] = f"its fewest MACs are {floor:.4f} of dense"
            elif (floor := self._latency_floors[granularity]) > self.max_latency:
                reasons[granularity] = f"its lowest latency is {floor:.4f} of dense"
        return reasons

    @cached_property
    def _macs_floors(self) -> dict[str, float]:
        return {g: self._whole(g).macs_floor for g in self.granularities}

    @cached_property
    def _latency_floors(self) -> dict[str, float]:
        return {g: self._whole(g).latency_floor for g in self.granularities}

    @cached_property
    def size_range(self) -> tuple[float, float]:
        """Smallest and largest size target."""
        floors = [self.floors[g] * FLOOR_MARGIN for g in self.usable]
        low, high = max(self.min_size or self.max_size / SIZE_SPAN, min(floors)), self.max_size
        if high == 1 and low <= LARGEST_TARGET:
            high = min(max(LARGEST_TARGET, *floors), high)
        return min(low, high), high

    def reachable(self, size: float, granularity: str | Mapping[str, str]) -> float:
        """The size, or where one granularity cannot go that low, the smallest sensible one of it."""
        if not isinstance(granularity, str):
            return size
        return min(max(size, self.floors[granularity] * FLOOR_MARGIN), self.max_size)

    @cached_property
    def knobs(self) -> dict[str, tuple[str, ...]]:
        """Knob -> the layers it moves: a channel group shares one when only channels are removed.

        Of more than `MOST_KNOBS`, runs of neighbours share one.
        """
        ends = np.linspace(0, len(self._movable), min(MOST_KNOBS, len(self._movable)) + 1).astype(int)
        runs = [self._movable[start:end] for start, end in pairwise(ends)]
        return {run[0][0]: tuple(layer for layers in run for layer in layers) for run in runs}

    @cached_property
    def _movable(self) -> list[tuple[str, ...]]:
        """What could have a knob of its own."""
        if self.choices == ("channel",):
            return [group.layers for group in self.network.groups if group.obstacle is None]
        return [(name,) for name in self.network.layer_names]

    @cached_property
    def bases(self) -> tuple[str, ...]:
        """Allocations the knobs can move: `even`, and where knobs are shared those the evidence allows."""
        if len(self._movable) <= MOST_KNOBS or not self.evidence:
            return (EVEN,)
        scanned = all(e.tradeoff for e in self.evidence.values())
        return (EVEN, *(name for name in ALLOCATORS if scanned or name not in SCANNED))

    @cached_property
    def axes(self) -> tuple[Axis, ...]:
        """What a trial samples, in order."""
        low, high = self.size_range
        layers = self.network.layer_names if self.mixed else ()
        return (
            Axis("size", low, high, log=True),
            *(Axis(f"granularity.{name}", choices=self.choices) for name in layers),
            *(() if self.mixed else (Axis("granularity", choices=self.usable),)),
            *((Axis("base", choices=self.bases),) if len(self.bases) > 1 else ()),
            *((Axis("removal", *REMOVAL),) if self.parted else ()),
            *(Axis(f"sparsity.{knob}") for knob in self.knobs),
            Axis("schedule", choices=self.schedules),
            Axis("exponent", *EXPONENTS, log=True),
        )

    def suggest(self, trial: Suggests) -> Proposal:
        """Sample a point and land it on its size target."""
        return self.read({axis.name: axis.suggest(trial) for axis in self.axes})

    def read(self, params: Mapping[str, Any]) -> Proposal:
        """The proposal that these values of all `axes` stand for."""
        preferences = {knob: params[f"sparsity.{knob}"] for knob in self.knobs}
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
        knobs = {f"sparsity.{knob}": min(max(preferences.get(knob, 0.0), 0.0), 1.0) for knob in self.knobs}
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
        if is_combined(granularity):
            return self._propose_both(self.combined(target, granularity, part), preferences, schedule, base)
        where = self.target(target, granularity)
        sampled = self._by_layer(where, preferences, self.base_logits(base, granularity, target))
        try:
            sparsity = self._land(sampled, where)
        except Unreachable:
            if isinstance(granularity, str):
                raise
            return self.propose(target, min(self.usable, key=self.floors.__getitem__), preferences, schedule, base)
        policy = PruningPolicy(sparsity, granularity, criterion=self.criterion, schedule=schedule)
        return Proposal(settled(self.network, policy), sampled, target)

    def _propose_both(
        self, where: Combined, preferences: Mapping[str, float], schedule: Schedule, base: str
    ) -> Proposal:
        below = self.part_logits(base, where)
        sampled = self._by_layer(where.removal, preferences, below[0])
        removal = self._land(sampled, where.removal)
        rest = where.masks(removal)
        if where.fixed is None:
            asked = self._by_layer(rest, preferences, below[1])
            sampled, sparsity = sampled | asked, self._land(asked, rest)
        else:
            sparsity = where.fixed_masks(removal)
        policy = PruningPolicy(sparsity, rest.granularity, removal, self.criterion, schedule)
        return Proposal(settled(rest.network, policy), sampled, where.limits.share)

    def _land(self, sampled: Mapping[str, float], target: Target) -> dict[str, float]:
        try:
            return land_by_shift(sampled, target)
        except Unreachable:
            return land_by_shift({name: max(s, LIFTED) for name, s in sampled.items()}, target)

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
        groups, layers = self.network.groups, self.network.layers
        first = (
            layer.name if layer.channel_group is None else groups[layer.channel_group].layers[0] for layer in layers
        )
        return [self.place[name] for name in first]

    @cached_property
    def knob_names(self) -> list[str]:
        """The knob of each layer; a layer that none moves has its own name."""
        knob_of = {layer: knob for knob, layers in self.knobs.items() for layer in layers}
        return [knob_of.get(name, name) for name in self.network.layer_names]

    def base_logits(self, name: str, granularity: str | Mapping[str, str], size: float) -> np.ndarray:
        """Logits (layers,) a base asks for at a size, linear between its sizes in the logarithm of the size."""
        if name == EVEN:
            return np.zeros(len(self.network.layers))
        if not isinstance(granularity, str):
            words = self.words(granularity)
            bases = (self.base_logits(name, word, size) for word in self.usable)
            places = map(self.granularities.index, self.usable)
            return sum(base * (words == place) for base, place in zip(bases, places, strict=True))
        return self._base_along(name, granularity, size, self.size_range)

    def part_logits(self, name: str, where: Combined) -> tuple[np.ndarray, np.ndarray]:
        """Logits (layers,) a base asks for of the removal and of the masks, each at its own share of the reduction."""
        if name == EVEN:
            nothing = np.zeros(len(self.network.layers))
            return nothing, nothing
        low, high = self.size_range
        sizes = low ** REMOVAL[1], high ** REMOVAL[0]
        shares = (where.removal.aim, where.mask_share)
        channel, masks = (
            self._base_along(name, word, size, sizes) for word, size in zip(parts_of(where.word), shares, strict=True)
        )
        return channel, masks

    def _base_along(self, name: str, granularity: str, size: float, sizes: tuple[float, float]) -> np.ndarray:
        low, high = sizes
        place = (BASE_SIZES - 1) * (math.log(high / size) / math.log(high / low) if high > low else 0.0)
        first = int(min(max(place, 0), BASE_SIZES - 2))
        part = min(max(place - first, 0.0), 1.0)
        before, after = (self._base_at(name, granularity, n, sizes) for n in (first, first + 1))
        return before * (1 - part) + after * part

    def _base_at(self, name: str, granularity: str, place: int, sizes: tuple[float, float]) -> np.ndarray:
        """The same at one of `BASE_SIZES` sizes; `even` where the allocation cannot reach it."""
        if (key := (name, granularity, place, sizes)) not in self._base_logits:
            low, high = sizes
            size = high * (low / high) ** (place / (BASE_SIZES - 1))
            size = min(max(size, self._part_floors[granularity] * FLOOR_MARGIN), high)
            try:
                found = allocate(name, self.target(size, granularity), self.evidence[granularity])
            except Unreachable:
                found = {}
            shares = np.array([found.get(layer, 0.5 if not found else 0.0) for layer in self.network.layer_names])
            self._base_logits[key] = np.clip(logits_of(shares), -BASE_REACH, BASE_REACH)
        return self._base_logits[key]

    @cached_property
    def _base_logits(self) -> dict[tuple[str, str, int, tuple[float, float]], np.ndarray]:
        return {}

    def draft(self, params: Mapping[str, Any], source: str = "") -> Draft:
        """The point that values of all `axes` stand for."""
        shares = np.minimum([params[f"sparsity.{knob}"] for knob in self.knobs], 1 - LIFTED**2)
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

    def land(self, drafts: Sequence[Draft]) -> Landed:
        """Points landed together, a little less exactly than `propose` does; see `spaces.landing`."""
        return self._landing.land(drafts)

    @cached_property
    def _landing(self) -> Landing:
        return Landing(self)

    def words(self, granularity: str | Mapping[str, str]) -> np.ndarray:
        """Each layer's granularity (layers,): its place in `granularities`."""
        if isinstance(granularity, str):
            return np.full(len(self.network.layers), self.granularities.index(granularity))
        return np.array([self.granularities.index(granularity[name]) for name in self.network.layer_names])

    @property
    def seed_schedule(self) -> Schedule:
        """What known allocations are tried with: a cubic ramp, or the last kind there is to choose from."""
        kinds = self.schedules
        return SEED_SCHEDULE if SEED_SCHEDULE.kind in kinds else Schedule(kinds[-1], SEED_SCHEDULE.exponent)

    def seeds(self, evidence: Mapping[str, Evidence]) -> Iterator[Seed]:
        """Static allocations and the scan's, spread over sizes and granularities; any first few spread.

        Args:
            evidence: by granularity, for combined words by both of theirs.
        """
        scanned = all(e.tradeoff for e in evidence.values())
        names = [name for name in ALLOCATORS if scanned or name not in SCANNED]
        low, high = self.size_range
        seen = set()
        for turn in range(len(SEED_SIZES) * len(names)):
            size = high * (low / high) ** SEED_SIZES[(turn // len(names) + turn % len(names)) % len(SEED_SIZES)]
            name = names[turn % len(names)]
            for granularity in self.usable:
                if name == "scan-speed" and "channel" not in parts_of(granularity):
                    continue  # masks change no MACs
                seed = self._seed(name, granularity, self.reachable(size, granularity), evidence)
                if seed is not None and (key := tuple(seed.params.items())) not in seen:
                    seen.add(key)
                    yield seed

    def allocated(self, name: str, size: float, granularity: str, evidence: Mapping[str, Evidence]) -> PruningPolicy:
        """The policy of an allocator at a size; of a combined word its removal does half of the reduction.

        Raises:
            Unreachable: the allocator cannot give that size.
        """
        if is_combined(granularity):
            where = self.combined(size, granularity)
            policy = settled(where.limits.network, allocate_both(name, where, evidence))
        else:
            sparsity = allocate(name, self.target(size, granularity), evidence[granularity])
            policy = PruningPolicy(sparsity, granularity)
        return replace(policy, criterion=self.criterion, schedule=self.seed_schedule)

    def _seed(self, allocator: str, granularity: str, size: float, evidence: Mapping[str, Evidence]) -> Seed | None:
        try:
            policy = self.allocated(allocator, size, granularity, evidence)
        except Unreachable:
            return None
        if len(self.bases) > 1:
            params = self.params(size, granularity, dict.fromkeys(self.knobs, 0.5), self.seed_schedule, allocator)
        else:
            params = self.params(size, granularity, preferences_of(policy), self.seed_schedule)
        return Seed(allocator, granularity, params)


def check_mixable(granularities: Sequence[str], mixed: bool) -> None:
    """Raise `ValueError` if layers may differ and a word among the choices is for a whole policy only."""
    whole = [word for word in granularities if is_combined(word)]
    if mixed and whole:
        raise ValueError(f"granularity {whole[0]!r} is for a whole policy, not for mixed layers: leave one of them out")
