"""Interrupt a small study at seeded moments, go on by the same command, and check what must hold.

    python tests/faults/campaign.py kill --moments 100 --seed 0

Each moment is a signal (SIGKILL, SIGINT, SIGTERM) to a real process, a given time after a phase of the study has begun,
or a SIGKILL before the N-th call that changes what is on disk. One sequence disturbs one study several times; after
each its journal is held against the one before, and when it has ended, all of it against an undisturbed one.
Processes are forked from one that has imported the libraries; those of the phase `start-up` are the installed command.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import failpoints  # noqa: E402
import invariants  # noqa: E402

from search.cli import entry  # noqa: E402

STUDY, TRIALS = "small", 6
SEARCH = [
    "search", "--workload", f"{HERE / 'small_task.py'}:small", "--trials", str(TRIALS), "--max-size", "0.5",
    "--finalists", "2", "--final-seeds", "1", "--seed", "3", "--cost", "macs",
]  # fmt: skip
PHASES = ("start-up", "dense training", "scan", "store creation", "trials", "finals", "export")
DISK = "disk"
"""The phase of kills at calls that change what is on disk, of `search` or `export`."""
SIGNALS = {"KILL": signal.SIGKILL, "INT": signal.SIGINT, "TERM": signal.SIGTERM}
ENDED_BY = {"KILL": -signal.SIGKILL, "INT": 130, "TERM": 143}
PATIENCE = 300.0
"""Seconds after which a command that does not end is a fault."""


@dataclass(frozen=True)
class Moment:
    """One disturbance: `at` is the share of the phase that has passed, or the number of the call `point`."""

    phase: str
    kind: str
    at: float
    point: str = ""

    def __str__(self) -> str:
        where = f"{self.phase} at {self.at:.2f}" if not self.point else f"before {self.point} number {self.at:g}"
        return f"SIG{self.kind} in {where}"


@dataclass
class Place:
    """Where one study lives."""

    folder: Path
    number: int = 0
    root: Path = field(init=False)
    out: Path = field(init=False)

    def __post_init__(self) -> None:
        self.root, self.out = self.folder / "root", self.folder / "out"
        self.root.mkdir(parents=True)

    @property
    def study(self) -> Path:
        return self.root / STUDY

    def words(self, command: str) -> list[str]:
        if command == "search":
            return [*SEARCH, "--root", str(self.root)]
        return ["export", STUDY, "--trial", "best", "--out", str(self.out), "--root", str(self.root)]

    def start(self, command: str, before: Callable[[], object] | None = None) -> Process:
        self.number += 1
        return Process(self.words(command), self.folder / f"stderr-{self.number}", before)

    def start_program(self, program: str, command: str) -> Process:
        self.number += 1
        path = self.folder / f"stderr-{self.number}"
        streams = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
        streams.append((os.POSIX_SPAWN_OPEN, 2, str(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644))
        words = [program, *self.words(command)]
        return Process([], path, None, os.posix_spawn(program, words, os.environ, file_actions=streams))

    def phase_of(self) -> str:
        """By the files that are there."""
        cache = self.root / "cache"
        if self.out.parent.is_dir() and (self.study / "comparison.json").is_file():
            return "export"
        if len(list((self.study / "journal").glob("trial-*.json"))) >= TRIALS:
            return "finals"
        if any((self.study / "journal").glob("*trial-*")):
            return "trials"
        if any(cache.glob("profile-*.json")):
            return "store creation"
        if any(cache.glob("dense-*.safetensors")):
            return "scan"
        return "dense training" if (self.study / "study.lock").is_file() else "start-up"


class Process:
    """A command of ours in a forked process of its own."""

    def __init__(self, words: list[str], stderr: Path, before: Callable[[], object] | None, pid: int = 0) -> None:
        self.stderr, self.code = stderr, None
        self.pid = pid or os.fork()
        if not self.pid:
            _become(words, stderr, before)

    def ended(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def wait(self) -> int | None:
        """The exit code; None if it had to be ended."""
        until = time.monotonic() + PATIENCE
        while not self.ended():
            if time.monotonic() > until:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                return None
            time.sleep(0.002)
        return self.code

    @property
    def said(self) -> str:
        return self.stderr.read_text(errors="replace")


def _become(words: list[str], stderr: Path, before: Callable[[], object] | None) -> None:
    """In the child: run the command as its program would, and end."""
    code = 97
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1):
            os.dup2(nothing, number)
        os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 2)
        if before is not None:
            before()
        code = entry.main(words)
        atexit._run_exitfuncs()
    finally:
        os._exit(code)


def import_all() -> None:
    """What commands import, once for all children."""
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    import torch

    import search.cli.commands.policy
    import search.cli.commands.study
    import search.results.figures  # noqa: F401

    torch.set_num_threads(1)


@dataclass
class Undisturbed:
    """What a study comes to by itself: its files, how long each phase lasts, and its calls to the disk."""

    place: Place
    seconds: dict[str, float]
    calls: dict[str, dict[str, int]]
    store: Path

    @classmethod
    def made(cls, folder: Path) -> Undisturbed:
        place, seconds, calls = Place(folder / "undisturbed"), {}, {}
        place.out = folder / "undisturbed" / "export" / "out"
        store = folder / "mlflow.db"
        maker = _make_store(store)
        entered, phase = time.monotonic(), "start-up"
        for command in ("search", "export"):
            if command == "export":
                place.out.parent.mkdir()
            counted = folder / f"calls-{command}"

            def count(counted: Path = counted) -> None:
                calls = failpoints.count_calls()
                atexit.register(lambda: counted.write_text(json.dumps(calls)))

            process = place.start(command, count)
            while not process.ended():
                if (now := place.phase_of()) != phase:
                    seconds[phase] = time.monotonic() - entered
                    entered, phase = time.monotonic(), now
                time.sleep(0.001)
            if process.code:
                raise SystemExit(f"the undisturbed study ended with {process.code}: {process.said}")
            calls[command] = json.loads(counted.read_text())
        seconds[phase] = time.monotonic() - entered
        seconds["start-up"] = 4.0
        os.waitpid(maker, 0)
        return cls(place, {phase: seconds.get(phase, 0.5) for phase in PHASES}, calls, store)


def _make_store(path: Path) -> int:
    """Begin to make an empty MLflow database, so that most studies need not wait for theirs; the process that does."""
    child = os.fork()
    if not child:
        try:
            from search.store.mlflow_store import open_store

            open_store(path.parent / "store")
            shutil.copy(path.parent / "store" / "mlflow.db", path)
        finally:
            os._exit(0)
    return child


def moments_of(count: int, random_: random.Random, calls: dict[str, dict[str, int]]) -> list[Moment]:
    """Every phase its share, signals in turn: half of them SIGKILL; every eighth before a call to the disk."""
    found, kinds = [], ("KILL", "INT", "KILL", "TERM")
    for number in range(count):
        if number % 8 == 7:
            command = random_.choice(["search", "search", "export"])
            point = random_.choice([name for name in failpoints.POINTS if calls[command].get(name)])
            phase = DISK if command == "search" else f"{DISK} (export)"
            found.append(Moment(phase, "KILL", random_.randint(1, calls[command][point]), point))
        else:
            phase = PHASES[(number - number // 8) % len(PHASES)]
            found.append(Moment(phase, kinds[(number // len(PHASES) + number) % len(kinds)], random_.random()))
    return found


def sequences_of(moments: list[Moment]) -> Iterator[list[Moment]]:
    """Moments that one study goes through, in the order of its phases; a few of each phase at most."""
    order = {phase: place for place, phase in enumerate((*PHASES[:4], DISK, *PHASES[4:], f"{DISK} (export)"))}
    left = sorted(moments, key=lambda moment: order[moment.phase])
    while left:
        chosen, seen = [], Counter()
        for moment in left:
            if seen[moment.phase] < (2 if moment.phase == "trials" else 1):
                chosen.append(moment)
                seen[moment.phase] += 1
        left = [moment for moment in left if not any(moment is one for one in chosen)]
        yield chosen


@dataclass
class Count:
    """Moments of one phase and signal: those in time, those of them at which all held, and those that came too late."""

    tried: int = 0
    held: int = 0
    late: int = 0


@dataclass
class Counts:
    """Of a campaign; `whole` studies had nothing wrong at their end."""

    moments: dict[str, Count] = field(default_factory=dict)
    studies: int = 0
    whole: int = 0
    faults: list[str] = field(default_factory=list)


def disturb(
    place: Place, moment: Moment, undisturbed: Undisturbed, program: str | None
) -> tuple[bool, list[str], float]:
    """One run that is disturbed: whether it was in time, what does not hold, and the seconds from signal to end."""
    command = "export" if "export" in moment.phase else "search"
    if command == "export":
        go_on(place)
    before = invariants.journal(place.study)
    if moment.point:
        process = place.start(command, lambda: failpoints.kill_at(moment.point, int(moment.at)))
        process.wait()
        seconds = 0.0
    else:
        process = (
            place.start_program(program, command) if moment.phase == "start-up" and program else place.start(command)
        )
        begins = moment.phase if command == "search" and moment.phase != "start-up" else place.phase_of()
        waited = PHASES.index(begins)
        while PHASES.index(place.phase_of()) < waited and not process.ended():
            time.sleep(0.001)
        until = time.monotonic() + moment.at * undisturbed.seconds[moment.phase]
        while time.monotonic() < until and not process.ended():
            time.sleep(0.001)
        if not process.ended():
            os.kill(process.pid, SIGNALS[moment.kind])
        sent = time.monotonic()
        process.wait()
        seconds = time.monotonic() - sent
    in_time = process.code == ENDED_BY[moment.kind]
    early = moment.phase == "start-up" and process.code == -SIGNALS[moment.kind]  # Python had not begun our code yet
    faults = [] if early else invariants.said_well(process.said, process.code)
    faults += invariants.kept(before, invariants.journal(place.study))
    if not in_time and not early and process.code != 0:
        faults.append(f"exit code {process.code}: {process.said[-300:]}")
    if process.code in (130, 143) and command == "search" and "resume with: prunefront search" not in process.said:
        faults.append("it does not say how to resume")
    return in_time or early, [f"{moment}: {fault}" for fault in faults], seconds


def go_on(place: Place) -> list[str]:
    """The same command to its end."""
    before = invariants.journal(place.study)
    process = place.start("search")
    code = process.wait()
    faults = [] if code == 0 else [f"exit code {code} when going on: {process.said[-300:]}"]
    faults += invariants.said_well(process.said, code or 0)
    if "MLflow could not be written" in process.said:
        faults.append("MLflow could not be written: " + process.said[-300:])
    return faults + invariants.kept(before, invariants.journal(place.study))


def check_all(place: Place, undisturbed: Undisturbed) -> list[str]:
    """The study to its end, and all that must hold of it then."""
    faults = go_on(place)
    began, export = time.monotonic(), place.start("export")
    if export.wait() != 0:
        return [*faults, f"export ended with {export.code}: {export.said[-300:]}"]
    undisturbed.seconds["export"] = min(undisturbed.seconds["export"], time.monotonic() - began)
    faults += invariants.said_well(export.said, 0)
    results = invariants.journal(place.study)
    faults += invariants.same_results(results, invariants.journal(undisturbed.place.study))
    for check in (invariants.optuna_agrees, invariants.mlflow_agrees):
        faults += check(place.study)
    faults += invariants.export_is_whole(place.out)
    for name in ("policy.json", "sparsity.json", "model.safetensors"):
        if (place.out / name).read_bytes() != (undisturbed.place.out / name).read_bytes():
            faults.append(f"the export's {name} differs")
    return faults + invariants.nothing_left_over(place.root, place.out, place.folder)


def run(moments: int, seed: int, folder: Path, program: str | None, say=print) -> Counts:
    """The campaign."""
    random_ = random.Random(seed)
    undisturbed = Undisturbed.made(folder)
    counts, slowest = Counts(), 0.0
    for number, sequence in enumerate(sequences_of(moments_of(moments, random_, undisturbed.calls))):
        place = Place(folder / f"study-{number}")
        if not any(moment.phase == "store creation" for moment in sequence) or number % 3:
            shutil.copy(undisturbed.store, place.root / "mlflow.db")
        found = []
        for moment in sequence:
            count = counts.moments.setdefault(f"{moment.phase} SIG{moment.kind}", Count())
            in_time, faults, seconds = disturb(place, moment, undisturbed, program)
            slowest = max(slowest, seconds)
            count.tried += in_time
            count.late += not in_time
            count.held += in_time and not faults
            found += faults
        at_end = check_all(place, undisturbed)
        counts.studies += 1
        counts.whole += not at_end
        counts.faults += found + [f"study {number} after {', '.join(map(str, sequence))}: {fault}" for fault in at_end]
        if not found + at_end:
            shutil.rmtree(place.folder)
        say(f"study {number}: {len(sequence)} moments, {len(found)} faults at them, {len(at_end)} at its end")
    say(f"slowest end after a signal: {slowest:.2f} s")
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["kill"])
    parser.add_argument("--moments", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a new folder in which studies with faults stay")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it starts in the background
    os.environ.update(OMP_NUM_THREADS="1", PYTHONUNBUFFERED="1")
    import_all()
    program = shutil.which("prunefront", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    folder = options.keep or Path(tempfile.mkdtemp(prefix="campaign-"))
    folder.mkdir(parents=True, exist_ok=True)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    began = time.monotonic()
    try:
        counts = run(options.moments, options.seed, folder.resolve(), program, say)
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    totals = {key: sum(getattr(count, key) for count in counts.moments.values()) for key in ("tried", "held", "late")}
    for name, count in sorted(counts.moments.items()):
        say(f"{name:32} tried {count.tried:3}  held {count.held:3}  ended before {count.late:3}")
    say(f"{'all':32} tried {totals['tried']:3}  held {totals['held']:3}  ended before {totals['late']:3}")
    say(f"studies {counts.studies}, nothing wrong at the end of {counts.whole}")
    for fault in counts.faults:
        say(f"    {fault}")
    by_phase = {name: [count.tried, count.held, count.late] for name, count in sorted(counts.moments.items())}
    told: dict[str, object] = {**totals, "studies": counts.studies, "whole": counts.whole, "seed": options.seed}
    told |= {"seconds": round(time.monotonic() - began), "counts": by_phase, "faults": counts.faults}
    print(json.dumps(told))
    return 1 if counts.faults else 0


if __name__ == "__main__":
    sys.exit(main())
