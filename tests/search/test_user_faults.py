"""Code of the user's that ends the program, never ends itself, or never ends: the trial's failure, with its reason."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import threading
import time

import pytest
import torch

from pruning.importance.own_criteria import register_criterion
from search.config import ConfigError, SearchConfig, read_study_file
from search.errors import UsageError
from search.process import interrupts
from search.process.time_limit import GRACE, TimedOut, limited
from search.training.dense_model import DenseModel
from search.training.evaluate import PreparedModel, evaluate_policy
from search.training.profile_cache import cached_profile
from search.training.train import train_dense
from search.workloads import get_workload
from spaces.policy import PruningPolicy
from spaces.schedule import Schedule

POLICY = PruningPolicy({"conv0.weight": 0.25, "conv1.weight": 0.7}, schedule=Schedule("one-shot"))
HERE = "test_user_faults.py, line "


@pytest.fixture(scope="module")
def subject(place) -> PreparedModel:
    workload = get_workload(f"{place / 'tiny.py'}:tiny")
    recipe = dataclasses.replace(workload.recipe, dense_epochs=0.25, trial_epochs=0.25)
    workload = dataclasses.replace(workload, recipe=recipe)
    return PreparedModel.of(workload, train_dense(workload, 0).model)


@pytest.fixture
def watched():
    """As in a command: whether a signal has come is known."""
    interrupts.watch(lambda *_: None)
    yield
    interrupts.unwatch()


def changed(subject: PreparedModel, **changes) -> PreparedModel:
    return dataclasses.replace(subject, workload=dataclasses.replace(subject.workload, **changes))


def raising(error):
    def act(*_):
        raise error

    return act


def endless(*_):
    return endless()


def reason_of(subject: PreparedModel, seconds: float | None = None, policy=POLICY, **changes) -> str:
    result = evaluate_policy(changed(subject, **changes), policy, 0.25, 0, seconds=seconds).result
    assert result.state == "failed" and result.accuracy is None and len(result.reason.splitlines()) == 1
    return result.reason


ENDS = [
    (SystemExit(0), "sys.exit(0)"),
    (SystemExit(3), "sys.exit(3)"),
    (SystemExit("bye"), "sys.exit('bye')"),
    (SystemExit(), "sys.exit()"),
    (GeneratorExit(), "GeneratorExit"),
    (KeyboardInterrupt(), "KeyboardInterrupt"),
    (RecursionError("maximum recursion depth exceeded"), "RecursionError: maximum recursion depth exceeded"),
    (type("Abort", (BaseException,), {})("own"), "Abort: own"),
    (KeyError("cat"), "KeyError: 'cat'"),
]


@pytest.mark.parametrize("part", ["loss", "metric", "augment"])
@pytest.mark.parametrize(("error", "said"), ENDS, ids=[said for _, said in ENDS])
def test_what_the_users_code_raises_fails_the_trial(subject, watched, part, error, said):
    assert reason_of(subject, **{part: raising(error)}).startswith(f"error: {said} ({HERE}")


@pytest.mark.parametrize(("part", "kind"), [("loss", "StopIteration"), ("augment", "RuntimeError")])
def test_the_end_of_an_iterator_does_not_end_the_training(subject, part, kind):
    """Raised in a generator, Python makes a RuntimeError of it."""
    assert reason_of(subject, **{part: raising(StopIteration())}).startswith(f"error: {kind}")


def test_endless_recursion_fails_the_trial(subject):
    assert reason_of(subject, loss=endless).startswith("error: RecursionError: maximum recursion depth exceeded")


def test_a_network_that_leaves_fails_the_trial(subject, watched):
    class Leaving(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.leaves = inner, False

        def forward(self, inputs):
            return sys.exit(0) if self.leaves else self.inner(inputs)

    dense = Leaving(subject.dense)
    policy = PruningPolicy({"inner.conv1.weight": 0.7}, schedule=Schedule("one-shot"))
    own = PreparedModel.of(subject.workload, dense)
    dense.leaves = True
    assert reason_of(own, policy=policy).startswith(f"error: sys.exit(0) ({HERE}")


def test_a_real_signal_fails_nothing(subject, watched):
    def stopped(inputs, generator):
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(interrupts.Terminated):
        evaluate_policy(changed(subject, augment=stopped), POLICY, 0.25, 0)


def test_a_signal_that_the_users_code_caught_fails_nothing(subject, watched):
    def deaf(inputs, generator):
        try:
            signal.raise_signal(signal.SIGINT)
        except BaseException:
            raise ValueError("bad image") from None

    with pytest.raises(interrupts.Interrupted):
        evaluate_policy(changed(subject, augment=deaf), POLICY, 0.25, 0)


# Hangs


def sleeps(*_):
    time.sleep(600)


def spins(*_):
    while True:
        pass


def waits(*_):
    threading.Lock().__enter__() and threading.Event().wait()


def shrugs(*_):
    """Takes whatever comes for an error of its own, and goes on."""
    while True:
        try:
            time.sleep(600)
        except Exception:
            continue


class Clock:
    """Time that passes only where a test says so, or rings the alarm."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def ring(self) -> None:
        self.now += 3600
        signal.setitimer(signal.ITIMER_REAL, 0.02)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    monkeypatch.setattr("search.process.time_limit.time", clock := Clock())
    return clock


@pytest.mark.parametrize("part", ["loss", "metric", "augment"])
@pytest.mark.parametrize("hang", [sleeps, spins, waits, shrugs])
def test_a_hang_ends_at_the_limit(subject, clock, part, hang):
    """However long it takes to come to it."""

    def hangs(*_):
        clock.ring()
        hang()

    before = signal.getsignal(signal.SIGALRM)
    reason = reason_of(subject, seconds=600, **{part: hangs})
    where = "after step 5 of 5" if part == "metric" else "before its first step was done"
    assert reason == f"timed-out: longer than 600 s, {where}"
    assert signal.getsignal(signal.SIGALRM) is before and signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_many_slow_steps_end_at_the_limit_outside_the_main_thread_too(subject, clock):
    def slow(inputs, generator):
        clock.now += 0.2
        return inputs

    reasons = []
    thread = threading.Thread(target=lambda: reasons.append(reason_of(subject, seconds=0.3, augment=slow)))
    thread.start()
    thread.join()
    assert reasons == ["timed-out: longer than 0.3 s, after step 2 of 5"]


def test_within_the_limit_nothing_happens(subject):
    plain = evaluate_policy(subject, POLICY, 0.25, 0)
    assert plain.result.state == "complete", plain.result.reason
    assert evaluate_policy(subject, POLICY, 0.25, 0, seconds=600).result.accuracy == plain.result.accuracy


def test_a_limit_gives_an_earlier_alarm_back():
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 60)
        with pytest.raises(TimedOut), limited(0.05):
            time.sleep(600)
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 60 and not rung
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_code_that_cannot_be_interrupted_is_given_up(monkeypatch):
    given_up = threading.Event()
    monkeypatch.setattr("search.process.time_limit.GRACE", 0.05)
    monkeypatch.setattr("search.process.time_limit._alarm", lambda *_: memoryview(b""))  # rings for nobody
    with limited(0.05, given_up.set):
        assert given_up.wait(60)
    assert GRACE > 1


def test_code_that_came_back_is_not_given_up(monkeypatch):
    given_up, before = threading.Event(), threading.enumerate()
    monkeypatch.setattr("search.process.time_limit.GRACE", 600)
    with pytest.raises(TimedOut), limited(0.05, given_up.set):
        (waiting,) = (thread for thread in threading.enumerate() if thread not in before)
        time.sleep(600)
    waiting.join(60)
    assert not waiting.is_alive() and not given_up.is_set()


# The option


def test_the_limit_is_a_budget_of_the_study(tmp_path):
    path = tmp_path / "STUDY.toml"
    path.write_text("trial-timeout = 12.5\n")
    assert SearchConfig(**read_study_file(path)).trial_timeout == 12.5
    assert SearchConfig().trial_timeout is None


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "soon", 1e8])
def test_a_limit_that_is_none_is_refused(value):
    with pytest.raises(ConfigError, match="trial-timeout must be a number, > 0 and <= 10000000, got "):
        SearchConfig(trial_timeout=value)


# The scan


def dense_of(subject: PreparedModel) -> DenseModel:
    return DenseModel(subject.dense, "architecture", {"calibration": "data"}, "weights", 0.5, 0.0, subject.workload)


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt(), GeneratorExit(), KeyError("cat")])
def test_what_the_users_code_raises_in_the_scan_is_one_line(subject, watched, tmp_path, error):
    own = changed(subject, metric=raising(error))
    with pytest.raises(
        UsageError, match=r"workload 'tiny': the sensitivity scan failed with .* \(test_user_faults.py, "
    ):
        cached_profile(own, dense_of(subject), "magnitude-l2", ("fine-grained",), tmp_path)
    assert not list(tmp_path.glob("profile-*.json"))


def test_a_criterion_that_leaves_is_one_line_in_the_scan_and_a_failed_trial(subject, watched, tmp_path):
    register_criterion("test:leaving", lambda weight: sys.exit(0))
    with pytest.raises(UsageError, match=r"the sensitivity scan failed with sys.exit\(0\) \("):
        cached_profile(subject, dense_of(subject), "test:leaving", ("fine-grained",), tmp_path)
    policy = dataclasses.replace(POLICY, criterion="test:leaving")
    assert reason_of(subject, policy=policy).startswith(f"error: sys.exit(0) ({HERE}")


def test_an_error_of_our_own_is_not_blamed_on_the_user(subject, tmp_path, monkeypatch):
    # the scan itself fails, none of the user's code runs
    monkeypatch.setattr("search.training.profile_cache.scan_sensitivity", json.loads)
    with pytest.raises(TypeError):
        cached_profile(subject, dense_of(subject), "magnitude-l2", ("fine-grained",), tmp_path)
