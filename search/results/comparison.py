"""What a study's finals are compared with: the dense model and static baselines, as a file."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from search.errors import Refused
from search.files import read_text, write_durably
from search.record_checks import LARGEST_SHARE
from search.storage import set_aside
from search.store.folder import StudyFolder
from spaces.bits import BITS, FLOAT_BITS, check_bits
from spaces.cost.timing import TimedNetwork, TimedNetworks
from spaces.printable import printable
from spaces.strict_json import parse_object
from spaces.validation import is_number, unknown

log = logging.getLogger(__name__)

COMPARISON_VERSION = 4
READ_VERSIONS = (1, 2, 3, 4)
"""Version 1 had no `latency`; 1 and 2 had `dense` and `int8` in place of `references`, and no `bits`; 1 to 3 compared
all finalists with baselines at the limit, and had no `matched` and `named`."""
BASELINES = ("uniform", "global", "lamp")
DENSE, INT8 = "dense", "dense int8"
REFERENCE_BITS = (8, 6, 4)
"""Of the dense models rounded without pruning that finalists are compared with."""


def rounded_name(bits: int) -> str:
    """What the dense model with weights rounded to so many bits is called.

    >>> rounded_name(6)
    'dense at 6 bits'
    """
    return f"dense at {bits} bits"


BITS_OF = {DENSE: FLOAT_BITS, INT8: 8} | {rounded_name(bits): bits for bits in BITS if bits < FLOAT_BITS}
"""Name of a reference -> bits of its stored weights."""


@dataclass(frozen=True)
class Reference:
    """A network that needs no fine-tune: the dense model, or one with its weights rounded to few bits."""

    validation_accuracy: float
    test_accuracy: float
    size_encoded: float
    size_nonzero: float

    def size(self, metric: str) -> float:
        """The size by a measure, `encoded` or `nonzero`."""
        return self.size_encoded if metric == "encoded" else self.size_nonzero


@dataclass(frozen=True)
class Baseline:
    """A static allocation that is tuned and tested: the name of its rule, and the digest of its policy."""

    rule: str
    digest: str


@dataclass(frozen=True)
class Comparison:
    """What finalists are compared with.

    Attributes:
        references: by name, networks that need no fine-tune: `dense`, the unpruned model, and after it that model with
            weights rounded to few bits (`rounded_name`; `dense int8` in older comparisons).
        baselines: static allocator -> policy digest, each fitted to the largest size target in `granularity`; the
            digest is that of a finalist, or of an earlier baseline, if both remove the same. Allocators that cannot
            reach the limit, or were not compared at it, are absent.
        granularity: of these baselines.
        finalists: policy digests, in the order they were chosen.
        latency: the dense model's, and by policy digest those of finalists and baselines, measured on the runs that an
            export ships; None if latency plays no part in the study.
        test_examples: number of examples behind the test accuracies; None in older comparisons.
        bits: static allocator -> bits of its stored weights, of a study's choices those that did best on validation
            data; one that is not named has 32.
        matched: digest of a finalist -> the static allocation that does best on validation data at that finalist's own
            size, granularity and bits. Its digest is the finalist's, or another's, if both remove the same. Finalists
            whose size no static allocator reaches are absent, as are all in comparisons before version 4.
        named: digests of the finalists that somebody named, rather than the front.
    """

    references: Mapping[str, Reference]
    baselines: Mapping[str, str]
    granularity: str
    finalists: tuple[str, ...]
    latency: TimedNetworks | None = None
    test_examples: int | None = None
    bits: Mapping[str, int] = field(default_factory=dict)
    matched: Mapping[str, Baseline] = field(default_factory=dict)
    named: tuple[str, ...] = ()

    @property
    def static(self) -> list[Baseline]:
        """All static baselines, those at finalists' sizes first; no policy is there twice by one rule."""
        at_limit = [Baseline(rule, digest) for rule, digest in self.baselines.items()]
        return list(dict.fromkeys([*self.matched.values(), *at_limit]))

    @property
    def digests(self) -> list[str]:
        """Of all policies that are tuned, each once, finalists first."""
        return list(dict.fromkeys([*self.finalists, *(one.digest for one in self.static)]))

    @property
    def dense(self) -> Reference | None:
        """The unpruned model; None if it has no score on test data."""
        return self.references.get(DENSE)

    @property
    def rounded(self) -> dict[str, Reference]:
        """The references but `dense`, by name."""
        return {name: reference for name, reference in self.references.items() if name != DENSE}


def write_comparison(folder: StudyFolder, comparison: Comparison) -> None:
    """Write what the study's finals were compared with; the inverse of `read_comparison`."""
    data = {"version": COMPARISON_VERSION, **asdict(comparison)}
    if comparison.test_examples is None:
        del data["test_examples"]
    if comparison.latency and comparison.latency.command is None:
        del data["latency"]["command"]
    text = json.dumps(data, indent=1)
    write_durably(_place(folder), text.encode())


def shown_comparison(folder: StudyFolder) -> Comparison | None:
    """`read_comparison` for commands that only show it: a damaged one is named, and everything else is shown without
    it.
    """
    try:
        return read_comparison(folder)
    except Refused as error:
        log.warning("%s; all else is shown", printable(error))
        return None


def known_comparison(folder: StudyFolder) -> Comparison | None:
    """`read_comparison` for the process that runs the study: a damaged one is kept under another name, and the
    comparison is made again.
    """
    try:
        return _parsed(_place(folder))
    except ValueError as error:
        path = _place(folder)
        kept = set_aside(path).name
        log.warning("damaged %s: %s; it is kept as %s, and finals are compared again", path, printable(error), kept)
        return None


def read_comparison(folder: StudyFolder) -> Comparison | None:
    """What the study's last finals were compared with; None before them, or if another version wrote it.

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
        latency = _read_latency(data.pop("latency", None))
        references = _read_references(data)
        finalists, named = tuple(data.pop("finalists")), tuple(data.pop("named", ()))
        matched = {digest: Baseline(**one) for digest, one in data.pop("matched", {}).items()}
        found = Comparison(references, finalists=finalists, latency=latency, matched=matched, named=named, **data)
        _check_comparison(found)
        return found
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise ValueError(str(error)) from None


def _place(folder: StudyFolder) -> Path:
    return folder.path / "comparison.json"


def _check_comparison(found: Comparison) -> None:
    for name in found.references:
        if name not in BITS_OF:
            raise ValueError(unknown("reference", name, BITS_OF))
    for reference in found.references.values():
        if not all(is_number(share) and 0 <= share <= LARGEST_SHARE for share in vars(reference).values()):
            raise ValueError(f"accuracies and sizes must be shares, got {reference}")
    examples = found.test_examples
    if examples is not None and not (type(examples) is int and examples > 0):
        raise ValueError(f"test_examples must be a whole number from 1 on, got {examples!r}")
    digests = [*found.finalists, *found.named, *dict(found.baselines).values()]
    rules = [word for one in found.matched.values() for word in (one.rule, one.digest)]
    if not all(isinstance(word, str) for word in (*digests, *rules, *found.baselines, found.granularity)):
        raise ValueError("baselines, finalists and granularity must be text")
    if missing := {*found.matched, *found.named} - {*found.finalists}:
        raise ValueError(f"{min(missing)!r} is no finalist, and is compared as one")
    for name, bits in dict(found.bits).items():
        check_bits(bits, f"bits of baseline {name!r}")


def _read_references(data: dict[str, Any]) -> dict[str, Reference]:
    """The references of a comparison, which are taken out of `data`."""
    if "references" in data:
        return {name: Reference(**one) for name, one in data.pop("references").items()}
    return {name: Reference(**data.pop(key)) for name, key in ((DENSE, "dense"), (INT8, "int8"))}


def _read_latency(data: Mapping[str, Any] | None) -> TimedNetworks | None:
    if data is None:
        return None
    own = {name: TimedNetwork(**data[name]) for name in ("dense", "copy")}
    networks = {digest: TimedNetwork(**timed) for digest, timed in data["networks"].items()}
    return TimedNetworks(**{**data, **own, "networks": networks})
