"""Guided proposals repeated from records that went through JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pruning.importance.scores import unit_importance
from search.proposals.guide import FEWEST, GuidedProposer
from search.proposals.optuna_study import OptunaStudy
from search.proposals.replay import replay
from search.records import FAILED, REFUSED, SAMPLED, TrialRecord, TrialResult, to_plain, trial_from_plain
from spaces import Space
from spaces.allocation.importance import AllocationInputs
from spaces.cost.effect import achieved
from spaces.cost.footprint import RelativeCost
from spaces.search_space.initial import initial_points
from spaces.search_space.projection import Projector

COST = RelativeCost(**dict.fromkeys(RelativeCost.__dataclass_fields__, 0.5))


@pytest.fixture(scope="module")
def projector(residual, residual_graph) -> Projector:
    space = Space(residual_graph.network, 0.5, ("fine-grained", "channel"))
    inputs = {word: AllocationInputs(unit_importance(residual, residual_graph, word)) for word in space.usable}
    return Projector(space, inputs)


def study_of(projector: Projector) -> OptunaStudy:
    return OptunaStudy("guided", 3, projector.space.axes, GuidedProposer(projector, 0.1, 3))


def evaluated(projector: Projector, number: int, origin: str, params: dict, **more) -> TrialRecord:
    policy = projector.project(params).policy
    if number % 7 == 5:
        result = TrialResult(FAILED, "refused: no", cause=REFUSED)
    else:
        lost = achieved(projector.space.network, policy)["first.weight"]
        result = TrialResult("complete", accuracy=float(0.9 - 0.5 * lost**2), loss=1.0, shares=COST)
    return TrialRecord(number, origin, params, policy, {}, 0.5, result, 0.0, 1.0, 0.0, **more)


@pytest.mark.parametrize("workers", [1, 3])
def test_from_the_first_to_the_last(projector, workers):
    study, random, trials = study_of(projector), np.random.default_rng(5), {}
    seeds = [point for point, _ in zip(initial_points(projector), range(2), strict=False)]
    while len(trials) < FEWEST + 5 or study.pending:
        while len(study.pending) < workers and len(trials) < FEWEST + 5:
            number = study.next_number
            if number < len(seeds):
                params, origin, scores = seeds[number].params, seeds[number].allocator, {}
                projector.space.sample(study.ask(params, origin))
            else:
                asked = study.ask()
                params = projector.space.sample(asked)
                origin, scores = study.reason(asked)
                assert origin != SAMPLED
            knew = study.knew(number)
            trials[number] = evaluated(projector, number, origin, params, scores=scores, knew=knew)
        study.tell(trials[int(random.choice(study.pending))])
    read = {n: trial_from_plain(json.loads(json.dumps(to_plain(trial)))) for n, trial in trials.items()}
    assert read == trials and any(trial.knew for trial in read.values()) is (workers > 1)
    assert any("knew" in to_plain(trial) for trial in trials.values()) is (workers > 1)
    later = range(len(seeds), len(trials))
    assert [replay(study_of(projector), n, read) for n in later] == [trials[n].params for n in later]
