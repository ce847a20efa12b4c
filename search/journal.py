"""The result journal: one JSON file a finished result, on disk before anyone hears of it."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

from search.errors import Refused
from search.records import FinalRecord, TrialRecord, final_from_plain, to_plain, trial_from_plain


def write_durably(path: Path, data: bytes) -> None:
    """Write, fsync, rename, fsync the folder: after a crash the file is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    flush(path.parent)


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
        self._write(self.folder / f"trial-{record.number:05d}.json", record)

    def write_final(self, record: FinalRecord) -> None:
        self._write(self.final_path(record.digest, record.seed), record)
        (self.folder / f"begun-{record.digest}-{record.seed}").unlink(missing_ok=True)

    def count_start(self, digest: str, seed: int, change: int = 1) -> int:
        """Note that a final begins (or, with -1, was interrupted in good order); returns how often it has begun."""
        path = self.folder / f"begun-{digest}-{seed}"
        count = (int(path.read_text()) if path.is_file() else 0) + change
        write_durably(path, str(count).encode())
        return count

    def trials(self) -> list[TrialRecord]:
        """Finished trials by number.

        Raises:
            Refused: an entry is damaged; it is named.
        """
        return [self._read(path, trial_from_plain) for path in sorted(self.folder.glob("trial-*.json"))]

    def finals(self) -> list[FinalRecord]:
        """Finished finals by digest and seed; raises `Refused` like `trials`."""
        return [self._read(path, final_from_plain) for path in sorted(self.folder.glob("final-*.json"))]

    def final_path(self, digest: str, seed: int) -> Path:
        """Where a final is written."""
        return self.folder / f"final-{digest}-{seed}.json"

    @staticmethod
    def _write(path: Path, record: TrialRecord | FinalRecord) -> None:
        write_durably(path, json.dumps(to_plain(record), indent=1).encode())

    @staticmethod
    def _read(path: Path, parse: Any) -> Any:
        try:
            return parse(json.loads(path.read_text()))
        except (ValueError, OSError) as error:
            raise Refused(
                f"damaged journal entry {path}: {error}; "
                "delete it and the study.db above it, and the same command repeats that trial"
            ) from None
