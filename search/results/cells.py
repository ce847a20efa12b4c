"""How numbers are written in the cells of tables, in a terminal and on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from search.metric import SHARE, Metric
from search.results.closing import ClosingRow
from search.results.tables import TrialRow
from spaces.cost.timing import TimedNetwork, TimedNetworks
from spaces.wording import counted, listed, percent

MIXED = "mixed"
"""What bits are called where layers differ."""
INTEGER_BITS = 8
"""Weights of so many bits or fewer are integers in an ONNX file."""


def bits_cell(bits: int | Mapping[str, int] | None) -> str | None:
    """The bits of stored weights: a number, or `mixed` if layers differ; None stays None."""
    return MIXED if isinstance(bits, Mapping) else None if bits is None else str(bits)


def runs_cell(row: ClosingRow) -> str:
    """Of how many fine-tunes a row is, and how many there were if some failed."""
    return f"{row.runs} of {row.runs + row.failed}" if row.failed else str(row.runs)


class Cells(NamedTuple):
    """A table: names of its columns, and its rows; None is a cell without a value."""

    columns: list[str]
    rows: list[list[str | None]]


def closing_cells(rows: Sequence[ClosingRow], unit: Metric = SHARE) -> Cells:
    """The closing table; it has latency and its interval where any was measured."""
    timed = any(row.latency for row in rows)
    columns = ["network", "bits", "runs", "validation", "test", "encoded", "nonzero", "MACs"]
    body = [
        [
            row.name, bits_cell(row.bits), runs_cell(row), unit.spread(row.validation, row.validation_sd),
            unit.spread(row.test, row.test_sd), percent(row.size_encoded), percent(row.size_nonzero), percent(row.macs),
            *([latency_cell(row), interval_cell(row.latency)] if timed else []),
        ]
        for row in rows
    ]  # fmt: skip
    return Cells([*columns, "latency", "interval"] if timed else columns, body)


def latency_cell(row: ClosingRow) -> str | None:
    """A share of the dense latency, and whether it cannot be told from that; None where it was not measured."""
    if row.latency is None:
        return None
    return f"{percent(row.latency.share)}{' noise' if row.within_noise else ''}"


def interval_cell(timed: TimedNetwork | None) -> str | None:
    """The interval of a share of the dense latency, in percent; None where there is none."""
    if timed is None or timed.low == timed.high:
        return None
    return f"[{timed.low * 100:.1f}, {timed.high * 100:.1f}]"


def other_size(metric: str) -> str:
    """The measure of size that the limit does not bind on."""
    return "nonzero" if metric == "encoded" else "encoded"


def latency_line(timed: TimedNetworks) -> str:
    """How the closing table's latency was measured, and how far equal networks come out apart."""
    where = f"batch {timed.batch}, {counted(timed.threads, 'thread')}, {timed.device}"
    where = f"by the command {timed.command!r}" if timed.command else where
    dense = f"{timed.dense.seconds * 1e3:.3g} ms (spread {percent(timed.dense.spread)})"
    copy = " ".join(filter(None, [percent(timed.copy.share), interval_cell(timed.copy)]))
    return (
        f"Latency: {where}; share of the dense model's, median of {timed.rounds} rounds and its 95 % interval. Dense "
        f"takes {dense}, a copy of it {copy}: an interval that overlaps this one is noise."
    )


def slower_line(timed: TimedNetworks, rows: Sequence[ClosingRow], round_to: int) -> str:
    """Which networks are slower than the dense one, and by a command of the user's own, why they may be; empty where
    none is. Their channel counts are multiples of `round_to`.
    """
    slower = [row for row in rows if row.latency and row.latency.low > timed.copy.high]
    if not slower:
        return ""
    line, said = f"Slower than the dense model: {listed(row.name for row in slower)}.", []
    if any(_fewest_bits(row) <= INTEGER_BITS for row in slower):
        said.append("rounded weights are int8 in their ONNX files, and a runtime may make them floats in every run")
    if any(row.macs < 1 for row in slower) and round_to % 8:
        said.append("kernels may be made for multiples of 8 or 16 channels, which --round-to keeps")
    return f"{line} Why that may be: {'; '.join(said)}." if timed.command and said else line


def _fewest_bits(row: ClosingRow) -> int:
    return row.bits if isinstance(row.bits, int) else min(row.bits.values())


def schedule_cell(row: TrialRow) -> str | None:
    """A trial's schedule: of a polynomial one its exponent alone; None stays None."""
    if row.exponent is None:
        return row.schedule
    return ("" if row.schedule == "polynomial" else f"{row.schedule}, ") + f"E = {row.exponent:.2g}"


def counts_line(counts: Mapping[str, int]) -> str:
    """`12 complete, 1 failed`; states without trials are left out."""
    return ", ".join(f"{number} {state}" for state, number in counts.items() if number) or "no trials"
