"""Optuna samplers by name, one fresh sampler a trial."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from search.proposals.guide import GuidedProposer
from search.records import DIVERGED
from spaces.search_space.space import OLD_PREFERENCE, PREFERENCE, Axis
from spaces.validation import unknown

NSGA2_POPULATION = 12
"""Half of a 24-trial study: with Optuna's 50, such a study would be random search."""


class GuidedSampler(BaseSampler):
    """Samples what a guide suggests; parameters outside the guide's space are sampled by TPE.

    Args:
        guide: suggests values of all axes of its space; without one, TPE samples every parameter by itself.
        axes: of that space.
        seed: of TPE.
        causes: of failed trials, by number, see `search.records`.
    """

    def __init__(
        self,
        guide: GuidedProposer | None = None,
        axes: tuple[Axis, ...] = (),
        seed: int | None = None,
        causes: Mapping[int, str | None] | None = None,
    ) -> None:
        self._causes = {} if causes is None else causes
        self._guide, self._space = guide, {axis.name: _distribution(axis) for axis in axes}
        self._fallback = TPESampler(seed=seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if self._guide is None or search_space != self._space:
            return {name: self.sample_independent(study, trial, name, of) for name, of in search_space.items()}
        self._learn(study, self._guide)
        return dict(self._guide.suggest(trial.number, self._pending(study, trial.number)).params)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._fallback.sample_independent(study, trial, param_name, param_distribution)

    def reseed_rng(self) -> None:
        self._fallback.reseed_rng()

    def _learn(self, study: Study, guide: GuidedProposer) -> None:
        """Tell the guide of the trials it does not know yet.

        A trial that diverged counts as one without any accuracy. One that failed for another reason, or stopped early,
        says nothing about accuracy; it is only not proposed again.
        """
        finished = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        for trial in study.get_trials(deepcopy=False, states=finished):
            if guide.known(trial.number) or self._space.keys() - trial.params.keys():
                continue
            if trial.state == TrialState.COMPLETE:
                guide.learn(trial.number, trial.params, 1 - trial.values[0])
            elif self._causes.get(trial.number) == DIVERGED:
                guide.learn(trial.number, trial.params, math.nan)
            else:
                guide.avoid(trial.number, trial.params)

    def _pending(self, study: Study, number: int) -> dict[int, Mapping[str, Any]]:
        """The points of the trials that are running beside this one, by number."""
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return {t.number: t.params for t in running if t.number != number and self._space.keys() <= t.params.keys()}


def _distribution(axis: Axis) -> BaseDistribution:
    if axis.choices:
        return CategoricalDistribution(axis.choices)
    return FloatDistribution(axis.low, axis.high, log=axis.log)


_STOCK: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed),
    "nsga2": lambda seed: NSGAIISampler(seed=seed, population_size=NSGA2_POPULATION),
    "gp": lambda seed: GPSampler(seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
}
"""Name -> sampler of one trial, of a seed that is another for every trial."""


def make_sampler(
    name: str,
    seed: int,
    trial: int,
    guide: GuidedProposer | None = None,
    axes: tuple[Axis, ...] = (),
    causes: Mapping[int, str | None] | None = None,
) -> BaseSampler:
    """The sampler of one trial, seeded by study seed and trial number.

    A study that was interrupted therefore proposes what it would have proposed without the interruption. A sampler that
    walks a sequence (quasi-random points, a grid) or keeps a state from trial to trial (CMA-ES) would begin anew each
    time, with another seed: random search, and nothing says so. Such a one must be told the study's seed and the
    trial's number themselves, and find its place by them.

    Args:
        guide: of `guided`, with the axes of its space.
        causes: of failed trials, by number; `guided` learns from those that diverged.

    Raises:
        ValueError: unknown name.
    """
    derived = int(np.random.SeedSequence([seed, trial]).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == "guided":
            return GuidedSampler(guide, axes, derived, causes)
        if name not in _STOCK:
            raise ValueError(unknown("sampler", name, ("guided", *_STOCK)))
        return _in_former_order(_STOCK[name](derived))


def _in_former_order(sampler: BaseSampler) -> BaseSampler:
    """Parameters are drawn in the order of their former names, so that a seed's draws stay: Optuna sorts by name."""
    infer = sampler.infer_relative_search_space

    def inferred(study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(sorted(infer(study, trial).items(), key=lambda item: _former(item[0])))

    vars(sampler)["infer_relative_search_space"] = inferred  # of this sampler alone
    return sampler


def _former(name: str) -> str:
    prefix, dot, layer = name.partition(".")
    return OLD_PREFERENCE + dot + layer if prefix == PREFERENCE else name
