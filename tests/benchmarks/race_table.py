"""What the raw table of a race says: hypervolume shares, costs to a target, paired comparisons, a figure.

A front is chosen on validation accuracy and scored on test accuracy. The reference hypervolume of a contest is that of
the union of the trials of the methods that ran in all contests of the workload, variants of guided aside. A cost is the
first fine-tune, or the wall-clock second, at which a run's share reaches a target; a run that never does is censored at
its budget.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter
from raw_rows import Row
from study import hardware

from search.cli.text_tables import render
from search.metric import SHARE
from search.proposals.hypervolume import hypervolume, non_dominated
from search.results.figures import LINE_COLOURS, new_figure, png_bytes

GUIDED, PRIOR_FREE, MISLED = "guided", "guided -scan", "guided inverted"
CHECKPOINTS = (6, 12, 18, 24, 48, 72)
UNITS = ("fine-tunes", "seconds")
"""Of cost: fine-tunes, wall-clock seconds."""
RESAMPLES, BOOTSTRAP_SEED = 10_000, 0
DASHES = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (8, 2, 2, 2)))
"""Of lines beside guided's: with their colours, all of a race differ, and most without colours."""


@dataclass(frozen=True)
class Rules:
    """What a race is scored by.

    Attributes:
        trials: fine-tunes each method spends at least, and at which parts are compared; shorter runs are left out.
        reference: (3,) worst error, log size and MACs.
        targets: shares of the reference hypervolume.
    """

    trials: int
    reference: np.ndarray
    targets: tuple[float, ...]


@dataclass(frozen=True)
class Cost:
    """Fine-tunes or seconds to a target; where `censored`, the target was not reached and the cost is more."""

    value: float
    censored: bool

    def __str__(self) -> str:
        return f"{'>' if self.censored else ''}{self.value:.0f}"


@dataclass(frozen=True)
class Run:
    """One method in one contest.

    Attributes:
        shares: (trials,) share of the contest's reference hypervolume after each fine-tune.
        seconds: (trials,) wall-clock seconds until then: what came before, proposing and tuning.
    """

    shares: np.ndarray
    seconds: np.ndarray

    def cost(self, target: float, unit: str) -> Cost:
        """Of the first time a share (up to rounding) is reached; `unit` is one of `UNITS`."""
        reached = np.flatnonzero(self.shares >= target - 1e-9)
        place = int(reached[0]) if len(reached) else len(self.shares) - 1
        return Cost(place + 1.0 if unit == UNITS[0] else float(self.seconds[place]), not len(reached))


Runs = dict[str, dict[int, Run]]
"""Method -> seed -> run."""


@dataclass(frozen=True)
class Paired:
    """A paired comparison over seeds: mean, 95 % bootstrap interval (None for one pair) and exact sign-flip p."""

    n: int
    mean: float
    low: float | None
    high: float | None
    p: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Paired:
        """From one difference a seed."""
        low, high = interval(values) if len(values) > 1 else (None, None)
        return cls(len(values), float(np.mean(values)), low, high, sign_flip_p(values))


@dataclass(frozen=True)
class Ratio:
    """Cost of a method over that of a baseline: geometric mean over seeds, interval and p.

    Attributes:
        censored, baseline_censored: runs that ended at their budget before the target. The first make the ratio
            a lower bound, the second an upper one.
    """

    n: int
    ratio: float
    low: float | None
    high: float | None
    p: float
    censored: int
    baseline_censored: int

    @classmethod
    def of(cls, costs: Sequence[Cost], baselines: Sequence[Cost]) -> Ratio:
        """From one pair a seed; a censored cost enters as its budget."""
        pairs = list(zip(costs, baselines, strict=True))
        logs = Paired.of([math.log(cost.value / baseline.value) for cost, baseline in pairs])
        low, high = (None if end is None else math.exp(end) for end in (logs.low, logs.high))
        counts = (sum(cost.censored for cost in side) for side in (costs, baselines))
        return cls(logs.n, math.exp(logs.mean), low, high, logs.p, *counts)

    @property
    def unknown(self) -> bool:
        """Whether no run of either side got there."""
        return self.censored == self.baseline_censored == self.n

    def __str__(self) -> str:
        """With `≥` or `≤` where it is a bound, `?` where runs of both sides are censored."""
        if self.censored and self.baseline_censored:
            bound = "?"
        else:
            bound = "≥" if self.censored else "≤" if self.baseline_censored else ""
        return f"{bound}{self.ratio:.2f}{_bracket(self.low, self.high, 2)}"


def sign_flip_p(values: Sequence[float]) -> float:
    """Two-sided p of the mean of n values (20 at most) under all 2^n sign flips; 1.0 if every value is 0."""
    values = np.asarray(values, dtype=float)
    signs = 1 - 2 * ((np.arange(2 ** len(values))[:, None] >> np.arange(len(values))) & 1)
    sums = np.abs(signs @ values)
    return float((sums >= abs(values.sum()) - 1e-9 * np.abs(values).sum()).mean())


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % percentile bootstrap of the mean."""
    values = np.asarray(values, dtype=float)
    drawn = np.random.default_rng(BOOTSTRAP_SEED).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def upper_median(costs: Sequence[Cost]) -> Cost:
    """The middle cost, of an even number the larger middle one; the censored come last."""
    return sorted(costs, key=lambda cost: (cost.censored, cost.value))[len(costs) // 2]


def scored_volume(trials: np.ndarray, reference: np.ndarray) -> float:
    """Hypervolume by test error of the front by validation error.

    Args:
        trials: (n, 4) of validation error, test error, log size and MACs.
        reference: (3,).
    """
    front = non_dominated(trials[:, [0, 2, 3]])
    return hypervolume(trials[front, 1:], reference)


def runs_of(rows: Sequence[Row], workload: str, rules: Rules) -> Runs:
    """All whole runs of a workload, scored."""
    tables: dict[int, dict[str, list[Row]]] = {}
    for row in rows:
        if row["workload"] == workload:
            tables.setdefault(int(row["seed"]), {}).setdefault(row["method"], []).append(row)
    runs: Runs = {}
    everywhere = set.intersection(*({n for n, run in t.items() if len(run) >= rules.trials} for t in tables.values()))
    referee_names = {name for name in everywhere if not is_variant(name)}
    for seed, methods in tables.items():
        whole = {name: run for name, run in methods.items() if len(run) >= rules.trials}
        trials = {name: np.array([_trial(row) for row in run]) for name, run in whole.items()}
        referees = [own for name, own in trials.items() if name in (referee_names or trials)]
        union = scored_volume(np.concatenate(referees), rules.reference) if trials else 0.0
        for name, own in trials.items():
            volumes = [scored_volume(own[:count], rules.reference) for count in range(1, len(own) + 1)]
            runs.setdefault(name, {})[seed] = Run(np.array(volumes) / union, _seconds(whole[name]))
    return runs


def _trial(row: Row) -> list[float]:
    errors = [1 - float(row[name]) for name in ("accuracy", "test_accuracy")]
    return [*errors, math.log(float(row["size"])), float(row["macs"])]


def _seconds(rows: Sequence[Row]) -> np.ndarray:
    each = [float(row["seconds_proposing"]) + float(row["seconds_tuning"]) for row in rows]
    return float(rows[0]["seconds_before"]) + np.cumsum(each)


def is_variant(method: str) -> bool:
    """Whether it is the guided sampler without one of its parts, or with one more."""
    return method.startswith(f"{GUIDED} ")


def cost_ratio(runs: Runs, method: str, baseline: str, target: float | Mapping[int, float], unit: str) -> Ratio | None:
    """Over the seeds both have; None without one. `target`: of all seeds, or by seed."""
    seeds = sorted(runs.get(method, {}).keys() & runs.get(baseline, {}).keys())
    if not seeds:
        return None
    by_seed = target if isinstance(target, Mapping) else dict.fromkeys(seeds, target)
    costs, baselines = ([runs[name][seed].cost(by_seed[seed], unit) for seed in seeds] for name in (method, baseline))
    return Ratio.of(costs, baselines)


def show(rows: Sequence[Row], rules: Rules, figure: Path | None = None) -> None:
    """Print the tables of every workload and one JSON line; `figure` is a PNG to write."""
    scored = {name: runs_of(rows, name, rules) for name in dict.fromkeys(row["workload"] for row in rows)}
    summary = {}
    for workload, runs in scored.items():
        sections = (_shares(runs), _costs(runs, rules), _ratios(runs, rules), _variants(runs, rules), _misled(runs))
        print(f"{workload}: {len({seed for by_seed in runs.values() for seed in by_seed})} seeds\n")
        print("".join(str(section) for section in sections if section.body))
        summary[workload] = {section.name: section.values for section in sections}
        summary[workload]["n"] = {method: len(by_seed) for method, by_seed in runs.items()}
    if figure:
        figure.write_bytes(share_png(scored))
    versions = {name: version(name) for name in ("torch", "optuna")}
    print(json.dumps({"benchmark": "search_race", "hardware": hardware(), **versions, "workloads": summary}))


@dataclass(frozen=True)
class _Section:
    """A table, and its numbers for the JSON line."""

    name: str
    title: str
    columns: Sequence[str]
    body: Sequence[Sequence[object]]
    values: Any

    def __str__(self) -> str:
        return f"{self.title}\n{render(self.columns, self.body)}\n\n"


def _aligned(runs: Iterable[Run]) -> np.ndarray:
    """Shares (runs, trials) as far as the shortest run goes."""
    shares = [run.shares for run in runs]
    return np.array([own[: min(map(len, shares))] for own in shares])


def _shares(runs: Runs) -> _Section:
    longest = max((len(run.shares) for by_seed in runs.values() for run in by_seed.values()), default=0)
    values, body, counts = {}, [], [count for count in CHECKPOINTS if count <= longest]
    for method, by_seed in runs.items():
        if is_variant(method):
            continue
        shares = _aligned(by_seed.values())
        found = {count: _mean_and_sd(shares[:, count - 1]) for count in counts if count <= shares.shape[1]}
        values[method] = {count: [_rounded(v) for v in pair] for count, pair in found.items()}
        body.append(
            [method, len(shares), *(SHARE.spread(*found[count]) if count in found else None for count in counts)]
        )
    columns = ["method", "n", *(f"{count} fine-tunes" for count in counts)]
    title = "share of the reference hypervolume (test accuracy; front chosen on validation), mean ± sd over seeds"
    return _Section("share", title, columns, body, values)


def _costs(runs: Runs, rules: Rules) -> _Section:
    values, body = {}, []
    for method, by_seed in runs.items():
        if is_variant(method):
            continue
        values[method], cells = {}, []
        for target in rules.targets:
            tunes, seconds = ([run.cost(target, unit) for run in by_seed.values()] for unit in UNITS)
            middle = {unit: str(upper_median(costs)) for unit, costs in zip(UNITS, (tunes, seconds), strict=True)}
            reached = sum(not cost.censored for cost in tunes)
            values[method][f"{target:.0%}"] = middle | {"reached": reached}
            cells.append(f"{middle['fine-tunes']} ({middle['seconds']} s; {reached})")
        body.append([method, len(by_seed), *cells])
    title = (
        "fine-tunes (seconds; runs that got there) to a share of the reference hypervolume: median over seeds,\n"
        "of an even number the larger middle one"
    )
    return _Section("cost", title, ["method", "n", *(f"to {target:.0%}" for target in rules.targets)], body, values)


def _ratios(runs: Runs, rules: Rules) -> _Section:
    values, body = [], []
    for method, target in product(runs, (*rules.targets, OWN_LAST)):
        if is_variant(method) or method == GUIDED:
            continue
        last = {seed: float(run.shares[-1]) for seed, run in runs[method].items()}
        asked = last if target == OWN_LAST else target
        found = [cost_ratio(runs, method, GUIDED, asked, unit) for unit in UNITS]
        if None not in found:
            body.append([method, target if target == OWN_LAST else f"{target:.0%}", *_ratio_cells(found)])
            values.append({"method": method, "target": target, **_by_unit(found)})
    title = (
        "cost of a method over that of guided, same contests: geometric mean [95 % interval], sign-flip p;\n"
        "above 1 guided is cheaper\n"
        f"target: share of the reference hypervolume; '{OWN_LAST}': the share the method itself ends with\n"
        "censored: runs of the method / of guided that end short of the target and count as their budget,\n"
        "so that the ratio is a lower bound (≥), an upper one (≤), neither (?), or unknown (-)"
    )
    return _Section("cost over guided", title, ["method", "target", *RATIO_COLUMNS], body, values)


OWN_LAST = "own last"
RATIO_COLUMNS = ("n", "censored", UNITS[0], "p", UNITS[1], "p")


def _ratio_cells(found: Sequence[Ratio]) -> list[object]:
    cells: list[object] = [found[0].n, f"{found[0].censored} / {found[0].baseline_censored}"]
    for ratio in found:
        cells += [None, None] if ratio.unknown else [str(ratio), f"{ratio.p:.3f}"]
    return cells


def _by_unit(found: Sequence[Ratio]) -> dict[str, Any]:
    return {unit: {k: _rounded(v) for k, v in asdict(ratio).items()} for unit, ratio in zip(UNITS, found, strict=True)}


def _variants(runs: Runs, rules: Rules) -> _Section:
    values, body, at = {}, [], rules.trials - 1
    for method in filter(is_variant, runs):
        seeds = sorted(runs[method].keys() & runs.get(GUIDED, {}).keys())
        if not seeds:
            continue
        own, whole = (np.array([runs[name][seed].shares[at] for seed in seeds]) for name in (method, GUIDED))
        paired = Paired.of(own - whole)
        points = f"{paired.mean * 100:+.2f}{_bracket(paired.low, paired.high, 2, 100)}"
        body.append(
            [method, len(seeds), *(SHARE.spread(*_mean_and_sd(v)) for v in (own, whole)), points, f"{paired.p:.3f}"]
        )
        values[method] = {k: _rounded(v) for k, v in asdict(paired).items()}
    columns = ["method", "n", f"share at {rules.trials}", "guided", "difference, points", "p"]
    title = "guided without or with a part: share of the reference hypervolume, same contests and fine-tunes"
    return _Section("variants", title, columns, body, values)


def _misled(runs: Runs) -> _Section:
    """What a wrong prior costs, and what a right one saves."""
    goals = {seed: float(run.shares[-1]) for seed, run in runs.get(PRIOR_FREE, {}).items()}
    values, body = {}, []
    for method in (MISLED, GUIDED):
        found = [cost_ratio(runs, method, PRIOR_FREE, goals, unit) for unit in UNITS]
        if None not in found:
            body.append([method, *_ratio_cells(found)])
            values[method] = _by_unit(found)
    title = f"cost to the last hypervolume of '{PRIOR_FREE}', over its own cost; above 1 '{PRIOR_FREE}' is cheaper"
    return _Section("cost over prior-free", title, ["method", *RATIO_COLUMNS], body, values)


def share_png(scored: Mapping[str, Runs]) -> bytes:
    """Share against fine-tunes and against seconds, one line a method, a band of one deviation; a row a workload that
    has more than one method.
    """
    shown = {workload: _raced(runs) for workload, runs in scored.items() if len(_raced(runs)) > 1}
    figure, rows = new_figure(12, 4.6 * len(shown) + 0.4, columns=2, rows=len(shown), squeeze=False)
    for panels, (workload, runs) in zip(rows, shown.items(), strict=True):
        others = [method for method in runs if method != GUIDED]
        for method, of_method in runs.items():
            style: dict[str, Any] = {"color": "black", "linewidth": 2.4, "label": method, "zorder": 3}
            if method != GUIDED:
                place = others.index(method)
                style |= {"color": LINE_COLOURS[place % len(LINE_COLOURS)], "linestyle": DASHES[place % len(DASHES)]}
                style |= {"linewidth": 1.4, "zorder": 2}
            shares = _aligned(of_method)
            _band(panels[0], np.arange(1, shares.shape[1] + 1), shares, style)
            _band(panels[1], *_by_seconds(of_method), style)
        panels[0].set_ylabel("share of the reference\nhypervolume, %", fontsize=11)
        panels[0].set_xlabel("fine-tunes", fontsize=11)
        panels[0].set_title(f"{workload}, by fine-tunes", fontsize=12)
        panels[1].set_xlabel("seconds, the scan included (log scale)", fontsize=11)
        panels[1].set_title(f"{workload}, by seconds", fontsize=12)
        panels[1].set_xscale("log")
        panels[1].xaxis.set_major_locator(LogLocator())
        panels[1].xaxis.set_major_formatter("{x:g}")
        panels[1].xaxis.set_minor_formatter(NullFormatter())
        panels[1].legend(frameon=False, fontsize=10, loc="center left", bbox_to_anchor=(1, 0.5), handlelength=3)
        for axes in panels:
            axes.set_ylim(bottom=0)
    figure.suptitle("How fast each method finds the front: mean of seeds, and one deviation", fontsize=13)
    return png_bytes(figure)


def _raced(runs: Runs) -> dict[str, list[Run]]:
    """The methods of a workload that are drawn, and their runs."""
    return {method: list(by_seed.values()) for method, by_seed in runs.items() if not is_variant(method)}


def _by_seconds(runs: Sequence[Run]) -> tuple[np.ndarray, np.ndarray]:
    """Times, and the shares (runs, times) at them: 0 before a run's first fine-tune has ended, its last at the end."""
    times = np.geomspace(min(run.seconds[0] for run in runs), max(run.seconds[-1] for run in runs), 300)
    padded = [np.append(0.0, run.shares)[np.searchsorted(run.seconds, times, side="right")] for run in runs]
    return times, np.array(padded)


def _band(axes: Any, x: np.ndarray, shares: np.ndarray, style: Mapping[str, Any]) -> None:
    mean, sd = shares.mean(axis=0) * 100, shares.std(axis=0, ddof=1) * 100 if len(shares) > 1 else 0.0
    axes.step(x, mean, where="post", **style)
    axes.fill_between(x, mean - sd, mean + sd, step="post", color=style["color"], alpha=0.08, linewidth=0)


def _mean_and_sd(values: np.ndarray) -> tuple[float, float | None]:
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None


def _bracket(low: float | None, high: float | None, digits: int, unit: float = 1.0) -> str:
    return "" if low is None or high is None else f" [{low * unit:.{digits}f}, {high * unit:.{digits}f}]"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
