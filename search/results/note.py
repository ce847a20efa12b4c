"""A study in a few lines of Markdown: its front, what finals say of it, and how to export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from search.results.remarks import verdict_of
from search.results.state import StudyState
from search.results.tables import TrialRow
from spaces.wording import counted

MOST_ROWS = 20
"""Members of the front that are listed; the whole front is in `front.csv`."""


def study_note(name: str, state: StudyState) -> str:
    """What a study found, as Markdown of less than 4,000 characters."""
    config, unit, front = state.config, state.unit, state.front
    lines = [
        f"{counted(len(state.records), 'trial')}, {len(front)} on the front, {config.size_metric} size at most "
        f"{config.max_size:.4g} of the dense model's. Dense {unit.name}: {unit.shown(state.dense_accuracy)}."
    ]
    if front:
        columns = ["trial", unit.name, "final", "test", "size", "MACs", "granularity", "bits"]
        lines += ["", _line(columns), _line(["---:"] * 6 + ["---"] * 2)]
        lines += [_line(_cells(row, state)) for row in front[:MOST_ROWS]]
        if len(front) > MOST_ROWS:
            lines += ["", f"and {len(front) - MOST_ROWS} more in `front.csv`"]
    compared = verdict_of(state)
    lines += ["", compared] if compared else []
    lines += ["", f"`prunefront export {name} --trial best --out DIR` writes the best as files."]
    return "\n".join(lines)


def _cells(row: TrialRow, state: StudyState) -> list[str]:
    shares = [state.unit.shown(share) or "" for share in (row.accuracy, row.final_accuracy, row.test_accuracy)]
    sizes = ["" if share is None else f"{100 * share:.1f} %" for share in (row.size, row.macs)]
    bits = "mixed" if isinstance(row.bits, Mapping) else str(row.bits)
    return [str(row.trial), *shares, *sizes, row.granularity or "", bits]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
