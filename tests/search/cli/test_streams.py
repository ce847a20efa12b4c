"""What is on stdout and stderr of a command where one of them is closed, and with `--debug`."""

from __future__ import annotations

import json
import os
import subprocess

import pytest


def test_json_stdout_holds_one_object_where_stderr_is_closed(program, tmp_path):
    words = [program, "front", "nothing", "--json", "--root", tmp_path]
    ended = subprocess.run(["sh", "-c", '"$@" 2>&-', "sh", *words], stdout=subprocess.PIPE, text=True, timeout=60)
    assert ended.returncode == 2 and json.loads(ended.stdout)["exit_code"] == 2


@pytest.mark.parametrize("words", [["--help"], ["front", "tiny", "--all", "--format", "json"]])
def test_a_reader_that_leaves_early_gets_no_complaint(program, place, finished, words):
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run([program, *words], cwd=place, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert ended.stderr == "" and ended.returncode in (0, 141)


def test_debug_shows_the_traceback_and_keeps_the_exit_code(run, place):
    ended = run("front", "--debug", "nothing")
    assert ended.returncode == 2 and "Traceback" in ended.stderr and "UsageError" in ended.stderr
