"""The folder of a study: its files, its identity, and whether a command still means the same study."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.config import BUDGETS, RESERVED, SearchConfig, check_study_name
from search.errors import Refused, UsageError
from search.files import read_text, write_durably
from search.journal import Journal
from search.record_checks import MOST_TRIALS
from spaces.printable import LONGEST_WORD, shortened
from spaces.search_space.space import OLD_PREFERENCE, PREFERENCE
from spaces.strict_json import parse_object
from spaces.validation import is_number, unknown

FOLDER_VERSION = 1
KNOB_WORD = "knob_word"
"""Part of a study's record: what its Optuna parameters of layers begin with, see `spaces.search_space.space`."""
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
        raise ValueError(f"'study_id' is none: {shortened(repr(record['study_id']), LONGEST_WORD)}")
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
        raise ValueError("'recipe' is missing or none")


@dataclass(frozen=True)
class StudyFolder:
    """`ROOT/STUDY/`: `study.json`, `study.db`, `journal/`, `checkpoints/`."""

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

    def trial_weights(self, number: int) -> Path:
        return self.path / "checkpoints" / f"trial-{number:05d}.safetensors"

    def final_weights(self, digest: str, seed: int) -> Path:
        return self.path / "checkpoints" / f"final-{digest}-{seed}.safetensors"

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


def new_record(config: SearchConfig, identity: Mapping[str, Any]) -> dict[str, Any]:
    """What a new study writes down about itself.

    `identity` is what may not change besides the config: fingerprints, recipe, objectives. The number of `seeds` stays
    when the study gets more trials, so that those go on where it was.
    """
    return {
        "study_id": uuid.uuid4().hex,
        "seeds": config.trials // 2,
        KNOB_WORD: PREFERENCE,
        "created": time.time(),
        "config": config.model_dump(mode="json", exclude={"root"}),
        "identity": json.loads(json.dumps(identity)),
    }


def stored_config(record: Mapping[str, Any], root: str) -> SearchConfig:
    """The config in a study's record; raises `Refused` if it is none."""
    try:
        return SearchConfig(**{**record["config"], "root": root})
    except (KeyError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise Refused(f"damaged study record of {root!r}: its config is none ({reason})") from None


def resumed_config(asked: SearchConfig, record: Mapping[str, Any], study: str) -> SearchConfig:
    """The stored config of `study` with the budgets asked for.

    Options the user did not give keep the study's value.

    Raises:
        UsageError: an option given differs and is no budget; the difference is shown.
    """
    stored = stored_config(record, asked.root)
    given = {key: getattr(asked, key) for key in asked.model_fields_set - {"study", "root"}}
    refuse_changes(
        {key: getattr(stored, key) for key in given if key not in BUDGETS},
        {key: value for key, value in given.items() if key not in BUDGETS},
        study,
    )
    return stored.model_copy(update={key: value for key, value in given.items() if key in BUDGETS})


def refuse_changes(stored: Mapping[str, Any], now: Mapping[str, Any], study: str) -> None:
    """Raise `UsageError` with every difference; equal mappings pass."""
    changes = [
        f"{key.replace('_', '-')} was {stored.get(key)!r}, is {now.get(key)!r}"
        for key in sorted({*stored, *now})
        if stored.get(key) != now.get(key)
    ]
    if changes:
        data = any(key.endswith(" data") and stored.get(key) != now.get(key) for key in now)
        drawn = "; data that nobody changed are drawn or listed in another order each time: seed and sort them"
        mutable = [key.replace("_", "-") for key in BUDGETS]
        raise UsageError(
            f"study {study!r} was begun with other settings ({'; '.join(changes)}): "
            f"only {', '.join(mutable[:-1])} and {mutable[-1]} may change; name a new --study{drawn if data else ''}"
        )
