"""What makes a stored record credible: numbers within their ranges, and known words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from search.knew import Knew
from search.records import (
    COMPLETE,
    FINISHED_STATES,
    PRECISIONS,
    FinalRecord,
    PendingTrial,
    TrialRecord,
    TrialResult,
    WrittenFile,
)
from spaces.printable import LONGEST_WORD, shortened
from spaces.validation import is_number, unknown

SLACK = 1e-6
"""How far a share may leave [0, 1], since single precision rounds."""
LARGEST_SHARE = 2.0
"""The largest size or MACs over the dense model's; what does not shrink may be written slightly larger."""
MOST_TRIALS = 1_000_000
"""Trial numbers are below this."""
MOST_BYTES = 2**53
"""Sizes of files are below this."""


def check_trial(record: TrialRecord) -> None:
    """Raise a `ValueError` that names the field unless a study can have written this trial."""
    _check_proposed(record)
    _mapping("sampled", record.sampled)
    for layer, share in record.sampled.items():
        _share(f"sampled of {layer!r}", share)
    _share("target", record.target)
    for part in ("started", "finished", "proposing"):
        _seconds(part, getattr(record, part))
    if record.latency is not None:
        _seconds("latency", record.latency)
    _check_worker(record)
    _check_result(record.result)


def check_final(record: FinalRecord) -> None:
    """The same for a final."""
    check_short_run(record)
    if record.result.state == COMPLETE:
        _share("test_accuracy", record.test_accuracy)
        _number("test_loss", record.test_loss)


def check_short_run(record: FinalRecord) -> None:
    """The same for a fine-tune that was not tested."""
    _text("digest", record.digest)
    _whole("seed", record.seed, 2**32)
    _seconds("finished", record.finished)
    _check_worker(record)
    _check_result(record.result)


def check_pending(record: PendingTrial) -> None:
    """The same of a trial that was proposed."""
    _check_proposed(record)


def _check_worker(record: TrialRecord | FinalRecord) -> None:
    if record.worker is not None:
        _text("worker", record.worker)


def _check_proposed(record: TrialRecord | PendingTrial) -> None:
    _whole("number", record.number, MOST_TRIALS)
    _text("origin", record.origin)
    for part in ("params", "scores"):
        _mapping(part, getattr(record, part))
    for name, score in record.scores.items():
        _number(f"score {name!r}", score)
    if record.knew is not None:
        _check_knew(record.number, record.knew)


def _check_knew(number: int, knew: Knew) -> None:
    for part, numbers in vars(knew).items():
        if numbers.runs:
            _whole(f"number that knew's {part} ends with", numbers.runs[-1][1], MOST_TRIALS)
        if number in numbers:
            raise ValueError(f"knew's {part} must be other trials than {number} itself")
    if knew.finished.meets(knew.running):
        raise ValueError("knew's finished and running must be different trials")


def _check_result(result: TrialResult) -> None:
    if result.state not in FINISHED_STATES:
        raise ValueError(unknown("state", result.state, FINISHED_STATES))
    if result.reason is not None:
        _text("reason", result.reason)
    if result.device is not None:
        _text("device", result.device)
    if result.precision not in PRECISIONS:
        raise ValueError(unknown("precision", result.precision, PRECISIONS))
    _whole("measuring", result.measuring, MOST_TRIALS)
    _whole("restored", result.restored, MOST_BYTES)
    if result.ended_at is not None:
        _share("ended_at", result.ended_at)
    if result.measuring < 1:
        raise ValueError(f"measuring must be at least 1, got {result.measuring}")
    for part in ("achieved", "seconds"):
        _mapping(part, getattr(result, part))
    for layer, share in result.achieved.items():
        _share(f"achieved of {layer!r}", share)
    for phase, seconds in result.seconds.items():
        _seconds(f"seconds of {phase!r}", seconds)
    for point in result.curve:
        for name, value in vars(point).items():
            _number(f"curve's {name}", value)
    if result.state == COMPLETE:
        _share("accuracy", result.accuracy)
        _number("loss", result.loss)
        if result.shares is None:
            raise ValueError("it is complete and has no shares")
    if result.rate is not None and not (is_number(result.rate) and result.rate > 0):
        raise ValueError(f"rate must be a number > 0, got {_said(result.rate)}")
    if result.file is not None:
        _check_file(result.file)
    if result.shares is not None:
        for name, value in vars(result.shares).items():
            if not (is_number(value) and 0 <= value <= LARGEST_SHARE):
                raise ValueError(f"share {name} must be from 0 to {LARGEST_SHARE:g}, got {_said(value)}")


def _check_file(file: WrittenFile) -> None:
    for part, value in vars(file).items():
        _whole(f"file's {part}", value, MOST_BYTES)
    if not file.bytes:
        raise ValueError("file's bytes must be at least 1, got 0")
    if not file.bytes <= file.planned <= file.bound:
        said = f"{file.bytes}, {file.planned}, {file.bound}"
        raise ValueError(f"file's bytes, planned and bound must be in rising order, got {said}")


def _whole(part: str, value: object, below: int) -> None:
    if type(value) is not int or not 0 <= value < below:
        raise ValueError(f"{part} must be a whole number from 0 to {below - 1}, got {_said(value)}")


def _share(part: str, value: object) -> None:
    if not (is_number(value) and -SLACK <= value <= 1 + SLACK):
        raise ValueError(f"{part} must be a share, 0 to 1, got {_said(value)}")


def _seconds(part: str, value: object) -> None:
    if not (is_number(value) and value >= 0):
        raise ValueError(f"{part} must be a number >= 0, got {_said(value)}")


def _number(part: str, value: object) -> None:
    """A finite or infinite number or NaN, since a loss can be any of these."""
    if not (is_number(value) or (isinstance(value, float) and not math.isfinite(value))):
        raise ValueError(f"{part} must be a number, got {_said(value)}")


def _text(part: str, value: object) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{part} must be text, got {_said(value)}")


def _mapping(part: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{part} must be an object, got {_said(value)}")


def _said(value: object) -> str:
    return shortened(repr(value), LONGEST_WORD)
