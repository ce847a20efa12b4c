"""What a second worker brings: digits trials a minute, one worker of one thread against two, in turn.

    python tests/benchmarks/workers.py --rounds 5 --trials 16

Each round runs one study of each kind, in an order that changes, after the dense model is trained. Counted is the time
from the first trial's begin to the last one's end. On a machine that is busy the wall clock says little; CPU seconds
say what a second worker costs: those of all processes, and the share of two cores that stayed idle between the first
and the last trial's end.
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
    """One study's seconds a trial by the clock, and CPU seconds of its evaluations and of all its processes."""
    words = [PROGRAM, "search", "--workload", "digits", "--study", name, "--root", root, "--trials", trials]
    words += ["--sampler", "random", "--warm-start", "off", "--finalists", 0, "--threads", 1, "--workers", workers]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [*map(str, words)], env=ENVIRONMENT, stderr=subprocess.DEVNULL, check=True, stdout=subprocess.DEVNULL
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    records = [json.loads(path.read_text()) for path in (root / name / "journal").glob("trial-*.json")]
    begun, ended = min(one["started"] for one in records), max(one["finished"] for one in records)
    return {
        "wall": ended - begun,
        "working": sum(sum(one["result"]["seconds"].values()) for one in records),
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
        study(root, "warm", 1, 1)
        rounds = []
        for number in range(options.rounds):
            kinds = (1, 2) if number % 2 else (2, 1)
            rounds.append({n: study(root, f"round-{number}-{n}", n, options.trials) for n in kinds})
    ratios = [one[1]["wall"] / one[2]["wall"] for one in rounds]
    print(f"{'round':>5}  {'1 worker':>9}  {'2 workers':>9}  {'ratio':>6}  {'CPU 1':>7}  {'CPU 2':>7}  {'working':>8}")
    for number, one in enumerate(rounds):
        share = one[2]["working"] / (2 * one[2]["wall"])
        print(
            f"{number:>5}  {one[1]['wall']:>8.1f}s  {one[2]['wall']:>8.1f}s  {ratios[number]:>6.2f}  "
            f"{one[1]['cpu']:>6.1f}s  {one[2]['cpu']:>6.1f}s  {share:>7.0%}"
        )
    print(
        json.dumps(
            {
                "benchmark": "workers", "hardware": hardware(), "trials": options.trials, "n": len(rounds),
                "ratio": [round(statistics.median(ratios), 3), round(min(ratios), 3), round(max(ratios), 3)],
                "working over begun seconds": [
                    round(one[2]["working"] / one[1]["working"], 3) for one in rounds
                ],
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
