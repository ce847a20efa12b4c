"""Raw results of benchmarks: CSV files beside the scripts, one line a fine-tune or policy, appended to; their seeds."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, str]


def read_rows(table: Path) -> list[Row]:
    """All lines; none if there is no file yet."""
    if not table.is_file():
        return []
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def append_rows(table: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Add lines, after a head in a new file."""
    new = not table.is_file()
    with table.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns)
        if new:
            writer.writeheader()
        writer.writerows(rows)


def seed_range(text: str) -> range:
    """Seeds of `first-last`, both included; of a single number, that one. `ValueError` for anything else."""
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)
