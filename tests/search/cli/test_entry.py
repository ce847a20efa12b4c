"""A signal while a command starts: one line and its code from our first statement on."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time

import pytest

START = """
import os, signal, sys

number, place = int(sys.argv[1]), sys.argv[2]

def send(event, given):
    if event == "import" and given[0] == place:
        os.kill(os.getpid(), number)

if sys.argv[3:] != ["ignored"]:
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
sys.addaudithook(send)
from search.cli.entry import main
sys.exit(main(["search", "--workload", "./none.py:none", "--json"]))
"""
"""Sends itself a signal where a module begins to be imported."""
SAID = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated"), signal.SIGHUP: (143, "terminated")}


@pytest.mark.parametrize(
    ("number", "place"),
    [
        (signal.SIGINT, "search.cli.answer"),
        (signal.SIGTERM, "argparse"),
        (signal.SIGINT, "search.cli.parser"),
        (signal.SIGHUP, "search.errors"),
    ],
)
def test_a_signal_while_the_rest_is_imported(tmp_path, number, place):
    words = [sys.executable, "-c", START, str(int(number)), place]
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    code, word = SAID[number]
    said = f"{word}; finished trials are kept, resume with: prunefront search --workload ./none.py:none --json"
    assert (ended.returncode, ended.stderr) == (code, f"prunefront: {said}\n")
    assert json.loads(ended.stdout) == {"error": said, "exit_code": code}
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_signal_ignored_from_outside_is_ignored_while_it_starts(tmp_path):
    """As by `nohup`."""
    words = [sys.executable, "-c", START]
    ended = subprocess.run(
        [*words, str(int(signal.SIGHUP)), "argparse", "ignored"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    assert ended.returncode == 2 and "no workload file" in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_at_seeded_moments_of_the_start(program, tmp_path, number):
    random_ = random.Random(int(number))
    for moment in [random_.uniform(0, 0.3) for _ in range(3)]:
        started = subprocess.Popen(
            [program, "inspect", "digits"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        time.sleep(moment)
        started.send_signal(number)
        _, err = started.communicate(timeout=120)
        code, word = SAID[number]
        if started.returncode == code:
            assert err == f"prunefront: {word}\n"
        else:  # Python had not come to the line that holds signals back, the first of ours
            assert started.returncode in (-number, 1) and "answer.py" not in err and "prunefront:" not in err


def test_next_to_nothing_is_imported_before_signals_are_held_back():
    asked = "import sys; before = set(sys.modules); import search.cli; print(*(set(sys.modules) - before))"
    found = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout.split()
    assert {name for name in found if name.startswith("search")} == {"search", "search.cli", "search.cli.entry"}
    assert not {"argparse", "typing", "json", "threading", "pathlib", "dataclasses"} & set(found)
