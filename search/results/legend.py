"""What the columns and rows of tables mean, a short line each, of those that are shown."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from search.metric import SHARE, Metric
from search.results.cells import MIXED, bits_cell
from search.results.closing import ClosingRow
from search.results.tables import TrialRow
from spaces.bits import FLOAT_BITS

SIZES = (
    "encoded: bytes of the sparse file, as a share of the dense file's",
    "nonzero: the share of weights left, at 32 bits each, biases and norms whole",
)
MACS = "MACs: multiplications of dense kernels; only removed channels lower them"
DIFFER = "mixed: layers differ"


LED_BY = {"E": "schedule", "±": "test"}
"""What a line begins with -> the column it is about, where that is another word."""


def of_columns(lines: Sequence[str], left_out: Collection[str]) -> list[str]:
    """The lines but for those that are about nothing but columns that a narrow table leaves out.

    >>> of_columns(["nonzero: ...", "E: ...", "final, test: ..."], {"nonzero", "schedule", "final"})
    ['final, test: ...']
    >>> of_columns(["final, test: ...", "±: ..."], {"final", "test"})
    []
    """
    about = {line: [LED_BY.get(name, name) for name in line.partition(":")[0].split(", ")] for line in lines}
    return [line for line, names in about.items() if not {*names} <= {*left_out}]


def closing_legend(rows: Sequence[ClosingRow], unit: Metric = SHARE) -> list[str]:
    """Of the closing table; `rows` are all of its rows."""
    if not rows:
        return []
    names = [row.name for row in rows]
    said = ["runs: full fine-tunes, one seed each; cells have their mean ± standard deviation"]
    if any(row.validation_sd is None and not row.name.startswith("dense") for row in rows):
        said.append("a single run has no standard deviation: it was not needed to find the best")
    said.append(f"validation chose, test was read once a run{'' if unit.is_share else f'; both are {unit.name}'}")
    said += [*SIZES, MACS]
    if any(row.name.startswith("trial ") and row.bits != FLOAT_BITS for row in rows):
        said.append("a trial's sizes here are of its finals, whose rounding makes other weights 0")
    if any(" at " in name and name.startswith("dense") for name in names):
        said.append("dense at 8 bits, ...: the dense model rounded, nothing pruned or trained")
    if any(" for trial" in name for name in names):
        said.append("RULE for trial N: the best static rule at trial N's size, granularity, bits")
    if any(" at the limit" in name for name in names):
        said.append("RULE at the limit: that static rule at the largest size allowed")
    if any(bits_cell(row.bits) == MIXED for row in rows):
        said.append(f"bits {DIFFER}")
    if any(row.latency for row in rows):
        said.append("latency: measured, as a share of the dense model's; noise: cannot be told from it")
        said.append("interval: that of 95 % around the latency, in % of the dense model's")
    return said


def front_legend(rows: Sequence[TrialRow], unit: Metric = SHARE) -> list[str]:
    """Of the table of the front, or of all trials."""
    if not rows:
        return []
    said = [f"{unit.name}: on validation data, after a trial's short fine-tune"]
    if any(row.final_accuracy is not None for row in rows):
        said.append("final, test: means of full fine-tunes, on validation and on test data")
        if any(row.test_sd is not None for row in rows):
            said.append("±: their standard deviation, where there is more than one")
    said += [*SIZES, MACS]
    if any(row.latency is not None for row in rows):
        said.append("latency: predicted by this study's table, as a share of the dense model's")
    if any(row.bits not in (None, FLOAT_BITS) for row in rows):
        said.append("bits: of a stored weight" + (f"; {DIFFER}" if any(_is_mixed(row) for row in rows) else ""))
    if any(row.exponent is not None for row in rows):
        said.append("E: exponent of the schedule by which pruning proceeds; 1 is even, 3 cubic")
    if any(row.origin is not None for row in rows):
        said.append("origin: a static rule, the scan, bits alone (unpruned), or a search's move")
    return said


def _is_mixed(row: TrialRow) -> bool:
    return bits_cell(row.bits) == MIXED
