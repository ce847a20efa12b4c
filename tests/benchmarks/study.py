"""One whole study as a user runs it: what the finalists are worth, and where the seconds went.

    python tests/benchmarks/study.py digits
    python tests/benchmarks/study.py fashion-mnist --max-size 0.10 --root mlruns --picture front.png

Runs `prunefront search` in a subprocess (an existing study of the root is resumed, and its recorded seconds are
shown), prints the closing table and ends with one JSON line. Nothing is tuned on these numbers: the recipes come
from the uniform policy on validation data.
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
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from search.open import open_study
from search.pictures import front_png

PACKAGES = ("prunefront", "torch", "optuna", "mlflow")


def main() -> None:
    """Run, print, picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workload")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--max-size", type=float, default=0.25)
    parser.add_argument("--finalists", type=int, default=3)
    parser.add_argument("--root", help="default: a temporary folder, so that everything is done from nothing")
    parser.add_argument("--picture", type=Path, help="where the front's picture goes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(options.root or temporary)
        began = time.perf_counter()
        found = _search(options, root)
        wall = time.perf_counter() - began
        view = open_study(root, found["study"])
        if options.picture:
            options.picture.write_bytes(front_png(view.trials, view.front, options.max_size, view.comparison))
    _print_table(found)
    summary = {
        "command": f"prunefront search --workload {options.workload} --trials {options.trials} "
        f"--max-size {options.max_size} --finalists {options.finalists}",
        "hardware": hardware(),
        "versions": {name: version(name) for name in PACKAGES},
        "wall_seconds": round(wall, 1),
        "front": len(found["front"]),
        "granularities_tried": sorted(set(view.trials["granularity"].dropna())),
        "largest_trial": max(float(size) for size in view.trials["size"].dropna()),
        **{key: found[key] for key in ("trials", "best", "finals", "verdict", "seconds")},
    }
    print(json.dumps(summary))


def _search(options: argparse.Namespace, root: Path) -> Mapping[str, Any]:
    command = [shutil.which("prunefront", path=str(Path(sys.executable).parent)) or "prunefront", "search", "--json"]
    for name in ("workload", "trials", "max_size", "finalists"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    done = subprocess.run([*command, "--root", str(root)], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def _print_table(found: Mapping[str, Any]) -> None:
    print("| network | runs | validation % | test % | encoded % | nonzero % |\n|---|---|---|---|---|---|")
    for row in found["finals"]:
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
