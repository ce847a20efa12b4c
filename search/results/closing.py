"""The closing table of a study and its verdict in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from statistics import fmean
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from search.metric import MAX, SHARE, Metric
from search.results.comparison import BITS_OF, DENSE, Comparison, Reference
from search.results.static_rows import BASELINE, StaticRow, finalist_name, static_rows
from search.results.tables import FinalScore
from spaces.bits import FLOAT_BITS
from spaces.cost.timing import TimedNetwork, TimedNetworks
from spaces.wording import limit, listed, percent

if TYPE_CHECKING:
    import pandas as pd

NOISE_FACTOR = 2.0
"""A difference of means of fewer standard errors than this is called noise."""
ALIKE = 0.03
"""Sizes and MACs that differ by at most this share count as equal."""
MANY_EXAMPLES = 1000
"""With more test examples than this, one is less than a tenth of a point."""


@dataclass(frozen=True)
class ClosingRow:
    """One row of the closing table; accuracies, sizes and MACs are shares, and sd is None for a single run.

    Attributes:
        bits: of its stored weights; layer -> bits where layers differ.
        latency: measured; None if it was not, since rounded weights run no faster here.
        within_noise: whether the latency cannot be told from the dense model's; None if it was not measured.
        failed: runs that failed, besides the `runs` that the means are of.
    """

    name: str
    runs: int
    validation: float
    validation_sd: float | None
    test: float
    test_sd: float | None
    size_encoded: float
    size_nonzero: float
    macs: float
    bits: int | Mapping[str, int] = FLOAT_BITS
    latency: TimedNetwork | None = None
    within_noise: bool | None = None
    failed: int = 0


def plain_closing_rows(rows: Iterable[ClosingRow], unit: Metric = SHARE) -> list[dict[str, Any]]:
    """Rows as data for JSON; by a metric with a unit, the values that their accuracies stand for are added."""
    found = [asdict(row) for row in rows]
    for row in found if unit != SHARE else ():
        for split in ("validation", "test"):
            row[f"{split}_value"] = unit.value_of(row[split])
            row[f"{split}_value_sd"] = unit.sd_of(row[split], row[f"{split}_sd"])
    return found


def closing_frame(rows: Sequence[ClosingRow], unit: Metric = SHARE) -> pd.DataFrame:
    """Rows as pandas has them; `latency` is a share of the dense network's, and `bits` that differ are missing."""
    import pandas as pd  # takes a third of a second, and most commands do without

    if not rows:
        return pd.DataFrame(columns=[field.name for field in fields(ClosingRow)])
    found = pd.DataFrame(plain_closing_rows(rows, unit))
    found["latency"] = [row.latency.share if row.latency else math.nan for row in rows]
    found["bits"] = pd.Series([None if isinstance(row.bits, Mapping) else row.bits for row in rows], dtype="Int64")
    kinds = {name: "float64" for name in found if str(name).endswith("_sd")}
    return found.astype({**kinds, "within_noise": "boolean"})


def closing_rows(
    comparison: Comparison, finals: Mapping[str, FinalScore], trial_of: Mapping[str, int]
) -> list[ClosingRow]:
    """Rows for dense, dense rounded, every finalist with its baseline below it, and baselines at the limit; `trial_of`
    maps a finalist's digest to its trial.

    A baseline that is another row's network has none of its own, see `alike_line`.
    """
    timed = comparison.latency
    rows = [_reference_row(name, reference) for name, reference in comparison.references.items()]
    rows = [replace(row, latency=timed.dense) if timed and row.name == DENSE else row for row in rows]
    named = _named(comparison, trial_of)
    return rows + [_final_row(name, finals[digest], timed) for name, digest in named.items() if digest in finals]


def _named(comparison: Comparison, trial_of: Mapping[str, int]) -> dict[str, str]:
    """What a row is called -> the digest of its policy, in order; comparisons before `matched` have baselines first."""
    finalists = {finalist_name(digest, trial_of): digest for digest in comparison.finalists}
    static = static_rows(comparison, trial_of)
    at_limit = {row.name: row.digest for row in static if row.beside is None}
    if not comparison.matched:
        return at_limit | finalists
    matched = {row.beside: row for row in static}
    named: dict[str, str] = {}
    for name, digest in finalists.items():
        named[name] = digest
        own = matched.get(digest)
        if own and own.digest not in {*finalists.values(), *named.values()}:
            named[own.name] = own.digest
    return named | at_limit


def alike_line(
    comparison: Comparison, finals: Mapping[str, FinalScore], trial_of: Mapping[str, int] = MappingProxyType({})
) -> str | None:
    """Which static rules come to the network of another row of the closing table; None if none do."""
    alike: dict[str, list[str]] = {}
    for rule, digest in comparison.baselines.items():
        if digest in finals:
            alike.setdefault(digest, []).append(rule)
    parts = [f"{', '.join(first)} and {last}" for *first, last in alike.values() if first]
    said = [f"Static rules that come to one network: {'; '.join(parts)}."] if parts else []
    rows: dict[str, str] = {}
    for name, digest in _named(comparison, trial_of).items():
        rows.setdefault(digest, name)
    for digest, matched in comparison.matched.items():
        trial, other = rows[digest], rows[matched.digest]
        if other != f"{matched.rule} for {trial}":
            network = "that trial's network" if other == trial else f"the network of {other}"
            said.append(f"The best static rule at the size of {trial}, {matched.rule}, comes to {network}.")
    return " ".join(said) or None


def _reference_row(name: str, reference: Reference) -> ClosingRow:
    validation, test = reference.validation_accuracy, reference.test_accuracy
    sizes = reference.size_encoded, reference.size_nonzero
    return ClosingRow(name, 1, validation, None, test, None, *sizes, macs=1.0, bits=BITS_OF[name])


def _final_row(name: str, score: FinalScore, timed: TimedNetworks | None) -> ClosingRow:
    accuracies = score.final_accuracy, score.final_sd, score.test_accuracy, score.test_sd
    sizes = score.size_encoded, score.size_nonzero, score.macs
    row = ClosingRow(name, score.n, *accuracies, *sizes, bits=score.bits, failed=score.failed)
    if timed is None or score.digest not in timed.networks:
        return row
    return replace(row, latency=timed.networks[score.digest], within_noise=timed.within_noise(score.digest))


def verdict(
    comparison: Comparison,
    finals: Mapping[str, FinalScore],
    max_size: float,
    metric: str = "encoded",
    unit: Metric = SHARE,
) -> str | None:
    """What the finals come to on test data: whether the most accurate finalist is above the most accurate static
    baseline or differs by noise, and whether rounding the dense model would do as well.

    The most accurate is the one with the highest `final_accuracy`, on validation data.

    Args:
        max_size: the limit, a share of the dense size by the measure `metric`.
        unit: in which differences are told; what is known of the spread of shares holds of accuracies only.

    Returns:
        One or two sentences; None if there is nothing to compare.
    """
    if (top := _top(comparison, finals)) is None:
        return None
    said = [against_static(comparison, finals, unit), _against_rounding(comparison, top, max_size, metric, unit)]
    return " ".join(filter(None, said)) or None


def counted_examples(comparison: Comparison, unit: Metric) -> int | None:
    """Of how many test examples a value is the share that is right; None of a metric that is no such share, such as a
    mean IoU, and where the number is not known.
    """
    return comparison.test_examples if unit.is_share and unit.name == SHARE.name else None


def _top(comparison: Comparison, finals: Mapping[str, FinalScore]) -> FinalScore | None:
    """The most accurate finalist on validation data, of equals the smallest, as the best trial is."""
    found = [finals[d] for d in comparison.finalists if d in finals]
    return max(found, key=lambda f: (f.final_accuracy, -f.size_encoded), default=None)


def against_static(comparison: Comparison, finals: Mapping[str, FinalScore], unit: Metric = SHARE) -> str:
    """The part of the `verdict` on static baselines; empty if there is nothing to compare."""
    if (top := _top(comparison, finals)) is None:
        return ""
    most = "most accurate" if unit.is_share else "best"
    matched = comparison.matched.get(top.digest)
    if matched and matched.digest in finals:
        where = f"the {most} static rule at its size"
        return _against_static(comparison, top, matched.rule, where, finals[matched.digest], unit)
    static = {rule: finals[digest] for rule, digest in comparison.baselines.items() if digest in finals}
    if not static:
        return ""
    rule = max(static, key=lambda name: static[name].final_accuracy)
    where = f"the {most} static rule" + (" at the limit" if comparison.matched else "")
    return _against_static(comparison, top, rule, where, static[rule], unit)


def _against_static(
    comparison: Comparison, top: FinalScore, name: str, where: str, other: FinalScore, unit: Metric
) -> str:
    most = "most accurate" if unit.is_share else "best"
    finalist, rule = f"The {most} finalist", f"'{name}', {where} on validation data,"
    if top.digest == other.digest:
        return f"{finalist} is the static policy '{name}': the search found nothing better on validation data."
    difference = top.test_accuracy - other.test_accuracy
    points = unit.distance(top.test_accuracy, other.test_accuracy)
    examples = counted_examples(comparison, unit)
    remarks = "; ".join([_seeds(top, other), *_size_remark(top, other), *_examples_remark(examples)])
    if is_within_noise(top, other, examples):
        return f"{finalist} and {rule} differ by {points} on test, within noise ({remarks})."
    return f"{finalist} is {points} {_side(difference, unit)} {rule} on test ({remarks})."


def _seeds(first: FinalScore, second: FinalScore) -> str:
    """Of how many runs two means are."""
    if first.n == second.n:
        return "one seed each" if first.n == 1 else f"{first.n} seeds"
    return f"{first.n} and {second.n} seeds"


def _against_rounding(comparison: Comparison, top: FinalScore, max_size: float, metric: str, unit: Metric) -> str:
    """Whether rounding alone would do, in words; empty where it would not."""
    if (found := _as_good_rounded(comparison, top, max_size, metric, unit)) is None:
        return ""
    name, one, is_noise = found
    difference = top.test_accuracy - one.test_accuracy
    apart = f"{unit.distance(one.test_accuracy, top.test_accuracy)} {_side(-difference, unit)}"
    finalist = f"the {'most accurate' if unit.is_share else 'best'} finalist"
    fares = f"is {apart} {finalist} on test" if difference else f"has the {unit.name} of {finalist} on test"
    noise = ", within noise" if is_noise and difference else ""
    size, gain = one.size(metric), "shows no gain at this limit"
    if _gains_size(top, one, metric):
        gain = (
            f"gains size at this limit, {percent(top.size(metric))} against {percent(size)}, but shows no gain in "
            f"{unit.name}"
        )
    return f"{name.capitalize()} ({percent(size)}) {fares}{noise}: pruning {gain}."


def _as_good_rounded(
    comparison: Comparison, top: FinalScore, max_size: float, metric: str, unit: Metric
) -> tuple[str, Reference, bool] | None:
    """The smallest dense network of few bits within the limit that is not below the finalist by more than noise, and
    whether they differ by noise; None if there is none.
    """
    within = {name: one for name, one in comparison.rounded.items() if one.size(metric) <= max_size}
    for name, one in sorted(within.items(), key=lambda pair: pair[1].size(metric)):
        noise = NOISE_FACTOR * (_error_of_rounded(one, top, counted_examples(comparison, unit)) or 0.0)
        difference = top.test_accuracy - one.test_accuracy
        if difference <= noise:
            return name, one, -noise <= difference
    return None


def _gains_size(top: FinalScore, one: Reference, metric: str) -> bool:
    return top.size(metric) < (1 - ALIKE) * one.size(metric)


def rounding_alone(
    comparison: Comparison,
    finals: Mapping[str, FinalScore],
    max_size: float,
    metric: str = "encoded",
    unit: Metric = SHARE,
) -> str:
    """Whether the dense model with rounded weights would do in place of the most accurate finalist, and if none would,
    what keeps each from it; the arguments are those of `verdict`. Empty if there is nothing to compare.
    """
    if (top := _top(comparison, finals)) is None or not comparison.rounded:
        return ""
    if found := _as_good_rounded(comparison, top, max_size, metric, unit):
        answer = f"For {unit.name} yes, for size no." if _gains_size(top, found[1], metric) else "Yes."
        return f"{answer} {_against_rounding(comparison, top, max_size, metric, unit)}"
    parts = []
    for name, one in sorted(comparison.rounded.items(), key=lambda pair: pair[1].size(metric)):
        size = percent(one.size(metric))
        if one.size(metric) > max_size:
            parts.append(f"{name} takes {size}, over the limit of {limit(max_size)}")
        else:
            apart = unit.distance(one.test_accuracy, top.test_accuracy)
            below = _side(one.test_accuracy - top.test_accuracy, unit)
            is_known = _error_of_rounded(one, top, counted_examples(comparison, unit)) is not None
            noise = ", more than noise" if is_known else ""
            parts.append(f"{name} ({size}) is {apart} {below} the finalist on test{noise}")
    return f"No: {'; '.join(parts)}."


def level_with_top(
    comparison: Comparison, finals: Mapping[str, FinalScore], unit: Metric = SHARE
) -> tuple[FinalScore, list[FinalScore], list[FinalScore], list[FinalScore]] | None:
    """The most accurate finalist on validation data; the other finalists that differ from it by noise on test data;
    those that do not; and those of which nothing tells. None before the finals.
    """
    if (top := _top(comparison, finals)) is None:
        return None
    level: list[FinalScore] = []
    apart: list[FinalScore] = []
    unknown: list[FinalScore] = []
    for other in (finals[d] for d in comparison.finalists if d in finals):
        if other is top:
            continue
        is_noise = is_within_noise(top, other, counted_examples(comparison, unit))
        (unknown if is_noise is None else level if is_noise else apart).append(other)
    return top, level, apart, unknown


@dataclass(frozen=True)
class Level:
    """A static rule that does at least as well on test data as the finalist at whose size it is.

    Attributes:
        row: the rule's, in the closing table.
        finalist: its scores.
        rule: likewise.
        better: whether the rule is above it by more than noise; False where noise is unknown.
    """

    row: StaticRow
    finalist: FinalScore
    rule: FinalScore
    better: bool


def level_rules(
    comparison: Comparison, finals: Mapping[str, FinalScore], trial_of: Mapping[str, int], unit: Metric = SHARE
) -> list[Level]:
    """The static rules that are above the finalist at whose size they are on test data, or differ from it by noise.

    A rule that comes to that finalist's own network is none of them.
    """
    found, examples = [], counted_examples(comparison, unit)
    for row in static_rows(comparison, trial_of):
        finalist, rule = finals.get(row.beside or ""), finals.get(row.digest)
        if finalist is None or rule is None or finalist is rule:
            continue
        above, is_noise = rule.test_accuracy - finalist.test_accuracy, is_within_noise(finalist, rule, examples)
        if above >= 0 or is_noise:
            found.append(Level(row, finalist, rule, better=above > 0 and is_noise is False))
    return found


def level_line(found: Sequence[Level]) -> str:
    """The same in a line of the closing words; empty if there are none."""
    level, better = ([one.row.name for one in found if one.better is better] for better in (False, True))
    parts = [f"as well as their finalists on test data: {listed(level)}"] if level else []
    than = "" if level else " than their finalists on test data"
    parts += [f"better{than}: {listed(better)}"] if better else []
    if not parts:
        return ""
    first = found[0].row.short_name
    return f"Static rules that do {'; '.join(parts)}. Export one by --trial {BASELINE}{first}."


def is_within_noise(first: FinalScore, second: FinalScore, examples: int | None) -> bool | None:
    """Whether test accuracies differ by at most `NOISE_FACTOR` standard errors; None where no error is known.

    Args:
        examples: see `counted_examples`.
    """
    error = _difference_error(first, second, examples)
    return None if error is None else abs(first.test_accuracy - second.test_accuracy) <= NOISE_FACTOR * error


def _side(difference: float, unit: Metric) -> str:
    """Where a value is whose share is larger by this difference."""
    return "above" if (difference > 0) == (unit.best == MAX) else "below"


def _difference_error(first: FinalScore, second: FinalScore, examples: int | None) -> float | None:
    """Standard error of a difference of test accuracies, from the spread over seeds and the number of test examples.

    One run has no spread of its own: the other's stands for it. Examples count as if each network had been tested on
    different ones, which gives the largest error. None if nothing is known.
    """
    variance, known = 0.0, False
    if spreads := [one.test_sd**2 for one in (first, second) if one.test_sd is not None]:
        known = True
        variance += fmean(spreads) * (1 / first.n + 1 / second.n)
    if examples:
        known = True
        variance += _variance_of_examples(examples, first.test_accuracy, second.test_accuracy)
    return math.sqrt(variance) if known else None


def _error_of_rounded(one: Reference, top: FinalScore, examples: int | None) -> float | None:
    """Likewise, of a mean of seeds and a network that is not tuned, and so has no spread."""
    if top.test_sd is None and not examples:
        return None
    variance = top.test_sd**2 / top.n if top.test_sd is not None else 0.0
    if examples:
        variance += _variance_of_examples(examples, top.test_accuracy, one.test_accuracy)
    return math.sqrt(variance)


def _variance_of_examples(examples: int, *accuracies: float) -> float:
    return sum(p * (1 - p) / examples for p in accuracies if 0 <= p <= 1)


def _size_remark(first: FinalScore, second: FinalScore) -> list[str]:
    """Sizes and MACs of both, if they differ by more than `ALIKE` of the larger."""
    pairs = ((first.size_encoded, second.size_encoded), (first.macs, second.macs))
    if all(max(pair) - min(pair) <= ALIKE * max(pair) for pair in pairs):
        return []
    one, other = ([percent(f.size_encoded), percent(f.macs)] for f in (first, second))
    return [f"{one[0]} of the size and {one[1]} of the MACs against {' and '.join(other)}"]


def _examples_remark(examples: int | None) -> list[str]:
    if not examples or examples > MANY_EXAMPLES:
        return []
    return [f"one of the {examples} test examples is {100 / examples:.2f} points"]
