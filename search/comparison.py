"""What the honest end of a study found: the comparison on disk, its closing table and its verdict."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from search.config import SearchConfig
from search.errors import Refused
from search.files import read_text, write_durably
from search.record_checks import LARGEST_SHARE
from search.records import FinalRecord
from search.results import FinalScore
from search.storage import set_aside
from search.store.folder import StudyFolder
from spaces.cost.timing import TimedNetwork, TimedNetworks
from spaces.printable import printable
from spaces.strict_json import parse_object
from spaces.validation import is_number

log = logging.getLogger(__name__)

COMPARISON_VERSION = 2
READ_VERSIONS = (1, 2)
"""Version 1 had no `latency`."""
BASELINES = ("uniform", "global", "lamp")
NOISE_FACTOR = 2.0
"""A difference of means below this many standard errors is called noise."""
ALIKE = 0.03
"""Sizes and MACs that differ by this share at most count as equal."""
MANY_EXAMPLES = 1000
"""Of more test examples, one is less than a tenth of a point."""


@dataclass(frozen=True)
class Reference:
    """A network that needs no fine-tune: the dense model, or its int8 rounding."""

    validation_accuracy: float
    test_accuracy: float
    size_encoded: float
    size_nonzero: float


@dataclass(frozen=True)
class Comparison:
    """What finalists are held against.

    Attributes:
        dense: the unpruned model.
        int8: dense with weights rounded to 8 bits.
        baselines: static allocator -> policy digest, each landed on the largest size target in `granularity`; the
            digest is a finalist's, or an earlier one's, if it removes the same. Allocators that cannot reach the limit
            are absent.
        granularity: of the baselines.
        finalists: policy digests, in the order they were chosen.
        latency: the dense model's, and by policy digest the finalists' and baselines', of the runs an export ships;
            None where latency plays no part in the study.
        test_examples: how many the test accuracies are of; None in older comparisons.
    """

    dense: Reference
    int8: Reference
    baselines: Mapping[str, str]
    granularity: str
    finalists: tuple[str, ...]
    latency: TimedNetworks | None = None
    test_examples: int | None = None


def final_runs_left(
    config: SearchConfig, finalists: Sequence[str], finals: Sequence[FinalRecord], comparison: Comparison | None
) -> int:
    """Full-length fine-tunes that are still to come if these policies (digests) are the finalists.

    While no comparison says which static baselines reach the limit and differ from finalists, it is the most there
    can be.
    """
    if not config.finalists or (comparison and set(finalists) <= {*comparison.finalists}):
        return 0
    runs = Counter(final.digest for final in finals)
    mine = sum(max(config.final_seeds - runs.pop(digest, 0), 0) for digest in finalists)
    if comparison:
        return mine
    return mine + max(len(BASELINES) * config.final_seeds - runs.total(), 0)


def write_comparison(folder: StudyFolder, comparison: Comparison) -> None:
    """Write down what the study's finals were compared with; `read_comparison` undoes it."""
    data = {"version": COMPARISON_VERSION, **asdict(comparison)}
    if comparison.test_examples is None:
        del data["test_examples"]
    text = json.dumps(data, indent=1)
    write_durably(_place(folder), text.encode())


def shown_comparison(folder: StudyFolder) -> Comparison | None:
    """`read_comparison` for those who only read: a damaged one is named, and all the rest is shown without it."""
    try:
        return read_comparison(folder)
    except Refused as error:
        log.warning("%s; all else is shown", printable(error))
        return None


def known_comparison(folder: StudyFolder) -> Comparison | None:
    """`read_comparison` for the process that runs the study: a damaged one is kept under another name, and the study
    compares again."""
    try:
        return _parsed(_place(folder))
    except ValueError as error:
        path = _place(folder)
        kept = set_aside(path).name
        log.warning("damaged %s: %s; it is kept as %s, and finals are compared again", path, printable(error), kept)
        return None


def read_comparison(folder: StudyFolder) -> Comparison | None:
    """What the study's last finals were compared with; None before them, or if it was written by another version.

    Raises:
        Refused: it is damaged.
    """
    path = _place(folder)
    try:
        return _parsed(path)
    except ValueError as error:
        raise Refused(f"damaged {path}: {error}; delete it, or resume the study, which compares again") from None


def _parsed(path: Path) -> Comparison | None:
    if not path.exists():
        return None
    try:
        data: dict[str, Any] = parse_object(read_text(path))
        if data.pop("version", None) not in READ_VERSIONS:
            return None
        references = {name: Reference(**data.pop(name)) for name in ("dense", "int8")}
        latency = _read_latency(data.pop("latency", None))
        found = Comparison(**references, finalists=tuple(data.pop("finalists")), latency=latency, **data)
        _check_comparison(found)
        return found
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise ValueError(str(error)) from None


def _place(folder: StudyFolder) -> Path:
    return folder.path / "comparison.json"


def _check_comparison(found: Comparison) -> None:
    for reference in (found.dense, found.int8):
        if not all(is_number(share) and 0 <= share <= LARGEST_SHARE for share in vars(reference).values()):
            raise ValueError(f"accuracies and sizes must be shares, got {reference}")
    examples = found.test_examples
    if examples is not None and not (type(examples) is int and examples > 0):
        raise ValueError(f"test_examples must be a whole number from 1 on, got {examples!r}")
    digests = [*found.finalists, *dict(found.baselines).values()]
    if not all(isinstance(word, str) for word in (*digests, *found.baselines, found.granularity)):
        raise ValueError("baselines, finalists and granularity must be text")


def _read_latency(data: Mapping[str, Any] | None) -> TimedNetworks | None:
    if data is None:
        return None
    own = {name: TimedNetwork(**data[name]) for name in ("dense", "copy")}
    networks = {digest: TimedNetwork(**timed) for digest, timed in data["networks"].items()}
    return TimedNetworks(**{**data, **own, "networks": networks})


@dataclass(frozen=True)
class ClosingRow:
    """One line of the closing table; accuracies, sizes and MACs are shares, sd None where there is one run.

    Attributes:
        latency: measured; None where it was not, as int8 weights run no faster here.
        within_noise: whether the latency is not shown to differ from the dense model's; None where it was not measured.
        failed: runs beside the `runs` that the means are of.
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
    latency: TimedNetwork | None = None
    within_noise: bool | None = None
    failed: int = 0


def closing_rows(
    comparison: Comparison, finals: Mapping[str, FinalScore], trial_of: Mapping[str, int]
) -> list[ClosingRow]:
    """Dense, int8, baselines, finalists; `trial_of` maps a finalist's digest to its trial."""
    timed = comparison.latency
    rows = [_reference_row("dense", comparison.dense), _reference_row("dense int8", comparison.int8)]
    rows[0] = replace(rows[0], latency=timed.dense if timed else None)
    named = {f"{name} ({comparison.granularity})": digest for name, digest in comparison.baselines.items()}
    named |= {f"trial {trial_of[d]}" if d in trial_of else d: d for d in comparison.finalists}
    return rows + [_final_row(name, finals[digest], timed) for name, digest in named.items() if digest in finals]


def _reference_row(name: str, reference: Reference) -> ClosingRow:
    validation, test = reference.validation_accuracy, reference.test_accuracy
    return ClosingRow(name, 1, validation, None, test, None, reference.size_encoded, reference.size_nonzero, 1.0)


def _final_row(name: str, score: FinalScore, timed: TimedNetworks | None) -> ClosingRow:
    accuracies = score.final_accuracy, score.final_sd, score.test_accuracy, score.test_sd
    sizes = score.size_encoded, score.size_nonzero, score.macs
    row = ClosingRow(name, score.n, *accuracies, *sizes, failed=score.failed)
    if timed is None or score.digest not in timed.networks:
        return row
    return replace(row, latency=timed.networks[score.digest], within_noise=timed.within_noise(score.digest))


def verdict(comparison: Comparison, finals: Mapping[str, FinalScore]) -> str | None:
    """One sentence: is the most accurate finalist above the most accurate static baseline on test, or is it noise?

    Most accurate is of highest `final_accuracy`, on validation data.
    """
    found = [finals[d] for d in comparison.finalists if d in finals]
    static = {name: finals[d] for name, d in comparison.baselines.items() if d in finals}
    if not found or not static:
        return None
    top = max(found, key=lambda f: f.final_accuracy)
    name = max(static, key=lambda n: static[n].final_accuracy)
    other = static[name]
    finalist = "The most accurate finalist"
    if top.digest == other.digest:
        return f"{finalist} is the static policy '{name}': the search found nothing better on validation data."
    difference = top.test_accuracy - other.test_accuracy
    points = f"{abs(difference) * 100:.2f} points"
    seeds = "one seed each" if top.test_sd is None or other.test_sd is None else f"{top.n} seeds"
    remarks = "; ".join([seeds, *_size_remark(top, other), *_examples_remark(comparison.test_examples)])
    error = _difference_error(top, other, comparison.test_examples)
    if error is not None and abs(difference) <= NOISE_FACTOR * error:
        return f"{finalist} and '{name}' differ by {points} on test, within noise ({remarks})."
    return f"{finalist} is {points} {'above' if difference > 0 else 'below'} '{name}' on test ({remarks})."


def _difference_error(first: FinalScore, second: FinalScore, examples: int | None) -> float | None:
    """Standard error of a difference of test accuracies: that of the seeds, and that of so many test examples.

    Examples count as if each network had been tested on others, which is the most it can be. None if nothing is known.
    """
    variance, known = 0.0, False
    if first.test_sd is not None and second.test_sd is not None:
        known = True
        variance += fmean([first.test_sd**2, second.test_sd**2]) * 2 / min(first.n, second.n)
    if examples:
        known = True
        variance += sum(p * (1 - p) / examples for p in (first.test_accuracy, second.test_accuracy) if 0 <= p <= 1)
    return math.sqrt(variance) if known else None


def _size_remark(first: FinalScore, second: FinalScore) -> list[str]:
    """Sizes and MACs of both where they differ by more than `ALIKE` of the larger."""
    pairs = ((first.size_encoded, second.size_encoded), (first.macs, second.macs))
    if all(max(pair) - min(pair) <= ALIKE * max(pair) for pair in pairs):
        return []
    one, other = ([f"{share * 100:.1f} %" for share in (f.size_encoded, f.macs)] for f in (first, second))
    return [f"{one[0]} of the size and {one[1]} of the MACs against {' and '.join(other)}"]


def _examples_remark(examples: int | None) -> list[str]:
    if not examples or examples > MANY_EXAMPLES:
        return []
    return [f"one of the {examples} test examples is {100 / examples:.2g} points"]
