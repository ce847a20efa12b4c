"""The result journal: one JSON file a finished result, on disk before anyone hears of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from search.errors import Refused
from search.files import read_text, write_durably
from search.record_checks import check_final, check_pending, check_short_run, check_trial
from search.records import (
    FinalRecord,
    PendingTrial,
    TrialRecord,
    final_from_plain,
    pending_from_plain,
    to_plain,
    trial_from_plain,
)
from spaces.network import Network
from spaces.printable import printable
from spaces.strict_json import parse_object

Record = TypeVar("Record", TrialRecord, FinalRecord, PendingTrial)
MOST_ENTRY = 256 * 2**20
"""Bytes of an entry: a curve of a million points is smaller."""
FEW = 100
"""Numbers that may be missing although few entries are there: entries that were deleted to be run again."""
DELETE = "delete it and the study.db above it, and the same command repeats that trial"


class Journal:
    """The journal of one study, in its folder `journal/`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write_trial(self, record: TrialRecord) -> None:
        """Write a result; its trial is pending no more."""
        self._write(self.folder / trial_name(record), record)
        self._pending_path(record.number).unlink(missing_ok=True)

    def write_pending(self, trial: PendingTrial) -> None:
        """Write down what a trial is, before it is evaluated."""
        self._write(self._pending_path(trial.number), trial)

    def write_final(self, record: FinalRecord) -> None:
        self._write(self.folder / final_name(record), record)

    def trials(self) -> list[TrialRecord]:
        """Finished trials by number.

        Raises:
            Refused: an entry is damaged, bears another number than its name, or leaves more numbers out than there
                are entries; it is named.
        """
        found = [self._read(path, trial_from_plain, check_trial, trial_name) for path in self._entries("trial")]
        found.sort(key=lambda trial: trial.number)  # names of more than five digits are not in this order
        if found and (missing := found[-1].number + 1 - len(found)) > len(found) + FEW:
            raise Refused(
                f"damaged journal {self.folder}: {trial_name(found[-1])} exists, but {missing:,} trials before "
                f"it are missing; {DELETE}"
            )
        return found

    def finals(self) -> list[FinalRecord]:
        """Finished finals by digest and seed; raises `Refused` like `trials`."""
        return [self._read(path, final_from_plain, check_final, final_name) for path in self._entries("final")]

    def write_short_run(self, record: FinalRecord) -> None:
        """Write a fine-tune of a trial's length, of a static allocation."""
        self._write(self.folder / short_run_name(record), record)

    def short_runs(self) -> list[FinalRecord]:
        """Fine-tunes of static allocations by digest; raises `Refused` like `trials`."""
        return [self._read(path, final_from_plain, check_short_run, short_run_name) for path in self._entries("static")]

    def count_short_runs(self) -> int:
        """How many there are, without a look into them."""
        return len(self._entries("static"))

    def pending(self) -> list[PendingTrial]:
        """Trials that were proposed and have no result. One that cannot be read is none: it is proposed again."""
        found = []
        for path in sorted(self.folder.glob("pending-trial-*.json")):
            with suppress(Refused):
                found.append(self._read(path, pending_from_plain, check_pending, pending_name))
        return found

    def forget_pending(self, numbers: Iterable[int]) -> None:
        """Remove what a kill between a result and its last step left."""
        for number in numbers:
            self._pending_path(number).unlink(missing_ok=True)

    def _pending_path(self, number: int) -> Path:
        return self.folder / _pending_name(number)

    def require_layers(self, network: Network) -> None:
        """Raise `Refused`, naming the entry, where a result is of a policy this network cannot have."""
        trials = [(trial_name(trial), trial.policy) for trial in self.trials()]
        runs = [(final_name(final), final.policy) for final in self.finals()]
        runs += [(short_run_name(run), run.policy) for run in self.short_runs()]
        for name, policy in (*trials, *runs):
            try:
                network.require([*policy.sparsity, *policy.removal])
            except ValueError as error:
                raise Refused(f"damaged journal entry {self.folder / name}: {error}; {DELETE}") from None

    def final_path(self, digest: str, seed: int) -> Path:
        """Where a final is written."""
        return self.folder / f"final-{digest}-{seed}.json"

    @property
    def is_empty(self) -> bool:
        """Whether it holds no result."""
        return not self._entries("trial") and not self._entries("final")

    def _entries(self, kind: str) -> list[Path]:
        return sorted(self.folder.glob(f"{kind}-*.json"))

    @staticmethod
    def _write(path: Path, record: TrialRecord | FinalRecord | PendingTrial) -> None:
        write_durably(path, json.dumps(to_plain(record), indent=1).encode())

    @staticmethod
    def _read(
        path: Path, parse: Callable[[Any], Record], check: Callable[[Record], None], name: Callable[[Record], str]
    ) -> Record:
        try:
            record = parse(parse_object(read_text(path, MOST_ENTRY), constants=True))
            check(record)
            if path.name != name(record):
                raise ValueError(f"its content is that of {printable(name(record))}")
            return record
        except (ValueError, OSError) as error:
            raise Refused(f"damaged journal entry {path}: {error}; {DELETE}") from None


def trial_name(record: TrialRecord) -> str:
    """The file a trial is written to."""
    return f"trial-{record.number:05d}.json"


def pending_name(trial: PendingTrial) -> str:
    """The file a trial is written to before it is evaluated."""
    return _pending_name(trial.number)


def _pending_name(number: int) -> str:
    return f"pending-trial-{number:05d}.json"


def final_name(record: FinalRecord) -> str:
    """The file a final is written to."""
    return f"final-{record.digest}-{record.seed}.json"


def short_run_name(record: FinalRecord) -> str:
    """The file that the fine-tune of a static allocation is written to."""
    return f"static-{record.digest}.json"
