"""Would a brief scan's points be better spent where damage is least certain than at four levels in every layer?

    python tests/benchmarks/scan_levels.py [WORKLOAD ...] [--seed N] [--subsets N]

Each workload's dense model is scanned on all examples at fourteen levels, those of a whole scan and one between every
two of them, scored in the pass that recalibrates; and at the same levels on as many examples as a brief scan takes. Of
the latter, two choices of as many points are held against the scan of all examples: the brief scan's levels in every
layer; and `FIRST` in every layer, and one further point for each layer and group on average, one after another where
the damage found so far is least certain. All fourteen levels on these examples tell what more points could gain. Since
few examples are partly chance, there are several subsets of them.

Prints, for each workload, granularity and choice, means over the subsets: Spearman's rank correlation over the layers'
damages summed over the levels, and over all layers and levels; the mean error of the damage, and the largest at the
level where a layer's curve bends most, in loss; how much more damage the allocations that keep 50, 25 and 12 % of the
weights do than those from the scan of all examples. Then one JSON line. Dense models and profiles stay in the folder
`--cache`, which `cheap_scan.py` shares.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cheap_scan import GRANULARITIES, PLACE, spearman
from study import hardware

from pruning.analysis import sensitivity_scan
from pruning.analysis.sensitivity_scan import (
    BRIEF_LEVELS,
    BRIEF_PASSES,
    LEAST_EXAMPLES,
    LEVELS,
    SCAN_EXAMPLES,
    scan_sensitivity,
)
from search.cli.text_tables import render
from search.training.dense_model import build_model, dense_model
from search.training.evaluate import PreparedModel
from search.training.examples import calibration_data
from search.workloads import get_workload
from search.workloads.base import placed
from search.workloads.tally import computed_share
from spaces.allocation.knobs import Damage, knobs_of, scan_damages
from spaces.allocation.lagrangian import LagrangianAllocator
from spaces.network import Network
from spaces.sensitivity import Profile, ProfilePoint

WORKLOADS = (
    "tests/benchmarks/deep_digits.py:deep_digits",
    "tests/benchmarks/deep_digits.py:deep_separable",
    "tests/examples/residual.py:residual",
    "tests/examples/depthwise.py:depthwise",
)
BETWEEN = [1 - math.sqrt((1 - lower) * (1 - upper)) for lower, upper in pairwise((0.0, *LEVELS))]
FINE = tuple(sorted([*LEVELS, *BETWEEN]))
FIRST = 0.5, 0.93, 0.99
Curve = tuple[str, str]
"""Granularity, and a layer or group by its first layer."""
SIZES = 0.5, 0.25, 0.12
MEASURES = "sums", "all", "error", "bend", "regret"


def scanned(prepared: PreparedModel, path: Path, examples: int, subset: int = 0) -> Profile:
    """A scan's profile at `FINE`, from the file if it is there. The first subset of examples is what a scan takes."""
    if not path.is_file():
        workload = prepared.workload
        inputs, targets = calibration_data(workload)
        if subset:
            order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(subset))
            inputs, targets = inputs[order], targets[order]
        sensitivity_scan.BRIEF_PASSES, sensitivity_scan.LEAST_EXAMPLES = 0, examples
        profile = scan_sensitivity(
            prepared.dense,
            prepared.graph,
            (inputs, targets),
            workload.loss,
            computed_share(workload.metric),
            GRANULARITIES,
            levels=FINE,
            brief=True,
        )
        path.write_text(profile.to_json())
    return Profile.from_json(path.read_text())


def chosen(profile: Profile, places: Mapping[Curve, Sequence[int]]) -> Profile:
    """The profile with these points of each curve alone; what it says of a group's further layers is left out."""
    points: dict[str, dict[str, tuple[ProfilePoint, ...]]] = {}
    for (granularity, name), own in places.items():
        every = profile.points[granularity][name]
        points.setdefault(granularity, {})[name] = tuple(every[place] for place in sorted(own))
    return replace(profile, points=points)


def alike(profile: Profile, network: Network) -> Profile:
    """At the levels of a brief scan."""
    own = [FINE.index(level) for level in BRIEF_LEVELS]
    return chosen(profile, dict.fromkeys(curves_of(network), own))


def curves_of(network: Network) -> list[Curve]:
    return [(granularity, name) for granularity in GRANULARITIES for name in knobs_of(network, granularity)]


def least_certain(profile: Profile, network: Network) -> Profile:
    """At `FIRST`, and as many points as `alike` has by halving gaps between them.

    Damage never falls, so between two points the curve lies in the rectangle that they span, as wide as the logarithms
    of the shares kept differ. The largest of all is halved next.
    """
    places = {curve: {FINE.index(level) for level in FIRST} for curve in curves_of(network)}
    gaps = {curve: largest_gap(profile, curve, own) for curve, own in places.items()}
    for _ in range((len(BRIEF_LEVELS) - len(FIRST)) * len(places)):
        curve = max(gaps, key=lambda own: gaps[own][0])
        area, place = gaps[curve]
        if area < 0:
            break
        places[curve].add(place)
        gaps[curve] = largest_gap(profile, curve, places[curve])
    return chosen(profile, {curve: sorted(own) for curve, own in places.items()})


def largest_gap(profile: Profile, curve: Curve, places: set[int]) -> tuple[float, int]:
    """Its area, and the place in `FINE` next to its middle; -1 for the area if no sparsity lies in any gap."""
    every = profile.points[curve[0]][curve[1]]
    lost = [-math.log1p(-point.sparsity) for point in every]
    own = sorted(places)
    rows = replace(profile, points={curve[0]: {curve[1]: tuple(every[place] for place in own)}})
    damage = rows.damage(*curve)[1]
    best = -1.0, 0
    for (lower, upper), (less, more) in zip(pairwise([-1, *own]), pairwise(damage), strict=True):
        start = lost[lower] if lower >= 0 else 0.0
        inside = [place for place in range(lower + 1, upper) if start < lost[place] < lost[upper]]
        area = (lost[upper] - start) * float(more - less)
        if inside and area > best[0]:
            best = area, min(inside, key=lambda place: abs(2 * lost[place] - start - lost[upper]))
    return best


def all_levels(profile: Profile, network: Network) -> Profile:
    """What no choice of levels can better but by chance, at three and a half times the points."""
    return profile


CHOICES: Mapping[str, Callable[[Profile, Network], Profile]] = {
    "four levels": alike,
    "least certain": least_certain,
    "all levels": all_levels,
}


def measured(fine: Profile, rough: Profile, network: Network, granularity: str) -> dict[str, float]:
    """By `MEASURES`."""
    true, guess = (scan_damages(one, network, granularity, levels=(0.0, *FINE)) for one in (fine, rough))
    values = [np.concatenate([own[name].values[1:] for name in true]) for own in (true, guess)]
    sums = [np.array([own[name].values[1:].mean() for name in true]) for own in (true, guess)]
    bends = [(name, place) for name, own in true.items() if (place := sharpest(own))]
    return {
        "sums": spearman(*sums),
        "all": spearman(*values),
        "error": float(abs(values[0] - values[1]).mean()),
        "bend": max(abs(float(true[name].values[place] - guess[name].values[place])) for name, place in bends),
        "regret": float(np.mean(more_damage(network, granularity, true, guess))),
    }


def sharpest(damage: Damage) -> int:
    """Place of the level at which the slope changes most; 0 where there is none."""
    slopes = np.diff(damage.values) / np.diff(-np.log1p(-damage.levels))
    return int(abs(np.diff(slopes)).argmax()) + 1 if len(slopes) > 1 else 0


def more_damage(
    network: Network, granularity: str, true: Mapping[str, Damage], guess: Mapping[str, Damage]
) -> list[float]:
    """True damage of the allocations by a guess, beyond that of allocations by the truth, at each of `SIZES`."""

    def damage(size: float, known: Mapping[str, Damage]) -> float:
        found = LagrangianAllocator(network, granularity, known, "nonzero", mixes=(0.0,)).at(size, 0.0)
        lost = {name: -np.log1p(-found.get(name, 0.0)) for name in true}
        return sum(float(np.interp(lost[name], -np.log1p(-own.levels), own.values)) for name, own in true.items())

    return [damage(size, guess) - damage(size, true) for size in SIZES]


def compared(spec: str, cache: Path, seed: int, subsets: int) -> list[dict[str, Any]]:
    """Rows of one workload."""
    with PLACE.running():
        workload = placed(get_workload(spec), PLACE)
        dense = dense_model(workload, seed, cache, None)
        prepared = PreparedModel.of(workload, build_model(workload, seed)).with_weights(dense.model, dense.workload)
        stem, network = f"{workload.name}-{seed}", prepared.network
        points = len(BRIEF_LEVELS) * len(curves_of(network)) + len(network.layer_names)
        examples = max(LEAST_EXAMPLES, BRIEF_PASSES // points)
        fine = scanned(prepared, cache / f"{stem}-fine.json", SCAN_EXAMPLES)
        rough = [scanned(prepared, cache / f"{stem}-rough-{n}.json", examples, n) for n in range(subsets)]
    rows = []
    for granularity in GRANULARITIES:
        for choice, profile_of in CHOICES.items():
            found = [measured(fine, profile_of(one, network), network, granularity) for one in rough]
            rows.append({
                "workload": stem,
                "layers": len(network.prunable),
                "of": granularity,
                "points": choice,
                "examples": rough[0].examples,
                **{name: [one[name] for one in found] for name in MEASURES},
            })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", default=WORKLOADS)
    parser.add_argument("--cache", type=Path, default=Path("cheap-scan-cache"))
    parser.add_argument("--seed", type=int, default=0, help="of the dense training")
    parser.add_argument("--subsets", type=int, default=3, help="of examples")
    arguments = parser.parse_args()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    rows = [
        row
        for spec in arguments.workloads
        for row in compared(spec, arguments.cache, arguments.seed, arguments.subsets)
    ]
    columns = ["workload", "of", "points", "examples", "rank of sums", "of all", "error", "at bends", "more damage"]
    print(render(columns, [
        [row["workload"], row["of"], row["points"], str(row["examples"]),
         *(f"{np.mean(row[name]):.3f}" for name in MEASURES)]
        for row in rows
    ]))  # fmt: skip
    print(json.dumps({"rows": rows, "hardware": hardware(), "torch": version("torch")}))


if __name__ == "__main__":
    main()
