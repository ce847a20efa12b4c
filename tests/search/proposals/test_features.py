"""Columns of the surrogate's features by hand, and what they may not depend on."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from search.proposals.features import ALL_LAYERS_WEIGHT, LEAST_KEPT, MOST_BUCKETS, Features
from spaces import ChannelGroup, Layer, Network, Schedule, Space, StoredTensor
from spaces.cost.batched import Requests
from spaces.search_space.batch_projection import ProjectedBatch
from spaces.search_space.projection import Projector
from spaces.search_space.space import Draft


def batch(space: Space, requests: Requests, schedules: list[Schedule], sizes: list[float]) -> ProjectedBatch:
    drafts = tuple(Draft("", 0.2, "fine-grained", np.zeros(len(space.knobs)), schedule) for schedule in schedules)
    return ProjectedBatch(drafts, requests, np.array(sizes), np.ones(len(sizes)))


def chain(layers: int) -> Network:
    """Layers of 10 x 10, 10 x 20, 10 x 30, ... weights in a group of ten channels each."""
    names = [f"w{n}" for n in range(layers)]
    shapes = [(10, 10 * (n + 1)) for n in range(layers)]
    return Network(
        tuple(StoredTensor(n, s, owners=(((i, 10),), ())) for i, (n, s) in enumerate(zip(names, shapes, strict=True))),
        tuple(Layer(n, "linear", s, 1, channel_group=i) for i, (n, s) in enumerate(zip(names, shapes, strict=True))),
        tuple(ChannelGroup((name,), 10) for name in names),
    )


class TestColumns:
    def test_by_hand(self):
        space = Space(chain(2), 0.5, metric="nonzero")
        by_mask = np.array([[True, True], [False, False], [True, False]])
        requests = Requests(
            np.array([[0.75, 0.0], [0.0, 0.0], [0.96, 0.0]]),
            np.array([[0.0, 0.0], [0.51, 0.84], [0.0, 0.0]]),
            by_mask,
            np.array([[False, False], [True, True], [False, True]]),
            np.array([[0, 0], [1, 1], [0, 1]]),
        )
        schedules = [Schedule("polynomial", 3.0), Schedule("polynomial", 1.5), Schedule("one-shot", 1.5)]
        found = Features(space).of(batch(space, requests, schedules, [0.5, 0.1, 0.25]))
        expected = [
            [2.0, 1.0, 0.0, 0.0, 3.0, math.log(0.5), 0.0, 0.0],
            [0.0, 0.0, 1 / 0.7, 1 / 0.4, 1 / 0.7 + 1 / 0.4, math.log(0.1), 0.0, math.log(0.5)],
            [5.0, 0.0, 0.0, 1.0, 6.0, math.log(0.25), 1.0, 0.0],
        ]
        np.testing.assert_allclose(found, expected, rtol=1e-12)

    def test_further_kinds_of_masks_have_a_column_of_what_they_add(self):
        space = Space(chain(2), 0.5, ("fine-grained", "vector", "channel", "kernel"), metric="nonzero")
        own, nothing = np.ones((2, 2), bool), np.zeros((2, 2))
        words = np.array([[1, 0], [1, 3]])
        requests = Requests(np.array([[0.75, 0.36], [0.0, 0.96]]), nothing, own, ~own, words)
        features = Features(space)
        found = features.of(batch(space, requests, [Schedule()] * 2, [0.5, 0.5]))
        np.testing.assert_allclose(found[:, -2:], [[2 - 1, 0.0], [0.0, 5 - 1]], rtol=1e-12, atol=1e-12)
        assert len(features.weights) == found.shape[1] == len(features.dense(False))
        assert features.dense(False)[-2:].tolist() == [0.0, 0.0]

    def test_all_but_nothing_kept_is_finite(self):
        space = Space(chain(2), 0.5, metric="nonzero")
        full, own = np.full((1, 2), 1 - 1e-9), np.ones((1, 2), dtype=bool)
        found = Features(space).of(
            batch(space, Requests(full, full, own, own, np.zeros_like(own, dtype=int)), [Schedule()], [0.1])
        )
        assert found[0, :4] == pytest.approx([1 / math.sqrt(LEAST_KEPT)] * 4)

    def test_groups_that_cannot_lose_channels_count_for_nothing(self):
        network = chain(2)
        network = replace(network, groups=(network.groups[0], replace(network.groups[1], obstacle="outputs")))
        space = Space(network, 0.5, metric="nonzero")
        requests = Requests(
            np.zeros((1, 2)),
            np.array([[0.75, 0.0]]),
            np.zeros((1, 2), bool),
            np.array([[True, False]]),
            np.ones((1, 2), dtype=int),
        )
        assert Features(space).of(batch(space, requests, [Schedule()], [1.0]))[0, 2:4].tolist() == [2.0, 0.0]

    def test_neighbours_of_deep_networks_share_a_column_by_weight(self):
        """Twice as many layers as columns: pairs, each the mean of the two weighted by their sizes."""
        layers = 2 * MOST_BUCKETS
        space = Space(chain(layers), 0.5, metric="nonzero")
        kept = np.linspace(0.1, 1, layers)
        own = np.ones((1, layers), dtype=bool)
        requests = Requests(1 - kept[None], np.zeros((1, layers)), own, ~own, np.zeros((1, layers), dtype=int))
        found = Features(space).of(batch(space, requests, [Schedule()], [1.0]))[0]
        for pair in range(MOST_BUCKETS):
            first, second = 2 * pair, 2 * pair + 1
            sizes = first + 1, second + 1
            mean = (sizes[0] * kept[first] ** -0.5 + sizes[1] * kept[second] ** -0.5) / sum(sizes)
            assert found[pair] == pytest.approx(mean, rel=1e-12)
        assert found[MOST_BUCKETS : 2 * MOST_BUCKETS] == pytest.approx([0.0] * MOST_BUCKETS)
        assert found[2 * MOST_BUCKETS] == pytest.approx(found[:MOST_BUCKETS].sum())

    def test_layers_and_weights_name_the_columns(self):
        features = Features(Space(chain(2), 0.5, metric="nonzero"))
        assert features.layers == slice(4)
        assert features.weights.tolist() == [1.0] * 4 + [ALL_LAYERS_WEIGHT, 1.0, 1.0, 1.0]

    @pytest.mark.parametrize("channel", [False, True])
    def test_dense_is_where_policies_end_as_they_remove_less(self, channel):
        network = chain(2)
        network = replace(network, groups=(network.groups[0], replace(network.groups[1], obstacle="outputs")))
        features, removable = Features(Space(network, 1.0, metric="nonzero")), np.array([[True, False]])
        nothing, all_layers = np.zeros((1, 2)), np.ones((1, 2), dtype=bool)
        masks = ~all_layers if channel else all_layers
        words = np.full(nothing.shape, int(channel))
        requests = Requests(nothing, nothing, masks, removable if channel else ~all_layers, words)
        found = features.of(
            batch(Space(network, 1.0, metric="nonzero"), requests, [Schedule("polynomial", 3.0)], [1.0])
        )
        assert features.dense(channel).tolist() == found[0].tolist()


class TestBits:
    def test_of_all_layers_are_one_column(self):
        """2^-bits of each layer, summed; nothing of floats, and of the dense model."""
        space = Space(chain(2), 0.5, bits=(32, 8, 3))
        every, nothing = np.ones((3, 2), bool), np.zeros((3, 2))
        requests = Requests(
            nothing, nothing, every, ~every, np.zeros((3, 2), int), np.array([[8, 8], [3, 3], [32, 32]])
        )
        features = Features(space)
        found = features.of(batch(space, requests, [Schedule()] * 3, [0.5] * 3))
        assert found[:, -1].tolist() == [2 / 256, 2 / 8, 0.0]
        plain = Features(replace(space, bits=(8,)))
        assert plain.of(batch(space, requests, [Schedule()] * 3, [0.5] * 3)).tolist() == found[:, :-1].tolist()
        assert features.weights.tolist() == [*plain.weights, ALL_LAYERS_WEIGHT]
        assert features.dense(True).tolist() == [*plain.dense(True), 0.0]
        assert features.asked(batch(space, requests, [Schedule()] * 3, [0.5] * 3)).shape == (3, 4)

    def test_of_single_layers_have_columns_where_layers_may_differ(self):
        space = Space(chain(2), 0.5, mixed=True, bits=(8, 3))
        every, nothing = np.ones((1, 2), bool), np.zeros((1, 2))
        requests = Requests(nothing, nothing, every, ~every, np.zeros((1, 2), int), np.array([[3, 8]]))
        features = Features(space)
        found = features.of(batch(space, requests, [Schedule()], [0.5]))
        assert found[0, -3:].tolist() == [1 / 8, 1 / 256, 1 / 8 + 1 / 256]
        assert features.weights[-3:].tolist() == [1.0, 1.0, ALL_LAYERS_WEIGHT]
        assert len(features.weights) == found.shape[1] == len(features.dense(False))


class TestOfDrafts:
    def test_one_row_each_whatever_the_others(self, vgg_graph):
        space, random = Space(vgg_graph.network, 0.25), np.random.default_rng(0)
        drafts = [
            Draft("", 0.03 * (n + 1), space.usable[n % 2], random.normal(0, 1, len(space.knobs)), Schedule("one-shot"))
            for n in range(6)
        ]
        features = Features(space)
        together = features.of(Projector(space).project_batch(drafts))
        alone = np.concatenate([features.of(Projector(space).project_batch([draft])) for draft in drafts])
        np.testing.assert_allclose(together, alone, rtol=1e-12)
        assert np.isfinite(together).all()

    def test_how_a_point_was_drawn_does_not_matter(self, vgg_graph):
        """Its source, a common shift of its logits, the exponent of a one-shot schedule."""
        space, logits = Space(vgg_graph.network, 0.25), np.linspace(-1, 1, 9)
        one = Draft("prior", 0.1, "channel", logits, Schedule("one-shot", 2.0))
        other = Draft("free", 0.1, "channel", logits + 3.0, Schedule("one-shot", 4.0))
        found = Features(space).of(Projector(space).project_batch([one, other]))
        np.testing.assert_allclose(found[0], found[1], rtol=1e-12)

    def test_masks_and_removals_are_told_apart(self, vgg_graph):
        space = Space(vgg_graph.network, 0.25)
        logits = np.zeros(len(space.knobs))
        drafts = [Draft("", 0.1, word, logits, Schedule()) for word in ("fine-grained", "channel")]
        masked, removed = Features(space).of(Projector(space).project_batch(drafts))
        layers = len(space.network.layers)
        assert (masked[:layers] > 1).all() and (masked[layers : 2 * layers] == 0).all()
        assert (removed[:layers] == 0).all() and (removed[layers : 2 * layers] >= 0).all() and removed.max() > 1


class TestRemovalsBeforeMasks:
    def test_masks_hold_what_they_add(self):
        """So that nothing masked is the removal alone."""
        space = Space(chain(2), 0.5, ("channel", "channel+fine-grained", "channel+kernel"), metric="nonzero")
        every, removed = np.ones((3, 2), bool), np.array([[0.51, 0.84]] * 3)
        masked = np.array([[0.75, 0.0], [0.0, 0.0], [0.0, 0.96]])
        both = Requests(masked, removed, every, every, np.array([[1, 1], [1, 1], [2, 2]]))
        alone = Requests(0 * removed, removed, ~every, every, 0 * both.words)
        features, (sizes, schedules) = Features(space), ([0.5] * 3, [Schedule("polynomial", 3.0)] * 3)
        found = features.of(batch(space, both, schedules, sizes))
        total = 1 / 0.7 + 1 / 0.4
        np.testing.assert_allclose(found[0, :5], [1.0, 0.0, 1 / 0.7, 1 / 0.4, total + 1], rtol=1e-12)
        np.testing.assert_allclose(found[:, -1], [0.0, 0.0, 4.0], rtol=1e-12, atol=1e-12)
        assert found[1].tolist() == features.of(batch(space, alone, schedules, sizes))[1].tolist()
        assert len(features.weights) == found.shape[1] == len(features.dense(True))

    def test_what_is_asked_is_1_where_nothing_is(self):
        space = Space(chain(2), 0.5, ("channel", "channel+fine-grained"), metric="nonzero")
        every = np.ones((1, 2), bool)
        removed, masked, words = np.array([[0.0, 0.84]]), np.array([[0.75, 0.0]]), np.ones((1, 2), int)
        both = batch(space, Requests(masked, removed, every, every, words), [Schedule()], [0.5])
        np.testing.assert_allclose(Features(space).asked(both), [[2.0, 1.0, 1.0, 2.5]], rtol=1e-12)
        alone = batch(space, Requests(0 * removed, removed, ~every, every, 0 * words), [Schedule()], [0.5])
        np.testing.assert_allclose(Features(space).asked(alone), [[0.0, 0.0, 1.0, 2.5]], rtol=1e-12)
