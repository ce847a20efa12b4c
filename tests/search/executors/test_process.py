"""Studies whose trials run in processes of their own: same results, and what the end of a process costs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from watchers import Notes
from worker_processes import group_of, runs, wait_until, workers_of

from pruning import register_criterion
from search import SearchConfig, run_search
from search.checksum import unsealed
from search.errors import EnvironmentProblem, UsageError
from search.executors.choose import threads_of
from search.executors.jobs import Done, Job, Lost
from search.executors.process import ProcessExecutor
from search.placement import Placement, cards
from search.progress import ProgressReporter
from search.proposals.optuna_study import OptunaStudy
from search.proposals.replay import replay
from search.store.journal import Journal
from search.study.runner import StudyRunner
from search.training.evaluate import failed
from spaces.policy import PruningPolicy
from spaces.sensitivity import Profile

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
TASKS = '''
import os, resource, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
import torch
import search.executors.child
from tiny import changed, slow

HERE = Path(__file__).parent


def _once(mark):
    try:
        os.close(os.open(HERE / mark, os.O_CREAT | os.O_EXCL))
        return True
    except FileExistsError:
        return False


def _augmented(name, act):
    """Does something once, in a worker."""
    coordinator = os.environ.get("COORDINATOR")

    def augment(inputs, generator):
        if coordinator and coordinator != str(os.getpid()) and _once(name):
            act()
        return inputs

    return changed(name=name, augment=augment)


def _begun(kind):
    return len([*Path(os.environ["ROOT"]).glob(f"*/journal/begun-{kind}-*.now")])


def _wait_for_two(kind):
    ends = time.monotonic() + 60
    while _begun(kind) < 2 and time.monotonic() < ends:
        time.sleep(0.02)


def paired():
    """The first trial of a worker's waits until another has begun one."""
    return _augmented("paired", lambda: _wait_for_two("trial"))


def killed():
    return _augmented("killed", lambda: os.kill(os.getpid(), signal.SIGKILL))


def crashing():
    return _augmented("crashing", lambda: (os.unlink(HERE / "crashing"), os.kill(os.getpid(), signal.SIGKILL)))


def full():
    """No file of a worker may grow to a network's size."""
    sys.path.append(HERE)  # no text: Python passes over it
    if os.environ.get("COORDINATOR") != str(os.getpid()):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    return changed(name="full")


def parents():
    """Slow; each worker has a process of its own."""
    if b"executors.child" in Path("/proc/self/cmdline").read_bytes():
        subprocess.Popen(["sleep", "600"])
    return replace(slow(), name="parents")


def thinking():
    """Scores once, in a worker's trial, for longer than any step takes; workers often say that they compute."""
    search.executors.child.SECONDS_A_SIGN = 0.1

    def metric(outputs, targets):
        long = _begun("trial") and os.environ["COORDINATOR"] != str(os.getpid()) and _once("thinking")
        until = time.process_time() + (2.5 if long else 0)
        while time.process_time() < until:
            pass
        return float((outputs.argmax(1) == targets).float().mean())

    return changed(name="thinking", metric=metric)


def hungry():
    """Lacks memory while another trial runs, as one does when the first begins."""

    def augment(inputs, generator):
        if _begun("trial") and os.environ["COORDINATOR"] != str(os.getpid()) and _once("hungry"):
            _wait_for_two("trial")
        if _begun("trial") > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inputs

    return changed(name="hungry", augment=augment)


def speaking():
    """Once, a worker's trial writes to file descriptor 1 and raises what Ctrl-C does."""

    def act():
        os.write(1, b"from below\\n")
        raise KeyboardInterrupt

    return _augmented("speaking", act)


def hanging():
    return _augmented("hanging", lambda: time.sleep(600))


def killed_in_scan():
    """Once, in a worker that has a part of the scan."""
    def metric(outputs, targets):
        if _begun("scan") and os.environ["COORDINATOR"] != str(os.getpid()) and _once("killed_in_scan"):
            os.kill(os.getpid(), signal.SIGKILL)
        return (outputs.argmax(1) == targets).float().mean().item()

    return changed(name="killed_in_scan", metric=metric)


def hungry_in_scan():
    """Lacks memory while another part of the scan runs."""
    def metric(outputs, targets):
        if _begun("scan") and os.environ["COORDINATOR"] != str(os.getpid()) and _once("hungry_in_scan"):
            _wait_for_two("scan")
        if _begun("scan") > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return (outputs.argmax(1) == targets).float().mean().item()

    return changed(name="hungry_in_scan", metric=metric)


def drawn():
    """Other images in every process."""
    whole = changed()
    images, labels = whole.fit
    return changed(name="drawn", fit=(images + (os.getpid() % 9999) / 1e6, labels))
'''


@pytest.fixture(scope="module")
def tasks(place) -> Path:
    (place / "tasks.py").write_text(TASKS)
    return place / "tasks.py"


@pytest.fixture
def begin(tasks, tmp_path, without_mlflow, monkeypatch):
    monkeypatch.setenv("COORDINATOR", str(os.getpid()))
    monkeypatch.setenv("ROOT", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path])
    for mark in ("paired", "killed", "hanging", "hungry", "killed_in_scan", "hungry_in_scan", "speaking", "thinking"):
        (tasks.parent / mark).unlink(missing_ok=True)

    def study(task: str = "tiny.py:tiny", watcher: ProgressReporter | None = None, **options):
        options = {"trials": 6, "finalists": 0, "warm_start": False, "sampler": "random", "max_size": 0.5} | options
        options = {"root": str(tmp_path), "threads": 1, "cost": "macs"} | options
        config = SearchConfig(workload=f"{tasks.parent / task}", **options)
        result = run_search(config, watcher)
        return result, {trial.number: told(trial) for trial in Journal(result.folder / "journal").trials()}

    return study


@pytest.fixture
def right(begin, of_one_process):
    """What one process finds in the first six trials."""
    if not of_one_process:
        of_one_process.update(begin(study="right")[1])
    return of_one_process


@pytest.fixture(scope="module")
def of_one_process() -> dict[int, tuple]:
    return {}


def told(trial) -> tuple:
    result = trial.result
    return trial.params, trial.policy, result.accuracy, result.loss, result.shares, result.curve, result.reason


SCRIPT = """
import os, signal, socket, sys, time
parent = socket.socket(fileno=int(sys.argv[1]))
lines = parent.makefile("rb")
lines.readline()
parent.sendall(b'{{"kind": "ready"}}\\n')
while lines.readline() not in (b"null\\n", b""):
    {}
"""
"""A worker's process: what it does with a job is left out."""


@pytest.fixture
def scripted(tmp_path, monkeypatch):
    """An executor of one worker that is a script, and a job that it was given."""
    made = []

    def executor(does: str, stall: float) -> tuple[ProcessExecutor, Job]:
        monkeypatch.setattr("search.executors.process.BOOT", SCRIPT.format(does))
        made.append(ProcessExecutor({"folder": str(tmp_path)}, 1, 1, (), stall, ProgressReporter()))
        made[0].submit(job := Job("a", "the job a", "a", PruningPolicy({"conv.weight": 0.25}), 2, 7))
        return made[0], job

    yield executor
    made[0].close()


def test_a_worker_that_stops_in_the_middle_of_a_message_is_stalled(scripted):
    halting = """
    parent.sendall(b'{"kind": "step", "done": 3, "total": 20}\\n{"kind": "st')
    os.kill(os.getpid(), signal.SIGSTOP)
"""
    executor, job = scripted(halting, 0.5)
    said = "stalled: neither a step nor any computing for 0 s (--stall)"
    assert executor.wait() == [Lost(job, (3, 20), said)]


def test_a_message_may_come_in_pieces(scripted):
    plain = json.dumps({"kind": "result", **Done(None, failed("diverged: nan").result).to_plain()})
    pieces = f"parent.sendall(b'{plain[:50]}'); time.sleep(0.1); parent.sendall(b'{plain[50:]}\\n')"
    executor, job = scripted(pieces, 60.0)
    assert executor.wait() == [Done(job, failed("diverged: nan").result, worker="1")]


def test_a_second_interrupt_while_workers_end_leaves_no_mark_of_a_trial(scripted, tmp_path, monkeypatch):
    executor, _ = scripted("pass", 60.0)
    executor.wait_until_ready()
    executor._hand_out()
    (tmp_path / "begun-a.now").write_text("3 20")

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("search.executors.process._signal", interrupted)
        executor.close()
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_two_workers_find_what_one_process_does_and_none_is_left(begin):
    _, alone = begin("tasks.py:paired", study="alone", finalists=1, final_repeats=2)
    seen, over = set(), threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            seen.update(workers_of(os.getpid()))

    threading.Thread(target=look, daemon=True).start()
    result, together = begin("tasks.py:paired", study="together", workers=2, finalists=1, final_repeats=2)
    over.set()
    assert together == alone and len(alone) == 6
    before, now = (Journal(result.folder.parent / name / "journal") for name in ("alone", "together"))
    finals = [{(r.digest, r.seed): (r.result.loss, r.test_loss) for r in j.finals()} for j in (before, now)]
    assert finals[0] == finals[1] and len(finals[0]) >= 2
    assert len(seen) == 2 and not any(map(runs, seen))
    assert {trial.worker for trial in before.trials()} == {None} and {trial.worker for trial in now.trials()} == {
        "1",
        "2",
    }
    weights = {path.name for path in (result.folder / "checkpoints").iterdir()} - {"dense.safetensors"}
    assert weights == {path.name for path in (result.folder.parent / "alone" / "checkpoints").iterdir()}
    assert not [*now.folder.glob("begun-*"), *now.folder.glob("pending-*")]


@pytest.mark.slow
def test_every_proposal_of_two_workers_can_be_repeated_from_the_journal(begin, monkeypatch):
    runners = []

    class Kept(StudyRunner):
        def run(self):
            runners.append(self)
            return super().run()

    monkeypatch.setattr("search.study.start.StudyRunner", Kept)
    options = {"sampler": "guided", "warm_start": True, "trials": 10, "bits": (8, 4)}
    result, _ = begin("tasks.py:paired", study="guided", workers=2, **options)
    trials = {trial.number: trial for trial in Journal(result.folder / "journal").trials()}
    (runner,) = runners
    assert any(trial.knew and trial.knew.running for trial in trials.values())
    for number in range(5, 10):
        study = OptunaStudy("guided", runner.config.seed, runner.space.axes, runner._guide())
        assert replay(study, number, trials) == trials[number].params


@pytest.mark.slow
def test_a_scan_by_two_workers_is_that_of_one_process(begin, tmp_path):
    found = []
    for name, options in (("one", {}), ("two", {"workers": 2})):
        watcher = Notes()
        options |= {"warm_start": True, "trials": 1, "bits": (8, 4), "watcher": watcher}
        begin("tiny.py:tiny", study=name, root=str(tmp_path / name), **options)
        (path,) = (tmp_path / name / "cache").glob("profile-*.json")
        profile = Profile.from_json(unsealed(path.read_text()))
        found.append(replace(profile, seconds=0.0))
        assert not [*path.parent.glob("*.points.jsonl")] and not watcher.notes[1:]
    assert found[0] == found[1] and len(found[0].points["fine-grained"]) == 3 and found[0].rounding


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "how"), [("killed", "killed from outside, or for lack"), ("hanging", "stalled: neither a step nor any")]
)
def test_a_worker_that_is_killed_or_hangs_costs_an_attempt_and_nothing_else(begin, right, task, how):
    watcher = Notes()
    _, found = begin(f"tasks.py:{task}", study="hit", trials=4, workers=2, stall=8.0, watcher=watcher)
    (note,) = [note for note in watcher.notes if "begins again" in note]
    assert how in note and ("--stall" in note) == (task == "hanging") and note.startswith("trial ")
    assert found == {number: right[number] for number in range(4)}


@pytest.mark.slow
def test_a_worker_that_scores_for_long_is_not_taken_for_stalled(begin, tasks):
    _, found = begin("tasks.py:thinking", study="thinking", trials=2, workers=2, stall=1.5, attempts=1)
    assert len(found) == 2 and not any(trial[-1] for trial in found.values()) and (tasks.parent / "thinking").exists()


@pytest.mark.slow
def test_a_trial_whose_worker_is_always_lost_fails_alone(begin, right):
    _, found = begin("tasks.py:killed", study="once", trials=3, workers=2, attempts=1)
    lost = [number for number, trial in found.items() if trial[-1]]
    assert len(lost) == 1 and found[lost[0]][-1].startswith("crashed: its worker was lost, try 1 of 1, ")
    assert {n: one for n, one in found.items() if n not in lost} == {n: right[n] for n in range(3) if n not in lost}


@pytest.mark.slow
def test_trials_that_lack_memory_beside_others_come_out_as_alone(begin, right):
    watcher = Notes()
    _, found = begin("tasks.py:hungry", study="hungry", trials=3, workers=2, attempts=1, watcher=watcher)
    assert found == {number: right[number] for number in range(3)}
    assert [note for note in watcher.notes if "is tried once more alone" in note]


@pytest.mark.slow
def test_parts_of_a_scan_that_lack_memory_beside_others_are_measured_alone(begin, tmp_path):
    watcher = Notes()
    begin("tasks.py:hungry_in_scan", study="scan", trials=1, workers=2, warm_start=True, watcher=watcher)
    assert [note for note in watcher.notes if "part" in note and "is tried once more alone" in note]
    assert len([*tmp_path.glob("cache/profile-*")]) == 1


@pytest.mark.slow
def test_what_a_workers_trial_writes_is_on_stderr_and_what_it_raises_is_its_failure(begin, capfd):
    _, found = begin("tasks.py:speaking", study="speaking", trials=3, workers=2, attempts=1)
    (reason,) = [trial[-1] for trial in found.values() if trial[-1]]
    assert reason.startswith("error: KeyboardInterrupt (tasks.py, line ")
    out, err = capfd.readouterr()
    assert err.count("from below\n") == 1 and not out


@pytest.mark.slow
def test_a_study_all_of_whose_workers_are_lost_ends_after_three_trials(begin):
    with pytest.raises(EnvironmentProblem, match=r"^3 trials in a row and none before them: failed with 'crashed: its"):
        begin("tasks.py:crashing", study="lost", trials=9, workers=2, attempts=1)


@pytest.mark.slow
def test_a_full_disk_ends_the_study_and_costs_no_trial(begin, tmp_path):
    with pytest.raises(EnvironmentProblem, match=r"^worker: cannot write .*trial-0000[01].safetensors' \(File too"):
        begin("tasks.py:full", study="full", trials=4, workers=2)
    journal = tmp_path / "full" / "journal"
    assert not [*journal.glob("trial-*")] and not [*journal.glob("begun-*")] and len([*journal.glob("pending-*")]) == 2


@pytest.mark.slow
def test_a_part_of_a_scan_that_was_lost_leaves_no_attempts_behind(begin, tmp_path):
    begin("tasks.py:killed_in_scan", study="scan", trials=1, workers=2, warm_start=True)
    assert not [*(tmp_path / "scan" / "journal").glob("begun-*")] and len([*tmp_path.glob("cache/profile-*")]) == 1


@pytest.mark.slow
def test_a_worker_that_finds_other_data_is_refused_in_one_line(begin):
    with pytest.raises(EnvironmentProblem, match=r"^worker: other .*fit data than its study has"):
        begin("tasks.py:drawn", study="drawn", workers=2)


def test_a_criterion_of_this_program_alone_is_refused_before_anything_is_trained(begin, tmp_path):
    register_criterion("mine:alone", lambda weight: weight.abs())
    with pytest.raises(UsageError, match="criterion 'mine:alone' is registered in this program alone"):
        begin(study="criterion", criterion="mine:alone", workers=2)
    assert not (tmp_path / "criterion").exists()


def test_a_study_that_has_all_its_results_needs_no_workers(begin, monkeypatch):
    _, found = begin(study="ended", trials=1)

    def refuse(*_):
        raise RuntimeError("a process is started")

    monkeypatch.setattr("search.executors.process.ProcessExecutor._started", refuse)
    result, again = begin(study="ended", trials=1, workers=2)
    assert again == found == begin(study="ended", trials=1, executor="ray", ray_address="127.0.0.1:1")[1]
    assert not (result.folder / "checkpoints" / "dense.safetensors").exists()
    with pytest.raises(RuntimeError, match="a process is started"):
        begin(study="ended", trials=2, workers=2, executor="local")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_workers_end_with_their_study_and_it_goes_on(program, tasks, tmp_path):
    words = [program, "search", "--workload", f"{tasks}:parents", "--root", str(tmp_path), "--finalists", "0"]
    words += ["--workers", "2", "--sampler", "random", "--max-size", "0.5", "--threads", "1", "--trials"]
    journal = tmp_path / "parents" / "journal"
    kept: dict[str, str] = {}
    for number, code in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        study = subprocess.Popen([*words, "40"], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
        enough = len(kept) + 2
        assert wait_until(lambda enough=enough: len([*journal.glob("trial-*")]) >= enough)
        assert wait_until(lambda study=study: len(workers_of(study.pid)) == 2)
        workers = workers_of(study.pid)
        assert wait_until(lambda those=workers: all(len(group_of(worker)) == 1 for worker in those))
        started = [one for worker in workers for one in group_of(worker)]
        study.send_signal(number)
        _, errors = study.communicate(timeout=60)
        assert study.returncode == code and "Traceback" not in errors, errors
        assert wait_until(lambda those=workers + started: not any(map(runs, those)), 20)
        assert number == signal.SIGKILL or not [*journal.glob("begun-*")]
        now = {path.name: path.read_text() for path in journal.glob("trial-*")}
        assert {name: now[name] for name in kept} == kept
        kept = now
    again = [*words, str(len(kept) + 2), "--workers", "1"]
    ended = subprocess.run(again, env=ENVIRONMENT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert {name: (journal / name).read_text() for name in kept} == kept
    numbers = [trial.number for trial in Journal(journal).trials()]
    assert numbers == list(range(len(kept) + 2)) and not [*journal.glob("pending-*")]


def test_threads_and_cards_are_shared_out(monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 12)  # of those that affinity and cgroup leave
    for most, right in (
        ("", [None, 2, 1, 7]),
        ("1", [None, 1, 1, 7]),
        ("64", [None, 2, 1, 7]),
        ("1,8", [None, 1, 1, 7]),
    ):
        monkeypatch.setenv("OMP_NUM_THREADS", most)
        asked = ((1, None), (5, None), (99, None), (5, 7))
        assert [threads_of(SearchConfig(workers=n, threads=t)) for n, t in asked] == right
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    card = Placement(torch.device("cuda", 0))
    assert cards("auto", card) == ["0", "1", "2"] and cards("cuda:1", card) == [] and cards("auto", Placement()) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert cards("cuda", card) == ["4", "6"]
