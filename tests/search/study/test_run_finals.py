"""Finals by themselves: of a study searched without them, with others than its own, and after interruptions."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import search.executors.evaluation
from search.config import SearchConfig
from search.errors import GoalMissed, UsageError
from search.export import latency_command
from search.results.remarks import finals_line
from search.results.view import open_study
from search.store.journal import Journal
from search.study.start import run_finals, run_search
from tests.conftest import ENVIRONMENT

OPTIONS = {"max_size": 0.5, "finalists": 0, "trials": 4, "granularity": "fine-grained", "bits": (8,), "seed": 3}


@pytest.fixture(scope="module")
def searched(place, tmp_path_factory) -> Path:
    """The root of a study without finals, which no test may change."""
    root = tmp_path_factory.mktemp("searched")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("search.study.runner.StudyRunner._projections", lambda *_: iter(()))
        run_search(SearchConfig(workload=f"{place / 'tiny.py'}:tiny", study="plain", root=str(root), **OPTIONS))
    return root


@pytest.fixture
def root(searched, tmp_path, without_mlflow) -> Path:
    return Path(shutil.copytree(searched, tmp_path / "root"))


def runs_of(root: Path) -> dict[tuple[str, int], float]:
    return {(run.digest, run.seed): run.result.accuracy for run in Journal(root / "plain" / "journal").finals()}


@pytest.mark.slow
def test_an_interruption_repeats_and_changes_nothing(root, searched, tmp_path, monkeypatch):
    """The oracle is the same call without one; what is stored of options stays, and a later search shows the finals."""
    other, asked, evaluate = (
        Path(shutil.copytree(searched, tmp_path / "other")),
        [],
        search.executors.evaluation.evaluate_job,
    )
    before = (root / "plain" / "study.json").read_bytes()
    whole = run_finals("plain", other, final_repeats=2)

    def counted(subject, job, *rest):
        asked.append(job.key)
        if len(asked) in (2, 5):
            raise KeyboardInterrupt
        return evaluate(subject, job, *rest)

    monkeypatch.setattr(search.executors.evaluation, "evaluate_job", counted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_finals("plain", root, final_repeats=2)
    found = run_finals("plain", root, final_repeats=2)
    assert len(asked) == len(set(asked)) + 2 and runs_of(root) == runs_of(other)
    timeless = [replace(one.comparison, latency=None) for one in (found, whole)]
    assert timeless[0] == timeless[1] and found.best == whole.best and len(found.comparison.finalists) >= 2
    assert max(score.n for score in found.finals.values()) == 2
    assert found.closing["runs"].max() == 2 and {"dense", "dense at 4 bits"} < {*found.closing["name"]}
    assert found.verdict and whole.verdict == found.verdict
    now, then = (json.loads(text) for text in ((root / "plain" / "study.json").read_bytes(), before))
    assert now["config"] == then["config"] and now["config"]["finalists"] == 0
    again = run_search(SearchConfig(study="plain", root=str(root)))
    assert again.comparison == found.comparison and len(asked) == len(set(asked)) + 2, "nothing is left to do"


@pytest.mark.slow
def test_trials_are_named_and_more_runs_asked_for_and_timed_by_a_command(root, monkeypatch):
    """The command says the size of the file, which stands for an ONNX file."""
    state = open_study(root, "plain").state
    last = max(number for number, record in state.records.items() if record.result.state == "complete")
    found = run_finals("plain", root, trials=[last], final_repeats=2)
    digest = state.records[last].policy.digest
    assert found.comparison.finalists[0] == found.comparison.named[0] == digest
    assert found.finals[digest].n == 2 and found.counts["complete"] == 4
    monkeypatch.setattr(latency_command, "write_onnx", lambda _, example, path, rounded: path.write_bytes(b"x" * 25))
    monkeypatch.setattr(latency_command, "ROUNDS", 2)
    command = """sh -c 'printf 0.0; wc -c < "$1"' - {file}"""
    more = run_finals("plain", root, trials=[last], final_repeats=3, latency_command=command)
    timed = more.comparison.latency
    assert found.comparison.latency.command is None and (timed.command, timed.rounds) == (command, 2)
    assert timed.networks[digest].seconds == timed.dense.seconds == 0.025
    assert "latency_command" not in json.loads((root / "plain" / "study.json").read_text())["config"]
    assert (
        more.finals[digest].n == 3
        and runs_of(root).items() >= {(run.digest, run.seed): run.result.accuracy for run in found.state.finals}.items()
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"study": "plian"}, "unknown study 'plian': did you mean 'plain'"),
        ({"trials": [17]}, "trial 17 is not a complete trial of study 'plain'; the nearest is 3"),
        ({"finalists": 0}, "finalists 0 has no effect on finals, which it leaves out: leave it out"),
        ({"finalists": 2, "trials": [0]}, "finalists 2 has no effect beside trials, which are compared in their place"),
        ({"max_size": 0.2}, "unknown option of finals 'max_size'"),
        ({"finalist": 2}, "unknown option of finals 'finalist': did you mean 'finalists'"),
        ({"comparison": "ful"}, "unknown comparison 'ful': did you mean 'full'"),
        ({"latency_command": "bench"}, r"latency-command must have \{file\} where the path of the ONNX file goes"),
        ({"latency_command": "false {file}"}, "fails on the dense network: it ended with code 1"),
    ],
)
def test_what_makes_no_finals_is_refused_before_any_work(root, monkeypatch, given, said):
    monkeypatch.setattr(latency_command, "write_onnx", lambda model, example, path, rounded: path.touch())
    with pytest.raises(UsageError, match=said):
        run_finals(**{"study": "plain", "root": root, **given})
    assert not runs_of(root)


def test_a_study_without_a_complete_trial_has_no_finals(root):
    for path in (root / "plain" / "journal").glob("trial-*.json"):
        path.unlink()
    (root / "plain" / "study.db").unlink()
    with pytest.raises(GoalMissed, match="study 'plain' has no complete trial to run finals of: give it more --trials"):
        run_finals("plain", root)


def test_how_finals_are_run_is_told():
    line = finals_line(SearchConfig(study="mine", root="else where"), "mine")
    assert line == "Finals: prunefront finals mine --root 'else where'"
    own = SearchConfig().model_copy(update={"workload": "<mine>"})
    assert finals_line(own, "mine") == "Finals: by run_finals in the Python program that has workload '<mine>'"
    scored = SearchConfig().model_copy(update={"criterion": "./my.py:f"})
    assert finals_line(scored, "mine", "/a/my.py:f") == "Finals: prunefront finals mine --criterion /a/my.py:f"


KILLED = """
import os, signal, sys
from search.store.journal import Journal

write, left = Journal.write_final, 2

def write_and_die(journal, record):
    global left
    write(journal, record)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

Journal.write_final = write_and_die
from search.cli.entry import main
sys.exit(main(sys.argv[1:]))
"""
"""The command, killed when its second run is on disk."""


@pytest.mark.slow
def test_the_command_goes_on_after_a_kill(root, run):
    """The same command ends it, and no run is there twice."""
    words = ["finals", "plain", "--root", root, "--final-repeats", 2, "--json"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *map(str, words)], env=ENVIRONMENT, capture_output=True)
    before = runs_of(root)
    assert killed.returncode == -signal.SIGKILL and len(before) == 2
    ended = run(*words)
    assert ended.returncode == 0, ended.stderr
    reply = json.loads(ended.stdout)
    assert runs_of(root).items() >= before.items()
    twice = [row["runs"] for row in reply["finals"]].count(2)  # of the best, its baseline, and who led before
    assert 1 <= twice <= 3 and reply["best"] is not None
    refused = run("finals", "plain", "--root", root, "--trials", "1,x")
    assert refused.returncode == 2 and "--trials takes numbers of trials, such as 7,12, got 'x'" in refused.stderr
