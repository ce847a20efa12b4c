"""A study at a glance: in a line what came of it, and its front as a short table."""

from __future__ import annotations

import base64
import html
from typing import TYPE_CHECKING

from search.results.cells import bits_cell, counts_line
from search.results.figures import front_figure
from search.results.state import StudyState
from spaces.printable import printable
from spaces.wording import limit, percent

if TYPE_CHECKING:
    import pandas as pd

    from search.results.picture import Picture

MOST_ROWS = 10
"""Members of the front that the short table has."""
PICTURE_WIDTH = 720
"""Pixels across that the picture takes in a notebook."""


def headline(name: str, state: StudyState) -> str:
    """What came of a study, in a line."""
    best = f"; best: trial {state.best}" if state.best is not None else ""
    dense = f"dense {state.unit.name} {state.unit.shown(state.dense_accuracy) or 'unknown'}"
    within = f"{limit(state.max_size)} of the dense {state.config.size_metric} size"
    front = f"front of {state.front_length} within {within}"
    return printable(f"Study {name}: {counts_line(state.counts())}; {dense}; {front}{best}")


def front_glance(state: StudyState) -> pd.DataFrame:
    """The most accurate of the front as text, all that is not there yet as a dash."""
    import pandas as pd

    unit = state.unit
    rows = [
        [
            str(row.trial), unit.shown(row.accuracy), unit.shown(row.final_accuracy),
            unit.spread(row.test_accuracy, row.test_sd), percent(row.size), percent(row.macs), row.granularity,
            bits_cell(row.bits),
        ]
        for row in state.front[:MOST_ROWS]
    ]  # fmt: skip
    columns = ["trial", printable(unit.name), "final", "test", "size", "MACs", "granularity", "bits"]
    return pd.DataFrame([[cell or "-" for cell in row] for row in rows], columns=columns)


def glance_text(name: str, state: StudyState) -> str:
    """For a terminal."""
    parts = [headline(name, state), "", *(_table_lines(state) if state.front_length else ["no feasible trial yet"])]
    return "\n".join(parts)


def glance_html(name: str, state: StudyState) -> str:
    """For a notebook: the same, and the picture of the front."""
    parts = [f"<p>{html.escape(headline(name, state))}</p>"]
    if state.front_length:
        parts.append(front_glance(state).to_html(index=False, border=0, escape=True))
        parts += [f"<p>{said}</p>" for said in _rest(state)]
    if not state.is_fruitless:
        picture = base64.b64encode(picture_of(state).png()).decode()
        alt = html.escape(f"{state.unit.name} against stored size of all networks, with the front marked")
        parts.append(f'<img src="data:image/png;base64,{picture}" alt="{alt}" width="{PICTURE_WIDTH}">')
    return "\n".join(["<div>", *parts, "</div>"])


def picture_of(state: StudyState) -> Picture:
    """The front among all trials, with dense model and baselines where they are known."""
    return front_figure(
        state.rows, state.front, state.max_size, state.comparison, state.scores, state.config.size_metric, state.unit
    )


def _table_lines(state: StudyState) -> list[str]:
    return [front_glance(state).to_string(index=False), *_rest(state)]


def _rest(state: StudyState) -> list[str]:
    more = state.front_length - MOST_ROWS
    return [f"and {more} more in .front"] if more > 0 else []
