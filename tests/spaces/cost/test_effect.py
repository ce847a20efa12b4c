"""Layers that stay whole although something is asked of them: against what sizes count, and in words."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spaces import ChannelGroup, Layer, Network, NothingToRemove, PruningPolicy, StoredTensor, footprint
from spaces.cost.effect import asked_layers, require_removal, unpruned_layers

NAMES = ("a.weight", "b.weight", "c.weight", "d.weight", "e.weight")
SHAPES = {
    "a.weight": (6, 3, 3, 3), "b.weight": (8, 6, 1, 1), "c.weight": (8, 8, 2, 2), "d.weight": (1, 8),
    "e.weight": (8, 6, 2, 2),
}  # fmt: skip
GROUPS = {"a.weight": 0, "b.weight": 1, "c.weight": 1}
OUTPUTS = "its outputs are the network's outputs"


def network() -> Network:
    """a, then b and c that are summed, then d and, transposed, e: their outputs are the network's."""
    readers = {"b.weight": (0, 6), "c.weight": (1, 8), "d.weight": (1, 8), "e.weight": (1, 8)}
    tensors, layers = [], []
    for name, shape in SHAPES.items():
        group = GROUPS.get(name)
        owners = [((group, shape[0]),) if group is not None else (), (readers[name],) if name in readers else ()]
        owners = owners[::-1] if name == "e.weight" else owners
        owners += [()] * (len(shape) - 2)
        tensors.append(StoredTensor(name, shape, owners=tuple(owners)))
        obstacle = None if group is not None else OUTPUTS
        kind = "linear" if len(shape) == 2 else "conv_transpose2d" if name == "e.weight" else "conv2d"
        layers.append(Layer(name, kind, shape, 1, 1, group, obstacle))
    return Network(tuple(tensors), tuple(layers), (ChannelGroup(("a.weight",), 6), ChannelGroup(NAMES[1:3], 8)))


shares = st.sampled_from([0.0, 0.01, 0.05, 0.0625, 0.09, 0.25, 0.6])
words = st.sampled_from(["fine-grained", "kernel", "vector", "2:4", "*:8", "channel"])


@given(
    st.dictionaries(st.sampled_from(NAMES), shares, max_size=5),
    st.dictionaries(st.sampled_from(NAMES), words, max_size=5),
    st.dictionaries(st.sampled_from(NAMES), shares, max_size=3),
)
@example({"e.weight": 0.6}, {"e.weight": "2:4"}, {})
def test_all_is_whole_exactly_where_the_network_costs_what_the_dense_one_does(sparsity, granularity, removal):
    removal = {name: share for name, share in removal.items() if granularity.get(name) != "channel"}
    policy, subject = PruningPolicy(sparsity, granularity, removal), network()
    asked, whole = asked_layers(policy), unpruned_layers(subject, policy)
    dense, after = footprint(subject, PruningPolicy({})), footprint(subject, policy)
    nothing_goes = (after.parameters, after.nonzero) == (dense.parameters, dense.nonzero)
    assert set(whole) <= set(asked) == {n for d in (sparsity, removal) for n, share in d.items() if share > 0}
    assert (set(whole) == set(asked)) == nothing_goes
    if asked and nothing_goes:
        with pytest.raises(NothingToRemove):
            require_removal(asked, whole)
    else:
        require_removal(asked, whole)


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (PruningPolicy({"d.weight": 0.5}, "channel"), OUTPUTS),
        (PruningPolicy({"a.weight": 0.08}, "channel"), "0.08 of 6 units rounds to none"),
        (PruningPolicy({"b.weight": 0.5}, "channel"), "its group holds, and 'c.weight' asks for 0"),
        (PruningPolicy({"a.weight": 0.003}), "0.003 of 162 units rounds to none"),
        (PruningPolicy({"a.weight": 0.9}, "2:4"), "2:4 needs a multiple of 4 inputs, the weight has 3"),
        (PruningPolicy({"e.weight": 0.09}, "2:4"), "0.09 of 4 units rounds to none"),
        (PruningPolicy({"c.weight": 0.24}, "2:4"), "0.24 of 4 units rounds to none"),
        (PruningPolicy({"d.weight": 0.01}, removal={"d.weight": 0.5}), OUTPUTS),
    ],
)
def test_the_reason_is_the_layers_own(policy, reason):
    (name,) = asked_layers(policy)
    found = unpruned_layers(network(), policy)
    assert found.keys() == {name} and reason in found[name]
    with pytest.raises(NothingToRemove) as raised:
        require_removal([name], found)
    assert str(raised.value) == (
        f"nothing to remove: {name!r} stays whole ({found[name]}): ask for a larger share, or of another layer"
    )


def test_a_multiple_that_keeps_all_channels_is_named():
    group = ChannelGroup(("a.weight",), 6, multiple=3)
    rounded = replace(network(), groups=(group, *network().groups[1:]))
    policy = PruningPolicy({"a.weight": 0.1}, "channel")
    assert unpruned_layers(network(), policy) == {}
    assert unpruned_layers(rounded, policy) == {"a.weight": "0.1 of 6 units rounds to none by multiples of 3"}


def test_of_many_layers_the_first_three_are_named():
    whole = {f"layer{number}.weight": f"reason {number}" for number in range(5)}
    with pytest.raises(ValueError, match="all 5 layers asked for stay whole") as raised:
        require_removal(whole, whole)
    assert "'layer2.weight': reason 2; 2 more)" in str(raised.value) and "layer3" not in str(raised.value)


def test_one_layer_that_loses_something_is_enough_and_asking_for_nothing_is_allowed():
    require_removal(["a", "b"], {"a": "too small"})
    require_removal([], {})
    assert asked_layers(PruningPolicy({"a.weight": 0.0}, removal={"b.weight": 0.0})) == []


def test_unknown_layers_are_named_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown layer 'a\.wieght': did you mean 'a\.weight'"):
        unpruned_layers(network(), PruningPolicy({"a.wieght": 0.5}))
