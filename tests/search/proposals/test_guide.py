"""The guide on an error known in closed form: what it finds, what it survives, what it repeats."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
from made_up_world import DENSE_ERROR, DENSE_LOGIT, REFERENCE, SENSITIVITY, World
from proposals import chain
from scipy.special import expit

from pruning.importance.scores import unit_importance
from search.proposals import guide as subject
from search.proposals.guide import AT_BEST, BOLDEST, FEWEST, MOST_ROWS, GuidedProposer, Suggestion
from search.proposals.hypervolume import hypervolume, non_dominated
from spaces import Network, PruningPolicy, Space
from spaces.allocation.importance import AllocationInputs
from spaces.cost.effect import achieved, fine_tune_key
from spaces.cost.footprint import dense_footprint, footprint, relative_cost
from spaces.cost.latency_predictor import Predictor
from spaces.cost.latency_table import LatencyTable, LayerLatency, RestLatency
from spaces.search_space.initial import initial_points
from spaces.search_space.projection import Projector
from spaces.search_space.space import SEED_SCHEDULE, allocator_names
from spaces.sensitivity import Profile

INVERTED = tuple(sorted(SENSITIVITY)[::-1][sorted(SENSITIVITY).index(s)] for s in SENSITIVITY)
"""The most and least sensitive layers exchanged, and so on inwards."""


@pytest.fixture(scope="module")
def world(vgg_graph) -> World:
    return World(vgg_graph.network)


@pytest.fixture(scope="module")
def inputs_of(vgg, vgg_graph, world):
    scores = {g: unit_importance(vgg, vgg_graph, g) for g in ("fine-grained", "channel")}

    def of(profile: Profile | None = None) -> dict[str, AllocationInputs]:
        return {g: AllocationInputs.of(world.network, g, scores[g], profile) for g in scores}

    return of


@dataclass
class Search:
    """Trials of one guide in the world, as a study would run them."""

    world: World
    space: Space
    guide: GuidedProposer
    policies: list[PruningPolicy]
    points: list[tuple[float, float, float]]

    @classmethod
    def start(
        cls, world: World, inputs: Mapping[str, AllocationInputs], seed: int, space: Space | None = None, **options
    ):
        space = space or Space(world.network, 0.25)
        return cls(world, space, GuidedProposer(Projector(space, inputs), DENSE_ERROR, seed, **options), [], [])

    def evaluate(self, params: Mapping[str, Any], error: float | None = None) -> None:
        policy = Projector(self.space).project(params).policy
        found = self.world.error(policy) if error is None else error
        cost = relative_cost(footprint(self.world.network, policy), dense_footprint(self.world.network))
        self.guide.learn(len(self.policies), params, found)
        self.policies.append(policy)
        self.points.append((found, cost.encoded, cost.macs))

    def seeds(self, inputs: Mapping[str, AllocationInputs], count: int) -> Search:
        for seed in islice(initial_points(Projector(self.space, inputs)), count):
            self.evaluate(seed.params)
        return self

    def suggest(self, count: int = 1) -> Search:
        for _ in range(count):
            self.evaluate(self.guide.suggest(len(self.policies)).params)
        return self

    def propose_at_random(self, count: int, seed: int) -> Search:
        random = np.random.default_rng(seed)
        for _ in range(count):
            self.evaluate({axis.name: drawn(axis, random) for axis in self.space.axes})
        return self

    @property
    def volume(self) -> float:
        errors, sizes, macs = np.array(self.points).T
        return hypervolume(np.column_stack([errors, np.log(sizes), macs]), REFERENCE)


def drawn(axis, random: np.random.Generator) -> Any:
    if axis.choices:
        return str(random.choice(axis.choices))
    share = random.random()
    return float(axis.low * (axis.high / axis.low) ** share if axis.log else axis.low + (axis.high - axis.low) * share)


class TestFinds:
    @pytest.mark.slow
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_more_volume_than_random_proposals(self, seed, world, inputs_of):
        inputs = inputs_of(world.profile())
        guided = Search.start(world, inputs, seed).seeds(inputs, 8).suggest(20)
        blind = Search.start(world, inputs, seed).seeds(inputs, 8).propose_at_random(20, seed)
        assert guided.volume > 1.3 * blind.volume
        dense = dense_footprint(world.network)
        for policy in guided.policies:
            assert relative_cost(footprint(world.network, policy), dense).encoded <= 0.25
        assert len({policy.digest for policy in guided.policies}) == len(guided.policies)

    def test_more_volume_than_random_without_a_scan_and_seeds(self, world, inputs_of):
        guided = Search.start(world, inputs_of(), 0).suggest(24)
        blind = Search.start(world, inputs_of(), 0).propose_at_random(24, 0)
        assert guided.volume > 1.3 * blind.volume

    @pytest.mark.slow
    def test_a_wrong_scan_costs_little_in_the_end(self, world, inputs_of):
        """Told that the most sensitive layers are the least, studies of 40 trials end near those told nothing."""
        volumes = {}
        for name, profile in {"wrong": world.profile(INVERTED), "none": None}.items():
            inputs = inputs_of(profile)
            runs = [Search.start(world, inputs, seed).seeds(inputs, 8).suggest(32) for seed in (0, 1)]
            volumes[name] = np.mean([run.volume for run in runs])
        assert volumes["wrong"] >= 0.95 * volumes["none"]

    def test_the_most_accurate_of_one_size(self, world, inputs_of):
        """With one size there is nothing to trade but accuracy, so every proposal is after it."""
        space = Space(world.network, 0.1, min_size=0.1)
        inputs = inputs_of(world.profile(INVERTED))
        found = Search.start(world, inputs, 0, space).seeds(inputs, 6)
        blind = Search.start(world, inputs, 0, space).seeds(inputs, 6).propose_at_random(18, 0)
        found.suggest(18)
        lost, lost_blind = (min(error for error, _, _ in run.points) - DENSE_ERROR for run in (found, blind))
        assert lost < 0.9 * lost_blind
        channel = [policy.granularity == "channel" for policy in found.policies[6:]]
        assert np.mean(channel) < 0.5, "channels hurt more, and their speed is not asked for"
        masked = [size for (_, size, _), own in zip(found.points[6:], channel, strict=True) if not own]
        assert 0.097 <= min(masked) <= max(masked) <= 0.1

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", [0, 1])
    def test_smaller_networks_where_an_accuracy_is_asked_for(self, seed, world, inputs_of):
        wanted, inputs = 0.15, inputs_of()

        def smallest(**options: float) -> float:
            points = Search.start(world, inputs, seed, **options).seeds(inputs, 8).suggest(16).points
            return min(size for error, size, _ in points if error <= wanted)

        assert smallest(largest_error=wanted) < 0.75 * smallest()


class TestWishes:
    def test_a_perfect_accuracy_can_be_met(self, world, inputs_of):
        """All trials perfect: the smallest are looked for, though no error is below the wish."""
        run = Search.start(world, inputs_of(), 0, largest_error=0.0)
        for _ in range(FEWEST + 6):
            run.evaluate(run.guide.suggest(len(run.policies)).params, 0.0)
        assert run.points[-1][1] < 1.1 * run.space.size_range[0]

    def test_once_nothing_is_smaller_the_surest_is_asked_for(self, world, inputs_of):
        run = Search.start(world, inputs_of(), 0, largest_error=0.4)
        for _ in range(FEWEST + 3):
            run.evaluate({**run.guide.suggest(len(run.policies)).params, "size": run.space.size_range[0]}, 0.05)
        suggestion = run.guide.suggest(len(run.policies))
        assert suggestion.scores["gain"] > 0.5, "a chance, not a gain in size"

    def test_of_one_size_the_most_accurate_is_searched(self, world, inputs_of):
        space = Space(world.network, 0.1, ("fine-grained",), min_size=0.1)
        pair = [
            Search.start(world, inputs_of(), 0, space, **o).seeds(inputs_of(), 6) for o in ({"largest_error": 0.3}, {})
        ]
        assert pair[0].guide.suggest(6).params == pair[1].guide.suggest(6).params


class TestSurvives:
    def test_failed_trials(self, world, inputs_of):
        """One granularity always fails: the other is searched, and to the same end as alone."""
        inputs = inputs_of(world.profile())
        run = Search.start(world, inputs, 0)
        for params in [seed.params for seed in islice(initial_points(Projector(run.space, inputs)), 8)]:
            run.evaluate(params, 1.0 if params["granularity"] == "fine-grained" else None)
        for _ in range(12):
            params = run.guide.suggest(len(run.policies)).params
            run.evaluate(params, 1.0 if params["granularity"] == "fine-grained" else None)
        assert np.mean([policy.granularity == "channel" for policy in run.policies[-8:]]) >= 0.75
        assert min(error for error, _, _ in run.points) < 0.3

    @pytest.mark.parametrize("error", [0.0, 1.0, 0.5])
    def test_nothing_but_one_error(self, error, world, inputs_of):
        """All trials failed, all perfect, or none better than another."""
        run = Search.start(world, inputs_of(), 0).propose_at_random(0, 0)
        for _ in range(FEWEST + 3):
            suggestion = run.guide.suggest(len(run.policies))
            assert is_a_point(suggestion, run.space)
            run.evaluate(suggestion.params, error)

    def test_one_granularity_one_knob_one_size(self, residual, residual_graph):
        network = residual_graph.network
        space = Space(network, 0.5, ("channel",), min_size=0.5)
        inputs = {"channel": AllocationInputs(unit_importance(residual, residual_graph, "channel"))}
        guide = GuidedProposer(Projector(space, inputs), 0.1)
        for number in range(FEWEST + 2):
            suggestion = guide.suggest(number)
            assert is_a_point(suggestion, space)
            guide.learn(number, suggestion.params, 0.1 + 0.01 * number)

    def test_mixed_granularities(self, world, inputs_of):
        space = Space(world.network, 0.25, mixed=True)
        inputs = inputs_of(world.profile())
        run = Search.start(world, inputs, 0, space).seeds(inputs, 8)
        seeded = run.volume
        for _ in range(12):
            suggestion = run.guide.suggest(len(run.policies))
            assert is_a_point(suggestion, space)
            run.evaluate(suggestion.params)
        assert run.volume > 1.2 * seeded
        assert "mixed" in {policy.granularity_label for policy in run.policies[8:]}


def is_a_point(suggestion: Suggestion, space: Space) -> bool:
    """Whether its values are on the axes (NaN is on none) and its scores are numbers in order."""
    for axis in space.axes:
        value = suggestion.params[axis.name]
        if not (value in axis.choices if axis.choices else axis.low <= value <= axis.high):
            return False
    scores = suggestion.scores
    if not scores:
        return True
    ordered = 0 <= scores["predicted_low"] <= scores["predicted"] <= scores["predicted_high"] <= 1
    return ordered and scores["gain"] >= 0 and all(type(v) is float and math.isfinite(v) for v in scores.values())


class TestSuggestions:
    def test_scores(self, world, inputs_of):
        run = Search.start(world, inputs_of(world.profile()), 0)
        for number in range(FEWEST + AT_BEST + 1):
            suggestion = run.guide.suggest(number)
            assert is_a_point(suggestion, run.space)
            assert set(suggestion.params) == {axis.name for axis in run.space.axes}
            assert bool(suggestion.scores) == (number >= FEWEST)
            assert run.guide.suggested(number) is suggestion
            run.evaluate(suggestion.params)
        assert run.guide.suggested(99) is None

    def test_predictions_hold(self, world, inputs_of):
        """Most errors lie within two deviations of what was said before."""
        inputs = inputs_of(world.profile())
        run, within = Search.start(world, inputs, 3).seeds(inputs, 10), []
        for _ in range(12):
            suggestion = run.guide.suggest(len(run.policies))
            run.evaluate(suggestion.params)
            low, middle, high = (logit_of(suggestion.scores[f"predicted{end}"]) for end in ("_low", "", "_high"))
            within.append(2 * (low - middle) <= logit_of(1 - run.points[-1][0]) - middle <= 2 * (high - middle))
        assert np.mean(within) >= 0.6

    def test_repeats_what_a_fresh_guide_says_that_learnt_the_same(self, world, inputs_of):
        """In any order, and whether or not it was asked in between: a resumed study goes on alike."""
        inputs = inputs_of(world.profile())
        run = Search.start(world, inputs, 5).seeds(inputs, 4)
        params = [seed.params for seed in islice(initial_points(Projector(run.space, inputs)), 4)]
        for number in range(4, 9):
            params.append(run.guide.suggest(number).params)
            run.evaluate(params[-1])
        fresh = Search.start(world, inputs, 5)
        for number in reversed(range(9)):
            fresh.guide.learn(number, params[number], run.points[number][0])
        again, first = fresh.guide.suggest(9), run.guide.suggest(9)
        assert (again.params, again.source) == (first.params, first.source)
        assert again.scores == pytest.approx(first.scores)
        other = Search.start(world, inputs, 6)
        for number in range(9):
            other.guide.learn(number, params[number], run.points[number][0])
        assert other.guide.suggest(9).params != first.params

    def test_a_trial_told_again_is_replaced(self, world, inputs_of):
        inputs, random = inputs_of(), np.random.default_rng(9)
        told, once = (Search.start(world, inputs, 0) for _ in range(2))
        first, *points = [{axis.name: drawn(axis, random) for axis in told.space.axes} for _ in range(FEWEST + 1)]
        told.guide.learn(0, first, 0.001)
        for run in (told, once):
            for number, params in enumerate(points):
                run.guide.learn(number, params, 0.2 + 0.1 * number)
            assert run.guide.known(FEWEST - 1) and not run.guide.known(FEWEST)
        assert told.guide.suggest(FEWEST) == once.guide.suggest(FEWEST)

    def test_no_trial_repeats_an_earlier_one(self, residual, residual_graph):
        """A space of few networks: equal counts of channels and an equal schedule would be the same fine-tune."""
        space = Space(residual_graph.network, 0.5, ("channel",), min_size=0.5)
        inputs = {"channel": AllocationInputs(unit_importance(residual, residual_graph, "channel"))}
        guide, seen = GuidedProposer(Projector(space, inputs), 0.1), []
        for number in range(20):
            suggestion = guide.suggest(number)
            policy = Projector(space).project(suggestion.params).policy
            lost = achieved(space.network, policy)
            exponent = policy.schedule.exponent if policy.schedule.kind == "polynomial" else None
            seen.append((tuple(sorted(lost.items())), exponent))
            guide.learn(number, suggestion.params, float(expit(-2 + lost["first.weight"])))
        assert len(set(seen)) == len(seen)


def logit_of(share: float) -> float:
    return math.log(share / (1 - share))


class Rows:
    """Stands before the surrogate and counts what it is fitted to."""

    def __init__(self, monkeypatch) -> None:
        self.values: list[np.ndarray] = []
        real = subject.Surrogate

        def counted(features, values, *rest):
            self.values.append(np.array(values))
            return real(features, values, *rest)

        monkeypatch.setattr(subject, "Surrogate", counted)


def learnt(world: World, inputs: Mapping[str, AllocationInputs], trials: int, best: int) -> Search:
    """Random points; trial number `best` has by far the least error, and the others grow worse."""
    run, random = Search.start(world, inputs, 0), np.random.default_rng(4)
    for number in range(trials):
        params = {axis.name: drawn(axis, random) for axis in run.space.axes}
        run.guide.learn(number, params, 0.01 if number == best else 0.3 + 0.5 * number / trials)
    return run


class TestScale:
    @pytest.mark.slow
    def test_rows_stay_bounded_and_keep_the_best_and_the_latest(self, world, inputs_of, monkeypatch):
        rows = Rows(monkeypatch)
        run = learnt(world, inputs_of(), 300, best=7)
        assert is_a_point(run.guide.suggest(300), run.space)
        (values,) = rows.values
        assert FEWEST <= len(values) <= MOST_ROWS
        errors = expit(values)
        assert errors.min() == pytest.approx(0.01)
        assert errors.max() == pytest.approx(0.3 + 0.5 * 299 / 300)

    def test_few_are_all_kept(self, world, inputs_of, monkeypatch):
        rows = Rows(monkeypatch)
        run = learnt(world, inputs_of(), 60, best=7)
        run.guide.suggest(60)
        assert len(rows.values[0]) == 60

    @pytest.mark.slow
    def test_the_front_survives_many_later_failures(self, world, inputs_of, monkeypatch):
        """What is non-dominated stays in sight, however long ago it was found."""
        rows, inputs = Rows(monkeypatch), inputs_of(world.profile())
        run = Search.start(world, inputs, 0).seeds(inputs, 8)
        errors, sizes, macs = np.array(run.points).T
        front = errors[non_dominated(np.column_stack([errors, sizes, macs]))]
        random = np.random.default_rng(2)
        for number in range(8, 8 + 2 * MOST_ROWS):
            run.guide.learn(number, {axis.name: drawn(axis, random) for axis in run.space.axes}, 1.0)
        run.guide.suggest(8 + 2 * MOST_ROWS)
        seen = expit(rows.values[-1])
        assert all(np.isclose(seen, error, atol=1e-9).any() for error in front)


class TestBoldness:
    def test_no_layer_is_asked_for_much_more_than_a_trial_has(self, world, inputs_of):
        """In units of (share kept)^-1/2 - 1; fully observed by the seeds, one granularity, one size."""
        space, inputs = Space(world.network, 0.1, ("channel",), min_size=0.1), inputs_of(world.profile())
        run = Search.start(world, inputs, 0, space).seeds(inputs, 6)

        def asked(policy: PruningPolicy) -> np.ndarray:
            return np.array([(1 - share) ** -0.5 - 1 for share in policy.sparsity.values()])

        for _ in range(10):
            most = np.max([asked(policy) for policy in run.policies], axis=0)
            run.suggest()
            assert (asked(run.policies[-1]) <= BOLDEST * most + 0.02)[most > 0].all()

    def test_an_error_that_is_no_number_counts_as_a_failure(self, world, inputs_of):
        inputs = inputs_of()
        told = [Search.start(world, inputs, 0).seeds(inputs, 8) for _ in range(2)]
        for run, error in zip(told, (math.nan, 1.0), strict=True):
            run.evaluate(run.space.params(0.1, "channel", {}, SEED_SCHEDULE), error)
        assert told[0].guide.suggest(9) == told[1].guide.suggest(9)


def table_of(network: Network) -> LatencyTable:
    """Times that grow with both widths of every layer, and a rest as large as a tenth."""
    layers = {}
    for place, layer in enumerate(network.layers):
        outputs, inputs = layer.shape[:2]
        grid = [tuple(sorted({1, (width + 1) // 2, width})) for width in (outputs, inputs)]
        seconds = tuple(tuple(1e-6 * (place + 1) * (1 + o * i / 16) for i in grid[1]) for o in grid[0])
        layers[layer.name] = LayerLatency(*grid, seconds)
    return LatencyTable("", "some CPU", 1, 1, layers, (RestLatency(1.0, 1.0, 1e-5),), 1e-4, 0.0)


class TestFurtherLimits:
    def test_every_proposal_is_within_all_of_them(self, world, inputs_of):
        latency = Predictor(table_of(world.network), world.network)
        space = Space(world.network, 0.3, max_macs=0.3, max_latency=0.45, latency=latency, speed="latency")
        inputs = inputs_of(world.profile())
        run = Search.start(world, inputs, 0, space).seeds(inputs, 4).suggest(10)
        dense = dense_footprint(world.network)
        for policy in run.policies:
            cost = relative_cost(footprint(world.network, policy), dense)
            assert cost.encoded <= 0.3
            assert cost.macs <= 0.3
            assert latency.share(policy) <= 0.45 + 1e-9


class TestDeepNetworks:
    def test_shared_knobs_on_bases(self):
        """30 layers, 24 knobs; the schedule alone decides the error, and is found."""
        network, random = chain(30), np.random.default_rng(0)
        known = {
            "fine-grained": AllocationInputs({layer.name: random.random(layer.numel) ** 2 for layer in network.layers})
        }
        space = Space(network, 0.25, ("fine-grained",), allocations=allocator_names(scanned=False))
        assert len(space.knobs) == 24 and {"even", "lamp"} <= set(space.base_names)
        projector = Projector(space, known)
        guide, dense, bases, kinds = GuidedProposer(projector, 0.05), dense_footprint(network), set(), []
        for number in range(16):
            suggestion = guide.suggest(number)
            assert is_a_point(suggestion, space)
            policy = projector.project(suggestion.params).policy
            assert relative_cost(footprint(network, policy), dense).encoded <= 0.25
            bases.add(suggestion.params["base"])
            kinds.append(policy.schedule.kind)
            guide.learn(number, suggestion.params, 0.1 if kinds[-1] == "one-shot" else 0.4)
        assert len(bases) >= 3
        assert kinds[FEWEST + 3 :].count("one-shot") >= 6


class TestRemovalsBeforeMasks:
    @pytest.mark.parametrize("harmful", ["channels", "masks"])
    def test_finds_which_part_does_less_harm(self, harmful, world, inputs_of):
        """All else is equal: one size, and an error of one of the two parts alone."""
        word = "channel+fine-grained"
        space, network = Space(world.network, 0.1, (word,), min_size=0.1), world.network
        guide = GuidedProposer(Projector(space, inputs_of(world.profile())), DENSE_ERROR)
        parts, sizes = [], []
        for number in range(20):
            params = guide.suggest(number).params
            policy = Projector(space).project(params).policy
            removal, masks = PruningPolicy({}, removal=policy.removal), replace(policy, removal={})
            kept = relative_cost(
                footprint(network, removal if harmful == "channels" else masks), dense_footprint(network)
            )
            guide.learn(number, params, float(expit(DENSE_LOGIT - 1.5 * math.log(kept.nonzero))))
            parts.append(params["removal"])
            sizes.append(relative_cost(footprint(network, policy), dense_footprint(network)).encoded)
        assert max(sizes) <= 0.1
        late = np.mean(parts[-6:])
        assert late < 0.3 if harmful == "channels" else late > 0.7

    def test_beside_the_words_they_are_made_of(self, world, inputs_of):
        """Points that differ in their removal alone are told apart, and all of them are within the limit."""
        space = Space(world.network, 0.25, ("fine-grained", "channel", "channel+fine-grained"))
        inputs = inputs_of(world.profile())
        run = Search.start(world, inputs, 0, space).seeds(inputs, 6).suggest(10)
        assert max(size for _, size, _ in run.points) <= 0.25
        assert "channel+fine-grained" in {policy.granularity_label for policy in run.policies}
        masks = PruningPolicy({"classifier.weight": 0.5}, removal={"backbone.conv3.weight": 0.25})
        other = replace(masks, removal={"backbone.conv3.weight": 0.75})
        keys = [fine_tune_key(world.network, policy) for policy in (masks, other)]
        assert keys[0] != keys[1]


def params_at(space: Space, size: float, granularity: str, knob: int = 0) -> dict[str, Any]:
    preferences = {name: 0.25 + 0.5 * (place == knob) for place, name in enumerate(space.knobs)}
    return space.params(size, granularity, preferences, space.seed_schedule)


def told(guide: GuidedProposer, space: Space, trials: list[tuple[float, str, float]]) -> GuidedProposer:
    for number, (size, granularity, error) in enumerate(trials):
        guide.learn(number, params_at(space, size, granularity, number), error)
    return guide


ALIVE = [(size, word, 0.25) for word in ("fine-grained", "channel") for size in (0.03, 0.08, 0.2)]
DEAD_BELOW = [(size, "fine-grained", 0.9 if size < 0.15 else 0.25) for size in (0.03, 0.04, 0.06, 0.1, 0.16, 0.2, 0.24)]


def test_sizes_at_which_only_dead_networks_are_found_are_left_alone(world, inputs_of):
    """Of four dead ones the two smallest: 0.03 and 0.04; of channels nothing is known, which go as low as before."""
    space, inputs = Space(world.network, 0.25), inputs_of(world.profile())
    guide = told(GuidedProposer(Projector(space, inputs), DENSE_ERROR, 3, chance=0.125), space, DEAD_BELOW)
    low = guide.least_sizes["fine-grained"]
    assert 0.035 < low <= 0.04 and set(guide.least_sizes) == {"fine-grained"}
    params = [guide.suggest(number).params for number in range(7, 19)]
    assert all(p["size"] >= low for p in params if p["granularity"] == "fine-grained")
    drafts = guide._pool.draw(400, [space.draft(params[0])], np.random.default_rng(0))
    sizes = {word: [d.size for d in drafts if d.granularity == word] for word in ("fine-grained", "channel")}
    assert min(sizes["fine-grained"]) >= low > min(sizes["channel"])
    assert sum(size < 0.08 for size in sizes["fine-grained"]) > 20


def test_sizes_left_alone_are_those_counted_anew_after_every_trial(world, inputs_of):
    space, inputs = Space(world.network, 0.25), inputs_of(world.profile())
    guide = GuidedProposer(Projector(space, inputs), DENSE_ERROR, 3, chance=0.125)
    random, known = np.random.default_rng(5), {}
    found = set()
    for number in [*range(24), 3, 9, 3]:
        word, error = str(random.choice(["fine-grained", "channel"])), float(random.choice([0.25, 0.9, math.nan]))
        guide.learn(number, params_at(space, float(random.uniform(0.05, 0.2)), word, number % 3), error)
        known[number] = (word, guide._observed[number].size, error)
        wanted = {}
        for kind in ("fine-grained", "channel"):
            alive = [size for one, size, error in known.values() if one == kind and error < 0.875]
            dead = [size for one, size, error in known.values() if one == kind and error >= 0.875]
            smaller = sorted(size for size in dead if not alive or size < min(alive))
            if len(smaller) > 1:
                wanted[kind] = smaller[(len(smaller) - 2) // 2]
        assert guide.least_sizes == wanted
        found.add(len(wanted))
    assert len(found) > 1


def test_one_that_survives_gives_smaller_sizes_back(world, inputs_of):
    space, inputs = Space(world.network, 0.25), inputs_of(world.profile())
    guide = told(GuidedProposer(Projector(space, inputs), DENSE_ERROR, 3, chance=0.125), space, DEAD_BELOW)
    guide.learn(7, params_at(space, 0.05, "fine-grained", 4), 0.5)
    assert 0.025 < guide.least_sizes["fine-grained"] <= 0.03
    guide.learn(8, params_at(space, 0.027, "fine-grained", 4), 0.5)
    assert guide.least_sizes == {}


@pytest.mark.parametrize(
    "trials",
    [
        ALIVE,
        [*ALIVE, (0.026, "channel", 0.9)],
        [*ALIVE, (0.026, "channel", math.nan), (0.027, "channel", math.nan)],
        [*ALIVE, (0.1, "channel", 0.9), (0.12, "channel", 0.9)],
    ],
    ids=["all-alive", "one-dead", "diverged", "dead-above-the-living"],
)
def test_where_nothing_is_known_to_be_too_small_proposals_are_the_same(world, inputs_of, trials):
    space, inputs = Space(world.network, 0.25), inputs_of(world.profile())
    knowing, blind = (
        told(GuidedProposer(Projector(space, inputs), DENSE_ERROR, 5, chance=c), space, trials) for c in (0.125, None)
    )
    numbers = range(len(trials), len(trials) + 4)
    assert [knowing.suggest(n) for n in numbers] == [blind.suggest(n) for n in numbers]


def test_what_is_too_small_does_not_depend_on_the_order_of_learning(world, inputs_of):
    """So that an interrupted study proposes what an uninterrupted one would have."""
    space, inputs = Space(world.network, 0.25), inputs_of(world.profile())
    first, again = (GuidedProposer(Projector(space, inputs), DENSE_ERROR, 3, chance=0.125) for _ in range(2))
    params = [params_at(space, size, word, n) for n, (size, word, _) in enumerate(DEAD_BELOW)]
    for number, (_, _, error) in enumerate(DEAD_BELOW):
        first.suggest(number)
        first.learn(number, params[number], error)
    for number, (_, _, error) in reversed(list(enumerate(DEAD_BELOW))):
        again.learn(number, params[number], error)
    assert first.least_sizes == again.least_sizes != {}


@pytest.mark.parametrize("other", ["channel", "1:4"])
def test_mixed_granularities_have_one_least_size_together(world, vgg, vgg_graph, other):
    """Whatever the layers' words: the second smallest of the dead ones, whose sizes are counted from their policies. A
    layer of a fixed pattern can itself keep a policy above the size it was asked for."""
    network, words, names = world.network, ("fine-grained", other), world.network.layer_names
    space = Space(network, 0.25, words, mixed=True)
    inputs = {word: AllocationInputs.of(network, word, unit_importance(vgg, vgg_graph, word), None) for word in words}
    guide, dead, points = GuidedProposer(Projector(space, inputs), DENSE_ERROR, 3, chance=0.125), [], []
    for number, (size, _, error) in enumerate(DEAD_BELOW):
        places = range(number % 2, len(names) - 3, 2)
        chosen = {name: words[place in places] for place, name in enumerate(names)}
        points.append(space.params(size, chosen, {names[number]: 0.75}, space.seed_schedule))
        guide.learn(number, points[-1], error)
        cost = relative_cost(footprint(network, Projector(space).project(points[-1]).policy), dense_footprint(network))
        dead += [cost.encoded] if error == 0.9 else []
    assert set(guide.least_sizes) == {"mixed"}
    least = guide.least_sizes["mixed"]
    assert least == pytest.approx(sorted(dead)[1], rel=0.02) and least > 1.2 * space.size_range[0]
    guide.suggest(7)
    drafts = guide._pool.draw(300, [space.draft(one) for one in points], np.random.default_rng(0))
    assert min(draft.size for draft in drafts) >= least
    assert {"mixed", "fine-grained"} <= {draft.label for draft in drafts}  # 1:4 alone misses the limit
    assert len({draft.source for draft in drafts}) >= 4
    assert all(guide.suggest(number).params["size"] >= least for number in range(8, 11))


@dataclass(frozen=True)
class RoundingWorld(World):
    """Rounding to 4 bits adds this to the error's logit, by layer; each bit more half of it."""

    rounding: tuple[float, ...] = tuple(s / 10 for s in SENSITIVITY)

    def error(self, policy: PruningPolicy) -> float:
        steps = (2.0 ** (4 - policy.bits_of(name)) for name in self.network.layer_names)
        added = sum(own * step for own, step in zip(self.rounding, steps, strict=True))
        return float(expit(logit_of(super().error(policy)) + added))


class TestBits:
    @pytest.mark.slow
    def test_finds_those_that_suit_a_size(self, world, inputs_of):
        """At a fiftieth of the size, four bits lose less than the weights that more bits would cost."""
        rounding, inputs = RoundingWorld(world.network), inputs_of(world.profile())
        runs = {
            bits: Search.start(rounding, inputs, 0, Space(world.network, 0.02, min_size=0.02, bits=bits))
            .seeds(inputs, 6)
            .suggest(14)
            for bits in ((8, 6, 4), (8,), (32,))
        }
        best = {bits: min(error for error, *_ in run.points) for bits, run in runs.items()}
        assert best[8, 6, 4] < best[8,] < best[32,]
        chosen = [policy.bits for policy in runs[8, 6, 4].policies[6:]]
        assert chosen.count(4) > 7

    def test_where_layers_differ(self, world, inputs_of):
        """Rounding the first layer hurts, and no other: better than one width for all."""
        rounding, inputs = RoundingWorld(world.network, rounding=(1.0, *[0.0] * 8)), inputs_of(world.profile())
        best = {}
        for mixed in (False, True):
            space = Space(world.network, 0.02, ("fine-grained",), min_size=0.02, mixed=mixed, bits=(8, 6, 4, 3))
            run = Search.start(rounding, inputs, 0, space).seeds(inputs, 6)
            for _ in range(12):
                suggestion = run.guide.suggest(len(run.policies))
                assert is_a_point(suggestion, space)
                run.evaluate(suggestion.params)
            assert max(size for _, size, _ in run.points) <= 0.02
            best[mixed] = min(error for error, *_ in run.points)
        assert best[True] < 0.95 * best[False]

    def test_sizes_left_alone_are_of_one_width(self, world, inputs_of):
        space, inputs = Space(world.network, 0.08, bits=(32, 4)), inputs_of()
        guide = GuidedProposer(Projector(space, inputs), DENSE_ERROR, 3, chance=0.125)
        for number, (size, word, error) in enumerate(DEAD_BELOW):
            params = space.params(size / 3, word, {list(space.knobs)[number]: 0.75}, space.seed_schedule, bits=4)
            guide.learn(number, params, error)
        assert set(guide.least_sizes) == {"fine-grained at 4 bits"}
        assert 0.011 < guide.least_sizes["fine-grained at 4 bits"] < 0.014

    def test_the_best_of_each_width_are_parents(self, world, inputs_of):
        """Though those of one are beaten by those of the other."""
        space, inputs = Space(world.network, 0.1, ("fine-grained",), bits=(32, 4)), inputs_of()
        guide = GuidedProposer(Projector(space, inputs), DENSE_ERROR)
        for number in range(12):
            bits, size = (32, 4)[number % 2], 0.03 + 0.005 * number
            params = space.params(
                size, "fine-grained", {list(space.knobs)[number % 5]: 0.75}, space.seed_schedule, bits=bits
            )
            guide.learn(number, params, 0.5 if bits == 32 else 0.2)
        parents = Counter(draft.bits for draft in guide._parents(guide._relevant()))
        assert min(parents[32], parents[4]) >= 1
