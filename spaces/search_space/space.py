"""The search space: what a trial samples, and how the values it sampled are written down.

What the values stand for, a policy within the limits, is worked out by `spaces.search_space.projection`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from spaces.allocation.allocators import ALLOCATORS, SCANNED
from spaces.allocation.two_stage import EVEN_PART, REMOVAL
from spaces.bits import FLOAT_BITS
from spaces.criteria import check_criterion
from spaces.granularity import parts_in
from spaces.policy import PruningPolicy
from spaces.schedule import SCHEDULES, Schedule
from spaces.search_space.limits import Limits
from spaces.search_space.logits import LIFTED, centred, logits_of, sigmoid
from spaces.validation import check_words, unknown

SPEEDS = ("macs", "latency")
PREFERENCE, OLD_PREFERENCE = "preference", "sparsity"
"""How the name of a knob's axis begins, `preference.LAYER`; studies begun by an earlier version have the older one."""
EXPONENTS = (1.0, 5.0)
"""Range of the schedule's exponent, sampled on a log scale."""
MOST_KNOBS = 24
"""In networks of more layers, runs of neighbours share a knob, which moves them on top of a base allocation."""
SEARCHED_SCHEDULES = ("one-shot", "polynomial")
"""Schedules of a search that names none."""
SEED_SCHEDULE = Schedule("polynomial", 3.0)
EVEN = "even"
"""The base allocation that asks the same of every layer."""
MIXED = "mixed"
"""What a draft's granularity is called where layers differ."""


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
        """The value that a trial's sampler gives it."""
        if self.choices:
            return trial.suggest_categorical(self.name, list(self.choices))
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)


@dataclass(frozen=True)
class Draft:
    """A point of a space as the guided search moves it, before it is fitted to its size.

    Attributes:
        source: how it was drawn.
        size: target, a share of the dense model.
        granularity: one, or layer -> granularity where layers may differ.
        logits: of each knob's preference (knobs,); minus infinity leaves the knob's layers unpruned.
        base: name of the allocation that the knobs move; `even` in networks whose layers have a knob each.
        channel_fraction: of a two-stage granularity, the share of the logarithm of the size reduction that the removal
            of channels does, the axis `removal`; of others without effect.
        bits: width of a stored value, or layer -> width where layers may differ.
    """

    source: str
    size: float
    granularity: str | Mapping[str, str]
    logits: np.ndarray
    schedule: Schedule
    base: str = EVEN
    channel_fraction: float = EVEN_PART
    bits: int | Mapping[str, int] = FLOAT_BITS

    @property
    def label(self) -> str:
        """The granularity, or `mixed`."""
        return self.granularity if isinstance(self.granularity, str) else MIXED


@dataclass(frozen=True)
class Space(Limits):
    """Size target, per-layer preferences, granularity, bits, schedule and exponent of a study's trials.

    Attributes:
        criterion: fixed in a study.
        speed: the third objective, `macs` or `latency`.
        schedules: kinds to choose from.
        knob_prefix: `PREFERENCE`, or in studies begun with it `OLD_PREFERENCE`; it begins the names of the knobs' axes.
        allocations: names of the allocations that knobs can move where layers share them, see `allocator_names`;
            whoever fits points then needs what these allocators know of the weights.

    Raises:
        ValueError: a schedule is unknown or repeated, an allocation is unknown, a granularity is not the criterion's;
            and as `Limits` do.
        Unreachable: no granularity reaches the limits; the message names the reachable range.
    """

    criterion: str = "magnitude-l2"
    speed: str = "macs"
    schedules: tuple[str, ...] = SEARCHED_SCHEDULES
    knob_prefix: str = PREFERENCE
    allocations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_words("schedule", self.schedules, SCHEDULES)
        check_criterion(self.criterion, parts_in(self.granularities))
        if self.speed not in SPEEDS:
            raise ValueError(unknown("speed", self.speed, SPEEDS))
        if self.latency is None and self.speed == "latency":
            raise ValueError("latency as the third objective needs a predictor: measure a latency table first")
        for name in self.allocations:
            if name not in ALLOCATORS:
                raise ValueError(unknown("allocation", name, ALLOCATORS))

    @cached_property
    def knobs(self) -> dict[str, tuple[str, ...]]:
        """Knob -> the layers it moves; a knob is named after the first of them.

        Each layer has its own, or where only channels are removed, each channel group. Where that makes more than
        `MOST_KNOBS`, runs of neighbours share one.
        """
        ends = np.linspace(0, len(self._movable), min(MOST_KNOBS, len(self._movable)) + 1).astype(int)
        runs = [self._movable[start:end] for start, end in pairwise(ends)]
        return {run[0][0]: tuple(layer for layers in run for layer in layers) for run in runs}

    @cached_property
    def knob_axes(self) -> tuple[str, ...]:
        """Name of each knob's axis."""
        return tuple(f"{self.knob_prefix}.{knob}" for knob in self.knobs)

    @cached_property
    def _movable(self) -> list[tuple[str, ...]]:
        """What could have a knob of its own."""
        if self.choices == ("channel",):
            return [group.layers for group in self.network.groups if group.obstacle is None]
        return [(name,) for name in self.network.layer_names]

    @property
    def base_names(self) -> tuple[str, ...]:
        """Allocations that knobs move: `even`, and those of `allocations` if layers that could each have a knob share
        some."""
        return (EVEN, *self.allocations) if len(self._movable) > MOST_KNOBS else (EVEN,)

    @cached_property
    def axes(self) -> tuple[Axis, ...]:
        """What a trial samples, in order."""
        low, high = self.size_range
        layers = self.network.layer_names if self.mixed else ()
        return (
            Axis("size", low, high, log=True),
            *(Axis(f"granularity.{name}", choices=self.choices) for name in layers),
            *(() if self.mixed else (Axis("granularity", choices=self.usable),)),
            *self._bit_axes,
            *((Axis("base", choices=self.base_names),) if len(self.base_names) > 1 else ()),
            *((Axis("removal", *REMOVAL),) if self.has_two_stage else ()),
            *(Axis(name) for name in self.knob_axes),
            Axis("schedule", choices=self.schedules),
            Axis("exponent", *EXPONENTS, log=True),
        )

    @property
    def _bit_axes(self) -> tuple[Axis, ...]:
        """None where there is nothing to choose."""
        names = [f"bits.{name}" for name in self.network.layer_names] if self.mixed else ["bits"]
        choices = tuple(map(str, self.bits))
        return tuple(Axis(name, choices=choices) for name in names) if len(choices) > 1 else ()

    def sample(self, trial: Suggests) -> dict[str, Any]:
        """Values of all `axes`, as the trial's sampler gives them."""
        return {axis.name: axis.suggest(trial) for axis in self.axes}

    def params(
        self,
        size: float,
        granularity: str | Mapping[str, str],
        preferences: Mapping[str, float],
        schedule: Schedule,
        base: str = EVEN,
        channel_fraction: float = EVEN_PART,
        bits: int | Mapping[str, int] | None = None,
    ) -> dict[str, Any]:
        """Values of all `axes`, each taken to the nearest end of its range. Knobs not named are at 0.

        Args:
            bits: of the space's; by default its largest.

        Raises:
            ValueError: one granularity or width a layer where they are not mixed, or a width the space does not have.
        """
        low, high = self.size_range
        bits = max(self.bits) if bits is None else bits
        if self.mixed:  # one value a layer no longer tells that all are the same
            size, bits = self.reachable(size, granularity, bits), self.bits_within(granularity, bits)
            frame = PruningPolicy({}, granularity)
            chosen = {f"granularity.{name}": frame.granularity_of(name) for name in self.network.layer_names}
        elif isinstance(granularity, str):
            chosen = {"granularity": granularity}
        else:
            raise ValueError(f"one granularity for all layers is needed where they are not mixed, got {granularity!r}")
        chosen |= self._bit_values(bits)
        asked = [min(max(preferences.get(knob, 0.0), 0.0), 1.0) for knob in self.knobs]
        knobs = dict(zip(self.knob_axes, asked, strict=True))
        exponent = min(max(schedule.exponent, EXPONENTS[0]), EXPONENTS[1])
        removal = min(max(channel_fraction, REMOVAL[0]), REMOVAL[1])
        values = {"size": min(max(size, low), high), **chosen, "base": base, "removal": removal, **knobs}
        values |= {"schedule": schedule.kind, "exponent": exponent}
        return {axis.name: values[axis.name] for axis in self.axes}

    def _bit_values(self, bits: int | Mapping[str, int]) -> dict[str, str]:
        """Values of the axes of bits."""
        by_layer = dict(zip(self.network.layer_names, self.layer_bits(bits).tolist(), strict=True))
        if missing := set(by_layer.values()) - set(self.bits):
            raise ValueError(f"bits must be of this space's {', '.join(map(str, self.bits))}, got {min(missing)}")
        if self.mixed:
            return {f"bits.{name}": str(width) for name, width in by_layer.items()}
        if len(set(by_layer.values())) > 1:
            raise ValueError(f"one width for all layers is needed where they are not mixed, got {bits!r}")
        return {"bits": str(next(iter(by_layer.values())))}

    def draft(self, params: Mapping[str, Any], source: str = "") -> Draft:
        """The point that values of all `axes` stand for."""
        preferences = np.minimum([params[name] for name in self.knob_axes], 1 - LIFTED**2)
        schedule = Schedule(params["schedule"], float(params["exponent"]))
        base, fraction = params.get("base", EVEN), params.get("removal", EVEN_PART)
        granularity, bits = self.granularity_in(params), self.bits_in(params)
        return Draft(source, params["size"], granularity, logits_of(preferences), schedule, base, fraction, bits)

    def granularity_in(self, params: Mapping[str, Any]) -> str | dict[str, str]:
        """The granularity that values of all `axes` stand for; layer -> granularity where layers may differ."""
        if not self.mixed:
            return params["granularity"]
        return {name: params[f"granularity.{name}"] for name in self.network.layer_names}

    def bits_in(self, params: Mapping[str, Any]) -> int | dict[str, int]:
        """The width of a stored value that values of all `axes` stand for; layer -> width where layers differ."""
        if len(self.bits) == 1:
            return self.bits[0]
        if not self.mixed:
            return int(params["bits"])
        by_layer = {name: int(params[f"bits.{name}"]) for name in self.network.layer_names}
        widths = set(by_layer.values())
        return by_layer if len(widths) > 1 else widths.pop()

    def params_of(self, draft: Draft) -> dict[str, Any]:
        """Values of all `axes` for a point; the mean logit of its knobs becomes 0."""
        preferences = dict(zip(self.knobs, map(float, sigmoid(centred(draft.logits))), strict=True))
        return self.params(
            draft.size, draft.granularity, preferences, draft.schedule, draft.base, draft.channel_fraction, draft.bits
        )

    def logits(self, sparsity: Mapping[str, float]) -> np.ndarray:
        """Logit of each knob's sparsity (knobs,), read from its first layer."""
        return logits_of(np.array([sparsity.get(knob, 0.0) for knob in self.knobs]))

    @cached_property
    def layer_index(self) -> dict[str, int]:
        """Layer -> its index in the network."""
        return {name: index for index, name in enumerate(self.network.layer_names)}

    @cached_property
    def first_of_group(self) -> list[int]:
        """For each layer, the index of the first layer of its channel group; its own index without a group."""
        groups, layers = self.network.groups, self.network.prunable
        first = (
            layer.name if layer.channel_group is None else groups[layer.channel_group].layers[0] for layer in layers
        )
        return [self.layer_index[name] for name in first]

    @cached_property
    def knob_of_layer(self) -> list[str]:
        """The knob of each layer, in the network's order; a layer that none moves has its own name."""
        knob_of = {layer: knob for knob, layers in self.knobs.items() for layer in layers}
        return [knob_of.get(name, name) for name in self.network.layer_names]

    def granularity_indices(self, granularity: str | Mapping[str, str]) -> np.ndarray:
        """Of each layer (layers,), the index of its granularity in `granularities`."""
        if isinstance(granularity, str):
            return np.full(len(self.network.prunable), self.granularities.index(granularity))
        return np.array([self.granularities.index(granularity[name]) for name in self.network.layer_names])

    def layer_bits(self, bits: int | Mapping[str, int]) -> np.ndarray:
        """Width of a stored value of each layer (layers,); layers without an entry have 32."""
        names = self.network.layer_names
        return np.array([bits if isinstance(bits, int) else bits.get(name, FLOAT_BITS) for name in names], dtype=int)

    @property
    def seed_schedule(self) -> Schedule:
        """What known allocations are tried with: a cubic ramp, or the last kind there is to choose from."""
        kinds = self.schedules
        return SEED_SCHEDULE if SEED_SCHEDULE.kind in kinds else Schedule(kinds[-1], SEED_SCHEDULE.exponent)


def allocator_names(scanned: bool) -> tuple[str, ...]:
    """Names of all allocators, but without a sensitivity scan for those that need none."""
    return tuple(name for name in ALLOCATORS if scanned or name not in SCANNED)
