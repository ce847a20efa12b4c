"""Kill workers of a study, and the study itself, at seeded moments: no trial may be lost, doubled or changed.

    python tests/faults/workers.py --workers 30 --studies 10 --seed 0

The study samples at random, so that what it proposes does not depend on which trials end first, and is held against
one of a single process. SIGKILL throughout. One line of JSON at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "helpers")]

import invariants  # noqa: E402
from worker_processes import runs, workers_of  # noqa: E402

STUDY = "small"
LONGEST_PAUSE = 3.0
"""Seconds between two kills, at most."""
PROGRAM = shutil.which("prunefront", path=Path(sys.executable).parent) or "prunefront"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def words(root: Path, trials: int, workers: int) -> list[str]:
    return [
        PROGRAM, "search", "--workload", f"{HERE / 'small_task.py'}:small", "--trials", str(trials), "--sampler",
        "random", "--warm-start", "off", "--max-size", "0.5", "--finalists", "0", "--threads", "1", "--workers",
        str(workers), "--attempts", "100", "--root", str(root),
    ]  # fmt: skip


def _results(study: Path) -> dict[str, bytes]:
    """The journal, but for which other trials were known when each was proposed, which several workers change."""
    entries = {name: json.loads(content) for name, content in invariants.journal(study).items()}
    for entry in entries.values():
        entry.pop("knew", None)
    return {name: json.dumps(entry).encode() for name, entry in entries.items()}


def campaign(folder: Path, trials: int, of_workers: int, of_studies: int, workers: int, seed: int) -> dict[str, object]:
    """Kill so many workers and studies, then let the study end; what was found."""
    random_, root = random.Random(seed), folder / "disturbed"
    kinds = ["worker"] * of_workers + ["study"] * of_studies
    random_.shuffle(kinds)
    faults: list[str] = []
    killed = {"worker": 0, "study": 0}
    journal, log = root / STUDY / "journal", folder / "stderr"
    process = None
    asked = trials
    while kinds:
        if process is None or process.poll() is not None:
            asked += 0 if process is None or process.returncode == -signal.SIGKILL else trials
            process = subprocess.Popen(
                words(root, asked, workers), env=ENVIRONMENT, stderr=log.open("ab"), stdout=subprocess.DEVNULL
            )
            time.sleep(1.0)
        time.sleep(random_.uniform(0.1, LONGEST_PAUSE))
        before, alive = invariants.journal(root / STUDY), workers_of(process.pid)
        if not alive or process.poll() is not None:
            continue
        kind = kinds.pop()
        target = random_.choice(alive) if kind == "worker" else process.pid
        os.kill(target, signal.SIGKILL)
        killed[kind] += 1
        if kind == "study":
            process.wait()
            time.sleep(1.0)
            faults += [f"worker {one} outlives its study" for one in alive if runs(one)]
        now = invariants.journal(root / STUDY)
        faults += [f"{name} is lost or has changed" for name, content in before.items() if now.get(name) != content]
    if process is not None and process.poll() is None:
        process.wait()
    subprocess.run(words(root, asked, workers), env=ENVIRONMENT, stderr=log.open("ab"), stdout=subprocess.DEVNULL)
    subprocess.run(
        words(folder / "alone", asked, 1), env=ENVIRONMENT, stderr=log.open("ab"), stdout=subprocess.DEVNULL, check=True
    )
    now, alone = (_results(place / STUDY) for place in (root, folder / "alone"))
    faults += invariants.same_results(now, alone) + invariants.nothing_left_over(journal)
    faults += invariants.optuna_agrees(root / STUDY) + invariants.mlflow_agrees(root / STUDY)
    said = log.read_text(errors="replace")
    faults += ["a traceback on stderr"] if "Traceback" in said else []
    return {
        "campaign": "workers", "seed": seed, "workers": workers, "trials": asked, "killed": killed,
        "begun again": said.count("begins again"), "lost": len(alone.keys() - now.keys()),
        "doubled": len(now.keys() - alone.keys()), "faults": faults,
    }  # fmt: skip


def main() -> int:
    """Run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--workers", type=int, default=30, help="kills of workers")
    parser.add_argument("--studies", type=int, default=10, help="kills of studies")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = campaign(Path(folder), options.trials, options.workers, options.studies, options.at_once, options.seed)
    print(json.dumps(found))
    return 1 if found["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
