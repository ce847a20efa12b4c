"""Reading a study that is there: its tables and counts, whether or not it is running."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from search.finals import Comparison, read_comparison
from search.folder import StudyFolder, find_study
from search.locks import is_held
from search.records import FINISHED_STATES
from search.results import TRIAL_COLUMNS, FinalScore, best_trial, front_of, score_finals, trial_table


@dataclass(frozen=True)
class StudyView:
    """A study as its folder shows it now.

    Attributes:
        trials: finished trials, then those begun (`running`, or `waiting` when no process runs the study).
        front: non-dominated trials within the limit.
        running: whether a process has the study open.
        least_accuracy: the validation accuracy asked for, if one was.
    """

    folder: StudyFolder
    trials: pd.DataFrame
    front: pd.DataFrame
    finals: Mapping[str, FinalScore]
    comparison: Comparison | None
    running: bool
    least_accuracy: float | None = None

    @property
    def best(self) -> int | None:
        """The trial an export ships; None without a feasible one."""
        return best_trial(self.front, self.trials, self.folder.config.max_size, self.least_accuracy)

    @property
    def counts(self) -> dict[str, int]:
        """Trials by state."""
        states = (*FINISHED_STATES, "running", "waiting")
        return {state: int((self.trials["state"] == state).sum()) for state in states}


def open_study(root: str | Path, name: str, max_size: float | None = None) -> StudyView:
    """Read a study; `max_size` re-slices its front without new trials.

    Raises:
        UsageError: unknown study; the nearest name is told.
        Refused: a damaged record.
    """
    folder = find_study(root, name)
    config = folder.config
    journal = folder.journal
    finals = score_finals(journal.finals(), config.final_seeds)
    trials = trial_table(journal.trials(), finals, config.size_metric)
    running = is_held(folder.lock)
    begun = _begun_rows(folder, set(trials["trial"]), "running" if running else "waiting")
    table = pd.concat([trials, begun], ignore_index=True) if len(begun) else trials
    front = front_of(trials, config.max_size if max_size is None else max_size, config.speed)
    least = folder.read_record().get("least_accuracy")
    return StudyView(folder, table, front, finals, read_comparison(folder), running, least)


def load_front(study: str, root: str | Path = "mlruns", max_size: float | None = None) -> pd.DataFrame:
    """The Pareto set of a study, as `prunefront front` shows it; `max_size` re-slices it."""
    return open_study(root, study, max_size).front


def _begun_rows(folder: StudyFolder, finished: set[int], state: str) -> pd.DataFrame:
    from search.study import begun_trials  # Optuna takes a second to import

    numbers = [number for number in begun_trials(folder.database, folder.name) if number not in finished]
    rows = [dict.fromkeys(TRIAL_COLUMNS) | {"trial": number, "state": state} for number in numbers]
    return pd.DataFrame(rows, columns=list(TRIAL_COLUMNS), dtype=object)
