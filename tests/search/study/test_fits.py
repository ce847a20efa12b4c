"""How often points are fitted to their sizes exactly: counted over whole studies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import search.executors.evaluation
from search import run_search
from search.config import make_config
from search.records import COMPLETE, MEASURING, TrialRecord, TrialResult
from search.store.journal import Journal
from search.training.evaluate import Evaluation
from spaces import Network
from spaces.allocation.allocators import ALLOCATORS
from spaces.cost.effect import fine_tune_key
from spaces.cost.footprint import footprint, relative_cost
from spaces.search_space.initial import UNPRUNED
from spaces.search_space.projection import Projected, Projector

TRIALS = 18
"""Half of them initial points; then more than the guide observes before it has a surrogate."""
Fit = tuple[Mapping[str, Any], Projected]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Shared, so that the dense model is trained once, and scanned once."""
    return tmp_path_factory.mktemp("fits")


@pytest.fixture
def study(place, root, monkeypatch):
    """Runs a study whose trials are not trained; returns them, the exact fits of this run in order, and the network."""
    network, fits = [], []

    def evaluate(subject, policy, *_, **__):
        network.append(subject.network)
        cost = relative_cost(footprint(subject.network, policy), subject.dense_cost)
        accuracy = 0.5 + float(np.random.default_rng([7, len(network)]).uniform(0, 0.4))
        return Evaluation(TrialResult(COMPLETE, accuracy=accuracy, loss=0.25, shares=cost, measuring=MEASURING))

    def counted(projector, params):
        fits.append((dict(params), fit(projector, params)))
        return fits[-1][1]

    fit = Projector.fit
    monkeypatch.setattr(Projector, "fit", counted)
    monkeypatch.setattr(search.executors.evaluation, "evaluate_policy", evaluate)

    def run(sampler: str, trials: int) -> tuple[list[TrialRecord], list[Fit], Network]:
        fits.clear()
        config = make_config(
            workload=f"{place / 'tiny.py'}:tiny", study=sampler, root=str(root), max_size=0.5, trials=trials,
            sampler=sampler, finalists=0, cost="macs",
        )  # fmt: skip
        folder = run_search(config).folder
        return Journal(folder / "journal").trials(), list(fits), network[0] if network else None

    return run


def values(params: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(params.values())


@pytest.mark.parametrize("sampler", ["guided", "tpe", "random"])
def test_every_point_is_fitted_once(sampler, study):
    """Whoever looks at it: initial points, sampler, runner, what is learnt of it. Beyond trials, the guide fits only
    candidates that turn out to be fine-tuned as an earlier trial, which therefore are not proposed."""
    trials, fits, network = study(sampler, TRIALS)
    assert len(trials) == TRIALS
    fitted = [values(params) for params, _ in fits]
    assert len(set(fitted)) == len(fitted)
    evaluated = {values(trial.params) for trial in trials}
    assert evaluated <= set(fitted)
    keys = [fine_tune_key(network, trial.policy) for trial in trials]
    further = [projected for params, projected in fits if values(params) not in evaluated]
    assert all(fine_tune_key(network, one.policy) in keys for one in further)
    assert not further or sampler == "guided"


def test_of_trials_that_finished_before_only_initial_points_are_fitted_again(study):
    trials, _, _ = study("guided", TRIALS)
    longer, fits, _ = study("guided", TRIALS + 2)
    assert len(longer) == TRIALS + 2
    initial = {values(trial.params) for trial in trials if trial.origin in (*ALLOCATORS, UNPRUNED)}
    assert {values(params) for params, _ in fits} & {values(trial.params) for trial in trials} == initial
