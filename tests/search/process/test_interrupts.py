"""A signal ends a command wherever it falls."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
import time
import weakref

import pytest

from search.process import interrupts
from search.store.mlflow_place import mlflow_place
from search.store.mlflow_record import LoggedStudy, MlflowRecord
from search.store.tracker import Tracker
from search.user_code.loading import pass_signals_on

ENDS = [(signal.SIGINT, interrupts.Interrupted), (signal.SIGTERM, interrupts.Terminated)]


@pytest.fixture
def watched(monkeypatch):
    """Handlers are in place; what would end the process at once is written down instead."""
    ended: list[object] = []

    def leave(code):
        ended.append(code)
        raise SystemExit

    monkeypatch.setattr(interrupts.os, "_exit", leave)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and would stay so
    interrupts.watch(lambda message, code: ended.append((message, code)))
    yield ended
    interrupts.unwatch()
    signal.signal(signal.SIGHUP, before)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def soon() -> None:
    """Time for a lost signal to be raised again."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "end"), ENDS)
def test_a_signal_lost_in_a_finalizer_is_raised_again(watched, capfd, number, end):
    class Deaf:
        def __del__(self):
            send(number)

    with pytest.raises(end):
        Deaf()
        soon()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("number", "end"), ENDS)
def test_a_signal_lost_in_a_callback_of_the_garbage_collector_is_raised_again(watched, capfd, number, end):
    class Ring:
        pass

    ring = Ring()
    ring.self = ring
    kept = weakref.ref(ring, lambda _: send(number))
    with pytest.raises(end):
        del ring
        gc.collect()
        soon()
    assert capfd.readouterr().err == "" and kept() is None


def test_what_others_lose_in_a_finalizer_is_still_told(watched, capfd, monkeypatch):
    class Faulty:
        def __del__(self):
            raise ValueError("not ours")

    told = []
    monkeypatch.setattr(interrupts, "_hook", told.append)
    Faulty()
    assert isinstance(told[0].exc_value, ValueError)


@pytest.mark.parametrize(("number", "end"), ENDS)
def test_a_signal_somebody_caught_ends_the_next_step(watched, number, end):
    with contextlib.suppress(BaseException):
        send(number)
    with pytest.raises(end):
        interrupts.check()
    with pytest.raises(end):
        pass_signals_on(ValueError("what became of it"))


def test_where_no_handler_raises_one_a_keyboard_interrupt_is_of_the_code():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    assert interrupts.is_signal(KeyboardInterrupt())
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    assert not interrupts.is_signal(KeyboardInterrupt())
    signal.signal(signal.SIGINT, before)


def test_without_a_signal_steps_go_on(watched):
    interrupts.check()
    pass_signals_on(SystemExit(3))
    pass_signals_on(KeyboardInterrupt())
    assert interrupts.exit_code() is None


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)])
def test_the_second_signal_ends_the_process_at_once(watched, number, code):
    with pytest.raises(interrupts.Interrupted if number == signal.SIGINT else interrupts.Terminated):
        send(number)
    assert interrupts.exit_code() == code and watched == []
    with pytest.raises(SystemExit):
        send(signal.SIGTERM)
    assert watched == [(None, code), code]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_once_all_is_said_ends_with_the_commands_own_code(watched, number):
    interrupts.finish(1)
    with pytest.raises(SystemExit):
        send(number)
    assert watched == [1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_first_signal_while_an_error_is_told_ends_the_process(watched, number, code):
    interrupts.settle()
    assert interrupts.exit_code() is None
    with pytest.raises(SystemExit):
        send(number)
    assert watched == [(None, code), code]


def test_an_ignored_signal_stays_ignored(monkeypatch):
    """As `nohup` has it, or a shell for what it runs in the background."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        interrupts.watch(lambda *_: None)
        send(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN and interrupts.exit_code() is None
    finally:
        interrupts.unwatch()
        signal.signal(signal.SIGHUP, before)


def test_what_was_there_comes_back():
    handler, hook = signal.getsignal(signal.SIGTERM), sys.unraisablehook
    interrupts.watch(lambda *_: None)
    assert signal.getsignal(signal.SIGTERM) is not handler
    interrupts.unwatch()
    assert signal.getsignal(signal.SIGTERM) is handler and sys.unraisablehook is hook


def test_the_exit_of_a_host_programs_own_handler_is_a_signal():
    """`run_search` in a program that ends by `sys.exit` on SIGTERM."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with pytest.raises(SystemExit) as by_signal:
            send(signal.SIGTERM)
        with pytest.raises(SystemExit) as by_code:
            sys.exit(0)
        assert interrupts.is_signal(by_signal.value) and not interrupts.is_signal(by_code.value)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_mlflows_forgiveness_takes_no_signal_for_its_own_error(watched, monkeypatch, tmp_path):
    def fails(*_):
        send(signal.SIGTERM)  # as it comes from outside, while MLflow's thread is at work
        raise RuntimeError("database operation interrupted")

    monkeypatch.setattr("search.store.mlflow_store.open_store", fails)
    with pytest.raises(interrupts.Terminated):
        Tracker(MlflowRecord(LoggedStudy(tmp_path, "s", "id", float), mlflow_place(tmp_path))).start({}, {})


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_while_arguments_are_read(main, monkeypatch, number, code, word):
    monkeypatch.setattr("search.cli.answer.make_parser", lambda: send(number))
    reply = main("search", "--workload", "digits", "--json")
    said = f"{word}; finished trials are kept, resume with: prunefront search --workload digits --json"
    assert reply.code == code and reply.err == f"prunefront: {said}\n"
    assert json.loads(reply.out) == {"error": said, "exit_code": code}


@pytest.mark.parametrize("became", [ValueError("lost"), SystemExit(0), OSError(5, "Input/output error")])
def test_whatever_a_signal_became_the_command_says_it_was_one(main, monkeypatch, became):
    def command(_arguments):
        try:
            send(signal.SIGTERM)
        except SystemExit:
            raise became from None

    monkeypatch.setattr("search.cli.answer._command_of", lambda _: command)
    reply = main("front", "tiny")
    assert (reply.code, reply.err) == (143, "prunefront: terminated\n")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (SystemExit(0), "sys.exit(0)"),
        (SystemExit(), "sys.exit()"),
        (SystemExit("bye"), "sys.exit('bye')"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (GeneratorExit(), "GeneratorExit"),
    ],
)
def test_code_that_ends_the_program_is_a_usage_error(main, monkeypatch, error, said):
    def command(_arguments):
        raise error

    monkeypatch.setattr("search.cli.answer._command_of", lambda _: command)
    reply = main("front", "tiny", "--json")
    assert reply.code == 2 and reply.err.count("\n") == 1 and "let it raise an error" in reply.err
    assert f"asked to end the program by {said} (test_interrupts.py, line " in reply.err
    assert json.loads(reply.out)["exit_code"] == 2
