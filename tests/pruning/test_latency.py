"""Measured tables on a made-up clock: predictions against the law the clock follows on really pruned networks."""

from __future__ import annotations

import copy
import runpy
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pruning import prune, trace_channels
from pruning.latency import (
    KERNEL_STEP,
    NETWORK_RUNS,
    WARM_UP_ROUNDS,
    _timed_by_events,
    describe_device,
    measure_latency_table,
    time_networks,
)
from search.training.train import in_fast_layout
from spaces import NothingToRemove, PruningPolicy
from spaces.cost.latency_predictor import Predictor
from spaces.cost.latency_table import LatencyTable

EXAMPLES = Path(__file__).parents[1] / "examples"
PRUNABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
A_MAC, A_CALL, AN_OUTPUT, A_PASS = 1e-9, 2e-6, 3e-9, 5e-5


class Twice(nn.Module):
    """One linear layer called twice on inputs of different sizes, one never called, one grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv1d(12, 24, 3, padding=1, groups=4)
        self.mix = nn.Conv1d(24, 6, 1)
        self.shared, self.unused = nn.Linear(9, 9), nn.Linear(9, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = self.mix(self.grouped(x).relu())
        return self.shared(self.shared(mixed).relu().mean(dim=1))


class LawfulClock:
    """Time passes only in layers and networks: a MAC, a call, an output element and a pass each cost theirs.

    What outputs and passes cost belongs to the rest: it is only due when a layer runs inside a whole network. Slow
    rounds can be added by `noise`, called once for each reading.
    """

    def __init__(self, network: type[nn.Module], noise=lambda: 0.0) -> None:
        self.now, self.network, self.inside, self.noise = 0.0, network, False, noise
        self.layers: list[tuple[int, ...]] = []

    def __call__(self) -> float:
        self.now += self.noise()
        return self.now

    def __enter__(self) -> LawfulClock:
        modules = nn.modules.module
        self.hooks = [modules.register_module_forward_pre_hook(self._enters)]
        self.hooks.append(modules.register_module_forward_hook(self._leaves))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _enters(self, module: nn.Module, _inputs: object) -> None:
        self.inside = self.inside or isinstance(module, self.network)

    def _leaves(self, module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        if isinstance(module, PRUNABLE):
            outputs = output.numel() // module.weight.shape[0] * module.weight.numel()
            self.now += A_CALL + A_MAC * outputs + self.inside * AN_OUTPUT * output.numel()
            if not self.inside:
                self.layers.append((*module.weight.shape, inputs[0].is_contiguous(memory_format=torch.channels_last)))
        if isinstance(module, self.network):
            self.now, self.inside = self.now + A_PASS, False


class Case:
    """A network, its table by the lawful clock, and what the law says of a really pruned one."""

    def __init__(self, model: nn.Module, example: torch.Tensor, batch: int = 1) -> None:
        self.model, self.example = in_fast_layout(model.eval(), example), example[:1].repeat_interleave(batch, 0)
        self.graph = trace_channels(self.model, example)
        with LawfulClock(type(model)) as self.clock:
            self.table = measure_latency_table(
                self.model, self.graph, example, batch, repeats=1, fingerprint="f", clock=self.clock
            )
        self.layers = [layer.name for layer in self.graph.network.layers]
        self.predictor = Predictor(self.table, self.graph.network)

    def seconds(self, model: nn.Module) -> float:
        with LawfulClock(type(model)) as clock, torch.inference_mode():
            model(self.example)
        return clock.now

    def lawful_share(self, policy: PruningPolicy) -> float:
        try:
            return self.seconds(prune(self.model, policy, graph=self.graph)) / self.seconds(self.model)
        except NothingToRemove:
            return 1.0


def example_of(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def cases(vgg, residual) -> dict[str, Case]:
    images = example_of(2, 1, 12, 12)
    small_resnet = runpy.run_path(str(EXAMPLES / "residual.py"))["SmallResNet"]
    small_mobile = runpy.run_path(str(EXAMPLES / "depthwise.py"))["SmallMobileNet"]
    torch.manual_seed(0)
    return {
        "vgg": Case(copy.deepcopy(vgg), example_of(2, 1, 8, 8)),
        "residual": Case(copy.deepcopy(residual), example_of(2, 1, 8, 8), batch=3),
        "resnet": Case(small_resnet(), images),
        "depthwise": Case(small_mobile(), images),
        "twice": Case(Twice(), example_of(2, 12, 9)),
    }


NAMES = ("vgg", "residual", "resnet", "depthwise", "twice")


def uniform(layers: list[str], share: float) -> PruningPolicy:
    return PruningPolicy(dict.fromkeys(layers, share), "channel")


@pytest.mark.parametrize("name", NAMES)
def test_whole_network(cases, name):
    case = cases[name]
    assert case.predictor.share(PruningPolicy({})) == 1.0
    assert case.table.dense_seconds == pytest.approx(case.seconds(case.model))
    assert (case.table.model, case.table.spread) == ("f", pytest.approx(0, abs=1e-6))
    assert case.table.threads == torch.get_num_threads()
    assert LatencyTable.from_json(case.table.to_json()) == case.table


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [0.3, 0.5, 0.75, 0.99])
def test_uniform_removal_takes_what_the_law_says(cases, name, share):
    case, policy = cases[name], uniform(cases[name].layers, share)
    assert case.predictor.share(policy) == pytest.approx(case.lawful_share(policy), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(4))
def test_uneven_removal_takes_what_the_law_says(cases, name, seed):
    case, shares = cases[name], np.random.default_rng(seed)
    policy = PruningPolicy({layer: shares.uniform(0, 0.95) for layer in case.layers}, "channel")
    share = case.predictor.share(policy)
    assert share == pytest.approx(case.lawful_share(policy), rel=1e-6)


def test_the_networks_lose_channels(cases):
    """Otherwise every share above is 1, and the tests are empty."""
    assert [cases[name].predictor.share(uniform(cases[name].layers, 0.75)) < 0.95 for name in NAMES] == [True] * 5


def test_masks_change_nothing(cases):
    case = cases["vgg"]
    assert case.predictor.share(PruningPolicy(dict.fromkeys(case.layers, 0.9))) == 1.0


@given(data=st.data(), name=st.sampled_from(NAMES))
def test_removing_more_never_takes_longer(cases, data, name):
    case = cases[name]
    shares = st.lists(st.floats(0, 0.99), min_size=len(case.layers), max_size=len(case.layers))
    some, more = data.draw(shares), data.draw(shares)
    fewer = case.predictor.share(PruningPolicy(dict(zip(case.layers, some, strict=True)), "channel"))
    both = dict(zip(case.layers, map(max, some, more), strict=True))
    assert case.predictor.share(PruningPolicy(both, "channel")) <= fewer * (1 + 1e-12) <= 1 + 1e-11


def test_grid_by_hand(cases):
    """8 -> 16 channels: levels 0, 1/4, 1/2, 3/4, 7/8 keep 16, 12, 8, 4, 2 outputs, and one unit is the least."""
    grid = cases["vgg"].table.layers["backbone.conv1.weight"]
    assert grid.outputs == (1, 2, 4, 8, 12, 16)
    assert grid.inputs == (1, 2, 4, 6, 8)
    expected = A_CALL + A_MAC * 64 * 9 * 12 * 6
    assert grid.seconds[4][3] == pytest.approx(expected)
    wide = cases["vgg"].table.layers["backbone.conv7.weight"]
    assert wide.outputs == (1, 8, 15, 31, 47, 64)
    assert all(count % KERNEL_STEP or count == KERNEL_STEP for count in wide.outputs[:-1])


def test_layers_outside_the_choice_have_one_size(cases):
    table = cases["twice"].table
    assert "unused.weight" not in table.layers
    assert table.layers["shared.weight"].outputs == (9,)
    assert table.layers["shared.weight"].seconds[0][0] == pytest.approx(2 * A_CALL + A_MAC * 81 * (6 + 1))
    assert table.layers["grouped.weight"].inputs == (3,)
    assert cases["depthwise"].table.layers["blocks.0.0.weight"].inputs == (1,)
    assert cases["vgg"].table.layers["classifier.weight"].outputs == (10,)
    assert cases["vgg"].table.layers["backbone.conv0.weight"].inputs == (1,)


def test_layers_keep_the_memory_format(cases):
    assert {last for *shape, last in cases["vgg"].clock.layers if len(shape) == 4} == {True}
    example = example_of(2, 3, 8, 8)
    plain = Case(nn.Sequential(nn.Conv2d(3, 9, 3, padding=1), nn.ReLU(), nn.Conv2d(9, 4, 1, stride=2)), example)
    inner = [last for out, inputs, *_, last in plain.clock.layers if (out, inputs) == (4, 9)]
    assert inner
    assert not any(inner)


def test_slow_moments_do_not_count(vgg, vgg_graph, images, cases):
    """Interruptions of half of all readings, some a thousand times a layer's time."""
    generator = np.random.default_rng(1)
    with LawfulClock(type(vgg), noise=lambda: generator.choice([0.0, 1e-2])) as clock:
        table = measure_latency_table(vgg, vgg_graph, images, levels=(0.5,), repeats=12, clock=clock)
    quiet = cases["vgg"]
    assert table.spread > 0.5
    policy = uniform(quiet.layers, 0.5)
    assert Predictor(table, vgg_graph.network).share(policy) == pytest.approx(quiet.predictor.share(policy), rel=1e-6)


def test_progress_and_repeats(vgg, vgg_graph, images):
    seen = []
    measure_latency_table(vgg, vgg_graph, images, repeats=2, levels=(), progress=lambda *n: seen.append(n))
    assert seen == [(number + 1, WARM_UP_ROUNDS + 2) for number in range(WARM_UP_ROUNDS + 2)]


def test_model_stays(vgg, vgg_graph, images):
    model = copy.deepcopy(vgg).train()
    before = copy.deepcopy(model.state_dict())
    measure_latency_table(model, vgg_graph, images, repeats=1, levels=(0.5,))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())


def test_real_clock(vgg, vgg_graph, images):
    table = measure_latency_table(vgg, vgg_graph, images, batch=2, levels=(0.5,), repeats=2)
    assert table.dense_seconds > 0
    assert table.batch == 2
    assert table.device == describe_device(torch.device("cpu"))
    share = Predictor(table, vgg_graph.network).share(uniform(list(table.layers), 0.5))
    assert 0 < share <= 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_real_clock_on_cuda(vgg, images):
    model = copy.deepcopy(vgg).cuda()
    graph = trace_channels(model, images.cuda())
    table = measure_latency_table(model, graph, images.cuda(), repeats=2)
    assert table.device == torch.cuda.get_device_name()
    assert table.dense_seconds > 0


@pytest.mark.parametrize(
    ("seconds", "calls"), [(0.5e-3, [1]), (60e-6, [1, 4]), (90e-6, [1, 3]), (1e-9, [1, 1024])]
)  # fmt: skip
def test_calls_on_cuda_are_timed_in_rows_that_last(monkeypatch, seconds, calls):
    """By events that advance with each call, as the card's clock does."""
    made, ran, rows = [0.0], [0], []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at, self.calls = made[0], ran[0]

        def synchronize(self):
            pass

        def elapsed_time(self, last):
            rows.append(last.calls - self.calls)
            return (last.at - self.at) * 1000

    def task():
        made[0] += seconds
        ran[0] += 1

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert _timed_by_events(task) == pytest.approx(seconds)
    assert rows == calls


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.reshape(2, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch must be a whole number >= 1, got 0; nearest valid: 1"),
        ({"repeats": 0}, "repeats must be a whole number >= 1, got 0"),
        ({"batch": True}, "batch must be a whole number >= 1, got True"),
        ({"levels": (0.5, 1.0)}, "level must satisfy 0 <= sparsity < 1, got 1.0"),
    ],
)
def test_bad_values(vgg, vgg_graph, images, options, message):
    with pytest.raises(ValueError, match=message):
        measure_latency_table(vgg, vgg_graph, images, **options)


def test_networks_that_cannot_be_timed(residual, vgg_graph, images):
    with pytest.raises(ValueError, match="not the traced model"):
        measure_latency_table(residual, vgg_graph, images)
    model, example = FixedBatch(), example_of(2, 4)
    with pytest.raises(ValueError, match="the model does not run on a batch of 1: RuntimeError"):
        measure_latency_table(model, trace_channels(model, example), example)


class TiedHead(nn.Module):
    """Its embedding has the weight of its last layer, and is no layer that is timed."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.inner, self.embed = nn.Linear(6, 11, bias=False), nn.Linear(6, 6), nn.Embedding(11, 6)
        self.embed.weight = self.head.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(self.embed(x.abs().long()).mean(1)))


def test_another_kind_of_module_with_the_weight_of_a_layer_is_not_timed():
    model, x = TiedHead(), torch.rand(4, 3, generator=torch.Generator().manual_seed(0)) * 9
    table = measure_latency_table(model, trace_channels(model, x), x, repeats=1)
    assert set(table.layers) == {"head.weight", "inner.weight"}


class Ticking:
    """A clock that only networks move on; copies of a network go by the same one."""

    def __init__(self) -> None:
        self.now, self.order, self.speed = 0.0, [], lambda: 1.0

    def __call__(self) -> float:
        return self.now

    def __deepcopy__(self, _memo: object) -> Ticking:
        return self


class Costly(nn.Module):
    def __init__(self, clock: Ticking, seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds
        self.linear = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not self.training and len(x) == 4 and not torch.is_grad_enabled()
        self.clock.now += self.seconds * self.clock.speed()
        self.clock.order.append(self.seconds)
        return self.linear(x)


def timed(speed, rounds: int = 30, seconds: float = 1e9):
    clock = Ticking()
    clock.speed = lambda: speed(len(clock.order))
    dense, networks = Costly(clock, 1.0), {"half": Costly(clock, 0.5), "near": Costly(clock, 0.98)}
    seen = []
    found = time_networks(
        dense, networks, torch.zeros(3, 3), 4, rounds, seconds, progress=lambda *n: seen.append(n), clock=clock
    )
    assert dense.training and seen[-1] == (rounds + WARM_UP_ROUNDS,) * 2
    return found, clock


def test_networks_are_timed_as_they_are():
    found, clock = timed(lambda _: 1.0)
    assert (found.rounds, found.batch, found.threads) == (30, 4, torch.get_num_threads())
    assert found.dense.seconds == pytest.approx(1.0) and found.dense.spread == pytest.approx(0, abs=1e-9)
    half = found.networks["half"]
    assert [half.seconds, half.share, half.low, half.high] == pytest.approx([0.5] * 4)
    assert [found.dense.share, found.copy.share, found.networks["near"].share] == pytest.approx([1.0, 1.0, 0.98])
    assert not found.within_noise("half") and not found.within_noise("near")
    runs = 2 * NETWORK_RUNS  # each once untimed just before
    length = 4 * runs
    calls = clock.order[2:]  # of the pass before, which tells how much there is time for
    rounds = [calls[start : start + length] for start in range(0, len(calls), length)]
    assert len(rounds) == 30 + WARM_UP_ROUNDS and all(sorted(order) == sorted(rounds[0]) for order in rounds)
    assert len({tuple(order) for order in rounds}) > 25, "every round has an order of its own"
    assert all(first == second for order in rounds for first, second in zip(order[::2], order[1::2], strict=True))


def test_drift_between_rounds_falls_out_and_noise_within_them_is_seen():
    length = 4 * 2 * NETWORK_RUNS
    drifting, _ = timed(lambda calls: 1.0 + (calls - 2) // length)
    assert drifting.networks["half"].share == pytest.approx(0.5) and drifting.dense.spread > 0.4
    random = np.random.default_rng(0)
    noisy, _ = timed(lambda _: 1 + 0.1 * random.random())
    assert noisy.copy.low < 1 < noisy.copy.high and noisy.copy.low < noisy.copy.share < noisy.copy.high
    assert noisy.within_noise("near") and not noisy.within_noise("half")
    assert noisy.networks["half"].low < 0.5 < noisy.networks["half"].high


def test_slow_networks_are_timed_in_fewer_rounds():
    """A pass of all four takes 3.48 seconds; each is run twice, and the dense network is timed before."""
    found, clock = timed(lambda _: 1.0, seconds=400)  # (2 + 10) rounds of 4 runs take 334 seconds, and 15 rounds 418
    assert found.rounds == 13 and len(clock.order) == 2 + 15 * 32
    found, clock = timed(lambda _: 1.0, seconds=40)
    assert found.rounds == 10 and len(clock.order) == 2 + 12 * 8, "each network once a round"
    assert [found.networks["half"].share, found.copy.share] == pytest.approx([0.5, 1.0])


def test_a_table_of_a_slow_network_keeps_to_its_time(cases):
    """Its clock is slowed down, as by so much larger layers; the law still holds on the coarse grid."""
    case, began = cases["vgg"], []
    with LawfulClock(type(case.model)) as clock:

        def measured(seconds: float, repeats: int = 30) -> LatencyTable:
            began.append(clock.now)
            return measure_latency_table(
                case.model, case.graph, case.example, repeats=repeats, seconds=seconds, clock=clock
            )

        a_pass = case.table.dense_seconds
        whole, few = measured(1e3 * a_pass), measured(100 * a_pass)
        began.append(clock.now)
    lengths = [after - before for before, after in pairwise(began)]
    assert 1e3 * a_pass < lengths[0] < 1.1e3 * a_pass and lengths[1] < 125 * a_pass
    layer = "backbone.conv1.weight"
    assert whole.layers[layer].outputs == (1, 2, 4, 8, 12, 16) and few.layers[layer].outputs == (1, 4, 8, 16)
    policy = uniform(case.layers, 0.4)
    assert Predictor(few, case.graph.network).share(policy) == pytest.approx(case.lawful_share(policy), rel=1e-6)


def test_impossible_counts_are_refused():
    network = nn.Linear(3, 2)
    for options, said in (({"rounds": 0}, "rounds"), ({"batch": 1.5}, "batch"), ({"rounds": True}, "rounds")):
        with pytest.raises(ValueError, match=f"{said} must be a whole number >= 1"):
            time_networks(network, {}, torch.zeros(2, 3), **options)
    with pytest.raises(ValueError, match="seconds above 0"):
        time_networks(network, {}, torch.zeros(2, 3), rounds=1, clock=lambda: 5.0)
