"""How small within 0.5 and 1.0 points of dense: guided search, LAMP, global magnitude and dense int8.

    python tests/benchmarks/smallest.py run fashion --seeds 0-0
    python tests/benchmarks/smallest.py show

Each method looks for the smallest encoded size whose mean validation accuracy is within so many points of the dense
model's, with the fine-tunes of one study. Guided search proposes 18 policies as `--min-accuracy` does; those that meet
the wish are tuned twice more, smallest first, until a mean meets it too or the fine-tunes are spent. A static allocator
bisects the size, three fine-tunes a step; int8 needs none. What is found is tuned again with fresh seeds, and only
these runs' test accuracies are shown. Every fine-tune is one line of `smallest.csv` beside this file; a wish that is
there is not run again for that seed and method.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice, product
from pathlib import Path

import numpy as np
from fixed_size import CHOOSING, FINAL, FRESH_SEEDS, REPEAT_SEEDS, REPEATED, STATIC_SEEDS
from raw_rows import Row, append_rows, read_rows, seed_range
from search_race import TRIALS, WORKLOADS, Contest, Tuned, guided_in
from study import hardware
from torch import nn

from pruning.copying import copy_model
from pruning.file.container import encode
from pruning.file.stored_form import to_stored_form_
from pruning.sparse_file import dense_bytes
from search.cli.text_tables import render
from search.metric import SHARE
from search.training.scoring import score
from spaces.allocation.allocators import allocate
from spaces.policy import PruningPolicy
from spaces.search_space.space import SEED_SCHEDULE, Space

POINTS = (0.005, 0.010)
"""Wishes: accuracy to be within so much of the dense model's."""
LIMIT = 0.6
"""Largest encoded size: beyond what fine-tunes as short as these need to be within the wishes."""
GRANULARITY = "fine-grained"
"""Of the static allocators: the one whose files are smaller by far at these accuracies."""
TUNES = 3
"""Fine-tunes a static allocator spends on one size, as the finals do."""
TABLE = Path(__file__).with_suffix(".csv")
COLUMNS = (
    "workload", "seed", "points", "method", "stage", "source", "tune_seed", "size", "macs", "accuracy",
    "test_accuracy", "seconds", "digest",
)  # fmt: skip


@dataclass
class Tried:
    """A policy and its fine-tunes by seed; without a policy, the dense model in another form."""

    source: str
    policy: PruningPolicy | None
    tunes: dict[int, Tuned] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """Mean on validation data."""
        return float(np.mean([tuned.accuracy for tuned in self.tunes.values()]))

    @property
    def size(self) -> float:
        return next(iter(self.tunes.values())).size

    def tune(self, contest: Contest, seeds: Sequence[int]) -> None:
        self.tunes |= {seed: contest.tune(self.policy, seed) for seed in seeds}


@dataclass(frozen=True)
class Looked:
    """What a method tried, and what of it it takes for the smallest that meets the wish; None if nothing does."""

    tried: Sequence[Tried]
    found: Tried | None


def guided(contest: Contest, least: float) -> Looked:
    """A study with the wish `--min-accuracy`."""
    evidence, tried = contest.evidence(contest.profile), []
    proposals = guided_in(_space(contest), contest, evidence, largest_error=1 - least)
    for proposed in islice(proposals, TRIALS - REPEATED * len(REPEAT_SEEDS)):
        tuned = contest.tune(proposed.policy)
        proposed.learn(tuned)
        tried.append(Tried(proposed.source, proposed.policy, {contest.seed: tuned}))
    within = sorted((one for one in tried if one.accuracy >= least), key=lambda one: one.size)
    for one in within[:REPEATED]:
        one.tune(contest, REPEAT_SEEDS)
        if one.accuracy >= least:
            return Looked(tried, one)
    return Looked(tried, None)


def static(name: str) -> Callable[[Contest, float], Looked]:
    """An allocator that bisects the logarithm of the size, the limit first."""

    def look(contest: Contest, least: float) -> Looked:
        evidence, space = contest.evidence(None)[GRANULARITY], _space(contest)
        too_small, fits = np.log(space.size_range)
        tried, found, size = [], None, fits
        for _ in range(TRIALS // TUNES):
            sparsity = allocate(name, space.target(float(np.exp(size)), GRANULARITY), evidence)
            one = Tried(name, PruningPolicy(sparsity, GRANULARITY, schedule=SEED_SCHEDULE))
            one.tune(contest, range(STATIC_SEEDS, STATIC_SEEDS + TUNES))
            tried.append(one)
            if one.accuracy >= least:
                found, fits = one, size
            elif found is None:
                break
            else:
                too_small = size
            size = (too_small + fits) / 2
        return Looked(tried, found)

    return look


def _space(contest: Contest) -> Space:
    return Space(contest.subject.network, LIMIT)


def int8(contest: Contest, least: float) -> Looked:
    """The dense model with 8-bit weights, in the file of version 2."""
    model = copy_model(contest.subject.dense)
    return _untuned(contest, least, "int8", model, len(encode(model.state_dict(), to_stored_form_(model, 8))))


def dense(contest: Contest, least: float) -> Looked:
    """The dense model itself, which every row is compared with."""
    return _untuned(contest, least, "dense", contest.subject.dense, dense_bytes(contest.subject.dense))


def _untuned(contest: Contest, least: float, source: str, model: nn.Module, size: int) -> Looked:
    workload, whole = contest.subject.workload, dense_bytes(contest.subject.dense)
    accuracies = [score(model, split, workload).accuracy for split in (workload.validation, workload.test)]
    one = Tried(source, None, {contest.seed: Tuned(*accuracies, size / whole, 1.0, 0.0)})
    return Looked([one], one if one.accuracy >= least else None)


METHODS: Mapping[str, Callable[[Contest, float], Looked]] = {
    "dense": dense,
    "guided": guided,
    "lamp": static("lamp"),
    "global": static("global"),
    "int8": int8,
}


def run(workload: str, seeds: Sequence[int], root: Path) -> None:
    for seed in seeds:
        contest = Contest(workload, seed, root)
        for points, method in product(POINTS, METHODS):
            done = {(r["workload"], r["seed"], r["points"], r["method"]) for r in read_rows(TABLE)}
            if (workload, str(seed), f"{points:g}", method) not in done:
                append_rows(TABLE, COLUMNS, list(_rows(contest, points, method)))


def _rows(contest: Contest, points: float, method: str) -> Iterator[Row]:
    looked = METHODS[method](contest, 1 - contest.dense_error - points)
    head = (contest.workload, str(contest.seed), f"{points:g}", method)
    for one in looked.tried:
        yield from (_row(head, CHOOSING, one, *pair) for pair in one.tunes.items())
    if looked.found is None:
        return
    if looked.found.policy is None:
        yield from (_row(head, FINAL, looked.found, *pair) for pair in looked.found.tunes.items())
    else:
        for seed in FRESH_SEEDS:
            yield _row(head, FINAL, looked.found, seed, contest.tune(looked.found.policy, seed))


def _row(head: tuple[str, ...], stage: str, one: Tried, seed: int, tuned: Tuned) -> Row:
    shares = (f"{getattr(tuned, name):.5f}" for name in ("size", "macs", "accuracy", "test_accuracy"))
    digest = one.policy.digest if one.policy else ""
    return dict(
        zip(COLUMNS, (*head, stage, one.source, str(seed), *shares, f"{tuned.seconds:.2f}", digest), strict=True)
    )


def show(rows: Sequence[Row]) -> None:
    """What each method found, then one JSON line."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        own = found.setdefault(tuple(row[name] for name in COLUMNS[:4]), [])
        own += [row] if row["stage"] == FINAL else []
    body, values = [], []
    for (workload, seed, points, method), finals in found.items():
        head = [workload, seed, f"{float(points) * 100:g}", method]
        if not finals:
            body.append([*head, None, "none within", None, None])
            continue
        tests, whole = _tests(finals), _tests(found[workload, seed, points, "dense"])
        mean, sd = float(np.mean(tests)), float(np.std(tests, ddof=1)) if len(tests) > 1 else None
        size, below = float(finals[0]["size"]), float(np.mean(whole)) - mean
        source = finals[0]["source"]
        body.append([*head, f"{size * 100:.2f}", source, SHARE.spread(mean, sd), f"{below * 100:.2f}"])
        numbers = {"size": size, "n": len(tests), "test": round(mean, 5), "below_dense": round(below, 5)}
        values.append(dict(zip(COLUMNS[:4], head, strict=True)) | {"source": source} | numbers)
    columns = ["workload", "seed", "points", "method", "encoded %", "from", "test", "points below dense"]
    print("smallest found within so many points of dense on validation data; test of fresh fine-tunes, mean ± sd\n")
    print(render(columns, body))
    versions = {name: version(name) for name in ("torch", "optuna")}
    print(json.dumps({"benchmark": "smallest", "hardware": hardware(), **versions, "found": values}))


def _tests(rows: Sequence[Row]) -> list[float]:
    return [float(row["test_accuracy"]) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("workload", choices=WORKLOADS)
    running.add_argument("--seeds", type=seed_range, default="0-0", help="first-last, or one")
    running.add_argument("--root", type=Path, default=Path("mlruns"))
    commands.add_parser("show")
    options = parser.parse_args()
    if options.command == "run":
        run(options.workload, options.seeds, options.root)
    else:
        show(read_rows(TABLE))


if __name__ == "__main__":
    main()
