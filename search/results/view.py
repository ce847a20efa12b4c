"""A study as its folder shows it, whether or not it is running."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from search.config import SearchConfig
from search.errors import UsageError
from search.metric import metric_from_plain
from search.record_checks import MOST_TRIALS
from search.results.comparison import shown_comparison
from search.results.state import StudyState
from search.results.tables import FRONT_COLUMNS, TrialRow, data_frame
from search.store.folder import StudyFolder, find_study
from search.store.locks import is_held
from search.store.study_record import stored_config
from spaces.validation import check_limit, is_number

if TYPE_CHECKING:
    import pandas as pd

PATIENCE = 0.5
"""Seconds to wait for a lock on the database; its writer holds it for less."""


@dataclass(frozen=True)
class StudyView:
    """A study as its folder shows it now, read once.

    Attributes:
        config: it was last run with.
        state: its results.
        begun: numbers of the trials that were begun and have no result.
        running: whether a process has the study open.
        criterion_place: `/folder/file.py:function` that a criterion of the user's own was last taken from, if known.
    """

    folder: StudyFolder
    config: SearchConfig
    state: StudyState
    begun: tuple[int, ...]
    running: bool
    criterion_place: str | None = None

    @property
    def rows(self) -> list[TrialRow]:
        """Finished trials, then those begun (`running`, or `waiting` when no process runs the study)."""
        word = "running" if self.running else "waiting"
        return self.state.rows + [TrialRow(number, state=word) for number in self.begun]

    @property
    def counts(self) -> dict[str, int]:
        """Trials by state."""
        return self.state.counts(**{"running" if self.running else "waiting": len(self.begun)})


def open_study(
    root: str | Path,
    name: str,
    max_size: float | None = None,
    max_macs: float | None = None,
    max_latency: float | None = None,
) -> StudyView:
    """Read a study; limits, shares of the dense model's size, MACs and latency, re-slice its front without new trials.

    Raises:
        UsageError: unknown study; the nearest name is told. A limit outside (0, 1], or on latency, which the study
            does not predict.
        Refused: a damaged record.
    """
    _check_limits({"max-size": max_size, "max-macs": max_macs, "max-latency": max_latency})
    folder = find_study(root, name)
    record = folder.read_record()
    config = stored_config(record, str(folder.root))
    if max_latency is not None and not config.needs_latency:
        raise UsageError(
            f"study {name!r} predicts no latency, so that max-latency {max_latency:g} cannot limit it: give max-macs"
        )
    journal = folder.journal
    finals, trials = journal.finals(), journal.trials()
    running = is_held(folder.lock)
    begun = tuple(number for number in begun_trials(folder) if number not in {trial.number for trial in trials})
    state = StudyState(
        config,
        record["identity"]["recipe"],
        max_size=max_size,
        max_macs=max_macs,
        max_latency=max_latency,
        dense_accuracy=_share(record.get("dense_accuracy")),
        least_accuracy=record.get("least_accuracy"),
        chance=_share(record.get("chance")),
        comparison=shown_comparison(folder),
        unit=metric_from_plain(record.get("metric")),
    )
    state.add_all(trials, finals, journal.count_short_runs())
    return StudyView(folder, config, state, begun, running, record.get("criterion_place"))


def load_front(
    study: str,
    root: str | Path = "mlruns",
    max_size: float | None = None,
    max_macs: float | None = None,
    max_latency: float | None = None,
) -> pd.DataFrame:
    """The Pareto set of a study, as `prunefront front` shows it; limits re-slice it, as they do `open_study`'s."""
    state = open_study(root, study, max_size, max_macs, max_latency).state
    return data_frame(state.front, FRONT_COLUMNS, state.unit)


def _check_limits(limits: Mapping[str, float | None]) -> None:
    for name, share in limits.items():
        if share is not None:
            try:
                check_limit(name, share)
            except ValueError as error:
                raise UsageError(str(error)) from None


def _share(value: object) -> float | None:
    """A share that a record holds; None if it holds none."""
    return float(value) if is_number(value) and 0 <= value <= 1 else None


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
