"""A signal while a command starts: one line and its code from our first statement on."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys

import pytest

START = """
import os, signal, sys

number, place, left = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
begun = False

def send(event, given):
    global begun, left
    begun = begun or (event == "import" and given[0] == place)
    if begun:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), number)

if sys.argv[4:] != ["ignored"]:
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
sys.addaudithook(send)
from search.cli.entry import main
sys.exit(main(["search", "--workload", "./none.py:none", "--json"]))
"""
"""Sends itself a signal at an event that Python tells auditors of (an import, a file that is opened, ...): counted from
1, where a module begins to be imported.
"""
FIRST = "search.cli.answer"
"""The module that `main` imports with signals held back."""
EVENTS = 1500
"""So many events from there on are within the start: the first 370 with signals held back, of 46,000 in all."""
SAID = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated"), signal.SIGHUP: (143, "terminated")}


def assert_ends_in_one_line(folder, number, place, event):
    words = [sys.executable, "-c", START, str(int(number)), place, str(event)]
    ended = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=120)
    code, word = SAID[number]
    said = f"{word}; finished trials are kept, resume with: prunefront search --workload ./none.py:none --json"
    assert (ended.returncode, ended.stderr) == (code, f"prunefront: {said}\n")
    assert json.loads(ended.stdout) == {"error": said, "exit_code": code}
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("number", "place"),
    [
        (signal.SIGINT, FIRST),
        (signal.SIGTERM, "argparse"),
        (signal.SIGINT, "search.cli.parser"),
        (signal.SIGHUP, "search.errors"),
    ],
)
def test_a_signal_while_the_rest_is_imported(tmp_path, number, place):
    assert_ends_in_one_line(tmp_path, number, place, 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_at_seeded_moments_of_the_start(tmp_path, number):
    for event in random.Random(number + 2).sample(range(1, EVENTS), 3):
        assert_ends_in_one_line(tmp_path, number, FIRST, event)


@pytest.mark.slow
def test_a_signal_ignored_from_outside_is_ignored_while_it_starts(tmp_path):
    """As by `nohup`."""
    words = [sys.executable, "-c", START]
    ended = subprocess.run(
        [*words, str(int(signal.SIGHUP)), "argparse", "1", "ignored"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    assert ended.returncode == 2 and "no workload file" in ended.stderr


def test_next_to_nothing_is_imported_before_signals_are_held_back():
    asked = "import sys; before = set(sys.modules); import search.cli; print(*(set(sys.modules) - before))"
    found = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout.split()
    assert {name for name in found if name.startswith("search")} == {"search", "search.cli", "search.cli.entry"}
    assert not {"argparse", "typing", "json", "threading", "pathlib", "dataclasses"} & set(found)
