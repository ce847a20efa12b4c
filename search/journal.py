"""The result journal: one JSON file a finished result, on disk before anyone hears of it."""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from search.entries import check_final, check_trial
from search.errors import Refused
from search.reading import read_text
from search.records import FinalRecord, TrialRecord, final_from_plain, to_plain, trial_from_plain
from search.storage import write_problem
from spaces.network import Network
from spaces.printable import printable
from spaces.strict_json import parse_object

Record = TypeVar("Record", TrialRecord, FinalRecord)
MOST_ENTRY = 256 * 2**20
"""Bytes of an entry: a curve of a million points is smaller."""
FEW = 100
"""Numbers that may be missing although few entries are there: entries that were deleted to be run again."""
DELETE = "delete it and the study.db above it, and the same command repeats that trial"
_being_written: set[str] = set()
_TEMPORARY = re.compile(r"\..+\.([0-9]+)\.[0-9a-f]{8}\.tmp")


def write_durably(path: Path, data: bytes) -> None:
    """Write, fsync, rename, fsync the folder: after a crash the file is whole or absent.

    Raises:
        EnvironmentProblem: a full disk, or a place that cannot be written; an earlier file stays, nothing is left over.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
    _being_written.add(temporary.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        flush(path.parent)
    except OSError as error:
        raise write_problem(path, error) from None
    finally:
        with suppress(OSError):  # after the rename there is none
            temporary.unlink()
        _being_written.discard(temporary.name)


def remove_temporaries(folder: Path, of_dead_only: bool = False) -> None:
    """Remove what `write_durably` left in a folder when its process was killed.

    Args:
        of_dead_only: keep those of processes that live, which may still be writing them.
    """
    for path in folder.glob(".*.tmp"):
        owner = _TEMPORARY.fullmatch(path.name)
        if owner is None or path.name in _being_written or (of_dead_only and _lives(int(owner[1]))):
            continue
        with suppress(OSError):  # what cannot be removed does no harm
            path.unlink()


def _lives(process: int) -> bool:
    """Whether it is another process that lives: in a container, one that was killed may have had our number."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return process != os.getpid()


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


class Journal:
    """The journal of one study, in its folder `journal/`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write_trial(self, record: TrialRecord) -> None:
        self._write(self.folder / trial_name(record), record)

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
                f"damaged journal {self.folder}: {trial_name(found[-1])} is there, and {missing:,} numbers before "
                f"it are not; {DELETE}"
            )
        return found

    def finals(self) -> list[FinalRecord]:
        """Finished finals by digest and seed; raises `Refused` like `trials`."""
        return [self._read(path, final_from_plain, check_final, final_name) for path in self._entries("final")]

    def require_layers(self, network: Network) -> None:
        """Raise `Refused`, naming the entry, where a result is of a policy this network cannot have."""
        for record in (*self.trials(), *self.finals()):
            policy, place = record.policy, trial_name if isinstance(record, TrialRecord) else final_name
            try:
                network.require([*policy.sparsity, *policy.removal])
            except ValueError as error:
                raise Refused(f"damaged journal entry {self.folder / place(record)}: {error}; {DELETE}") from None

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
    def _write(path: Path, record: TrialRecord | FinalRecord) -> None:
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


def final_name(record: FinalRecord) -> str:
    """The file a final is written to."""
    return f"final-{record.digest}-{record.seed}.json"
