"""What a study has written: its journal, and what Optuna reads of it."""

from __future__ import annotations

from pathlib import Path

import optuna

from search.store.journal import Journal


def records(root: Path, study: str) -> list:
    return Journal(root / study / "journal").trials()


def proposed(root: Path, study: str) -> list[dict]:
    return [dict(trial.params) for trial in records(root, study)]


def stored(root: Path, study: str) -> list[optuna.trial.FrozenTrial]:
    """What Optuna itself reads from the study's database."""
    url = f"sqlite:///{root / study / 'study.db'}"
    return optuna.load_study(study_name=study, storage=url).get_trials()
