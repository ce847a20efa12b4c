"""Optuna samplers by name, one fresh sampler a trial."""

from __future__ import annotations

import warnings

import numpy as np
import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

from spaces.errors import unknown

NSGA2_POPULATION = 12
"""Half of a 24-trial study: with Optuna's 50, such a study would be random search."""


_SAMPLERS = {
    "tpe": lambda seed: TPESampler(seed=seed),
    "nsga2": lambda seed: NSGAIISampler(seed=seed, population_size=NSGA2_POPULATION),
    "gp": lambda seed: GPSampler(seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
}


def make_sampler(name: str, seed: int, trial: int) -> BaseSampler:
    """The sampler of one trial, seeded by study seed and trial number.

    A study that was interrupted therefore proposes what it would have proposed without the interruption.

    Raises:
        ValueError: unknown name.
    """
    if name not in _SAMPLERS:
        raise ValueError(unknown("sampler", name, _SAMPLERS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return _SAMPLERS[name](int(np.random.SeedSequence([seed, trial]).generate_state(1)[0]))
