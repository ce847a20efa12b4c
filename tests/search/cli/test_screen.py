"""What a terminal of some width shows: tables and lines that fit, and colours; and a pipe, which has all."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.file_proxy import FileProxy
from terminals import on_a_terminal, resize

from search.cli.logged import logged_on_stderr
from search.cli.screen import SCREEN, Screen, shown, styled
from search.cli.text_tables import (
    closing_table,
    front_table,
    layer_table,
    profile_table,
    render,
    whole_table,
)
from search.results.closing import ClosingRow
from search.results.legend import front_legend
from search.results.tables import TrialRow
from search.wrapping import cut, packed, wrapped
from spaces.cost.timing import TimedNetwork
from spaces.network import Layer, Network, StoredTensor
from spaces.sensitivity import Profile, ProfilePoint

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
NAMES = st.lists(st.sampled_from(["backbone", "層", "conv1", "attention", "weight", "0"]), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def ends():
    """Both ends of a terminal."""
    master, slave = pty.openpty()
    yield master, slave
    os.close(master)
    os.close(slave)


@pytest.fixture
def terminal(ends, monkeypatch):
    """Makes stdout a terminal of so many columns."""
    monkeypatch.setattr(SCREEN, "descriptor", ends[1])
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("COLUMNS", raising=False)
    return lambda columns: resize(ends[1], columns)


def widths(text: str) -> list[int]:
    return [cell_len(ESCAPE.sub("", line)) for line in text.split("\n")]


def network_of(names: list[str], reason: str | None) -> Network:
    layers = [Layer(name, "conv2d", (512, 256, 3, 3), 196, obstacle=reason) for name in names]
    tensors = [StoredTensor(name, (512, 256, 3, 3)) for name in names]
    return Network(tuple(tensors), tuple(layers), (), {})


def profile_of(names: list[str]) -> Profile:
    """Levels that differ from layer to layer, so that cells are at their widest."""
    levels = [0.3, 0.5, 0.7, 0.85, 0.93, 0.97, 0.99]
    points = {
        name: [ProfilePoint(level + place / 1e3, 0.5, 0.75, 0.5, 0.75) for level in levels]
        for place, name in enumerate(names)
    }
    return Profile("model", 60, 0.5, 0.875, {"fine-grained": points}, 2.5)


def row(number: int, **changes) -> TrialRow:
    scores = {"accuracy": 0.9265, "final_accuracy": 0.9271, "test_accuracy": 0.9262, "test_sd": 0.0017}
    costs = {"size_encoded": 0.0943, "size_nonzero": 0.4056, "macs": 0.979, "latency": 0.951}
    policy = {"granularity": "fine-grained", "schedule": "polynomial", "exponent": 2.5, "origin": "global", "bits": 4}
    return TrialRow(number, **{**scores, **costs, **policy, **changes})


TIMED = TimedNetwork(0.004, 0.02, 0.951, 0.94, 0.9625)
CLOSING = ClosingRow(
    "global magnitude (fine-grained)", 3, 0.9265, 0.001, 0.926, 0.0017, 0.0943, 0.4, 0.98, 4, TIMED, True
)
"""With all that its table may have."""


@given(st.integers(60, 140), st.lists(NAMES.map(".".join), min_size=1, max_size=4, unique=True), st.booleans())
def test_no_table_is_wider_than_the_terminal(ends, columns, names, has_reason):
    reason = "its outputs are added to those of `backbone.layer1.0.conv2`, which stay" if has_reason else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SCREEN, "descriptor", ends[1])
        patch.delenv("COLUMNS", raising=False)
        patch.setenv("NO_COLOR", "1")
        resize(ends[1], columns)
        failed = row(7, state="failed", reason="error: the loss is not a number after step 25 of 100")
        tables = [
            front_table([row(3), row(12, bits={"a": 4})]),
            front_table([row(3), failed], with_state=True),
            closing_table([CLOSING]),
            layer_table(network_of(names, reason)),
            whole_table(network_of(names, reason)),
            profile_table(profile_of(names), "fine-grained"),
        ]
    for table in tables:
        assert max(widths(table)) <= columns, table


def test_eighty_columns_hold_what_a_choice_is_made_by(terminal):
    terminal(80)
    lines = front_table([row(3), row(12)]).split("\n")
    assert lines[0].split() == ["trial", "accuracy", "test", "encoded", "MACs", "latency", "granularity", "bits"]
    assert lines[3] == "(left out at 80 columns: final, nonzero, schedule, origin; `| less -S` shows"
    said = front_table([row(3)], legend=front_legend([row(3)])).split("\n\n")[1]
    assert "encoded: bytes of" in said and not re.search("^(nonzero|E|origin): ", said, re.M)
    by_nonzero = front_table([row(3)], metric="nonzero").split("\n")[0].split()
    assert "nonzero" in by_nonzero and "encoded" not in by_nonzero
    terminal(60)
    said = front_table([row(3)], legend=front_legend([row(3)])).split("\n\n")[1]
    assert "latency: predicted" in said and not re.search("^(final|±|bits|MACs)", said, re.M)


def test_the_closing_table_is_two_where_it_is_too_wide(terminal):
    terminal(80)
    legend = ["nonzero: what is left", "interval: of the latency"]
    first, second, said = closing_table([CLOSING], legend=legend).split("\n\n")
    columns, *cells = first.split("\n")
    assert columns.split() == ["network", "runs", "test", "encoded", "MACs", "latency"]
    assert "95.1 % noise" in cells[0] and [one.strip() for one in cells[1:]] == ["(fine-grained)"]
    columns, *cells = second.split("\n")
    assert columns.split() == ["network", "bits", "validation", "nonzero", "interval"]
    assert cells[0].endswith("4  92.65 ± 0.10 %   40.0 %  [94.0, 96.2]") and said.split("\n") == legend
    terminal(110)
    lines = closing_table([CLOSING], legend=legend, metric="nonzero").split("\n")
    assert "interval" in lines[3] and "network" in lines[3] and "left out" not in "".join(lines)
    terminal(118)
    lines = closing_table([CLOSING], legend=legend, metric="nonzero").split("\n")
    assert lines[3].startswith("(left out at 118 columns: encoded;") and len(lines) == 7


@pytest.mark.parametrize(
    ("levels", "shown"),
    [
        ((0.001, 0.5), "0.1 % 50.0 %"), ((0.3, 0.5), "30 % 50 %"), ((0.9941, 0.9962), "99.4 % 99.6 %"),
        ((0.0, 0.5), "0 % 50 %"), ((0.9, 0.9), "level 1 level 2"), ((0.5, 0.99995), "50.000 % 99.995 %"),
    ],
)  # fmt: skip
def test_headings_tell_levels_apart(levels, shown):
    points = tuple(ProfilePoint(level, 0.5, 0.75, 0.5, 0.75) for level in levels)
    profile = Profile("model", 60, 0.5, 0.875, {"fine-grained": {"one": points, "two": points}}, 2.5)
    assert " ".join(profile_table(profile, "fine-grained").split("\n")[0].split()) == f"fine-grained {shown}"


def test_columns_without_a_value_go_first_and_are_not_told_of(terminal):
    terminal(88)
    unfinished = row(3, final_accuracy=None, test_accuracy=None, test_sd=None, origin="uniform")
    header, _, *left_out = front_table([unfinished]).split("\n")
    assert header.split()[:4] == ["trial", "accuracy", "encoded", "nonzero"] and left_out == [
        "(left out at 88 columns: origin; `| less -S` shows all)"
    ]


def test_a_pipe_has_all_columns_whole_names_and_a_row_a_line():
    name = "backbone." * 20 + "weight"
    table = layer_table(network_of([name], "a reason of many words " * 8)).split("\n")
    assert len(table) == 2 and table[1].split()[:4] == [name, "conv2d", "512x256x3x3", "1,179,648"]
    assert table[1].endswith("words a reason of many words") and "left out" not in front_table([row(3)])
    assert not ESCAPE.search("".join(table)) and styled("word", "red") == "word"


def test_numbers_of_any_size_and_sign_are_right_aligned():
    rows = [[1, "-0.25"], [12, "1.2e-05"], [3, "nan"], [4, None], [5, "-3 ± 0.2"]]
    assert render(["trial", "R2"], rows).split("\n") == [
        "trial        R2",
        "    1     -0.25",
        "   12   1.2e-05",
        "    3       nan",
        "    4         -",
        "    5  -3 ± 0.2",
    ]
    assert render(["n", "cell"], [["1,234", "3 of 4"], ["5", "97.2 %"]]).split("\n") == [
        "    n  cell",
        "1,234  3 of 4",
        "    5  97.2 %",
    ]


def test_words_beside_numbers_are_broken_and_nothing_is_lost(terminal):
    terminal(24)
    table = render(["step", "seen"], [["one", "12"], ["two", f"a few words, {'w' * 30}."]])
    assert table.split("\n") == [
        "step  seen", "one   12", "two   a few words,", f"      {'w' * 18}", f"      {'w' * 12}."
    ]  # fmt: skip
    terminal(66)
    table = render(["layer", "why"], [["n" * 40, "12"], ["m", "some words of it " * 3]], ["layer"])
    assert table.split("\n")[1] == f"{'n' * 17}…{'n' * 18}  12"
    assert render(["a\x1b[2Jb"], [["c"]]).split("\n")[0] == "a\\x1b[2Jb"


def test_long_names_keep_beginning_and_end(terminal):
    terminal(60)
    names = [f"backbone.stages.{place}.blocks.3.attention.projection.weight" for place in (1, 2)]
    lines = layer_table(network_of(names, None)).split("\n")
    cells = [line.split()[0] for line in lines[1:3]]
    assert len(set(cells)) == 2 and all(cell.startswith("backbone.stages.") for cell in cells)
    assert all("…" in cell and cell.endswith("projection.weight") for cell in cells)


def test_levels_without_room_are_in_a_second_table(terminal):
    terminal(40)
    points = {
        name: tuple(ProfilePoint(level, 0.5, 0.75, 0.5, 0.75) for level in (low, 0.5, 0.75, 0.9))
        for name, low in (("one", 0.25), ("two", 0.3), ("three", 0.25))
    }
    profile = Profile("model", 60, 0.5, 0.875, {"fine-grained": points}, 2.5)
    first, second, said = profile_table(profile, "fine-grained").split("\n\n")
    cells = [[" ".join(line.split()) for line in part.split("\n")] for part in (first, second)]
    assert cells[0] == ["fine-grained 25 % 50 %", "one 75.0 % 75.0 %", "two 30 %: 75.0 % 75.0 %", "three 75.0 % 75.0 %"]
    assert cells[1] == ["fine-grained 75 % 90 %", *(f"{name} 75.0 % 75.0 %" for name in ("one", "two", "three"))]
    assert said.startswith("a cell with a sparsity of its own")


@given(st.text("ab層.", max_size=40), st.integers(1, 30))
def test_a_cut_name_fits(name, most):
    found = cut(name, most)
    assert cell_len(found) <= most and (found == name if cell_len(name) <= most else "…" in found)


@pytest.mark.parametrize(
    ("name", "most", "found"),
    [
        ("abcdefghij", 6, "ab…hij"),
        ("層層層層層層", 6, "層…層"),
        ("層層abcd", 7, "層…bcd"),
        ("abcd層層", 7, "abc…層"),
        ("ab", 1, "…"),
    ],
)
def test_an_odd_column_is_given_to_the_end_of_a_cut_name(name, most, found):
    """Wide characters take two columns, or leave one of them free."""
    assert cut(name, most) == found


@given(
    st.lists(st.sampled_from(["a", "word", "longer,", "`prunefront status a`", "層層"]), max_size=30),
    st.integers(24, 60),
)
def test_broken_lines_fit_and_lose_nothing(words, columns):
    text = " ".join(words)
    lines = wrapped(text, columns).split("\n")
    assert " ".join(line.strip() for line in lines) == text and max(map(cell_len, lines)) <= columns
    assert " ".join(packed(words, columns, " ")) == text


@pytest.mark.parametrize(
    "command",
    [
        "prunefront export mine --trial best --out DIR --root 'a folder'",
        "`prunefront front mine --all --root elsewhere --format json`",
        "pip install 'prunefront[timm]' -U --no-deps --target there",
    ],
)
def test_no_command_is_broken(command):
    lines = wrapped(f"  absent  what is to be done about it: {command}", 50).split("\n")
    assert lines == ["  absent  what is to be done about it:", f"          {command}"]
    for end in (";", ","):
        assert wrapped(f"{command}{end} and the rest of the sentence", 40).split("\n") == [
            f"{command}{end}", "  and the rest of the sentence"
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "columns", "lines"),
    [
        ("aaaa bbbb cc", 9, ["aaaa bbbb", "  cc"]),
        ("    one two three", 12, ["    one two", "      three"]),
        ("abcdefghij  one two", 16, ["abcdefghij  one", "            two"]),
        ("abcdefghijk  one two", 17, ["abcdefghijk  one", "  two"]),
        ("see /opt/prunefront one two three four", 20, ["see /opt/prunefront", "  one two three four"]),
    ],
    ids=["full", "indented", "below its entry", "too long for an entry", "a path"],
)
def test_where_a_line_is_broken_and_goes_on(line, columns, lines):
    assert wrapped(line, columns).split("\n") == lines


def test_statements_are_packed_up_to_the_last_column():
    assert packed(["aaa", "bbb", "cc dd"], 11) == ["aaa  |  bbb", "cc dd"]
    assert packed(["aaa", "bbb", "cc dd"], 10) == ["aaa", "bbb", "cc dd"]
    assert packed(["aaa bbb"], 5) == ["aaa", "  bbb"]


def test_a_number_keeps_its_percent_sign(terminal):
    assert wrapped("it is 3 seeds at 2.9 % of the size", 20).split("\n") == ["it is 3 seeds at", "  2.9 % of the size"]
    terminal(28)
    assert render(["check", "detail"], [["size", "6 of 9 bytes = 66.67 %"]]).split("\n")[1:] == [
        "size   6 of 9 bytes =",
        "       66.67 %",
    ]
    assert wrapped("on test 96.9 ± 0.28 %", 20).split("\n") == ["on test", "  96.9 ± 0.28 %"]


def test_two_commands_of_a_line_are_told_apart():
    line = "Next: prunefront export mine --trial best --out DIR    or: prunefront view"
    assert wrapped(line, 60).split("\n") == [
        "Next: prunefront export mine --trial best --out DIR", "  or: prunefront view"
    ]  # fmt: skip


def test_colours_are_for_terminals_that_have_them(terminal, monkeypatch):
    terminal(40)
    monkeypatch.delenv("NO_COLOR")
    header = shown(render(["layer"], [["conv\x1b[2J\ue000.weight"]]), on_screen=True)
    assert header == "\x1b[1mlayer\x1b[0m\nconv\\x1b[2J\\ue000.weight"
    monkeypatch.setenv("NO_COLOR", "1")
    assert shown(render(["layer"], [["conv"]]), on_screen=True) == "layer\nconv"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not SCREEN.has_colours and SCREEN.columns == 40


@pytest.mark.parametrize(
    ("real", "given", "columns"),
    [
        (132, None, 132), (0, None, 80), (9, None, 20), (90, "132", 132), (90, "7", 20), (90, "0", 90), (90, "", 90),
        (90, "wide", 90), (90, "²", 90),
    ],
)  # fmt: skip
def test_a_terminal_is_as_wide_as_it_says_or_is_told(terminal, monkeypatch, real, given, columns):
    terminal(real)
    if given is not None:
        monkeypatch.setenv("COLUMNS", given)
    assert SCREEN.columns == columns


def test_a_terminal_that_cannot_be_asked_has_eighty_columns_and_one_without_a_kind_no_colours(terminal, monkeypatch):
    def unknown(_):
        raise OSError("Inappropriate ioctl for device")

    monkeypatch.setattr(os, "get_terminal_size", unknown)
    monkeypatch.delenv("NO_COLOR")
    assert SCREEN.columns == 80 and SCREEN.has_colours
    monkeypatch.delenv("TERM")
    assert not SCREEN.has_colours


def test_what_others_wrote_steers_no_terminal(terminal, monkeypatch):
    terminal(40)
    text, safe = "first\x1b[2J\nsecond\ue002", "first\\x1b[2J\nsecond\\ue002"
    assert shown(text, on_screen=False) == shown(text, on_screen=True) == safe
    monkeypatch.delenv("NO_COLOR")
    assert shown(text, on_screen=True) == safe


@pytest.mark.parametrize(("style", "code"), [("bold", 1), ("dim", 2), ("red", 31), ("green", 32), ("yellow", 33)])
def test_styles_are_codes_of_terminals(terminal, monkeypatch, style, code):
    terminal(40)
    monkeypatch.delenv("NO_COLOR")
    assert shown(f"a {styled('b', style)} c", on_screen=True) == f"a \x1b[{code}mb\x1b[0m c" and styled("", style) == ""


def test_styles_take_no_room(terminal, monkeypatch):
    terminal(24)
    monkeypatch.delenv("NO_COLOR")
    line = f"{styled('ok', 'green')}  {'x' * 9} {'y' * 10}"
    assert shown(line, on_screen=True) == f"\x1b[32mok\x1b[0m  {'x' * 9} {'y' * 10}"
    assert shown(line + "z", on_screen=True).split("\n")[1] == f"    {'y' * 10}z"


def test_commands_fit_a_terminal_and_data_is_not_broken(program, finished):
    """The installed command on a terminal of 80 columns."""
    shows = {words: on_a_terminal([program, *words], finished.root.parent, 80) for words in (
        ("front", "tiny", "--all"), ("status", "tiny"), ("front", "tiny", "--format", "json"),
    )}  # fmt: skip
    table, status, data = ("\n".join(text.splitlines()) for text in shows.values())
    assert max(widths(table)) <= 80 and "left out at 80 columns" in table and "\x1b[1mtrial" in table
    assert max(widths(status)) <= 80 and "Study tiny: 8 complete of 8 asked" in status
    assert len(json.loads(data)) == len(finished.reply["front"]) and len(data) > 1000


def test_a_logged_warning_breaks_between_words_on_a_terminal(monkeypatch, capsys):
    log = logging.getLogger("search.training.latency_cache")
    monkeypatch.setattr(Screen, "columns", 30)
    with logged_on_stderr():
        log.warning("the machine was busy: delete %s to repeat it\x1b[31m", "/folder/of/studies/cache/latency-1.json")
    assert capsys.readouterr().err.splitlines() == [
        "the machine was busy: delete", "  /folder/of/studies/cache/latency-1.json", "  to repeat it\\x1b[31m",
    ]  # fmt: skip
    assert not [one for one in logging.getLogger("search").handlers if type(one).__module__ == "search.cli.logged"]


def test_a_warning_is_not_said_again_where_the_users_own_logging_says_it(capsys):
    log, root, own = logging.getLogger("search.x"), logging.getLogger(), logging.StreamHandler(sys.stderr)
    elsewhere = logging.StreamHandler(io.StringIO())
    bars = logging.StreamHandler(FileProxy(Console(file=sys.stderr), sys.stderr))  # begun while they were shown
    with logged_on_stderr():
        for handler in (elsewhere, own, bars):
            root.addHandler(handler)
            log.warning("once")
            root.removeHandler(handler)
    assert capsys.readouterr().err == "once\n" * 3 and elsewhere.stream.getvalue() == "once\n"


def test_a_number_stays_with_its_unit_and_a_file_with_its_bytes():
    said = "20,601 of 588,552 bytes = 3.50 %, MACs 100.0 % in policy.json (579 bytes)"
    assert wrapped(said, 21).splitlines() == [
        "20,601", "  of 588,552 bytes =", "  3.50 %,", "  MACs 100.0 % in", "  policy.json (579 bytes)",
    ]  # fmt: skip
