"""Kill workers of a study, and the study itself, at seeded moments: no trial may be lost, doubled or changed.

    python tests/faults/workers.py --workers 30 --studies 10 --restarts 5 --seed 0

With restarts MLflow's record is kept by a server, and Optuna's by PostgreSQL too; each is ended by force so many times,
and begun again some seconds later. The study samples at random, so that what it proposes does not depend on which
trials end first, and is held against one of a single process. SIGKILL throughout. One line of JSON at the end.
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
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "helpers")]

import invariants  # noqa: E402
from servers import MlflowProcess, PostgresCluster  # noqa: E402
from worker_processes import runs, workers_of  # noqa: E402

STUDY = "small"
LONGEST_PAUSE = 3.0
"""Seconds between two kills, at most."""
PROGRAM = shutil.which("prunefront", path=Path(sys.executable).parent) or "prunefront"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def words(root: Path, trials: int, workers: int, *more: str) -> list[str]:
    return [
        PROGRAM, "search", "--workload", f"{HERE / 'small_task.py'}:small", "--trials", str(trials), "--sampler",
        "random", "--warm-start", "off", "--max-size", "0.5", "--finalists", "0", "--threads", "1", "--workers",
        str(workers), "--cost", "macs", "--attempts", "100", "--root", str(root), *more,
    ]  # fmt: skip


def _results(study: Path) -> dict[str, bytes]:
    """The journal, but for what several workers change: which other trials were known when each was proposed, and which
    worker evaluated it.
    """
    entries = {name: json.loads(content) for name, content in invariants.journal(study).items()}
    for entry in entries.values():
        entry.pop("knew", None)
        entry.pop("worker", None)
    return {name: json.dumps(entry).encode() for name, entry in entries.items()}


class Servers:
    """An MLflow server and a PostgreSQL database that a study's records are kept by.

    Attributes:
        words: what the command line says of them.
        environment: what the environment says.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder, self.mlflow, self.postgres = folder, MlflowProcess(folder), PostgresCluster()
        self.words = ["--optuna-storage", self.postgres.url]
        self.environment = {"MLFLOW_TRACKING_URI": self.mlflow.uri, "PGPASSWORD": self.postgres.password}

    def __enter__(self) -> Servers:
        self.mlflow.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.mlflow.kill()
        self.postgres.remove()

    def end(self, kind: str) -> None:
        """End one of them in the middle of whatever it does."""
        if kind == "MLflow":
            self.mlflow.kill()
        else:
            self.postgres.stop()

    def begin(self, kind: str) -> None:
        """Begin it again, and wait until it answers."""
        (self.mlflow if kind == "MLflow" else self.postgres).start()

    def faults(self, study: Path) -> list[str]:
        """What their records say otherwise than the journal."""
        rows = self.postgres.rows("SELECT number, state FROM trials", "studies")
        found = sorted((int(number), state) for number, state in rows)
        return invariants.optuna_agrees(study, found) + invariants.mlflow_agrees(study, self._folder / "server.db")


def campaign(folder: Path, trials: int, kills: dict[str, int], workers: int, seed: int) -> dict[str, object]:
    """Kill so many of each kind, then let the study end; what was found."""
    random_, root = random.Random(seed), folder / "disturbed"
    kinds = [kind for kind, count in kills.items() for _ in range(count)]
    random_.shuffle(kinds)
    faults: list[str] = []
    killed = dict.fromkeys(kills, 0)
    journal, log = root / STUDY / "journal", folder / "stderr"
    process = None
    asked = trials
    with ExitStack() as stack:
        servers = stack.enter_context(Servers(folder / "servers")) if kills["MLflow"] + kills["PostgreSQL"] else None
        environment = {**ENVIRONMENT, **(servers.environment if servers else {})}
        said = servers.words if servers else []
        while kinds:
            if process is None or process.poll() is not None:
                asked += 0 if process is None or process.returncode == -signal.SIGKILL else trials
                process = subprocess.Popen(
                    words(root, asked, workers, *said), env=environment, stderr=log.open("ab"),
                    stdout=subprocess.DEVNULL,
                )  # fmt: skip
                time.sleep(1.0)
            time.sleep(random_.uniform(0.1, LONGEST_PAUSE))
            before, alive = invariants.journal(root / STUDY), workers_of(process.pid)
            if not alive or process.poll() is not None:
                continue
            kind = kinds.pop()
            killed[kind] += 1
            if servers and kind in ("MLflow", "PostgreSQL"):
                servers.end(kind)
                time.sleep(random_.uniform(0.1, LONGEST_PAUSE))
                servers.begin(kind)
            else:
                os.kill(random_.choice(alive) if kind == "worker" else process.pid, signal.SIGKILL)
            if kind == "study":
                process.wait()
                time.sleep(1.0)
                faults += [f"worker {one} outlives its study" for one in alive if runs(one)]
            now = invariants.journal(root / STUDY)
            faults += [f"{name} is lost or has changed" for name, content in before.items() if now.get(name) != content]
        if process is not None and process.poll() is None:
            process.wait()
        end = words(root, asked, workers, *said)
        subprocess.run(end, env=environment, stderr=log.open("ab"), stdout=subprocess.DEVNULL)
        agrees = servers.faults if servers else invariants.mlflow_agrees
        faults += agrees(root / STUDY)
    subprocess.run(
        words(folder / "alone", asked, 1), env=ENVIRONMENT, stderr=log.open("ab"), stdout=subprocess.DEVNULL, check=True
    )
    now, alone = (_results(place / STUDY) for place in (root, folder / "alone"))
    faults += invariants.same_results(now, alone) + invariants.nothing_left_over(journal)
    faults += invariants.optuna_agrees(root / STUDY)
    heard = log.read_text(errors="replace")
    faults += ["a traceback on stderr"] if "Traceback" in heard else []
    return {
        "campaign": "workers", "seed": seed, "workers": workers, "trials": asked, "killed": killed,
        "begun again": heard.count("begins again"), "lost": len(alone.keys() - now.keys()),
        "doubled": len(now.keys() - alone.keys()), "faults": faults,
    }  # fmt: skip


def main() -> int:
    """Run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--workers", type=int, default=30, help="kills of workers")
    parser.add_argument("--studies", type=int, default=10, help="kills of studies")
    parser.add_argument("--restarts", type=int, default=0, help="of MLflow's server and of PostgreSQL, each")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    kills = {"worker": options.workers, "study": options.studies}
    kills |= dict.fromkeys(("MLflow", "PostgreSQL"), options.restarts)
    with tempfile.TemporaryDirectory() as folder:
        found = campaign(Path(folder), options.trials, kills, options.at_once, options.seed)
    print(json.dumps(found))
    return 1 if found["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
