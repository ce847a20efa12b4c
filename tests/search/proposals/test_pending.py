"""Proposals that are made while other trials run."""

from __future__ import annotations

from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
from made_up_world import DENSE_ERROR, World

from pruning.importance.scores import unit_importance
from search.proposals import guide as subject
from search.proposals import pending as limits
from search.proposals.features import Features
from search.proposals.guide import CAUTION, FEWEST, GuidedProposer
from search.proposals.pending import DRAWS
from search.proposals.surrogate import Surrogate
from spaces import Space
from spaces.allocation.importance import AllocationInputs
from spaces.search_space.initial import initial_points
from spaces.search_space.projection import Projector
from spaces.search_space.space import SEED_SCHEDULE

BUSY = 9
"""A number whose proposal is after volume; every fourth, from 3 on, is after accuracy."""


@pytest.fixture(scope="module")
def world(vgg_graph) -> World:
    return World(vgg_graph.network)


@pytest.fixture(scope="module")
def projector(vgg, vgg_graph, world) -> Projector:
    inputs = {
        word: AllocationInputs.of(world.network, word, unit_importance(vgg, vgg_graph, word), world.profile())
        for word in ("fine-grained", "channel")
    }
    return Projector(Space(world.network, 0.25), inputs)


def points(space: Space, count: int, seed: int = 1) -> list[dict]:
    """Random points of all sizes and both granularities."""
    random, low, high = np.random.default_rng(seed), *space.size_range
    return [
        space.params(
            float(low * (high / low) ** random.random()), str(random.choice(space.usable)),
            {knob: float(random.random()) for knob in space.knobs}, SEED_SCHEDULE,
        )
        for _ in range(count)
    ]  # fmt: skip


def taught(projector: Projector, world: World, known: list[dict] | None = None, order=None, **options):
    """A guide that knows points of the world, random ones by default, told in this order."""
    params = points(projector.space, 8) if known is None else known
    guide = GuidedProposer(projector, DENSE_ERROR, 3, **options)
    for number in order or range(len(params)):
        guide.learn(number, params[number], world.error(projector.project(params[number]).policy))
    return guide


def gain_of(guide: GuidedProposer, params: dict, pending: dict, monkeypatch) -> float:
    """The volume that the guide expects of one point, which is its whole pool."""
    draft = guide._space.draft(params)
    monkeypatch.setattr(subject, "ROUNDS", 0)
    monkeypatch.setattr(guide, "_pool", SimpleNamespace(draw=lambda *_: [draft]))
    return guide.suggest(BUSY, pending).scores["gain"]


def test_a_proposal_knows_a_set_whatever_the_order_of_what_it_was_told(projector, world):
    alone = taught(projector, world).suggest(13)
    run, *others = alone.params, *points(projector.space, 4, seed=2)
    pending = dict(enumerate([run, *others], 8))
    first = taught(projector, world).suggest(13, pending)
    again = taught(projector, world, order=reversed(range(8)))
    again.suggest(12, {8: others[0], 10: run})
    assert again.suggest(13, dict(reversed(pending.items()))) == first
    assert first.params != alone.params


def test_once_none_runs_proposals_are_as_if_none_had(projector, world):
    once, never = taught(projector, world), taught(projector, world)
    once.suggest(BUSY, dict(enumerate(points(projector.space, 3, seed=2), 8)))
    assert once.suggest(10, {}) == never.suggest(10)


@pytest.mark.parametrize("finished", [FEWEST - 1, 8])
def test_what_runs_is_not_proposed_again(finished, projector, world, monkeypatch):
    """Of a pool of three, the others in their turn, before a surrogate can be fitted and after."""
    monkeypatch.setattr(subject, "ROUNDS", 0)
    guide, pending, pool = taught(projector, world, order=range(finished)), {}, points(projector.space, 3, seed=4)
    drafts = [projector.space.draft(params) for params in pool]
    monkeypatch.setattr(guide, "_pool", SimpleNamespace(draw=lambda *_: drafts))
    for number in range(20, 23):
        pending[number] = guide.suggest(number, pending).params
        assert bool(guide.suggested(number).scores) == (finished == 8)
    assert sorted(params["size"] for params in pending.values()) == sorted(params["size"] for params in pool)


def test_near_a_running_trial_little_is_gained_and_elsewhere_as_much(projector, world, monkeypatch):
    known = [point.params for point in islice(initial_points(projector), 12)]
    best = taught(projector, world, known).suggest(13).params
    assert best["granularity"] == "channel" and best["size"] < 0.2
    places = {"size": best["size"] * 1.001}, {"granularity": "fine-grained"}
    left = []
    for place in places:
        alone, beside = (
            gain_of(taught(projector, world, known), {**best, **place}, own, monkeypatch) for own in ({}, {12: best})
        )
        left.append(beside / alone)
    assert left[0] < 0.1 and 0.75 < left[1] < 1.25


def test_a_running_trial_is_not_taken_for_a_bad_one(projector, world, monkeypatch):
    """On average over draws, beside it is predicted what was predicted without it."""
    params = taught(projector, world).suggest(BUSY).params
    seen = []

    class Listener(Surrogate):
        def given(self, features, values):
            found = super().given(features, values)
            seen.append((self.predict(features), found.predict(features), values))
            return found

    monkeypatch.setattr(subject, "Surrogate", Listener)
    monkeypatch.setattr(subject, "DRAWS", 400)
    taught(projector, world).suggest(BUSY, {8: params})
    ((before, after, values),) = seen
    assert values.shape == (400, 1)
    assert after.mean.mean() == pytest.approx(before.mean[0], abs=4 * CAUTION * before.sd[0] / 20)
    assert values.std() == pytest.approx(CAUTION * before.sd[0], rel=0.5)
    assert after.mean.std() > 0.3 * CAUTION * before.sd[0]
    assert (after.sd < before.sd).all()


def test_running_trials_are_no_observations(projector, world):
    """Not when they are few, not as parents, and not as sizes at which networks are dead."""
    young, pending = (
        taught(projector, world, order=range(FEWEST - 1)),
        dict(enumerate(points(projector.space, 4, seed=2), 8)),
    )
    assert young.suggest(12, pending) == young.suggest(12) and not young.suggest(12, pending).scores
    guide = taught(projector, world, chance=0.9)
    parents, least, draw = [], guide.least_sizes, guide._pool.draw

    def drawn(count, of, random):
        parents.append([draft.size for draft in of])
        return draw(count, of, random)

    guide._pool.draw = drawn
    predicted = [guide.suggest(12, running).scores for running in ({}, pending)]
    assert parents[0] == parents[1] and guide.least_sizes == least != {}
    assert predicted[0] != predicted[1]


def test_a_wish_for_an_accuracy_counts_running_trials_too(projector, world):
    """A smaller one is probably being found, so the next must be smaller still."""
    alone = taught(projector, world, largest_error=0.3)
    first = alone.suggest(BUSY)
    beside = taught(projector, world, largest_error=0.3).suggest(BUSY, {8: first.params})
    assert beside.params != first.params and beside.scores["gain"] < first.scores["gain"]


def test_of_many_the_last_are_looked_at_and_none_is_proposed_again(projector, world, monkeypatch):
    monkeypatch.setattr(limits, "MOST_PENDING", 3)
    pending = dict(enumerate(points(projector.space, 5, seed=2), 20))
    drafts = [projector.space.draft(params) for params in (pending[20], points(projector.space, 1, seed=4)[0])]
    wanted = Features(projector.space).of(
        projector.project_batch([projector.space.draft(pending[n]) for n in range(22, 25)])
    )
    given = []

    class Listener(Surrogate):
        def given(self, features, values):
            given.append((features, values.shape))
            return super().given(features, values)

    monkeypatch.setattr(subject, "Surrogate", Listener)
    monkeypatch.setattr(subject, "ROUNDS", 0)
    guide = taught(projector, world)
    monkeypatch.setattr(guide, "_pool", SimpleNamespace(draw=lambda *_: drafts))
    assert guide.suggest(BUSY, pending).params == projector.space.params_of(drafts[1])
    ((features, shape),) = given
    np.testing.assert_allclose(features, wanted)
    assert shape == (DRAWS, 3)
