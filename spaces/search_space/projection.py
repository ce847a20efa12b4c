"""Points of a space fitted to their size: the policy each stands for, its costs, and what tells it from others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from spaces.allocation.budget import Target, Unreachable, fit_by_shift
from spaces.allocation.importance import AllocationInputs
from spaces.allocation.two_stage import EVEN_PART, TwoStage, is_two_stage
from spaces.cost.effect import as_removed, fine_tune_key
from spaces.cost.footprint import RelativeCost, dense_footprint, footprint, relative_cost
from spaces.granularity import parts_in
from spaces.policy import PruningPolicy
from spaces.schedule import Schedule
from spaces.search_space.base_allocations import BaseAllocations
from spaces.search_space.batch_projection import BatchProjector, ProjectedBatch
from spaces.search_space.logits import LIFTED, logits_of, sigmoid
from spaces.search_space.space import EVEN, Draft, Space

REMEMBERED = 256
"""Latest projections that a projector keeps: more than a proposal has candidates, or most studies initial points."""


@dataclass(frozen=True)
class Projected:
    """A point of a space and the policy it stands for; what else follows is worked out once, when first asked for.

    Attributes:
        params: values of all the space's axes.
        policy: within all limits: its size is at most `target`.
        sampled: layer -> sampled preference, a sparsity before the common shift.
        target: the sampled size, a share of the dense model, or the nearest one its granularity and bits can have.
    """

    space: Space = field(repr=False, compare=False)
    params: Mapping[str, Any]
    policy: PruningPolicy
    sampled: Mapping[str, float]
    target: float

    @cached_property
    def draft(self) -> Draft:
        """The point as the guided search moves it."""
        return self.space.draft(self.params)

    @cached_property
    def cost(self) -> RelativeCost:
        """Both sizes and the MACs before any training, as shares of the dense network's."""
        network = self.space.network
        return relative_cost(footprint(network, self.policy), dense_footprint(network))

    @cached_property
    def latency(self) -> float | None:
        """Predicted share of the dense network's latency; None in a space without a predictor."""
        return self.space.latency.share(self.policy) if self.space.latency else None

    @cached_property
    def key(self) -> str:
        """Equal for policies whose fine-tunes would be alike, see `spaces.cost.effect.fine_tune_key`."""
        return fine_tune_key(self.space.network, self.policy)


class Projector:
    """Fits points of a space to their sizes, within its limits, and remembers the latest.

    Args:
        inputs: by granularity, for two-stage ones by both of their parts, what allocators know of the trained weights.
            Only spaces whose knobs move allocations need it to fit points.

    Raises:
        ValueError: the inputs of a granularity are missing where they are needed.
    """

    def __init__(self, space: Space, inputs: Mapping[str, AllocationInputs] | None = None) -> None:
        self.space, self.inputs = space, {} if inputs is None else inputs
        missing = [name for name in parts_in(space.usable) if name not in self.inputs]
        if len(space.base_names) > 1 and missing:
            raise ValueError(f"knobs move allocations here: give the inputs of {', '.join(missing)} as well")
        self._base_allocations = BaseAllocations(space, self.inputs)
        self._remembered = lru_cache(REMEMBERED)(self._of_values)

    def project(self, point: Draft | Mapping[str, Any]) -> Projected:
        """The policy a draft, or values of all axes, stand for; the same object while it is remembered."""
        params = self.space.params_of(point) if isinstance(point, Draft) else point
        return self._remembered(tuple(params[axis.name] for axis in self.space.axes))

    def _of_values(self, values: tuple[Any, ...]) -> Projected:
        return self.fit({axis.name: value for axis, value in zip(self.space.axes, values, strict=True)})

    def fit(self, params: Mapping[str, Any]) -> Projected:
        """The policy nearest to the preferences whose size is within the target, worked out anew.

        A channel group asks for its first layer's preference. Where layers of preference 0 make the target
        unreachable, they are asked for a little as well. Where a mixture cannot reach it (its smallest size may lie
        above those of its granularities: a group not wholly `channel` loses no channel), all layers take the
        granularity that goes lowest. Where a granularity for all layers cannot be within the limit at the point's bits,
        it takes the most at which it can. Where bits alone meet all limits, nothing is removed.

        Of a two-stage granularity, channels are fitted to target**fraction or, where masks cannot do the rest, to less;
        then masks are fitted to the target. The preferences are those of both.

        Args:
            params: values of all axes; a size below what its granularity reaches is taken to the smallest sensible one.
        """
        space = self.space
        preferences = {knob: float(params[name]) for knob, name in zip(space.knobs, space.knob_axes, strict=True)}
        schedule = Schedule(params["schedule"], float(params["exponent"]))
        base, granularity = params.get("base", EVEN), space.granularity_in(params)
        bits = space.bits_within(granularity, space.bits_in(params))
        size = float(space.reachable(float(params["size"]), granularity, bits))
        if isinstance(granularity, str) and is_two_stage(granularity):
            stages = space.two_stage(size, granularity, float(params.get("removal", EVEN_PART)), bits)
            policy, sampled = self._in_two_stages(stages, preferences, schedule, base)
        else:
            target = space.target(size, granularity, bits)
            try:
                policy, sampled = self._in_one_stage(target, preferences, schedule, base)
            except Unreachable:
                if isinstance(granularity, str):
                    raise
                granularity = min(space.usable, key=space.floors.__getitem__)
                bits = space.bits_within(granularity, bits)
                size = float(space.reachable(size, granularity, bits))
                target = space.target(size, granularity, bits)
                policy, sampled = self._in_one_stage(target, preferences, schedule, base)
        return Projected(space, dict(params), policy, sampled, size)

    def project_batch(self, drafts: Sequence[Draft]) -> ProjectedBatch:
        """Many points at once, a little less exactly; see `spaces.search_space.batch_projection`."""
        return self._batch.project(drafts)

    @cached_property
    def _batch(self) -> BatchProjector:
        return BatchProjector(self.space, self._base_allocations)

    def _in_one_stage(
        self, target: Target, preferences: Mapping[str, float], schedule: Schedule, base: str
    ) -> tuple[PruningPolicy, dict[str, float]]:
        """The policy, and what each layer asked for before the shift."""
        granularity, bits = target.granularity, target.bits
        below = self._base_allocations.logits(base, granularity, target.share, bits)
        asked = self._by_layer(target, preferences, below)
        criterion, sparsity = self.space.criterion, _fitted(asked, target)
        policy = PruningPolicy(sparsity, granularity, criterion=criterion, schedule=schedule, bits=bits)
        return as_removed(self.space.network, policy), asked

    def _in_two_stages(
        self, stages: TwoStage, preferences: Mapping[str, float], schedule: Schedule, base: str
    ) -> tuple[PruningPolicy, dict[str, float]]:
        """The same, of channels first and of masks on what stays."""
        below_channels, below_masks = self._base_allocations.two_stage_logits(base, stages)
        asked = self._by_layer(stages.removal, preferences, below_channels)
        removal = _fitted(asked, stages.removal)
        rest = stages.masks(removal)
        if stages.fixed is None:
            masks = self._by_layer(rest, preferences, below_masks)
            asked, sparsity = asked | masks, _fitted(masks, rest)
        else:
            sparsity = stages.fixed_masks(removal)
        policy = PruningPolicy(sparsity, rest.granularity, removal, self.space.criterion, schedule, rest.bits)
        return as_removed(rest.network, policy), asked

    def _by_layer(self, target: Target, preferences: Mapping[str, float], base: np.ndarray) -> dict[str, float]:
        """What the target's layers ask for: preferences on top of a base allocation's logits (layers,)."""
        space, channel = self.space, target.channel
        names = [layer.name for layer in target.layers]
        own = [space.layer_index[name] for name in names]
        asking = [space.first_of_group[index] if channel[index] else index for index in own]
        asked = np.array([min(preferences.get(space.knob_of_layer[n], 0.0), 1 - LIFTED**2) for n in asking])
        below = base[asking]
        moved = np.where(below != 0, sigmoid(logits_of(asked) + below), asked)
        return dict(zip(names, moved.tolist(), strict=True))


def _fitted(asked: Mapping[str, float], target: Target) -> dict[str, float]:
    """Sparsities shifted until they meet the target; layers at 0 ask for a little where they must."""
    try:
        return fit_by_shift(asked, target)
    except Unreachable:
        return fit_by_shift({name: max(s, LIFTED) for name, s in asked.items()}, target)
