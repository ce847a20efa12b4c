"""A study in a few lines of Markdown: its front, what finals say of it, and how to export."""

from __future__ import annotations

import re
from collections.abc import Sequence

from search.results.cells import bits_cell
from search.results.remarks import verdict_of
from search.results.resume import export_command
from search.results.state import StudyState
from search.results.tables import TrialRow
from spaces.wording import counted, percent

MOST_ROWS = 20
"""Members of the front that are listed; the whole front is in `front.csv`."""


def study_note(name: str, state: StudyState, root: str, dense_milliseconds: float | None = None) -> str:
    """What a study found, as Markdown of less than 4,000 characters, a long `root` apart.

    Args:
        root: the study's, absolute, since the note is read from anywhere.
        dense_milliseconds: of the dense network in the table that latency is predicted by; None where it is not.
    """
    config, unit, front = state.config, state.unit, state.front
    lines = [
        escaped(
            f"{counted(len(state.records), 'trial')}, {len(front)} on the front, {config.size_metric} size at most "
            f"{config.max_size:.4g} of the dense model's. Dense {unit.name}: {unit.shown(state.dense_accuracy)}."
        )
    ]
    if front:
        latency = [] if dense_milliseconds is None else ["latency"]
        columns = ["trial", unit.name, "final", "test", "size", "MACs", *latency, "granularity", "bits"]
        lines += ["", _line(columns), _line(["---:"] * (len(columns) - 2) + ["---"] * 2)]
        lines += [_line(_cells(row, state, dense_milliseconds)) for row in front[:MOST_ROWS]]
        if len(front) > MOST_ROWS:
            lines += ["", f"and {len(front) - MOST_ROWS} more in `front.csv`"]
    compared = verdict_of(state)
    lines += ["", escaped(compared)] if compared else []
    command = export_command(config, name, "best", "DIR", root)
    lines += ["", "This writes the best as files:", "", "```", command, "```"]
    return "\n".join(lines)


def escaped(text: str) -> str:
    r"""Text as Markdown shows it unchanged, also in a cell of a table.

    >>> print(escaped("IoU|0.5 of *:4"))
    IoU\|0.5 of \*:4
    """
    return re.sub(r"([\\`*_\[\]<>|~&#])", r"\\\1", " ".join(text.split()))


def _cells(row: TrialRow, state: StudyState, dense_milliseconds: float | None) -> list[str]:
    shares = [state.unit.shown(share) for share in (row.accuracy, row.final_accuracy, row.test_accuracy)]
    found = [str(row.trial), *shares, percent(row.size), percent(row.macs)]
    if dense_milliseconds is not None:
        found.append(None if row.latency is None else f"{row.latency * dense_milliseconds:.3g} ms")
    return [cell or "" for cell in (*found, row.granularity, bits_cell(row.bits))]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(escaped, cells))} |"
