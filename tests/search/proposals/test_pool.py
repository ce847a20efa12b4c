"""Candidates fit within the limits, come from all sources, and repeat with their random state."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from pruning.importance.scores import unit_importance
from search.proposals.pool import CROSSOVER, FREE, LOWEST, PRIOR, STATIC, SWAP, Pool
from spaces import Schedule, Space
from spaces.allocation.importance import AllocationInputs
from spaces.allocation.two_stage import EVEN_PART, REMOVAL
from spaces.cost.footprint import dense_footprint, footprint, relative_cost
from spaces.search_space.logits import centred
from spaces.search_space.projection import Projector
from spaces.search_space.space import EXPONENTS, Draft
from spaces.sensitivity import Profile, ProfilePoint, RoundingPoint

SCANNED_LEVELS = (0.5, 0.9, 0.99)


def made_up_profile(network) -> Profile:
    """Every layer twice as sensitive as the next."""
    layers = {
        name: tuple(ProfilePoint(level, loss := 0.1 + 0.5**place * level, 0.9, loss, 0.9) for level in SCANNED_LEVELS)
        for place, name in enumerate(network.layer_names)
    }
    return Profile("", 100, 0.1, 0.9, {"fine-grained": layers, "channel": layers}, 1.0)


@pytest.fixture(scope="module")
def inputs_of(vgg, vgg_graph, residual, residual_graph):
    """Allocation inputs of a network, with or without a scan."""
    models = {"vgg": (vgg, vgg_graph), "residual": (residual, residual_graph)}

    def of(name: str, scanned: bool = True) -> dict[str, AllocationInputs]:
        model, graph = models[name]
        profile = made_up_profile(graph.network) if scanned else None
        words = ("fine-grained", "channel")
        return {g: AllocationInputs.of(graph.network, g, unit_importance(model, graph, g), profile) for g in words}

    return of


@pytest.fixture
def space(vgg_graph) -> Space:
    return Space(vgg_graph.network, 0.25)


def parents_of(space: Space, count: int = 6) -> list[Draft]:
    """Two granularities in turn, no two knobs alike."""
    random = np.random.default_rng(11)
    low, high = space.size_range
    return [
        Draft(
            f"parent{n}",
            float(low * (high / low) ** random.random()),
            space.usable[n % len(space.usable)],
            random.normal(0, 1, len(space.knobs)),
            Schedule("polynomial", 2.0 + n / 10),
            bits=space.bits[n // len(space.usable) % len(space.bits)],
        )
        for n in range(count)
    ]


def same(a: Draft, b: Draft) -> bool:
    first, second = ((d.source, d.size, d.granularity, d.schedule, d.bits) for d in (a, b))
    return first == second and np.array_equal(a.logits, b.logits)


class TestLimits:
    @pytest.mark.parametrize("name", ["vgg", "residual"])
    @pytest.mark.parametrize(
        "options",
        [
            {"max_size": 0.3},
            {"max_size": 0.3, "mixed": True, "metric": "nonzero"},
            {"max_size": 0.6, "granularities": ("channel",), "max_macs": 0.4},
            {"max_size": 0.3, "min_size": 0.3},
            {"max_size": 0.3, "bits": (8, 6, 3)},
            {"max_size": 0.1, "bits": (32, 5), "mixed": True},
        ],
        ids=str,
    )
    def test_every_candidate_fits_within_them(self, options, name, inputs_of, vgg_graph, residual_graph):
        network = {"vgg": vgg_graph, "residual": residual_graph}[name].network
        space, random = Space(network, **options), np.random.default_rng(3)
        low, high = space.size_range
        pool, dense = Pool(space, inputs_of(name)), dense_footprint(network)
        drafts = pool.draw(48, parents_of(space), random)
        batch = Projector(space).project_batch(drafts)
        assert np.isfinite(batch.sizes).all() and np.isfinite(batch.speeds).all()
        for draft in drafts:
            assert min(low, space.pruned_range(draft.bits)[0]) <= draft.size <= high
        targets = np.array([space.reachable(draft.size, draft.granularity, draft.bits) for draft in batch.drafts])
        assert (batch.sizes <= targets * (1 + 1e-9)).all()
        assert (batch.speeds <= space.max_macs * (1 + 1e-9)).all()
        for draft in drafts[::4]:
            policy = Projector(space).project(draft).policy
            cost = relative_cost(footprint(network, policy), dense)
            assert cost.of(space.metric) <= high
            assert cost.macs <= space.max_macs

    def test_many_are_at_the_limit_itself_the_others_spread(self, space, inputs_of):
        sizes = np.array([d.size for d in Pool(space, inputs_of("vgg")).draw(400, [], np.random.default_rng(0))])
        low, high = space.size_range
        assert 0.15 < (sizes == high).mean() < 0.4
        thirds = np.histogram(np.log(sizes[sizes < high]), np.linspace(np.log(low), np.log(high), 4))[0]
        assert thirds.min() > 0.2 * thirds.sum()

    def test_schedules_lie_on_the_axes(self, space, inputs_of):
        drafts = Pool(space, inputs_of("vgg")).draw(300, parents_of(space), np.random.default_rng(0))
        assert {draft.schedule.kind for draft in drafts} == {"one-shot", "polynomial"}
        assert all(EXPONENTS[0] <= draft.schedule.exponent <= EXPONENTS[1] for draft in drafts)


class TestSources:
    @pytest.mark.parametrize("with_parents", [False, True])
    @pytest.mark.parametrize("scanned", [False, True])
    def test_a_fifth_is_free_of_what_is_believed(self, scanned, with_parents, space, inputs_of):
        parents = parents_of(space) if with_parents else []
        drafts = Pool(space, inputs_of("vgg", scanned)).draw(500, parents, np.random.default_rng(0))
        counts = Counter(draft.source for draft in drafts)
        assert counts[FREE] >= 0.2 * 500
        assert (PRIOR in counts) == scanned
        assert (SWAP in counts, CROSSOVER in counts) == (with_parents, with_parents)
        assert STATIC in counts
        assert sum(counts.values()) == 500

    def test_free_ones_are_the_same_whatever_is_believed(self, space, inputs_of):
        """All free candidates of one random state: neither scan nor weights nor parents move their knobs."""
        spread = np.concatenate(
            [
                d.logits
                for d in Pool(space, inputs_of("vgg")).draw(500, [], np.random.default_rng(1))
                if d.source == FREE
            ]
        ).reshape(-1, len(space.knobs))
        assert np.abs(spread.mean(axis=0)).max() < 0.6
        assert np.abs(np.corrcoef(spread.T) - np.eye(len(space.knobs))).max() < 0.35

    def test_the_scan_is_followed(self, space, inputs_of):
        """Of a profile by which every layer is twice as sensitive as the next, later layers give more."""
        drafts = Pool(space, inputs_of("vgg")).draw(500, [], np.random.default_rng(1))
        follow = np.array([d.logits for d in drafts if d.source == PRIOR and d.granularity == "fine-grained"])
        finite = np.where(np.isfinite(follow), follow, LOWEST)[:, :8]
        assert np.median(finite[:, 7] - finite[:, 0]) > 1

    @pytest.mark.parametrize("name", ["vgg", "residual"])
    def test_equal_random_states_draw_equal_pools(self, name, inputs_of, vgg_graph, residual_graph):
        network = {"vgg": vgg_graph, "residual": residual_graph}[name].network
        space = Space(network, 0.3, mixed=True, bits=(8, 4))
        parents = parents_of(space)
        used = Pool(space, inputs_of(name))
        used.draw(20, parents, np.random.default_rng(1))
        first, second = (
            pool.draw(60, parents, np.random.default_rng(7)) for pool in (used, Pool(space, inputs_of(name)))
        )
        assert all(same(a, b) for a, b in zip(first, second, strict=True))
        other = used.draw(60, parents, np.random.default_rng(8))
        assert sum(same(a, b) for a, b in zip(first, other, strict=True)) < 5


class TestMoves:
    def test_swap_moves_one_to_three_knobs(self, space, inputs_of):
        pool, random = Pool(space, inputs_of("vgg")), np.random.default_rng(0)
        parent = parents_of(space)[0]
        changed = []
        for _ in range(120):
            child = pool.swap(parent, random)
            differs = ~np.isclose(child.logits, centred(parent.logits), atol=1e-12)
            changed.append(int(differs.sum()))
            assert (child.source, child.granularity) == (SWAP, parent.granularity)
        assert set(changed) == {1, 2, 3}

    def test_swap_leaves_the_parent_as_it_was(self, space, inputs_of):
        parent = parents_of(space)[0]
        before = parent.logits.copy()
        Pool(space, inputs_of("vgg")).swap(parent, np.random.default_rng(0))
        assert np.array_equal(parent.logits, before)

    def test_swap_moves_whole_layers_too(self, space, inputs_of):
        """A knob at minus infinity starts from `LOWEST`, the others stay as they are."""
        logits = np.array([-np.inf] * 5 + [1.0] * (len(space.knobs) - 5))
        parent = Draft("", 0.1, "fine-grained", logits, Schedule())
        pool, random = Pool(space, inputs_of("vgg")), np.random.default_rng(0)
        woken = set()
        for _ in range(60):
            child = pool.swap(parent, random).logits
            now = np.flatnonzero(np.isfinite(child[:5]))
            assert len(now) <= 3
            assert (np.abs(child[now] - LOWEST) < 5).all()
            woken |= set(now.tolist())
        assert woken == set(range(5))

    def test_swap_changes_one_channel_group_at_most(self, inputs_of, residual_graph):
        space = Space(residual_graph.network, 0.5, mixed=True)
        pool, random = Pool(space, inputs_of("residual")), np.random.default_rng(0)
        parent = Draft("", 0.3, "fine-grained", np.zeros(len(space.knobs)), Schedule())
        seen = set()
        for _ in range(80):
            words = pool.swap(parent, random).granularity
            if isinstance(words, str):
                continue
            assert set(words) == set(space.network.layer_names)
            seen.add(frozenset(name for name, word in words.items() if word == "channel"))
        groups = {("first.weight", "last.weight"), ("inner.weight",), ("classifier.weight",)}
        assert seen == {frozenset(), *map(frozenset, groups)}

    def test_crossover_takes_every_knob_from_one_of_two_parents(self, space, inputs_of):
        parents = parents_of(space)
        drafts = Pool(space, inputs_of("vgg")).draw(400, parents, np.random.default_rng(0))
        children, mixed = [d for d in drafts if d.source == CROSSOVER], 0
        assert len(children) >= 40
        for child in children:
            matches = [
                [np.isclose(child.logits, centred(parent.logits), atol=1e-12) for parent in pair]
                for pair in pairs(parents)
            ]
            (first, second), *_ = [found for found in matches if (found[0] | found[1]).all()]
            mixed += bool(first.any() and second.any())
        assert mixed > 0.9 * len(children)

    def test_crossover_needs_a_mate(self, space, inputs_of):
        """One parent, or one of each granularity, has none: it is moved instead."""
        pool = Pool(space, inputs_of("vgg"))
        for parents in (parents_of(space, 1), parents_of(space, 2)):
            counts = Counter(d.source for d in pool.draw(200, parents, np.random.default_rng(0)))
            assert counts[CROSSOVER] == 0 < counts[SWAP]

    def test_crossover_sizes_lie_between_the_parents_or_at_the_limit(self, space, inputs_of):
        parents = parents_of(space, 4)
        sizes = [parent.size for parent in parents]
        drafts = Pool(space, inputs_of("vgg")).draw(400, parents, np.random.default_rng(0))
        for child in (d for d in drafts if d.source == CROSSOVER):
            limit = child.size == space.size_range[1]
            assert limit or min(sizes) * (1 - 1e-9) <= child.size <= max(sizes) * (1 + 1e-9)


def pairs(parents: list[Draft]) -> list[tuple[Draft, Draft]]:
    return [(a, b) for a in parents for b in parents if a is not b and a.granularity == b.granularity]


class TestRemovalsBeforeMasks:
    @pytest.fixture
    def parted(self, vgg_graph) -> Space:
        return Space(vgg_graph.network, 0.25, ("channel", "channel+fine-grained"))

    def test_come_from_all_sources_and_divide_the_reduction_in_many_ways(self, parted, inputs_of):
        drafts = Pool(parted, inputs_of("vgg")).draw(300, parents_of(parted), np.random.default_rng(0))
        own = [draft for draft in drafts if draft.granularity == "channel+fine-grained"]
        assert {draft.source for draft in own} == {PRIOR, STATIC, SWAP, CROSSOVER, FREE}
        for source in (PRIOR, STATIC, FREE):
            parts = [draft.channel_fraction for draft in own if draft.source == source]
            assert REMOVAL[0] <= min(parts) < 0.3 and 0.7 < max(parts) <= REMOVAL[1]
        assert {draft.channel_fraction for draft in drafts if draft.granularity == "channel"} == {EVEN_PART}

    def test_fit_within_the_limits(self, vgg_graph, inputs_of):
        space = Space(vgg_graph.network, 0.3, ("channel+fine-grained", "channel+2:4"), max_macs=0.4)
        inputs, random = inputs_of("vgg", scanned=False), np.random.default_rng(3)
        inputs["2:4"] = inputs["fine-grained"]
        drafts, dense = Pool(space, inputs).draw(48, parents_of(space), random), dense_footprint(space.network)
        batch = Projector(space).project_batch(drafts)
        assert (batch.sizes <= 0.3).all() and (batch.speeds <= 0.4 * (1 + 1e-9)).all()
        for draft in drafts[::6]:
            cost = relative_cost(footprint(space.network, Projector(space).project(draft).policy), dense)
            assert max(cost.encoded - 0.3, cost.macs - 0.4) <= 0

    def test_swap_moves_the_part_a_little(self, parted, inputs_of):
        pool, random = Pool(parted, inputs_of("vgg")), np.random.default_rng(0)
        parent = Draft("", 0.1, "channel+fine-grained", np.zeros(len(parted.knobs)), Schedule(), channel_fraction=0.15)
        parts = np.array([pool.swap(parent, random).channel_fraction for _ in range(100)])
        assert parts.min() == REMOVAL[0] and 0.05 < parts.std() < 0.15 and np.median(parts) < 0.25
        plain = Draft("", 0.1, "channel", np.zeros(len(parted.knobs)), Schedule(), channel_fraction=0.15)
        assert pool.swap(plain, random).channel_fraction == 0.15


BITS = (8, 6, 3)
"""At the first, this network is above a limit of 0.2 with nothing removed; at the others it is below."""


class TestBits:
    @pytest.fixture
    def space(self, vgg_graph) -> Space:
        return Space(vgg_graph.network, 0.2, bits=BITS)

    def test_all_are_tried_and_sizes_are_those_at_which_something_goes(self, space, inputs_of):
        drafts = Pool(space, inputs_of("vgg")).draw(600, [], np.random.default_rng(0))
        unpruned = {bits: space.unpruned_size(bits) for bits in BITS}
        assert unpruned[3] < unpruned[6] < 0.2 < unpruned[8]
        for bits in BITS:
            sizes = np.array([draft.size for draft in drafts if draft.bits == bits])
            assert 150 < len(sizes) < 250
            whole = (sizes > unpruned[bits]).mean()
            assert whole == 0 if bits == 8 else 0.01 < whole < 0.1, "bits alone are a candidate, too"
            pruned = sizes[sizes <= unpruned[bits]]
            assert pruned.max() == space.pruned_range(bits)[1] and np.median(pruned) < 0.7 * pruned.max()

    def test_static_allocations_are_worked_out_at_the_drafts_bits(self, space, inputs_of):
        """At one size, fewer bits ask for less."""
        pool, asked = Pool(space, inputs_of("vgg")), {}
        for bits in BITS:
            logits, _ = pool._allocated("lamp", "fine-grained", 0.06, bits)
            asked[bits] = float(np.mean(1 / (1 + np.exp(-logits))))
            random = np.random.default_rng(0)
            table, _ = pool._from_table("fine-grained", 0.06, bits, random)
            asked[bits, "scan"] = float(np.mean(1 / (1 + np.exp(-table))))
        assert asked[3] + 0.1 < asked[6] < asked[8] and asked[3, "scan"] + 0.1 < asked[6, "scan"] < asked[8, "scan"]

    @pytest.mark.parametrize("granularity", ["fine-grained", "channel"])
    def test_of_layers_by_the_scan_where_layers_may_differ(self, vgg, vgg_graph, granularity):
        """Rounding the third layer hurts, and no other."""
        network = vgg_graph.network
        hurt = dict.fromkeys(network.layer_names, 0.0) | {network.layer_names[2]: 9.0}
        rounding = {
            name: tuple(RoundingPoint(bits, 0, 0, 0.1 + own * 4.0**-bits, 0) for bits in (8, 6, 3))
            for name, own in hurt.items()
        }
        scores, known = unit_importance(vgg, vgg_graph, granularity), made_up_profile(network)
        kept_apart = []
        for profile in (known, replace(known, rounding=rounding)):
            inputs = {granularity: AllocationInputs.of(network, granularity, scores, profile)}
            pool = Pool(Space(network, 0.04, (granularity,), mixed=True, bits=BITS), inputs)
            drafts = [draft for draft in pool.draw(160, [], np.random.default_rng(1)) if draft.source == PRIOR]
            bits = [list(draft.bits.values()) for draft in drafts if not isinstance(draft.bits, int)]
            kept_apart.append(sum(own[2] > max(own[:2] + own[3:]) for own in bits))
        assert len(drafts) == 40 and kept_apart[0] <= 1 and kept_apart[1] > 5

    def test_moves_change_them_now_and_then(self, space, inputs_of):
        pool, random = Pool(space, inputs_of("vgg")), np.random.default_rng(0)
        parent = parents_of(space)[3]
        counts = Counter(pool.swap(parent, random).bits for _ in range(200))
        assert set(counts) == set(BITS) and 0.6 < counts[parent.bits] / 200 < 0.95

    def test_of_a_few_layers_where_layers_may_differ(self, space, inputs_of):
        space = replace(space, mixed=True)
        pool, random, names = Pool(space, inputs_of("vgg")), np.random.default_rng(0), space.network.layer_names
        parent = replace(parents_of(space)[3], bits=dict.fromkeys(names, 6) | {names[2]: 8})
        before, seen = np.array([6, 6, 8, *[6] * (len(names) - 3)]), set()
        for _ in range(100):
            changed = np.flatnonzero(space.layer_bits(pool.swap(parent, random).bits) != before)
            assert len(changed) <= 3
            seen |= {*changed.tolist()}
        assert len(seen) > len(names) // 2

    def test_a_crossing_keeps_the_bits_its_knobs_had(self, space, inputs_of):
        parents = parents_of(space, 12)
        for child in Pool(space, inputs_of("vgg")).draw(300, parents, np.random.default_rng(0)):
            if child.source == CROSSOVER:
                same_bits = [p for p in parents if (p.granularity, p.bits) == (child.granularity, child.bits)]
                found = [np.isclose(child.logits, centred(parent.logits), atol=1e-12) for parent in same_bits]
                assert len(found) == 2 and (found[0] | found[1]).all()
        space = replace(space, mixed=True)
        first, second = (replace(p, granularity="fine-grained") for p in parents_of(space, 2))
        second = replace(second, bits=dict.fromkeys(space.network.layer_names, 3))
        children = Pool(space, inputs_of("vgg")).draw(300, [first, second], np.random.default_rng(0))
        crossed = [child for child in children if child.source == CROSSOVER]
        for child in crossed:
            of_first = np.isclose(child.logits, centred(first.logits), atol=1e-12)
            assert space.layer_bits(child.bits).tolist() == np.where(of_first, first.bits, 3).tolist()
        assert len(crossed) > 20

    def test_each_has_a_least_size_of_its_own(self, space, inputs_of):
        pool = Pool(space, inputs_of("vgg"))
        pool.least = {"channel at 3 bits": 0.05}
        drafts = pool.draw(600, parents_of(space), np.random.default_rng(0))
        least = {
            (word, bits): min(d.size for d in drafts if (d.granularity, d.bits) == (word, bits))
            for word in space.usable
            for bits in BITS
        }
        assert least.pop(("channel", 3)) >= 0.05 > max(least.values())
