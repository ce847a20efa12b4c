"""A race of search methods: hypervolume against fine-tunes and wall-clock, same network, data and recipe for all.

    python tests/benchmarks/search_race.py run digits --seeds 0-9 [--methods guided,tpe+seeds,...]
    python tests/benchmarks/search_race.py run fashion --seeds 0-4 --methods guided,tpe,tpe+seeds,random+seeds
    python tests/benchmarks/search_race.py run digits --seeds 0-4 --methods guided,tpe --trials 72
    python tests/benchmarks/search_race.py run digits --seeds 0-4 --methods guided,tpe,tpe+seeds,static --bits 8,6,4,3
    python tests/benchmarks/search_race.py run deep-digits --seeds 0-3 --methods 'guided,guided +whole,guided inverted'
    python tests/benchmarks/search_race.py show [--figure race.png]

A contest is one workload and one seed: split, dense checkpoint, data order. In it every method spends the same number
of fine-tunes; equal policies are fine-tuned once, their seconds counted for each method that asked. Every trial is one
line of `search_race.csv` beside this file; what is there is not run again, so a race resumes, can be split, and can be
made longer for the methods that propose one trial after the other.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count, islice, product
from pathlib import Path
from typing import Any

import deep_digits
import numpy as np
import optuna
import torch
from race_table import Rules, show
from raw_rows import append_rows, read_rows, seed_range
from sklearn.model_selection import train_test_split
from small_fashion import small_fashion

import search
import search.proposals.pool
from pruning.batchnorm import recalibrate_
from pruning.importance.scores import unit_importance
from pruning.prune import prune
from search.proposals.guide import GuidedProposer
from search.proposals.sampler import make_sampler
from search.training.dense_model import DenseModel, dense_model
from search.training.evaluate import PreparedModel, evaluate_policy
from search.training.profile_cache import cached_profile
from search.training.scoring import score
from search.workloads import Workload, get_workload
from spaces.allocation.budget import Unreachable, fit_to_budget
from spaces.allocation.importance import AllocationInputs
from spaces.cost.footprint import dense_footprint, footprint, relative_cost
from spaces.policy import PruningPolicy
from spaces.search_space.initial import initial_points
from spaces.search_space.projection import Projector
from spaces.search_space.space import SEED_SCHEDULE, Space
from spaces.sensitivity import Profile

TRIALS, MAX_SIZE = 24, 0.25
FLOATS = (32,)
REFERENCE = np.array([0.5, math.log(MAX_SIZE * 1.1), 1.05])
"""Error, log encoded size, MACs: frozen."""
TARGETS = (0.90, 0.95, 0.98)
"""Shares of the reference hypervolume, which the union front of all methods of a contest has."""
TABLE = Path(__file__).with_suffix(".csv")
COLUMNS = (
    "workload", "seed", "method", "trial", "source", "granularity", "size", "macs", "accuracy", "test_accuracy",
    "seconds_before", "seconds_proposing", "seconds_tuning", "digest",
)  # fmt: skip
RAW_ATTEMPTS = 400
"""Samples a raw sampler may reject unpaid before its trial is given up."""
EAGLE_CANDIDATES = 20
WHOLE = "guided +whole"


def small_digits(seed: int) -> Workload:
    """The digits workload with its images dealt out anew."""
    whole = get_workload("digits")
    splits = {name: getattr(whole, name) for name in ("fit", "calibration", "validation", "test")}
    images, labels = (torch.cat([split[part] for split in splits.values()]) for part in (0, 1))
    rest, dealt = list(range(len(labels))), {}
    for name in ("test", "validation", "calibration"):
        count = len(splits[name][1])
        rest, taken = train_test_split(rest, test_size=count, stratify=labels[rest], random_state=seed)
        dealt[name] = (images[taken], labels[taken])
    return replace(whole, name=f"digits-{seed}", fit=(images[rest], labels[rest]), **dealt)


def deep(seed: int) -> Workload:
    """A network of 40 layers, which is scanned briefly, on the digits of that contest."""
    plain = small_digits(seed)
    recipe = replace(plain.recipe, dense_epochs=10)
    return replace(plain, name=f"deep-digits-{seed}", build_model=deep_digits.network, recipe=recipe)


WORKLOADS: Mapping[str, Callable[[int], Workload]] = {
    "digits": small_digits,
    "fashion": small_fashion,
    "deep-digits": deep,
}


@dataclass(frozen=True)
class Tuned:
    """A policy after its fine-tune; accuracies are 0 if it failed."""

    accuracy: float
    test_accuracy: float
    size: float
    macs: float
    seconds: float


class Contest:
    """One workload, split, dense checkpoint and data order, with what all methods may use."""

    def __init__(self, workload: str, seed: int, root: Path, bits: Sequence[int] = FLOATS) -> None:
        self.workload, self.seed, self.root, self.bits = workload, seed, root, tuple(bits)
        self._cache = root / f"race-{workload}-{seed}.json"
        self._tuned = self._stored()

    @property
    def label(self) -> str:
        """In the table: the workload, and the bits of the space where it has a choice."""
        return self.workload if self.bits == FLOATS else f"{self.workload} {'/'.join(map(str, self.bits))} bits"

    @cached_property
    def dense(self) -> DenseModel:
        return dense_model(WORKLOADS[self.workload](self.seed), self.seed, self.root / "cache")

    @cached_property
    def subject(self) -> PreparedModel:
        return PreparedModel.of(WORKLOADS[self.workload](self.seed), self.dense.model)

    @cached_property
    def space(self) -> Space:
        return Space(self.subject.network, MAX_SIZE, bits=self.bits)

    @cached_property
    def profile(self) -> Profile:
        criterion, usable = self.space.criterion, self.space.usable
        return cached_profile(self.subject, self.dense, criterion, usable, self.root / "cache", bits=self.bits)

    @cached_property
    def whole_profile(self) -> Profile:
        """The same, or what a whole scan finds where that is a brief one; its files are others."""
        criterion, usable, cache = self.space.criterion, self.space.usable, self.root / "whole"
        return cached_profile(self.subject, self.dense, criterion, usable, cache, bits=self.bits, whole=True)

    @cached_property
    def dense_error(self) -> float:
        return 1 - score(self.subject.dense, self.subject.workload.validation, self.subject.workload).accuracy

    def evidence(self, profile: Profile | None) -> dict[str, AllocationInputs]:
        return {g: self._evidence(g, profile) for g in self.space.usable}

    def _evidence(self, granularity: str, profile: Profile | None) -> AllocationInputs:
        scores = unit_importance(self.subject.dense, self.subject.graph, granularity)
        return AllocationInputs.of(self.subject.network, granularity, scores, profile)

    def tune(self, policy: PruningPolicy, seed: int | None = None) -> Tuned:
        """Fine-tune and test, or recall it; `seed` of the fine-tune is the contest's unless given."""
        seed = self.seed if seed is None else seed
        key = policy.digest if seed == self.seed else f"{policy.digest}@{seed}"
        if key not in self._tuned:
            self._tuned = self._stored() | self._tuned | {key: self._tune(policy, seed)}
            fresh = self._cache.with_suffix(f".{os.getpid()}")
            fresh.write_text(json.dumps(self._tuned))
            fresh.replace(self._cache)  # other processes read whole files
        return Tuned(*self._tuned[key])

    def _tune(self, policy: PruningPolicy, seed: int) -> list[float]:
        began = time.perf_counter()
        recipe, workload = self.subject.workload.recipe, self.subject.workload
        evaluation = evaluate_policy(self.subject, policy, recipe.trial_epochs, seed)
        seconds = time.perf_counter() - began
        cost = relative_cost(footprint(self.subject.network, policy), dense_footprint(self.subject.network))
        good, found = evaluation.model is not None, evaluation.result
        test = score(evaluation.model, workload.test, workload).accuracy if good else 0.0
        size = found.shares.encoded if good else cost.encoded
        return [found.accuracy if good else 0.0, test, size, cost.macs, seconds]

    def _stored(self) -> dict[str, list[float]]:
        return json.loads(self._cache.read_text()) if self._cache.is_file() else {}


@dataclass(frozen=True)
class Proposed:
    """What a method wants fine-tuned; `learn` is told the result."""

    policy: PruningPolicy
    source: str
    learn: Callable[[Tuned], None] = lambda tuned: None


Method = Callable[[Contest], Iterator[Proposed]]


def by_sampler(name: str, seeded: bool) -> Method:
    """A stock sampler on our space, every proposal within the limit."""

    def propose(contest: Contest) -> Iterator[Proposed]:
        space, projector, study = contest.space, Projector(contest.space), _study()
        seeds = _seeds(contest) if seeded else []
        for number in count():
            study.sampler = make_sampler(name, contest.seed, number)
            if number < len(seeds):
                study.enqueue_trial(dict(seeds[number].params))
            trial = study.ask()
            policy = projector.project(space.sample(trial)).policy
            source = seeds[number].allocator if number < len(seeds) else name
            yield Proposed(policy, source, lambda t, trial=trial: study.tell(trial, [t.accuracy, t.size, t.macs]))

    return propose


def guided(
    seeded: bool = True,
    scan: Callable[[Profile], Profile | None] = lambda p: p,
    further: Sequence[str] = (),
    **constants: Any,
) -> Method:
    """The guided sampler, in a space of `further` granularities; `constants` of its modules are replaced meanwhile."""

    def propose(contest: Contest) -> Iterator[Proposed]:
        plain = contest.space
        space = Space(plain.network, MAX_SIZE, (*plain.usable, *further), bits=contest.bits) if further else plain
        return guided_in(space, contest, contest.evidence(scan(contest.profile)), seeded, constants)

    return propose


def guided_in(
    space: Space,
    contest: Contest,
    evidence: Mapping[str, AllocationInputs],
    seeded: bool = True,
    constants: Mapping[str, Any] | None = None,
    largest_error: float | None = None,
) -> Iterator[Proposed]:
    """A guided study without end in a space of the contest's network; seeds are at most half of `TRIALS`."""
    projector = Projector(space, evidence)
    guide = GuidedProposer(projector, contest.dense_error, contest.seed, largest_error)
    seeds = list(islice(initial_points(projector), TRIALS // 2)) if seeded else []
    for number in count():
        with _replaced(constants or {}):
            if number < len(seeds):
                params, source = seeds[number].params, seeds[number].allocator
            else:
                suggestion = guide.suggest(number)
                params, source = suggestion.params, suggestion.source
        learn = lambda t, number=number, params=params: guide.learn(number, params, 1 - t.accuracy)  # noqa: E731
        yield Proposed(projector.project(params).policy, source, learn)


class _replaced:
    """Module constants replaced for the length of a block."""

    def __init__(self, constants: Mapping[str, Any]) -> None:
        self._constants = {
            name.split("__")[1]: (getattr(search, name.split("__")[0]), v) for name, v in constants.items()
        }

    def __enter__(self) -> None:
        self._old = {name: getattr(module, name) for name, (module, _) in self._constants.items()}
        for name, (module, value) in self._constants.items():
            setattr(module, name, value)

    def __exit__(self, *_: object) -> None:
        for name, (module, _) in self._constants.items():
            setattr(module, name, self._old[name])


def raw_tpe(contest: Contest) -> Iterator[Proposed]:
    """TPE on plain sparsities with the size as a constraint; samples over the limit cost no fine-tune."""
    network, study = contest.subject.network, _study()
    study.sampler = optuna.samplers.TPESampler(seed=contest.seed)
    dense = dense_footprint(network)
    while True:
        for _ in range(RAW_ATTEMPTS):
            trial = study.ask()
            granularity = trial.suggest_categorical("granularity", list(contest.space.usable))
            sparsity = {name: trial.suggest_float(name, 0.0, 0.99) for name in network.layer_names}
            policy = PruningPolicy(sparsity, granularity, schedule=SEED_SCHEDULE)
            size = relative_cost(footprint(network, policy), dense).encoded
            trial.set_constraint("size", size - MAX_SIZE)
            if size <= MAX_SIZE:
                break
            study.tell(trial, [0.0, size, 1.0])
        else:
            return
        yield Proposed(policy, "raw", lambda t, trial=trial: study.tell(trial, [t.accuracy, t.size, t.macs]))


def static_portfolio(contest: Contest) -> Iterator[Proposed]:
    """Static allocations over log-spaced sizes, nothing learnt."""
    projector = Projector(contest.space, contest.evidence(None))
    for seed in initial_points(projector):
        yield Proposed(projector.project(seed.params).policy, seed.allocator)


def threshold(contest: Contest) -> Iterator[Proposed]:
    """One threshold on every layer's own damage (AIMET's greedy search, FastNAS), over log-spaced sizes."""
    levels = 1 - np.geomspace(1, 0.005, 60)
    for size, granularity in _sizes_and_granularities(contest):
        target, damages = contest.space.target(size, granularity), {}
        for layer in target.layers:
            scanned, damage = contest.profile.damage(granularity, layer.name)
            damages[layer.name] = np.interp(-np.log1p(-levels), -np.log1p(-scanned), damage)
        top = max(float(d.max()) for d in damages.values())

        def family(t: float, damages: Mapping[str, np.ndarray] = damages, top: float = top) -> dict[str, float]:
            if t >= 1:
                return dict.fromkeys(damages, 1 - 1e-9)
            allowed = top * math.expm1(12 * t) / math.expm1(12)
            return {
                name: float(levels[max(np.searchsorted(d, allowed, "right") - 1, 0)]) for name, d in damages.items()
            }

        try:
            sparsity = fit_to_budget(family, target)
        except Unreachable:
            continue
        yield Proposed(PruningPolicy(sparsity, granularity, schedule=SEED_SCHEDULE), "threshold")


def eagle_eye(contest: Contest) -> Iterator[Proposed]:
    """At each size the random policy of best accuracy after BatchNorm recalibration."""
    random, subject = np.random.default_rng(contest.seed), contest.subject
    inputs = subject.workload.calibration[0].split(500)
    for size, granularity in _sizes_and_granularities(contest):
        best = (-1.0, PruningPolicy({}))
        for _ in range(EAGLE_CANDIDATES):
            preferences = {name: float(random.random()) for name in subject.network.layer_names}
            params = contest.space.params(size, granularity, preferences, SEED_SCHEDULE)
            policy = Projector(contest.space).project(params).policy
            pruned = prune(subject.dense, policy, graph=subject.graph).eval()
            recalibrate_(pruned, inputs)
            accuracy = score(pruned, subject.workload.calibration, subject.workload).accuracy
            best = max(best, (accuracy, policy), key=lambda pair: pair[0])
        yield Proposed(best[1], "eagle-eye")


def inverted(profile: Profile) -> Profile:
    """The scan with every layer's damage exchanged for its opposite's: most and least sensitive change places."""
    points = {}
    for granularity, by_layer in profile.points.items():
        order = sorted(by_layer, key=lambda name: profile.damage(granularity, name)[1].mean())
        points[granularity] = {name: by_layer[other] for name, other in zip(order, reversed(order), strict=True)}
    return replace(profile, points=points)


def guided_by_whole_scan(contest: Contest) -> Iterator[Proposed]:
    """The guided sampler after a whole scan, whatever it costs."""
    return guided_in(contest.space, contest, contest.evidence(contest.whole_profile))


METHODS: Mapping[str, Method] = {
    "guided": guided(),
    "tpe+seeds": by_sampler("tpe", True),
    "tpe": by_sampler("tpe", False),
    "random+seeds": by_sampler("random", True),
    "random": by_sampler("random", False),
    "nsga2": by_sampler("nsga2", False),
    "gp": by_sampler("gp", False),
    "raw-tpe": raw_tpe,
    "threshold": threshold,
    "eagle-eye": eagle_eye,
    "static": static_portfolio,
    "guided -seeds": guided(seeded=False),
    "guided -scan": guided(scan=lambda profile: None),
    "guided -rounds": guided(guide__ROUNDS=0),
    "guided -surrogate": guided(guide__FEWEST=10**6),
    "guided -best": guided(guide__AT_BEST=10**6),
    "guided inverted": guided(scan=inverted),
    WHOLE: guided_by_whole_scan,
    "guided +combined": guided(further=("channel+fine-grained",)),
}
SCANNING = ("guided", "tpe+seeds", "random+seeds", "threshold")
"""Methods, by the beginning of their name, whose clock begins with the scan."""


def _sizes_and_granularities(contest: Contest) -> list[tuple[float, str]]:
    low, high = contest.space.size_range
    sizes = np.geomspace(high, low, TRIALS // len(contest.space.usable))
    return [(contest.space.reachable(float(s), g), g) for s, g in product(sizes, contest.space.usable)]


def _seeds(contest: Contest) -> list[Any]:
    return list(islice(initial_points(Projector(contest.space, contest.evidence(contest.profile))), TRIALS // 2))


def _study() -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(directions=["maximize", "minimize", "minimize"])


def race(contests: Iterable[Contest], methods: Sequence[str], trials: int) -> None:
    for contest in contests:
        for name in methods:
            done = [
                row
                for row in read_rows(TABLE)
                if (row["workload"], row["seed"], row["method"]) == (contest.label, str(contest.seed), name)
            ]
            if len(done) < trials:
                rows = list(_run(contest, name, trials))
                if [row["digest"] for row in done] != [row["digest"] for row in rows[: len(done)]]:
                    raise RuntimeError(f"{name} proposes otherwise than when its rows were written: delete those first")
                append_rows(TABLE, COLUMNS, rows[len(done) :])


def _run(contest: Contest, name: str, trials: int) -> Iterator[dict[str, Any]]:
    profile = contest.whole_profile if name == WHOLE else contest.profile
    before = profile.seconds if name.startswith(SCANNING) and name != "guided -scan" else 0.0
    proposals, number = METHODS[name](contest), -1
    began = time.perf_counter()
    for number, proposed in enumerate(islice(proposals, trials)):
        proposing = time.perf_counter() - began
        tuned = contest.tune(proposed.policy)
        yield {
            "workload": contest.label,
            "seed": contest.seed,
            "method": name,
            "trial": number,
            "source": proposed.source,
            "granularity": proposed.policy.granularity_label,
            "size": f"{tuned.size:.5f}",
            "macs": f"{tuned.macs:.5f}",
            "accuracy": f"{tuned.accuracy:.5f}",
            "test_accuracy": f"{tuned.test_accuracy:.5f}",
            "seconds_before": f"{before:.2f}",
            "seconds_proposing": f"{proposing:.3f}",
            "seconds_tuning": f"{tuned.seconds:.2f}",
            "digest": proposed.policy.digest,
        }
        began = time.perf_counter()
        proposed.learn(tuned)
    if number < trials - 1:
        raise RuntimeError(f"{name} ended after {number + 1} of {trials} trials")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("workload", choices=WORKLOADS)
    running.add_argument("--seeds", type=seed_range, default="0-9", help="first-last, or one")
    running.add_argument("--methods", default=",".join(METHODS))
    running.add_argument("--bits", default="32", help="of weights: choices of the space, such as 8,6,4")
    running.add_argument("--trials", type=int, default=TRIALS)
    running.add_argument("--root", type=Path, default=Path("mlruns"))
    showing = commands.add_parser("show")
    showing.add_argument("--figure", type=Path, help="a PNG to write: shares against fine-tunes and seconds")
    options = parser.parse_args()
    if options.command == "run":
        bits = [int(word) for word in options.bits.split(",")]
        contests = (Contest(options.workload, seed, options.root, bits) for seed in options.seeds)
        race(contests, options.methods.split(","), options.trials)
    else:
        show(read_rows(TABLE), Rules(TRIALS, REFERENCE, TARGETS), options.figure)


if __name__ == "__main__":
    main()
