"""The recipe: how a workload's networks are trained and fine-tuned, the same for every method."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """SGD with Nesterov momentum under a one-cycle learning rate; the last step counts.

    Attributes:
        batch: examples a step; an incomplete last batch of an epoch is dropped.
        dense_epochs: epochs of the dense model's own training.
        trial_epochs: epochs of a trial's fine-tune; fractions of an epoch are allowed.
        final_epochs: epochs of a finalist's fine-tune.
        dense_learning_rate: peak of the dense training.
        learning_rate: peak of fine-tunes.
        warmup: share of the steps the learning rate rises.
        momentum: of SGD.
        weight_decay: of SGD, on every parameter.
        bn_l1: weight of the L1 norm of all BatchNorm scales in what training minimises (Network Slimming, arXiv
            1708.06519, has 1e-4 or 1e-5), so that the criterion `bn-scale` finds channels that matter little. It
            acts in the dense training, and in fine-tunes until the last channels are chosen; 0 leaves it out.
    """

    batch: int = 128
    dense_epochs: float = 10
    trial_epochs: float = 1
    final_epochs: float = 2
    dense_learning_rate: float = 0.1
    learning_rate: float = 0.05
    warmup: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    bn_l1: float = 0.0

    def __post_init__(self) -> None:
        for name in ("batch", "dense_epochs", "trial_epochs", "final_epochs", "dense_learning_rate", "learning_rate"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"recipe {name} must be > 0, got {value!r}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"recipe warmup must satisfy 0 <= warmup < 1, got {self.warmup!r}")
        if not (math.isfinite(self.bn_l1) and self.bn_l1 >= 0):
            raise ValueError(f"recipe bn_l1 must be >= 0, got {self.bn_l1!r}; 0 leaves it out")

    def to_dict(self) -> dict[str, Any]:
        """Plain data; without `bn_l1` where that is 0, as recipes were written before there was one."""
        return {key: value for key, value in asdict(self).items() if key != "bn_l1" or value}


def one_cycle(step: int, steps: int, peak: float, warmup: float) -> float:
    """Learning rate of 0-based `step`: a linear rise to `peak`, then a cosine down to (almost) 0.

    >>> [round(one_cycle(s, 10, 1.0, 0.2), 3) for s in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 0.962, 0.309, 0.0]
    """
    rise = math.floor(warmup * steps)
    if step < rise:
        return peak * (step + 1) / rise
    fall = steps - rise
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise + 1) / fall))
