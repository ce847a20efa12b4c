"""What is shown in a notebook while a search runs, and who is shown anything."""

from __future__ import annotations

import builtins
import io
import logging
import sys
from types import SimpleNamespace

import pytest

from search import notebook
from search.notebook import NotebookReporter, followed, usual_reporter
from search.progress import ProgressReporter, TerminalReporter


class Cell:
    """The outputs of a cell, each with all that it has shown, as IPython's `display` makes them."""

    def __init__(self) -> None:
        self.outputs: list[list[str]] = []

    def display(self, content, raw, display_id):
        assert raw and display_id and list(content) == ["text/plain"]
        self.outputs.append([content["text/plain"]])
        return self

    def update(self, content, raw):
        assert raw and list(content) == ["text/plain"]
        self.outputs[-1].append(content["text/plain"])

    @property
    def shown(self) -> str:
        (area,) = self.outputs
        return area[-1]


@pytest.fixture
def cell() -> Cell:
    return Cell()


@pytest.fixture
def reporter(cell) -> NotebookReporter:
    return NotebookReporter(cell.display)


def test_all_is_shown_in_one_area(reporter, cell, monkeypatch):
    monkeypatch.setattr(notebook, "INTERVAL", 0.0)
    reporter.note("masks\x1b[31m")
    with reporter.stage("dense training") as step:
        assert cell.shown == "masks\\x1b[31m\ndense training  " + "░" * 24
        step(5, 20)
        assert cell.shown == "masks\\x1b[31m\ndense training  " + "█" * 6 + "░" * 18 + "  5/20"
    reporter.headline("trial 0: 50 % at 10 % | 1/4")
    reporter.headline("trial 1: 60 % at 10 % | 2/4")
    with reporter.jobs() as jobs:
        jobs.begin("a", "trial 2")
        jobs.begin("b", "trial 10")
        jobs.step("b", 3, 4)
        assert cell.shown.splitlines()[1:] == [
            "trial 1: 60 % at 10 % | 2/4", "trial 2   " + "░" * 24, "trial 10  " + "█" * 18 + "░" * 6 + "  3/4",
        ]  # fmt: skip
        jobs.end("b")
        jobs.end("a")
    assert cell.shown == "masks\\x1b[31m\ntrial 1: 60 % at 10 % | 2/4"


def test_steps_are_not_drawn_one_by_one(reporter, cell, monkeypatch):
    monkeypatch.setattr(notebook, "INTERVAL", 1e9)
    with reporter.stage("scan") as step:
        for done in range(500):
            step(done, 500)
    assert len(cell.outputs[0]) == 2  # as it began, and as it ended
    assert cell.shown == ""


def test_logged_warnings_are_notes_while_a_search_runs(reporter, cell, capsys):
    log = logging.getLogger("search.somewhere")
    with followed(reporter):
        log.warning("the machine was busy (spread %d %%)", 25)
        log.info("unsaid")
        assert cell.shown == "the machine was busy (spread 25 %)" and not capsys.readouterr().err
    with followed(ProgressReporter()):
        log.warning("as ever")
    assert "as ever" not in cell.shown


def test_when_a_search_is_over_nothing_says_what_is_left(reporter, cell):
    with followed(reporter):
        reporter.note("read this")
        reporter.headline("final run 1/2 (trial 1): 61.00 % on validation | about 1.2 s left")
    assert cell.shown.splitlines() == ["read this", "done after 0.0 s"]
    with pytest.raises(KeyboardInterrupt), followed(reporter):
        reporter.headline("trial 3 | 4/24")
        raise KeyboardInterrupt
    assert cell.shown.splitlines()[-1] == "trial 3 | 4/24"


def test_lines_of_a_notebook_break_between_words(reporter, cell):
    reporter.note("a trial fine-tunes for 20 steps only, too few for most networks: give it more --epochs or --batch 4")
    assert cell.shown.splitlines() == [
        "a trial fine-tunes for 20 steps only, too few for most networks: give it more --epochs", "  or --batch 4",
    ]  # fmt: skip


def test_a_stage_that_fails_leaves_no_bar(reporter, cell):
    with pytest.raises(ZeroDivisionError), reporter.stage("scan"):
        raise ZeroDivisionError
    assert cell.shown == ""


def test_of_many_notes_the_last_stay(reporter, cell):
    for number in range(notebook.MOST_NOTES + 3):
        reporter.note(f"note {number}")
    lines = cell.shown.splitlines()
    assert lines[:2] == ["(3 earlier notes left out)", "note 3"] and len(lines) == notebook.MOST_NOTES + 1


class ZMQInteractiveShell:
    """What a notebook's kernel calls its shell."""


def test_a_notebook_has_a_live_area_and_a_terminal_bars_and_a_library_is_silent(monkeypatch, cell):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert type(usual_reporter()) is ProgressReporter
    monkeypatch.setattr(sys, "stderr", None)
    assert type(usual_reporter()) is ProgressReporter
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: True))
    assert type(usual_reporter()) is TerminalReporter
    monkeypatch.setattr(builtins, "get_ipython", ZMQInteractiveShell, raising=False)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(display=cell))
    usual_reporter().note("shown")
    assert cell.shown == "shown"
