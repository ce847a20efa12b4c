"""Every test that the table of faults names exists, and every row names one or says why not."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [line for line in (ROOT / "docs" / "faults.md").read_text().splitlines() if re.match(r"\| \d+ \|", line)]


@cache
def named_in(path: Path) -> frozenset[str]:
    """`test_x` and `TestY::test_z` of a file."""

    def named(nodes: list[ast.stmt], before: str = "") -> Iterator[str]:
        for node in nodes:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield before + node.name
            elif isinstance(node, ast.ClassDef):
                yield from named(node.body, f"{before}{node.name}::")

    return frozenset(named(ast.parse(path.read_text()).body))


def test_there_are_fifty_numbered_rows():
    assert [int(row.split("|")[1]) for row in ROWS] == list(range(1, 51))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_a_row_names_tests_that_exist_or_says_why_there_is_none(row):
    _, _, fault, holds, guards, _ = (cell.strip() for cell in row.split("|"))
    assert fault and holds
    if guards.startswith("none"):
        assert re.match(r"none(, as| yet:|:) .{10,}", guards), guards
        return
    for guard in guards.split(", "):
        path, name = re.fullmatch(r"`([\w/]+\.py)::([\w:]+)`", guard).groups()
        assert name in named_in(ROOT / path), guard
