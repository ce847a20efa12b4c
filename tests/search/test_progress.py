"""What a terminal and a log show while a study runs."""

from __future__ import annotations

import io
import re
import shutil
from dataclasses import replace

import pytest
from rich.cells import cell_len
from terminals import on_a_terminal

from search.progress import Standing, TerminalReporter

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
STANDING = Standing(
    last="trial 117: failed: error: ValueError: a value of many words that the workload's own code raised",
    best="71.25 % at 12.3 %",
    limit=0.25,
    front=14,
    done=118,
    asked=400,
    workers=2,
    seconds_left=4260.0,
    failures={"diverged": 21, "out-of-memory": 3, "timed-out": 1},
)
WANTED = (
    "best so far within 25 % of dense: 71.25 % at 12.3 %", "front 14", "118 of 400 trials", "2 workers",
    "about 1 h 11 min left", "failed: 21 diverged, 3 out-of-memory, 1 timed-out",
)  # fmt: skip
LABEL = "trial 118 (unit then 2:4 in groups of sixteen channels at 12.5 %, mixed bits)"


class Terminal(io.StringIO):
    """Takes the place of stderr."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        monkeypatch.setattr("sys.stderr", self)

    def isatty(self) -> bool:
        return True


@pytest.fixture(params=[80, 120])
def columns(request, monkeypatch) -> int:
    monkeypatch.setenv("COLUMNS", str(request.param))
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return request.param


def lines_of(written: str) -> list[str]:
    """Every line that was ever drawn."""
    return [line.rstrip() for line in re.split(r"[\r\n]+", CONTROL.sub("", written))]


def with_stage(reporter: TerminalReporter) -> None:
    with reporter.stage(LABEL) as progress:
        reporter.standing(STANDING)
        progress(1, 4)


def with_jobs(reporter: TerminalReporter) -> None:
    with reporter.jobs() as jobs:
        jobs.begin("a", LABEL)
        reporter.standing(STANDING)
        jobs.step("a", 1, 4)


@pytest.mark.parametrize("follow", [with_stage, with_jobs])
def test_a_study_fits_the_terminal(columns, monkeypatch, follow):
    stderr = Terminal(monkeypatch)
    follow(TerminalReporter())
    lines = lines_of(stderr.getvalue())
    assert max(map(cell_len, lines)) <= columns and "…" not in stderr.getvalue()
    shown = [part for line in lines for part in line.split("  |  ")]
    assert set(WANTED) <= set(shown)
    assert set(STANDING.last.split()) | set(LABEL.split()) <= {word for line in lines for word in line.split()}
    assert any("━" * 24 in line for line in lines), "the whole bar"


def test_a_word_wider_than_the_terminal_is_not_cut_off(columns, monkeypatch):
    stderr = Terminal(monkeypatch)
    reporter = TerminalReporter()
    reporter.headline("path/" * 40 + "end")
    with reporter.stage("trial"):
        pass
    lines = lines_of(stderr.getvalue())
    assert max(map(cell_len, lines)) <= columns and "path/" * 40 + "end" in "".join(lines)


def test_notes_break_between_words(columns, monkeypatch):
    stderr = Terminal(monkeypatch)
    text = "a note of many words, " * 12 + "end"
    TerminalReporter().note(text)
    lines = lines_of(stderr.getvalue())
    assert max(map(cell_len, lines)) <= columns and " ".join(filter(None, map(str.strip, lines))) == text


def test_a_log_has_a_line_a_trial(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr("sys.stderr", log)
    TerminalReporter().standing(STANDING)
    TerminalReporter().standing(replace(STANDING, last="trial 3: 50.00 % at 25.0 %", seconds_left=None))
    first, second = log.getvalue().splitlines()
    assert first == f"{STANDING.last} | 118/400, best so far 71.25 % at 12.3 %, front 14, about 1 h 11 min left"
    assert second == "trial 3: 50.00 % at 25.0 % | 118/400, best so far 71.25 % at 12.3 %, front 14"


def test_a_log_has_no_shares_of_an_unknown_total(monkeypatch):
    monkeypatch.setattr("search.progress.PLAIN_INTERVAL", 0.0)
    stderr = io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    reporter = TerminalReporter()
    with reporter.stage("MLflow's record") as show:
        show(0, 0)
        show(1, 4)
    with reporter.jobs() as jobs:
        jobs.begin("a", "trial 7")
        jobs.begin("b", "trial 8")
        jobs.step("b", 3, 20)
    assert stderr.getvalue().splitlines() == ["MLflow's record: 25 %", "trial 7; trial 8: 15 %"]


def test_what_is_not_there_is_not_shown():
    bare = replace(STANDING, limit=1.0, workers=1, seconds_left=None, failures={}, last="trial 3: 50.00 % at 25.0 %")
    assert bare.parts == [
        "best so far: 71.25 % at 12.3 %", "front 14", "118 of 400 trials", "1 worker", "trial 3: 50.00 % at 25.0 %"
    ]  # fmt: skip


@pytest.mark.slow
def test_a_search_on_a_terminal_of_80_columns(program, place, tmp_path):
    shutil.copy(place / "tiny.py", tmp_path)  # with a root of its own that no command has to name
    words = ["--trials", "4", "--max-size", "0.25", "--finalists", "0", "--cost", "macs"]
    said = on_a_terminal([program, "search", "--workload", "./tiny.py:tiny", *words], tmp_path, 80)
    lines = lines_of(said)
    assert max(map(cell_len, lines)) <= 80 and "…" not in said
    live = "  |  ".join(lines)
    assert re.search(r"within 25 % of dense: \d+\.\d+ % at \d+\.\d %  \|  front [1-3]  \|  3 of 4 trials", live)
    assert re.search(r"3 of 4 trials  \|  1 worker  \|  about \S+ s left  \|  trial 2: ", live)
