"""study.json: what a study was asked, and whether a command still asks the same."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search.config import SearchConfig, updated
from search.errors import Refused, UsageError
from search.given_workload import lives_in_python
from search.options import MAY_CHANGE, UNSTORED, key_of
from spaces.bits import FLOAT_BITS
from spaces.search_space.space import PREFERENCE

KNOB_WORD = "knob_word"
"""Part of a study's record: what its Optuna parameters of layers begin with, see `spaces.search_space.space`."""
ARCHITECTURE, DENSE = "architecture", "dense model"
"""Parts of its identity, like those that follow."""
DATA = "data"
"""The one fingerprint over all splits that studies used to record."""
LATENCY_DEVICE = "device that latency is measured on"
"""Recorded where latency plays a part, as seconds of two devices are two objectives; not by earlier versions."""


def of_split(split: str) -> str:
    """The part of an identity that belongs to one split."""
    return f"{split} data"


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
        "config": config.stored(),
        "identity": json.loads(json.dumps(identity)),
    }


def stored_config(record: Mapping[str, Any], root: str) -> SearchConfig:
    """The config in a study's record; raises `Refused` if it is none.

    Studies of earlier versions, whose records name no bits, rounded nothing, and those that name no third objective had
    MACs.
    """
    try:
        former = {"bits": (FLOAT_BITS,), "cost": "macs"}
        return SearchConfig(**updated(former, record["config"]), root=root)
    except (KeyError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise Refused(f"damaged study record of {root!r}: its options make no study ({reason})") from None


def resumed_config(
    asked: SearchConfig, record: Mapping[str, Any], study: str, untried: Path | None = None
) -> SearchConfig:
    """The stored config of `study`, with what was asked for of the options that may change.

    Options the user did not give keep the study's value. A study that is asked for by its name keeps that, whatever its
    workload is called now. A workload that lived in Python alone may get a name by which
    it is found: whether it is the same, fingerprints tell. `untried` is as of `refuse_changes`.

    Raises:
        UsageError: an option given differs and may not change; the difference is shown.
    """
    stored = stored_config(record, asked.root)
    given = {key: getattr(asked, key) for key in asked.model_fields_set - {"study", *UNSTORED}}
    is_named = lives_in_python(stored.workload) and not lives_in_python(given.get("workload", stored.workload))
    may_change = (*MAY_CHANGE, *(["workload"] if is_named else []))
    refuse_changes(
        {key: getattr(stored, key) for key in given if key not in may_change},
        {key: value for key, value in given.items() if key not in may_change},
        study,
        untried,
    )
    changed = {key: value for key, value in given.items() if key in may_change}
    if asked.factory is not None:
        changed["workload"] = asked.factory
    changed["study"] = asked.study or stored.study
    return stored.model_copy(update={**changed, **{key: getattr(asked, key) for key in UNSTORED}})


def refuse_changes(stored: Mapping[str, Any], now: Mapping[str, Any], study: str, untried: Path | None = None) -> None:
    """Raise `UsageError` with every difference; equal mappings pass.

    `untried` is the folder of a study that has no trial: nothing is lost by deleting it, which the remedy then says.
    """
    changes = [
        f"{key_of(key)} was {stored.get(key)!r}, is {now.get(key)!r}"
        for key in sorted({*stored, *now})
        if stored.get(key) != now.get(key)
    ]
    if changes:
        data = any(key.endswith(" data") and stored.get(key) != now.get(key) for key in now)
        drawn = "; if nobody changed the data, they are drawn or listed in another order each time: seed and sort them"
        mutable = [key_of(name) for name in MAY_CHANGE]
        start_over = "" if untried is None else f"delete its folder {untried}, which has no trial, or "
        raise UsageError(
            f"study {study!r} was begun with other settings ({'; '.join(changes)}): "
            f"only {', '.join(mutable[:-1])} and {mutable[-1]} may change; "
            f"{start_over}name a new --study{drawn if data else ''}"
        )
