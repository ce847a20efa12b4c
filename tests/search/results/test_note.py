"""The note of a study, read by a Markdown parser of others."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest
from hand_made_study import with_everything
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from search.metric import Metric
from search.results.note import escaped, study_note
from search.results.view import open_study


def shown(markdown: str) -> list[str]:
    """Text of every line, cell and block of code, as a reader sees it."""
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    lines = [
        "".join(part.content for part in token.children) if token.type == "inline" else token.content
        for token in tokens
        if token.type in ("inline", "fence")
    ]
    assert not [part for token in tokens for part in token.children or () if part.type not in ("text", "text_special")]
    return lines


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    with_everything(root)
    return open_study(root, "hand").state


NAMES = st.text(st.sampled_from("aB1 |\\`*_<>[]&#~;-!(){}$"), min_size=1, max_size=40).filter(str.strip)


@given(NAMES)
def test_a_cell_shows_what_is_written_in_it(name):
    written = f"| {escaped(name)} | end |\n| --- | --- |\n| {escaped(name)} | 1 |"
    assert shown(written) == [" ".join(name.split()), "end", " ".join(name.split()), "1"]


def test_a_metric_of_any_name_breaks_no_table(state, monkeypatch):
    monkeypatch.setattr(state, "unit", Metric("mIoU|50 *all* `x`", low=0, high=100))
    first, *rest = shown(study_note("hand", state, "/data/mlruns"))
    assert first.startswith("15 trials, ") and "Dense mIoU|50 *all* `x`: 95" in first
    columns = ["trial", "mIoU|50 *all* `x`", "final", "test", "size", "MACs", "granularity", "bits"]
    assert rest[: len(columns)] == columns
    assert rest[len(columns) :][: len(columns)][0::6] == [str(state.front[0].trial), state.front[0].granularity]


@pytest.mark.parametrize(
    ("workload", "more"), [("digits", []), ("<mine>", ["--workload", "./file.py:function"])], ids=["named", "in Python"]
)
def test_the_command_works_wherever_it_is_pasted(state, monkeypatch, workload, more):
    monkeypatch.setattr(state, "config", state.config.model_copy(update={"workload": workload}))
    command = shown(study_note("hand", state, "/data/a `b`/runs"))[-1]
    words = ["prunefront", "export", "hand", "--trial", "best", "--out", "DIR", *more, "--root", "/data/a `b`/runs"]
    assert shlex.split(command) == words


def test_predicted_latency_is_told_in_milliseconds(state, monkeypatch):
    first, second = (replace(row, latency=share) for row, share in zip(state.front, (0.375, None), strict=False))
    monkeypatch.setattr(type(state), "front", property(lambda _: [first, second]))
    cells = shown(study_note("hand", state, "/data/mlruns", 8.0))
    at = cells.index("latency")
    assert [cells[at + 9], cells[at + 18]] == ["3 ms", ""]
    assert "latency" not in shown(study_note("hand", state, "/data/mlruns"))


def test_a_note_is_within_what_mlflow_takes(state, monkeypatch):
    monkeypatch.setattr(state, "unit", Metric("|" * 40, low=0, high=100))
    monkeypatch.setattr(type(state), "front", property(lambda _: [replace(state.row(14), latency=0.123456)] * 99))
    note = study_note("hand", state, "/data/mlruns", 1234.5)
    assert len(note) < 4000 and "and 79 more in" in note
