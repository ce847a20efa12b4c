"""A network whose error after a fine-tune is known in closed form, for searches in which nothing is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit

from spaces import Network, PruningPolicy
from spaces.cost.effect import achieved
from spaces.sensitivity import Profile, ProfilePoint

SENSITIVITY = (0.12, 0.05, 0.18, 0.025, 0.08, 0.03, 0.012, 0.006, 0.10)
"""Of the layers of a VGG9, in order: neither rising nor falling with depth or size."""
DENSE_LOGIT = -2.5
DENSE_ERROR = float(expit(DENSE_LOGIT))
LEVELS = (0.3, 0.5, 0.7, 0.85, 0.93, 0.97, 0.99)
REFERENCE = np.array([0.5, math.log(0.25 * 1.1), 1.05])
"""Error, log encoded size, MACs."""


@dataclass(frozen=True)
class World:
    """A network whose error after a fine-tune is the sigmoid of summed damages."""

    network: Network
    sensitivity: tuple[float, ...] = SENSITIVITY

    def damage(self, place: int, kept: float, granularity: str) -> float:
        """At one sparsity, channels hurt four times as much as single weights."""
        return self.sensitivity[place] * (4 if granularity == "channel" else 1) * (-math.log(kept)) ** 1.5

    def error(self, policy: PruningPolicy) -> float:
        lost = achieved(self.network, policy)
        names = enumerate(self.network.layer_names)
        total = sum(self.damage(place, 1 - lost[name], policy.granularity_of(name)) for place, name in names)
        abrupt = 0.3 if policy.schedule.kind == "one-shot" else 0.1 * math.log(policy.schedule.exponent / 3) ** 2
        return float(expit(DENSE_LOGIT + total + abrupt))

    def profile(self, sensitivity: tuple[float, ...] | None = None) -> Profile:
        """A scan of every layer; with other sensitivities, a wrong one."""
        told = replace(self, sensitivity=sensitivity or self.sensitivity)
        points = {
            granularity: {
                name: tuple(
                    ProfilePoint(level, loss := 0.3 + told.damage(place, 1 - level, granularity), 0.9, loss, 0.9)
                    for level in LEVELS
                )
                for place, name in enumerate(self.network.layer_names)
            }
            for granularity in ("fine-grained", "channel")
        }
        return Profile("", 100, 0.3, 0.9, points, 1.0)
