"""Latency tables: the file, and predictions against a second interpolation and a second fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.interpolate import RegularGridInterpolator
from scipy.optimize import nnls

from spaces import ChannelGroup, Layer, Network, PruningPolicy, StoredTensor
from spaces.cost.latency_predictor import Predictor, predict
from spaces.cost.latency_table import LatencyTable, LayerLatency, RestLatency
from spaces.cost.timing import TimedNetwork, TimedNetworks, median_interval, timed_network

GOLDEN = Path(__file__).parents[2] / "golden" / "latency-v1.json"
LAYERS = {
    "a.weight": LayerLatency((1, 5, 8), (3,), ((1e-4,), (3e-4,), (4e-4,))),
    "b.weight": LayerLatency((2, 6), (1, 5, 8), ((1e-4, 2e-4, 3e-4), (2e-4, 5e-4, 7e-4))),
    "head.weight": LayerLatency((10,), (24,), ((5e-5,),)),
}
REST = (RestLatency(1.0, 1.0, 1e-3), RestLatency(0.5, 0.25, 6.25e-4), RestLatency(0.5, 1.0, 7e-4))
TABLE = LatencyTable("0123456789abcdef", "Some CPU (AVX2)", 1, 1, LAYERS, REST, 2.2e-3, 0.0625)


def network_of(*groups: ChannelGroup) -> Network:
    """Convolutions 3 -> 8 (16 places) and 8 -> 6 (4 places), a linear layer on 6 channels of 4 places."""
    tensors = (
        StoredTensor("a.weight", (8, 3, 3, 3), owners=(((0, 8),), (), (), ())),
        StoredTensor("b.weight", (6, 8, 1, 3), owners=(((1, 6),), ((0, 8),), (), ())),
        StoredTensor("head.weight", (10, 24), owners=((), ((1, 24),))),
    )
    layers = (
        Layer("a.weight", "conv2d", (8, 3, 3, 3), 16, channel_group=0),
        Layer("b.weight", "conv2d", (6, 8, 1, 3), 4, channel_group=1),
        Layer("head.weight", "linear", (10, 24), 1, obstacle="its outputs are the network's outputs"),
    )
    return Network(tensors, layers, groups or (ChannelGroup(("a.weight",), 8), ChannelGroup(("b.weight",), 6)))


NETWORK = network_of()


def policy(a: float = 0.0, b: float = 0.0) -> PruningPolicy:
    return PruningPolicy({"a.weight": a, "b.weight": b}, "channel")


def seconds_by_scipy(table: LatencyTable, a: int, b: int) -> float:
    """Seconds of the network with `a` and `b` channels kept."""
    total = 0.0
    for name, outputs, inputs in (("a.weight", a, 3), ("b.weight", b, a), ("head.weight", 10, 24)):
        grid = table.layers[name]
        rows, columns = range(len(grid.outputs)), range(len(grid.inputs))
        lowered = np.array([[min(min(r[j:]) for r in grid.seconds[i:]) for j in columns] for i in rows])
        axes, values = [grid.outputs, grid.inputs], lowered
        query = [max(outputs, grid.outputs[0]), max(inputs, grid.inputs[0])]
        for axis in (0, 1):
            if len(axes[axis]) == 1:
                axes[axis], values = (axes[axis][0], axes[axis][0] + 1), np.repeat(values, 2, axis)
        total += float(RegularGridInterpolator(axes, values)(query)[0])
    # head.weight of the table has 24 inputs at every size: one grid point holds for all
    activations = (16 * a + 4 * b + 10) / (16 * 8 + 4 * 6 + 10)
    weights = (27 * a + 3 * a * b + 40 * b) / (27 * 8 + 3 * 8 * 6 + 40 * 6)
    terms = [(1.0, point.activations, point.weights) for point in table.rest]
    constant, of_activations, of_weights = nnls(np.array(terms), np.array([p.seconds for p in table.rest]))[0]
    return total + constant + of_activations * activations + of_weights * weights


def test_golden_file_of_version_1():
    assert TABLE.to_json() == GOLDEN.read_text()
    assert LatencyTable.from_json(GOLDEN.read_text()) == TABLE


def test_by_hand():
    """Half of a's channels: 4 outputs lie 3/4 of the way from 1 to 5, as do b's 4 inputs. REST is an exact fit."""
    layers = (1e-4 + 0.75 * 2e-4) + (2e-4 + 0.75 * 3e-4) + 5e-5
    rest = 3e-4 + 6e-4 * (4 * 16 + 24 + 10) / 162 + 1e-4 * (108 + 72 + 240) / 600
    assert predict(TABLE, NETWORK, policy(a=0.5)) == pytest.approx((layers + rest) / (4e-4 + 7e-4 + 5e-5 + 1e-3))


@pytest.mark.parametrize("a", range(1, 9))
@pytest.mark.parametrize("b", range(1, 7))
def test_every_size_against_scipy(a, b):
    share = predict(TABLE, NETWORK, policy(1 - a / 8, 1 - b / 6))
    assert share == pytest.approx(seconds_by_scipy(TABLE, a, b) / seconds_by_scipy(TABLE, 8, 6), rel=1e-9)


times = st.floats(0, 1e-2, allow_subnormal=False)
shares = st.floats(0, 0.99)


@st.composite
def tables(draw) -> LatencyTable:
    """The table above with any times, monotone or not."""
    layers = {
        name: replace(grid, seconds=tuple(tuple(draw(times) for _ in grid.inputs) for _ in grid.outputs))
        for name, grid in LAYERS.items()
    }
    rest = tuple(RestLatency(p.activations, p.weights, draw(times)) for p in (*REST, RestLatency(0.1, 0.02, 0.0)))
    return replace(TABLE, layers=layers, rest=rest)


@given(tables(), st.tuples(shares, shares), st.tuples(shares, shares))
def test_removing_more_never_takes_longer(table, some, more):
    predictor = Predictor(table, NETWORK)
    smaller = policy(*(max(pair) for pair in zip(some, more, strict=True)))
    assert 0 <= predictor.share(smaller) <= predictor.share(policy(*some)) * (1 + 1e-12) <= 1 + 1e-11
    assert predictor.share(policy()) == 1.0


@given(tables(), st.integers(1, 8), st.integers(1, 6))
def test_any_table_against_scipy(table, a, b):
    dense = seconds_by_scipy(table, 8, 6)
    assume(dense > 1e-5)
    share = predict(table, NETWORK, policy(1 - a / 8, 1 - b / 6))
    assert share == pytest.approx(seconds_by_scipy(table, a, b) / dense, rel=1e-6, abs=1e-9)


@settings.get_profile("few")
@given(tables())
def test_any_table_survives_the_file(table):
    assert LatencyTable.from_json(table.to_json()) == table


def test_masks_change_nothing():
    masks = {"a.weight": 0.9, "b.weight": 0.5, "head.weight": 0.75}
    assert predict(TABLE, NETWORK, PruningPolicy(masks)) == 1.0
    both = PruningPolicy(masks, removal={"a.weight": 0.5})
    assert predict(TABLE, NETWORK, both) == predict(TABLE, NETWORK, policy(a=0.5)) < 1


def test_group_rule_and_obstacles():
    together = network_of(ChannelGroup(("a.weight", "b.weight"), 8), ChannelGroup(("b.weight",), 6))
    assert predict(TABLE, together, PruningPolicy({"a.weight": 0.5}, "channel")) == 1.0
    whole = network_of(ChannelGroup(("a.weight",), 8, "stays"), ChannelGroup(("b.weight",), 6, "stays"))
    assert predict(TABLE, whole, policy(0.5, 0.5)) == 1.0


def test_layers_never_called_are_not_in_the_table():
    called, idle = NETWORK.layers[:2], replace(NETWORK.layers[2], positions=0)
    table = replace(TABLE, layers={name: LAYERS[name] for name in ("a.weight", "b.weight")})
    assert predict(table, replace(NETWORK, layers=(*called, idle)), policy()) == 1.0
    with pytest.raises(ValueError, match=r"lacks layer 'head\.weight': measure again"):
        Predictor(table, NETWORK)


def test_a_table_without_time_or_layers():
    free = {n: LayerLatency(g.outputs[-1:], g.inputs[-1:], ((0.0,),)) for n, g in LAYERS.items()}
    assert predict(replace(TABLE, layers=free, rest=(RestLatency(1, 1, 0.0),)), NETWORK, policy(0.5)) == 1.0
    assert predict(replace(TABLE, layers={}), Network((), ()), PruningPolicy({})) == 1.0


def test_names_are_checked():
    with pytest.raises(ValueError, match=r"unknown layer 'a\.wieght': did you mean 'a\.weight'"):
        predict(TABLE, NETWORK, PruningPolicy({"a.wieght": 0.5}))
    with pytest.raises(ValueError, match=r"unknown layer 'c\.weight'"):
        predict(TABLE, NETWORK, PruningPolicy({}, removal={"c.weight": 0.5}))


def test_a_table_of_another_network():
    layers = {**LAYERS, "a.weight": LayerLatency((1, 7), (3,), ((1.0,), (2.0,)))}
    with pytest.raises(ValueError, match=r"has 'a\.weight' as 7 x 3, it is 8 x 3: measure again"):
        predict(replace(TABLE, layers=layers), NETWORK, policy())


def damaged(**changes: object) -> str:
    return json.dumps(json.loads(GOLDEN.read_text()) | changes)


def damaged_layer(**changes: object) -> str:
    grid = {"outputs": [1, 8], "inputs": [3], "seconds": [[0.1], [0.2]]} | changes
    return damaged(layers={"a.weight": grid})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "latency table version must be 1: measure again"),
        (damaged(version=2), "latency table version must be 1: measure again"),
        ("[]", "must be a JSON object"),
        (GOLDEN.read_text()[:200], "not valid JSON"),
        (damaged(extra=1), "damaged latency table .*extra.*: measure again"),
        (damaged(layers=[1]), "damaged latency table"),
        (damaged(layers={"a": {"outputs": [1]}}), "damaged latency table"),
        (damaged(rest=[]), "the rest must begin with the dense network's"),
        (damaged(rest=[{"activations": 0.5, "weights": 1, "seconds": 0.1}]), "must begin with the dense network's"),
        (damaged(rest=[{"activations": 1, "weights": 0, "seconds": 0.1}]), "a share in"),
        (damaged(rest=[{"activations": 1, "weights": 1, "seconds": -0.1}]), "at least 0, got -0.1"),
        (damaged(threads=0), "threads and batch must be whole numbers >= 1, got 0"),
        (damaged(batch=1.5), "threads and batch must be whole numbers >= 1, got 1.5"),
        (damaged(spread=None), "got None"),
        (damaged(dense_seconds=True), "got True"),
        (damaged_layer(outputs=[8, 1]), "whole numbers >= 1 that rise"),
        (damaged_layer(outputs=[0, 8]), "whole numbers >= 1 that rise"),
        (damaged_layer(inputs=[]), "whole numbers >= 1 that rise"),
        (damaged_layer(seconds=[[0.1]]), "seconds must have 2 rows of 1"),
        (damaged_layer(seconds=[[0.1], [0.2, 0.3]]), "seconds must have 2 rows of 1"),
        (damaged_layer(seconds=[[0.1], ["x"]]), "got 'x'"),
        (damaged_layer(seconds=[[0.1], [1e999]]).replace("Infinity", "1e999"), "got inf"),
    ],
)
def test_refused(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        LatencyTable.from_json(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 8, 9, 16, 17, 30, 31, 100, 1100])
def test_the_interval_of_a_median_is_the_sign_tests(count):
    """The outermost pair of order statistics that a two-sided sign test at 5 % does not reject, by SciPy's binomial."""
    values = np.random.default_rng(count).permutation(np.arange(count, dtype=float)).tolist()
    kept = [k for k in range(count) if stats.binomtest(k, count, 0.5).pvalue > 0.05]
    low = kept[0] - 1 if kept else 0  # as many values below as the test still takes for chance
    assert median_interval(values) == (max(low, 0), count - 1 - max(low, 0))


def test_the_interval_holds_its_promise():
    """A skewed law whose median is known: at least 95 % of the intervals hold it, and not all."""
    random = np.random.default_rng(0)
    hits = [low <= np.log(2) <= high for low, high in (median_interval(random.exponential(1, 30)) for _ in range(2000))]
    assert 0.95 <= np.mean(hits) < 0.99


def test_a_network_is_summed_up_round_by_round():
    timed = timed_network([3.0, 1.0, 8.0], [4.0, 4.0, 16.0])
    assert (timed.seconds, timed.share, timed.low, timed.high) == (3.0, 0.5, 0.25, 0.75)
    assert timed.spread == (5.5 - 2.0) / 3.0
    for seconds, dense in (([], []), ([1.0], [1.0, 2.0]), ([1.0], [0.0])):
        with pytest.raises(ValueError, match="seconds above 0 of the dense network"):
            timed_network(seconds, dense)
    with pytest.raises(ValueError, match="share must lie in its interval"):
        TimedNetwork(1.0, 0.1, 0.5, 0.6, 0.7)


@pytest.mark.parametrize(
    ("low", "high", "noise"), [(0.5, 0.9, False), (0.5, 0.95, True), (0.97, 0.98, True), (1.06, 1.2, False)]
)
def test_what_meets_the_dense_copys_interval_is_noise(low, high, noise):
    copy, network = TimedNetwork(1.0, 0.0, 1.0, 0.95, 1.05), TimedNetwork(1.0, 0.0, low, low, high)
    timed = TimedNetworks("cpu", 1, 1, 30, copy, copy, {"a": network})
    assert timed.within_noise("a") is noise
