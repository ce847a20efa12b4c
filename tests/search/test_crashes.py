"""What an evaluation does to its process: what counts as its failure, and what does not."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time
import traceback

import pytest
import torch
from watchers import Notes

import search.executors.evaluation
import search.training.scoring
from search import SearchConfig, run_search
from search.process import interrupts
from search.process.time_limit import limited
from search.store.journal import Journal
from search.training.attempts import MAX_KILLS, MAX_STARTS, Attempt, give_up_on
from search.training.evaluate import evaluate_policy
from search.workloads.run import FINAL, TRIAL


def segfault() -> None:
    ctypes.string_at(0)


def leave() -> None:
    os._exit(5)


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dies(act) -> int:
    """What a child process that does this ends with, as `os.waitstatus_to_exitcode` has it."""
    child = os.fork()
    if not child:
        try:
            act()
        except BaseException:
            traceback.print_exc()  # what a failing test shows
        os._exit(97)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def attempted(folder, act, after: int = 3) -> int:
    """An attempt at an evaluation of 20 steps that ends its process after some of them."""

    def evaluation() -> None:
        with Attempt(folder, "net").running() as step:
            for done in range(after + 1):
                step(done, 20)
            act()

    return dies(evaluation)


def kept(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_crash_of_native_code_says_what_it_was_and_where(tmp_path):
    assert attempted(tmp_path, segfault) == -signal.SIGSEGV
    (death,) = Attempt(tmp_path, "net").deaths
    line = segfault.__code__.co_firstlineno + 1
    assert str(death) == f"after step 3 of 20: Segmentation fault (test_crashes.py, line {line})"


def test_an_os_exit_says_so(tmp_path):
    assert attempted(tmp_path, leave, after=0) == 5
    (death,) = Attempt(tmp_path, "net").deaths
    line = leave.__code__.co_firstlineno + 1
    assert str(death) == f"after step 0 of 20: os._exit(5) (test_crashes.py, line {line})"


def test_an_os_exit_is_never_the_commands_own_code(tmp_path):
    """0 would say that the study is done."""
    said, write = os.pipe()

    def evaluation() -> None:
        interrupts.watch(lambda message, code: os.write(write, f"{code} {message}".encode()))
        with Attempt(tmp_path, "net").running():
            os._exit(0)

    assert dies(evaluation) == 3
    assert os.read(said, 1000).startswith(b"3 the workload's own code ended the program by os._exit(0)")
    assert Attempt(tmp_path, "net").deaths[0].how.startswith("os._exit(0)")


def test_a_kill_leaves_the_step_alone(tmp_path):
    assert attempted(tmp_path, be_killed, after=12) == -signal.SIGKILL
    (death,) = Attempt(tmp_path, "net").deaths
    assert (death.step, death.steps, death.how) == (12, 20, "")


@pytest.mark.parametrize("act", [segfault, leave])
def test_deaths_of_its_own_doing_fail_it_wherever_they_are(tmp_path, act):
    for number in range(MAX_STARTS):
        assert Attempt(tmp_path, "net").failure is None
        attempted(tmp_path, act, after=number)
    reason = Attempt(tmp_path, "net").failure
    assert reason.startswith("crashed: it ended the process 4 times, last after step 3 of 20: ")


def test_kills_at_different_steps_never_fail_it(tmp_path):
    for step in range(2 * MAX_KILLS):
        attempted(tmp_path, be_killed, after=step % 5)
        assert Attempt(tmp_path, "net").failure is None
    assert len(Attempt(tmp_path, "net").deaths) == 2 * MAX_KILLS


def test_as_many_kills_at_one_step_as_only_a_lack_of_memory_explains_fail_it(tmp_path):
    for _ in range(MAX_KILLS):
        assert Attempt(tmp_path, "net").failure is None
        attempted(tmp_path, be_killed)
    assert Attempt(tmp_path, "net").failure == (
        "crashed: the process was ended 12 times in it, each time after step 3 of 20: "
        "killed from outside, or for lack of memory"
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError, GeneratorExit])
def test_an_exception_is_no_death(tmp_path, error):
    with pytest.raises(error), Attempt(tmp_path, "net").running() as step:
        step(3, 20)
        raise error
    assert kept(tmp_path) == [] and Attempt(tmp_path, "net").deaths == ()


def test_what_was_known_before_an_interruption_is_known_after_it(tmp_path):
    attempted(tmp_path, segfault)
    with pytest.raises(KeyboardInterrupt), Attempt(tmp_path, "net").running():
        raise KeyboardInterrupt
    assert [death.step for death in Attempt(tmp_path, "net").deaths] == [3]
    attempted(tmp_path, be_killed, after=7)
    again = Attempt(tmp_path, "net")
    assert [(death.step, bool(death.how)) for death in again.deaths] == [(3, True), (7, False)]
    again.finish()
    assert kept(tmp_path) == []


@pytest.mark.parametrize(
    "text", ["", "2", "{", "[3]", '[{"step": "x"}]', "null", '[{"step": 1e999}]', "\x00\xff", "[" * 100_000]
)
def test_damaged_marks_count_as_none(tmp_path, text):
    """An earlier version wrote a bare number."""
    (tmp_path / "begun-net").write_text(text)
    assert Attempt(tmp_path, "net").deaths == ()
    (tmp_path / "begun-net.now").write_text(text)
    (death,) = Attempt(tmp_path, "net").deaths
    assert (death.step, death.steps) == (0, 0)
    assert Attempt(tmp_path, "net").failure is None


def test_steps_are_passed_on_and_os_exit_is_given_back(tmp_path):
    seen, before = [], os._exit
    with Attempt(tmp_path, "net").running(lambda *step: seen.append(step)) as step:
        step(1, 20)
        assert os._exit is not before
    assert seen == [(1, 20)] and os._exit is before


def test_a_child_process_that_leaves_is_no_death(tmp_path):
    """As workers of a data loader do."""
    with Attempt(tmp_path, "net").running() as step:
        step(2, 20)
        assert dies(leave) == 5
        assert "os._exit" not in (tmp_path / "begun-net.now").read_text()


def test_native_code_beyond_its_limit_ends_the_command_and_counts_as_timed_out(tmp_path, monkeypatch):
    """What blocks the alarm is as deaf to it as native code."""
    monkeypatch.setattr("search.process.time_limit.GRACE", 0.1)

    def act() -> None:
        def say(message, code) -> None:
            (tmp_path / "said").write_text(f"{code}: {message}")

        interrupts.watch(say)
        attempt = Attempt(tmp_path, "net")
        with attempt.running() as step:
            step(3, 20)
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
            with limited(0.2, give_up_on(attempt, "trial 3", 0.2)):
                time.sleep(600)

    assert dies(act) == 3
    said = (tmp_path / "said").read_text()
    assert said.startswith("3: trial 3 takes longer than its limit of 0.2 s in native code, ")
    assert Attempt(tmp_path, "net").failure == "timed-out: longer than 0.2 s, in native code, after step 3 of 20"


def test_a_program_of_the_users_is_not_ended_for_it(tmp_path):
    assert give_up_on(Attempt(tmp_path, "net"), "trial 3", 0.2) is None


# In a study


def config(place, study: str, trials: int, **options) -> SearchConfig:
    options = {"finalists": 0, "seeds": False, "max_size": 0.5, "sampler": "random", "cost": "macs", **options}
    return SearchConfig(
        workload=f"{place / 'tiny.py'}:tiny", study=study, root=str(place / "deadly"), trials=trials, **options
    )


def study_dies(config: SearchConfig, part: str, act) -> int:
    """What a process ends with that runs a study whose evaluations, of the stage `part`, end it after 7 steps.

    A new process, since PyTorch's autograd refuses a forked one where a device was registered.
    """
    process = multiprocessing.get_context("spawn").Process(target=run_deadly, args=(config, part, act))
    process.start()
    process.join()
    return process.exitcode


def run_deadly(config: SearchConfig, part: str, act) -> None:
    def evaluate(subject, policy, epochs, seed, step, stage, **limits):
        if stage == part:
            step(7, 20)
            act()
        return evaluate_policy(subject, policy, epochs, seed, step, stage=stage, **limits)

    torch.set_num_threads(1)
    search.executors.evaluation.evaluate_policy = evaluate
    run_search(config)


@pytest.mark.parametrize(
    "act", [pytest.param(segfault, marks=pytest.mark.slow), pytest.param(be_killed, marks=pytest.mark.large)]
)
def test_a_trial_that_ended_its_process_four_times(place, act):
    """Failed if it did so itself; else it is as good as any other."""
    own, name = act is segfault, f"deadly-{act.__name__}"
    run_search(config(place, name, 1))
    for _ in range(MAX_STARTS):
        assert study_dies(config(place, name, 2), TRIAL, act) == (-signal.SIGSEGV if own else -signal.SIGKILL)
    watcher = Notes()
    result = run_search(config(place, name, 3), watcher)
    assert list(result.trials["state"]) == ["complete", "failed" if own else "complete", "complete"]
    (told,) = (note for note in watcher.notes if note.startswith("trial 1 "))
    assert "after step 7 of 20: " in told
    if own:
        assert result.trials["reason"][1].startswith("crashed: it ended the process 4 times, last after step 7 of 20")
        assert f"delete {result.folder}/journal/trial-00001.json and {result.folder}/study.db and run" in told
    assert not [path for path in (result.folder / "journal").iterdir() if path.name.startswith("begun")]


def test_interrupting_a_trial_in_good_order_never_fails_it(place, monkeypatch):
    before = config(place, "calm", 1)

    def interrupted(*_arguments, **_limits):
        raise KeyboardInterrupt

    with monkeypatch.context() as cut:
        cut.setattr(search.executors.evaluation, "evaluate_policy", interrupted)
        for _ in range(MAX_STARTS + 1):
            with pytest.raises(KeyboardInterrupt):
                run_search(before)
    assert run_search(before).trials["state"][0] == "complete"


@pytest.mark.large
def test_a_final_run_that_crashes_its_process_every_time_is_failed_in_the_end(place):
    finals = config(place, "deadly-finals", 3, finalists=1, final_seeds=1, bits=(32,))
    for _ in range(MAX_STARTS):
        assert study_dies(finals, FINAL, segfault) == -signal.SIGSEGV
    watcher = Notes()
    result = run_search(finals, watcher)
    assert len(result.finals) == 1 and result.comparison is not None  # of two, a finalist's and its baseline's
    told = next(note for note in watcher.notes if "crashed: " in note)
    assert told.endswith("and run the same command again")
    assert not [path for path in (result.folder / "journal").iterdir() if path.name.startswith("begun")]


@pytest.mark.slow
def test_interrupting_a_final_run_in_good_order_never_fails_it(place, monkeypatch):
    finals = config(place, "calm-finals", 2, finalists=1, final_seeds=1)

    def interrupted(*_arguments, **_limits):
        raise KeyboardInterrupt

    with monkeypatch.context() as cut:
        cut.setattr(search.executors.evaluation, "evaluate_policy", interrupted)
        for _ in range(MAX_STARTS + 1):
            with pytest.raises(KeyboardInterrupt):
                run_search(finals)
    journal = Journal(run_search(finals).folder / "journal")
    assert {final.result.state for final in journal.finals()} == {"complete"}


@pytest.mark.slow
def test_a_final_that_cannot_be_scored_on_test_data_fails_alone(place, monkeypatch):
    score, calls = search.training.scoring.score, []

    def once(*arguments):
        calls.append(arguments)
        return sys.exit(0) if len(calls) == 1 else score(*arguments)

    monkeypatch.setattr(search.training.scoring, "score", once)
    result = run_search(config(place, "untested", 2, finalists=1, final_seeds=2))
    (failure,) = [final for final in Journal(result.folder / "journal").finals() if final.result.state == "failed"]
    assert failure.result.reason.startswith("error on test data: sys.exit(0) (test_crashes.py, line ")
    assert failure.test_accuracy is None and failure.result.accuracy is None
    assert result.finals[failure.digest].n == 1 and result.finals[failure.digest].failed == 1


# Cut between a proposal and its evaluation


@pytest.fixture
def guided(place):
    """A guided study that nothing disturbs: its records by number."""
    run_search(config(place, "undisturbed", 7, sampler="guided"))
    return recorded(place, "undisturbed")


def recorded(place, study: str) -> list[tuple]:
    trials = Journal(place / "deadly" / study / "journal").trials()
    return [(trial.origin, dict(trial.scores), dict(trial.params), trial.policy.digest) for trial in trials]


@pytest.mark.slow
def test_a_trial_cut_off_after_its_proposal_keeps_what_was_known_of_it(place, monkeypatch, guided):
    """Before it is written down what it is, and right after that."""
    assert all(scores for _, scores, _, _ in guided[-2:])
    own = config(place, "cut", 7, sampler="guided")
    write, before, after = Journal.write_pending, [5], [6]

    def cut(journal, trial):
        if trial.number in before:
            before.clear()
            raise KeyboardInterrupt
        write(journal, trial)
        if trial.number in after:
            after.clear()
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "write_pending", cut)
    for waiting in ([], [6]):
        with pytest.raises(KeyboardInterrupt):
            run_search(own)
        assert [trial.number for trial in Journal(place / "deadly" / "cut" / "journal").pending()] == waiting
    run_search(own)
    assert not before and not after
    assert recorded(place, "cut") == guided


def test_the_file_of_steps_is_never_a_link_to_another(tmp_path):
    (tmp_path / "thesis.txt").write_text("my thesis")
    (tmp_path / "begun-net.now").symlink_to("thesis.txt")
    with Attempt(tmp_path, "net").running() as step:
        step(1, 20)
    assert (tmp_path / "thesis.txt").read_text() == "my thesis" and not (tmp_path / "begun-net.now").exists()
