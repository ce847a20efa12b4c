"""What must hold of a study whatever was done to it, read from its files without any code of the project."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TIMES = ("started", "finished", "proposing", "seconds", "trained_seconds")
"""Keys of records that differ between runs of one study."""
LEFT_OVER = re.compile(
    r"(^\..+\.(tmp|partial)$)|(^\.write-)|(^\.export-)|(^begun-)|(^pending-)|(-journal$)|(-wal$)|(-shm$)|\.(part$|broken-)"
)


def journal(study: Path) -> dict[str, bytes]:
    """Name -> content of every finished result."""
    return {p.name: p.read_bytes() for kind in ("trial", "final") for p in (study / "journal").glob(f"{kind}-*.json")}


def without_times(data: Any) -> Any:
    """The same data but for keys that tell times."""
    if isinstance(data, Mapping):
        return {key: without_times(value) for key, value in data.items() if key not in TIMES}
    return [without_times(value) for value in data] if isinstance(data, list) else data


def kept(before: Mapping[str, bytes], now: Mapping[str, bytes]) -> list[str]:
    """No result lost or changed, none missing before another."""
    faults = [f"{name} is lost" for name in before.keys() - now.keys()]
    faults += [f"{name} has changed" for name in before.keys() & now.keys() if before[name] != now[name]]
    numbers = sorted(json.loads(data)["number"] for name, data in now.items() if name.startswith("trial-"))
    if numbers != list(range(len(numbers))):
        faults.append(f"trials are numbered {numbers}")
    named = sorted(int(name[6:-5]) for name in now if name.startswith("trial-"))
    return faults + ([f"files {named} hold trials {numbers}"] if named != numbers else [])


def same_results(now: Mapping[str, bytes], undisturbed: Mapping[str, bytes]) -> list[str]:
    """What an undisturbed study has, times apart."""
    faults = [f"{name} is in one only" for name in sorted(now.keys() ^ undisturbed.keys())]
    for name in sorted(now.keys() & undisturbed.keys()):
        one, other = (without_times(json.loads(data[name])) for data in (now, undisturbed))
        faults += [
            f"{name}: {key} differs" for key in sorted(one.keys() | other.keys()) if one.get(key) != other.get(key)
        ]
    return faults


def optuna_agrees(study: Path, found: list[tuple[int, str]] | None = None) -> list[str]:
    """Optuna's database holds each trial of the journal once, in its state.

    Args:
        found: what another database of its has, sorted; the study's own file is looked into without.
    """
    names = {"complete": "COMPLETE", "failed": "FAIL", "stopped-early": "PRUNED"}
    trials = [json.loads(data) for name, data in journal(study).items() if name.startswith("trial-")]
    wanted = sorted((trial["number"], names[trial["result"]["state"]]) for trial in trials)
    found = sorted(_rows(study / "study.db", "select number, state from trials")) if found is None else found
    return [] if found == wanted else [f"Optuna holds {found}, the journal {wanted}"]


def mlflow_agrees(study: Path, database: Path | None = None) -> list[str]:
    """MLflow's database, the root's or a server's, holds each trial of the journal once, with its state and accuracy,
    under one finished run.
    """
    database = database or study.parent / "mlflow.db"
    own = json.loads((study / "study.json").read_text())["study_id"]
    tagged: dict[str, dict[str, str]] = {}
    for run, key, value in _rows(
        database,
        "select t.run_uuid, t.key, t.value from tags t join runs r on r.run_uuid = t.run_uuid "
        "where r.lifecycle_stage = 'active'",
    ):
        tagged.setdefault(run, {})[key] = value
    status = dict(_rows(database, "select run_uuid, status from runs"))
    accuracy = dict(_rows(database, "select run_uuid, value from latest_metrics where key = 'accuracy'"))
    mine = {run: tags for run, tags in tagged.items() if tags.get("study_id") == own}
    parents = [status[run] for run, tags in mine.items() if tags["kind"] == "study"]
    faults = [] if parents == ["FINISHED"] else [f"MLflow's runs of the study are {parents}"]
    found = sorted((int(t["trial"]), t["state"], accuracy.get(run)) for run, t in mine.items() if t["kind"] == "trial")
    wanted = sorted(
        (trial["number"], trial["result"]["state"], trial["result"]["accuracy"])
        for name, data in journal(study).items()
        if name.startswith("trial-")
        for trial in [json.loads(data)]
    )
    if found != wanted:
        faults.append(f"MLflow holds {found}, the journal {wanted}")
    open_ones = [run for run, tags in mine.items() if tags["kind"] == "trial" and status[run] != "FINISHED"]
    return faults + ([f"{len(open_ones)} children of MLflow's are not finished"] if open_ones else [])


def export_is_whole(folder: Path) -> list[str]:
    """Every file the manifest lists is there with its hash, and no other."""
    files = json.loads((folder / "manifest.json").read_text())["files"]
    there = {path.name for path in folder.iterdir()} - {"manifest.json"}
    faults = [f"{name} is in the folder or in the manifest only" for name in there ^ set(files)]
    for name in there & set(files):
        said = files[name]["sha256"] if isinstance(files[name], Mapping) else files[name]
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != said:
            faults.append(f"{name} has another hash")
    return faults


def nothing_left_over(*folders: Path) -> list[str]:
    """No temporary file and no mark of a begun evaluation."""
    return [f"{path} is left over" for folder in folders for path in folder.rglob("*") if LEFT_OVER.search(path.name)]


def said_well(stderr: str, code: int) -> list[str]:
    """No traceback; an interrupted command ends by its line."""
    faults = [f"{word!r} on stderr" for word in ("Traceback", "Exception ignored") if word in stderr]
    last = (stderr.strip().splitlines() or [""])[-1]
    words = {130: "prunefront: interrupted", 143: "prunefront: terminated"}
    if code in words and not last.startswith(words[code]):
        faults.append(f"exit code {code}, and the last line is {last!r}")
    return faults


def _rows(database: Path, query: str) -> list[tuple]:
    connection = sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()
