"""One whole study as a user runs it: what the finalists are worth, and where the seconds went.

    python tests/benchmarks/study.py digits
    python tests/benchmarks/study.py fashion-mnist --max-size 0.10 --root mlruns --picture front.png

Runs `prunefront search` in a subprocess, prints the closing table and ends with one JSON line. Nothing is tuned on
these numbers: the recipes come from the uniform policy on validation data.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from search.results.closing import closing_rows, verdict
from search.results.figures import front_png
from search.results.view import StudyView, open_study

PACKAGES = ("prunefront", "torch", "optuna", "mlflow")


def main() -> None:
    """Run, print, picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workload")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--max-size", type=float, default=0.25)
    parser.add_argument("--finalists", type=int, default=3)
    parser.add_argument("--root", help="default: a temporary folder, so that everything is done from nothing")
    parser.add_argument("--show", action="store_true", help="show the study of --root as it is, run nothing")
    parser.add_argument("--picture", type=Path, help="where the front's picture goes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(options.root or temporary)
        began = time.perf_counter()
        if not options.show:
            _search(options, root)
        wall = None if options.show else round(time.perf_counter() - began, 1)
        view = open_study(root, options.workload, options.max_size)
        state, rows = view.state, view.rows
        if options.picture:
            picture = front_png(view.rows, state.front, options.max_size, state.comparison, state.scores)
            options.picture.write_bytes(picture)
        seconds = _seconds(view)
    trial_of = {row.digest: row.trial for row in rows}
    finals = [asdict(row) for row in closing_rows(state.comparison, state.scores, trial_of)] if state.comparison else []
    _print_table(finals)
    summary = {
        "workload": options.workload,
        "max_size": options.max_size,
        "hardware": hardware(),
        "versions": {name: version(name) for name in PACKAGES},
        "wall_seconds": wall,
        "seconds": seconds,
        "trials": view.counts,
        "front": state.front_length,
        "granularities_tried": sorted({row.granularity for row in rows if row.granularity is not None}),
        "largest_trial": max(row.size for row in rows if row.size is not None),
        "best": state.best,
        "finals": finals,
        "verdict": verdict(state.comparison, state.scores, options.max_size) if state.comparison else None,
    }
    print(json.dumps(summary))


def _search(options: argparse.Namespace, root: Path) -> None:
    command = [shutil.which("prunefront", path=str(Path(sys.executable).parent)) or "prunefront", "search"]
    command += ["--cost", "macs"]  # the same search on every machine
    for name in ("workload", "trials", "max_size", "finalists"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    subprocess.run([*command, "--root", str(root)], stdout=subprocess.DEVNULL, check=True)


def _seconds(view: StudyView) -> dict[str, float]:
    """Seconds by phase, from the journal; `before trials` is the scan with what surrounds it."""
    trials, finals = list(view.state.records.values()), view.state.finals
    phases = {"before trials": min(trial.started for trial in trials), "proposing": sum(t.proposing for t in trials)}
    for trial in trials:
        for phase, seconds in trial.result.seconds.items():
            phases[phase] = phases.get(phase, 0.0) + seconds
    phases["finals"] = sum(sum(final.result.seconds.values()) for final in finals)
    phases["study"] = max(run.finished for run in [*trials, *finals])
    return {phase: round(seconds, 1) for phase, seconds in phases.items()}


def _print_table(finals: Sequence[Mapping[str, Any]]) -> None:
    print("| network | runs | validation % | test % | encoded % | nonzero % |\n|---|---|---|---|---|---|")
    for row in finals:
        cells = [_with_spread(row[split], row[f"{split}_sd"]) for split in ("validation", "test")]
        sizes = [f"{row[size] * 100:.2f}" for size in ("size_encoded", "size_nonzero")]
        print("| " + " | ".join([row["name"], str(row["runs"]), *cells, *sizes]) + " |")


def _with_spread(mean: float, sd: float | None) -> str:
    return f"{mean * 100:.2f}" + (f" ± {sd * 100:.2f}" if sd is not None else "")


def hardware() -> str:
    """Processor, cores and memory of this machine."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    cores = sum(line.startswith("processor") for line in lines) or "?"
    return f"{model}, {cores} cores, no GPU"


if __name__ == "__main__":
    main()
