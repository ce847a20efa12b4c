"""Tables and lines a person reads on stdout."""

from __future__ import annotations

import io
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from search.cli.screen import SCREEN, styled
from search.cli.table_layout import GAP, Column, Kind, Layout, laid_out
from search.metric import SHARE, Metric
from search.results.cells import bits_cell, closing_cells, other_size, schedule_cell
from search.results.closing import ClosingRow
from search.results.device_support import STATEMENTS, TARGETS
from search.results.legend import of_columns
from search.results.tables import TrialRow
from search.wrapping import cut, held_together, let_go, wrapped
from spaces.bits import FLOAT_BITS
from spaces.cost.footprint import stored_fractions
from spaces.network import Layer, Network
from spaces.printable import printable
from spaces.sensitivity import Profile, ProfilePoint
from spaces.wording import percent

BLOCK_WIDTH = 80
"""Columns of running text in blocks."""
_ONE = r"(?:-?[\d,.]+(?:e[+-]\d+)?|nan)"
_NUMBER = re.compile(rf"-|{_ONE}(?: ± {_ONE})?(?: %)?")
"""A cell of a column of numbers: as large or small as a metric's value may be, with its deviation; a dash is none."""


def render(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    names: Sequence[str] = (),
    optional: Sequence[str] = (),
    legend: Sequence[str] = (),
    continued: int | None = None,
) -> str:
    """A plain table; numbers are right-aligned, None is a dash.

    On a terminal it is no wider than that; a last line then says what was left out. Elsewhere a row is a line.

    Args:
        names: columns of names, which may lose their middle.
        optional: columns that may be left out, the least wanted first.
        legend: lines below the table, but for those about columns that are left out.
        continued: where at least so many columns would be left out, they are a second table, which begins with the
            first column again.
    """
    rows = list(rows)
    lines, left_out = _fitted(columns, rows, names, optional)
    if continued is not None and len(left_out) >= continued:
        places = [0, *(place for place, name in enumerate(columns) if name in left_out)]
        more = [[row[place] for place in places] for row in rows]
        below, left_out = _fitted([columns[place] for place in places], more, names, optional)
        lines += ["", *below]
    if left_out:
        said = f"(left out at {SCREEN.columns} columns: {', '.join(left_out)}; `| less -S` shows all)"
        lines += [styled(line, "dim") for line in wrapped(said, SCREEN.columns).split("\n")]
    if legend:
        lines += ["", *of_columns(legend, left_out)]
    return "\n".join(lines)


def _fitted(
    columns: Sequence[str], rows: Sequence[Sequence[object]], names: Sequence[str], optional: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The lines of a table that is no wider than the terminal, and the columns that it lacks for that."""
    cells = [["-" if cell is None else printable(cell) for cell in row] for row in rows]
    ranks = {name: rank for rank, name in enumerate(optional)}
    wanted = []
    for place, name in enumerate(columns):
        own = [row[place] for row in cells]
        kind = Kind.NAME if name in names else Kind.NUMBER if all(map(_is_number, own)) else Kind.PROSE
        wanted.append(Column(printable(name), kind, own, ranks.get(name)))
    layout = laid_out(wanted, SCREEN.columns)
    lines = _drawn(layout)
    lines[0] = styled(lines[0], "bold")
    return lines, layout.left_out


def _drawn(layout: Layout) -> list[str]:
    """The lines of a table, its header first."""
    table = Table(box=None, pad_edge=False)
    for column, width in zip(layout.shown, layout.widths, strict=True):
        right = all(map(_is_number, column.cells))
        table.add_column(column.name, justify="right" if right else "left", width=width, overflow="fold")
    cut_columns = [
        [cut(cell, width) if column.kind is Kind.NAME else held_together(cell) for cell in column.cells]
        for column, width in zip(layout.shown, layout.widths, strict=True)
    ]
    for row in zip(*cut_columns, strict=True):
        table.add_row(*map(Text, row))
    text = io.StringIO()
    whole = sum(layout.widths) + GAP * len(layout.widths)
    Console(file=text, width=whole, no_color=True, markup=False, emoji=False, highlight=False).print(table)
    return [let_go(line.rstrip()) for line in text.getvalue().splitlines()]


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None


def front_table(
    rows: Sequence[TrialRow],
    with_state: bool = False,
    unit: Metric = SHARE,
    legend: Sequence[str] = (),
    metric: str = "encoded",
) -> str:
    """The front, or with `with_state` all trials and why they are not complete.

    Args:
        legend: as of `render`.
        metric: of the sizes, the one that the limit binds on, which is never left out.
    """
    columns = ["trial", unit.name, "final", "test", "encoded", "nonzero", "MACs", "granularity", "schedule", "origin"]
    body, predicted = [], any(row.latency is not None for row in rows)
    rounded = any(row.bits not in (None, FLOAT_BITS) for row in rows)
    if rounded:
        columns.insert(8, "bits")
    if predicted:
        columns.insert(7, "latency")
    for row in rows:
        cells = [
            row.trial, unit.shown(row.accuracy), unit.shown(row.final_accuracy),
            unit.spread(row.test_accuracy, row.test_sd),
            percent(row.size_encoded), percent(row.size_nonzero), percent(row.macs), row.granularity,
            schedule_cell(row), row.origin,
        ]  # fmt: skip
        if rounded:
            cells.insert(8, bits_cell(row.bits))
        if predicted:
            cells.insert(7, percent(row.latency))
        told = f"{row.state}: {row.reason}" if row.reason else row.state
        body.append([*cells, told] if with_state else cells)
    last = ["test", "MACs", "bits"] if with_state else ["MACs", "bits", "test"]
    optional = ["origin", "schedule", other_size(metric), "final", *last]
    return render([*columns, "state"] if with_state else columns, body, optional=optional, legend=legend)


def fronts_table(
    fronts: Mapping[str, Sequence[TrialRow]], units: Mapping[str, Metric], size: str = "encoded", latency: bool = False
) -> str:
    """Fronts of studies side by side, from the largest size on; a row is a trial, its accuracy in the column of its
    study.

    Args:
        units: name of a study -> the metric of its column.
        size: the measure that rows are shown by.
        latency: whether there is a column of predicted latency.
    """
    rows = [(percent(size_by(row, size), 2), name, row) for name, front in fronts.items() for row in front]
    rows.sort(key=lambda one: -(size_by(one[2], size) or 0.0))
    body = [
        [
            at, *(units[name].shown(row.accuracy) if own == name else "" for name in fronts), percent(row.macs),
            *([percent(row.latency)] if latency else []), row.trial, row.granularity, bits_cell(row.bits),
        ]
        for at, own, row in rows
    ]  # fmt: skip
    columns = [size, *fronts, "MACs", *(["latency"] if latency else []), "trial", "granularity", "bits"]
    return render(columns, body, optional=["bits", "granularity", "MACs"])


def size_by(row: TrialRow, metric: str) -> float | None:
    """The size of a trial by a measure, `encoded` or `nonzero`, a share of the dense model's."""
    return row.size_encoded if metric == "encoded" else row.size_nonzero


def closing_table(
    rows: Sequence[ClosingRow], unit: Metric = SHARE, legend: Sequence[str] = (), metric: str = "encoded"
) -> str:
    """Dense, dense rounded, static baselines and finalists side by side; latency where it was measured.

    A terminal that is too narrow has what networks are chosen by in one table, and the rest in another below it.

    Args:
        legend: as of `render`.
        metric: of the sizes, the one that the limit binds on, which stays in the first table.
    """
    optional = [other_size(metric), "interval", "validation", "bits", "MACs", "runs"]
    return render(*closing_cells(rows, unit), optional=optional, legend=legend, continued=2)


OTHERS = "parts of weights, buffers and constants that are multiplied do not shrink"
"""What MACs of no whole weight are of."""
LESS_WANTED = ("kind", "group", "parameters", "shape", "MACs", "channels cannot go because")
"""Of what there is to say of a layer, what a narrow terminal leaves out first."""


def layer_table(network: Network) -> str:
    """Every prunable layer with its costs, its share of the stored size, its channel group and what keeps it whole."""
    stored = stored_fractions(network)
    return render(
        ["layer", "kind", "shape", "parameters", "size", "MACs", "group", "channels cannot go because"],
        [[*_weight_cells(layer, stored), layer.channel_group, layer.obstacle] for layer in network.prunable],
        ["layer"],
        LESS_WANTED,
    )


def whole_table(network: Network) -> str:
    """Everything else a model stores, with the reason why it stays whole."""
    stored = stored_fractions(network)
    whole = [layer for layer in network.layers if not layer.prunable]
    rest = {
        "other parameters": "biases, and scales of norms and PReLUs, only go with the channels they belong to",
        "buffers": "statistics and tables only go with the channels they belong to",
        "header": "names, shapes and offsets in the file",
    }
    return render(
        ["stored besides", "kind", "shape", "parameters", "size", "MACs", "stays whole because"],
        [
            *([*_weight_cells(layer, stored), layer.obstacle] for layer in whole),
            *([name, None, None, None, percent(stored[name]), None, why] for name, why in rest.items() if stored[name]),
            *([["other products", *[None] * 4, f"{network.other_macs:,}", OTHERS]] if network.other_macs else []),
        ],
        ["stored besides"],
        LESS_WANTED,
    )


def _weight_cells(layer: Layer, stored: Mapping[str, float]) -> list[str | None]:
    shape, macs = "x".join(map(str, layer.shape)), layer.positions * layer.numel
    return [layer.name, layer.kind, shape, f"{layer.numel:,}", percent(stored[layer.name]), f"{macs:,}"]


def target_blocks() -> str:
    """What each granularity and number of bits brings on each target, a block a target, with the sources."""
    blocks = []
    for target in TARGETS:
        lines = [target]
        for one in STATEMENTS:
            if one.target == target:
                lines += _wrapped(f"{one.subject}: {one.verdict}", "  ")
                lines += _wrapped(f"{one.effect} ({one.source})", "      ")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, BLOCK_WIDTH, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False
    )


MOST_DIGITS = 4
"""Decimals of a percentage that levels of a scan may need to be told apart."""


def profile_table(profile: Profile, granularity: str, unit: Metric = SHARE) -> str:
    """Calibration accuracy by layer and sparsity, after BatchNorm recalibration where there is one.

    Few units round to other sparsities in one layer than in most; then its cells name their own. Levels that a terminal
    has no room for are a second table below.
    """
    layers: dict[str, list[ProfilePoint]] = {}
    for layer, point in profile.table(granularity):
        layers.setdefault(layer, []).append(point)
    digits = _telling_digits([[point.sparsity for point in points] for points in layers.values()])
    reached = [[percent(point.sparsity, digits) for point in points] for points in layers.values()]
    levels = range(max(map(len, reached), default=0))
    usual = [Counter(row[n] for row in reached if len(row) > n).most_common(1)[0][0] for n in levels]
    columns = [*map(str, usual)] if len({*usual}) == len(usual) else [f"level {n + 1}" for n in levels]
    rows, differ = [], False
    for (layer, points), shares in zip(layers.items(), reached, strict=True):
        cells = [_cell(point.recalibrated_accuracy, unit) for point in points]
        own = [share != column for share, column in zip(shares, columns, strict=False)]
        cells = [f"{at}: {cell}" if has else cell for at, cell, has in zip(shares, cells, own, strict=True)]
        rows.append([layer, *cells, *[None] * (len(columns) - len(cells))])
        differ = differ or any(own)
    said = ["a cell with a sparsity of its own: the layer has too few units for the column's"] if differ else []
    return render([granularity, *columns], rows, [granularity], columns[:0:-1], said, continued=1)


def _telling_digits(rows: Sequence[Sequence[float]]) -> int:
    """The fewest decimals of a percentage by which no level looks like another of its row, like nothing or like all."""
    told = [{0.0, 1.0, *row} for row in rows]
    for digits in range(MOST_DIGITS):
        if all(len({percent(share, digits) for share in row}) == len(row) for row in told):
            return digits
    return MOST_DIGITS


def _cell(share: float, unit: Metric) -> str | None:
    return percent(share) if unit.is_share else unit.shown(share)


def rounding_table(profile: Profile, unit: Metric = SHARE) -> str:
    """Calibration accuracy by layer and value bits, as `profile_table` has it by sparsity."""
    bits = sorted({point.bits for points in profile.rounding.values() for point in points}, reverse=True)
    rows = []
    for layer, points in profile.rounding.items():
        found = {point.bits: _cell(point.recalibrated_accuracy, unit) for point in points}
        rows.append([layer, *map(found.get, bits)])
    return render(["rounding", *(f"{own} bits" for own in bits)], rows, ["rounding"])
