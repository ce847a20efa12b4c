"""What a second worker brings: digits trials a minute, one worker of one thread against two, in turn.

    python tests/benchmarks/workers.py --rounds 5 --trials 16

Each round runs one study of each kind, in an order that changes, after the dense model is trained. `all` is the time
from the first trial's begin to the last one's end, the workers' own start included; `steady` that from the second
result to the last. On a machine that is busy the clock says little: `busy` is the share of two workers' steady time in
which they evaluated, and `work` what the evaluations took over those of one worker.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from study import hardware

PROGRAM = shutil.which("prunefront", path=Path(sys.executable).parent) or "prunefront"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def study(root: Path, name: str, workers: int, trials: int) -> dict[str, float]:
    """Seconds of one study: by the clock, all and steady; of its evaluations, all and steady; CPU seconds in all."""
    words = [
        PROGRAM,
        "search",
        "--workload",
        "digits",
        "--study",
        name,
        "--root",
        root,
        "--trials",
        trials,
        "--cost",
        "macs",
    ]
    words += ["--sampler", "random", "--warm-start", "off", "--finalists", 0, "--threads", 1, "--workers", workers]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [*map(str, words)], env=ENVIRONMENT, stderr=subprocess.DEVNULL, check=True, stdout=subprocess.DEVNULL
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    records = [json.loads(path.read_text()) for path in (root / name / "journal").glob("trial-*.json")]
    ends = sorted(one["finished"] for one in records)
    later = [one for one in records if one["finished"] > ends[1]]
    return {
        "wall": ends[-1] - min(one["started"] for one in records),
        "steady": ends[-1] - ends[1],
        "working": sum(sum(one["result"]["seconds"].values()) for one in records),
        "later": sum(sum(one["result"]["seconds"].values()) for one in later),
        "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }


def main() -> None:
    """Run, print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        study(root, "warm", 1, 3)
        rounds = []
        for number in range(options.rounds):
            kinds = (1, 2) if number % 2 else (2, 1)
            rounds.append({n: study(root, f"round-{number}-{n}", n, options.trials) for n in kinds})
    columns = f"{'1 all':>7}  {'2 all':>7}  {'ratio':>5}  {'1 steady':>8}  {'2 steady':>8}  {'ratio':>5}"
    print(f"{'round':>5}  {columns}  busy  work")
    found: dict[str, list[float]] = {"all": [], "steady": [], "busy": [], "work": []}
    for number, one in enumerate(rounds):
        alone, two = one[1], one[2]
        found["all"].append(alone["wall"] / two["wall"])
        found["steady"].append(alone["steady"] / two["steady"])
        found["busy"].append(two["later"] / (2 * two["steady"]))
        found["work"].append(two["working"] / alone["working"])
        print(
            f"{number:>5}  {alone['wall']:>6.1f}s  {two['wall']:>6.1f}s  {found['all'][-1]:>5.2f}  "
            f"{alone['steady']:>7.1f}s  {two['steady']:>7.1f}s  {found['steady'][-1]:>5.2f}  "
            f"{found['busy'][-1]:>4.0%}  {found['work'][-1]:>4.2f}"
        )
    said = {
        name: [round(x, 3) for x in (statistics.median(ones), min(ones), max(ones))] for name, ones in found.items()
    }
    print(
        json.dumps({"benchmark": "workers", "hardware": hardware(), "trials": options.trials, "n": len(rounds), **said})
    )


if __name__ == "__main__":
    main()
