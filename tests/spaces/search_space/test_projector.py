"""A projector fits a point once, remembers the latest, and what it gives carries what the policy costs."""

from __future__ import annotations

import numpy as np
import pytest

from spaces import ChannelGroup, Layer, Network, Projector, Schedule, Space, StoredTensor
from spaces.allocation.importance import AllocationInputs
from spaces.search_space import projection
from spaces.search_space.space import MOST_KNOBS, Draft, allocator_names


def linear(layers: int) -> Network:
    """Layers of 12 x 8, 12 x 9, ... weights, each a channel group."""
    shapes = {f"w{n}": (12, 8 + n) for n in range(layers)}
    return Network(
        tuple(StoredTensor(name, shape, owners=(((n, 12),), ())) for n, (name, shape) in enumerate(shapes.items())),
        tuple(Layer(name, "linear", shape, 3, channel_group=n) for n, (name, shape) in enumerate(shapes.items())),
        tuple(ChannelGroup((name,), 12) for name in shapes),
    )


@pytest.fixture
def fits(monkeypatch) -> list[float]:
    """Sizes of the points fitted anew."""
    sizes, fit = [], Projector.fit

    def counted(projector, params):
        sizes.append(params["size"])
        return fit(projector, params)

    monkeypatch.setattr(Projector, "fit", counted)
    return sizes


def point(space: Space, size: float, granularity: str = "fine-grained") -> Draft:
    logits = np.linspace(-1, 2, len(space.knobs))
    return Draft("swap", size, granularity, logits, Schedule("polynomial", 2.5))


def test_a_draft_and_its_values_are_one_point(fits):
    space = Space(linear(3), 0.5)
    projector, draft = Projector(space), point(space, 0.3)
    found = projector.project(draft)
    params = space.params_of(draft)
    assert projector.project(params) is found and projector.project({**params, "not an axis": 1}) is found
    assert projector.project(point(space, 0.3)) is found and fits == [0.3]
    assert projector.project(point(space, 0.25)) is not found and fits == [0.3, 0.25]
    assert found.params == params and found.target == 0.3 and set(found.sampled) == set(space.knobs)
    np.testing.assert_allclose(found.draft.logits, draft.logits - draft.logits.mean(), atol=1e-9)


def test_only_the_latest_are_remembered(fits, monkeypatch):
    monkeypatch.setattr(projection, "REMEMBERED", 2)
    space = Space(linear(2), 0.5)
    projector = Projector(space)
    for size in (0.3, 0.4, 0.3, 0.35, 0.3, 0.4):
        projector.project(point(space, size))
    assert fits == [0.3, 0.4, 0.35, 0.4], "0.4 was asked for least lately"


@pytest.mark.parametrize("granularity", ["fine-grained", "channel", "channel+fine-grained"])
def test_costs_are_those_of_the_sizes_it_was_fitted_by(granularity):
    """As counted for the fit, by arrays, in place of policy by policy."""
    space = Space(linear(3), 0.6, ("fine-grained", "channel", "channel+fine-grained"))
    found = Projector(space).project(point(space, 0.4, granularity))
    if granularity == "channel+fine-grained":
        counted = space.two_stage(0.4, granularity).masks(found.policy.removal).cost(found.policy.sparsity)
    else:
        counted = space.target(0.4, granularity).cost(found.policy.sparsity)
    assert found.cost == counted and found.cost.encoded <= found.target
    assert found.latency is None


def test_keys_tell_what_is_removed_and_how():
    space = Space(linear(3), 0.6)
    projector = Projector(space)
    params = space.params_of(point(space, 0.5, "channel"))
    keys = [
        projector.project({**params, **change}).key
        for change in ({}, {"exponent": 2.51}, {"size": 0.499}, {"exponent": 4.0}, {"size": 0.2})
    ]
    assert keys[0] == keys[1] == keys[2] and len({keys[0], keys[3], keys[4]}) == 3


def test_allocations_that_knobs_move_need_inputs():
    network = linear(MOST_KNOBS + 1)
    space = Space(network, 0.5, allocations=allocator_names(scanned=False))
    inputs = {"fine-grained": AllocationInputs({layer.name: np.ones(layer.numel) for layer in network.layers})}
    with pytest.raises(ValueError, match="knobs move allocations here: give the inputs of channel as well"):
        Projector(space, inputs)
    assert {"even", "lamp"} <= set(space.base_names) and "scan" not in space.base_names
    few = Space(linear(3), 0.5, allocations=("lamp",))
    assert few.base_names == ("even",) and Projector(few).project(point(few, 0.3)).target == 0.3
    with pytest.raises(ValueError, match="unknown allocation 'lmap': did you mean 'lamp'"):
        Space(network, 0.5, allocations=("lmap",))


def test_one_granularity_for_all_layers_unless_they_are_mixed():
    space = Space(linear(2), 0.5)
    with pytest.raises(ValueError, match="one granularity for all layers is needed"):
        space.params(0.3, {"w0": "channel", "w1": "fine-grained"}, {}, Schedule())
