"""What is said of devices: the page `docs/devices.md` and the figures of `devices.csv` say the same."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from search.cli.text_tables import target_blocks
from search.results.device_support import MEASURED, RUNTIMES, STATEMENTS, TARGETS
from spaces.granularity import GRANULARITIES

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "devices.md").read_text()
TABLE = ROOT / "tests" / "benchmarks" / "devices.csv"


def page_rows() -> list[str]:
    """The rows of the page's table of statements on runtimes."""
    return [
        f"| {one.target} | {one.subject} | {'yes' if one.smaller else 'no'} | {'yes' if one.faster else 'no'} "
        f"| {one.effect} | {one.source} |"
        for one in STATEMENTS
        if one.target in RUNTIMES
    ]


def test_the_page_says_what_the_command_says():
    rows = page_rows()
    found = PAGE[PAGE.index("| target | what |") :].split("\n\n")[0].splitlines()[2:]
    assert found == rows, "paste this into docs/devices.md:\n\n" + "\n".join(rows)


@pytest.mark.parametrize("target", RUNTIMES)
def test_every_granularity_and_8_bits_are_judged_for_every_runtime(target):
    own = [one for one in STATEMENTS if one.target == target]
    assert {word for one in own for word in one.granularities} == {*GRANULARITIES}
    assert [one for one in own if 8 in one.bits] and all(one.effect and one.source for one in own)


def test_the_figures_of_our_own_are_in_the_table():
    """Each ratio with its interval is that of a line, and so is each number of bytes."""
    with TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    ratios = {
        f"{float(row['ratio']):.2f} [{float(row['low']):.2f}, {float(row['high']):.2f}]" for row in rows if row["low"]
    }
    own = [one for one in STATEMENTS if one.source == MEASURED]
    quoted = [ratio for one in own for ratio in re.findall(r"\d\.\d\d \[[^]]*\]", one.effect)]
    assert len(own) >= 8 and len(quoted) >= 8
    assert {*quoted} <= ratios
    sizes = {f"{int(row['bytes']):,}" for row in rows}
    assert {size for one in STATEMENTS for size in re.findall(r"\d+,\d{3}(?:,\d{3})?", one.effect)} <= sizes


def test_blocks_fit_a_narrow_terminal_and_name_every_target():
    lines = target_blocks().splitlines()
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if line and not line.startswith(" ")] == [*TARGETS]
    assert "  channel: smaller and faster" in lines
    assert any(line.startswith("  8 bits: ") for line in lines)
