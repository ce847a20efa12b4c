"""A policy carried out step by step, along its schedule, while a network is fine-tuned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from pruning.calibration import Calibration
from pruning.channels.graph import ChannelGraph
from pruning.channels.plan import RemovalPlan
from pruning.channels.removal import shrink
from pruning.channels.structure import Structure
from pruning.copying import copy_model
from pruning.importance.reconstruction import refit_next_layers
from pruning.importance.scores import defined_groups
from pruning.masks import apply_masks_
from pruning.policy_masks import masks_inside, policy_masks
from pruning.schedule import mask_updates
from spaces.policy import PruningPolicy
from spaces.schedule import Schedule

STATISTICS = ("running_mean", "running_var")
"""Of a BatchNorm's channels: those of a masked channel decay, and come back with it."""


def _kept_by_both(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    both = {name: first[name].to(mask.device) & mask for name, mask in second.items() if name in first}
    return {**first, **second, **both}


class GradualPruner:
    """Takes a training run along a policy's schedule.

    Channels are masked during the ramp and removed at its end; a one-shot policy is carried out before
    the first step. Masked weights never come back, unless the schedule lets them regrow: then they are scored at each
    update by the values they were masked at, and those that are chosen take these up again. Where training changes
    which channels go, the units masks are cut into can move; what is masked stays masked then, so that a layer can end
    with more zeros than its policy asks for, never with fewer. Scores are worked out
    again at every mask update, those of data-driven criteria on the `SCORE_EXAMPLES` examples of `calibration`. With
    `reconstruction`, the next layers are refitted when the channels go.

    Args:
        steps: of the training.
        in_place: once training has begun, the model stays the same object: channels of a ramp are masked at its end,
            and removed by `remove`. Nothing is refitted then.

    Attributes:
        schedule: the policy's.
        model: the model to train now; another object after channels were removed.
        masks: parameter name -> bool mask on `model`.
        structure: what has been removed from the dense model so far.
        settled: whether the last mask update was made, so that nothing more is chosen.
    """

    def __init__(
        self,
        model: nn.Module,
        policy: PruningPolicy,
        steps: int,
        graph: ChannelGraph,
        calibration: Calibration | None = None,
        in_place: bool = False,
    ) -> None:
        self.schedule, self.model = policy.schedule, model
        self.masks: Mapping[str, Tensor] = {}
        self.structure = Structure({})
        self._policy, self._calibration = policy, calibration
        self._graph = defined_groups(graph, policy.criterion)  # once: training changes no architecture
        self._updates = mask_updates(steps, self.schedule)
        self._in_place, self._last = in_place, -1
        self._plan: RemovalPlan | None = None
        self._masked: dict[str, Tensor] = {}
        self._gone: list[tuple[nn.Parameter, Tensor]] = []
        self._held: Mapping[str, Tensor] | None = None
        self._holds: nn.Module | None = None
        self.settled = False

    def advance(self, step: int) -> bool:
        """Bring the model to the sparsity due before `step` (0-based); True if `model` is a new object.

        Call it for every step, and once more with `steps` after the last.
        """
        if step not in self._updates or self.settled:
            return False
        progress, self._last = self._updates[step], step
        self.settled = step == max(self._updates)
        self._regrow()
        removes = self.settled and not (self._in_place and step > 0)
        before = copy_model(self.model) if self._refits and removes else self.model
        chosen, plan = policy_masks(self.model, self._policy, progress, self._graph, self._calibration)
        self.masks = chosen if self.schedule.regrow else _kept_by_both(self.masks, chosen)
        self._remember()
        self.hold()
        if not self.settled or plan is None or not plan.structure.kept:
            return False
        self._plan = plan
        if not removes:
            return False
        self.remove()
        if self._refits and self._calibration is not None:
            self.model = refit_next_layers(before, self.model, plan, self._calibration)
            self.hold()
        return True

    def catch_up(self, step: int) -> bool:
        """`advance` to the last update that is due by a step, for a loop that may pass over some."""
        due = [update for update in self._updates if self._last < update <= step]
        return self.advance(max(due)) if due else False

    def of_length(self, steps: int) -> None:
        """Take another number of steps for the training's; before its first step only."""
        self._updates = mask_updates(steps, self.schedule)

    def remove(self) -> None:
        """Take out the channels that are chosen and only masked so far; `model` is a new object if there are any.

        Raises:
            RemovalMismatch: a removal that does not equal its mask.
        """
        if self._plan is not None:
            self.model = shrink(self.model, self._plan)
            self.structure = self._plan.structure
            self.masks = masks_inside(self.masks, self._policy, self._plan)
            self._plan = None

    @torch.no_grad()
    def _regrow(self) -> None:
        """Give masked weights, and the statistics of masked channels, the values they were masked at."""
        state = self.model.state_dict()
        for name, values in self._masked.items():
            path, _, attribute = name.rpartition(".")
            mask = self.masks[f"{path}.weight" if attribute in STATISTICS else name]
            state[name].copy_(torch.where(mask.to(values.device), state[name], values))

    def _remember(self) -> None:
        if self.schedule.regrow and not self.settled:
            state = self.model.state_dict()
            norms = {name.removesuffix("weight") for name, mask in self.masks.items() if mask.dim() == 1}
            names = [*self.masks, *(norm + kind for norm in norms for kind in STATISTICS if norm + kind in state)]
            self._masked = {name: state[name].clone() for name in names}

    @property
    def _refits(self) -> bool:
        return self._policy.criterion == "reconstruction"

    def hold(self) -> None:
        """Set masked weights to zero again; call it after every optimizer step."""
        if self._held is not self.masks or self._holds is not self.model:
            apply_masks_(self.model, self.masks)  # which checks them
            parameters = dict(self.model.named_parameters())
            self._gone = [(parameters[name], ~mask.to(parameters[name].device)) for name, mask in self.masks.items()]
            self._held, self._holds = self.masks, self.model
        else:
            with torch.no_grad():
                for parameter, gone in self._gone:
                    parameter.masked_fill_(gone, 0)


def pruned_at_once(
    model: nn.Module, policy: PruningPolicy, graph: ChannelGraph, calibration: Calibration | None = None
) -> GradualPruner:
    """A pruner that has carried out all of the policy, whatever its schedule; the arguments are the pruner's."""
    pruner = GradualPruner(model, replace(policy, schedule=Schedule("one-shot")), 1, graph, calibration)
    pruner.advance(0)
    return pruner
