"""Measures latency: the table of a network, every layer alone at many sizes, and whole networks side by side."""

from __future__ import annotations

import math
import platform
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pruning.channels.graph import ChannelGraph, check_fits
from pruning.channels.plan import plan_units
from pruning.channels.removal import one_line
from pruning.channels.structure import Structure, apply_structure
from pruning.copying import copy_model
from pruning.devices import device_of
from pruning.modules import Prunable, output_dim, prunable_weights
from pruning.trees import NetworkInputs, run
from spaces.cost.latency_predictor import remaining, timed_layers
from spaces.cost.latency_table import LatencyTable, LayerLatency, RestLatency
from spaces.cost.removal import shapes_after
from spaces.cost.timing import TimedNetworks, timed_network
from spaces.counting import removed_count
from spaces.network import Network
from spaces.validation import check_sparsity

LEVELS = (0.25, 0.5, 0.75, 0.875)
"""Sparsities of the grid; the dense sizes and one unit of every group are always in it too."""
HALF_LEVEL = 0.75
"""Two more networks lose this share of the first or the second half of their groups. They tell the cost of activations,
most of which are in the first half, from that of weights, most of which are in the second.
"""
FEW_LEVELS = (0.5,)
"""The grid of a network so slow that few rounds of the whole one fit into the time."""
REPEATS = 30
LEAST_REPEATS = 3
TABLE_SECONDS = 20.0
"""No round of a table begins later, once it has its least repeats."""
WARM_UP_ROUNDS = 2
NETWORK_RUNS = 4
"""How often a round runs each whole network, where there is time; the rest is a difference, so its terms must be
precise."""
ROUND_PASSES = 40
"""About as many passes of the dense network take as long as a round of a table at the usual levels."""
KERNEL_STEP = 8
"""Kernels run 10 to 20 % faster at multiples of their vector length. Few policies hit one, so beyond the first no grid
point does, except the dense size.
"""

LEAST_SECONDS, MOST_CALLS = 200e-6, 1024
"""On CUDA a measurement is of as many calls in a row as take so long, at most so many: of a single small layer, its
launching would be timed.
"""

NETWORK_ROUNDS = 30
"""Rounds in which whole networks are compared."""
LEAST_ROUNDS = 10
"""As few if more take too long: an interval of the median needs 6, and of 10 it leaves out the extremes."""
NETWORK_SECONDS = 60.0
"""No round begins later, once there are the least."""

Clock = Callable[[], float]
Task = Callable[[], object]


def measure_latency_table(
    model: nn.Module,
    graph: ChannelGraph,
    example_input: NetworkInputs,
    batch: int = 1,
    levels: Sequence[float] | None = None,
    repeats: int = REPEATS,
    seconds: float = TABLE_SECONDS,
    fingerprint: str = "",
    progress: Callable[[int, int], None] | None = None,
    clock: Clock = time.perf_counter,
) -> LatencyTable:
    """Time layers and networks, each without gradients, in shuffled rounds, so that drift affects all alike.

    A round times every layer at every pair of kept outputs and inputs, the dense network, and the network with all or
    half of its groups at some levels. Each is run once untimed just before, since kernels of a new size take longer.
    The fastest round counts: other work on the machine only adds time, and more to long runs than to short ones, so
    medians would distort shares. What a network takes beyond its layers is the rest, never below 0.

    Rounds end after `repeats`, or once `seconds` are over and there are `LEAST_REPEATS`. Where these would take longer,
    a round has `FEW_LEVELS` and runs each network once: of a network of many seconds, the whole takes some 60 of its
    passes. About three times the model is in memory: layers alone share their weights.

    Args:
        model: is not changed; timed on the device of its weights.
        graph: its traced channel groups.
        example_input: a batch that the model accepts; its examples are repeated to fill `batch`.
        batch: examples in one forward pass, at least 1.
        levels: sparsities of the grid, each in [0, 1); by default `LEVELS`, or `FEW_LEVELS` for want of time.
        repeats: rounds that count, at least 1, if there is time.
        seconds: by `clock`, after which no more than the least rounds are begun.
        fingerprint: kept in the table, to tell which model it belongs to.
        progress: called with (rounds done, total rounds); where time is over, all are done.
        clock: seconds, rising.

    Raises:
        ValueError: a level, `repeats` or `batch` out of range, a graph of another model, or a model that does not run
            on such a batch.
    """
    _check_counts(batch=batch, repeats=repeats)
    given = None if levels is None else [check_sparsity(level, "level") for level in levels]
    network = graph.network
    check_fits(model, network)
    dense = copy_model(model).eval()
    device = device_of(dense, example_input)
    example = _filled(example_input, batch, device)
    calls = _observed_calls(dense, example)
    pace = _Pace(repeats, LEAST_REPEATS, seconds)
    hurried = pace.is_over_after(ROUND_PASSES * _seconds_of_a_pass(dense, example, device, clock))
    sizes = _sizes(network, given if given is not None else FEW_LEVELS if hurried else LEVELS)
    tasks = _layer_tasks(network, sizes, calls)
    tasks |= {number: _network_task(dense, graph, kept, example) for number, kept in enumerate(sizes)}
    taken = _time_in_rounds(tasks, pace, 1 if hurried else NETWORK_RUNS, device, clock, progress)
    fastest = {key: min(times) for key, times in taken.items()}
    low, middle, high = np.quantile(taken[0], (0.25, 0.5, 0.75))
    return LatencyTable(
        model=fingerprint,
        device=describe_device(device),
        threads=torch.get_num_threads(),
        batch=batch,
        layers={layer.name: _grid(layer.name, fastest) for layer in timed_layers(network)},
        rest=_rest(network, sizes, fastest),
        dense_seconds=fastest[0],
        spread=float((high - low) / middle) if middle else 0.0,
    )


def time_networks(
    dense: nn.Module,
    networks: Mapping[str, nn.Module],
    example_input: NetworkInputs,
    batch: int = 1,
    rounds: int = NETWORK_ROUNDS,
    seconds: float = NETWORK_SECONDS,
    progress: Callable[[int, int], None] | None = None,
    clock: Clock = time.perf_counter,
) -> TimedNetworks:
    """Time whole networks side by side with the dense one and a copy of it, without gradients, in shuffled rounds.

    A round runs every network `NETWORK_RUNS` times in a new random order, each once untimed just before. Its fastest
    run in a round counts, since other work on the machine only adds time; it is compared with the dense network's of
    the same round, so that slow drift cancels. Rounds end once `seconds` are over and there are `LEAST_ROUNDS`; where
    these would take longer, a round runs every network once.

    Args:
        dense: is not changed, nor are `networks`; timed on the device of its weights.
        networks: by name, with the same input.
        example_input: a batch that the models accept; its examples are repeated to fill `batch`.
        batch: examples in one forward pass, at least 1.
        rounds: that count, at least 1, if there is time.
        seconds: by `clock`, after which no more than the least rounds are begun.
        progress: called with (rounds done, total rounds); where time is over, all are done.
        clock: seconds, rising.

    Raises:
        ValueError: `rounds` or `batch` out of range, or a clock by which the dense network takes no time.
    """
    _check_counts(batch=batch, rounds=rounds)
    models = [copy_model(model).eval() for model in (dense, dense, *networks.values())]
    device = device_of(dense, example_input)
    example = _filled(example_input, batch, device)
    tasks: dict[_Key, Task] = {number: partial(run, model, example) for number, model in enumerate(models)}
    pace = _Pace(rounds, LEAST_ROUNDS, seconds)
    passes = 2 * NETWORK_RUNS * len(models)
    hurried = pace.is_over_after(passes * _seconds_of_a_pass(models[0], example, device, clock))
    runs = 1 if hurried else NETWORK_RUNS
    taken = _time_in_rounds(tasks, pace, runs, device, clock, progress)
    fastest = [np.reshape(taken[number], (-1, runs)).min(axis=1).tolist() for number in tasks]
    first, again, *others = (timed_network(seconds, fastest[0]) for seconds in fastest)
    return TimedNetworks(
        device=describe_device(device),
        threads=torch.get_num_threads(),
        batch=batch,
        rounds=len(fastest[0]),
        dense=first,
        copy=again,
        networks=dict(zip(networks, others, strict=True)),
    )


def _check_counts(**counts: object) -> None:
    for word, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{word} must be a whole number >= 1, got {value!r}; nearest valid: 1")


def _filled(example_input: NetworkInputs, batch: int, device: torch.device) -> NetworkInputs:
    return example_input.detach()[torch.arange(batch) % len(example_input)].to(device)


def describe_device(device: torch.device) -> str:
    """The processor's name from the operating system; for a CPU with the instruction set that PyTorch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    name = next(names, "") or platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


@dataclass(frozen=True)
class _Point:
    """One grid point of a layer: its weight's first two dimensions."""

    layer: str
    outputs: int
    inputs: int


_Key = int | _Point
"""What is timed: a network, by its number, or a layer at a grid point."""
Kept = Mapping[int, int]
"""Group number -> units kept; absent groups keep all."""


def _sizes(network: Network, levels: Sequence[float]) -> list[Kept]:
    """What the usable groups keep in each network: first everything; equal sizes once."""
    groups = {number: group.units for number, group in enumerate(network.groups) if group.obstacle is None}
    sizes = [groups, *({n: _beside_step(u, level) for n, u in groups.items()} for level in levels)]
    sizes.append(dict.fromkeys(groups, 1))
    small, half = {n: _beside_step(u, HALF_LEVEL) for n, u in groups.items()}, list(groups)[: len(groups) // 2]
    sizes += [groups | {n: small[n] for n in groups if (n in half) == first} for first in (True, False)]
    return [kept for place, kept in enumerate(sizes) if kept not in sizes[:place]]


def _beside_step(units: int, level: float) -> int:
    """Units kept at a level, one fewer if that is a multiple of `KERNEL_STEP`; all at level 0."""
    removed = removed_count(level, units)
    kept = units - removed
    return kept - 1 if removed and kept > KERNEL_STEP and kept % KERNEL_STEP == 0 else kept


def _shapes(network: Network, kept: Kept) -> dict[str, _Point]:
    """Layer -> its grid point when the groups keep these units."""
    shapes, names = shapes_after(network, kept), [layer.name for layer in timed_layers(network)]
    return {name: _Point(name, shapes[name][0], shapes[name][1]) for name in names}


@dataclass(frozen=True, eq=False)
class _Call:
    module: Prunable
    input: Tensor


class _Shared:
    """Memory that layers and their inputs lie in one over another: what they compute matters to nobody."""

    def __init__(self, calls: Mapping[str, Sequence[_Call]]) -> None:
        each = list(chain.from_iterable(calls.values()))
        self._most = {"weights": max(call.module.weight.numel() for call in each)} if each else {}
        self._most |= {"inputs": max(call.input.numel() for call in each)} if each else {}
        self._made: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def like(self, tensor: Tensor, use: str) -> Tensor:
        """Numbers in [0, 1) of a tensor's size, type and layout; `use` is `weights` or `inputs`."""
        key = use, tensor.dtype, tensor.device
        if key not in self._made:
            numbers = torch.rand(self._most[use], generator=torch.Generator().manual_seed(0))
            self._made[key] = numbers.to(tensor.device, tensor.dtype)
        return self._made[key].as_strided(tensor.shape, tensor.stride())


def _observed_calls(model: nn.Module, example: NetworkInputs) -> dict[str, list[_Call]]:
    """Layer -> every call of its module in one forward pass."""
    names = {id(weight): name for name, weight in prunable_weights(model).items()}
    calls: defaultdict[str, list[_Call]] = defaultdict(list)

    def note(module: Prunable, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
        calls[names[id(module.weight)]].append(_Call(module, (args or tuple(kwargs.values()))[0]))

    called = [module for module in model.modules() if isinstance(module, Prunable) and id(module.weight) in names]
    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in called]
    try:
        with torch.no_grad():
            run(model, example)
    except Exception as error:
        raise ValueError(f"the model does not run on a batch of {len(example)}: {one_line(error)}") from error
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _layer_tasks(network: Network, sizes: Sequence[Kept], calls: Mapping[str, Sequence[_Call]]) -> dict[_Key, Task]:
    """Every layer at every pair of outputs and inputs that some sizes give it."""
    shapes, memory = [_shapes(network, kept) for kept in sizes], _Shared(calls)
    tasks: dict[_Key, Task] = {}
    for layer in timed_layers(network):
        for outputs in {points[layer.name].outputs for points in shapes}:
            for inputs in {points[layer.name].inputs for points in shapes}:
                tasks[_Point(layer.name, outputs, inputs)] = _layer_task(calls[layer.name], outputs, inputs, memory)
    return tasks


@torch.no_grad()
def _layer_task(calls: Sequence[_Call], outputs: int, inputs: int, memory: _Shared) -> Task:
    """Run standalone layers of these sizes, once for each call, in the memory format of the originals."""
    small = [_resized(call, outputs, inputs, memory) for call in calls]

    def run() -> None:
        for call in small:
            call.module(call.input)

    return run


def _resized(call: _Call, outputs: int, inputs: int, memory: _Shared) -> _Call:
    kept = {"weight": {0: tuple(range(outputs)), 1: tuple(range(inputs))}}
    if call.module.bias is not None:
        groups = 1 if isinstance(call.module, nn.Linear) else call.module.groups
        kept["bias"] = {0: tuple(range(inputs * groups if output_dim(call.module) else outputs))}
    module = apply_structure(call.module, Structure(kept))
    module.weight.data = memory.like(module.weight, "weights")
    channels = module.in_features if isinstance(module, nn.Linear) else module.in_channels
    dim = call.input.ndim - (module.weight.ndim - 1)
    taken = call.input.narrow(dim, 0, channels)
    return _Call(module, memory.like(torch.empty_like(taken, memory_format=_layout(call.input)), "inputs"))


def _layout(tensor: Tensor) -> torch.memory_format:
    """The tensor's memory format; the default one if it fits several or none."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.ndim)
    if last is not None and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=last):
        return last
    return torch.contiguous_format


def _network_task(dense: nn.Module, graph: ChannelGraph, kept: Kept, example: NetworkInputs) -> Task:
    """Run the whole network with the first units of each group kept."""
    gone = {number: range(units, graph.network.groups[number].units) for number, units in kept.items()}
    small = apply_structure(dense, plan_units(graph, gone).structure)
    return lambda: run(small, example)


@dataclass(frozen=True)
class _Pace:
    """How many rounds are to count, and when there is no time for more than the least."""

    rounds: int
    least: int
    seconds: float

    def is_over_after(self, a_round: float) -> bool:
        """Whether the least rounds of so many seconds take too long."""
        return (WARM_UP_ROUNDS + min(self.least, self.rounds)) * a_round > self.seconds


@torch.no_grad()
def _seconds_of_a_pass(model: nn.Module, example: NetworkInputs, device: torch.device, clock: Clock) -> float:
    return _timed(partial(run, model, example), device, clock)


@torch.no_grad()
def _time_in_rounds(
    tasks: Mapping[_Key, Task],
    pace: _Pace,
    network_runs: int,
    device: torch.device,
    clock: Clock,
    progress: Callable[[int, int], None] | None,
) -> dict[_Key, list[float]]:
    """Seconds of every task in every round that counts."""
    order = [key for key in tasks for _ in range(1 if isinstance(key, _Point) else network_runs)]
    shuffler = random.Random(0)
    seconds: dict[_Key, list[float]] = {key: [] for key in tasks}
    total, ends = WARM_UP_ROUNDS + pace.rounds, clock() + pace.seconds
    with _fastest_kernels(device):
        for number in range(total):
            shuffler.shuffle(order)
            for key in order:
                spent = _timed(tasks[key], device, clock)
                if number >= WARM_UP_ROUNDS:
                    seconds[key].append(spent)
            is_last = number + 1 >= WARM_UP_ROUNDS + pace.least and clock() >= ends
            if progress:
                progress(total if is_last else number + 1, total)
            if is_last:
                break
    return seconds


def _timed(task: Task, device: torch.device, clock: Clock) -> float:
    task()
    _wait_for(device)
    if device.type == "cuda":
        return _timed_by_events(task)
    began = clock()
    task()
    _wait_for(device)
    return clock() - began


def _timed_by_events(task: Task) -> float:
    """Seconds of a call by the card's own clock, the mean over calls in a row."""
    calls = 1
    while True:
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        for _ in range(calls):
            task()
        last.record()
        last.synchronize()
        seconds = first.elapsed_time(last) / 1000
        if seconds >= LEAST_SECONDS or calls == MOST_CALLS:
            return seconds / calls
        calls = min(MOST_CALLS, max(2 * calls, math.ceil(calls * LEAST_SECONDS / max(seconds, 1e-9))))


@contextmanager
def _fastest_kernels(device: torch.device) -> Iterator[None]:
    """cuDNN tries its kernels out for every size, as a deployed network's would be."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _wait_for(device: torch.device) -> None:
    """Wait until the device has finished its work; on a CPU it has when a call returns."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _grid(name: str, fastest: Mapping[_Key, float]) -> LayerLatency:
    points = [key for key in fastest if isinstance(key, _Point) and key.layer == name]
    outputs, inputs = sorted({point.outputs for point in points}), sorted({point.inputs for point in points})
    seconds = tuple(tuple(fastest[_Point(name, o, i)] for i in inputs) for o in outputs)
    return LayerLatency(tuple(outputs), tuple(inputs), seconds)


def _rest(network: Network, sizes: Sequence[Kept], fastest: Mapping[_Key, float]) -> tuple[RestLatency, ...]:
    """What the networks of these sizes take beyond their layers."""
    layers = timed_layers(network)
    elements = [layer.positions * layer.shape[0] for layer in layers], [layer.numel for layer in layers]
    rest = []
    for number, kept in enumerate(sizes):
        points = _shapes(network, kept)
        outputs = [layer.positions * points[layer.name].outputs for layer in layers]
        weights = [prod((p.outputs, p.inputs, *x.shape[2:])) for x, p in zip(layers, points.values(), strict=True)]
        beyond = fastest[number] - sum(fastest[point] for point in points.values())
        left = float(remaining(elements[0], outputs)), float(remaining(elements[1], weights))
        rest.append(RestLatency(*left, max(beyond, 0.0)))
    return tuple(rest)
