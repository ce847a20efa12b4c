"""Reading a study that is there: its tables and counts, whether or not it is running."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from search.errors import UsageError
from search.record_checks import MOST_TRIALS
from search.records import FINISHED_STATES
from search.results.comparison import Comparison, shown_comparison
from search.results.selection import best_trial, dead_within, finalists_of, front_of
from search.results.tables import (
    TRIAL_COLUMNS,
    FinalScore,
    score_finals,
    trial_table,  # fmt: skip
)
from search.results.time_left import Pace, final_runs_left, seconds_left
from search.store.folder import StudyFolder, find_study
from search.store.locks import is_held
from spaces.validation import check_limit, is_number

PATIENCE = 0.5
"""Seconds to wait for a lock on the database; its writer holds it for less."""


@dataclass(frozen=True)
class StudyView:
    """A study as its folder shows it now.

    Attributes:
        trials: finished trials, then those begun (`running`, or `waiting` when no process runs the study).
        front: non-dominated trials within the limit.
        running: whether a process has the study open.
        least_accuracy: the validation accuracy asked for, if one was.
        criterion_place: `/folder/file.py:function` that a criterion of the user's own was last taken from, if known.
        dense_accuracy: of the dense model on validation data; None in studies last run before it was written down.
        dead: trials within the limit that are on no front because they are no more accurate than chance.
        chance: accuracy up to which networks are dead, see `search.training.chance`; None if unknown.
    """

    folder: StudyFolder
    trials: pd.DataFrame
    front: pd.DataFrame
    finals: Mapping[str, FinalScore]
    comparison: Comparison | None
    running: bool
    least_accuracy: float | None = None
    criterion_place: str | None = None
    dense_accuracy: float | None = None
    dead: int = 0
    chance: float | None = None

    @property
    def best(self) -> int | None:
        """The trial `export --trial best` ships, see `best_trial`; None without a feasible one."""
        return best_trial(self.front, self.trials, self.folder.config.max_size, self.least_accuracy, self.chance)

    @property
    def seconds_left(self) -> float | None:
        """Running seconds the study still needs, finals included, by its pace so far; None before its first trial."""
        folder, config = self.folder, self.folder.config
        chosen = finalists_of(self.front, config.finalists, self.least_accuracy)
        digests, finals = list(self.trials.set_index("trial")["digest"].loc[chosen]), folder.journal.finals()
        runs = final_runs_left(config, digests, finals, self.comparison)
        recipe, pace = folder.read_record()["identity"]["recipe"], Pace(folder.journal.trials())
        return seconds_left(config, recipe, pace, finals, runs)

    @property
    def counts(self) -> dict[str, int]:
        """Trials by state."""
        states = (*FINISHED_STATES, "running", "waiting")
        return {state: int((self.trials["state"] == state).sum()) for state in states}


def open_study(root: str | Path, name: str, max_size: float | None = None) -> StudyView:
    """Read a study; `max_size` re-slices its front without new trials.

    Raises:
        UsageError: unknown study; the nearest name is told. A `max_size` outside (0, 1].
        Refused: a damaged record.
    """
    if max_size is not None:
        try:
            check_limit("max-size", max_size)
        except ValueError as error:
            raise UsageError(str(error)) from None
    folder = find_study(root, name)
    config = folder.config
    journal = folder.journal
    finals = score_finals(journal.finals(), config.final_repeats)
    trials = trial_table(journal.trials(), finals, config.size_metric)
    running = is_held(folder.lock)
    begun = _begun_rows(folder, set(trials["trial"]), "running" if running else "waiting")
    table = pd.concat([trials, begun], ignore_index=True) if len(begun) else trials
    limit, record = config.max_size if max_size is None else max_size, folder.read_record()
    chance = _share(record.get("chance"))
    front = front_of(trials, limit, config.cost, chance)
    return StudyView(
        folder, table, front, finals, shown_comparison(folder), running,
        record.get("least_accuracy"), record.get("criterion_place"), _share(record.get("dense_accuracy")),
        dead_within(trials, limit, chance), chance,
    )  # fmt: skip


def load_front(study: str, root: str | Path = "mlruns", max_size: float | None = None) -> pd.DataFrame:
    """The Pareto set of a study, as `prunefront front` shows it; `max_size` re-slices it."""
    return open_study(root, study, max_size).front


def _share(value: object) -> float | None:
    """A share that a record holds; None if it holds none."""
    return float(value) if is_number(value) and 0 <= value <= 1 else None


def _begun_rows(folder: StudyFolder, finished: set[int], state: str) -> pd.DataFrame:
    numbers = [number for number in begun_trials(folder) if number not in finished]
    rows = [dict.fromkeys(TRIAL_COLUMNS) | {"trial": number, "state": state} for number in numbers]
    return pd.DataFrame(rows, columns=list(TRIAL_COLUMNS), dtype=object)


def begun_trials(folder: StudyFolder) -> list[int]:
    """Numbers of the trials that were begun, finished or not, as far as the files tell.

    Nothing is written: the database, where earlier versions kept trials that were not finished, is opened for reading
    only, and one that is locked, damaged or half made tells nothing.
    """
    marks = (
        re.match(r"(?:begun|pending)-trial-([0-9]{5,7})(?![0-9])", path.name)
        for path in folder.journal.folder.glob("*-trial-*")
    )
    begun = {int(mark[1]) for mark in marks if mark}
    query = "SELECT number FROM trials JOIN studies USING (study_id) WHERE study_name = ?"
    with suppress(sqlite3.Error, OSError):
        url = f"{folder.database.resolve().as_uri()}?mode=ro"
        with closing(sqlite3.connect(url, timeout=PATIENCE, uri=True)) as database:
            found = [number for (number,) in database.execute(query, (folder.name,))]
            begun |= {number for number in found if isinstance(number, int) and 0 <= number < MOST_TRIALS}
    return sorted(begun)
