"""Whether its own training taught the dense model anything, by its loss on validation data."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from pruning.devices import forked_rng
from search.training.own_scores import SEED
from search.training.scoring import score
from search.user_code.randomness import seeded
from search.workloads.base import Workload
from search.workloads.recipe import Recipe

KEY = "validation_losses"
"""Of the losses in the metadata of a cached dense model; those of earlier versions lack it."""


@dataclass(frozen=True)
class DenseLosses:
    """Losses of a dense model on validation data, before and after its training; NaN and infinity are possible."""

    before: float
    after: float

    def to_metadata(self) -> dict[str, str]:
        """As a weights file keeps them."""
        return {KEY: json.dumps([self.before, self.after])}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> DenseLosses | None:
        """The losses that a weights file keeps; None where it has none that can be read."""
        try:
            before, after = map(float, json.loads(metadata.get(KEY, "null")))
        except (TypeError, ValueError, OverflowError):
            return None
        return cls(before, after)

    def note(self, recipe: Recipe) -> str | None:
        """What to do where the training did not lower the loss; None where it did, or where it began at NaN."""
        if math.isnan(self.before) or self.after < self.before:
            return None
        return (
            f"training did not lower the dense model's loss on validation data ({self.before:.4g} before it, "
            f"{self.after:.4g} after): where it learnt too little, give the workload's recipe a dense_learning_rate "
            f"below {recipe.dense_learning_rate:g} or more dense_epochs than {recipe.dense_epochs:g}; where it "
            "overfitted, fewer"
        )


def validation_loss(workload: Workload, model: nn.Module) -> float:
    """The loss of a network on validation data, by the workload's `loss`. Random state, the network and its statistics
    are as they were afterwards.
    """
    with forked_rng(workload.placement.device), seeded(SEED):
        return score(copy.deepcopy(model), "validation", workload).loss
