"""Does a brief scan rank layers and levels as a whole one does, and what does it cost?

    python tests/benchmarks/cheap_scan.py [WORKLOAD ...] [--examples N]

Each workload's dense model is scanned twice, as small networks are and as deep ones are (see
`pruning.analysis.sensitivity_scan.scan_sensitivity`). Of the brief scan the damage at every level of the whole one is
interpolated, as the search does. Prints, for each workload and granularity, Spearman's rank correlation over all layers
and levels and over the layers at the middle level, and for rounding that over layers and bits; Pearson's of the damages
themselves, which tells more where most layers lose next to nothing, in an order that is noise; how many examples passed
through the network; then one JSON line. With `--examples` the brief scan takes as many of them, in place of what its
budget gives. Dense models and profiles stay in the folder `--cache`, and are used again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from study import hardware

from pruning.analysis import sensitivity_scan
from pruning.analysis.sensitivity_scan import BRIEF_LEVELS, LEVELS, ROUNDING, scan_sensitivity
from search.cli.text_tables import render
from search.placement import placement_of
from search.training.dense_model import build_model, dense_model
from search.training.evaluate import PreparedModel
from search.training.examples import calibration_data
from search.workloads import get_workload
from search.workloads.base import placed
from search.workloads.tally import computed_share
from spaces.allocation.knobs import Damage, scan_damages
from spaces.network import Network
from spaces.sensitivity import Profile

WORKLOADS = (
    "digits",
    "tests/benchmarks/small_fashion.py:small_fashion",
    "tests/examples/residual.py:residual",
    "tests/examples/depthwise.py:depthwise",
    "tests/benchmarks/deep_digits.py:deep_digits",
)
GRANULARITIES = ("fine-grained", "channel")
BITS = (8, 6, 4, 3)
ENOUGH = 0.9
"""Rank correlation that a cheap scan must have with the whole one to be kept."""
PLACE = placement_of("cpu", "fp32", False, None)


def passes(profile: Profile) -> int:
    """Examples passed through the network, but for the dense model's own."""
    rows = [
        row
        for word, own in profile.points.items()
        for row in (set(own.values()) if word == "channel" else own.values())
    ]
    points = sum(map(len, [*rows, *profile.rounding.values()]))
    return points * profile.examples * (1 if profile.brief or not profile.is_recalibrated else 3)


def correlations(whole: Profile, brief: Profile, network: Network) -> Iterator[tuple[str, float, float, float, float]]:
    """(What is pruned or rounded, rank correlation over layers and levels, over layers at the middle level or 4 bits,
    Pearson's over layers and levels, the largest damage)."""
    for granularity in whole.points:
        found = [scan_damages(one, network, granularity, levels=(0.0, *LEVELS)) for one in (whole, brief)]
        values = [np.concatenate([damage.values[1:] for damage in own.values()]) for own in found]
        middle = [np.array([nearest(damage, LEVELS[len(LEVELS) // 2]) for damage in own.values()]) for own in found]
        yield granularity, spearman(*values), spearman(*middle), pearson(*values), float(values[0].max())
    layers = [*whole.rounding]
    rounding = [np.array([[one.rounding_damage(x, bits) for bits in BITS] for x in layers]) for one in (whole, brief)]
    every, middle = [own.ravel() for own in rounding], [own[:, 2] for own in rounding]
    yield ROUNDING, spearman(*every), spearman(*middle), pearson(*every), float(every[0].max())


def nearest(damage: Damage, level: float) -> float:
    return float(damage.values[abs(damage.levels - level).argmin()])


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    return float(spearmanr(first, second).statistic)


def pearson(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(first, second)[0, 1])


def compared(spec: str, cache: Path, examples: int | None) -> list[dict[str, Any]]:
    """Rows of one workload."""
    with PLACE.running():
        prepared = prepared_model(spec, cache)
        name = prepared.workload.name
        whole = scanned(prepared, cache / f"{name}-whole.json", "whole")
        if examples is not None:
            sensitivity_scan.BRIEF_PASSES, sensitivity_scan.LEAST_EXAMPLES = 0, examples
        brief = scanned(prepared, cache / f"{name}-brief{examples or ''}.json", "brief")
    return [
        {
            "workload": name,
            "layers": len(prepared.network.prunable),
            "of": what,
            "all": everywhere,
            "middle": middle,
            "linear": linear,
            "largest": largest,
            "examples": brief.examples,
            "passes": passes(brief),
            "whole_passes": passes(whole),
        }
        for what, everywhere, middle, linear, largest in correlations(whole, brief, prepared.network)
    ]


def prepared_model(spec: str, cache: Path) -> PreparedModel:
    """A workload's traced network with the weights of its dense model, trained if they are not in the folder."""
    workload = placed(get_workload(spec), PLACE)
    dense = dense_model(workload, 0, cache, None)
    return PreparedModel.of(workload, build_model(workload, 0)).with_weights(dense.model, dense.workload)


def scanned(prepared: PreparedModel, path: Path, form: str) -> Profile:
    """A scan's profile, from the file if it is there."""
    if not path.is_file():
        workload = prepared.workload
        profile = scan_sensitivity(
            prepared.dense,
            prepared.graph,
            calibration_data(workload),
            workload.loss,
            computed_share(workload.metric),
            GRANULARITIES,
            levels=LEVELS if form == "whole" else BRIEF_LEVELS,
            bits=BITS if form == "whole" else BITS[-1:],
            brief=form == "brief",
        )
        path.write_text(profile.to_json())
    return Profile.from_json(path.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", default=WORKLOADS)
    parser.add_argument("--cache", type=Path, default=Path("cheap-scan-cache"))
    parser.add_argument("--examples", type=int, help="of the brief scan")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for spec in arguments.workloads for row in compared(spec, arguments.cache, arguments.examples)]
    columns = [
        "workload",
        "of",
        "all layers and levels",
        "middle level",
        "linear",
        "largest damage",
        "examples",
        "passes",
        "of the whole scan",
    ]
    print(render(columns, [
        [row["workload"], row["of"], *(f"{row[name]:.3f}" for name in ("all", "middle", "linear", "largest")),
         str(row["examples"]), f"{row['passes']:,}", f"{row['whole_passes']:,}"]
        for row in rows
    ]))  # fmt: skip
    least = min(row["all"] for row in rows if row["of"] != ROUNDING)
    verdict = "enough" if least >= ENOUGH else "too little"
    print(f"\nleast rank correlation of pruning {least:.3f}: {verdict} (of {ENOUGH})")
    print(json.dumps({"rows": rows, "least": least, "hardware": hardware(), "torch": version("torch")}))


if __name__ == "__main__":
    main()
