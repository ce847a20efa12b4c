"""Test accuracy at a number of bytes: searched policies, static allocations with bits, and the NNC codec.

    python tests/benchmarks/bytes.py --make-nnc ENVIRONMENT     # once
    python tests/benchmarks/accuracy_at_bytes.py run small-fashion --seeds 0-2 --nnc ENVIRONMENT/bin/python
    python tests/benchmarks/accuracy_at_bytes.py run fashion-mnist --seeds 0 --sizes 0.1,0.03 --nnc PYTHON
    python tests/benchmarks/accuracy_at_bytes.py show

Sizes are bytes of the complete file over those of the dense file in 32-bit floats. All methods of a workload and seed
start from one dense model, use one recipe, and spend at most `--trials` fine-tunes of a trial's length to choose by
validation accuracy what is best at each size. What was chosen is fine-tuned again at the recipe's final length with
fresh seeds, and only these runs are tested:

- `guided`: one study between the smallest and the largest size, fine-grained masks; proposals take the
  nearest of the sizes;
- `lamp`, `global`: the allocation at each size with each of the same bits;
- `lamp 32`: LAMP with floats, in the file of version 1;
- `nnc dense`: the dense weights through NNC, statistics recalibrated; nothing is trained;
- `nnc lamp`: LAMP with floats at several shares of kept weights, then NNC and recalibration.

A policy that several methods propose is fine-tuned once. Every fine-tune is one line of `accuracy_at_bytes.csv` beside
this file; what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from bytes import NNC, workload_named
from raw_rows import Row, append_rows, read_rows, seed_range
from study import hardware
from torch import nn

from pruning.copying import copy_model
from pruning.importance.scores import unit_importance
from pruning.sparse_file import dense_bytes
from search.cli.text_tables import render
from search.metric import SHARE
from search.proposals.guide import GuidedProposer
from search.training.dense_model import DenseModel, dense_model
from search.training.evaluate import Evaluation, PreparedModel, evaluate_policy
from search.training.profile_cache import cached_profile
from search.training.refresh import refresh_statistics_
from search.training.scoring import score
from search.workloads import Workload
from spaces.allocation.allocators import allocate
from spaces.allocation.budget import Target, Unreachable
from spaces.allocation.importance import AllocationInputs
from spaces.policy import PruningPolicy
from spaces.search_space.initial import InitialPoint, initial_points
from spaces.search_space.projection import Projector
from spaces.search_space.space import SEED_SCHEDULE, Space

SIZES, BITS, TRIALS = (0.1, 0.07, 0.05, 0.03, 0.02, 0.01), (8, 6, 4, 3), 24
FRESH_SEEDS = range(2000, 2002)
KEPT = (0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08, 0.05, 0.03, 0.02, 0.015)
"""Shares of parameters that are not zero, of LAMP before NNC."""
QUALITIES = range(-40, -7, 2)
"""Quantisation parameters of NNC, from fine to coarse."""
MASKS = "fine-grained"
TABLE = Path(__file__).with_suffix(".csv")
COLUMNS = (
    "workload", "seed", "method", "stage", "limit", "what", "tune_seed", "size", "accuracy", "test_accuracy", "digest",
)  # fmt: skip
CHOOSING, FINAL, DENSE = "choosing", "final", "dense"
NONE = "nothing this small"


@dataclass(frozen=True)
class Made:
    """A finished network: its bytes over dense and its accuracies; the one on test data is NaN before the finals."""

    size: float
    accuracy: float
    test_accuracy: float = math.nan


@dataclass(frozen=True)
class Candidate:
    """A network that a method may choose: what it is, what came of it, and how it is made within a size for the test,
    with a fresh seed if it is trained."""

    what: str
    made: Made
    again: Callable[[int, float], Made]
    digest: str = ""
    trained: bool = True

    @property
    def size(self) -> float:
        return self.made.size

    @property
    def accuracy(self) -> float:
        return self.made.accuracy


class Arena:
    """One workload and seed: what all methods share."""

    def __init__(self, workload: str, seed: int, sizes: Sequence[float], trials: int, root: Path, nnc: Path | None):
        self.name, self.seed, self.sizes, self.trials, self.root, self.nnc = workload, seed, sizes, trials, root, nnc
        self.bits = BITS
        self._tuned = {
            (row["digest"], int(row["tune_seed"]), row["stage"] == FINAL): _made(row)
            for row in read_rows(TABLE)
            if (row["workload"], row["seed"]) == (workload, str(seed)) and row["method"] in OURS
        }

    @cached_property
    def workload(self) -> Workload:
        return workload_named(f"{self.name}-{self.seed}" if self.name == "small-fashion" else self.name)

    @cached_property
    def dense(self) -> DenseModel:
        return dense_model(self.workload, self.seed, self.root / "cache")

    @cached_property
    def subject(self) -> PreparedModel:
        return PreparedModel.of(self.workload, self.dense.model)

    @cached_property
    def dense_bytes(self) -> int:
        return dense_bytes(self.dense.model)

    @cached_property
    def inputs(self) -> AllocationInputs:
        return AllocationInputs(unit_importance(self.dense.model, self.subject.graph, MASKS))

    def space(self) -> Space:
        return Space(self.subject.network, max(self.sizes), (MASKS,), min_size=min(self.sizes), bits=self.bits)

    @property
    def dense_error(self) -> float:
        return 1 - self.scored(self.dense.model).accuracy

    def evidence(self) -> Mapping[str, AllocationInputs]:
        space = self.space()
        profile = cached_profile(
            self.subject, self.dense, space.criterion, space.usable, self.root / "cache", bits=self.bits
        )
        scores = unit_importance(self.dense.model, self.subject.graph, MASKS)
        return {MASKS: AllocationInputs.of(self.subject.network, MASKS, scores, profile)}

    def scored(self, model: nn.Module, size: float = 1, final: bool = False) -> Made:
        """Accuracies of a network; on test data in the finals only."""
        workload = self.workload
        found = [score(model, split, workload).accuracy for split in (workload.validation, workload.test)[: 1 + final]]
        return Made(size, *found)

    def evaluated(self, policy: PruningPolicy, seed: int, final: bool) -> Evaluation:
        """A policy after its fine-tune."""
        recipe = self.workload.recipe
        return evaluate_policy(self.subject, policy, recipe.final_epochs if final else recipe.trial_epochs, seed)

    def tuned(self, policy: PruningPolicy, seed: int, final: bool) -> Made:
        """What comes of a policy; the same one is fine-tuned once, whichever methods propose it."""
        key = policy.digest, seed, final
        if key not in self._tuned:
            evaluation = self.evaluated(policy, seed, final)
            size = evaluation.result.measured.shares.encoded
            self._tuned[key] = self.scored(evaluation.network[0], size, final)
        return self._tuned[key]

    def candidate(self, policy: PruningPolicy, what: str) -> Candidate:
        made = self.tuned(policy, self.seed, False)
        return Candidate(what, made, lambda seed, size: self.tuned(policy, seed, True), policy.digest)


def guided(arena: Arena) -> Iterator[Candidate]:
    space = arena.space()
    projector = Projector(space, arena.evidence())
    guide = GuidedProposer(projector, arena.dense_error, arena.seed)
    seeds = list(islice(initial_points(projector), arena.trials // 2))
    for number in range(arena.trials):
        asked = seeds[number] if number < len(seeds) else guide.suggest(number)
        nearest = min(arena.sizes, key=lambda size: abs(math.log(size / asked.params["size"])))
        params = {**asked.params, "size": nearest}
        policy = projector.project(params).policy
        source = asked.allocator if isinstance(asked, InitialPoint) else asked.source
        found = arena.candidate(policy, f"{source}, {policy.bits_label}")
        guide.learn(number, params, 1 - found.accuracy)
        yield found


def static(allocator: str, widths: Sequence[int] | None = None) -> Callable[[Arena], Iterator[Candidate]]:
    def propose(arena: Arena) -> Iterator[Candidate]:
        for bits in widths or arena.bits:
            for size in arena.sizes:
                policy = allocated(arena, allocator, Target(arena.subject.network, size, MASKS, bits=bits), bits)
                if policy is not None:
                    yield arena.candidate(policy, f"{allocator}, {bits} bits")

    return propose


def allocated(arena: Arena, allocator: str, target: Target, bits: int) -> PruningPolicy | None:
    try:
        sparsity = allocate(allocator, target, arena.inputs)
    except Unreachable:
        return None
    return PruningPolicy(sparsity, MASKS, schedule=SEED_SCHEDULE, bits=bits)


def nnc_dense(arena: Arena) -> Iterator[Candidate]:
    coded = CodedByNNC(arena, arena.dense.model)
    for quality in coded.sizes:
        again = lambda seed, size, quality=quality: coded.made(quality, final=True)  # noqa: E731
        yield Candidate(f"qp {quality}", coded.made(quality), again, trained=False)


def nnc_lamp(arena: Arena) -> Iterator[Candidate]:
    for kept in KEPT:
        policy = allocated(arena, "lamp", Target(arena.subject.network, kept, MASKS, metric="nonzero"), 32)
        if policy is None:
            continue

        def again(seed: int, size: float, policy: PruningPolicy = policy) -> Made:
            tuned = CodedByNNC(arena, arena.evaluated(policy, seed, True).network[0])
            return tuned.made(tuned.best_within(size), final=True)

        coded = CodedByNNC(arena, arena.evaluated(policy, arena.seed, False).network[0])
        for quality in coded.sizes:
            yield Candidate(f"{kept:g} kept, qp {quality}", coded.made(quality), again, policy.digest)


class CodedByNNC:
    """A network as the decoder gives it back at each quantisation parameter, recalibrated."""

    TRIED = 3
    """Of the qualities within a size, so many of the finest are looked at."""

    def __init__(self, arena: Arena, model: nn.Module) -> None:
        self._arena, self._model = arena, model
        floats = {n: tensor.numpy() for n, tensor in model.state_dict().items() if tensor.dtype == torch.float32}
        script = Path(__file__).with_name("nnc_network.py")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            np.savez(folder / "state.npz", **floats)
            command = [str(arena.nnc), str(script), str(folder / "state.npz"), name, *map(str, QUALITIES)]
            said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder).stdout
            found = json.loads(said.strip().splitlines()[-1])["bytes"]
            self.sizes = {quality: found[str(quality)] / arena.dense_bytes for quality in QUALITIES}
            self._decoded = {quality: dict(np.load(folder / f"{quality}.npz")) for quality in QUALITIES}

    def made(self, quality: int, final: bool = False) -> Made:
        decoded = {name: torch.from_numpy(value) for name, value in self._decoded[quality].items()}
        copy = copy_model(self._model)
        copy.load_state_dict(self._model.state_dict() | decoded)
        refresh_statistics_(copy, self._arena.workload)
        return self._arena.scored(copy, self.sizes[quality], final)

    def best_within(self, size: float) -> int:
        """The quality of highest validation accuracy."""
        within = sorted((q for q in self.sizes if self.sizes[q] <= size), key=lambda q: -self.sizes[q])
        return max(within[: self.TRIED], key=lambda quality: self.made(quality).accuracy)


METHODS: Mapping[str, Callable[[Arena], Iterator[Candidate]]] = {
    "guided": guided,
    "lamp": static("lamp"),
    "global": static("global"),
    "lamp 32": static("lamp", (32,)),
    "nnc dense": nnc_dense,
    "nnc lamp": nnc_lamp,
}
OURS = ("guided", "lamp", "global", "lamp 32")
"""Methods whose networks a policy and a seed determine."""


def run(arena: Arena, methods: Sequence[str]) -> None:
    written = [r for r in read_rows(TABLE) if (r["workload"], r["seed"]) == (arena.name, str(arena.seed))]
    done = {(r["method"], float(r["limit"])) for r in written if r["stage"] != CHOOSING}
    if (DENSE, 1.0) not in done:
        made = arena.scored(arena.dense.model, final=True)
        append_rows(TABLE, COLUMNS, [_row(arena, DENSE, DENSE, 1.0, "dense", arena.seed, made)])
    for method in methods:
        if not {(method, size) for size in arena.sizes} <= done:
            for row in _measured(arena, method):
                if row not in written:
                    append_rows(TABLE, COLUMNS, [row])


def _measured(arena: Arena, method: str) -> Iterator[Row]:
    candidates = []
    for one in METHODS[method](arena):
        candidates.append(one)
        print(arena.name, arena.seed, method, one.what, one.made, file=sys.stderr, flush=True)
        yield _row(arena, method, CHOOSING, max(arena.sizes), one.what, arena.seed, one.made, one.digest)
    for size in arena.sizes:
        within = [one for one in candidates if one.size <= size]
        if not within:
            yield _row(arena, method, FINAL, size, NONE, arena.seed, Made(math.nan, math.nan))
            continue
        best = max(within, key=lambda one: one.accuracy)
        for seed in FRESH_SEEDS if best.trained else (arena.seed,):
            made = best.again(seed, size)
            print(arena.name, arena.seed, method, size, best.what, made, file=sys.stderr, flush=True)
            yield _row(arena, method, FINAL, size, best.what, seed, made, best.digest)


def _row(
    arena: Arena, method: str, stage: str, limit: float, what: str, seed: int, made: Made, digest: str = ""
) -> Row:
    numbers = (f"{made.size:.5f}", f"{made.accuracy:.5f}", f"{made.test_accuracy:.5f}")
    values = (arena.name, str(arena.seed), method, stage, f"{limit:g}", what, str(seed), *numbers, digest)
    return dict(zip(COLUMNS, values, strict=True))


def _made(row: Row) -> Made:
    return Made(float(row["size"]), float(row["accuracy"]), float(row["test_accuracy"]))


def show(rows: Sequence[Row]) -> None:
    """Test accuracy by size and method, mean over dense seeds of the mean over fresh seeds; then one JSON line."""
    cells: dict[tuple[str, str, str], dict[int, list[Row]]] = {}
    for row in rows:
        if row["stage"] in (FINAL, DENSE) and row["what"] != NONE:
            own = cells.setdefault((row["workload"], row["limit"], row["method"]), {})
            own.setdefault(int(row["seed"]), []).append(row)
    dense = {
        (workload, seed): float(own[0]["test_accuracy"])
        for (workload, _, method), by_seed in cells.items()
        for seed, own in by_seed.items()
        if method == DENSE
    }
    lines, found = [], []
    for (workload, limit, method), by_seed in sorted(cells.items(), key=lambda c: (c[0][0], -float(c[0][1]), c[0][2])):
        means = {seed: float(np.mean([float(r["test_accuracy"]) for r in own])) for seed, own in by_seed.items()}
        from_dense = [mean - dense[workload, seed] for seed, mean in means.items()]
        size = float(np.mean([float(r["size"]) for own in by_seed.values() for r in own]))
        sd = float(np.std(list(means.values()), ddof=1)) if len(means) > 1 else None
        mean, loss = float(np.mean(list(means.values()))), float(np.mean(from_dense))
        what = "; ".join(sorted({own[0]["what"] for own in by_seed.values()}))
        accuracy = SHARE.spread(mean, sd)
        lines.append([workload, limit, method, len(means), f"{size * 100:.2f}", accuracy, f"{loss * 100:+.2f}", what])
        found.append({
            "workload": workload, "limit": float(limit), "method": method, "n": len(means), "size": round(size, 5),
            "test": round(mean, 5), "test_by_seed": means, "against_dense": round(loss, 5),
        })  # fmt: skip
    columns = ["workload", "limit", "method", "n", "size %", "test %", "against dense, points", "what was chosen"]
    print(render(columns, lines))
    versions = {name: version(name) for name in ("prunefront", "torch", "optuna", "numpy")}
    print(
        json.dumps({"benchmark": "accuracy_at_bytes", "hardware": hardware(), **versions, "nnc": NNC, "cells": found})
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("workload", help="small-fashion, or as `bytes.py` takes it")
    running.add_argument("--seeds", type=seed_range, default="0-2", help="first-last, or one")
    running.add_argument("--sizes", default=",".join(map(str, SIZES)))
    running.add_argument("--methods", default=",".join(METHODS))
    running.add_argument("--trials", type=int, default=TRIALS, help="fine-tunes a method may choose by")
    running.add_argument("--nnc", type=Path, help="a Python that has nncodec; without it NNC is left out")
    running.add_argument("--root", type=Path, default=Path("mlruns"))
    commands.add_parser("show")
    options = parser.parse_args()
    if options.command == "show":
        show(read_rows(TABLE))
        return
    torch.set_num_threads(1)
    methods = [m for m in options.methods.split(",") if options.nnc or not m.startswith("nnc")]
    sizes = [float(size) for size in options.sizes.split(",")]
    for seed in options.seeds:
        run(Arena(options.workload, seed, sizes, options.trials, options.root, options.nnc), methods)


if __name__ == "__main__":
    main()
