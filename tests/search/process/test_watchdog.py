"""A signal that Python's own handling does not bring to an end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from search.process import interrupts, watchdog
from search.process.watchdog import Watchdog

ENDS = [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
BEGIN = """
import ctypes, os, signal, sys, threading, time
from search.cli import answer; from search.process import interrupts, watchdog
from search.cli.entry import main

number = int(sys.argv[1])
signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

def deadlock():
    mutex, library = ctypes.create_string_buffer(256), ctypes.CDLL(None)
    library.pthread_mutex_lock(mutex)
    send(0.2)
    library.pthread_mutex_lock(mutex)

def send(after):
    threading.Timer(after, os.kill, (os.getpid(), number)).start()

def command(arguments):
"""
END = """
answer._command_of = lambda word: command
sys.exit(main(["status", "x"]))
"""
HANGS = {
    "native": "    watchdog.REACH = 0.5; deadlock()",
    "native, at once the second time": "    watchdog.REACH = 600; send(0.4); deadlock()",
    "catches all": """
    watchdog.CLOSING = 1.0
    send(0.2)
    while True:
        try:
            time.sleep(600)
        except BaseException:
            pass
""",
    "a thread that never ends": """
    watchdog.LEAVING = 0.5
    threading.Thread(target=time.sleep, args=(600,)).start()
    os.kill(os.getpid(), number)
""",
    "sleeps": "    send(0.2); time.sleep(600)",
}


@pytest.mark.parametrize(
    ("hang", "number"), [(hang, ENDS[place % 2][0]) for place, hang in enumerate(HANGS)], ids=[*HANGS]
)
def test_a_signal_ends_what_hangs(tmp_path, hang, number):
    words = [sys.executable, "-c", BEGIN + HANGS[hang] + END, str(int(number))]
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    code, word = next((code, word) for one, code, word in ENDS if one == number)
    assert (ended.returncode, ended.stderr, ended.stdout) == (code, f"prunefront: {word}\n", "")


@pytest.fixture
def quick(monkeypatch):
    """Every limit so short that a test can wait for it."""
    monkeypatch.setattr(watchdog, "STEP", 0.01)
    for name in ("REACH", "CLOSING", "AT_ONCE"):
        monkeypatch.setattr(watchdog, name, 0.05)


def followed(reached: bool, settled: bool, signals: int, ours: int, ends: bool) -> bool:
    """Whether a watchdog ends the process, where signals reach a handler that does nothing."""
    ended = threading.Event()
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    dog = Watchdog(lambda number: number == signal.SIGUSR1, lambda: reached, lambda: settled, lambda _: ended.set())
    try:
        for _ in range(ours):
            dog.ignore_one()
        for _ in range(signals):
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.02)
        return ended.wait(20 if ends else 0.5)
    finally:
        dog.stop()
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize(
    ("reached", "settled", "signals", "ours", "ends"),
    [
        (True, True, 0, 0, False),
        (True, True, 1, 0, False),
        (False, True, 1, 0, True),
        (True, False, 1, 0, True),
        (True, True, 2, 0, True),
        (True, True, 2, 1, False),
    ],
)
def test_when_a_watchdog_ends_the_process(quick, reached, settled, signals, ours, ends):
    assert followed(reached, settled, signals, ours, ends) is ends


def test_other_signals_are_nothing_to_it(quick):
    ended = threading.Event()
    before = signal.signal(signal.SIGUSR2, lambda *_: None)
    dog = Watchdog(lambda number: number == signal.SIGUSR1, lambda: False, lambda: False, lambda _: ended.set())
    try:
        os.kill(os.getpid(), signal.SIGUSR2)
        assert not ended.wait(0.4)
    finally:
        dog.stop()
        signal.signal(signal.SIGUSR2, before)


def test_a_signal_that_the_users_code_handles_is_nothing_to_it(quick):
    ended: list[object] = []
    interrupts.watch(lambda *given: ended.append(given))
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended == [] and interrupts.exit_code() is None and not interrupts._watchdog._come


def test_what_watched_before_comes_back():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing)
    try:
        interrupts.watch(lambda *_: None)
        interrupts.watch(lambda *_: None)
        interrupts.unwatch()
        assert signal.set_wakeup_fd(before) == writing
    finally:
        signal.set_wakeup_fd(before)
        os.close(reading)
        os.close(writing)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_signal_to_a_child_of_the_users_is_none_to_the_command():
    """As `DataLoader` ends its workers."""
    said: list[int] = []
    interrupts.watch(lambda *_: said.append(1))
    child = os.fork()
    if not child:
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(97)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    time.sleep(0.2)
    assert interrupts.exit_code() is None and interrupts.can_end_process() and not interrupts._watchdog._come
