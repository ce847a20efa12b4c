"""What a proposal of the guided search costs in a long study of a deep network: seconds and memory.

    python tests/benchmarks/proposals.py [--layers 160] [--trials 1000]

A chain of 3 x 3 convolutions of 128 channels with BatchNorm; errors are made up, nothing is trained. Measure it with
nothing else running.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
from study import hardware

from search.cli.text_tables import render
from search.proposals.guide import GuidedProposer
from spaces import ChannelGroup, Layer, Network, Space, StoredTensor
from spaces.allocation.importance import AllocationInputs
from spaces.search_space.projection import Projector
from spaces.search_space.space import allocator_names

WIDTH, POSITIONS, SEED = 128, 256, 0
MARKS, REPEATS = 10, 5
"""How often on the way it is measured, and proposals then."""


def chain(layers: int) -> Network:
    """`layers` convolutions, each but the last with a norm and channels that can go."""
    tensors, groups, found = [], [], []
    for n in range(layers):
        inputs, last = (3 if n == 0 else WIDTH), n == layers - 1
        shape, own, before = (WIDTH, inputs, 3, 3), ((n, WIDTH),), ((n - 1, WIDTH),) if n else ()
        tensors.append(StoredTensor(f"conv{n}.weight", shape, owners=(() if last else own, before, (), ())))
        found.append(
            Layer(f"conv{n}.weight", "conv2d", shape, POSITIONS, 1, None if last else n, "output" if last else None)
        )
        if not last:
            groups.append(ChannelGroup((f"conv{n}.weight",), WIDTH))
            for name in ("weight", "bias", "running_mean", "running_var"):
                kind = {"parameter": name in ("weight", "bias")}
                tensors.append(StoredTensor(f"norm{n}.{name}", (WIDTH,), owners=(own,), **kind))
    return Network(tuple(tensors), tuple(found), tuple(groups))


def evidence(network: Network, random: np.random.Generator) -> dict[str, AllocationInputs]:
    """Made-up importances."""
    masks = {layer.name: random.random(layer.numel) ** 2 for layer in network.layers}
    channels = {layer.name: random.random(WIDTH) ** 2 for layer in network.layers if layer.obstacle is None}
    return {"fine-grained": AllocationInputs(masks), "channel": AllocationInputs(channels)}


def moved(params: Mapping[str, Any], space: Space, random: np.random.Generator) -> dict[str, Any]:
    """Another point near one: another size, every knob a little off."""
    knobs = {
        k: float(np.clip(v + random.normal(0, 0.1), 0.01, 0.99))
        for k, v in params.items()
        if k.startswith("preference.")
    }
    return {**params, **knobs, "size": float(random.uniform(*space.size_range))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=160)
    parser.add_argument("--trials", type=int, default=1000)
    options = parser.parse_args()
    random, network = np.random.default_rng(SEED), chain(options.layers)
    known = evidence(network, random)
    space = Space(network, 0.25, allocations=allocator_names(scanned=False))
    guide, body, params = GuidedProposer(Projector(space, known), 0.08, SEED), [], None
    for number in range(options.trials + 1):
        if number and number % max(1, options.trials // MARKS) == 0:
            seconds = []
            for turn in range(REPEATS):
                began = time.perf_counter()
                params = guide.suggest(options.trials * (turn + 1) + number).params
                seconds.append(time.perf_counter() - began)
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            body.append([number, round(float(np.median(seconds)) * 1000), round(max(seconds) * 1000), round(memory)])
        params = moved(params or guide.suggest(number).params, space, random)
        guide.learn(number, params, float(random.uniform(0.1, 0.6)))
    columns = ["past trials", "proposal, ms (median)", "slowest", "peak memory, MiB"]
    print(f"{options.layers} layers, {REPEATS} proposals each\n\n{render(columns, body)}")
    found = {"layers": options.layers, "n": REPEATS, "rows": [dict(zip(columns, row, strict=True)) for row in body]}
    print(json.dumps({"benchmark": "proposals", "hardware": hardware(), "numpy": version("numpy"), **found}))


if __name__ == "__main__":
    main()
