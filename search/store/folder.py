"""The folder of a study: its files, its identity, and whether a command still means the same study."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.checksum import sealed, unsealed
from search.config import RESERVED, SearchConfig, check_study_name
from search.errors import Refused, UsageError
from search.files import read_text, write_durably
from search.record_checks import MOST_TRIALS
from search.store.journal import Journal
from search.store.study_record import KNOB_WORD, stored_config
from spaces.cost.latency_table import LatencyTable
from spaces.printable import LONGEST_WORD, shortened
from spaces.search_space.space import OLD_PREFERENCE, PREFERENCE
from spaces.strict_json import parse_object
from spaces.validation import is_number, unknown

FOLDER_VERSION = 1
_PARTS = {
    "study_id": str, "config": dict, "identity": dict, "seeds": int | None, "environment": dict | None,
    "least_accuracy": float | int | None, "criterion_place": str | None, KNOB_WORD: str | None,
}  # fmt: skip
"""Parts of a study's record and their types; None of what may be missing."""


def _check_parts(record: dict[str, Any]) -> None:
    for part, kind in _PARTS.items():
        if not isinstance(record.get(part), kind) or isinstance(record.get(part), bool):
            raise ValueError(f"{part!r} is missing or of a wrong type")
        if record.get(part, "") is None:
            del record[part]
    if not re.fullmatch(r"[0-9A-Za-z_-]{1,64}", record["study_id"]):
        raise ValueError(f"'study_id' is not valid: {shortened(repr(record['study_id']), LONGEST_WORD)}")
    if not 0 <= record.get("seeds", 0) <= MOST_TRIALS:
        raise ValueError(f"'seeds' must be from 0 to {MOST_TRIALS}")
    if not all(is_number(record.get(part, 0)) for part in ("least_accuracy", "created")):
        raise ValueError("'least_accuracy' and 'created' must be numbers")
    if (word := record.get(KNOB_WORD, PREFERENCE)) not in (PREFERENCE, OLD_PREFERENCE):
        raise ValueError(unknown(f"{KNOB_WORD!r}", word, (PREFERENCE, OLD_PREFERENCE)))
    if type(record.get("environment", {"threads": 1}).get("threads")) is not int:
        raise ValueError("'environment' has no number of 'threads'")
    recipe = record["identity"].get("recipe")
    epochs = [recipe.get(part) for part in ("trial_epochs", "final_epochs")] if isinstance(recipe, dict) else [None]
    if not all(is_number(count) and count > 0 for count in epochs):
        raise ValueError("'recipe' is missing or has no epochs")


@dataclass(frozen=True)
class StudyFolder:
    """`ROOT/STUDY/`: `study.json`, `latency.json`, `study.db`, `journal/`, `checkpoints/`."""

    root: Path
    name: str

    @property
    def path(self) -> Path:
        return self.root / self.name

    @property
    def database(self) -> Path:
        return self.path / "study.db"

    @property
    def lock(self) -> Path:
        return self.path / "study.lock"

    @property
    def journal(self) -> Journal:
        return Journal(self.path / "journal")

    @property
    def exists(self) -> bool:
        return (self.path / "study.json").is_file()

    @property
    def dense_weights(self) -> Path:
        """The dense model, for workers."""
        return self.path / "checkpoints" / "dense.safetensors"

    def trial_weights(self, number: int) -> Path:
        return self.path / "checkpoints" / f"trial-{number:05d}.safetensors"

    def final_weights(self, digest: str, seed: int) -> Path:
        return self.path / "checkpoints" / f"final-{digest}-{seed}.safetensors"

    @property
    def latency(self) -> Path:
        """The latency table that all of the study's predictions are read off."""
        return self.path / "latency.json"

    def write_latency_table(self, table: LatencyTable) -> None:
        write_durably(self.latency, sealed(table.to_json()).encode())

    def read_latency_table(self) -> LatencyTable | None:
        """What `write_latency_table` wrote; None if nothing was.

        Raises:
            Refused: it is damaged.
        """
        if not self.latency.exists():
            return None
        try:
            return LatencyTable.from_json(unsealed(read_text(self.latency)))
        except (ValueError, OSError) as error:
            raise Refused(
                f"damaged latency table {self.latency}: {error}; put back a copy of it, or name a new --study"
            ) from None

    def write_record(self, record: Mapping[str, Any]) -> None:
        write_durably(self.path / "study.json", json.dumps({"version": FOLDER_VERSION, **record}, indent=1).encode())

    def read_record(self) -> dict[str, Any]:
        """What `write_record` wrote.

        Raises:
            Refused: it is damaged or of another version.
        """
        try:
            record = parse_object(read_text(self.path / "study.json"))
            if record.pop("version", None) != FOLDER_VERSION:
                raise ValueError(f"version is not {FOLDER_VERSION}")
            _check_parts(record)
            return record
        except (ValueError, OSError) as error:
            raise Refused(
                f"damaged study record {self.path / 'study.json'}: {error}; "
                "put back a copy of it, or name a new --study"
            ) from None

    @property
    def untried(self) -> Path | None:
        """The folder itself while it holds no trial, and so nothing that would be missed."""
        return self.path if self.journal.is_empty else None

    def refuse_orphan(self) -> None:
        """Raise `Refused` where results are left of a study whose record is gone: nobody knows what they are of."""
        if not self.exists and not self.journal.is_empty:
            raise Refused(
                f"{self.path} holds results without the {self.path / 'study.json'} that says what they are of: "
                "put back a copy of it, move the folder away, or name a new --study"
            )

    @property
    def config(self) -> SearchConfig:
        """The config the study was last run with; raises `Refused` like `read_record`."""
        return stored_config(self.read_record(), str(self.root))


def find_study(root: str | Path, name: str) -> StudyFolder:
    """An existing study.

    Raises:
        UsageError: there is none of this name; the nearest is named.
    """
    root = Path(root)
    try:
        folder = StudyFolder(root, check_study_name(name))
    except ValueError as error:
        raise UsageError(str(error)) from None
    if folder.exists:
        return folder
    folder.refuse_orphan()
    known = [path.parent.name for path in root.glob("*/study.json") if path.parent.name not in RESERVED]
    raise UsageError(f"{unknown('study', name, known)} under root {str(root)!r}")
