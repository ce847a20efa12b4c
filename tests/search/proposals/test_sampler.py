"""The guided sampler passes Optuna's own suites, proposes its guide's points and tells it what became of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)
from optuna.trial import TrialState

from pruning.importance.scores import unit_importance
from search.options import OPTIONS
from search.proposals.guide import FEWEST, GuidedProposer, Suggestion
from search.proposals.sampler import _STOCK, GuidedSampler, make_sampler
from spaces import Space
from spaces.allocation.importance import AllocationInputs
from spaces.cost.effect import achieved
from spaces.search_space.initial import initial_points
from spaces.search_space.projection import Projector

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(scope="module")
def guided(vgg, vgg_graph):
    space = Space(vgg_graph.network, 0.25)
    inputs = {g: AllocationInputs(unit_importance(vgg, vgg_graph, g)) for g in space.usable}
    projector = Projector(space, inputs)
    return lambda: GuidedSampler(GuidedProposer(projector, dense_error=0.08, seed=3), space.axes, seed=3)


@pytest.mark.slow
class TestOptunasSuites(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    """Parameters that are none of the guide's space are still sampled within their ranges."""

    @pytest.fixture
    def sampler(self, guided):
        return guided


DIRECTIONS = ("maximize", "minimize", "minimize")


class Listener:
    """A guide that proposes one point and remembers what it is told."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params, self.told, self.avoided, self.asked, self.pending = params, [], [], [], []

    def known(self, number: int) -> bool:
        return number in [told[0] for told in self.told] + [avoided[0] for avoided in self.avoided]

    def avoid(self, number: int, params: Mapping[str, Any]) -> None:
        self.avoided.append((number, dict(params)))

    def learn(self, number: int, params: Mapping[str, Any], error: float) -> None:
        self.told.append((number, dict(params), error))

    def suggest(self, number: int, pending: Mapping[int, Mapping[str, Any]]) -> Suggestion:
        self.asked.append(number)
        self.pending.append(dict(pending))
        return Suggestion(self.params, "here")


@pytest.fixture(scope="module")
def space(vgg_graph) -> Space:
    return Space(vgg_graph.network, 0.25)


@pytest.fixture(scope="module")
def seed_params(space) -> dict[str, Any]:
    return dict(next(initial_points(Projector(space, unit_scores(space)))).params)


def unit_scores(space: Space) -> dict[str, AllocationInputs]:
    """Allocation inputs in which all units of a layer are alike."""
    network = space.network
    flat = {layer.name: np.ones(layer.numel) for layer in network.layers}
    channels = {layer.name: np.ones(layer.shape[0]) for layer in network.layers}
    return {"fine-grained": AllocationInputs(flat), "channel": AllocationInputs(channels)}


class TestLearning:
    @pytest.mark.filterwarnings("ignore:.*nan:UserWarning", "ignore:.*not acceptable:UserWarning")
    def test_complete_and_diverged_trials_once_and_no_others(self, space, seed_params):
        guide, study = Listener(seed_params), optuna.create_study(directions=DIRECTIONS)
        study.sampler = GuidedSampler(guide, space.axes, seed=0, causes={1: "diverged", 3: "out-of-memory"})
        asked = [study.ask() for _ in range(5)]
        for trial in asked[:4]:
            space.sample(trial)
        study.tell(asked[0], [0.875, 0.25, 1.0])
        study.tell(asked[1], state=TrialState.FAIL)
        study.tell(asked[2], state=TrialState.PRUNED)
        asked[4].suggest_float("another", 0, 1)
        study.tell(asked[4], [0.5, 0.5, 0.5])
        space.sample(study.ask())
        assert [(number, params) for number, params, _ in guide.told] == [(0, seed_params), (1, seed_params)]
        assert guide.told[0][2] == 0.125 and np.isnan(guide.told[1][2])
        assert guide.avoided == [(2, seed_params)]
        study.tell(asked[3], state=TrialState.FAIL)
        space.sample(study.ask())
        assert guide.told[2:] == [] and guide.avoided[1:] == [(3, seed_params)]
        assert guide.asked == [0, 1, 2, 3, 4, 5, 6]
        running = [[], [0], [0, 1], [0, 1, 2], [3], [3], [5]]
        assert [list(pending) for pending in guide.pending] == running
        assert guide.pending[3] == dict.fromkeys(range(3), seed_params)

    def test_parameters_of_another_space_are_left_to_tpe(self, space, seed_params):
        guide, study = Listener(seed_params), optuna.create_study(directions=DIRECTIONS)
        study.sampler = GuidedSampler(guide, space.axes, seed=0)
        values = set()
        for _ in range(3):
            trial = study.ask()
            assert Projector(space).project(space.sample(trial)) == Projector(space).project(seed_params)
            values.add(trial.suggest_float("warmth", 2.0, 3.0))
        assert len(values) == 3
        assert all(2 <= value <= 3 for value in values)

    def test_enqueued_values_go_before_the_guides(self, space, seed_params):
        guide, study = Listener(seed_params), optuna.create_study(directions=DIRECTIONS)
        study.sampler = GuidedSampler(guide, space.axes, seed=0)
        wanted = seed_params | {"size": space.size_range[0], "schedule": "one-shot"}
        study.enqueue_trial(wanted)
        trial = study.ask()
        space.sample(trial)
        assert trial.params == wanted
        study.tell(trial, [0.75, 0.1, 1.0])
        space.sample(study.ask())
        assert guide.told == [(0, wanted, 0.25)]


@pytest.fixture(scope="module")
def make_guide(space, vgg, vgg_graph):
    inputs = {g: AllocationInputs(unit_importance(vgg, vgg_graph, g)) for g in space.usable}
    return lambda: GuidedProposer(Projector(space, inputs), dense_error=0.08, seed=3)


class TestStudies:
    @staticmethod
    def run(study: optuna.Study, guide: GuidedProposer, space: Space, trials: int) -> list[dict[str, Any]]:
        """Trials whose accuracy falls with what the first layer loses; every fourth fails."""
        asked = []
        for _ in range(trials):
            number = len(study.trials)
            study.sampler = make_sampler(
                "guided", 3, number, guide, space.axes, dict.fromkeys(range(3, 99, 4), "diverged")
            )
            trial = study.ask()
            policy = Projector(space).project(space.sample(trial)).policy
            assert trial.params == dict(guide.suggested(number).params)
            accuracy = 0.9 - 0.4 * achieved(space.network, policy)[space.network.layer_names[0]]
            failed = number % 4 == 3
            study.tell(trial, None if failed else [accuracy, 0.2, 1.0], TrialState.FAIL if failed else None)
            asked.append(trial.params)
        return asked

    def test_resumed_with_a_fresh_guide_goes_on_alike(self, space, make_guide):
        """Interrupted before, at and after the first surrogate."""
        whole = self.run(optuna.create_study(directions=DIRECTIONS), make_guide(), space, FEWEST + 4)
        study, resumed = optuna.create_study(directions=DIRECTIONS), []
        for part in (3, 2, FEWEST - 1):
            resumed += self.run(study, make_guide(), space, part)
        assert resumed == whole
        assert len({tuple(params.items()) for params in whole}) == len(whole)

    def test_trials_without_the_guides_parameters_change_nothing(self, space, make_guide):
        alone, shared = (optuna.create_study(directions=DIRECTIONS) for _ in range(2))
        for study in (alone, shared):
            self.run(study, make_guide(), space, FEWEST)
        distribution = optuna.distributions.FloatDistribution(0, 1)
        for study, params in ((alone, {}), (shared, {"size": 0.5})):
            distributions = dict.fromkeys(params, distribution)
            study.add_trial(optuna.create_trial(params=params, distributions=distributions, values=[0.99, 0.01, 0.01]))
        assert self.run(alone, make_guide(), space, 1) == self.run(shared, make_guide(), space, 1)


def test_without_a_guide_every_parameter_is_sampled_anew():
    study = optuna.create_study(sampler=GuidedSampler(seed=0))
    study.optimize(lambda trial: trial.suggest_float("x", 1.0, 3.0) + trial.suggest_int("n", 2, 9), n_trials=12)
    assert len({trial.params["x"] for trial in study.trials}) == 12
    assert all(1 <= trial.params["x"] <= 3 and 2 <= trial.params["n"] <= 9 for trial in study.trials)


def test_the_options_offer_every_sampler_there_is():
    assert OPTIONS["sampler"].kinds == ("guided", *_STOCK)
    assert [name for name in _STOCK if not re.search(rf"\b{name}\b", OPTIONS["sampler"].help)] == []


def test_unknown_sampler():
    with pytest.raises(ValueError, match="unknown sampler 'gided': did you mean 'guided'"):
        make_sampler("gided", 0, 0)
