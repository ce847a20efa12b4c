"""The study that Optuna's samplers see: held in memory, and filled from the journal when a process begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import NSGAIISampler
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import Trial, TrialState, create_trial

from search.knew import Knew
from search.proposals.guide import GuidedProposer
from search.proposals.sampler import make_sampler
from search.records import COMPLETE, FAILED, SAMPLED, STOPPED_EARLY, PendingTrial, TrialRecord
from spaces.search_space.space import Axis
from spaces.validation import is_number

DIRECTIONS = (StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE, StudyDirection.MINIMIZE)
"""Of accuracy, size and cost."""
STATES = {COMPLETE: TrialState.COMPLETE, STOPPED_EARLY: TrialState.PRUNED, FAILED: TrialState.FAIL}
"""A record's state in Optuna's words."""
FIXED = "fixed_params"
"""Where Optuna keeps the values an enqueued trial takes."""


@dataclass(frozen=True)
class Objectives:
    """What a study optimises: accuracy, size and a cost of running the network.

    Attributes:
        metric: of the size, `encoded` or `nonzero`.
        cost: the third objective, `macs` or `latency`.
        accuracy: what the accuracy is a share of: of 1, or of the range of a metric with this name.
    """

    metric: str = "encoded"
    cost: str = "macs"
    accuracy: str = "accuracy"

    @property
    def names(self) -> list[str]:
        """As Optuna's tools show them, with what their values are shares of.

        >>> Objectives(cost="latency").names
        ['validation accuracy (share of 1)', 'encoded size (share of dense)', 'predicted latency (share of dense)']
        """
        whole = "1" if self.accuracy == "accuracy" else "its range"
        cost = {"macs": "MACs", "latency": "predicted latency"}[self.cost]
        return [
            f"validation {self.accuracy} (share of {whole})",
            f"{self.metric} size (share of dense)",
            f"{cost} (share of dense)",
        ]

    def of(self, record: TrialRecord) -> list[float] | None:
        """Their values of a complete trial; None of another."""
        result = record.result
        if result.state != COMPLETE or result.accuracy is None or result.shares is None:
            return None
        cost = record.latency if self.cost == "latency" else result.shares.macs
        if cost is None:
            raise ValueError(f"trial {record.number} has no predicted latency, which the study optimises")
        return [result.accuracy, result.shares.of(self.metric), cost]


def stored_params(
    params: Mapping[str, Any], axes: Sequence[Axis]
) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    """What Optuna can keep of a trial's parameters, and the distribution of each.

    A number outside its axis, as a study of another version may have, widens it for this trial alone; words that are no
    choice any more, and parameters without an axis, are left out.
    """
    known = {axis.name: axis for axis in axes}
    kept: dict[str, Any] = {}
    distributions: dict[str, BaseDistribution] = {}
    for name, value in params.items():
        axis = known.get(name)
        if axis is None or not (value in axis.choices if axis.choices else is_number(value)):
            continue
        kept[name] = value
        if axis.choices:
            distributions[name] = CategoricalDistribution(axis.choices)
        else:
            distributions[name] = FloatDistribution(min(axis.low, value), max(axis.high, value), log=axis.log)
    return kept, distributions


class OptunaStudy:
    """A multi-objective study in memory: asks samplers for trials, and tells them what came of those.

    Any number of trials may be asked for before one is told, and they may be told in any order. Trials are numbered as
    in the journal. One that the journal lacks among others waits, and is asked for first.

    Args:
        sampler: by name; see `search.proposals.sampler`.
        seed: of the study; with a trial's number and what it knew it fixes what is proposed, so that a trial that was
            cut off is proposed again as it was.
        axes: what a trial samples.
        guide: of the sampler `guided`, with the same axes.
    """

    def __init__(
        self,
        sampler: str,
        seed: int,
        axes: tuple[Axis, ...],
        guide: GuidedProposer | None = None,
        objectives: Objectives = Objectives(),
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.axes, self._objectives = axes, objectives
        self._sampler, self._seed, self._guide = sampler, seed, guide
        self._storage = InMemoryStorage()
        self._study = optuna.create_study(storage=self._storage, directions=list(DIRECTIONS))
        self._id = self._study._study_id
        self._causes: dict[int, str | None] = {}
        self._count, self._missing = 0, set[int]()
        self._pending, self._finished = set[int](), set[int]()
        self._knew: dict[int, Knew | None] = {}

    @property
    def next_number(self) -> int:
        """Of the trial to ask for: the first that is missing among others, else the one behind them all."""
        return min(self._missing, default=self._count)

    @property
    def pending(self) -> list[int]:
        """Numbers of the trials that were asked for and not told, rising."""
        return sorted(self._pending)

    def knew(self, number: int) -> Knew | None:
        """What was known of other trials when this one was proposed; see `TrialRecord.knew`."""
        return self._knew.get(number)

    def add(self, record: TrialRecord) -> None:
        """Take in a finished trial of the journal, in the order of their numbers."""
        self.begin(record)
        self.tell(record)

    def begin(self, trial: TrialRecord | PendingTrial) -> None:
        """Take in a trial that is being evaluated, in the same order; what a record says of its end is left alone."""
        while self._count < trial.number:
            self._missing.add(self._count)
            self._create(create_trial(state=TrialState.WAITING))
        params, distributions = stored_params(trial.params, self.axes)
        self._create(create_trial(state=TrialState.RUNNING, params=params, distributions=distributions))
        self._pending.add(trial.number)
        self._knew[trial.number] = trial.knew
        if trial.origin == SAMPLED:
            self._note_generation(trial.number)

    def ask(self, params: Mapping[str, Any] | None = None, origin: str = SAMPLED, knew: Knew | None = None) -> Trial:
        """Trial `next_number`. With `params` it takes those values.

        Its axes must be sampled before the next trial is asked for.

        Args:
            origin: where `params` come from: `SAMPLED` if a sampler proposed them before.
            knew: what was known when `params` were proposed.
        """
        number = self.next_number
        if number == self._count:
            self._create(create_trial(state=TrialState.WAITING))
        if params is None:
            knew = Knew.at(number, self._finished, self._pending)
        else:
            self._storage.set_trial_system_attr(self._trial_id(number), FIXED, dict(params))
        self._knew[number] = knew
        self._study.sampler = make_sampler(self._sampler, self._seed, number, self._guide, self.axes, self._causes)
        trial = self._study.ask()
        self._missing.discard(number)
        self._pending.add(number)
        if params is not None and origin == SAMPLED:
            self._note_generation(number)
        return trial

    def tell(self, record: TrialRecord) -> None:
        """Finish a trial."""
        self._causes[record.number] = record.result.cause
        trial, state = self._trial_id(record.number), STATES[record.result.state]
        self._storage.set_trial_state_values(trial, state, self._objectives.of(record))
        self._pending.discard(record.number)
        self._finished.add(record.number)

    def reason(self, trial: Trial) -> tuple[str, dict[str, float]]:
        """The origin of a trial whose parameters were sampled, and what the guide knew of it before its evaluation."""
        why = self._guide.suggested(trial.number) if self._guide else None
        if why is None or any(why.params[name] != value for name, value in trial.params.items()):
            return SAMPLED, {}
        return why.source, dict(why.scores)

    def can_ask(self, params: Mapping[str, Any]) -> bool:
        """Whether a trial can take these values: one of each axis, within it."""
        if params.keys() != {axis.name for axis in self.axes}:
            return False
        return all(
            params[a.name] in a.choices
            if a.choices
            else is_number(params[a.name]) and a.low <= params[a.name] <= a.high
            for a in self.axes
        )

    def _create(self, template: optuna.trial.FrozenTrial) -> None:
        self._storage.create_new_trial(self._id, template)
        self._count += 1

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, number)

    def _note_generation(self, number: int) -> None:
        """Note what NSGA-II did when it proposed this trial: its generation, and once in each who the parents are.

        It did so by the trials that had finished then. Other samplers keep no notes.
        """
        sampler = make_sampler(self._sampler, self._seed, number, self._guide, self.axes, self._causes)
        if isinstance(sampler, NSGAIISampler):
            trial = self._storage.get_trial(self._trial_id(number))
            now = optuna.load_study(study_name=self._study.study_name, storage=self._storage)  # one caches its trials
            if knew := self._knew[number]:
                trials = self._storage.get_all_trials(self._id, deepcopy=False)
                now._thread_local.cached_all_trials = [t for t in trials if t.number in knew.finished]
            sampler.get_parent_population(now, sampler.get_trial_generation(now, trial))
