"""One size, one granularity: what a guided study finds against the best static allocation, both given 24 fine-tunes.

    python tests/benchmarks/fixed_size.py run fashion --seeds 0-2 --cells 0.10:channel,0.10:fine-grained,floor:channel
    python tests/benchmarks/fixed_size.py show

A cell is a size (`floor`: 1.2 times the smallest the granularity reaches) and a granularity. The guided study tunes 18
policies once and the three best of these twice more; of these three, the highest mean validation accuracy wins. The
static allocators that reach the size share 24 fine-tunes, as many seeds each as that gives, and the highest mean
validation accuracy wins. The scan, which guided has on top, is not counted. Both winners are tuned again with
fresh seeds, and only these runs' test accuracies are compared. Every fine-tune is one line of `fixed_size.csv` beside
this file; a cell that is there is not run again for that seed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from raw_rows import Row, append_rows, read_rows, seed_range
from search_race import MAX_SIZE, TRIALS, WORKLOADS, Contest, guided_in
from study import hardware

from search.cli.text_tables import render
from search.metric import SHARE
from spaces.allocation.allocators import allocate
from spaces.allocation.budget import Unreachable
from spaces.allocation.two_stage import FLOOR_MARGIN
from spaces.policy import PruningPolicy
from spaces.search_space.space import SEED_SCHEDULE, Space

STATIC = ("lamp", "global", "erk", "uniform", "last-layers")
STATIC_SEEDS, FRESH_SEEDS = 1000, range(2000, 2003)
"""First fine-tune seed of the static allocators; those of both winners."""
REPEATED, REPEAT_SEEDS = 3, (1000, 1001)
"""How many guided policies are tuned again, and the seeds."""
GUIDED, ALLOCATED = "guided", "static"
TABLE = Path(__file__).with_suffix(".csv")
COLUMNS = (
    "workload", "seed", "cell", "side", "stage", "source", "tune_seed", "size", "macs", "accuracy", "test_accuracy",
    "seconds", "digest",
)  # fmt: skip
CHOOSING, FINAL = "choosing", "final"


@dataclass(frozen=True)
class Cell:
    """One size and granularity; `size` None is the floor."""

    size: float | None
    granularity: str

    @classmethod
    def parse(cls, text: str) -> Cell:
        """From `0.10:channel` or `floor:channel`."""
        size, granularity = text.split(":")
        return cls(None if size == "floor" else float(size), granularity)

    def __str__(self) -> str:
        return f"{'floor' if self.size is None else f'{self.size:g}'}:{self.granularity}"

    def space(self, contest: Contest) -> Space:
        """The space of this one size; `Unreachable` if the granularity cannot be that small."""
        network, own = contest.subject.network, (self.granularity,)
        size = self.size or Space(network, MAX_SIZE, own).floors[self.granularity] * FLOOR_MARGIN
        return Space(network, size, own, min_size=size)


@dataclass(frozen=True)
class Entry:
    """A policy, and the mean validation accuracy that decides whether it wins; None if it is not in the running."""

    source: str
    policy: PruningPolicy
    accuracy: float | None = None


def run(workload: str, seeds: Sequence[int], cells: Sequence[Cell], root: Path) -> None:
    done = {(row["workload"], int(row["seed"]), row["cell"]) for row in read_rows(TABLE)}
    for seed in seeds:
        contest = Contest(workload, seed, root)
        for cell in cells:
            if (workload, seed, str(cell)) not in done:
                append_rows(TABLE, COLUMNS, _measured(contest, cell))


def _measured(contest: Contest, cell: Cell) -> list[Row]:
    """All rows of a cell, the winners' last."""
    space, rows = cell.space(contest), []
    for side, compete in ((GUIDED, _guided), (ALLOCATED, _static)):
        entries = []
        for entry, tuned in compete(contest, space, cell.granularity):
            entries.append(entry)
            rows += [_row(contest, cell, side, CHOOSING, entry, *pair) for pair in tuned.items()]
        winner = max((e for e in entries if e.accuracy is not None), key=lambda entry: entry.accuracy)
        for seed in FRESH_SEEDS:
            rows.append(_row(contest, cell, side, FINAL, winner, seed, contest.tune(winner.policy, seed)))
    return rows


Entrants = Iterator[tuple[Entry, dict[int, Any]]]
"""Entries, each with what its fine-tunes gave by seed."""


def _guided(contest: Contest, space: Space, granularity: str) -> Entrants:
    evidence = {granularity: contest.evidence(contest.profile)[granularity]}
    found = []
    for proposed in islice(guided_in(space, contest, evidence), TRIALS - REPEATED * len(REPEAT_SEEDS)):
        tuned = contest.tune(proposed.policy)
        proposed.learn(tuned)
        found.append((tuned.accuracy, Entry(proposed.source, proposed.policy), {contest.seed: tuned}))
    found.sort(key=lambda one: -one[0])
    for _, entry, tuned in found[:REPEATED]:
        tuned |= {seed: contest.tune(entry.policy, seed) for seed in REPEAT_SEEDS}
        yield replace(entry, accuracy=float(np.mean([t.accuracy for t in tuned.values()]))), tuned
    for _, entry, tuned in found[REPEATED:]:
        yield entry, tuned


def _static(contest: Contest, space: Space, granularity: str) -> Entrants:
    policies = dict(_allocated(contest, space, granularity))
    seeds = range(STATIC_SEEDS, STATIC_SEEDS + TRIALS // len(policies))
    for name, policy in policies.items():
        tuned = {seed: contest.tune(policy, seed) for seed in seeds}
        yield Entry(name, policy, float(np.mean([t.accuracy for t in tuned.values()]))), tuned


def _allocated(contest: Contest, space: Space, granularity: str) -> Iterator[tuple[str, PruningPolicy]]:
    evidence, target = contest.evidence(None)[granularity], space.target(space.max_size, granularity)
    for name in STATIC:
        try:
            sparsity = allocate(name, target, evidence)
        except Unreachable:
            continue
        yield name, PruningPolicy(sparsity, granularity, criterion=space.criterion, schedule=SEED_SCHEDULE)


def _row(contest: Contest, cell: Cell, side: str, stage: str, entry: Entry, seed: int, tuned: Any) -> Row:
    shares = {name: f"{getattr(tuned, name):.5f}" for name in ("size", "macs", "accuracy", "test_accuracy")}
    values = (contest.workload, str(contest.seed), str(cell), side, stage, entry.source, str(seed))
    return dict(zip(COLUMNS, values, strict=False)) | {
        **shares,
        "seconds": f"{tuned.seconds:.2f}",
        "digest": entry.policy.digest,
    }


@dataclass(frozen=True)
class Difference:
    """Guided minus static in test accuracy, a share: mean and standard error (None for one value) over `n` values."""

    n: int
    mean: float
    error: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Difference:
        count = len(values)
        error = float(np.std(values, ddof=1)) / count**0.5 if count > 1 else None
        return cls(count, float(np.mean(values)), error)

    def __str__(self) -> str:
        return f"{self.mean * 100:+.2f}" + ("" if self.error is None else f" ± {self.error * 100:.2f}")


@dataclass(frozen=True)
class Outcome:
    """Both winners of a cell in one contest.

    Attributes:
        sources: side -> what the winner came from.
        tests: side -> test accuracies, in the order of the fresh seeds.
    """

    sources: Mapping[str, str]
    tests: Mapping[str, list[float]]

    @property
    def difference(self) -> Difference:
        """Over the fresh seeds, which both winners share."""
        return Difference.of([g - s for g, s in zip(self.tests[GUIDED], self.tests[ALLOCATED], strict=True)])


def outcomes(rows: Sequence[Row]) -> dict[tuple[str, str], dict[int, Outcome]]:
    """(workload, cell) -> seed -> outcome."""
    finals: dict[tuple[str, str, int], dict[str, list[Row]]] = {}
    for row in rows:
        if row["stage"] == FINAL:
            key = row["workload"], row["cell"], int(row["seed"])
            finals.setdefault(key, {}).setdefault(row["side"], []).append(row)
    found: dict[tuple[str, str], dict[int, Outcome]] = {}
    for (workload, cell, seed), sides in finals.items():
        sources = {side: own[0]["source"] for side, own in sides.items()}
        by_seed = {side: sorted(own, key=lambda row: int(row["tune_seed"])) for side, own in sides.items()}
        tests = {side: [float(row["test_accuracy"]) for row in own] for side, own in by_seed.items()}
        found.setdefault((workload, cell), {})[seed] = Outcome(sources, tests)
    return found


def show(rows: Sequence[Row]) -> None:
    """Each contest, then each cell over its contests, then one JSON line."""
    found = outcomes(rows)
    columns = ["workload", "cell", "seed", "guided from", "test", "static", "test", "difference, points"]
    print("test accuracy of both winners, mean ± sd over fresh fine-tune seeds; difference ± standard error\n")
    print(render(columns, [_line(*key, seed, o) for key, by_seed in found.items() for seed, o in by_seed.items()]))
    totals = {key: Difference.of([o.difference.mean for o in own.values()]) for key, own in found.items()}
    print("\nover contests: mean difference ± standard error, one value a contest\n")
    print(render(["workload", "cell", "n", "difference, points"], [[*key, d.n, str(d)] for key, d in totals.items()]))
    cells = [
        {"workload": workload, "cell": cell, "n": d.n, "points": _points(d.mean), "standard_error": _points(d.error)}
        for (workload, cell), d in totals.items()
    ]
    versions = {name: version(name) for name in ("torch", "optuna")}
    print(json.dumps({"benchmark": "fixed_size", "hardware": hardware(), **versions, "cells": cells}))


def _line(workload: str, cell: str, seed: int, outcome: Outcome) -> list[object]:
    sides = []
    for side in (GUIDED, ALLOCATED):
        values = outcome.tests[side]
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
        sides += [outcome.sources[side], SHARE.spread(float(np.mean(values)), sd)]
    return [workload, cell, seed, *sides, str(outcome.difference)]


def _points(share: float | None) -> float | None:
    return None if share is None else round(share * 100, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("workload", choices=WORKLOADS)
    running.add_argument("--seeds", type=seed_range, default="0-2", help="first-last, or one")
    running.add_argument("--cells", required=True, help="SIZE:GRANULARITY,..., SIZE a share or floor")
    running.add_argument("--root", type=Path, default=Path("mlruns"))
    commands.add_parser("show")
    options = parser.parse_args()
    if options.command == "run":
        cells = [Cell.parse(text) for text in options.cells.split(",")]
        run(options.workload, options.seeds, cells, options.root)
    else:
        show(read_rows(TABLE))


if __name__ == "__main__":
    main()
