"""Real signals to the installed command: a study that was killed or ended goes on, nothing is lost or done twice."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time

import pytest
from written_studies import stored

pytestmark = pytest.mark.slow


class Running:
    """A `prunefront search` in a process of its own, which waits once it has taken so many steps of training."""

    def __init__(self, program, place, root, *words, steps):
        self.root, self.log, self.hold = root, root.with_suffix(".log"), root.with_suffix(".hold")
        self.hold.mkdir(exist_ok=True)
        for mark in self.hold.iterdir():
            mark.unlink()
        self.file = self.log.open("w")
        self.process = subprocess.Popen(
            [program, "search", "--root", str(root), "--max-size", "0.5", "--finalists", "0", "--cost", "macs",
             *words], cwd=place,
            stdout=subprocess.DEVNULL, stderr=self.file,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HOLD": str(self.hold), "HOLD_AFTER": str(steps)},
        )  # fmt: skip

    def wait_for(self, happened) -> None:
        for _ in range(60_000):
            if happened():
                return
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.01)
        raise AssertionError("it never happened: " + self.log.read_text())

    def wait_until_it_waits(self) -> None:
        self.wait_for(lambda: any(self.hold.iterdir()))

    def stop(self, number: int) -> int:
        self.process.send_signal(number)
        code = self.process.wait(600)
        self.file.close()
        return code

    def journal(self, study: str = "slow") -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.root / study / "journal").glob("trial-*.json")}


DENSE, TRIAL_STEPS = 80, 20
"""Steps of training of the dense model, and of a trial."""


@pytest.fixture
def running(program, place, finished, tmp_path):
    """Start or resume a study of four slow trials in a root of its own; MLflow's store is copied to save making it."""
    begun = []

    def go(*words, steps):
        own = tmp_path / "mlruns"
        if not own.is_dir():
            own.mkdir()
            shutil.copy(finished.root / "mlflow.db", own / "mlflow.db")
        words = ("--workload", "./tiny.py:slow", "--trials", "4", *words)
        begun.append(Running(program, place, own, *words, steps=steps))
        return begun[-1]

    yield go
    for process in begun:
        if process.process.poll() is None:
            process.process.kill()
            process.process.wait()


def assert_whole(study: Running, run, kept: dict[str, bytes]) -> None:
    """The same command ends the study: nothing lost, nothing twice, what was finished untouched."""
    ended = run("search", "--root", study.root, "--workload", "./tiny.py:slow", "--max-size", 0.5, "--trials", 4,
                "--finalists", 0, "--json")  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    reply = json.loads(ended.stdout)
    assert reply["trials"] == {"complete": 4, "stopped-early": 0, "failed": 0, "running": 0, "waiting": 0}
    journal = study.journal()
    assert sorted(journal) == [f"trial-{n:05d}.json" for n in range(4)]
    assert {name: journal[name] for name in kept} == kept
    repeated = re.findall(r"^trial \d+: ", ended.stderr, re.M)
    assert len(repeated) == 4 - len(kept)
    numbers = [(trial.number, trial.state.name) for trial in stored(study.root, "slow")]
    assert numbers == [(n, "COMPLETE") for n in range(4)]
    points = {n: json.loads(journal[f"trial-{n:05d}.json"])["result"] for n in range(4)}
    chance = json.loads((study.root / "slow" / "study.json").read_text())["chance"]
    assert {row["trial"] for row in reply["front"]} == {
        n for n, a in points.items()
        if a["accuracy"] > chance and not any(_beats(b, a) for b in points.values())
    }  # fmt: skip


def assert_read_while_it_runs(study: Running, run) -> None:
    """`status` and `front` tell of the trials that are there and leave the search alone."""
    status = run("status", "slow", "--root", study.root, "--json")
    rows = run("front", "slow", "--root", study.root, "--all", "--format", "json")
    said = json.loads(status.stdout)
    assert said["running"] is True
    assert said["trials"] == {"complete": 2, "stopped-early": 0, "failed": 0, "running": 1, "waiting": 0}
    assert [row["state"] for row in json.loads(rows.stdout)] == ["complete", "complete", "running"]
    assert (status.returncode, rows.returncode, study.process.poll()) == (0, 0, None)


def _beats(a: dict, b: dict) -> bool:
    pairs = [(-a["accuracy"], -b["accuracy"])] + [(a["shares"][k], b["shares"][k]) for k in ("encoded", "macs")]
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)


def test_a_study_that_is_killed_three_times(running, run):
    """In the dense model's training, in the middle of a trial, and right after a result is written."""
    study = running(steps=9)
    study.wait_until_it_waits()
    assert study.stop(signal.SIGKILL) == -signal.SIGKILL
    assert not list((study.root / "cache").glob("dense-*.safetensors"))
    study = running(steps=DENSE + TRIAL_STEPS + 6)
    study.wait_until_it_waits()
    assert study.stop(signal.SIGKILL) == -signal.SIGKILL
    kept = study.journal()
    assert len(kept) == 1
    study = running(steps=TRIAL_STEPS)
    study.wait_for(lambda: "trial-00001.json" in study.journal())
    assert study.stop(signal.SIGKILL) == -signal.SIGKILL
    assert len(study.journal()) == 2 and kept.items() <= study.journal().items()
    assert_whole(study, run, study.journal())


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "term")]
)
def test_signals_end_resumable_with_their_code(running, run, number, code, word):
    study = running("--trials", "600", steps=DENSE + 2 * TRIAL_STEPS + 6)
    study.wait_until_it_waits()
    if number == signal.SIGINT:
        second = run("search", "--root", study.root, "--workload", "./tiny.py:slow", "--finalists", 0)
        assert second.returncode == 3 and str(study.process.pid) in second.stderr, second.stderr
        assert study.process.poll() is None
    else:
        assert_read_while_it_runs(study, run)
    assert study.stop(number) == code
    last = study.log.read_text().splitlines()[-1]
    assert last.startswith("prunefront: ") and word in last and "Traceback" not in study.log.read_text()
    command = last.partition("resume with: ")[2].split()
    assert command[:2] == ["prunefront", "search"]
    if number == signal.SIGTERM:
        kept = study.journal()
        ended = run(*command[1:], "--trials", len(kept) + 1)
        assert ended.returncode == 0 and len(study.journal()) == len(kept) + 1, ended.stderr
        assert {name: study.journal()[name] for name in kept} == kept
