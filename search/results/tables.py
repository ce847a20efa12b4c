"""Rows of a study's tables: trials, front and finals, as typed rows and as the forms that leave the program."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from search.metric import SHARE, Metric
from search.records import COMPLETE, FinalRecord, TrialRecord
from spaces.bits import FLOAT_BITS
from spaces.policy import PruningPolicy

if TYPE_CHECKING:
    import pandas as pd


class Point(NamedTuple):
    """Where a complete trial stands, see `TrialRow`."""

    size: float
    accuracy: float


@dataclass(frozen=True)
class TrialRow:
    """One trial as tables show it; what was not measured is None. Sizes, MACs and latency are shares of the dense
    model's, accuracies shares of 1.

    Attributes:
        trial: its number.
        accuracy: on validation data, after the trial's fine-tune.
        final_accuracy: likewise, the mean of its finals; None without finals.
        test_accuracy: the mean of its finals on test data.
        test_sd: their standard deviation; None for one final.
        size: of the measure that the limit binds on.
        macs: of the network that runs.
        latency: predicted.
        exponent: of the schedule; None if that has none.
        sparsity: layer -> share of its units asked to go; None before the trial's result is there.
        removal: layer -> share of its channels asked to go before masks; likewise.
        bits: of the stored weights, one number, or layer -> bits where layers differ (those not named have 32);
            likewise.
        state: `complete`, `stopped-early`, `failed`, `running` or `waiting`.
        reason: why it is not complete.
        cause: the same in one word, see `search.records`.
        rung: always None.
        started: running seconds since the dense model was ready, pauses left out.
        finished: likewise.
        device: the name of the device it came from; None of a CPU.
        precision: in which its forward passes trained.
        worker: which one evaluated it, see `search.records.TrialRecord`; None if the study's own process did.
    """

    trial: int
    accuracy: float | None = None
    final_accuracy: float | None = None
    test_accuracy: float | None = None
    test_sd: float | None = None
    size: float | None = None
    size_nonzero: float | None = None
    size_encoded: float | None = None
    macs: float | None = None
    latency: float | None = None
    granularity: str | None = None
    schedule: str | None = None
    exponent: float | None = None
    criterion: str | None = None
    origin: str | None = None
    digest: str | None = None
    sparsity: Mapping[str, float] | None = None
    removal: Mapping[str, float] | None = None
    bits: int | Mapping[str, int] | None = None
    state: str | None = None
    reason: str | None = None
    cause: str | None = None
    rung: int | None = None
    started: float | None = None
    finished: float | None = None
    device: str | None = None
    precision: str | None = None
    worker: str | None = None

    @property
    def point(self) -> Point:
        """Size and accuracy of a complete trial; `ValueError` of any other."""
        if self.size is None or self.accuracy is None:
            raise ValueError(f"trial {self.trial} has no point, it is {self.state}: {self.reason}")
        return Point(self.size, self.accuracy)


TRIAL_COLUMNS = tuple(field.name for field in fields(TrialRow))
FRONT_COLUMNS = TRIAL_COLUMNS[: TRIAL_COLUMNS.index("state")]


@dataclass(frozen=True)
class FinalScore:
    """Mean scores of one policy's `n` full-length fine-tunes; standard deviations (`_sd`) are None if n is 1.

    Sizes are the largest of the fine-tunes', `macs` those of the median run.

    Attributes:
        failed: how many other fine-tunes failed; they are not in the means.
        best_seed: the seed whose validation accuracy is the median (of an even number, the lower middle one); an export
            ships its network.
        bits: as of a `TrialRow`.
    """

    digest: str
    n: int
    final_accuracy: float
    final_sd: float | None
    test_accuracy: float
    test_sd: float | None
    size_encoded: float
    size_nonzero: float
    macs: float
    best_seed: int
    failed: int = 0
    bits: int | Mapping[str, int] = FLOAT_BITS

    def size(self, metric: str) -> float:
        """The size by a measure, `encoded` or `nonzero`."""
        return self.size_encoded if metric == "encoded" else self.size_nonzero


def score_runs(runs: Sequence[FinalRecord], unit: Metric = SHARE) -> FinalScore | None:
    """The scores of one policy, of the fine-tunes that there are; None if there are none, or all of them failed.

    Means are those of values in the `unit`, see `Metric.mean`.
    """
    complete = [run for run in runs if run.result.state == COMPLETE]
    if not complete:
        return None
    measured = [run.result.measured for run in complete]
    ordered = sorted(complete, key=lambda run: (run.result.measured.accuracy, run.seed))
    validation = [one.accuracy for one in measured]
    tests = [run.test_accuracy for run in complete if run.test_accuracy is not None]
    median = ordered[(len(ordered) - 1) // 2]
    final_accuracy, final_sd = unit.mean(validation)
    test_accuracy, test_sd = unit.mean(tests)
    return FinalScore(
        digest=median.digest,
        n=len(complete),
        final_accuracy=final_accuracy,
        final_sd=final_sd,
        test_accuracy=test_accuracy,
        test_sd=test_sd,
        size_encoded=max(one.shares.encoded for one in measured),
        size_nonzero=max(one.shares.nonzero for one in measured),
        macs=median.result.measured.shares.macs,
        best_seed=median.seed,
        failed=len(runs) - len(complete),
        bits=bits_of(median.policy),
    )


def bits_of(policy: PruningPolicy) -> int | dict[str, int]:
    """The bits of a policy as plain data: one number, or layer -> bits."""
    return dict(policy.bits) if isinstance(policy.bits, Mapping) else policy.bits


def trial_row(trial: TrialRecord, final: FinalScore | None, metric: str) -> TrialRow:
    """The row of a finished trial.

    Args:
        final: the scores of its policy's finals, if there are any.
        metric: of the size, `encoded` or `nonzero`.
    """
    result, policy, cost = trial.result, trial.policy, trial.result.shares
    return TrialRow(
        trial=trial.number,
        accuracy=result.accuracy,
        final_accuracy=final.final_accuracy if final else None,
        test_accuracy=final.test_accuracy if final else None,
        test_sd=final.test_sd if final else None,
        size=cost.of(metric) if cost else None,
        size_nonzero=cost.nonzero if cost else None,
        size_encoded=cost.encoded if cost else None,
        macs=cost.macs if cost else None,
        latency=trial.latency,
        granularity=policy.granularity_label,
        schedule=policy.schedule.kind,
        exponent=None if "exponent" in policy.schedule.idle else policy.schedule.exponent,
        criterion=policy.criterion,
        origin=trial.origin,
        digest=policy.digest,
        sparsity=dict(policy.sparsity),
        removal=dict(policy.removal),
        bits=bits_of(policy),
        state=result.state,
        reason=result.reason,
        cause=result.cause,
        started=trial.started,
        finished=trial.finished,
        device=result.device,
        precision=result.precision,
        worker=trial.worker,
    )


VALUES = {"accuracy": "value", "final_accuracy": "final_value", "test_accuracy": "test_value"}
"""A share that rows have -> the column of the value that it stands for, in the unit of the study's own metric."""
TEST_SD = "test_value_sd"
"""The column of the standard deviation of the values of finals on test data."""


def plain_rows(
    rows: Iterable[TrialRow], columns: Sequence[str] = TRIAL_COLUMNS, unit: Metric = SHARE
) -> list[dict[str, Any]]:
    """Rows as data for JSON; by a metric with a unit, the values that their accuracies stand for are added."""
    found = []
    for row in rows:
        data = {name: getattr(row, name) for name in columns}
        if unit != SHARE:
            data["metric"] = unit.name
            data |= {name: unit.value_of(getattr(row, share)) for share, name in VALUES.items()}
            data[TEST_SD] = unit.sd_of(row.test_accuracy, row.test_sd)
        found.append(data)
    return found


def _with_values(columns: Sequence[str], unit: Metric) -> list[str]:
    return [*columns, *(["metric", *VALUES.values(), TEST_SD] if unit != SHARE else [])]


def csv_text(
    rows: Iterable[TrialRow], columns: Sequence[str], mapping: Callable[[Any], str], unit: Metric = SHARE
) -> str:
    """Rows as CSV with a header; `mapping` writes what maps layers to values."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_with_values(columns, unit))
    for row in plain_rows(rows, columns, unit):
        writer.writerow(mapping(cell) if isinstance(cell, Mapping) else cell for cell in row.values())
    return file.getvalue()


LAYER_BITS = "layer_bits"
"""The column of a data frame that has bits where layers differ, beside `bits`, which is a number there."""
_DTYPES = {"float": "float64", "int": "Int64", "str": "string"}
"""The type of a row's field, None aside -> of its column in a data frame; mappings are objects."""


def data_frame(rows: Iterable[TrialRow], columns: Sequence[str], unit: Metric = SHARE) -> pd.DataFrame:
    """Rows as pandas has them: numbers as `float64` and `Int64`, words as `string`, mappings of layers as objects.

    What was not measured is missing (NaN or `<NA>`; None of a mapping). So is a mapping without layers, of which
    Parquet could not hold a whole column. Where layers differ in `bits`, they are in the column `layer_bits`, and
    `bits` is missing.
    """
    import pandas as pd  # takes a third of a second, and most commands do without

    found = plain_rows(rows, columns, unit)
    names = _with_values(columns, unit)
    if "bits" in names:
        names.insert(names.index("bits") + 1, LAYER_BITS)
    for data in found:
        differ = isinstance(data.get("bits"), Mapping)
        data[LAYER_BITS], data["bits"] = (data["bits"], None) if differ else (None, data.get("bits"))
        data |= {name: None for name, value in data.items() if value == {}}
    series = {name: pd.Series([data[name] for data in found], dtype=_dtype(name)) for name in names}
    return pd.DataFrame(series, columns=names)


def _dtype(column: str) -> str:
    types = {field.name: str(field.type).removesuffix(" | None") for field in fields(TrialRow)}
    types |= {"metric": "str", "bits": "int", TEST_SD: "float", **dict.fromkeys(VALUES.values(), "float")}
    return _DTYPES.get(types.get(column, ""), "object")
