"""The learning rate of a fine-tune, by the damage that it is to mend.

A fine-tune at the rate that suits a network with a tenth of its weights makes one with half of them worse than it was
pruned. How much there is to mend is known before training: the calibration loss of the network with all of the policy
applied at once, weights rounded and running statistics averaged anew, beside that of the dense model.
"""

from __future__ import annotations

import math

from torch import nn

from pruning.calibration import Calibration
from pruning.channels.graph import ChannelGraph
from pruning.copying import copy_model
from pruning.file.stored_form import round_weights_
from pruning.gradual import pruned_at_once
from search.training.refresh import refresh_statistics_
from search.workloads.base import Workload
from search.workloads.recipe import BY_DAMAGE
from spaces.policy import PruningPolicy

FULL_DAMAGE = 2.0
"""The relative rise of the loss from which on a fine-tune takes all of the recipe's rate; `docs/fine-tunes.md` says how
it was found.
"""
LEAST_SHARE = 1 / 30
"""Of the recipe's rate, for a network that lost nothing."""


def peak_rate(
    dense: nn.Module, policy: PruningPolicy, workload: Workload, graph: ChannelGraph, calibration: Calibration | None
) -> float:
    """The peak learning rate of a policy's fine-tune, at most the recipe's, which is that of full damage.

    Whatever the schedule, the damage is that of the whole policy at once. A recipe with `rate="fixed"` has its own rate
    for every policy, and so has any recipe without calibration data to see the damage on.

    Raises:
        ValueError, NotFiniteError, RemovalMismatch: as `pruned_at_once` does.
    """
    recipe = workload.recipe
    if recipe.rate != BY_DAMAGE or calibration is None:
        return recipe.learning_rate
    pruned = pruned_at_once(copy_model(dense), policy, graph, calibration).model
    round_weights_(pruned, policy.bits)
    refresh_statistics_(pruned, workload)
    return recipe.learning_rate * share_of_rate(calibration.mean_loss(dense), calibration.mean_loss(pruned))


def share_of_rate(before: float, after: float) -> float:
    """Share of the recipe's rate, by calibration losses of the dense and of the pruned network: the root of the
    relative rise over `FULL_DAMAGE`. Where that says nothing, as of a loss that is not positive, it is all of it.

    >>> [round(share_of_rate(0.5, after), 3) for after in (0.4, 0.51, 0.75, 1.5, 4.0)]
    [0.033, 0.1, 0.5, 1.0, 1.0]
    """
    if not (before > 0 and math.isfinite(before) and math.isfinite(after)):
        return 1.0
    damage = max(after / before - 1, 0.0)
    return min(max(math.sqrt(damage / FULL_DAMAGE), LEAST_SHARE), 1.0)
