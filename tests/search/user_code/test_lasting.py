"""What code of the user's own does to streams, threads and processes costs the program around it nothing."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading

import pytest

from search.cli.answer import _everything_to_stderr
from search.training.attempts import Attempt
from search.user_code.blame import told
from search.user_code.lasting import LastingStream, leave_threads_behind


class Silent(Exception):
    """Cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


class Leaving(Exception):
    def __str__(self) -> str:
        sys.exit(0)


@pytest.mark.parametrize("kind", [Silent, Leaving])
def test_an_error_whose_words_raise_is_told_by_its_kind(kind):
    assert told(kind()) == kind.__name__


def test_an_exit_code_whose_words_raise_is_told_without_them():
    class Code:
        def __repr__(self) -> str:
            raise RuntimeError("no words")

    assert told(SystemExit(Code())) == "sys.exit()"


def test_what_is_closed_is_still_written_to(monkeypatch):
    under = io.StringIO()
    monkeypatch.setattr(sys, "stderr", under)
    outer = sys.stdout
    with _everything_to_stderr():
        sys.stderr.close()
        sys.stdout.close()
        print("a result")
        sys.stdout = sys.stderr = None
    assert under.getvalue() == "a result\n" and sys.stderr is under and sys.stdout is outer
    assert LastingStream(under).isatty() is False


def test_threads_that_never_end_do_not_keep_the_process():
    """Without it the test ends by its time limit."""
    code = (
        "import threading, search.user_code.lasting as lasting\n"
        "lasting.SECONDS_TO_END = 0.01\n"
        "threading.Thread(target=threading.Event().wait).start()\n"
        "lasting.leave_threads_behind(7)\n"
        "print('said')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (7, "said\n")


def test_where_no_thread_is_left_none_is_started():
    before = threading.active_count()
    leave_threads_behind(0)
    assert threading.active_count() == before


def test_a_child_that_comes_back_does_not_go_on_with_the_study(tmp_path):
    read, write = os.pipe()
    with Attempt(tmp_path, "net").running() as step:
        step(3, 20)
        child = os.fork()
    os.write(write, b"%d " % os.getpid())  # what follows an evaluation, such as its result
    assert child and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert os.read(read, 100) == b"%d " % os.getpid()
