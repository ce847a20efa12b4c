"""What is removed, and how fast: accuracy after equal fine-tunes against encoded size.

    python tests/benchmarks/granularities.py run fashion --seeds 0-2 [--part 1/2]
    python tests/benchmarks/granularities.py show [--figure granularities.png]

The first question is the granularity, under one cubic ramp; the second the schedule, at two sizes. One rule shares a
size out over the layers: LAMP on the squared norms of the granularity's units. `1:4` and `2:4` leave nothing to share
out and have one size each. `removal + masks` removes channels, by LAMP, down to the geometric mean of the dense and
the wanted size, then lands on that by fine-grained masks, by LAMP of the dense weights. Sizes that a granularity does
not reach are left out. A seed draws images, dense model and data order for all; every fine-tune is one line of
`granularities.csv` beside this file, and what is there is not run again. `--part i/n` runs one line in n, for
processes side by side. Nothing is chosen by accuracy, so the test accuracies are what is compared.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from raw_rows import Row, append_rows, read_rows, seed_range
from search_race import WORKLOADS, Contest, Tuned
from study import hardware

from pruning.importance.scores import unit_importance
from search.cli.text_tables import render
from search.metric import SHARE
from search.results.figures import COLOURS, MARKERS, new_figure, png_bytes
from search.training.scoring import score
from spaces.allocation.allocators import allocate
from spaces.allocation.budget import Target, Unreachable
from spaces.allocation.importance import AllocationInputs
from spaces.cost.footprint import dense_footprint, footprint, relative_cost
from spaces.granularity import pattern_of
from spaces.policy import PruningPolicy
from spaces.schedule import Schedule
from spaces.wording import percent

SIZES = (0.40, 0.25, 0.15, 0.09, 0.055)
"""Encoded shares of the dense file, log-spaced; the largest is for patterns, which reach little less."""
DENSE, COMBINED = "dense", "removal + masks"
SIZED = ("fine-grained", "vector", "kernel", "channel", "*:4", COMBINED)
FIXED = ("2:4", "1:4")
CUBIC = Schedule("polynomial", 3.0)
SCHEDULES = {"one-shot": Schedule("one-shot"), "E = 1": Schedule("polynomial", 1.0), "E = 3": CUBIC}
SCHEDULED, SCHEDULED_SIZES = ("fine-grained", "channel"), (0.15, 0.055)
ALLOCATOR = "lamp"
HALVINGS = 20
"""Of the mask's part of a combined size, on a log scale: to about one weight in a million."""
TABLE = Path(__file__).with_suffix(".csv")
COLUMNS = (
    "workload", "seed", "granularity", "target", "schedule", "size", "macs", "accuracy", "test_accuracy", "seconds",
    "digest",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """What is fine-tuned once a seed; `size` None is the one size of a fixed pattern, or of the dense model."""

    granularity: str
    size: float | None = None
    schedule: str = "E = 3"

    @property
    def key(self) -> tuple[str, str, str]:
        """As in the table."""
        return self.granularity, "" if self.size is None else f"{self.size:g}", self.schedule


def cells() -> list[Cell]:
    """Of both questions, each once; the dense model first."""
    first = [Cell(word, size) for size, word in product(SIZES, SIZED)]
    second = [Cell(*asked) for asked in product(SCHEDULED, SCHEDULED_SIZES, SCHEDULES)]
    return list(dict.fromkeys([Cell(DENSE), *map(Cell, FIXED), *first, *second]))


def policy_of(contest: Contest, cell: Cell) -> PruningPolicy:
    """The policy of a cell, within its size.

    Raises:
        Unreachable: the granularity does not get as small.
    """
    schedule = SCHEDULES[cell.schedule]
    if cell.size is None:
        pattern = pattern_of(cell.granularity)
        layers = Target(contest.subject.network, 1.0, cell.granularity).layers
        sparsity = {layer.name: 1 - pattern.keep / pattern.of for layer in layers}
        return PruningPolicy(sparsity, cell.granularity, schedule=schedule)
    if cell.granularity == COMBINED:
        return _combined(contest, cell.size, schedule)
    return PruningPolicy(_allocation(contest, cell.granularity)(cell.size), cell.granularity, schedule=schedule)


def _allocation(contest: Contest, granularity: str) -> Callable[[float], dict[str, float]]:
    """Size -> sparsity by layer."""
    subject = contest.subject
    evidence = AllocationInputs(unit_importance(subject.dense, subject.graph, granularity))
    return lambda size: allocate(ALLOCATOR, Target(subject.network, size, granularity), evidence)


def _combined(contest: Contest, size: float, schedule: Schedule) -> PruningPolicy:
    """Channels go to the square root of the size; the masks are the largest that end within it."""
    network, masks = contest.subject.network, _allocation(contest, "fine-grained")
    removal, dense = _allocation(contest, "channel")(math.sqrt(size)), dense_footprint(network)

    def at(share: float) -> PruningPolicy:
        return PruningPolicy(masks(share), removal=removal, schedule=schedule)

    def fits(policy: PruningPolicy) -> bool:
        return relative_cost(footprint(network, policy), dense).encoded <= size

    small, large = math.log(Target(network, 1.0, "fine-grained").floor * 1.01), 0.0
    if not fits(at(math.exp(small))):
        raise Unreachable(f"size {size:g} cannot be reached by {COMBINED}")
    for _ in range(HALVINGS):
        middle = (small + large) / 2
        small, large = (middle, large) if fits(at(math.exp(middle))) else (small, middle)
    return at(math.exp(small))


def run(workload: str, seeds: Sequence[int], root: Path, part: tuple[int, int] = (1, 1)) -> None:
    """Fine-tune what the table lacks; of all its lines, those of one part."""
    contests = {seed: Contest(workload, seed, root) for seed in seeds}
    own = list(product(seeds, cells()))[part[0] - 1 :: part[1]]
    done = {_key(row) for row in read_rows(TABLE)}
    for seed, cell in own:
        if (workload, str(seed), *cell.key) not in done:
            append_rows(TABLE, COLUMNS, _measured(contests[seed], cell))


def _measured(contest: Contest, cell: Cell) -> Iterator[Row]:
    """The row of a cell; none if its size cannot be reached."""
    head = (contest.workload, str(contest.seed), *cell.key)
    try:
        policy = None if cell.granularity == DENSE else policy_of(contest, cell)
    except Unreachable:
        return
    tuned = contest.tune(policy) if policy else _dense(contest)
    numbers = (f"{getattr(tuned, name):.5f}" for name in ("size", "macs", "accuracy", "test_accuracy"))
    digest = policy.digest if policy else ""
    yield dict(zip(COLUMNS, (*head, *numbers, f"{tuned.seconds:.2f}", digest), strict=True))


def _dense(contest: Contest) -> Tuned:
    workload, model = contest.subject.workload, contest.subject.dense
    accuracies = [score(model, split, workload).accuracy for split in (workload.validation, workload.test)]
    return Tuned(*accuracies, 1.0, 1.0, 0.0)


def _key(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in COLUMNS[:5])


@dataclass(frozen=True)
class Measured:
    """A cell over its seeds: shares of the dense model, and test accuracy by seed."""

    size: float
    macs: float
    tests: Mapping[int, float]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Measured:
        """Mean size and MACs of these rows."""
        size, macs = (float(np.mean([float(row[name]) for row in rows])) for name in ("size", "macs"))
        return cls(size, macs, {int(row["seed"]): float(row["test_accuracy"]) for row in rows})

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.tests.values())))

    @property
    def sd(self) -> float | None:
        """Over seeds; None of one."""
        return float(np.std(list(self.tests.values()), ddof=1)) if len(self.tests) > 1 else None

    def less(self, other: Measured) -> tuple[float, float | None]:
        """Mean and standard deviation of the differences over the seeds both have."""
        found = [accuracy - other.tests[seed] for seed, accuracy in self.tests.items() if seed in other.tests]
        return float(np.mean(found)), float(np.std(found, ddof=1)) if len(found) > 1 else None


def measured(rows: Sequence[Row], workload: str) -> dict[Cell, Measured]:
    """Cells of one workload that have rows, in the order of `cells`."""
    own: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row["workload"] == workload:
            own.setdefault(_key(row)[2:], []).append(row)
    return {cell: Measured.of(own[cell.key]) for cell in cells() if cell.key in own}


def show(rows: Sequence[Row], figure: Path | None) -> None:
    """Both tables of each workload, the figure of the first, then one JSON line."""
    results = {workload: measured(rows, workload) for workload in dict.fromkeys(row["workload"] for row in rows)}
    for workload, found in results.items():
        print(f"{workload}: by granularity, cubic ramp; test accuracy, mean ± sd over n seeds\n")
        print(render(["granularity", "encoded %", "MACs %", "n", "test", "less dense, points"], _by_granularity(found)))
        print(f"\n{workload}: by schedule; test accuracy, and its difference to one-shot seed by seed\n")
        columns = ["granularity", "target %", "schedule", "encoded %", "n", "test", "less one-shot, points"]
        print(render(columns, _by_schedule(found)), end="\n\n")
    if figure is not None:
        draw(next(iter(results.values())), figure)
    versions = {name: version(name) for name in ("torch", "torchvision")}
    summary = {workload: [_summary(*pair) for pair in found.items()] for workload, found in results.items()}
    print(json.dumps({"benchmark": "granularities", "hardware": hardware(), **versions, "workloads": summary}))


def _by_granularity(found: Mapping[Cell, Measured]) -> Iterator[list[object]]:
    for word in (DENSE, *SIZED, *FIXED):
        for cell, one in found.items():
            if cell.granularity == word and SCHEDULES[cell.schedule] == CUBIC:
                less = one.less(found[Cell(DENSE)]) if Cell(DENSE) in found and word != DENSE else None
                yield [word, percent(one.size)[:-2], percent(one.macs)[:-2], *_tests(one), less and points(*less)]


def _by_schedule(found: Mapping[Cell, Measured]) -> Iterator[list[object]]:
    for word, size, schedule in product(SCHEDULED, SCHEDULED_SIZES, SCHEDULES):
        one, base = (found.get(Cell(word, size, name)) for name in (schedule, "one-shot"))
        if one is not None:
            less = one.less(base) if base and one is not base else None
            head = [word, f"{size * 100:g}", schedule, percent(one.size)[:-2]]
            yield [*head, *_tests(one), less and points(*less)]


def _tests(one: Measured) -> list[object]:
    return [len(one.tests), SHARE.spread(one.mean, one.sd)]


def points(mean: float, sd: float | None) -> str:
    """A difference of shares with its standard deviation.

    >>> points(-0.0125, 0.003)
    '-1.25 ± 0.30'
    """
    return f"{mean * 100:+.2f}" + ("" if sd is None else f" ± {sd * 100:.2f}")


def _summary(cell: Cell, one: Measured) -> dict[str, Any]:
    head = {"granularity": cell.granularity, "target": cell.size, "schedule": cell.schedule, "n": len(one.tests)}
    rounded = {"size": one.size, "macs": one.macs, "test": one.mean, "test_sd": one.sd}
    return head | {name: None if value is None else round(value, 5) for name, value in rounded.items()}


def draw(found: Mapping[Cell, Measured], file: Path) -> None:
    """Accuracy against size by granularity, and against the schedule; bars are one standard deviation over seeds."""
    figure, (left, right) = new_figure(11, 5.4, columns=2, width_ratios=(3, 2))
    for word in (*SIZED, *FIXED):
        own = [one for cell, one in found.items() if cell.granularity == word and SCHEDULES[cell.schedule] == CUBIC]
        if own:
            _bars(left, [one.size * 100 for one in own], own, word, "none" if word in FIXED else "-", word)
    if Cell(DENSE) in found:
        left.axhline(found[Cell(DENSE)].mean * 100, color="0.4", linestyle=":", label=DENSE)
    left.set_xscale("log")
    left.set_xlabel("encoded size, % of the dense model's (log scale)")
    left.set_ylabel("test accuracy, %")
    left.set_title("By granularity, cubic ramp", fontsize=11)
    left.set_xticks([100 * size for size in SIZES], [f"{100 * size:g}" for size in SIZES])
    left.minorticks_off()
    for (word, size), line in zip(product(SCHEDULED, SCHEDULED_SIZES), ("-", "--") * len(SCHEDULED), strict=True):
        places = [n for n, name in enumerate(SCHEDULES) if Cell(word, size, name) in found]
        own = [found[Cell(word, size, name)] for name in SCHEDULES if Cell(word, size, name) in found]
        if own:
            _bars(right, places, own, word, line, f"{word}, {size * 100:g} % of the size")
    right.set_xlabel("schedule; E is the exponent of a polynomial")
    right.set_title("By schedule", fontsize=11)
    right.set_xticks(range(len(SCHEDULES)), list(SCHEDULES))
    for axes, columns in ((left, 5), (right, 2)):
        axes.grid(alpha=0.3)
        axes.legend(
            frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=columns,
            columnspacing=1, handletextpad=0.4,
        )  # fmt: skip
    figure.suptitle(
        "What a granularity and a schedule keep of the accuracy: mean and one deviation of seeds", fontsize=12
    )
    file.write_bytes(png_bytes(figure))


def _bars(axes: Any, places: Sequence[float], own: Sequence[Measured], word: str, line: str, label: str) -> None:
    means, sds = [one.mean * 100 for one in own], [(one.sd or 0.0) * 100 for one in own]
    style = {"color": COLOURS.get(word, "black"), "marker": MARKERS.get(word, "X"), "linestyle": line}
    axes.errorbar(places, means, sds, markersize=6, mec="white", mew=0.6, capsize=3, label=label, **style)


def _part(text: str) -> tuple[int, int]:
    """From `1/2`: the first of two."""
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"a part is I/N with 1 <= I <= N, such as 1/2, got {text!r}")
    return int(number), int(count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("workload", choices=WORKLOADS)
    running.add_argument("--seeds", type=seed_range, default="0-2", help="first-last, or one")
    running.add_argument("--part", type=_part, default=(1, 1), help="I/N: every N-th line, from the I-th")
    running.add_argument("--root", type=Path, default=Path("mlruns"))
    showing = commands.add_parser("show")
    showing.add_argument("--figure", type=Path, help="a PNG to write: accuracy against size, and against the schedule")
    options = parser.parse_args()
    if options.command == "run":
        run(options.workload, options.seeds, options.root, options.part)
    else:
        show(read_rows(TABLE), options.figure)


if __name__ == "__main__":
    main()
