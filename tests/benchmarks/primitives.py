"""What a mask costs against `torch.nn.utils.prune`, and what a training step with masks held costs against a dense one.

    python tests/benchmarks/primitives.py [--weights 10000,100000,1000000,10000000] [--widths 0.125,0.5] [--rounds 15]

One thread. The two sides of a comparison take turns within a round, the first of a round the second of the next, so
that a busy machine slows both; the figure is the median of the rounds' ratios, with their quartiles. `mask alone` is
PyTorch's `compute_mask` against `make_mask`; `whole call` is its function on a fresh module, which leaves a mask and a
masked weight, against `make_mask` and `apply_masks_`. Where no chance is involved, both masks must be equal. The steps
are of VGG9 on 128 images of 28 x 28, all weights at 75 % in masks, the ramp over. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from study import hardware
from torch import nn
from torch.nn.utils import prune as torch_prune

from pruning.channels.tracing import trace_channels
from pruning.gradual import GradualPruner
from pruning.masks import apply_masks_, make_mask
from search.cli.text_tables import render
from search.training.losses import StepLosses
from search.training.optimizers import make_optimizer
from search.training.train import _step, in_fast_layout
from search.workloads import get_workload
from search.workloads.vgg import VGG9
from spaces.policy import PruningPolicy
from spaces.schedule import Schedule

SPARSITY, SIDE, BATCH = 0.75, 28, 128
LEAST_SECONDS = 0.004
"""A side is repeated in its round until it takes about so long, which clocks measure well."""
MASK_GOAL, STEP_GOAL = 1.0, 0.97
"""Least ratio of the other side's seconds to ours."""


@dataclass(frozen=True)
class Compared:
    """Seconds of two sides in interleaved rounds.

    Attributes:
        what: the comparison; `size` the weights in the tensor or network.
        theirs, ours: median milliseconds of one call.
        ratio: median over rounds of theirs over ours; above 1 ours is the faster. `low`, `high` are its quartiles.
    """

    what: str
    size: int
    theirs: float
    ours: float
    ratio: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, what: str, size: int, seconds: Sequence[tuple[float, float]]) -> Compared:
        """From (theirs, ours) of every round."""
        pairs = np.array(seconds)
        low, ratio, high = np.quantile(pairs[:, 0] / pairs[:, 1], (0.25, 0.5, 0.75)).tolist()
        return cls(what, size, *(1000 * np.median(pairs, axis=0)).tolist(), ratio, low, high, len(pairs))


Side = tuple[Callable[[int], list[Any]], Callable[[Any], object]]
"""What makes arguments for so many calls, untimed, and the call."""


def interleaved(
    theirs: Side, ours: Side, rounds: int, clock: Callable[[], float] = time.perf_counter
) -> list[tuple[float, float]]:
    """Seconds a call of (theirs, ours), by round; calls before the first round find out how often to repeat."""
    sides = (theirs, ours)
    repeats = []
    for side in sides:
        _timed(side, 1, clock)  # first calls allocate
        repeats.append(max(1, math.ceil(LEAST_SECONDS / max(_timed(side, 1, clock), 1e-7))))
    found = []
    for number in range(rounds):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        taken = {place: _timed(sides[place], repeats[place], clock) for place in order}
        found.append((taken[0], taken[1]))
    return found


def _timed(side: Side, repeats: int, clock: Callable[[], float]) -> float:
    prepare, call = side
    arguments = prepare(repeats)
    began = clock()
    for argument in arguments:
        call(argument)
    return (clock() - began) / repeats


@dataclass(frozen=True)
class Twin:
    """One of PyTorch's methods and the same in the words of `make_mask`."""

    function: Callable[..., nn.Module]
    method: torch_prune.BasePruningMethod
    arguments: dict[str, Any]
    options: dict[str, str]

    @property
    def name(self) -> str:
        return self.function.__name__ + (f" L{self.arguments['n']}" if "n" in self.arguments else "")

    @property
    def by_chance(self) -> bool:
        return self.options.get("criterion") == "random"


TWINS = (
    Twin(torch_prune.l1_unstructured, torch_prune.L1Unstructured(SPARSITY), {}, {}),
    Twin(torch_prune.random_unstructured, torch_prune.RandomUnstructured(SPARSITY), {}, {"criterion": "random"}),
    Twin(
        torch_prune.ln_structured,
        torch_prune.LnStructured(SPARSITY, 1, 0),
        {"n": 1, "dim": 0},
        {"granularity": "channel", "criterion": "magnitude-l1"},
    ),
    Twin(
        torch_prune.ln_structured,
        torch_prune.LnStructured(SPARSITY, 2, 0),
        {"n": 2, "dim": 0},
        {"granularity": "channel", "criterion": "magnitude-l2"},
    ),
    Twin(
        torch_prune.random_structured,
        torch_prune.RandomStructured(SPARSITY, 0),
        {"dim": 0},
        {"granularity": "channel", "criterion": "random"},
    ),
)


def compare_masks(weights: int, rounds: int) -> Iterator[Compared]:
    """Every twin on one weight of about so many elements, its mask alone and the whole call."""
    outputs = max(4, round(math.sqrt(weights) / 4) * 4)  # no half channels at 75 %, where roundings differ
    layer = nn.Linear(max(1, weights // outputs), outputs, bias=False)
    weight = layer.weight.detach()
    distinct = (torch.randperm(weight.numel()) + 1) * 2.0**-24  # where sizes are equal, PyTorch's choice has no rule
    weight.copy_(torch.where(torch.rand(weight.shape) < 0.5, -1.0, 1.0) * distinct.reshape(weight.shape))
    ones = torch.ones_like(weight)
    for twin in TWINS:
        mask = make_mask(weight, SPARSITY, **twin.options)
        if not twin.by_chance and not torch.equal(mask, twin.method.compute_mask(weight, ones).bool()):
            raise RuntimeError(f"{twin.name}: the masks differ")

        def masked(module: nn.Module, twin: Twin = twin) -> None:
            apply_masks_(module, {"weight": make_mask(module.weight, SPARSITY, **twin.options)})

        theirs = [
            lambda _, twin=twin: twin.method.compute_mask(weight, ones),
            lambda module, twin=twin: twin.function(module, "weight", amount=SPARSITY, **twin.arguments),
        ]
        ours = [lambda _, twin=twin: make_mask(weight, SPARSITY, **twin.options), masked]
        fresh = [lambda n: [None] * n, lambda n: [copy.deepcopy(layer) for _ in range(n)]]
        for kind, make, their, our in zip(("mask alone", "whole call"), fresh, theirs, ours, strict=True):
            seconds = interleaved((make, their), (make, our), rounds)
            yield Compared.of(f"{twin.name}, {kind}", weight.numel(), seconds)


def compare_steps(width: float, rounds: int, batch: int = BATCH, side: int = SIDE) -> Compared:
    """An optimizer step of one network, dense and with masks held."""
    torch.manual_seed(0)
    images, targets = torch.randn(batch, 1, side, side), torch.randint(10, (batch,))
    dense = in_fast_layout(VGG9(width=width, inputs=1, pools=3), images[:1])
    graph = trace_channels(dense, images[:2])
    policy = PruningPolicy(dict.fromkeys(graph.network.layer_names, SPARSITY), schedule=Schedule("one-shot"))
    pruner = GradualPruner(copy.deepcopy(dense), policy, 1, graph)
    pruner.advance(0)
    workload = get_workload("digits")  # for its loss and recipe
    optimizers = [make_optimizer(model, workload.recipe, False) for model in (dense, pruner.model)]
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = 1e-3

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        _step(model, optimizer, workload, images, targets, StepLosses(at_once=True), [], nullcontext(), None)

    def held(_: None) -> None:
        step(pruner.model, optimizers[1])
        pruner.hold()

    torch.set_flush_denormal(True)  # as training does
    try:
        once = [None].__mul__
        seconds = interleaved((once, lambda _: step(dense, optimizers[0])), (once, held), rounds)
    finally:
        torch.set_flush_denormal(False)
    numel = sum(parameter.numel() for parameter in dense.parameters())
    return Compared.of(f"step, VGG9 x {width:g}", numel, seconds)


def show(masks: Sequence[Compared], steps: Sequence[Compared]) -> None:
    """One table, then one JSON line."""
    goals = {id(one): goal for goal, part in ((MASK_GOAL, masks), (STEP_GOAL, steps)) for one in part}
    body = []
    for one in (*masks, *steps):
        spread = f"{one.ratio:.2f} [{one.low:.2f}, {one.high:.2f}]"
        goal = goals[id(one)]
        met = f"{'yes' if one.ratio >= goal else 'no'}, {goal:g}"
        body.append([one.what, f"{one.size:,}", f"{one.theirs:.3f}", f"{one.ours:.3f}", spread, met])
    print(f"one thread; milliseconds, medians of {(*masks, *steps)[0].rounds} rounds or more; quartiles in brackets\n")
    print(render(["what", "weights", "torch or dense", "ours", "times as fast", "goal met"], body))
    parts = {name: [_plain(one) for one in part] for name, part in (("masks", masks), ("steps", steps))}
    head = {"benchmark": "primitives", "hardware": hardware(), "torch": version("torch"), "numpy": version("numpy")}
    print(json.dumps(head | {"threads": torch.get_num_threads()} | parts))


def _plain(one: Compared) -> dict[str, Any]:
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in asdict(one).items()}


def _numbers(kind: type) -> Callable[[str], list[Any]]:
    return lambda text: [kind(part) for part in text.split(",") if part]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=_numbers(int), default=[10**4, 10**5, 10**6, 10**7], help="N,N,... or ''")
    parser.add_argument("--widths", type=_numbers(float), default=[1 / 8, 1 / 2], help="of VGG9, N,N,... or ''")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    if not options.weights and not options.widths:
        parser.error("nothing to compare: name --weights or --widths")
    torch.set_num_threads(1)
    masks = [one for weights in options.weights for one in compare_masks(weights, options.rounds)]
    show(masks, [compare_steps(width, options.rounds) for width in options.widths])


if __name__ == "__main__":
    main()
